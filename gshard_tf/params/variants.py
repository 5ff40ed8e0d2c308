"""Registered models with other constants, named on a command line.

A model is a class of constants (`params.translation`); a variant is a subclass.
"""

import difflib
from typing import Iterable

from gshard_tf.params import sharding


class VariantError(ValueError):
  """A setting that a model does not have, or a value that it cannot take."""


def variant(model: type, settings: Iterable[str]) -> type:
  """A model with other constants.

  Args:
    model: a class of constants.
    settings: such as `REMAT=block`; a value is read as the type that the
      constant has in `model`, a sharding table by its name in `params.sharding`.

  Returns:
    `model` itself without settings, else a subclass of the same name.

  Raises:
    VariantError: see there.
  """
  constants = {}
  for setting in settings:
    name, equals, text = setting.partition('=')
    if not equals:
      raise VariantError(f'{setting} is no setting; write NAME=VALUE')
    known = [n for n in dir(model) if n.isupper() and not n.startswith('_')]
    if name not in known:
      near = difflib.get_close_matches(name.upper(), known, n=1)
      hint = f'; did you mean {near[0]}?' if near else f'; it has {", ".join(known)}'
      raise VariantError(f'{model.__name__} has no constant {name}{hint}')
    constants[name] = _read(name, text, getattr(model, name))
  return type(model.__name__, (model,), constants) if constants else model


def _read(name, text, present):
  """The value in `text`, of the type of the present one."""
  choices = {bool: {'True': True, 'False': False, 'true': True, 'false': False},
             dict: {n: t for n, t in vars(sharding).items() if isinstance(t, dict) and n.isupper()}}
  kind = type(present)
  try:
    if kind in choices:
      return choices[kind][text]
    return float(text) if present is None else kind(text)
  except (KeyError, ValueError):
    names = f'one of {", ".join(choices[kind])}' if kind in choices else f'a value of type {kind.__name__}'
    raise VariantError(f'{name}={text}: {name} is {names}') from None
