"""Pretrained skills for reinforcement learning: turn any Gymnasium environment into a skill-action environment.

    import gymnasium as gym, gymnasium_robotics
    from didi_gym import SkillActionWrapper
    from stable_baselines3 import SAC

    env = SkillActionWrapper(gym.make("AntMaze_Open-v5"), "ant-directions")
    agent = SAC("MultiInputPolicy", env).learn(2_000)

- one environment: `SkillActionWrapper`, or `make` by id; many with one planner: `make_vec`; for Stable-Baselines3:
  `help(didi_gym.sb3)`; ids for `gymnasium.make`: `didi_gym.ids.REGISTERED`
- skill policies: `SkillPolicy.from_pretrained`, `list_pretrained`
- learning skills from a Minari data set: `didi-gym train --help`, or `TrajectoryDataset` and `train`, or its stages
  over a `Run`; measuring them in the simulator: `evaluate_skills`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from didi_gym import ids
from didi_gym.version import __version__

if TYPE_CHECKING:
    from didi_gym.data import TrajectoryDataset
    from didi_gym.diffusion import DiffusionPrior
    from didi_gym.evaluation import evaluate_skills
    from didi_gym.hub import SkillPolicyHubError, list_pretrained
    from didi_gym.layout import Layout
    from didi_gym.policy import SkillPolicy
    from didi_gym.registration import make, make_vec
    from didi_gym.skills import SkillSpace
    from didi_gym.training import (
        BehaviourConfig,
        DynamicsConfig,
        PriorConfig,
        Run,
        SkillConfig,
        TrainConfig,
        train,
        train_behaviours,
        train_dynamics,
        train_prior,
        train_skills,
    )
    from didi_gym.wrappers.single import SkillActionWrapper
    from didi_gym.wrappers.vector import SkillActionVectorWrapper

_HOMES = {
    "BehaviourConfig": "training",
    "DiffusionPrior": "diffusion",
    "DynamicsConfig": "training",
    "Layout": "layout",
    "PriorConfig": "training",
    "Run": "training",
    "SkillActionVectorWrapper": "wrappers.vector",
    "SkillActionWrapper": "wrappers.single",
    "SkillConfig": "training",
    "SkillPolicy": "policy",
    "SkillPolicyHubError": "hub",
    "SkillSpace": "skills",
    "TrainConfig": "training",
    "TrajectoryDataset": "data",
    "evaluate_skills": "evaluation",
    "list_pretrained": "hub",
    "make": "registration",
    "make_vec": "registration",
    "train": "training",
    "train_behaviours": "training",
    "train_dynamics": "training",
    "train_prior": "training",
    "train_skills": "training",
}
__all__ = [
    "BehaviourConfig",
    "DiffusionPrior",
    "DynamicsConfig",
    "Layout",
    "PriorConfig",
    "Run",
    "SkillActionVectorWrapper",
    "SkillActionWrapper",
    "SkillConfig",
    "SkillPolicy",
    "SkillPolicyHubError",
    "SkillSpace",
    "TrainConfig",
    "TrajectoryDataset",
    "__version__",
    "evaluate_skills",
    "list_pretrained",
    "make",
    "make_vec",
    "train",
    "train_behaviours",
    "train_dynamics",
    "train_prior",
    "train_skills",
]


def __getattr__(name: str) -> Any:
    """Import public names when first used: `import didi_gym` stays quick, and workers never load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'didi_gym' has no attribute {name!r}")
    return getattr(importlib.import_module(f"didi_gym.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


ids.register()
