"""What every buffer of skills needs: a low-level discount, and how long each skill ran."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_gamma(gamma: float) -> float:
    """`gamma`, where it is a discount.

    Raises:
        ValueError: not in (0, 1].
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is the discount per low-level step and must be in (0, 1], got {gamma}")
    return gamma


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
