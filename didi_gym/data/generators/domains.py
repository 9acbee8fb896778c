"""The table of domains, from which the commands `didi-gym data ...`, their help and their tests are made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Domain:
    """A reward-free data set that is made from a simulator, alone or with behaviour policies of others."""

    dataset: str
    """Minari id."""
    env_id: str
    steps: int
    """Environment steps by default."""
    summary: str
    """What the data shows, in half a sentence."""
    generator: str
    """Where the function is that makes it, `module:name` within this room."""
    agents: str = ""
    """Whose behaviour policies it is recorded from, and where they are: its command then takes their folder as
    `--agents DIR`, and its function as `agents`. Empty for a domain that needs none."""

    @property
    def collect(self) -> Callable[..., Any]:
        """`(dataset_id, *, steps, seed, overwrite)`, with `agents` where there are any -> the Minari data set; imports
        the generator."""
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
    "humanoid-gaits": Domain(
        "didi/humanoid-gaits-v0",
        "didi_gym/LightHumanoid-v0",
        300_000,
        "a humanoid walking, hopping and spinning in fifteen ways",
        "humanoid:collect_humanoid_gaits",
        agents="gaits of github.com/modestyachts/ARS (BSD-2-Clause) and one of the course CS 285 (MIT, "
        "github.com/berkeleydeeprlcourse/homework_fall2023), as plain arrays",
    ),
    "pointmaze-medium": Domain(
        "didi/pointmaze-medium-v0",
        "PointMaze_Medium-v3",
        200_000,
        "a point that follows waypoints to random goals",
        "pointmaze:collect_pointmaze",
    ),
    "push": Domain(
        "didi/push-v0",
        "FetchPush-v4",
        100_000,
        "a robot's hand that pushes a block in eight directions, from either side of it and over it",
        "push:collect_push",
    ),
    "swimmer-directions": Domain(
        "didi/swimmer-directions-v0",
        "Swimmer-v5",
        100_000,
        "a swimmer that swims straight and in curves, forwards and backwards",
        "swimmer:collect_swimmer",
    ),
}
