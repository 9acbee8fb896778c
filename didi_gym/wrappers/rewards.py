"""How the low-level rewards of a skill become one. Imports no torch: it runs in environment worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Reward = Literal["sum", "discounted", "last"] | Callable[[np.ndarray], float]


@dataclass(frozen=True)
class RewardRule:
    """How the low-level rewards of one skill become its reward.

    | reward | skill reward |
    |---|---|
    | `sum` | sum of discount^i r_i: the plain sum at discount 1, the SMDP-correct sum below |
    | `discounted` | the same, and discount must be below 1 |
    | `last` | the last r_i |
    | a function | of the array of the r_i, `(length,)` |
    """

    reward: Reward = "sum"
    discount: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.reward) and self.reward not in ("sum", "discounted", "last"):
            raise ValueError(f"reward must be 'sum', 'discounted', 'last' or a function, got {self.reward!r}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")
        if self.reward == "discounted" and self.discount == 1:
            raise ValueError("reward='discounted' needs a discount below 1; pass discount=, the low-level gamma")
        if self.reward not in ("sum", "discounted") and self.discount != 1:
            raise ValueError(f"discount={self.discount} has no effect with reward={self.reward!r}; leave it at 1")

    def totals(self, rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Rewards of n skills.

        Args:
            rewards: low-level rewards `(n, k)`; what lies past a skill's length is ignored.
            lengths: low-level steps of each skill `(n,)`, at least 1.

        Returns:
            `(n,)` float64. Summed in order, so a skill's reward does not depend on its company or on padding.
        """
        if callable(self.reward):
            return np.array([self.total(row[:length]) for row, length in zip(rewards, lengths, strict=True)])
        ends = (np.arange(len(rewards)), lengths - 1)
        if self.reward == "last":
            return rewards[ends]
        return (rewards * _powers(self.discount, rewards.shape[1])).cumsum(axis=1)[ends]

    def total(self, rewards: np.ndarray) -> float:
        """Reward of one skill from its low-level rewards `(length,)`; the same, to the last bit, as in `totals`."""
        if callable(self.reward):
            return float(self.reward(rewards))
        if self.reward == "last":
            return float(rewards[-1])
        return float((rewards * _powers(self.discount, len(rewards))).cumsum()[-1])


@lru_cache(maxsize=64)
def _powers(discount: float, n: int) -> np.ndarray:
    return np.array([discount**i for i in range(n)])
