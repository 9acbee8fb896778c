"""Pretrained skills for reinforcement learning: skills as the actions of a Gymnasium environment.

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
- reaching goals without gradients: `didi_gym.planning.SkillGraph`

The rooms, each of which uses those below it; the docstring of each says what is in it:

    cli                                        the command line
    sb3, planning                              Stable-Baselines3; agents that plan over skills
    evaluation                                 rollouts, metrics, pictures, how well agents do
    wrappers, training                         environments whose actions are skills; learning skills
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
    from didi_gym.core.layout import Layout as Layout
    from didi_gym.core.layout import LayoutChoice as LayoutChoice
    from didi_gym.core.skill_space import SkillSpace as SkillSpace
    from didi_gym.data.dataset import TrajectoryDataset as TrajectoryDataset
    from didi_gym.evaluation.report import SkillReport as SkillReport
    from didi_gym.evaluation.report import evaluate_skills as evaluate_skills
    from didi_gym.evaluation.rollouts import hold_skills as hold_skills
    from didi_gym.hub.download import SkillPolicyHubError as SkillPolicyHubError
    from didi_gym.hub.download import list_pretrained as list_pretrained
    from didi_gym.models.policy import SkillPolicy as SkillPolicy
    from didi_gym.models.prior import DiffusionPrior as DiffusionPrior
    from didi_gym.training import BehaviourConfig as BehaviourConfig
    from didi_gym.training import DynamicsConfig as DynamicsConfig
    from didi_gym.training import PriorConfig as PriorConfig
    from didi_gym.training import Run as Run
    from didi_gym.training import SkillConfig as SkillConfig
    from didi_gym.training import TrainConfig as TrainConfig
    from didi_gym.training import train as train
    from didi_gym.training import train_behaviours as train_behaviours
    from didi_gym.training import train_dynamics as train_dynamics
    from didi_gym.training import train_prior as train_prior
    from didi_gym.training import train_skills as train_skills
    from didi_gym.wrappers.make import make as make
    from didi_gym.wrappers.make import make_vec as make_vec
    from didi_gym.wrappers.single import SkillActionWrapper as SkillActionWrapper
    from didi_gym.wrappers.vector import SkillActionVectorWrapper as SkillActionVectorWrapper

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
__all__ = [*_HOMES, "__version__"]

# Public names are imported when first used: `import didi_gym` stays quick, and workers never load torch.
__getattr__, __dir__ = lazy_names(__name__, _HOMES, "__version__")

ids.register()
