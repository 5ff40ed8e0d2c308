"""Params of one router of each family."""

from gshard_tf.layers import router

ROUTERS = dict(
    all=router.Top2Router.Params().Set(second_expert='all'),
    random=router.Top2Router.Params(),
    sampling=router.Top2Router.Params().Set(second_expert='sampling'),
    switch=router.SwitchRouter.Params(),
    top3=router.TopKRouter.Params().Set(k=3),
    prioritized=router.TopKRouter.Params().Set(prioritized=True, normalize_gates=False),
    noisy=router.NoisyTopKRouter.Params(),
    sigmoid=router.SigmoidRouter.Params().Set(k=2, num_nodes=2, max_nodes=1, scaling_factor=2.5),
    hash=router.HashRouter.Params(),
    expert_choice=router.ExpertChoiceRouter.Params(),
    bounded_expert_choice=router.ExpertChoiceRouter.Params().Set(max_choices=2),
)
