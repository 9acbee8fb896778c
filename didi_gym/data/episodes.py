"""Packing: the episodes of a data set, each checked, become arrays end to end."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.observations import is_bound

_LARGEST = 1e15  # no sensor gives such numbers, and float32 overflows where a few of them are squared and summed
_COARSE = 16.0  # from here on float32 rounds by more than 1e-6, the change below which a column counts as constant
_LOST = 0.1  # share of how a column changes from step to step that rounding to float32 may take or add
_OUTSIDE = 0.1  # share of the actions' numbers that may lie outside the action space
_ROUNDING = 1e-5  # how far outside counts as rounding
_TAIL = 0.01  # share of the actions at either end that may be outliers
_FILLS = 0.5  # share of the distance between its bounds that an action must use for its bounds to be its scale


class DatasetError(ValueError):
    """A data set that skills cannot be learned from; the message says which episode and field, and what to do."""


class Packer:
    """Copies episodes into arrays allocated once: a data set costs its own size and one episode.

    Args:
        steps: Of all episodes together.
        relative: State indices of which only differences within an episode count (`Layout.relative`).
    """

    def __init__(self, steps: int, relative: Sequence[int] = ()) -> None:
        self.steps, self.used, self.relative = steps, 0, relative
        self.observations: np.ndarray | None = None
        self.actions: np.ndarray | None = None
        self.starts: list[int] = []

    def add(self, episode: Any, observations: np.ndarray, actions: np.ndarray, ended: np.ndarray | None = None) -> None:
        """Check and copy one episode, split where steps inside it are flagged as ends.

        Args:
            episode: What messages call it.
            observations: `(steps or steps + 1, state_dim)`.
            actions: `(steps, action_dim)`.
            ended: Whether an episode ended with a step, `(steps,)`; what comes after it is another one's.

        Raises:
            DatasetError: which episode (as it is called) and field, and why.
        """
        require_numbers(episode, "observations", observations)
        require_numbers(episode, "actions", actions)
        if len(observations) not in (len(actions), len(actions) + 1):
            raise DatasetError(
                f"episode {episode}: {len(observations)} observations do not go with {len(actions)} actions"
            )
        if self.observations is None or self.actions is None:
            self.observations = np.empty((self.steps, observations.shape[1]), np.float32)
            self.actions = np.empty((self.steps, actions.shape[1]), np.float32)
            self._changes, self._errors = np.zeros((2, observations.shape[1]))
        end = self.used + len(actions)
        if end > self.steps:
            raise DatasetError(
                f"episode {episode}: the data set says that it has {self.steps} steps (total_steps in its metadata), "
                "and its episodes have more; correct that number, or write the data set again"
            )
        for name, array, packed in (
            ("observations", observations, self.observations),
            ("actions", actions, self.actions),
        ):
            if array.shape[1] != packed.shape[1]:
                raise DatasetError(
                    f"episode {episode}: {name} have {array.shape[1]} numbers, those of earlier episodes "
                    f"{packed.shape[1]}"
                )
        inside = [] if ended is None else (np.flatnonzero(ended[: len(actions) - 1]) + 1).tolist()
        for first, last in itertools.pairwise([0, *inside, len(actions)]):
            self.observations[self.used + first : self.used + last] = self._exact(observations[first:last])
            self.actions[self.used + first : self.used + last] = actions[first:last]
            self.starts.append(self.used + first)
        self.used = end

    def _exact(self, observations: np.ndarray) -> np.ndarray:
        """The observations of one episode as float32 can hold them: where it would lose how a relative column changes,
        the column's first value is subtracted. How much is lost of other columns is added up."""
        if len(observations) < 2 or np.can_cast(observations.dtype, np.float32):
            return observations
        large = np.flatnonzero(np.maximum(observations.max(0), -observations.min(0).astype(np.float64)) >= _COARSE)
        if not len(large):
            return observations
        exact = observations[:, large].astype(np.float64)
        change = np.diff(exact, axis=0)
        errors = np.abs(np.diff(exact.astype(np.float32).astype(np.float64), axis=0) - change).sum(0)
        usual = np.quantile(np.abs(change), 0.99, axis=0, method="lower")  # a pause in a clock must not hide the loss
        changes = np.minimum(np.abs(change), 10 * usual).sum(0)
        shifted = (errors > _LOST * changes) & np.isin(large, self.relative)
        self._changes[large] += changes
        self._errors[large] += np.where(shifted, 0, errors)
        if shifted.any():
            observations = observations.astype(np.float64)
            observations[:, large[shifted]] -= observations[0, large[shifted]]
        return observations

    def finish(self, layout: Layout | None = None, **about: Any) -> dict[str, Any]:
        """The fields of a `TrajectoryDataset`: arrays, layout and action bounds, and those in `about` as they are."""
        if self.observations is None or self.actions is None or not self.used:
            raise DatasetError("the data set has no episodes" + (" with a step in them" if self.starts else ""))
        observations, actions = self.observations[: self.used], self.actions[: self.used]
        starts = np.asarray(self.starts, np.int64)
        self._require_precision(observations)
        low, high = (
            np.asarray(about.pop(k, v), np.float32) for k, v in (("action_low", -np.inf), ("action_high", np.inf))
        )
        _bring_inside(actions, low, high)
        low = np.where(is_bound(low), low, actions.min(0))
        high = np.where(is_bound(high), high, actions.max(0))
        if not about.get("discrete_actions"):
            about.setdefault("action_range", range_of_actions(actions, low, high))
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

    def _require_precision(self, observations: np.ndarray) -> None:
        """Raise DatasetError where float32 cannot hold how a column changes from step to step."""
        lost = np.flatnonzero(self._errors > _LOST * self._changes)
        if not len(lost):
            return
        column, steps = lost[0], max(self.used - len(self.starts), 1)
        size = float(np.abs(observations[:, column]).max())
        raise DatasetError(
            f"observations[:, {column}] reaches {size:.6g} and changes by {self._changes[column] / steps:.3g} "
            f"a step on average, but 32-bit numbers of that size are {np.spacing(np.float32(size)):.3g} apart; "
            "subtract an offset in the environment (gymnasium.wrappers.TransformObservation) and record again, leave "
            "the column out (indices, --indices), or name it in layout.relative, where only its changes count"
        )


def require_numbers(episode: Any, name: str, array: np.ndarray) -> None:
    """Refuse what is not rows of finite numbers of a size that can be squared.

    Raises:
        DatasetError: which episode (as it is called), row and column.
    """
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise DatasetError(f"episode {episode}: {name} must be rows of numbers, got {array.shape} {array.dtype}")
    if not np.isfinite(array).all():
        raise _bad_number(episode, name, array, ~np.isfinite(array), "")
    if array.size and max(abs(float(array.max())), abs(float(array.min()))) > _LARGEST:
        wrong = np.abs(array.astype(np.float64)) > _LARGEST
        raise _bad_number(episode, name, array, wrong, f", expected at most {_LARGEST:g}")


def _bad_number(episode: Any, name: str, array: np.ndarray, wrong: np.ndarray, expected: str) -> DatasetError:
    row, column = np.argwhere(wrong)[0]
    return DatasetError(
        f"episode {episode}: {name}[{row}, {column}] is {array[row, column]}{expected}; remove or repair the episode"
    )


def _bring_inside(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Clip actions to the bounds that are bounds, in place: with a warning, and not where too many lie outside.

    Raises:
        DatasetError: more than a tenth of the numbers lie outside.
    """
    low, high = (np.where(is_bound(limit), limit, none) for limit, none in ((low, -np.inf), (high, np.inf)))
    least, most = (limit + sign * _ROUNDING * np.maximum(np.abs(limit), 1) for limit, sign in ((low, -1), (high, 1)))
    if (actions.min(0) >= least).all() and (actions.max(0) <= most).all():
        return
    outside = (actions < least) | (actions > most)
    share, column = outside.mean(), int(outside.sum(0).argmax())
    found = (
        f"{share:.2%} of the actions' numbers lie outside the action space, most in actions[:, {column}], which goes "
        f"from {actions[:, column].min():g} to {actions[:, column].max():g}"
    )
    if share > _OUTSIDE:
        raise DatasetError(
            f"{found}; at most {_OUTSIDE:.0%} may, since such actions are clipped to the space: if the environment "
            "clipped them too, clip them in the data set, else record the actions in the units of the space"
        )
    warnings.warn(f"{found}; they are clipped to the space", UserWarning, stacklevel=4)
    np.clip(actions, low, high, out=actions)


def range_of_actions(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The range of actions that becomes [-1, 1] in a policy, `(2, action_dim)`: where bounds are much wider than what
    the data uses, errors that are small beside the bounds would be large beside the actions.

    Per number: its bounds where the data fills at least half of them, else the data's range, without outliers. Those
    are numbers beyond the central 98 % by more than half the width of these.

    Returns:
        None where that is the bounds for all numbers.
    """
    scale = np.stack([low, high]).astype(np.float32)
    for i, column in enumerate(actions.T):
        least, first, last, most = np.quantile(column, [0, _TAIL, 1 - _TAIL, 1])
        reach = (last - first) / 2
        if reach > 0:
            least, most = max(least, first - reach), min(most, last + reach)
        if most - least < _FILLS * (float(high[i]) - float(low[i])):
            scale[:, i] = least, most
            if len(rows := np.flatnonzero((column < scale[0, i]) | (column > scale[1, i]))):
                warnings.warn(
                    f"actions[:, {i}]: {len(rows)} of {len(column)} rows lie far outside of the others' range, e.g. "
                    f"{column[rows[0]]:g} in row {rows[0]}; policies act from {least:g} to {most:g} only, or as "
                    "TrajectoryDataset.action_range is set",
                    UserWarning,
                    stacklevel=4,
                )
    return None if np.array_equal(scale, np.stack([low, high])) else scale


def about_actions(space: spaces.Space) -> dict[str, Any]:
    """Fields of a data set that its action space fixes: the bounds of an action vector, and whether it is one-hot."""
    if isinstance(space, spaces.Discrete):
        return {"action_low": np.zeros(space.n), "action_high": np.ones(space.n), "discrete_actions": True}
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise DatasetError(f"actions must be a flat Box or Discrete, got {space}; others are not supported yet")
    if not np.issubdtype(space.dtype, np.floating):
        raise DatasetError(
            f"actions must be real numbers or Discrete, got {space}, whose actions are whole numbers: record them as "
            "Discrete, or let the environment take real numbers (gymnasium.wrappers.TransformAction)"
        )
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
