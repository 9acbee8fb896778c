"""Offline data: a Minari data set as packed arrays, and trajectory windows as indices into them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from didi_gym.decoding import from_dict
from didi_gym.frames import choose_numbers, localize
from didi_gym.layout import Layout, ObservationSource

LAYOUT_KEY, KEYS_KEY = "didi_gym_layout", "didi_gym_keys"  # metadata a data set may carry about itself
_UNBOUNDED = 1e9  # no actuator takes numbers of this size


_HORIZONS = (8, 16, 24, 32, 48, 64, 96)
_SUGGEST_WINDOWS = 16_000
_UNEXPLAINED = 0.25  # share of the change that must be open: chosen on ant and point-maze data, docs/decisions.md


class DatasetError(ValueError):
    """A data set that skills cannot be learned from; the message says which episode and field, and what to do."""


@dataclass(frozen=True)
class TrajectoryDataset:
    """Episodes packed end to end. A window is `horizon` consecutive steps of one episode, named by its first step."""

    observations: np.ndarray
    """States, float32 `(steps, state_dim)`, environment units."""
    actions: np.ndarray
    """float32 `(steps, action_dim)`, environment units; one-hot where the environment's actions are discrete."""
    starts: np.ndarray
    """First step of each episode, int64 `(episodes,)`."""
    lengths: np.ndarray
    """Steps of each episode, int64 `(episodes,)`."""
    layout: Layout
    action_low: np.ndarray
    action_high: np.ndarray
    """Action bounds `(action_dim,)`; the data's own extremes where the space has none."""
    dataset_id: str | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    discrete_actions: bool = False
    """The environment's actions are `Discrete(action_dim)`."""

    def __post_init__(self) -> None:
        if self.observations.shape[1:] != (self.layout.state_dim,):
            raise DatasetError(
                f"observations must have shape (steps, {self.layout.state_dim}) for this layout, "
                f"got {self.observations.shape}"
            )
        if self.actions.shape != (len(self.observations), len(self.action_low)):
            raise DatasetError(
                f"actions must have shape {(len(self.observations), len(self.action_low))}, got {self.actions.shape}"
            )

    @property
    def action_dim(self) -> int:
        return self.actions.shape[1]

    def fingerprint(self) -> int:
        """A checksum (CRC-32) of the episodes: a run must not be continued on other data of the same name."""
        total = zlib.crc32(np.concatenate([self.starts, self.lengths]).tobytes())
        for array in (self.observations, self.actions):
            total = zlib.crc32(np.ascontiguousarray(array).data, total)
        return total

    def num_windows(self, horizon: int) -> int:
        """Windows of `horizon` steps that lie within one episode."""
        return int(np.maximum(self.lengths - horizon + 1, 0).sum())

    def require_horizon(self, horizon: int) -> None:
        """Raise DatasetError where no episode holds a window of `horizon` steps."""
        if self.num_windows(horizon) == 0:
            longest = int(self.lengths.max(initial=0))
            raise DatasetError(
                f"no episode is as long as the horizon: the longest of {len(self.lengths)} episodes has {longest} "
                f"steps, the horizon is {horizon}; "
                + (f"choose a horizon of at most {longest}" if longest > 1 else "record longer episodes")
            )

    def require_change(self) -> None:
        """Raise DatasetError where no action ever differs or no feature changes in any episode."""
        states = self.observations[:, list(self.layout.features)]
        ends = zip(self.starts, self.starts + self.lengths, strict=True)
        changes = {
            "action differs": bool((self.actions != self.actions[:1]).any()),
            "feature changes in any episode": any(bool((states[a:b] != states[a]).any()) for a, b in ends if b > a),
        }
        for what, found in changes.items():
            if not found:
                raise DatasetError(f"no {what}: this data set holds no behaviours that skills could be learned from")

    def suggest_horizon(self, seed: int = 0) -> int:
        """The shortest horizon at which a skill can matter.

        Over a short time a body goes where it already goes, whatever the skill. So: the first of 8, 16, 24, 32, 48, 64,
        96 steps over which the first state explains at most three quarters of the variance of the features' change
        (quadratic regression, held-out windows); the longest that half of the data allows where none does.

        Raises:
            DatasetError: no episode has 8 steps.
        """
        self.require_horizon(_HORIZONS[0])
        least = min(self.num_windows(_HORIZONS[0]), self.lengths.sum() // 2)  # of most of the data, not of one episode
        possible = [h for h in _HORIZONS if self.num_windows(h) >= least]
        generator = np.random.default_rng(seed)
        for horizon in possible:
            starts = self.window_starts(generator.integers(self.num_windows(horizon), size=_SUGGEST_WINDOWS), horizon)
            states = localize(self.windows(starts, horizon)[0], self.layout)[0].astype(np.float64)
            first = states[:, 0, list(self.layout.policy_inputs)]
            first = (first - first.mean(0)) / np.maximum(first.std(0), 1e-6)
            change = (states[:, -1] - states[:, 0])[:, list(self.layout.features)]
            change = (change - change.mean(0)) / np.maximum(change.std(0), 1e-6)
            known = np.concatenate([first, first**2, np.ones((len(first), 1))], axis=1)
            half = len(known) // 2
            weights = np.linalg.lstsq(known[:half], change[:half], rcond=None)[0]
            unexplained = np.square(change[half:] - known[half:] @ weights).sum() / np.square(change[half:]).sum()
            if unexplained >= _UNEXPLAINED:
                return horizon
        return possible[-1]

    def window_starts(self, indices: np.ndarray, horizon: int) -> np.ndarray:
        """Steps `(n,)` at which the windows numbered `indices` (0..num_windows-1) start."""
        counts = np.maximum(self.lengths - horizon + 1, 0)
        ends = np.cumsum(counts)
        episode = np.searchsorted(ends, indices, side="right")
        return self.starts[episode] + indices - (ends - counts)[episode]

    def windows(self, starts: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """States `(n, horizon, state_dim)` and actions `(n, horizon, action_dim)` of the windows at `starts`."""
        steps = np.asarray(starts)[:, None] + np.arange(horizon)
        return self.observations[steps], self.actions[steps]

    def split(
        self, held_out: float = 0.1, seed: int = 0, horizon: int = 1
    ) -> tuple[TrajectoryDataset, TrajectoryDataset]:
        """Split by episodes into (training, held-out) views of the same arrays; a single episode is in both.

        Episodes shorter than `horizon`, which hold no window, are in neither: both parts can be drawn from.

        Raises:
            DatasetError: no episode is as long as `horizon`.
        """
        self.require_horizon(horizon)
        usable = np.flatnonzero(self.lengths >= horizon)
        order = usable[np.random.default_rng(seed).permutation(len(usable))]
        n = max(1, round(held_out * len(order)))
        train, test = (order[n:], order[:n]) if len(order) > 1 else (order, order)
        return tuple(
            replace(self, starts=self.starts[np.sort(e)], lengths=self.lengths[np.sort(e)]) for e in (train, test)
        )  # type: ignore[return-value]

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[tuple[np.ndarray, np.ndarray]],
        layout: Layout | None = None,
        *,
        action_space: spaces.Space | None = None,
        **about: Any,
    ) -> TrajectoryDataset:
        """Pack `(observations, actions)` arrays; observations may hold one row more than actions, which is dropped.

        Args:
            action_space: Gives the action bounds. With `Discrete(n)` an episode's actions are whole numbers `(steps,)`,
                which become one-hot.
            **about: Other fields; without `action_space` also `action_low` and `action_high`.
        """
        if action_space is not None:
            about.update(_about_actions(action_space))
        packer = _Packer(sum(len(actions) for _, actions in episodes))
        for i, (observations, actions) in enumerate(episodes):
            packer.add(i, np.asarray(observations), _action_vectors(np.asarray(actions), action_space, i))
        return packer.finish(layout, **about)

    @classmethod
    def from_minari(
        cls,
        dataset_id: str,
        *,
        keys: Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
        layout: Layout | None = None,
        download: bool = False,
    ) -> TrajectoryDataset:
        """Load a Minari data set.

        Args:
            dataset_id: A local id such as `didi/ant-directions-v0`, any that Minari can download, or one on the Hub
                with its owner, `hf://owner/namespace/name-v0`.
            keys: Keys of a Dict observation to join. Default: what the data set says of itself, else `observation`,
                else all.
            indices: Which numbers of the (joined) observation to keep as the state. Default: all.
            layout: What policy and prior see of the state. Default: what the data set says of itself, else everything.
            download: Fetch it with Minari where it is not on this disk; without this nothing touches the network.

        Raises:
            DatasetError: not found, or not usable: which episode and field, and why.
        """
        from didi_gym.remote import RemoteDataError, load_minari

        try:
            dataset = load_minari(dataset_id, download=download)
        except RemoteDataError as error:
            raise DatasetError(str(error)) from error
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise DatasetError(
                f"no Minari data set {dataset_id!r} on this disk ({error}); make it with `didi-gym data`, or fetch it "
                f"with `minari download {dataset_id}` or download=True (--download)"
            ) from error
        metadata = dataset.storage.metadata
        if layout is None and indices is None and LAYOUT_KEY in metadata:
            layout = from_dict(Layout, json.loads(metadata[LAYOUT_KEY]))
        known = None if layout is None else layout.state_source
        angles = known.angles if known is not None and (indices is None or tuple(indices) == known.indices) else ()
        if keys is None and KEYS_KEY in metadata:
            keys = json.loads(metadata[KEYS_KEY])
        keys = _choose_keys(dataset.observation_space, keys)
        space = dataset.action_space
        about_actions = _about_actions(space)
        source = replace(_state_source(dataset.observation_space, keys, indices), angles=angles)
        whole = _state_source(dataset.observation_space, keys, None)
        packer = _Packer(int(dataset.total_steps))
        for episode in dataset.iterate_episodes():
            observations = _join(episode.observations, keys, episode.id)
            packer.add(
                episode.id,
                observations if source == whole else choose_numbers(observations, source),
                _action_vectors(episode.actions, space, episode.id),
            )
        if layout is None:
            layout = replace(Layout.flat(source.width), sources=(source,))
        layout = replace(layout, state_source=source)
        spec = dataset.env_spec
        kwargs = {} if spec is None else {k: v for k, v in spec.kwargs.items() if _is_json(v) and k != "render_mode"}
        return packer.finish(
            layout,
            dataset_id=dataset_id,
            env_id=None if spec is None else spec.id,
            env_kwargs=kwargs,
            **about_actions,
        )


class _Packer:
    """Copies episodes into arrays allocated once: a data set costs its own size and one episode."""

    def __init__(self, steps: int) -> None:
        self.steps, self.used = steps, 0
        self.observations: np.ndarray | None = None
        self.actions: np.ndarray | None = None
        self.starts: list[int] = []

    def add(self, episode: Any, observations: np.ndarray, actions: np.ndarray) -> None:
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

    def finish(self, layout: Layout | None = None, **about: Any) -> TrajectoryDataset:
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
        layout = layout or Layout.flat(observations.shape[1])
        return TrajectoryDataset(observations, actions, starts, lengths, layout, low, high, **about)


def is_bound(limit: np.ndarray) -> np.ndarray:
    """Where an action limit is one: some spaces write the largest float for infinity."""
    return np.abs(limit) < _UNBOUNDED


def _about_actions(space: spaces.Space) -> dict[str, Any]:
    """Fields of a data set that its action space fixes: the bounds of an action vector, and whether it is one-hot."""
    if isinstance(space, spaces.Discrete):
        return {"action_low": np.zeros(space.n), "action_high": np.ones(space.n), "discrete_actions": True}
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise DatasetError(f"actions must be a flat Box or Discrete, got {space}; others are not supported yet")
    if not np.issubdtype(space.dtype, np.floating):
        raise DatasetError(f"actions must be real numbers or Discrete, got {space}; others are not supported yet")
    return {"action_low": space.low, "action_high": space.high}


def _action_vectors(actions: np.ndarray, space: spaces.Space | None, episode: Any) -> np.ndarray:
    """An episode's actions as `(steps, action_dim)`: those of a Discrete space, `(steps,)`, become one-hot float32.

    The inverse is `didi_gym.execution.to_discrete`.
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


def _choose_keys(space: spaces.Space, keys: Sequence[str] | None) -> tuple[str, ...]:
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


def _join(observations: Any, keys: tuple[str, ...], episode: Any) -> np.ndarray:
    if not keys:
        return np.asarray(observations)
    missing = [key for key in keys if key not in observations]
    if missing:
        raise DatasetError(f"episode {episode}: observation has no key {missing[0]!r}, only {list(observations)}")
    return np.concatenate([observations[key] for key in keys], axis=-1)


def _state_source(space: spaces.Space, keys: tuple[str, ...], indices: Sequence[int] | None) -> ObservationSource:
    boxes: list[Any] = [space[key] for key in keys] if isinstance(space, spaces.Dict) else [space]
    size = sum(int(box.shape[0]) for box in boxes)
    return ObservationSource(size, tuple(range(size)) if indices is None else tuple(int(i) for i in indices), keys)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
