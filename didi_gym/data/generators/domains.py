"""The table of domains, from which the commands `didi-gym data ...`, their help and their tests are made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Domain:
    """A reward-free data set that is made from a simulator alone."""

    dataset: str
    """Minari id."""
    env_id: str
    steps: int
    """Environment steps by default."""
    summary: str
    """What the data shows, in half a sentence."""
    generator: str
    """Where the function is that makes it, `module:name` within this room."""

    @property
    def collect(self) -> Callable[..., Any]:
        """`(dataset_id, *, steps, seed, overwrite)` -> the Minari data set; imports the generator."""
        module, _, name = self.generator.partition(":")
        return getattr(importlib.import_module(f"didi_gym.data.generators.{module}"), name)


DOMAINS: dict[str, Domain] = {
    "ant-directions": Domain(
        "didi/ant-directions-v0",
        "Ant-v5",
        300_000,
        "an ant walking in all directions, from a search over open-loop gaits",
        "ant:collect_ant_directions",
    ),
    "kitchen": Domain(
        "didi/kitchen-v0",
        "FrankaKitchen-v1",
        140_000,
        "a robot arm that does subtasks in a kitchen in random order, by scripted experts",
        "kitchen:collect_kitchen",
    ),
    "pointmaze-medium": Domain(
        "didi/pointmaze-medium-v0",
        "PointMaze_Medium-v3",
        200_000,
        "a point that follows waypoints to random goals",
        "pointmaze:collect_pointmaze",
    ),
}
