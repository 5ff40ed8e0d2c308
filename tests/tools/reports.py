"""Made-up reports of `tools.aot_report`, of the form that it writes."""

from gshard_tf.runtime import roofline

GIB = 2 ** 30


def report(total=10 * GIB, limit=15 * GIB, **changes) -> dict:
  """A report of a model that takes `total` bytes a core."""
  fits = total <= limit
  seconds = {name: .01 * (i + 1) for i, name in enumerate(roofline.PARTS)}
  base = dict(
      model='model_registry.m4.MoE2048E36L', topology='v3:32x32', mesh=dict(expert=2048, model=1),
      settings=[], parameters=640_000_000_000, tokens_per_step=2**22, partitions=2048, fits=fits,
      hbm_limit=limit, memory=dict(arguments=total // 2, temporaries=total // 2, total=total),
      headroom=limit - total, lower_seconds=20., compile_seconds=300.,
      host_bytes=5 * 2**30,
      flops_per_core=3e13 if fits else None, flops_per_token=1.5e10 if fits else None,
      estimated_step_seconds=.8 if fits else None, schedule_seconds=1.1 if fits else None,
      tokens_per_second=5.2e6 if fits else None,
      core_years_per_trillion_tokens=12.4 if fits else None,
      collectives={'all-to-all': dict(count=108, bytes=3 * GIB)} if fits else {},
      uncounted_loops=0, roofline=seconds | dict(total=sum(seconds.values())),
      buffers=[dict(bytes=4 * GIB, kind='temporary', shape='f32[2048,8192]',
                    layer='encoder.blocks_1.feed_forward', what='einsum/<Einsum>', backward=True,
                    remedy='REMAT=block; MICROBATCHES=2')],
      paper=dict(steps_per_second=.72, step_seconds=1 / .72, tokens_per_second=3e6,
                 core_years_per_trillion_tokens=21.5))
  return base | changes
