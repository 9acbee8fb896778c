"""Making skill-action environments by id."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from didi_gym.wrappers.single import SkillActionWrapper

if TYPE_CHECKING:
    from didi_gym.policy import SkillPolicy

WRAPPER_SETTINGS = frozenset(inspect.signature(SkillActionWrapper.__init__).parameters) - {"self", "env", "policy"}


def make(env_id: str | EnvSpec, policy: str | Path | SkillPolicy, **kwargs: Any) -> SkillActionWrapper:
    """Make an environment whose actions are skills.

    Args:
        env_id: anything `gymnasium.make` takes; ids of gymnasium-robotics need no import.
        policy: see `SkillActionWrapper`.
        **kwargs: settings of `SkillActionWrapper` go to it, all others (`max_episode_steps`, `render_mode`, the
            environment's own) to `gymnasium.make`, which puts its TimeLimit inside.

    Example:
        >>> import didi_gym
        >>> env = didi_gym.make("PointMaze_Medium-v3", "pointmaze-medium", skill_duration=8, max_episode_steps=400)
    """
    settings = {name: kwargs.pop(name) for name in WRAPPER_SETTINGS & kwargs.keys()}
    env = make_low_level(env_id, **kwargs)
    try:
        return SkillActionWrapper(env, policy, **settings)
    except Exception:
        env.close()
        raise


def make_low_level(env_id: str | EnvSpec, **kwargs: Any) -> gym.Env:
    """`gymnasium.make`, which knows the ids of gymnasium-robotics without an import."""
    try:
        return gym.make(env_id, **kwargs)
    except gym.error.UnregisteredEnv as unknown:
        try:
            gym.register_envs(importlib.import_module("gymnasium_robotics"))
        except ImportError:
            raise gym.error.UnregisteredEnv(
                f"{unknown} If {env_id!r} is an environment of gymnasium-robotics (mazes, Adroit, Fetch, kitchen), "
                "install it with: pip install 'didi-gym[envs]'"
            ) from unknown
    return gym.make(env_id, **kwargs)
