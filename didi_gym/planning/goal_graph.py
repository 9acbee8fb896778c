"""A graph of the goal space that was reached: where a body has been, between which places it walked, where it fell."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

_GRID_DIMENSIONS = 3  # in more, nearly every goal would have a cell of its own
_CLEARANCE = 6.0  # weight of the share of neighbours never reached: walls are where nobody has been
_BACKWARDS = 0.25  # times that a move counts as made which was only made in the other direction
_MEMORY = 0.6  # of the times that a move was made, when it fails, and of its failures, when it is made
_CLOSED = 4.0  # times as often failed as made: no way leads there any more, and others are looked for
_FALL = 40.0  # weight of the share of visits that ended in a fall
_MOST = 2.0**53  # of any number that is stored: far beyond what is learned, and nothing overflows


class Rows:
    """An array that grows by rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self._room, self._used = rows.copy(), len(rows)

    def __len__(self) -> int:
        return self._used

    @property
    def array(self) -> np.ndarray:
        """All rows, as a view."""
        return self._room[: self._used]

    def append(self, row: object) -> None:
        if self._used == len(self._room):
            self._room = np.concatenate(
                [self._room, np.zeros((max(self._used, 64), *self._room.shape[1:]), self._room.dtype)]
            )
        self._room[self._used] = row
        self._used += 1


@dataclass(frozen=True)
class Ways:
    """The best way from every place of a graph, as it was when they were found."""

    costs: np.ndarray
    """Of the way, in cells, `(n,)`; inf where there is none."""
    following: np.ndarray
    """The next place on it, `(n,)`; -1 at its end and where there is none."""

    def cost(self, node: int | None) -> float:
        return np.inf if node is None or node >= len(self.costs) else float(self.costs[node])

    def path(self, start: int, length: int) -> list[int]:
        """The places after `start`, at most `length`."""
        nodes: list[int] = []
        here = start if start < len(self.following) else -1
        while len(nodes) < length and here >= 0 and self.following[here] >= 0:
            here = int(self.following[here])
            nodes.append(here)
        return nodes


class GoalGraph:
    """Nodes are places of goal space that were reached, edges are moves between them that were made, either way.

    Whoever came from there is believed to get back there until that fails.

    In up to three dimensions the places are cells of a grid. In more they are landmarks, each of which stands for the
    goals within a cell's size of it.

    Args:
        size: Length of a cell, in the units of the goal.
        goal_dim: Numbers in a goal.
    """

    def __init__(self, size: float, goal_dim: int) -> None:
        self.size, self.goal_dim = size, goal_dim
        self.is_grid = goal_dim <= _GRID_DIMENSIONS
        beside = itertools.product((-1, 0, 1), repeat=goal_dim if self.is_grid else 0)
        self._around = [step for step in beside if any(step)]
        self._cells: dict[tuple[int, ...], int] = {}
        self._centers = Rows(np.zeros((0, goal_dim)))
        self._visits, self._falls = Rows(np.zeros(0, np.int64)), Rows(np.zeros(0))
        self._closed = Rows(np.zeros(0, np.int64))  # of each cell, the neighbours that were reached
        self._numbers: dict[tuple[int, int], int] = {}  # of the edges
        self._edges, self._walked, self._failed = Rows(np.zeros((0, 2), np.int64)), Rows(np.zeros(0)), Rows(np.zeros(0))
        self.version = 0
        """Raised where a new place or a new way was found, or an old one was found wanting."""

    def __len__(self) -> int:
        return len(self._centers)

    @property
    def centers(self) -> np.ndarray:
        """Middle of each place, `(n, goal_dim)`: of a cell, the mean of the goals that were reached in it."""
        return self._centers.array

    def center(self, node: int) -> np.ndarray:
        """Middle of one place, `(goal_dim,)`."""
        return self._centers.array[node].copy()

    @property
    def open_sides(self) -> np.ndarray:
        """Share of each cell's neighbours that were never reached, `(n,)`: beside a wall or at the frontier."""
        if not self.is_grid:
            return np.zeros(len(self))
        return 1 - self._closed.array / len(self._around)

    @property
    def moves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges `(m, 2)` from place to place, how often each was walked `(m,)` and tried in vain `(m,)`, of late."""
        return self._edges.array, self._walked.array, self._failed.array

    @property
    def fall_rates(self) -> np.ndarray:
        """Share of the visits of each place after which a body fell, `(n,)`."""
        return self._falls.array / (self._visits.array + 1)

    # -- what is learned -----------------------------------------------------------------------------------------------
    def locate(self, goal: np.ndarray) -> int | None:
        """The place of a goal; None where it was never reached."""
        if self.is_grid:
            return self._cells.get(self._cell(goal))
        if not len(self):
            return None
        distance = np.linalg.norm(self.centers - goal, axis=1)
        nearest = int(distance.argmin())
        return nearest if distance[nearest] <= self.size else None

    def _cell(self, goal: np.ndarray) -> tuple[int, ...]:
        return tuple(np.floor(goal / self.size).astype(int).tolist())

    def _reach(self, goal: np.ndarray) -> int:
        """The place of a goal, new where it was never reached."""
        if (known := self.locate(goal)) is not None:
            return known
        node, closed = len(self), 0
        if self.is_grid:
            cell = self._cell(goal)
            self._cells[cell] = node
            for step in self._around:
                beside = self._cells.get(tuple(a + b for a, b in zip(cell, step, strict=True)))
                if beside is not None:
                    self._closed.array[beside] += 1
                    closed += 1
        self._centers.append(goal)
        self._visits.append(0)
        self._falls.append(0.0)
        self._closed.append(closed)
        self.version += 1
        return node

    def walk(self, goals: np.ndarray) -> None:
        """Learn from the goals achieved one after another, `(steps, goal_dim)`."""
        before: int | None = None
        for goal in goals:
            node = self._reach(goal)
            if node == before:
                continue
            self._visits.array[node] += 1
            if self.is_grid:
                self._centers.array[node] += (goal - self._centers.array[node]) / self._visits.array[node]
            if before is not None:
                edge = self._edge(before, node)
                self._walked.array[edge] += 1
                self._failed.array[edge] *= _MEMORY
                self._edge(node, before)
            before = node

    def _edge(self, start: int, end: int) -> int:
        """The edge between two places, new where there was none."""
        edge = self._numbers.setdefault((start, end), len(self._edges))
        if edge == len(self._edges):
            self._edges.append((start, end))
            self._walked.append(0)
            self._failed.append(0)
            self.version += 1
        return edge

    def fail(self, start: int | None, end: int | None) -> None:
        """Learn that a move from a place to another was tried and did not get there; no move there was, no failure."""
        edge = self._numbers.get((start, end))  # type: ignore[arg-type]
        if edge is not None:
            self._failed.array[edge] += 1
            self._walked.array[edge] *= _MEMORY
            self.version += 1

    def fall(self, goals: np.ndarray) -> None:
        """Learn that on the way along goals `(n, goal_dim)` a body got into a state that it could not leave."""
        for goal in goals:
            self._falls.array[self._reach(goal)] += 1 / len(goals)
        self.version += 1

    # -- what is asked -------------------------------------------------------------------------------------------------
    def ways_to(self, goal: np.ndarray, radius: float, within: float = np.inf) -> Ways:
        """The best ways from every place to those within `radius` of a goal.

        A move costs its length in cells, more where it was made seldom or tried in vain, beside places never reached
        (which keeps clear of walls), and where bodies fell. Ways that cost more than `within` count as none, which is
        quick.
        """
        aims = np.linalg.norm(self.centers - goal, axis=1) <= radius
        if not aims.any():
            return Ways(np.full(len(self), np.inf), np.full(len(self), -1))
        starts, ends, moves = self._moves_costs()
        costs = _settle(np.where(aims, 0.0, np.inf), ends, starts, moves, within)
        following = np.full(len(self), -1)
        with np.errstate(invalid="ignore"):  # inf - inf
            best = (costs[starts] > 0) & (costs[ends] + moves <= costs[starts] * (1 + 1e-12))
        best &= np.isfinite(costs[starts])
        following[starts[best]] = ends[best]
        return Ways(costs, following)

    def costs_from(self, node: int) -> np.ndarray:
        """Cost of the best way from a place to every other, in cells `(n,)`; inf where there is none."""
        starts, ends, moves = self._moves_costs()
        return _settle(np.where(np.arange(len(self)) == node, 0.0, np.inf), starts, ends, moves)

    def _moves_costs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every move where it starts, where it ends, and what it costs; inf where it cannot be made any more."""
        edges, walked, failed = self.moves
        starts, ends = edges.T
        entering = 1 + _CLEARANCE * self.open_sides + _FALL * self.fall_rates
        length = np.linalg.norm(self.centers[starts] - self.centers[ends], axis=1) / self.size
        times = np.maximum(walked, _BACKWARDS)
        costs = length * (1 + times**-0.5) * (1 + failed / times) * entering[ends]
        return starts, ends, np.where(failed > _CLOSED * times, np.inf, costs)

    def is_open(self, start: np.ndarray, goal: np.ndarray) -> bool:
        """Whether the straight way from one goal to another leads through reached cells only; landmarks do not tell."""
        if not self.is_grid:
            return True
        way = (goal - start) / self.size
        parts = 1 + int(4 * math.sqrt(way @ way))
        points = start / self.size + np.arange(1, parts + 1)[:, None] * (way / parts)
        return all(tuple(cell) in self._cells for cell in np.floor(points).astype(int).tolist())

    # -- what is stored ------------------------------------------------------------------------------------------------
    def arrays(self) -> dict[str, np.ndarray]:
        """All that it has learned, from which `restored` makes it again."""
        edges, walked, failed = self.moves
        return {
            "cells": np.array(list(self._cells), np.int64).reshape(-1, self.goal_dim),
            "centers": self.centers,
            "visits": self._visits.array,
            "falls": self._falls.array,
            "edges": edges,
            "walked": walked,
            "failed": failed,
        }

    @classmethod
    def restored(cls, size: float, goal_dim: int, arrays: dict[str, np.ndarray]) -> GoalGraph:
        """The graph whose `arrays` these are.

        Raises:
            ValueError: arrays that do not go together.
        """
        if not 0 < size < np.inf:
            raise ValueError(f"a cell must have a length, got {size}")
        graph = cls(size, goal_dim)
        n, m = len(arrays["centers"]), len(arrays["edges"])
        lengths = {"cells": n if graph.is_grid else 0, "edges": m, "walked": m, "failed": m}
        for name, own in graph.arrays().items():
            given, shape = arrays[name], (lengths.get(name, n), *own.shape[1:])
            if given.shape != shape or given.dtype != own.dtype or not ((given > -_MOST) & (given < _MOST)).all():
                raise ValueError(
                    f"{name} must be {shape} {own.dtype}, below {_MOST:g}; got {given.shape} {given.dtype}"
                )
            if name not in ("cells", "centers") and (given < 0).any():
                raise ValueError(f"{name} must not be negative")
        edges = arrays["edges"]
        if (edges >= n).any():
            raise ValueError(f"the edges must be between {n} places, got one to number {edges.max()}")
        for place in (arrays["cells"] + 0.5) * size if graph.is_grid else arrays["centers"]:
            graph._reach(place)
        if len(graph) != n:
            raise ValueError("the cells of the graph are not one for each place")
        for name in ("centers", "visits", "falls", "edges", "walked", "failed"):
            setattr(graph, f"_{name}", Rows(arrays[name]))
        for i, (a, b) in enumerate(edges.tolist()):
            graph._numbers[a, b] = i
        if len(graph._numbers) != m:
            raise ValueError("the graph has two edges between the same places")
        return graph


def _settle(
    costs: np.ndarray, before: np.ndarray, after: np.ndarray, moves: np.ndarray, within: float = np.inf
) -> np.ndarray:
    """Costs `(n,)` with none that a move `before -> after` could lower: value iteration (Bellman-Ford)."""
    while True:
        settled = costs.copy()
        np.minimum.at(costs, after, costs[before] + moves)
        costs[costs > within] = np.inf
        if np.array_equal(settled, costs):
            return costs
