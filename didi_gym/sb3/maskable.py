"""MaskablePPO of sb3-contrib over discrete skills of variable length."""

from __future__ import annotations

from didi_gym.sb3.on_policy import SkillOnPolicy, SkillRolloutBuffer

try:
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
except ImportError as error:
    raise ImportError("SkillMaskablePPO needs sb3-contrib; install it with: pip install 'didi-gym[contrib]'") from error


class SkillMaskableRolloutBuffer(SkillRolloutBuffer, MaskableRolloutBuffer):  # type: ignore[misc] # add takes less freely
    """`SkillRolloutBuffer` with the masks of MaskablePPO."""


class SkillMaskableDictRolloutBuffer(SkillRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """`SkillMaskableRolloutBuffer` for Dict observations."""


class SkillMaskablePPO(SkillOnPolicy, MaskablePPO):
    """MaskablePPO whose `gamma` is the discount per low-level step; see `SkillPPO`.

    Use it with discrete skills where some are not allowed everywhere: the environment says which in `action_masks()`.
    """

    skill_buffers = (SkillMaskableRolloutBuffer, SkillMaskableDictRolloutBuffer)
