"""Random routing problems, and what the loops of all gatings share.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K experts
chosen for a token.
"""

from typing import NamedTuple

from hypothesis import strategies as st
import numpy as np
import tensorflow as tf


class Problem(NamedTuple):
  """Logits float32 [G, S, E], nonpadding float32 [G, S], and a capacity."""
  logits: np.ndarray
  nonpadding: np.ndarray
  capacity: int
  rng: np.random.Generator

  def args(self):
    """The logits and nonpadding as tensors, and the capacity."""
    return tf.constant(self.logits), tf.constant(self.nonpadding), self.capacity


@st.composite
def problems(draw, experts=(2, 6), multiple=1):
  """Problems of all sizes, with padding; E a multiple of `multiple`."""
  groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 12))
  experts = draw(st.integers(*experts)) * multiple
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  scale = draw(st.sampled_from([0.1, 1., 5.]))
  logits = scale * rng.standard_normal((groups, size, experts))
  # A shared preference makes experts overflow.
  logits += draw(st.sampled_from([0., 2.])) * rng.standard_normal(experts)
  nonpadding = rng.random((groups, size)) >= draw(st.sampled_from([0., 0.3, 1.]))
  return Problem(logits.astype(np.float32), nonpadding.astype(np.float32),
                 draw(st.integers(1, size)), rng)


def softmax(logits):
  """Of one token's logits [E], in float64."""
  p = np.exp(logits.astype(np.float64) - logits.max())
  return p / p.sum()


def best(scores, k):
  """The k experts of the highest scores [E]; and the least distance between ranks that decide."""
  order = sorted(range(len(scores)), key=lambda e: -scores[e])
  ranked = np.array([scores[e] for e in order])
  return order[:k], min(np.append(ranked[:-1] - ranked[1:], np.inf)[:k])


def fill(wishes, capacity, order=None):
  """Places of one group, choice by choice, within a choice token by token.

  Args:
    wishes: for each token its experts, first choices first, -1 for none.
    capacity: C.
    order: the tokens in the order in which they come.

  Returns:
    int [S, K], slots, -1 where there is none.
  """
  wishes = np.asarray(wishes)
  slot, count = np.full(wishes.shape, -1), {}
  for k in range(wishes.shape[1]):
    for s in range(len(wishes)) if order is None else order:
      expert = wishes[s, k]
      if expert >= 0:
        place = count.get(expert, 0)
        count[expert] = place + 1
        if place < capacity:
          slot[s, k] = expert * capacity + place
  return slot


def balance(probabilities, wishes, experts):
  """E times the sum over experts of share of choices and mean probability, of one group."""
  if not len(probabilities):
    return 0.
  share = np.bincount(np.ravel(wishes), minlength=experts) / np.size(wishes)
  return experts * float(share @ np.mean(probabilities, 0))


def check(routing, expert, slot, gate, atol=1e-6):
  """Compares a `Routing` with a loop's arrays [G, S, K].

  The tolerance: a softmax over some terms and a division, a few ulps of float32.
  """
  np.testing.assert_array_equal(routing.expert, expert)
  np.testing.assert_array_equal(routing.slot, slot)
  np.testing.assert_allclose(routing.gate, gate, atol=atol)
