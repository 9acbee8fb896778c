"""The mazes of the benchmark, and their agents' settings. Every environment is the unmodified one of its package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym

import didi_gym
from didi_gym.wrappers.make import make_low_level

# A spiral with two dead ends that is not in gymnasium-robotics; 1 is a wall.
OWN = [
    [1, 1, 1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 0, 0, 1],
    [1, 0, 1, 1, 1, 1, 1, 0, 1],
    [1, 0, 1, 0, 0, 0, 1, 0, 1],
    [1, 0, 1, 0, 1, 0, 0, 0, 1],
    [1, 0, 1, 0, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1, 1, 1],
]
DOOR = (2, 1)  # of the maze below: closed, it leaves one way where there were two
# Two ways from the lower left to the upper right: the left one has the door.
TWO_WAYS = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1],
]


@dataclass(frozen=True)
class Maze:
    """A task, and the low-level steps of training after which agents are evaluated."""

    env_id: str
    budgets: tuple[int, ...]
    policy: str = "ant-directions"
    maze_map: Any = None
    limit: int | None = None
    durations: tuple[int, ...] = (4, 8)

    def make(self, **kwargs: Any) -> gym.Env:
        """The environment without skills; an episode ends where the goal is reached."""
        settings = {"continuing_task": False, **kwargs}
        if self.maze_map is not None:
            settings |= {"maze_map": self.maze_map, "max_episode_steps": self.limit}
        return make_low_level(self.env_id, **settings)

    def make_skills(self, policy: Any = None, durations: Any = None, **settings: Any) -> gym.Env:
        """The environment whose actions are skills, planned anew before every step."""
        settings = {"skill_duration": durations or self.durations, "replan_every": 1, "device": "cpu", **settings}
        return didi_gym.SkillActionWrapper(self.make(), policy or self.policy, **settings)


MAZES = {
    "Open": Maze("AntMaze_Open-v5", (10_000, 20_000)),
    "UMaze": Maze("AntMaze_UMaze-v5", (10_000, 20_000)),
    "Medium": Maze("AntMaze_Medium-v5", (25_000, 50_000)),
    "Large": Maze("AntMaze_Large-v5", (50_000, 100_000)),
    "Own": Maze("AntMaze_UMaze-v5", (25_000, 50_000, 100_000), maze_map=OWN, limit=1_000),
    "PointMaze_Large": Maze("PointMaze_Large-v3", (10_000, 30_000), policy="pointmaze-medium"),
    "Two_Ways": Maze("AntMaze_UMaze-v5", (20_000,), maze_map=TWO_WAYS, limit=700),
}


def closed(maze: Maze, cell: tuple[int, int]) -> Maze:
    """The same maze with a wall in a cell."""
    rows = [list(row) for row in maze.maze_map]
    rows[cell[0]][cell[1]] = 1
    return Maze(maze.env_id, maze.budgets, maze.policy, rows, maze.limit, maze.durations)
