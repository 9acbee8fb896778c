"""Environments whose actions are skills: one, and many in Gymnasium's vector form. Importing it loads no torch.

- `single`: `SkillActionWrapper`; `vector`: `SkillActionVectorWrapper`; `make`: both by id; `ids`: those registered;
- `controller`: agent action -> skill -> chunks of low-level actions; `executor`: runs chunks inside an environment;
- `rewards`: how low-level rewards become one; `references`: a policy by name, and whether it fits;
- `workers`: processes that crash or hang;
- `humanoid`: a body without skills, for gaits of others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from didi_gym.core.lazy import lazy_names

if TYPE_CHECKING:
    from didi_gym.wrappers.executor import SkillExecutor as SkillExecutor
    from didi_gym.wrappers.rewards import RewardRule as RewardRule
    from didi_gym.wrappers.single import SkillActionWrapper as SkillActionWrapper
    from didi_gym.wrappers.vector import SkillActionVectorWrapper as SkillActionVectorWrapper
    from didi_gym.wrappers.workers import WorkerError as WorkerError

_HOMES = {
    "RewardRule": "rewards",
    "SkillActionVectorWrapper": "vector",
    "SkillActionWrapper": "single",
    "SkillExecutor": "executor",
    "WorkerError": "workers",
}
__all__ = [*_HOMES]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
