"""Learning skills offline: the stages, and `train`, which runs those that the settings ask for.

- `Run`: what the stages of one training share; `train_prior`, `train_dynamics` and `train_skills` are DIDI;
- `train_behaviours`: skills that are behaviours found in the data and imitated;
- `train`: from a data set to a policy folder, resumable; `TrainConfig` holds all its settings.
"""

from didi_gym.training.behaviours import Behaviours, find_behaviours, train_behaviours, tune_behaviours
from didi_gym.training.checkpoints import TrainingStopped
from didi_gym.training.config import BehaviourConfig, DynamicsConfig, PriorConfig, SkillConfig, TrainConfig
from didi_gym.training.pipeline import hold_out, load_training, train, write_run
from didi_gym.training.run import Run
from didi_gym.training.stages import SkillTask, train_dynamics, train_prior, train_skills

__all__ = [
    "BehaviourConfig",
    "Behaviours",
    "DynamicsConfig",
    "PriorConfig",
    "Run",
    "SkillConfig",
    "SkillTask",
    "TrainConfig",
    "TrainingStopped",
    "find_behaviours",
    "hold_out",
    "load_training",
    "train",
    "train_behaviours",
    "train_dynamics",
    "train_prior",
    "train_skills",
    "tune_behaviours",
    "write_run",
]
