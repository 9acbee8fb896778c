"""Environments whose actions are skills: one, Gymnasium's vector form, and (`wrappers.sb3`) Stable-Baselines3's."""

from didi_gym.wrappers.single import SkillActionWrapper
from didi_gym.wrappers.vector import SkillActionVectorWrapper

__all__ = ["SkillActionVectorWrapper", "SkillActionWrapper"]
