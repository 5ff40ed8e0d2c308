"""Start-up without the chatter of libraries.

TensorFlow's C++ logs a few lines at import, before any of its settings can stop
them; Lingvo prints a line for each file in which a model might be; and libtpu,
where it is installed, complains that there is no TPU.
"""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def libraries():
  """Keeps standard error quiet; if the body fails, shows what it had said.

  Yields:
    A function that returns what was said so far, as a string.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  sys.stderr.flush()
  terminal = os.dup(2)
  with tempfile.TemporaryFile() as said:
    os.dup2(said.fileno(), 2)
    try:
      yield lambda: os.pread(said.fileno(), os.fstat(said.fileno()).st_size, 0).decode(errors='replace')
    except BaseException:
      said.seek(0)
      os.write(terminal, said.read())
      raise
    finally:
      sys.stderr.flush()
      os.dup2(terminal, 2)
      os.close(terminal)
