"""A reward-free PointMaze data set: going from place to place along shortest paths, with many changes of mind."""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import numpy as np

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.progress import Report
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.generators.parallel import OrderedMap, ordered_map
from didi_gym.data.generators.parts import resumable
from didi_gym.data.generators.recording import robotics_env
from didi_gym.data.writing import Episode, require_writable, write_dataset

NOISE = 0.3
"""Standard deviation of the Gaussian noise on every action."""
SWITCH_PROBABILITY = 1 / 150
"""Chance per step that a new goal is drawn before the last is reached."""
REACHED = 0.3
"""Distance in cells at which the goal counts as reached and a new one is drawn."""
LOOKAHEAD = 0.4
"""Distance in cells to a waypoint at which the next is headed for: turns are rounded, walls are not touched."""
STIFFNESS, DAMPING = 8.0, 1.75
"""PD gains: action per cell and per cell a second."""
OBSERVATION_KEYS = ("observation",)

Cell = tuple[int, int]
"""Row and column in the maze's map."""


def free_cells(maze_map: Any) -> list[Cell]:
    """All cells of a maze's map that are no wall (1 in the map), row by row."""
    return [(i, j) for i, row in enumerate(maze_map) for j, value in enumerate(row) if value != 1]


def shortest_path(maze_map: Any, start: Cell, goal: Cell, rng: np.random.Generator) -> list[Cell]:
    """A shortest path of cells from `start` to `goal`, both included; a random one of several.

    Raises:
        ValueError: there is none.
    """
    free = set(free_cells(maze_map))
    came_from: dict[Cell, Cell | None] = {goal: None}
    queue = deque([goal])
    while queue and start not in came_from:
        cell = queue.popleft()
        neighbours = [(cell[0] + di, cell[1] + dj) for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        for k in rng.permutation(4):
            if neighbours[k] in free and neighbours[k] not in came_from:
                came_from[neighbours[k]] = cell
                queue.append(neighbours[k])
    if start not in came_from:
        raise ValueError(f"no way in the maze from cell {start} to cell {goal}")
    path, following = [start], came_from[start]
    while following is not None:
        path.append(following)
        following = came_from[following]
    return path


def pd_action(position: np.ndarray, velocity: np.ndarray, waypoint: np.ndarray) -> np.ndarray:
    """The action (2,) in [-1, 1] that drives a point mass to a waypoint; all in the environment's units."""
    return np.clip(STIFFNESS * (waypoint - position) - DAMPING * velocity, -1, 1)


def pointmaze_layout() -> Layout:
    """What the four numbers of a PointMaze state hold: x, y and their velocities."""
    everything = (0, 1, 2, 3)
    return Layout(
        state_dim=4,
        policy_inputs=everything,
        features=(0, 1),
        sources=(ObservationSource(4, everything, keys=OBSERVATION_KEYS),),
    )


def collect_pointmaze(
    dataset_id: str = "didi/pointmaze-medium-v0",
    *,
    env_id: str = "PointMaze_Medium-v3",
    detours: float = 0.0,
    steps: int = 200_000,
    seed: int = 0,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Walk a point mass through a maze to random places, and write what was seen as a Minari data set.

    Goals are drawn anew when reached and, at random, before, so that where a stretch starts does not tell where it
    leads. Observations are the environment's own Dict; its `desired_goal` and rewards belong to the environment's
    goal, which the behaviour ignores. The info `target` (T + 1, 2) holds the place that is headed for.
    The same arguments give the same data, whatever the number of processes.

    Args:
        detours: share of goals that are approached by way of another random place: there is more than one route.
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        FileExistsError: the data set exists and `overwrite` is not set.
        ImportError: gymnasium-robotics is missing.
    """
    spec = _env(env_id).spec
    require_writable(dataset_id, overwrite=overwrite)
    with progress_of("wandering", steps, progress) as report, ordered_map(processes) as run:
        episodes = wander(env_id, seed, detours=detours, steps=steps, run=resumable(run, dataset_id), report=report)
    return write_dataset(
        dataset_id,
        episodes,
        env_spec=spec,
        layout=pointmaze_layout(),
        keys=OBSERVATION_KEYS,
        algorithm_name="shortest paths with a PD controller, random goals",
        description=f"{env_id}: walking to random places that change at random; collected without regard to rewards.",
        requirements=["gymnasium-robotics"],
        overwrite=overwrite,
    )


def wander(
    env_id: str,
    seed: int,
    *,
    steps: int,
    detours: float = 0.0,
    run: OrderedMap = map,
    report: Report = lambda done, metrics: None,
) -> list[Episode]:
    """Episodes of the environment's own length, `steps` in all, each from its own seed."""
    length = _env(env_id).spec.max_episode_steps
    count = -(-steps // length)
    seeds = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(count)]
    episodes, total = [], 0
    for episode in run(functools.partial(wander_episode, env_id, detours=detours), seeds):
        episodes.append(episode.head(steps - total))
        total += len(episodes[-1])
        report(total, {})
    return episodes


def wander_episode(env_id: str, seed: int, detours: float = 0.0) -> Episode:
    """One episode from a random cell, until the environment's time limit."""
    env, rng = _env(env_id), np.random.default_rng(seed)
    maze = env.unwrapped.maze
    cells, unit = free_cells(maze.maze_map), maze.maze_size_scaling

    def centre(cell: Cell) -> np.ndarray:
        return np.array(maze.cell_rowcol_to_xy(np.array(cell)))

    start = cells[rng.integers(len(cells))]
    observation, _ = env.reset(seed=seed, options={"reset_cell": np.array(start)})
    recorded, actions, rewards, targets = [observation], [], [], []
    path: list[Cell] = []
    truncated, switches = False, -1
    while not truncated:
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        arrived = len(path) == 1 and np.linalg.norm(centre(path[0]) - position) < REACHED * unit
        if not path or arrived or rng.random() < SWITCH_PROBABILITY:
            row, column = maze.cell_xy_to_rowcol(position)
            here = (int(row), int(column))
            goal, past = cells[rng.integers(len(cells))], None
            if detours and rng.random() < detours:
                past = cells[rng.integers(len(cells))]
            path = shortest_path(maze.maze_map, here, past or goal, rng)
            path += [] if past is None else shortest_path(maze.maze_map, past, goal, rng)[1:]
            switches += 1
        while len(path) > 1 and np.linalg.norm(centre(path[0]) - position) < LOOKAHEAD * unit:
            path.pop(0)
        action = pd_action(position / unit, velocity / unit, centre(path[0]) / unit)
        action = np.clip(action + NOISE * rng.standard_normal(2), -1, 1).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        recorded.append(observation)
        actions.append(action)
        rewards.append(reward)
        targets.append(centre(path[-1]))
        if terminated:  # cannot be: the environment is made with a continuing task
            raise RuntimeError(f"{env_id} ended an episode although its task is a continuing one")
    observations = {key: np.array([o[key] for o in recorded]) for key in observation}
    labels = {"start_row": start[0], "start_column": start[1], "switches": switches}
    infos = {"target": np.array([*targets, targets[-1]])}
    return Episode(observations, np.array(actions), np.array(rewards), False, seed, labels, infos)


@functools.cache
def _env(env_id: str) -> Any:
    return robotics_env(env_id, continuing_task=True, reset_target=False)
