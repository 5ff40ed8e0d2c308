"""Reports made by other processes, so that one that fails or is killed stops nothing else."""

import json
import os
import re
import subprocess
import sys
import tempfile


# The line of a fault among what libraries say.
_FAULT = re.compile(r'aot_report: |[\w.]*(Error|Exception)\b')


class FailedError(RuntimeError):
  """A process that made no report."""


def report(name: str, topology: str, mesh: str, settings: list[str]) -> dict:
  """Runs `tools.aot_report` and waits.

  Args:
    name: of a registered model.
    topology: see `topologies.find`.
    mesh: sizes of the mesh axes, or auto.
    settings: see `variants.variant`.

  Returns:
    The report, of a model that fits or not.

  Raises:
    FailedError: there is none; the message has the reason that was given.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'report.json')
    command = [sys.executable, '-m', 'tools.aot_report', f'--model={name}',
               f'--topology={topology}', f'--mesh={mesh}', f'--json={path}',
               *(f'--set={s}' for s in settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
      raise FailedError(f'{" ".join([name, *settings])}: {_reason(done)}')
    with open(path, encoding='utf-8') as f:
      return json.load(f)


def _reason(done):
  """Why a process ended, in one line."""
  if done.returncode < 0:
    return f'killed by signal {-done.returncode}, perhaps for want of memory'
  said = [line for line in done.stderr.splitlines() if _FAULT.match(line)]
  return said[-1].removeprefix('aot_report: ') if said else f'exit status {done.returncode}'
