"""What the columns of a data set look like: positions, velocities, angles, contacts, constants.

It is told from the numbers alone, so it is a suggestion for who writes a layout, and never decides what a policy reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROWS = 50_000  # looked at, at most
_ALIKE = 0.9  # correlation with another column's differences that makes a velocity
_DRIFT = 1.6  # times as much change over four times the steps: 1 for what comes back, 4 for a straight way
_UNIT = 1e-3  # squares of a cosine and a sine, or of a quaternion, add up to 1 so closely
_MOST = 0.99  # of the rows: a reset may leave a quaternion of another length, an angle jumps


@dataclass(frozen=True)
class Columns:
    """Columns of a state by what they look like."""

    constant: tuple[int, ...]
    binary: tuple[int, ...]
    """Columns with two values: contacts, switches."""
    velocities: dict[int, int]
    """Columns that are the differences of another, which is given with each."""
    drifting: tuple[int, ...]
    """Columns that go on changing for as long as an episode lasts: positions, or angles that wind."""
    angles: tuple[int, ...]
    """Columns within +-pi that jump from one end to the other."""
    directions: tuple[tuple[int, int], ...]
    """Pairs of columns that are the cosine and the sine of an angle."""
    quaternions: tuple[tuple[int, int, int, int], ...]
    """Orientations of a body in space."""

    def lines(self) -> list[str]:
        """What was found, one kind a line."""
        kinds = {
            "constant": _join(self.constant),
            "two values (contacts, switches)": _join(self.binary),
            "drifting (positions, or angles that wind)": _join(self.drifting),
            "angles in radians that jump at +-pi": _join(self.angles),
            "cosine and sine of an angle": _join(self.directions),
            "quaternions": _join(self.quaternions),
            "velocities (each with the column whose differences it holds)": _join(
                tuple(f"{v} of {p}" for v, p in self.velocities.items())
            ),
        }
        return [f"{kind}: {which}" for kind, which in kinds.items() if which]


def describe_columns(states: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Columns:
    """What columns of states `(steps, state_dim)` look like, in episodes of `lengths` that begin at `starts`."""
    chosen = np.arange(0, len(starts), max(int(lengths.sum()) // _ROWS, 1))
    parts = [states[starts[e] : starts[e] + lengths[e]].astype(np.float64) for e in chosen]
    rows = np.concatenate(parts)
    spread = rows.std(0)
    still = spread <= 1e-6 * (1 + np.abs(rows).max(0))
    two = ~still & np.array([len(np.unique(column)) == 2 for column in rows.T])
    varied = np.flatnonzero(~still & ~two)
    steps = np.concatenate([np.diff(part, axis=0) for part in parts])
    wrapped = [
        i
        for i in varied
        if np.abs(rows[:, i]).max() <= np.pi * 1.001 and np.abs(steps[:, i]).max(initial=0) > 1.5 * np.pi
    ]
    directions, quaternions = _orientations(rows, varied)
    before, after = (np.concatenate([part[cut] for part in parts])[:, varied] for cut in (slice(-1), slice(1, None)))
    velocities = _velocities(steps[:, varied], (before, after, before + after), varied)
    return Columns(
        constant=_ints(np.flatnonzero(still)),
        binary=_ints(np.flatnonzero(two)),
        velocities=velocities,
        drifting=tuple(i for i in _ints(varied) if i not in velocities and _drifts([part[:, i] for part in parts])),
        angles=_ints(wrapped),
        directions=directions,
        quaternions=quaternions,
    )


def _velocities(steps: np.ndarray, seen: tuple[np.ndarray, ...], names: np.ndarray) -> dict[int, int]:
    """Columns that are proportional to how another changes in a step, as they are `seen` before, after or between."""
    if not len(steps) or not len(names):
        return {}
    limit = np.quantile(np.abs(steps), _MOST, axis=0)
    changing = _standard(np.clip(steps, -limit, limit))  # an angle that jumps at +-pi would hide what else it does
    alike = np.max([changing.T @ _standard(moving) / len(steps) for moving in seen], axis=0)  # (changing, velocity)
    np.fill_diagonal(alike, 0)
    best = alike.argmax(0)
    return {int(names[v]): int(names[p]) for v, p in enumerate(best) if alike[p, v] > _ALIKE}


def _standard(columns: np.ndarray) -> np.ndarray:
    return (columns - columns.mean(0)) / np.maximum(columns.std(0), 1e-12)


def _drifts(parts: list[np.ndarray]) -> bool:
    """Whether a column changes ever more with time, over an eighth and over half of the usual episode."""
    short = int(np.median([len(part) for part in parts])) // 8
    if short < 1:
        return False
    far = [
        np.concatenate([part[lag:] - part[:-lag] for part in parts if len(part) > lag] or [np.zeros(0)])
        for lag in (short, 4 * short)
    ]
    near, late = (np.sqrt(np.square(change).mean()) if len(change) else 0.0 for change in far)
    return bool(near > 0 and late > _DRIFT * near)


def _orientations(
    rows: np.ndarray, varied: np.ndarray
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int, int, int], ...]]:
    """Pairs and, side by side, fours of columns whose squares add up to 1."""
    squares = np.square(rows)

    def is_unit(*columns: int) -> bool:
        return float(np.quantile(np.abs(squares[:, columns].sum(1) - 1), _MOST)) <= _UNIT

    bounded = {int(i) for i in varied if np.quantile(squares[:, i], _MOST) <= 1 + _UNIT}
    fours = tuple(
        (i, i + 1, i + 2, i + 3)
        for i in range(rows.shape[1] - 3)
        if {i, i + 3} <= bounded
        and is_unit(i, i + 1, i + 2, i + 3)  # w and z: with both still, nothing turns on a plane
    )
    inside = {i for four in fours for i in four}
    free = sorted(bounded - inside)
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for place, i in enumerate(free):
        for j in free[place + 1 :]:
            if not {i, j} & used and is_unit(i, j):
                pairs.append((i, j))
                used |= {i, j}
    return tuple(pairs), fours


def _ints(columns: object) -> tuple[int, ...]:
    return tuple(int(i) for i in columns)  # type: ignore[attr-defined]


def _join(columns: tuple[object, ...]) -> str:
    return ", ".join(str(column) for column in columns)
