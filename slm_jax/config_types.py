"""Checks a value against a type hint; gin itself checks none."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from slm_jax.errors import UserError


def checked(value: Any, hint: Any, name: str, where: str) -> Any:
    """`value` as type `hint` (ints become floats, lists tuples), else a UserError."""
    converted = _convert(value, hint)
    if converted is _WRONG:
        raise UserError(
            f"{where}: {name} must be {_hint_text(hint)}, got {value!r}",
            f"Give {name} a value of that type.",
        )
    return converted


_WRONG = object()


def _convert(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        return value if value in args else _WRONG
    if origin in (typing.Union, types.UnionType):
        options = (_convert(value, option) for option in args)
        return next((option for option in options if option is not _WRONG), _WRONG)
    if origin is tuple:
        if not isinstance(value, tuple):
            return _WRONG
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        items = [_convert(item, h) for item, h in zip(value, each, strict=False)]
        wrong = len(each) != len(value) or any(item is _WRONG for item in items)
        return _WRONG if wrong else tuple(items)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            return _WRONG
        pairs = {_convert(k, args[0]): _convert(v, args[1]) for k, v in value.items()}
        return _WRONG if _WRONG in pairs or _WRONG in pairs.values() else pairs
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        return _WRONG
    return value if isinstance(value, hint) else _WRONG


def _hint_text(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_hint_text(option) for option in args)
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not args else str(hint)
