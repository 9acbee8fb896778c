"""Learning skills offline: the stages, and `train`, which runs those that the settings ask for.

- `config`: all settings (`TrainConfig`); `run`: `Run`, what the stages of one training share; `batches`: its windows;
- `stages`: DIDI, that is `train_prior`, `train_dynamics` and `train_skills`; `losses`: one function for each loss;
- `behaviours`: `train_behaviours`, skills that are behaviours found in the data (`segmentation`) and imitated;
- `loop`, `checkpoints`: the optimisation loop, resumable bit for bit;
- `pipeline`: `train`, from a data set to a policy folder.
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
