"""Packing: the episodes of a data set, each checked, become arrays end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.observations import is_bound


class DatasetError(ValueError):
    """A data set that skills cannot be learned from; the message says which episode and field, and what to do."""


class Packer:
    """Copies episodes into arrays allocated once: a data set costs its own size and one episode."""

    def __init__(self, steps: int) -> None:
        self.steps, self.used = steps, 0
        self.observations: np.ndarray | None = None
        self.actions: np.ndarray | None = None
        self.starts: list[int] = []

    def add(self, episode: Any, observations: np.ndarray, actions: np.ndarray) -> None:
        """Check and copy one episode: observations `(steps or steps + 1, state_dim)`, actions `(steps, action_dim)`.

        Raises:
            DatasetError: which episode (as it is called) and field, and why.
        """
        for name, array in (("observations", observations), ("actions", actions)):
            if array.ndim != 2 or array.dtype.kind not in "fiub":
                raise DatasetError(
                    f"episode {episode}: {name} must be rows of numbers, got {array.shape} {array.dtype}"
                )
            if not np.isfinite(array).all():
                row, column = np.argwhere(~np.isfinite(array))[0]
                raise DatasetError(
                    f"episode {episode}: {name}[{row}, {column}] is {array[row, column]}; remove or repair the episode"
                )
        if len(observations) not in (len(actions), len(actions) + 1):
            raise DatasetError(
                f"episode {episode}: {len(observations)} observations do not go with {len(actions)} actions"
            )
        if self.observations is None or self.actions is None:
            self.observations = np.empty((self.steps, observations.shape[1]), np.float32)
            self.actions = np.empty((self.steps, actions.shape[1]), np.float32)
        end = self.used + len(actions)
        for name, array, packed in (
            ("observations", observations, self.observations),
            ("actions", actions, self.actions),
        ):
            if array.shape[1] != packed.shape[1]:
                raise DatasetError(
                    f"episode {episode}: {name} have {array.shape[1]} numbers, those of earlier episodes "
                    f"{packed.shape[1]}"
                )
            packed[self.used : end] = array[: len(actions)]
        self.starts.append(self.used)
        self.used = end

    def finish(self, layout: Layout | None = None, **about: Any) -> dict[str, Any]:
        """The fields of a `TrajectoryDataset`: arrays, layout and action bounds, and those in `about` as they are."""
        if self.observations is None or self.actions is None:
            raise DatasetError("the data set has no episodes")
        observations, actions = self.observations[: self.used], self.actions[: self.used]
        starts = np.asarray(self.starts, np.int64)
        low, high = (
            np.asarray(about.pop(k, v), np.float32) for k, v in (("action_low", -np.inf), ("action_high", np.inf))
        )
        low = np.where(is_bound(low), low, actions.min(0))
        high = np.where(is_bound(high), high, actions.max(0))
        lengths = np.diff(starts, append=self.used)
        return dict(
            observations=observations,
            actions=actions,
            starts=starts,
            lengths=lengths,
            layout=layout or Layout.flat(observations.shape[1]),
            action_low=low,
            action_high=high,
            **about,
        )


def about_actions(space: spaces.Space) -> dict[str, Any]:
    """Fields of a data set that its action space fixes: the bounds of an action vector, and whether it is one-hot."""
    if isinstance(space, spaces.Discrete):
        return {"action_low": np.zeros(space.n), "action_high": np.ones(space.n), "discrete_actions": True}
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise DatasetError(f"actions must be a flat Box or Discrete, got {space}; others are not supported yet")
    if not np.issubdtype(space.dtype, np.floating):
        raise DatasetError(f"actions must be real numbers or Discrete, got {space}; others are not supported yet")
    return {"action_low": space.low, "action_high": space.high}


def encode_actions(actions: np.ndarray, space: spaces.Space | None, episode: Any) -> np.ndarray:
    """An episode's actions as `(steps, action_dim)`: those of a Discrete space, `(steps,)`, become one-hot float32.

    The inverse is `didi_gym.wrappers.executor.to_discrete`.
    """
    if not isinstance(space, spaces.Discrete):
        return actions
    if actions.ndim != 1 or actions.dtype.kind not in "iu":
        raise DatasetError(
            f"episode {episode}: actions of {space} must be whole numbers of shape (steps,), got {actions.shape} "
            f"{actions.dtype}"
        )
    index = actions.astype(np.int64) - int(space.start)
    outside = np.flatnonzero((index < 0) | (index >= space.n))
    if len(outside):
        raise DatasetError(
            f"episode {episode}: actions[{outside[0]}] is {actions[outside[0]]}, expected {space.start} to "
            f"{space.start + space.n - 1}; remove or repair the episode"
        )
    return np.eye(int(space.n), dtype=np.float32)[index]


def choose_keys(space: spaces.Space, keys: Sequence[str] | None) -> tuple[str, ...]:
    """Keys of a Dict observation to join: `keys`, else `observation`, else all; none of a flat Box."""
    if not isinstance(space, spaces.Dict):
        if keys:
            raise DatasetError(f"keys {list(keys)} were asked for, but the observation is no Dict: {space}")
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise DatasetError(f"observations must be a flat Box or a Dict of them, got {space}")
        return ()
    chosen = tuple(keys) if keys else (("observation",) if "observation" in space.spaces else tuple(space.spaces))
    for key in chosen:
        box = space.spaces.get(key)
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise DatasetError(
                f"observation key {key!r} must be a flat Box, got {box}; choose among {list(space.spaces)}"
            )
    return chosen


def join_keys(observations: Any, keys: tuple[str, ...], episode: Any) -> np.ndarray:
    """An episode's observations `(steps, size)`, those under `keys` side by side."""
    if not keys:
        return np.asarray(observations)
    missing = [key for key in keys if key not in observations]
    if missing:
        raise DatasetError(f"episode {episode}: observation has no key {missing[0]!r}, only {list(observations)}")
    return np.concatenate([observations[key] for key in keys], axis=-1)


def state_source(space: spaces.Space, keys: tuple[str, ...], indices: Sequence[int] | None) -> ObservationSource:
    """The numbers `indices` (all where None) of what `keys` join."""
    boxes: list[Any] = [space[key] for key in keys] if isinstance(space, spaces.Dict) else [space]
    size = sum(int(box.shape[0]) for box in boxes)
    return ObservationSource(size, tuple(range(size)) if indices is None else tuple(int(i) for i in indices), keys)
