"""The Mixture-of-Experts feed-forward layer (2006.16668, sections 2.2 and 3.1).

Dimensions: B rows, L positions, G groups, S tokens in a group, E experts, C
capacity, Z = E*C slots, K experts chosen for a token, M model, N languages.
"""

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import dispatch
from gshard_tf.layers import expert_metrics
from gshard_tf.layers import experts
from gshard_tf.layers import router
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate

_DISPATCH = {
    'einsum': (dispatch.dispatch_einsum, dispatch.combine_einsum),
    'gather': (dispatch.dispatch_gather, dispatch.combine_gather),
    'dropless': (None, None),
}


def check_groups(num_groups: int, tokens: int, of: str = '') -> int:
  """The number of groups that tokens are routed in.

  Args:
    num_groups: as the Params say.
    tokens: tokens of a batch; where they are fewer than `num_groups`, each is a
      group of its own.
    of: whose tokens, for the message.

  Returns:
    G.

  Raises:
    ParamsError: the tokens do not split into groups of equal size, or there are
      none.
  """
  if tokens < 1:
    raise weights.ParamsError(f'{tokens} tokens{of}; set its rows and lengths to 1 at least')
  if num_groups < 1:
    raise weights.ParamsError(f'num_groups is {num_groups}; routing needs 1 at least')
  groups = min(num_groups, tokens)
  if tokens % groups:
    raise weights.ParamsError(f'{tokens} tokens{of} do not split into {groups} groups; set '
                              f'num_groups to a divisor of {tokens}')
  return groups


class MoE(weights.Layer):
  """E feed-forward layers, of which every token visits those that the router says.

  `FProp` has the signature of `feed_forward.FeedForward`. Fine-grained experts
  (DeepSeekMoE, 2401.06066, section 3.1) are more experts of a smaller
  `hidden_dim` with a larger k of the router; its shared experts (section 3.2)
  are the layer `shared`, beside the routed ones: one feed-forward as wide as all
  of them together.
  """

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('hidden_dim', 0, 'H of one expert.')
    p.Define('num_experts', 0, 'E.')
    p.Define('num_groups', 1, 'G: tokens are routed within groups of equal size.')
    p.Define('router', router.Top2Router.Params(), 'Params of the router, see router.py; '
             'model_dim and num_experts are set here.')
    p.Define('shared', None, 'Params of a FeedForward that every token visits besides; model_dim '
             'is set here.')
    p.Define('dispatch', 'gather', f'One of {", ".join(_DISPATCH)}; see docs/moe.md. Dropless '
             "takes no notice of the router's capacity.")
    p.Define('dropout', 0., 'Probability that a hidden unit is dropped in training.')
    p.Define('experts', experts.Experts.Params(), 'Params of the experts, for their activation; '
             'their sizes and dropout are set here.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._Require(p.dispatch in _DISPATCH, f'dispatch is {p.dispatch!r}; choose one of '
                  f'{", ".join(_DISPATCH)}')
    check_groups(p.num_groups, tokens=1)
    _check_mesh(self.path, p.num_experts)
    router_params = p.router.Copy().Set(model_dim=p.model_dim, num_experts=p.num_experts)
    if p.dispatch == 'dropless':
      name = p.router.cls.__name__
      self._Require(not p.router.cls.NEEDS_CAPACITY, f'dispatch is dropless, but {name} has no '
                    'meaning without a capacity; choose gather or einsum, or another router')
      router_params.Set(capacity_factor=None, eval_capacity_factor=None)
    self.CreateChild('router', router_params)
    if p.shared is not None:
      self.CreateChild('shared', p.shared.Copy().Set(model_dim=p.model_dim))
    self.CreateChild('experts', p.experts.Copy().Set(
        model_dim=p.model_dim, hidden_dim=p.hidden_dim, num_experts=p.num_experts,
        dropout=p.dropout))

  def FProp(self, theta, x, paddings, ids=None, language=None):
    """Computes the layer.

    Args:
      theta: the weights of the children.
      x: [B, L, M].
      paddings: [B, L]; 1 at padding, which no routed expert sees.
      ids: int32 [B, L], the tokens' ids in the vocabulary, for routers by id.
      language: float32 [B, L, N], one-hot, the language of each token's sentence,
        to measure load_by_language.

    Returns:
      A NestedMap with y [B, L, M]; aux_loss float32 [], the router's losses
      weighted; metrics, a NestedMap of pairs of value and weight, see
      `expert_metrics`, and each loss, not weighted; and updates, a NestedMap with
      new values of those weights in `theta` that no gradient changes, empty at
      evaluation.

    Raises:
      ParamsError: B * L tokens do not split into G groups.
    """
    p = self.params
    groups = check_groups(p.num_groups, x.shape[0] * x.shape[1], f' of {self.path}')
    in_groups = lambda a: annotate(tf.reshape(a, [groups, -1]), 'gs')
    tokens = annotate(tf.reshape(x, [groups, -1, p.model_dim]), 'gsm')
    nonpadding = in_groups(1. - tf.cast(paddings, tf.float32))
    routing = self.router.FProp(
        theta.router, tokens, nonpadding, None if ids is None else in_groups(ids))
    metrics = self._Metrics(routing, nonpadding)
    if language is not None:
      metrics.load_by_language = expert_metrics.load_by_language(
          routing, tf.reshape(language, [groups, -1, language.shape[-1]]))

    y = annotate(self._visit(theta.experts, tokens, routing), 'gsm')
    y = annotate(tf.reshape(y, x.shape), 'blm')
    if p.shared is not None:
      y += self.shared.FProp(theta.shared, x, paddings).y
    return py_utils.NestedMap(
        y=y, aux_loss=self.router.AuxLoss(routing), metrics=metrics,
        updates=py_utils.NestedMap(router=self.router.Updates(theta.router, routing)))

  def _Metrics(self, routing, nonpadding):
    losses = {f'{name}_loss': [tf.stop_gradient(loss), tf.ones([])]
              for name, loss in routing.losses.items()}
    return py_utils.NestedMap(
        expert_metrics.measure(routing, nonpadding, self.router.TOKENS_CHOOSE), **losses)

  def _visit(self, theta, tokens, routing):
    """The weighted sums of the tokens' experts: [G, S, M]."""
    if self.params.dispatch == 'dropless':
      return self.experts.FPropDropless(theta, tokens, routing)
    dispatch_fn, combine_fn = _DISPATCH[self.params.dispatch]
    xe = annotate(dispatch_fn(tokens, routing), 'gzm')
    return combine_fn(self.experts.FProp(theta, xe), routing)


def _check_mesh(path, num_experts):
  """Raises ParamsError where the mesh in force does not divide the experts."""
  mesh, table = xla_sharding.current()
  parts = 1 if mesh is None else mesh.partitions(table['emh'][0])
  if num_experts % parts:
    raise weights.ParamsError(
        f'{path}: {num_experts} experts do not split over {parts} devices; set num_experts to a '
        f'multiple of {parts}, or choose a mesh whose expert axis divides {num_experts}')
