"""Pretrained skills for reinforcement learning: turn any Gymnasium environment into a skill-action environment.

    import gymnasium as gym, gymnasium_robotics
    from didi_gym import SkillActionWrapper
    from stable_baselines3 import SAC

    env = SkillActionWrapper(gym.make("AntMaze_Open-v5"), "ant-directions")
    agent = SAC("MultiInputPolicy", env).learn(2_000)

- one environment: `SkillActionWrapper`, or `make` by id; many with one controller: `make_vec`; for Stable-Baselines3:
  `help(didi_gym.sb3)`; ids for `gymnasium.make`: `didi_gym.wrappers.ids.REGISTERED`
- skill policies: `SkillPolicy.from_pretrained`, `list_pretrained`
- learning skills from a Minari data set: `didi-gym train --help`, or `TrajectoryDataset` and `train`, or its stages
  over a `Run`; measuring them in the simulator: `evaluate_skills`

The rooms, each of which uses those below it; the docstring of each says what is in it:

    cli                                        the command line
    sb3, evaluation                            Stable-Baselines3; rollouts, metrics, pictures
    wrappers, training                         environments whose actions are skills; how skills are learned
    data, models                               Minari data sets; networks and the policy
    hub                                        the Hugging Face Hub
    core                                       skills, layouts, files
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from didi_gym.core.lazy import lazy_names
from didi_gym.version import __version__
from didi_gym.wrappers import ids

if TYPE_CHECKING:
    from didi_gym.core.layout import Layout, LayoutChoice
    from didi_gym.core.skill_space import SkillSpace
    from didi_gym.data.dataset import TrajectoryDataset
    from didi_gym.evaluation.report import SkillReport, evaluate_skills
    from didi_gym.evaluation.rollouts import hold_skills
    from didi_gym.hub.download import SkillPolicyHubError, list_pretrained
    from didi_gym.models.policy import SkillPolicy
    from didi_gym.models.prior import DiffusionPrior
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
    from didi_gym.wrappers.make import make, make_vec
    from didi_gym.wrappers.single import SkillActionWrapper
    from didi_gym.wrappers.vector import SkillActionVectorWrapper

_HOMES = {
    "BehaviourConfig": "training.config",
    "DiffusionPrior": "models.prior",
    "DynamicsConfig": "training.config",
    "Layout": "core.layout",
    "LayoutChoice": "core.layout",
    "PriorConfig": "training.config",
    "Run": "training.run",
    "SkillActionVectorWrapper": "wrappers.vector",
    "SkillActionWrapper": "wrappers.single",
    "SkillConfig": "training.config",
    "SkillPolicy": "models.policy",
    "SkillPolicyHubError": "hub.client",
    "SkillReport": "evaluation.report",
    "SkillSpace": "core.skill_space",
    "TrainConfig": "training.config",
    "TrajectoryDataset": "data.dataset",
    "evaluate_skills": "evaluation.report",
    "hold_skills": "evaluation.rollouts",
    "list_pretrained": "hub.download",
    "make": "wrappers.make",
    "make_vec": "wrappers.make",
    "train": "training.pipeline",
    "train_behaviours": "training.behaviours",
    "train_dynamics": "training.stages",
    "train_prior": "training.stages",
    "train_skills": "training.stages",
}
__all__ = [
    "BehaviourConfig",
    "DiffusionPrior",
    "DynamicsConfig",
    "Layout",
    "LayoutChoice",
    "PriorConfig",
    "Run",
    "SkillActionVectorWrapper",
    "SkillActionWrapper",
    "SkillConfig",
    "SkillPolicy",
    "SkillPolicyHubError",
    "SkillReport",
    "SkillSpace",
    "TrainConfig",
    "TrajectoryDataset",
    "__version__",
    "evaluate_skills",
    "hold_skills",
    "list_pretrained",
    "make",
    "make_vec",
    "train",
    "train_behaviours",
    "train_dynamics",
    "train_prior",
    "train_skills",
]


# Public names are imported when first used: `import didi_gym` stays quick, and workers never load torch.
__getattr__, __dir__ = lazy_names(__name__, _HOMES, "__version__")

ids.register()
