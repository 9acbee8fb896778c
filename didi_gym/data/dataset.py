"""Offline data: a Minari data set as packed arrays, and trajectory windows as indices into them."""

from __future__ import annotations

import copy
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from didi_gym.core.frames import localize
from didi_gym.core.layout import Layout, LayoutChoice
from didi_gym.core.observations import choose_numbers
from didi_gym.core.schema import from_dict
from didi_gym.data.columns import describe_columns
from didi_gym.data.episodes import DatasetError as DatasetError  # for users it is this module's
from didi_gym.data.episodes import Packer, about_actions, choose_keys, encode_actions, join_keys, state_source
from didi_gym.data.windows import usual_rows
from didi_gym.data.writing import KEYS_KEY, LAYOUT_KEY

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from minari import MinariDataset

_HORIZONS = (8, 16, 24, 32, 48, 64, 96)
_SUGGEST_WINDOWS = 16_000
_UNEXPLAINED = 0.25  # share of the change that must be open: chosen on ant and point-maze data, docs/decisions.md
_STILL, _MOTION = 0.2, 0.1  # share of windows that may change by less than so many standard deviations


@dataclass(frozen=True)
class TrajectoryDataset:
    """Episodes packed end to end. A window is `horizon` consecutive steps of one episode, named by its first step."""

    observations: np.ndarray
    """States, float32 `(steps, state_dim)`, environment units. Relative columns that float32 could not hold otherwise
    count from the first step of their episode."""
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
    env_spec: str | None = None
    """The environment with its wrappers, as Minari recovers it: `gymnasium.make(EnvSpec.from_json(env_spec))`."""
    discrete_actions: bool = False
    """The environment's actions are `Discrete(action_dim)`."""
    action_range: np.ndarray | None = None
    """The lowest and highest actions that policies scale to [-1, 1], `(2, action_dim)`; the bounds where None."""

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
        if self.action_range is not None and np.shape(self.action_range) != (2, self.action_dim):
            raise DatasetError(
                f"action_range must have shape (2, {self.action_dim}), got {np.shape(self.action_range)}"
            )

    @property
    def action_dim(self) -> int:
        return self.actions.shape[1]

    @property
    def action_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The actions `(action_dim,)` that policies scale to -1 and 1: `action_range`, or the bounds."""
        if self.action_range is None:
            return self.action_low, self.action_high
        return self.action_range[0], self.action_range[1]

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
        (quadratic regression, held-out windows) and in which they change at all, in most windows: pushing a block needs
        the way to it first. The longest that half of the data allows where there is none. Judged are
        features that are relative, else those that are neither velocities (which change of themselves) nor contacts
        (which tell of an instant), else all.

        Raises:
            DatasetError: no episode has 8 steps.
        """
        self.require_horizon(_HORIZONS[0])
        least = min(self.num_windows(_HORIZONS[0]), self.lengths.sum() // 2)  # of most of the data, not of one episode
        possible = [h for h in _HORIZONS if self.num_windows(h) >= least]
        features = self._places()
        generator = np.random.default_rng(seed)
        for horizon in possible:
            starts = self.window_starts(generator.integers(self.num_windows(horizon), size=_SUGGEST_WINDOWS), horizon)
            states = localize(self.windows(starts, horizon)[0], self.layout)[0].astype(np.float64)
            first = states[:, 0, list(self.layout.policy_inputs)]
            change = (states[:, -1] - states[:, 0])[:, features]
            usual = usual_rows(first) & usual_rows(change)
            first, change = first[usual], change[usual]
            first = (first - first.mean(0)) / np.maximum(first.std(0), 1e-6)
            scale = np.maximum(change.std(0), 1e-6)
            still = np.square(change / scale).mean(1) < _MOTION**2
            change = (change - change.mean(0)) / scale
            known = np.concatenate([first, first**2, np.ones((len(first), 1))], axis=1)
            half = len(known) // 2
            weights = np.linalg.lstsq(known[:half], change[:half], rcond=None)[0]
            unexplained = np.square(change[half:] - known[half:] @ weights).sum() / np.square(change[half:]).sum()
            if unexplained >= _UNEXPLAINED and still.mean() <= _STILL:
                return horizon
        return possible[-1]

    def _places(self) -> list[int]:
        """The features that say where something is, rather than how fast it moves or what it touches."""
        relative = [i for i in self.layout.features if i in self.layout.relative]
        if relative:
            return relative
        columns = describe_columns(self.observations, self.starts, self.lengths)
        others = {*columns.velocities, *columns.binary, *columns.constant}
        return [i for i in self.layout.features if i not in others] or list(self.layout.features)

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
            about.update(about_actions(action_space))
        packer = Packer(sum(len(actions) for _, actions in episodes), () if layout is None else layout.relative)
        for i, (observations, actions) in enumerate(episodes):
            packer.add(i, np.asarray(observations), encode_actions(np.asarray(actions), action_space, i))
        return cls(**packer.finish(layout, **about))

    @classmethod
    def from_minari(
        cls,
        dataset: str | os.PathLike[str] | MinariDataset,
        *,
        keys: Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
        layout: Layout | LayoutChoice | None = None,
        download: bool = False,
        progress: bool = True,
    ) -> TrajectoryDataset:
        """Load a Minari data set. Where steps inside one of its episodes are flagged as ends, it is split there.

        Args:
            dataset: A local id such as `didi/ant-directions-v0`, any that Minari can download, or one on the Hub
                with its owner, `hf://owner/namespace/name-v0`; or the `Path` of a data set's folder; or a
                `MinariDataset`, for example of `dataset.filter_episodes(...)`.
            keys: Keys of a Dict observation to join. Default: what the data set says of itself, else `observation`,
                else all.
            indices: Which numbers of the (joined) observation to keep as the state. Default: what the data set says of
                itself, else all.
            layout: What policy and prior see of the state, in whole or what of it a user chooses. Default: what the
                data set says of itself, else everything.
            download: Fetch it with Minari where it is not on this disk; without this nothing touches the network.
            progress: Show it on stderr where loading takes longer than a few seconds.

        Raises:
            DatasetError: not found, or not usable: which episode and field, and why.
        """
        from didi_gym.data.minari import RemoteDataError, open_dataset, read_episodes

        try:
            stored = open_dataset(dataset, download=download)
        except RemoteDataError as error:
            raise DatasetError(str(error)) from error
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise DatasetError(
                f"no Minari data set {str(dataset)!r} on this disk ({error}); make it with `didi-gym data`, or fetch "
                f"it with `minari download {dataset}` or download=True (--download)"
            ) from error
        metadata = stored.storage.metadata
        choice, layout = (layout, None) if isinstance(layout, LayoutChoice) else (None, layout)
        if layout is None and indices is None and LAYOUT_KEY in metadata:
            layout = from_dict(Layout, json.loads(metadata[LAYOUT_KEY]))
            indices = None if layout.state_source is None else layout.state_source.indices
        if keys is None and KEYS_KEY in metadata:
            keys = json.loads(metadata[KEYS_KEY])
        keys = choose_keys(stored.observation_space, keys)
        if choice is not None:
            layout = choice.complete(state_source(stored.observation_space, keys, indices), layout)
        known = None if layout is None else layout.state_source
        angles = known.angles if known is not None and (indices is None or tuple(indices) == known.indices) else ()
        space = stored.action_space
        about = about_actions(space)
        source = replace(state_source(stored.observation_space, keys, indices), angles=angles)
        if layout is None:
            layout = replace(Layout.flat(source.width), sources=(source,))
        layout = replace(layout, state_source=source)
        packer = Packer(int(stored.total_steps), layout.relative)
        for episode, observed, acted, ended in read_episodes(stored, keys, progress=progress):
            states = choose_numbers(join_keys(observed, keys, episode), source, exact=True)
            actions = encode_actions(acted, space, episode)
            packer.add(episode, states, actions, ended)
        spec = stored.env_spec
        kwargs = {} if spec is None else {k: v for k, v in spec.kwargs.items() if _is_json(v) and k != "render_mode"}
        fields = packer.finish(
            layout,
            dataset_id=dataset if isinstance(dataset, str) else stored.id,
            env_id=None if spec is None else spec.id,
            env_kwargs=kwargs,
            env_spec=None if spec is None else _without_rendering(spec).to_json(),
            **about,
        )
        return cls(**fields)


def _without_rendering(spec: EnvSpec) -> EnvSpec:
    spec = copy.deepcopy(spec)
    spec.kwargs.pop("render_mode", None)
    return spec


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
