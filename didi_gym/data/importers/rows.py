"""Rows of a file become episodes: an observation and the action that followed it in each row, without false steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.data.episodes import DatasetError, require_numbers
from didi_gym.data.writing import Episode


@dataclass(frozen=True)
class Recording:
    """What a file holds."""

    episodes: list[Episode]
    """Their observations are dicts, with an entry for each of `keys`."""
    keys: tuple[str, ...]
    """What the file calls the parts of an observation."""
    notes: tuple[str, ...]
    """What was assumed and what was left out, in sentences."""


class Collector:
    """Makes episodes of rows, and counts what no step can be made of.

    T rows give T steps where the observation after the last action is known, else T - 1: the last action led to
    nothing that was recorded. The first observation of the next episode is not what it led to.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys, self.episodes = path, tuple(keys), list[Episode]()
        self.cut, self.empty = 0, 0
        self._widths: dict[str, int] = {}

    def add(
        self,
        name: Any,
        observations: Mapping[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray | None = None,
        last: Mapping[str, np.ndarray] | None = None,
        terminated: bool = False,
    ) -> None:
        """Check and keep the rows of one episode.

        Args:
            name: What messages call the episode.
            observations: `(T, size)` or `(T,)` for each key.
            actions: `(T, action_dim)`, or `(T,)`; whole numbers `(T,)` stay such, as discrete actions.
            rewards: `(T,)` or `(T, 1)`; zeros where None.
            last: What was observed after the last action, `(1, size)` for each key.
            terminated: Whether the last action ended the episode for good.

        Raises:
            DatasetError: unequal lengths, other widths than before, or what is no finite number.
        """
        steps = len(actions)
        lengths = {key: len(array) for key, array in observations.items()}
        lengths |= {} if rewards is None else {"rewards": rewards.size}
        if wrong := {key: length for key, length in lengths.items() if length != steps}:
            raise DatasetError(f"{self.path}: episode {name}: expected {steps} rows, as there are actions, got {wrong}")
        observed = {key: in_rows(array) for key, array in observations.items()}
        if last is not None:
            observed = {key: np.concatenate([array, in_rows(last[key])]) for key, array in observed.items()}
        else:
            steps -= 1
            self.cut += steps > 0
        if steps < 1:
            self.empty += 1
            return
        acted = (actions if actions.ndim == 1 and actions.dtype.kind in "iu" else in_rows(actions))[:steps]
        for key, array in {**observed, "actions": in_rows(acted)}.items():
            require_numbers(name, key, array)
            if not array.shape[1]:
                raise DatasetError(f"{self.path}: episode {name}: {key} has no numbers in its rows")
            if (width := array.shape[1]) != self._widths.setdefault(key, width):
                raise DatasetError(
                    f"{self.path}: episode {name}: {key} has {width} numbers, in earlier episodes {self._widths[key]}"
                )
        earned = np.zeros(steps) if rewards is None else rewards.reshape(-1)[:steps]
        self.episodes.append(Episode(observed, acted, earned, terminated and last is not None, None))

    def finish(self, notes: Iterable[str] = (), why: str = "the file does not hold what it led to") -> Recording:
        """The episodes, and in sentences what was left out.

        Args:
            why: Why a last action makes no step.

        Raises:
            DatasetError: there is no step in any of them.
        """
        if not self.episodes:
            raise DatasetError(f"{self.path} holds no episode with a step in it")
        left_out = []
        if self.cut:
            left_out.append(
                f"{self.cut:,} actions were left out, the last one of each episode, since {why}; these episodes are "
                "written as cut, not as ended for good."
            )
        if self.empty:
            left_out.append(f"{self.empty:,} episodes without a step between two observations were left out.")
        return Recording(self.episodes, self.keys, (*notes, *left_out))


def in_rows(array: np.ndarray) -> np.ndarray:
    """`(T, size)` of `(T, size)`, or of `(T,)` for size 1."""
    return array[:, None] if array.ndim == 1 else array


def flags(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Whether each row is flagged, bool `(T,)`.

    Raises:
        DatasetError: other numbers than 0 and 1.
    """
    flat = array.reshape(-1)
    if flat.size != len(array) or not np.isin(flat, (0, 1)).all():
        raise DatasetError(f"{path}: expected 0 or 1 in each row of {name}, got other numbers or several columns")
    return flat.astype(bool)
