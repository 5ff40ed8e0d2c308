"""Lets Lingvo be imported where its compiled op library cannot load.

Lingvo imports `lingvo.core.ops.gen_x_ops`, a module its wheel does not have,
and loads `x_ops.so` when that fails. The finder here answers that import with
`gen_x_ops.py` of this package, only where `x_ops.so` does not load.

`lingvo_x_ops.pth` calls `install` in every interpreter of the environment, so
this module imports nothing heavy: TensorFlow comes in with Lingvo itself.
"""

import sys

_MODULE = 'lingvo.core.ops.gen_x_ops'


class _Finder:
  """A meta-path finder for one module."""

  @staticmethod
  def find_spec(fullname, path=None, target=None):
    """Returns the spec of the stand-in, or None to let Lingvo go on alone."""
    del target
    if fullname != _MODULE:
      return None
    import importlib.util  # pylint: disable=g-import-not-at-top
    import os  # pylint: disable=g-import-not-at-top
    import tensorflow as tf  # pylint: disable=g-import-not-at-top

    library = os.path.join(list(path)[0], 'x_ops.so')
    try:
      tf.load_op_library(library)
    except tf.errors.NotFoundError as error:
      spec = importlib.util.spec_from_file_location(
          _MODULE, os.path.join(os.path.dirname(__file__), 'gen_x_ops.py'))
      spec.loader_state = error.message  # for the errors of missing ops
      return spec
    return None


def install():
  """Registers the finder behind all others, once."""
  if _Finder not in sys.meta_path:
    sys.meta_path.append(_Finder)
