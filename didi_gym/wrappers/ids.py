"""The ids that `import didi_gym` registers with Gymnasium: `gymnasium.make("didi_gym:didi_gym/AntMaze_Open-v0")`.

Nothing is loaded until one is made. `gymnasium.make_vec` makes the vector form, with one controller for all.
`BODIES` are environments without skills, which data sets are recorded in.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from didi_gym.core.environments import LIGHT_HUMANOID

SKILL_ID = "didi_gym/Skill-v0"
"""Any environment and any policy, both given as keyword arguments: what specs of `didi_gym.make_vec` name."""

_ANT_MAZES = ("Open", "UMaze", "Medium", "Large")
REGISTERED: dict[str, dict[str, str]] = {
    SKILL_ID: {},
    "didi_gym/Ant-v0": {"env_id": "Ant-v5", "policy": "ant-directions"},
    **{
        f"didi_gym/AntMaze_{maze}-v0": {"env_id": f"AntMaze_{maze}-v5", "policy": "ant-directions"}
        for maze in _ANT_MAZES
    },
    "didi_gym/PointMaze_Medium-v0": {"env_id": "PointMaze_Medium-v3", "policy": "pointmaze-medium"},
}
"""What each id makes: the environment underneath and the bundled policy."""

BODIES: dict[str, dict[str, Any]] = {
    LIGHT_HUMANOID: {
        "entry_point": "didi_gym.wrappers.humanoid:LightHumanoidEnv",
        "max_episode_steps": 1000,
        "kwargs": {f"include_{part}_in_observation": False for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")},
    },
}
"""What `gymnasium.register` is told of each."""


def register() -> None:
    """Register the ids. Time limit, order and checker belong to the environment underneath, which `make` makes."""
    for name, kwargs in REGISTERED.items():
        if name not in gym.registry:
            gym.register(
                name,
                entry_point="didi_gym.wrappers.make:make_registered",
                vector_entry_point="didi_gym.wrappers.make:make_registered_vec",
                order_enforce=False,
                disable_env_checker=True,
                kwargs=kwargs,
            )
    for name, about in BODIES.items():
        if name not in gym.registry:
            gym.register(name, **about)
