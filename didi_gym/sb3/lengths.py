"""What every buffer of skills needs: the right observations, a low-level discount, and how long each skill ran."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


def check_gamma(gamma: float) -> float:
    """`gamma`, where it is a discount.

    Raises:
        ValueError: not in (0, 1].
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is the discount per low-level step and must be in (0, 1], got {gamma}")
    return gamma


def check_observations(buffer: type, for_dicts: type, observation_space: spaces.Space) -> None:
    """Raise ValueError where a `buffer` class is for Dict observations and these are none, or the other way round.

    Args:
        for_dicts: the class that makes a buffer one for Dict observations.
    """
    is_for_dicts, are_dicts = issubclass(buffer, for_dicts), isinstance(observation_space, spaces.Dict)
    if is_for_dicts != are_dicts:
        kinds = ("Box", "Dict")
        if "Rollout" in for_dicts.__name__:
            way_out = "leave rollout_buffer_class out: SkillPPO and its kin choose the right one"
        else:
            way_out = f"use {'SkillDictReplayBuffer or SkillHerReplayBuffer' if are_dicts else 'SkillReplayBuffer'}"
        raise ValueError(
            f"{buffer.__name__} is for {kinds[is_for_dicts]} observations, got {observation_space}; {way_out}"
        )


def read_lengths(infos: list[dict[str, Any]]) -> np.ndarray:
    """Low-level steps of the skills that ended with these infos, `(n_envs,)` int32.

    Raises:
        ValueError: an info without `skill_length`.
    """
    if not all("skill_length" in info for info in infos):
        raise ValueError(
            "a buffer of skills needs the length of every skill: expected 'skill_length' in every info, got an info "
            "without; train on a SkillActionWrapper or didi_gym.sb3.make_vec_env"
        )
    return np.array([info["skill_length"] for info in infos], dtype=np.int32)
