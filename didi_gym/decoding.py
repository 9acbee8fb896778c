"""Dataclasses as plain JSON types and back, strictly."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(cls: type[Config], data: Any) -> Config:
    """Decode `data` (from JSON) into dataclass `cls`, strictly.

    Raises:
        ValueError: an unknown or missing key or a value of another type, with its path, e.g. `layout.heading`.
    """
    return _decode(cls, data, "")


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    where = path or "config"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _decode(next(arg for arg in args if arg is not type(None)), data, path)
    if origin is Literal:
        if data not in args:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, args))}, got {data!r}")
        return data
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {data!r}")
        if args[-1] is not Ellipsis and len(data) != len(args):
            raise ValueError(f"{where}: expected {len(args)} items, got {len(data)}")
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else args
        return tuple(
            _decode(item_kind, item, f"{where}[{i}]")
            for i, (item_kind, item) in enumerate(zip(kinds, data, strict=True))
        )
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected a mapping, got {data!r}")
        return dict(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError as error:
            raise ValueError(f"{where}: {error}") from error
    if not isinstance(data, kind) or (kind is not bool and isinstance(data, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, got {data!r}")
    return data


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _decode_dataclass(cls: type[Config], data: Any, path: str) -> Config:
    where = path or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a mapping, got {data!r}")
    hints = _hints_of(cls)  # type: ignore[arg-type]  # classes are hashable
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown key(s) {', '.join(unknown)}; known: {', '.join(fields)}")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise ValueError(f"{where}: missing key(s) {', '.join(missing)}")
    prefix = f"{path}." if path else ""
    try:
        return cls(**{name: _decode(hints[name], value, prefix + name) for name, value in data.items()})
    except ValueError as error:
        raise error if str(error).startswith(where) else ValueError(f"{where}: {error}") from error
