"""TPU generations and slices of them: what a core can do, and how chips are joined.

The rates are public figures of peak, from one table here. How long moving bytes
between cores takes at least follows from them and from the shape of the slice.
"""

import difflib
import math
import re
from typing import NamedTuple

GIB = 2 ** 30


class UnknownTopologyError(ValueError):
  """A name that is no topology."""


class Generation(NamedTuple):
  """A kind of TPU.

  Attributes:
    name: as it stands before the colon of a topology.
    cores_per_chip: devices that a chip is to the compiler.
    flops: bf16 operations a second of a core's matrix units.
    hbm_bandwidth: bytes a second between a core and its memory.
    hbm_limit: bytes that a program may take of a core's memory.
    link_bandwidth: bytes a second of one link between chips, each way.
    wraps_from: chips along a dimension from which on its ends are joined too.
    clock: cycles a second; None where it is not public.
    slices: usual shapes in chips, up to the largest.
  """
  name: str
  cores_per_chip: int
  flops: float
  hbm_bandwidth: float
  hbm_limit: int
  link_bandwidth: float
  wraps_from: int
  clock: float | None
  slices: tuple[str, ...]


_FLAT = ('2x2', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16')

# Arithmetic, memory and links: v2 and v3 from Jouppi et al., CACM 63(7), 2020,
# table 3 (links of 496 and 656 Gbit/s); v4 from Jouppi et al., arXiv 2304.01433,
# table 4 (links of 50 GB/s); from v5e on Google Cloud's "TPU architecture" pages,
# whose interconnect of a chip is divided by its links (4 in two dimensions, 6 in
# three). A chip's figures are divided by its cores. The limits of memory are
# libtpu 0.0.52's own, from its refusals of programs that are too large.
GENERATIONS = {g.name: g for g in (
    Generation('v2', 2, 22.5e12, 350e9, int(7.48 * GIB), 62e9, 16, .70e9, _FLAT),
    Generation('v3', 2, 61.5e12, 450e9, int(15.48 * GIB), 82e9, 32, .94e9,
               _FLAT + ('16x32', '32x32')),
    Generation('v4', 2, 137.5e12, 614e9, int(15.25 * GIB), 50e9, 4, 1.05e9,
               _CUBES + ('16x16x16',)),
    Generation('v5e', 1, 197e12, 819e9, int(15.75 * GIB), 50e9, 16, 1.5e9, ('1x1',) + _FLAT),
    Generation('v5p', 1, 459e12, 2765e9, int(95.73 * GIB), 100e9, 4, 1.75e9,
               _CUBES + ('16x16x16', '16x20x28')),
    Generation('v6e', 1, 918e12, 1640e9, int(31.24 * GIB), 112e9, 16, None, ('1x1',) + _FLAT),
    Generation('tpu7x', 2, 1153.5e12, 3690e9, int(94.74 * GIB), 200e9, 4, None,
               _CUBES + ('16x16x16', '16x24x24')),
)}


class Topology(NamedTuple):
  """A slice: chips in a mesh of two or three dimensions."""
  generation: Generation
  chips: tuple[int, ...]

  @property
  def name(self) -> str:
    """As it is given on the command line."""
    return f'{self.generation.name}:{"x".join(map(str, self.chips))}'

  @property
  def cores(self) -> int:
    """Cores of all chips."""
    return math.prod(self.chips) * self.generation.cores_per_chip

  def all_to_all_seconds(self, sent: float) -> float:
    """Every core sends to all others alike; the narrowest cut of the slice decides.

    Half of what one half of the cores sends crosses the middle of the longest
    dimension, where there are as many links as the slice has chips across it,
    and twice as many if its ends are joined.

    Args:
      sent: bytes that each core sends, its own part included.

    Returns:
      Seconds, without latency.
    """
    longest = max(self.chips)
    if math.prod(self.chips) == 1:
      return 0.
    links = math.prod(self.chips) // longest * (2 if self._wraps(longest) else 1)
    return self.cores * sent / 4 / (links * self.generation.link_bandwidth)

  def all_reduce_seconds(self, size: float) -> float:
    """The sum over all cores of an array of `size` bytes that each of them has.

    Reduce-scatter and all-gather: every chip sends the array nearly twice, over
    all its links at once where the ends of dimensions are joined, over half of
    them where not (rings of one direction there and back).

    Args:
      size: bytes of the array.

    Returns:
      Seconds, without latency; the sum within a chip is not counted.
    """
    chips = math.prod(self.chips)
    if chips == 1:
      return 0.
    links = sum(2 if self._wraps(n) else 1 for n in self.chips if n > 1)
    return 2 * size * (chips - 1) / chips / (links * self.generation.link_bandwidth)

  def ring_seconds(self, size: float, cores: int) -> float:
    """The sum of an array over neighbouring cores, in both directions of a ring.

    Args:
      size: bytes of the array.
      cores: in each ring; those of one chip take no time.

    Returns:
      Seconds, without latency.
    """
    chips = max(cores // self.generation.cores_per_chip, 1)
    return 2 * size * (chips - 1) / chips / (2 * self.generation.link_bandwidth)

  def _wraps(self, length):
    return length >= self.generation.wraps_from


def find(name: str) -> Topology:
  """The topology of a name.

  Args:
    name: such as `v3:32x32`: a generation, and the chips along each dimension.

  Returns:
    The topology.

  Raises:
    UnknownTopologyError: it is none; the message has the nearest.
  """
  generation, _, shape = name.partition(':')
  known = GENERATIONS.get(generation.lower())
  if known and re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', shape):
    return Topology(known, tuple(map(int, shape.split('x'))))
  if known:
    names = [f'{known.name}:{s}' for s in known.slices]
    near = difflib.get_close_matches(name, names, 1, cutoff=0.) or names
  else:
    near = [f'{near}:{GENERATIONS[near].slices[-1]}' for near in
            difflib.get_close_matches(generation, GENERATIONS, 1, cutoff=.4)] or ['v3:32x32']
  raise UnknownTopologyError(
      f'--topology={name} is none; did you mean {near[0]}? (--topology=list shows all)')


def listing() -> list[Topology]:
  """The usual slices of all generations, smallest first.

  The compiler takes others too: any multiple of the chips of a host.
  """
  return [find(f'{g.name}:{s}') for g in GENERATIONS.values() for s in g.slices]


def row(topology: Topology) -> dict:
  """The figures of a slice, of one core where they are not of the whole.

  Args:
    topology: the slice.

  Returns:
    A dict; bytes, operations and bytes a second.
  """
  g = topology.generation
  return dict(topology=topology.name, cores=topology.cores, hbm_limit=g.hbm_limit,
              flops_per_second=g.flops, hbm_bytes_per_second=g.hbm_bandwidth,
              link_bytes_per_second=g.link_bandwidth)
