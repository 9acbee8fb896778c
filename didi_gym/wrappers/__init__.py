"""Environments whose actions are skills."""

from didi_gym.wrappers.single import SkillActionWrapper

__all__ = ["SkillActionWrapper"]
