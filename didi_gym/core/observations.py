"""What of an environment's observations a policy reads, and which limits of its actions are limits at all."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from didi_gym.core.layout import Layout, ObservationSource

_UNBOUNDED = 1e9  # no actuator takes numbers of this size
_WOUND = 1_000.0  # radians from which on an angle is brought back into one turn before it becomes float32


class InputSelector:
    """Picks what the policy reads out of an environment's observations.

    The first of the layout's sources that fits the observation space is chosen, once, at construction.

    Args:
        space: the observation space of a single environment.
        layout: the policy's layout.
        exact: give numbers as precise as the observations are, not float32.

    Raises:
        ValueError: no source fits.
    """

    def __init__(self, space: spaces.Space, layout: Layout, *, exact: bool = False) -> None:
        fitting = [source for source in layout.sources if _fits(space, source)]
        if not fitting:
            expected = " or ".join(_describe_source(source) for source in layout.sources) or "nothing it knows"
            raise ValueError(
                f"the policy cannot read this environment's observations: expected {expected}, got "
                f"{_describe_space(space)}; pass obs_fn=, a function from an observation to the "
                f"{len(layout.policy_inputs)} numbers the policy reads"
            )
        self.source: ObservationSource = fitting[0]
        self._indices, self._exact = np.array(self.source.indices), exact

    def __call__(self, observation: Any) -> np.ndarray:
        """Select from one observation, or from many with the same leading dimensions.

        Returns:
            The policy's inputs, a new float32 array `(..., inputs)`, where not `exact`.
        """
        keys = self.source.keys
        if not keys:
            joined = np.asarray(observation)  # some environments give lists, or tensors
        elif len(keys) == 1:
            joined = np.asarray(observation[keys[0]])
        else:
            joined = np.concatenate([observation[key] for key in keys], axis=-1)
        if self.source.angles or self._exact:
            return choose_numbers(joined, self.source, exact=self._exact)
        return joined[..., self._indices].astype(np.float32)

    def place(self, number: int) -> str:
        """Where an observation holds a number that is selected, e.g. `observation['observation'][13]`."""
        indices, angles = self.source.indices, self.source.angles
        index = indices[number] if number < len(indices) else indices[angles[number - len(indices)]]  # its sine
        key = f"[{' + '.join(map(repr, self.source.keys))}]" if self.source.keys else ""
        return f"observation{key}[{index}]"


def _fits(space: spaces.Space, source: ObservationSource) -> bool:
    if not source.keys:
        parts: list[spaces.Space] = [space]
    elif isinstance(space, spaces.Dict) and set(source.keys) <= set(space.spaces):
        parts = [space[key] for key in source.keys]
    else:
        return False
    return all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in parts) and source.size == sum(
        part.shape[0] for part in parts if part.shape
    )


def _describe_source(source: ObservationSource) -> str:
    if not source.keys:
        return f"a Box of {source.size} numbers"
    return f"a Dict whose {' + '.join(map(repr, source.keys))} has {source.size} numbers"


def _describe_space(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "a Dict of " + ", ".join(f"{key!r} {part.shape}" for key, part in space.spaces.items())
    return f"a {type(space).__name__} of shape {space.shape}"


def choose_numbers(observations: np.ndarray, source: ObservationSource, *, exact: bool = False) -> np.ndarray:
    """The numbers that `source` takes of joined observations `(..., size)`: `(..., width)`, float32, or as precise as
    the observations are where `exact`."""
    numbers = observations[..., list(source.indices)]
    chosen = numbers if exact and not source.angles else numbers.astype(np.float64 if exact else np.float32)
    if not source.angles:
        return chosen
    places = list(source.angles)
    angles = numbers[..., places]
    if np.abs(angles).max(initial=0) > _WOUND:  # float32 would lose the angle in the turns
        angles = np.remainder(angles, 2 * np.pi)
    angles = angles.astype(np.float32)
    chosen[..., places] = np.cos(angles)
    return np.concatenate([chosen, np.sin(angles)], axis=-1)


def recover_numbers(state: np.ndarray, source: ObservationSource) -> np.ndarray:
    """The inverse, `(..., width)` to `(..., len(indices))`, with angles in (-pi, pi]."""
    numbers = state[..., : len(source.indices)].copy()
    if source.angles:
        places = list(source.angles)
        numbers[..., places] = np.arctan2(state[..., len(source.indices) :], numbers[..., places])
    return numbers


def all_finite(numbers: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity; for a few numbers `.all()` would take longer than all the rest."""
    return b"\0" not in np.isfinite(numbers).tobytes()


def is_bound(limit: np.ndarray) -> np.ndarray:
    """Where an action limit is one: some spaces write the largest float for infinity."""
    return np.abs(limit) < _UNBOUNDED


def step_seconds_of(env: gym.Env, inside: bool = False) -> float | None:
    """Simulated seconds that one step of an environment takes; None where the environment does not say.

    It says so as `env.unwrapped.dt`, the convention of MuJoCo and of some classic environments. `render_fps` in the
    metadata is no such statement: it is the rate at which pictures are to be shown.

    Args:
        inside: Where it does not say, ask the environment that it holds, as a maze holds the body that walks in it.
    """
    base = env.unwrapped
    try:
        seconds = float(base.dt)  # type: ignore[attr-defined]
    except Exception:  # no such attribute, no number, or a property that cannot be computed
        held = [each for each in vars(base).values() if isinstance(each, gym.Env)] if inside else []
        return step_seconds_of(held[0]) if len(held) == 1 else None
    return seconds if 0 < seconds < math.inf else None


def warn_of_other_step(seconds: float | None, recorded: float | None, name: str = "this environment") -> None:
    """Warn where an environment's steps last longer or shorter than those that a policy was trained on.

    Args:
        seconds: `step_seconds_of` the environment.
        recorded: `step_seconds` of the policy's config; None where that is not known.
        name: What to call the environment.
    """
    if recorded is not None and seconds is not None and not math.isclose(seconds, recorded, rel_tol=1e-3):
        warnings.warn(
            f"one step of {name} takes {seconds:g} s of simulated time, but the policy was trained on steps of "
            f"{recorded:g} s, so its skills run at another speed; make the environment with the time step (frame_skip) "
            "of the data",
            stacklevel=1,  # one place for all callers, so that it is said once
        )
