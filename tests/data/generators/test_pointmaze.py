import builtins
import itertools
from typing import Any

import numpy as np
import pytest

from didi_gym.data.generators import pointmaze
from didi_gym.data.generators.parallel import ordered_map
from didi_gym.data.generators.pointmaze import collect_pointmaze, free_cells, shortest_path, wander

MAZE = [
    [1, 1, 1, 1, 1],
    [1, 0, "r", 0, 1],
    [1, 0, 1, "g", 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]
ENV_ID = "PointMaze_Medium-v3"


def test_free_cells_are_all_but_the_walls() -> None:
    assert free_cells(MAZE) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (3, 3)]


def test_a_shortest_path_steps_through_neighbouring_free_cells() -> None:
    rng = np.random.default_rng(0)
    assert shortest_path(MAZE, (1, 2), (3, 1), rng) == [(1, 2), (1, 1), (2, 1), (3, 1)]
    assert shortest_path(MAZE, (1, 2), (1, 2), rng) == [(1, 2)]
    for start in free_cells(MAZE):
        for goal in free_cells(MAZE):
            path = shortest_path(MAZE, start, goal, rng)
            assert (path[0], path[-1]) == (start, goal) and set(path) <= set(free_cells(MAZE))
            assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in itertools.pairwise(path))


def test_of_equally_short_paths_each_is_taken() -> None:
    rng = np.random.default_rng(0)
    second_cells = {shortest_path(MAZE, (1, 1), (3, 3), rng)[1] for _ in range(30)}
    assert second_cells == {(1, 2), (2, 1)}


def test_a_place_behind_walls_is_an_error() -> None:
    with pytest.raises(ValueError, match="no way"):
        shortest_path([[0, 1, 0]], (0, 0), (0, 2), np.random.default_rng(0))


def test_without_gymnasium_robotics_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_robotics(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gymnasium_robotics":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_robotics)
    with pytest.raises(ImportError, match=r"didi-gym\[envs\]"):
        pointmaze._env.__wrapped__(ENV_ID)


def test_a_collected_data_set_is_complete_finite_and_within_bounds() -> None:
    pytest.importorskip("gymnasium_robotics")
    dataset = collect_pointmaze("didi/maze-test-v0", steps=800, processes=1, progress=False)
    assert dataset.total_steps == 800 and dataset.total_episodes == 2
    for episode, labels in zip(dataset.iterate_episodes(), dataset.storage.get_episode_metadata(range(2)), strict=True):
        assert set(episode.observations) == {"achieved_goal", "desired_goal", "observation"}
        assert episode.observations["observation"].shape == (len(episode.actions) + 1, 4)
        assert all(np.isfinite(array).all() for array in episode.observations.values())
        assert np.abs(episode.actions).max() <= 1 and set(np.unique(episode.rewards)) <= {0.0, 1.0}
        assert episode.infos["target"].shape == (len(episode.actions) + 1, 2)
        assert {"start_row", "start_column", "switches"} <= set(labels)
    env = dataset.recover_environment()
    assert env.spec.id == ENV_ID and env.spec.kwargs["continuing_task"]


def test_the_same_seed_collects_the_same_data_in_one_process_or_two() -> None:
    pytest.importorskip("gymnasium_robotics")
    alone = wander(ENV_ID, 5, steps=1300)
    with ordered_map(2) as run:
        together = wander(ENV_ID, 5, steps=1300, run=run)
    other = wander(ENV_ID, 6, steps=100)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.observations["observation"], two.observations["observation"])
    assert not np.array_equal(alone[0].actions[:100], other[0].actions)
