"""Dataclasses as plain JSON types and back, strictly: pydantic checks, and its errors become one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from didi_gym.core.files import in_short

Config = TypeVar("Config")
STRICT: Any = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
to_dict = asdict


def from_dict(cls: type[Config], data: Any) -> Config:
    """Decode `data` (from JSON) into dataclass `cls`, strictly.

    Raises:
        ValueError: an unknown or missing key or a value of another type, with its path, e.g. `layout.heading`.
    """
    from pydantic import TypeAdapter

    if not hasattr(cls, "__pydantic_config__"):
        cls.__pydantic_config__ = STRICT  # type: ignore[attr-defined]  # dataclasses inside take it from this one
    with in_words(cls):
        return TypeAdapter(cls).validate_json(json.dumps(data))  # of JSON, strict takes lists for tuples


@contextmanager
def in_words(cls: type) -> Iterator[None]:
    """Turn errors into a ValueError of one sentence: where it is, what is expected, what came."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        # a key that is unknown before one that is missing: it may be that one, misspelt
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "unexpected_keyword_argument")
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]).lstrip(".")
        words = str(first["ctx"]["error"] if first["type"] == "value_error" else first["msg"])  # ours, or pydantic's
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        where = "" if path and words.startswith(path) else f"{path or cls.__name__}: "
        raise ValueError(in_short(f"{where}{words}{got}")) from None
    except TypeError as error:  # what JSON cannot hold, e.g. a date in TOML
        raise ValueError(f"{cls.__name__}: {error}") from error
