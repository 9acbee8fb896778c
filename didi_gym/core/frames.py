"""The frame in which a trajectory is seen: positions from its first state, and yaw zero where a layout has a heading.

Every function takes numpy arrays or torch tensors, last axis a state in environment units, and returns the same kind.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from didi_gym.core.layout import Heading, Layout


def yaw_of(states: Any, heading: Heading) -> Any:
    """Yaw in radians, `(...)`, of states `(..., state_dim)` (of a quaternion, the first of its z-y-x Euler angles)."""
    if heading.quaternion is None:
        cos, sin = (states[..., i] for i in heading.orientation)
        return _module(states).arctan2(sin, cos)
    w, x, y, z = (states[..., i] for i in heading.quaternion)
    return _module(states).arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def turn(states: Any, angle: Any, heading: Heading) -> Any:
    """States `(..., state_dim)` as they are with the world turned by `angle` radians `(...)` about the vertical."""
    xp = _module(states)
    turned = states.clone() if xp is not np else states.copy()
    cos, sin = xp.cos(angle), xp.sin(angle)
    for i, j in heading.turning:
        turned[..., i] = cos * states[..., i] - sin * states[..., j]
        turned[..., j] = sin * states[..., i] + cos * states[..., j]
    if heading.quaternion is None:
        return turned
    iw, ix, iy, iz = heading.quaternion  # Hamilton product of (cos a/2, 0, 0, sin a/2) and the quaternion
    half_cos, half_sin = xp.cos(angle / 2), xp.sin(angle / 2)
    turned[..., iw] = half_cos * states[..., iw] - half_sin * states[..., iz]
    turned[..., ix] = half_cos * states[..., ix] - half_sin * states[..., iy]
    turned[..., iy] = half_cos * states[..., iy] + half_sin * states[..., ix]
    turned[..., iz] = half_cos * states[..., iz] + half_sin * states[..., iw]
    return turned


def localize(states: Any, layout: Layout) -> tuple[Any, Any]:
    """Bring trajectories into the frame of their first state.

    Args:
        states: `(..., horizon, state_dim)`.

    Returns:
        The states in that frame, and the yaw `(...)` that was taken out (None without a heading). Where q and -q name
        the same orientation, the one with a positive real part at the first state is chosen.
    """
    xp = _module(states)
    local = states.clone() if xp is not np else states.copy()
    if layout.relative:
        relative = list(layout.relative)
        local[..., relative] = states[..., relative] - states[..., :1, relative]
    if layout.heading is None:
        return local, None
    yaw = yaw_of(states[..., 0, :], layout.heading)
    local = turn(local, -yaw[..., None], layout.heading)
    if layout.heading.quaternion is None:
        return local, yaw
    quaternion = list(layout.heading.quaternion)
    sign = 1.0 - 2.0 * (local[..., :1, quaternion[:1]] < 0)
    local[..., quaternion] = local[..., quaternion] * sign
    return local, yaw


def turn_skill(skill: Any, angle: Any) -> Any:
    """Skills `(..., skill_dim)` with their first two coordinates turned by `angle` radians `(...)`."""
    xp = _module(skill)
    turned = skill.clone() if xp is not np else skill.copy()
    cos, sin = xp.cos(angle), xp.sin(angle)
    turned[..., 0] = cos * skill[..., 0] - sin * skill[..., 1]
    turned[..., 1] = sin * skill[..., 0] + cos * skill[..., 1]
    return turned


def inputs_to_state(inputs: Any, layout: Layout) -> Any:
    """Policy inputs `(..., len(policy_inputs))` as states `(..., state_dim)`, zero where the policy reads nothing."""
    xp = _module(inputs)
    options = {} if xp is np else {"device": inputs.device}
    states = xp.zeros((*inputs.shape[:-1], layout.state_dim), dtype=inputs.dtype, **options)
    states[..., list(layout.policy_inputs)] = inputs
    return states


class HeadingFrame:
    """Turns what a policy reads, and its skill, to yaw zero: `localize` and `turn_skill` for single states.

    It works on numbers and on columns alike, so that one row costs no array operations, and a GPU no wait.
    """

    def __init__(self, layout: Layout, turns_skill: bool) -> None:
        assert layout.heading is not None
        place = {index: position for position, index in enumerate(layout.policy_inputs)}
        self._planar = layout.heading.quaternion is None
        self._orientation = [place[i] for i in layout.heading.orientation]
        self._pairs = [(place[i], place[j]) for i, j in layout.heading.turning if i in place]
        if turns_skill:
            self._pairs.append((len(place), len(place) + 1))

    def enter(self, columns: Any, functions: tuple[Callable, Callable, Callable]) -> Any:
        """Turn in place.

        Args:
            columns: The policy's inputs, then the skill: numbers in a list, or columns `(inputs + skill_dim, n)`.
            functions: The arctan2, cos and sin for them.

        Returns:
            The yaw taken out, in radians.
        """
        arctan2, cos, sin = functions
        if self._planar:
            i, j = self._orientation
            yaw = arctan2(columns[j], columns[i])
        else:
            iw, ix, iy, iz = self._orientation
            w, x, y, z = columns[iw], columns[ix], columns[iy], columns[iz]
            yaw = arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        c, s = cos(yaw), sin(yaw)
        for i, j in self._pairs:
            a, b = columns[i], columns[j]
            columns[i], columns[j] = c * a + s * b, c * b - s * a
        if self._planar:
            return yaw
        c, s = cos(yaw / 2), sin(yaw / 2)  # Hamilton product of (cos, 0, 0, -sin) of half the yaw and the quaternion
        w, x, y, z = c * w + s * z, c * x + s * y, c * y - s * x, c * z - s * w
        sign = 1.0 - 2.0 * (w < 0)
        columns[iw], columns[ix], columns[iy], columns[iz] = sign * w, sign * x, sign * y, sign * z
        return yaw


MATH = math.atan2, math.cos, math.sin
NUMPY = np.arctan2, np.cos, np.sin


def _module(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]
