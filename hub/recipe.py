"""How a skill policy is made and what its card says of it, in words that a person wrote: `hub/recipes/NAME.toml`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from didi_gym.core.schema import from_dict
from didi_gym.models.card import CardError, CardWords

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Usage:
    """The environment of a card's program."""

    env: str
    """Gymnasium id."""
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The data set a policy is learned from."""

    dataset: str
    """Minari id, e.g. didi/ant-directions-v0; on the Hub with its owner, e.g. hf://owner/didi/ant-directions-v0."""
    command: str | None = None
    """What makes it; None where it is only fetched."""


@dataclass(frozen=True)
class Recipe:
    """How a policy is made, and what its card says of it: `hub/recipes/NAME.toml`."""

    description: str
    data: Data
    limits: tuple[str, ...] = ()
    usage: Usage | None = None
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of `didi-gym train`, by their names on the command line: "skills.horizon" = 16."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Settings of `didi-gym evaluate`."""
    effort: str = ""
    """What it takes, e.g. two CPU cores, 12 minutes."""

    @classmethod
    def read(cls, file: str | Path) -> Recipe:
        """Read a recipe strictly.

        Raises:
            CardError: no TOML, an unknown or missing key, or a value of another type.
        """
        try:
            return from_dict(cls, tomllib.loads(Path(file).read_text(encoding="utf-8")))
        except (ValueError, OSError) as error:
            raise CardError(f"{file} is no recipe: {error}") from error

    def words(self, name: str) -> CardWords:
        """What the card of the policy `name` says."""
        return CardWords(
            self.description,
            self.limits,
            self.effort,
            tuple(self.commands(name)),
            self.usage.env if self.usage else None,
            self.usage.kwargs if self.usage else {},
            self.data.dataset,
        )

    def train_arguments(self, output: str) -> list[str]:
        """The words after `didi-gym`, which the tests run through the command line's own parser."""
        fetch = ["--download"] if self.data.dataset.startswith("hf://") else []
        return ["train", "--dataset", self.data.dataset, *fetch, "--output", output, *_flags(self.train)]

    def evaluate_arguments(self, folder: str) -> list[str]:
        """The words after `didi-gym`."""
        return ["evaluate", folder, *_flags(self.evaluate)]

    def commands(self, name: str) -> list[str]:
        """All that makes the policy, one command a line."""
        run = f"runs/{name}"
        ours = [shlex.join(["didi-gym", *words]) for words in (self.train_arguments(run), self.evaluate_arguments(run))]
        return [*([self.data.command] if self.data.command else []), *ours]


def _flags(settings: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            parent, dot, last = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{parent}{dot}no-{last}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
