"""Packages as archives: downloaded by the registries' own clients, read in place, never installed."""

import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator

from gshard_tf.corpus.sources import Source

_LICENCES = pathlib.Path(__file__).parent / 'licences'
_LICENCE_FILE = r'(?:package|[^/]+\.dist-info)/(?:licenses/)?(?:LICENSE|COPYING)(?:-MIT)?(?:\.\w+)?'


class DownloadError(RuntimeError):
  """A package could not be had; the message says how to get it by hand."""


def _find(source: Source, cache: pathlib.Path) -> pathlib.Path | None:
  """Returns the archive of a package in the cache, if it is there."""
  if source.registry == 'npm':
    name = source.name.lstrip('@').replace('/', '-')
    archives = cache.glob(f'{name}-{source.version}.tgz')
  else:
    name = re.sub(r'[-_.]+', '_', source.name)
    archives = cache.glob(f'{name}-{source.version}-*.whl')
  return min(archives, default=None)


def download(source: Source, cache: pathlib.Path) -> pathlib.Path:
  """Returns the archive of a package, fetched into the cache unless it is there.

  Args:
    source: a row of the table.
    cache: a directory, made when it is missing.

  Raises:
    DownloadError: when the registry's client fails or is missing.
  """
  cache.mkdir(parents=True, exist_ok=True)
  if archive := _find(source, cache):
    return archive
  if source.registry == 'npm':
    command = ['npm', 'pack', '--ignore-scripts', '--pack-destination', str(cache),
               f'{source.name}@{source.version}']
  else:  # A wheel needs no code of the package to be run, unlike a source distribution.
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--ignore-requires-python',
               '--only-binary=:all:', '--dest', str(cache), f'{source.name}=={source.version}']
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status = f'status {done.returncode}'
  except FileNotFoundError:
    status = 'no such program'
  if archive := _find(source, cache):
    return archive
  raise DownloadError(f'"{command[0] if source.registry == "npm" else "pip"}" did not bring {source.name} '
                      f'{source.version} ({status}); put its archive into --cache by hand')


def read_members(archive: pathlib.Path, pattern: str) -> Iterator[tuple[re.Match, bytes]]:
  """Reads the files of an archive whose whole path matches a pattern, in order of path.

  Args:
    archive: a wheel (zip) or an npm package (tar).
    pattern: a regular expression.

  Yields:
    The match and the contents of each file.
  """
  compiled = re.compile(pattern)
  if archive.suffix == '.whl':
    with zipfile.ZipFile(archive) as package:
      for name in sorted(package.namelist()):
        if match := compiled.fullmatch(name):
          yield match, package.read(name)
  else:
    with tarfile.open(archive) as package:
      members = {m.name: m for m in package if m.isfile() and compiled.fullmatch(m.name)}
      contents = {m.name: package.extractfile(m).read() for m in members.values()}
    for name in sorted(contents):
      yield compiled.fullmatch(name), contents[name]


def licence_text(source: Source, archive: pathlib.Path) -> str:
  """Returns the licence of a package, as the package itself has it or else the standard text.

  Raises:
    ValueError: when there is neither.
  """
  for _, data in read_members(archive, _LICENCE_FILE):
    return data.decode('utf-8').strip()
  standard = _LICENCES / f'{source.licence}.txt'
  if not standard.exists():
    raise ValueError(f'{source.name} {source.version} carries no licence text; add {source.licence}.txt to '
                     'gshard_tf/corpus/licences')
  return standard.read_text(encoding='utf-8').strip('\n')
