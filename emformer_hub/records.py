"""Dataclasses from the plain values that YAML, JSON and tables hold, strictly; and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from emformer_hub.errors import InputError


def to_plain(value: Any) -> Any:
    """A value as YAML and JSON hold it: tuples become lists."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(cls: type, content: Any, where: str) -> Any:
    """Build a dataclass from a mapping of plain values, nested dataclasses included.

    Args:
        cls: the dataclass.
        content: field names and values; fields with a default may be missing.
        where: what messages call the place that the content comes from.

    Raises:
        InputError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping, found {content!r}.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; valid keys are {', '.join(hints)}.")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        if name not in content:
            raise InputError(f"{where}: the key {name!r} is missing.")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in content.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected a list, found {value!r}.")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where)
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError):
            pass
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{where}: expected {expected.__name__}, found {value!r}.")
    return value
