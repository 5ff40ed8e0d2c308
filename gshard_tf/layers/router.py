"""Routers: the layers that own the weights of a gating.

One small class for each family; an experiment chooses one through the `router`
Params of the MoE layer. At evaluation no router is random.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K experts
chosen for a token, M model.
"""

import abc

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf.layers import expert_choice
from gshard_tf.layers import gating
from gshard_tf.layers import randomness
from gshard_tf.layers import token_choice
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate


class _AbstractLayer(type(weights.Layer), abc.ABCMeta):
  """Of layers that cannot be made before their abstract methods are written."""


class Router(weights.Layer, metaclass=_AbstractLayer):
  """What all routers have: the experts' capacity.

  Attributes:
    NEEDS_CAPACITY: whether the gating has no meaning without a capacity, and so
      cannot be used with a dropless dispatch.
    TOKENS_CHOOSE: whether a token's choices come in the order in which it wants
      them, rather than that in which experts took it.
  """

  NEEDS_CAPACITY = False
  TOKENS_CHOOSE = True

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('num_experts', 0, 'E.')
    p.Define('capacity_factor', 2., 'Places over all experts for each token, in '
             'training. None: room for every token with every expert.')
    p.Define('eval_capacity_factor', None,
             'The same at evaluation and decoding. With None the result for a '
             'sentence does not depend on its neighbours.')
    p.Define('min_capacity', 4, 'The least C.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._Require(p.num_experts >= 1, f'num_experts is {p.num_experts}; set 1 at least')
    for name in ('capacity_factor', 'eval_capacity_factor'):
      factor = p.Get(name)
      self._Require(factor is None or factor > 0, f'{name} is {factor}, places for each token; '
                    'set a number over 0, or None for room for every token')
    self._Require(p.min_capacity >= 1, f'min_capacity is {p.min_capacity}; an expert needs 1 '
                  'place at least')

  def FProp(self, theta, tokens, nonpadding, ids=None):
    """Routes tokens.

    Args:
      theta: weights.
      tokens: [G, S, M], in any floating type; routing computes in float32
        whatever the activations are (2101.03961, section 2.4).
      nonpadding: float32 [G, S]; 1 for tokens, 0 for padding.
      ids: int32 [G, S], the tokens' ids in the vocabulary, or None.

    Returns:
      A `gating.Routing`.
    """
    capacity = self._Capacity(tokens.shape[1])
    routing = self._Route(theta, tf.cast(tokens, tf.float32), nonpadding, ids, capacity)
    return routing._replace(**{name: annotate(getattr(routing, name), 'gsk')
                               for name in ('slot', 'gate', 'expert')})

  def AuxLoss(self, routing: gating.Routing) -> tf.Tensor:
    """The losses of a routing, weighted by the Params `NAME_loss_weight`: float32 []."""
    weighted = [loss * self.params.Get(f'{name}_loss_weight')
                for name, loss in routing.losses.items()]
    return tf.add_n(weighted) if weighted else tf.zeros([])

  def Updates(self, theta, routing: gating.Routing) -> py_utils.NestedMap:
    """New values of the weights that no gradient changes, after a training step."""
    del theta, routing
    return py_utils.NestedMap()

  def _Capacity(self, size):
    p = self.params
    factor = p.eval_capacity_factor if self.do_eval else p.capacity_factor
    return gating.expert_capacity(size, p.num_experts, factor, p.min_capacity)

  @abc.abstractmethod
  def _Route(self, theta, tokens, nonpadding, ids, capacity):
    """As `FProp`, with float32 tokens, for a capacity C."""

  def _CheckChoices(self, k, least=1):
    self._Require(k >= least, f'k is {k}; a token needs {least} expert at least')
    self._Require(k <= self.params.num_experts,
                  f'k is {k}, but there are {self.params.num_experts} experts; set k to '
                  f'{self.params.num_experts} at most, or more experts')


class HashRouter(Router):
  """Hash routing (2106.04426): by the token's id, nothing to learn."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('seed', 0, 'Tells the hashes of layers apart.')
    return p

  def _Route(self, theta, tokens, nonpadding, ids, capacity):
    p = self.params
    if ids is None:
      raise weights.ParamsError(f'{self.path}: hash routing needs the ids of the tokens; give '
                                'them to FProp, or choose another router')
    choices = token_choice.hashed(ids, p.num_experts, p.seed)
    return gating.assign(choices, nonpadding, capacity)._replace(entropy=None)


class LearnedRouter(Router):
  """Logits by a projection, with an input jitter and the z-loss."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('input_jitter', 0., 'In training the router sees its input multiplied by '
             'uniform numbers from 1 - input_jitter to 1 + input_jitter.')
    p.Define('z_loss_weight', 0., 'Weight of the router z-loss (2202.08906, equation 5, there '
             '1e-3).')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._Require(0 <= p.input_jitter < 1, f'input_jitter is {p.input_jitter}; set a number '
                  'from 0 on, less than 1')
    self.CreateWeight('wg', 'me', (p.model_dim, p.num_experts), weights.Init.fan_in(p.model_dim))

  def _Route(self, theta, tokens, nonpadding, ids, capacity):
    if self.params.input_jitter and not self.do_eval:
      uniform = randomness.uniform(self, tokens.shape, 'gsm')
      tokens *= 1. + self.params.input_jitter * (2. * uniform - 1.)
    logits = self._Project(tokens, theta.wg)
    routing = self._RouteByLogits(theta, tokens, logits, nonpadding, capacity)
    losses = routing.losses | {'z': gating.z_loss(logits, nonpadding)}
    return routing._replace(losses=losses)

  def _Project(self, tokens, w):
    return annotate(tf.einsum('gsm,me->gse', tokens, tf.cast(w, tf.float32)), 'gse')

  @abc.abstractmethod
  def _RouteByLogits(self, theta, tokens, logits, nonpadding, capacity):
    """As `_Route`, given logits float32 [G, S, E]."""


class TopKRouter(LearnedRouter):
  """The K likeliest experts (Mixtral, 2401.04088); V-MoE's without normalised gates."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('k', 2, 'K.')
    p.Define('normalize_gates', True, 'Whether the gates of a token sum to one, before any is '
             'dropped.')
    p.Define('prioritized', False, 'Whether the tokens that the router is surest of take their '
             'places first (2106.05974, section 4.1).')
    p.Define('balance_loss_weight', .01, 'Weight of the load-balancing loss.')
    return p

  def __init__(self, params):
    super().__init__(params)
    self._CheckChoices(self.params.k)

  def _RouteByLogits(self, theta, tokens, logits, nonpadding, capacity):
    p = self.params
    choices = self._Choose(theta, logits)
    routing = gating.assign(choices, nonpadding, capacity, prioritized=p.prioritized)
    balance = gating.balance_loss(choices.probability, choices.expert, nonpadding)
    return routing._replace(losses={'balance': balance})

  def _Choose(self, theta, logits):
    """logits float32 [G, S, E] -> gating.Choices."""
    del theta
    return token_choice.top_k(logits, self.params.k, self.params.normalize_gates)


class SwitchRouter(TopKRouter):
  """One expert for each token (Switch, 2101.03961, sections 2.1, 2.2 and 2.4)."""

  @classmethod
  def Params(cls):
    return super().Params().Set(k=1, normalize_gates=False, capacity_factor=1.25,
                                input_jitter=.01)


class Top2Router(LearnedRouter):
  """GShard's top-2 gating (2006.16668, section 2.2)."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('second_expert', 'random', 'In training, see token_choice.top2: one of '
             f'{", ".join(token_choice.SECOND_EXPERT)}. At evaluation all.')
    p.Define('normalize_before_dropping', True, 'Whether both gates are scaled to sum to one '
             'before the second is kept at random and places run out, as in the paper, or what '
             'is left after that.')
    p.Define('prioritized', False, 'See TopKRouter.')
    p.Define('balance_loss_weight', .01,
             'Weight of the load-balancing loss of first choices.')
    return p

  def __init__(self, params):
    super().__init__(params)
    policy = self.params.second_expert
    self._Require(policy in token_choice.SECOND_EXPERT, f'second_expert is {policy!r}; choose one '
                  f'of {", ".join(token_choice.SECOND_EXPERT)}')
    self._CheckChoices(2)

  def _RouteByLogits(self, theta, tokens, logits, nonpadding, capacity):
    p = self.params
    policy = 'all' if self.do_eval else p.second_expert
    uniform = None
    if policy == 'random':
      uniform = randomness.uniform(self, logits.shape[:2], 'gs')
    elif policy == 'sampling':
      uniform = randomness.uniform(self, logits.shape, 'gse')
    before = p.normalize_before_dropping
    choices = token_choice.top2(logits, policy, uniform, normalize=before)
    routing = gating.assign(choices, nonpadding, capacity, prioritized=p.prioritized,
                            normalize_kept=not before)
    balance = gating.balance_loss(choices.probability, choices.expert[..., :1], nonpadding)
    return routing._replace(losses={'balance': balance})


class NoisyTopKRouter(LearnedRouter):
  """Top-k of logits with learned noise (1701.06538, section 2.1 and appendix A)."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('k', 2, 'K.')
    p.Define('prioritized', False, 'See TopKRouter.')
    p.Define('importance_loss_weight', .1, "Weight of the squared variation of the experts' "
             'sums of gates (section 4).')
    p.Define('load_loss_weight', .1, 'Weight of the squared variation of their smooth loads.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._CheckChoices(p.k)
    self._Require(p.k < p.num_experts, f'k is {p.k} of {p.num_experts} experts; the load that the '
                  f'loss is of needs one expert more than k; set k to {p.num_experts - 1} at most')
    # Zero as in appendix A, so that at first all experts are chosen alike.
    self.CreateWeight('wn', 'me', (p.model_dim, p.num_experts), weights.Init.constant(0.))

  def _RouteByLogits(self, theta, tokens, logits, nonpadding, capacity):
    p, real = self.params, nonpadding[..., None]
    if self.do_eval:
      choices = token_choice.top_k(logits, p.k)
      load = gating.load(choices.expert, p.num_experts)
    else:
      scale = tf.nn.softplus(self._Project(tokens, theta.wn))
      noisy = logits + scale * randomness.normal(self, logits.shape, 'gse')
      choices = token_choice.top_k(noisy, p.k)
      load = token_choice.noisy_load(logits, scale, noisy, p.k)
    importance = tf.einsum('gsk,gske->gse', choices.gate, tf.one_hot(choices.expert, p.num_experts))
    variation = lambda x: gating.squared_variation(tf.reduce_sum(x * real, 1))
    routing = gating.assign(choices, nonpadding, capacity, prioritized=p.prioritized)
    return routing._replace(losses={'importance': variation(importance), 'load': variation(load)})


class SigmoidRouter(TopKRouter):
  """Sigmoid gates balanced by a bias rather than a loss (DeepSeek-V3, 2412.19437).

  The bias is a weight that no gradient changes: each training step moves it
  towards balance, by `Updates` (2408.15664).
  """

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Delete('normalize_gates')
    p.Define('num_nodes', 1, 'Groups of consecutive experts, such as those of one node.')
    p.Define('max_nodes', 1, 'The most nodes that a token visits; no bound if num_nodes is 1.')
    p.Define('scaling_factor', 1., 'Multiplies the gates; 2.5 in DeepSeek-V3.')
    p.Define('bias_update_rate', 1e-3, 'Change of the bias in a step; 0 keeps it.')
    # Against imbalance within one group alone (2412.19437, section 4.2).
    p.balance_loss_weight = 1e-4
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._Require(p.num_nodes >= 1 and p.num_experts % p.num_nodes == 0,
                  f'{p.num_experts} experts do not split over {p.num_nodes} nodes; set num_nodes '
                  f'to a divisor of {p.num_experts}')
    self._Require(1 <= p.max_nodes <= p.num_nodes, f'max_nodes is {p.max_nodes} of num_nodes '
                  f'{p.num_nodes}; set it from 1 to {p.num_nodes}')
    self._Require(p.k % p.max_nodes == 0, f'k is {p.k}, which {p.max_nodes} nodes do not divide; '
                  f'set max_nodes to a divisor of {p.k}')
    self._Require(p.k <= p.max_nodes * (p.num_experts // p.num_nodes),
                  f'k is {p.k}, but {p.max_nodes} of {p.num_nodes} nodes have '
                  f'{p.max_nodes * (p.num_experts // p.num_nodes)} of the {p.num_experts} experts; '
                  'set a smaller k, or more max_nodes')
    self.CreateWeight('bias', 'e', (p.num_experts,), weights.Init.constant(0.), trainable=False)

  def Updates(self, theta, routing):
    p = self.params
    if self.do_eval:
      return super().Updates(theta, routing)
    bias = token_choice.balanced_bias(
        tf.cast(theta.bias, tf.float32), tf.reduce_sum(routing.load, 0), p.bias_update_rate)
    return py_utils.NestedMap(bias=tf.cast(bias, theta.bias.dtype))

  def _Choose(self, theta, logits):
    p = self.params
    return token_choice.sigmoid_top_k(
        logits, tf.cast(theta.bias, tf.float32), p.k, num_nodes=p.num_nodes,
        max_nodes=p.max_nodes, scaling_factor=p.scaling_factor)


class ExpertChoiceRouter(LearnedRouter):
  """Experts choose their tokens (2202.09368)."""

  NEEDS_CAPACITY = True
  TOKENS_CHOOSE = False

  @classmethod
  def Params(cls):
    p = super().Params().Set(eval_capacity_factor=2.)
    p.Define('max_choices', None, 'The most experts that a token keeps; None for no bound. A '
             'bound saves time and memory where there are many experts.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    for name in ('capacity_factor', 'eval_capacity_factor'):
      self._Require(p.Get(name) is not None, f'{name} is None, with which every expert would '
                    'choose every token; set a number')
    if p.max_choices is not None:
      self._Require(1 <= p.max_choices <= p.num_experts, f'max_choices is {p.max_choices} of '
                    f'{p.num_experts} experts; set it from 1 to {p.num_experts}')

  def _RouteByLogits(self, theta, tokens, logits, nonpadding, capacity):
    p = self.params
    return expert_choice.expert_choice(
        logits, nonpadding, capacity, p.max_choices or p.num_experts)
