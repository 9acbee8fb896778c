"""The table of domains, from which the commands `didi-gym data ...`, their help and their tests are made."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ZOO = "github.com/DLR-RM/rl-trained-agents (MIT)"
_ARS = "github.com/modestyachts/ARS (BSD-2-Clause)"
_CS285 = "the course CS 285 (MIT, github.com/berkeleydeeprlcourse/homework_fall2023)"


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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else that function is given."""
    agents: str = ""
    """Whose behaviour policies it is recorded from, and where they are: its command then takes their folder as
    `--agents DIR`, and its function as `agents`. Empty for a domain that needs none."""

    @property
    def collect(self) -> Callable[..., Any]:
        """`(*, dataset_id, steps, seed, overwrite)`, with `agents` where there are any -> the Minari data set; imports
        the generator."""
        module, _, name = self.generator.partition(":")
        function = getattr(importlib.import_module(f"didi_gym.data.generators.{module}"), name)
        return functools.partial(function, **self.settings)


DOMAINS: dict[str, Domain] = {
    "ant-directions": Domain(
        "didi/ant-directions-v0",
        "Ant-v5",
        300_000,
        "an ant walking in all directions, from a search over open-loop gaits",
        "ant:collect_ant_directions",
    ),
    "ant-velocities": Domain(
        "didi/ant-velocities-v0",
        "Ant-v5",
        300_000,
        "an ant walking in all directions at all speeds, from a search over open-loop gaits",
        "ant:collect_ant_directions",
        settings={"speeds": True},
    ),
    "hopper-gaits": Domain(
        "didi/hopper-gaits-v0",
        "Hopper-v5",
        150_000,
        "a hopper driven by policies of different quality, some of which fall",
        "agents:collect_from_agents",
        settings={"env_id": "Hopper-v5", "episode_steps": 500},
        agents=f"policies of {_ZOO}, {_ARS} and {_CS285}, as plain arrays",
    ),
    "humanoid-gaits": Domain(
        "didi/humanoid-gaits-v0",
        "didi_gym/LightHumanoid-v0",
        300_000,
        "a humanoid walking, hopping and spinning in fifteen ways",
        "humanoid:collect_humanoid_gaits",
        agents=f"gaits of {_ARS} and one of {_CS285}, as plain arrays",
    ),
    "kitchen": Domain(
        "didi/kitchen-v0",
        "FrankaKitchen-v1",
        140_000,
        "a robot arm that does subtasks in a kitchen in random order, by scripted experts",
        "kitchen:collect_kitchen",
    ),
    "pointmaze-large": Domain(
        "didi/pointmaze-large-v0",
        "PointMaze_Large-v3",
        200_000,
        "a point that follows waypoints to random goals, by different routes",
        "pointmaze:collect_pointmaze",
        settings={"env_id": "PointMaze_Large-v3", "detours": 0.3},
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
    "walker2d-gaits": Domain(
        "didi/walker2d-gaits-v0",
        "Walker2d-v5",
        200_000,
        "a walker driven by policies of different gaits, some of which fall",
        "agents:collect_from_agents",
        settings={"env_id": "Walker2d-v5", "episode_steps": 500},
        agents=f"policies of {_ZOO}, {_ARS} and {_CS285}, as plain arrays",
    ),
}
