"""Frozen dataclasses written as gin text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


def dump(value: Any, *, defaults: bool = True) -> str:
    """Gin text that `loads` turns back into an equal dataclass.

    Args:
      value: a dataclass of CONFIGURABLES.
      defaults: whether to write fields that equal their class's default, too.
    """
    lines: list[str] = []
    names = [type(node).__name__ for node in _nodes(value)]

    def literal(item: Any, path: str) -> str:
        if dataclasses.is_dataclass(item):
            name = type(item).__name__
            scope = f"{path}/" if names.count(name) > 1 else ""
            write(item, path, scope)
            return f"@{scope}{name}()"
        if isinstance(item, tuple):
            items = [literal(part, f"{path}_{i}") for i, part in enumerate(item)]
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        if isinstance(item, Mapping):
            pairs = (f"{k!r}: {literal(v, f'{path}_{i}')}" for i, (k, v) in enumerate(item.items()))
            return "{" + ", ".join(pairs) + "}"
        return repr(item)

    def write(node: Any, path: str, scope: str) -> None:
        at = len(lines)
        own = []
        for field in fields(type(node)):
            item = getattr(node, field.name)
            if defaults or _has_nodes(item) or item != default(field):
                text = literal(item, f"{path}_{field.name}" if path else field.name)
                own.append(f"{scope}{type(node).__name__}.{field.name} = {text}")
        lines[at:at] = own

    write(value, "", "")
    return "\n".join(lines) + "\n"


def fields(cls: type) -> list[dataclasses.Field]:
    """The fields that a constructor takes."""
    return [field for field in dataclasses.fields(cls) if field.init]


def default(field: dataclasses.Field) -> Any:
    """What a field is without a binding; MISSING where it needs one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _nodes(value: Any) -> Iterable[Any]:
    """Every dataclass in the tree `value`, itself included."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in fields(type(value)):
            yield from _nodes(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _nodes(item)


def _has_nodes(value: Any) -> bool:
    return next(iter(_nodes(value)), None) is not None
