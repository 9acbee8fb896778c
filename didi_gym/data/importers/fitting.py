"""The spaces of imported data: an environment's, which the data must fit, or what the data alone shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from didi_gym.data.episodes import DatasetError, about_actions, choose_keys, encode_actions
from didi_gym.data.importers.rows import Recording, in_rows
from didi_gym.data.writing import Episode


@dataclass(frozen=True)
class Fitted:
    """Episodes in the form of an observation and an action space."""

    episodes: list[Episode]
    observation_space: spaces.Space
    action_space: spaces.Space
    keys: tuple[str, ...]
    """Keys of a Dict observation; none of a flat one."""
    notes: tuple[str, ...]


def fit(recording: Recording, env: Any = None, env_keys: Sequence[str] = ()) -> Fitted:
    """Bring episodes into the spaces of an environment, or into spaces that are made from them.

    Args:
        env: A `gymnasium.Env`, or None.
        env_keys: Keys of the environment's Dict observation whose numbers the data holds side by side, in this order.

    Raises:
        DatasetError: what does not fit, and what to do.
    """
    if env is None:
        if env_keys:
            raise DatasetError(
                "--env-keys names keys of an environment's observation; name the environment too (--env)"
            )
        return _from_data(recording)
    name = "the environment" if env.spec is None else env.spec.id
    episodes = _fit_actions(recording.episodes, env.action_space, name)
    widths = {key: array.shape[1] for key, array in episodes[0].observations.items()}
    space: Any = env.observation_space
    total = sum(widths.values())
    if not isinstance(space, spaces.Dict):
        choose_keys(space, env_keys)  # refuses keys, and what is no flat Box
        _require_width(total, space.shape[0], "observations", f"{name} observes")
        return Fitted(_map(episodes, _join), space, env.action_space, (), ())
    boxes: dict[str, Any] = dict(space.spaces)
    keys, notes = tuple(env_keys), []
    if not keys and widths.keys() <= boxes.keys():
        keys = tuple(widths)
    elif not keys and "observation" in boxes and boxes["observation"].shape == (total,):
        keys = ("observation",)
        notes.append(f"The {total} numbers are taken as the key 'observation' of {name}; --env-keys says otherwise.")
    if not keys:
        shapes = {key: box.shape for key, box in boxes.items()}
        raise DatasetError(
            f"{name} observes a Dict, {shapes}, and the data holds {total} numbers side by side; say with --env-keys "
            "which of these keys they are, in this order"
        )
    choose_keys(space, keys)
    sizes = {key: int(boxes[key].shape[0]) for key in keys}
    if widths.keys() == sizes.keys():
        for key, width in widths.items():
            _require_width(width, sizes[key], key, f"{name} observes under that key")
    _require_width(total, sum(sizes.values()), "observations", f"{name} observes under {', '.join(keys)}")
    chosen = spaces.Dict({key: boxes[key] for key in keys})
    ends = np.cumsum(list(sizes.values()))[:-1]

    def divide(observed: dict[str, np.ndarray]) -> Any:
        if observed.keys() == sizes.keys():
            return {key: observed[key] for key in keys}
        return dict(zip(keys, np.split(_join(observed), ends, axis=1), strict=True))

    return Fitted(_map(episodes, divide), chosen, env.action_space, keys, tuple(notes))


def _from_data(recording: Recording) -> Fitted:
    """Spaces of the data's own widths; actions are bounded by the data's extremes, or discrete where they are whole."""
    episodes, first = recording.episodes, recording.episodes[0]
    low = np.min([episode.actions.min(0) for episode in episodes], axis=0)
    high = np.max([episode.actions.max(0) for episode in episodes], axis=0)
    acted: spaces.Space
    if first.actions.ndim == 1:
        if low < 0:
            raise DatasetError(f"discrete actions count from 0, got {low}; name the environment (--env)")
        acted = spaces.Discrete(int(high) + 1)
    else:
        acted = spaces.Box(low, high, dtype=first.actions.dtype.type)
    about_actions(acted)  # refuses whole numbers in rows
    boxes: dict[str, spaces.Space] = {key: _box(array) for key, array in first.observations.items()}
    note = (
        f"No environment was named, so the spaces are made from the data: actions are {_words(acted)}. `didi-gym "
        "evaluate` needs --env later."
    )
    if len(boxes) == 1:
        (box,) = boxes.values()
        return Fitted(_map(episodes, _join), box, acted, (), (note,))
    return Fitted(episodes, spaces.Dict(boxes), acted, recording.keys, (note,))


def _box(array: np.ndarray) -> spaces.Box:
    if array.dtype.kind == "b":
        return spaces.Box(0, 1, array.shape[1:], np.int8)
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        return spaces.Box(int(limits.min), int(limits.max), array.shape[1:], array.dtype.type)
    return spaces.Box(-np.inf, np.inf, array.shape[1:], array.dtype.type)


def _words(space: spaces.Space) -> str:
    if isinstance(space, spaces.Discrete):
        return f"0 to {space.n - 1}"
    assert isinstance(space, spaces.Box)
    return f"{space.shape[0]} numbers from {space.low.min():g} to {space.high.max():g}"


def _fit_actions(episodes: list[Episode], space: spaces.Space, name: str) -> list[Episode]:
    about_actions(space)  # refuses what no policy can act in
    if not isinstance(space, spaces.Discrete):
        episodes = [replace(episode, actions=in_rows(episode.actions)) for episode in episodes]
        _require_width(episodes[0].actions.shape[1], int(space.shape[0]), "actions", f"{name} takes")  # type: ignore[index]
        return episodes
    width = in_rows(episodes[0].actions).shape[1]
    if width != 1 or episodes[0].actions.dtype.kind not in "iu":
        raise DatasetError(
            f"actions: expected one whole number for each step, as {name} takes ({space}), got {width} numbers of "
            f"{episodes[0].actions.dtype}; name the environment that the data was recorded in"
        )
    episodes = [replace(episode, actions=episode.actions.reshape(-1)) for episode in episodes]
    for number, episode in enumerate(episodes):
        encode_actions(episode.actions, space, number)  # refuses actions that are none
    return episodes


def _require_width(width: int, expected: int, what: str, whose: str) -> None:
    if width != expected:
        raise DatasetError(
            f"{what}: expected {expected} numbers, as {whose}, got {width}; name the environment in the version and "
            "with the settings (--env-kwargs) that the data was recorded with, or leave --env out: the spaces are then "
            "made from the data"
        )


def _join(observed: dict[str, np.ndarray]) -> np.ndarray:
    arrays = list(observed.values())
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)


def _map(episodes: list[Episode], function: Callable[[dict[str, np.ndarray]], Any]) -> list[Episode]:
    return [replace(episode, observations=function(dict(episode.observations))) for episode in episodes]
