#!/bin/sh
# The Python of the project's environment, for Bazel. A link in Bazel's tree
# leads to this file in the source tree, and .venv lies beside its directory.
root=$(dirname "$(dirname "$(readlink -f "$0")")")
if [ ! -x "$root/.venv/bin/python3" ]; then
  echo "$root/.venv does not exist; run 'make setup' first" >&2
  exit 1
fi
exec "$root/.venv/bin/python3" "$@"
