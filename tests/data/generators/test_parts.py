from __future__ import annotations

import functools

import minari
import numpy as np
import pytest

from didi_gym.data.generators.parts import resumable
from didi_gym.data.generators.pointmaze import collect_pointmaze
from didi_gym.data.writing import Episode, flat, parts_folder


def episode_of(start: float, seed: int) -> Episode:
    inside = {"c": np.arange(8.0).reshape(4, 2)}
    observations = {"a": np.full((4, 2), start + seed), "b": np.arange(4, dtype=np.float32), "d": inside}
    infos = {"target": np.ones((4, 1))}
    labels = {"noise": np.float64(0.5), "fell": True, "name": "x"}
    return Episode(observations, np.ones((3, 1), np.float32) * seed, np.zeros(3), bool(seed % 2), seed, labels, infos)


class Counting:
    """A `map` that remembers what it was asked to do, and stops where it is told to."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def __call__(self, function, items):
        for item in items:
            if item == self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(item)
            yield function(item)


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_a_recording_that_was_stopped_goes_on_where_it_was():
    function, items = functools.partial(episode_of, 1.0), [1, 2, 3, 4]
    with pytest.raises(KeyboardInterrupt):
        list(resumable(Counting(stop_at=3), "test/x-v0")(function, items))
    again = Counting()
    episodes = list(resumable(again, "test/x-v0")(function, items))
    assert again.seen == [3, 4]
    for episode, expected in zip(episodes, map(function, items), strict=True):
        assert list(episode.observations) == ["a", "b", "d"]
        found, wanted = flat(episode.observations), flat(expected.observations)
        for key in wanted:
            assert found[key].dtype == wanted[key].dtype
            np.testing.assert_array_equal(found[key], wanted[key])
        np.testing.assert_array_equal(episode.actions, expected.actions)
        np.testing.assert_array_equal(episode.infos["target"], expected.infos["target"])
        assert (episode.terminated, episode.seed, episode.labels) == (
            expected.terminated,
            expected.seed,
            {"noise": 0.5, "fell": True, "name": "x"},
        )


def test_other_work_is_not_taken_for_the_same():
    list(resumable(Counting(), "test/x-v0")(functools.partial(episode_of, 1.0), [1, 2]))
    other = Counting()
    list(resumable(other, "test/x-v0")(functools.partial(episode_of, 2.0), [1, 2]))
    assert other.seen == [1, 2]


def test_an_episode_that_was_cut_short_is_recorded_again_with_those_after_it():
    function, items = functools.partial(episode_of, 1.0), [1, 2, 3]
    list(resumable(Counting(), "test/x-v0")(function, items))
    second = next(parts_folder("test/x-v0").glob("*/1.npz"))
    second.write_bytes(second.read_bytes()[:-40])
    again = Counting()
    assert len(list(resumable(again, "test/x-v0")(function, items))) == 3 and again.seen == [2, 3]


def test_a_function_that_cannot_be_told_apart_is_just_run():
    local = Counting()
    assert len(list(resumable(local, "test/x-v0")(lambda seed: episode_of(0.0, seed), [1]))) == 1


def test_a_data_set_that_is_whole_leaves_no_parts_and_is_compressed(datasets):
    collect_pointmaze("test/maze-v0", steps=900, processes=1, progress=False)
    assert not parts_folder("test/maze-v0").exists()
    assert list(minari.list_local_datasets()) == ["test/maze-v0"]
    import h5py

    with h5py.File(datasets / "test/maze-v0/data/main_data.hdf5") as file:
        assert file["episode_0/actions"].compression == "gzip"
        assert file["episode_0"].attrs["total_steps"] == 600
    assert minari.load_dataset("test/maze-v0")[0].observations["observation"].shape == (601, 4)


def test_parts_of_a_stopped_recording_are_no_data_set():
    list(resumable(Counting(), "test/x-v0")(functools.partial(episode_of, 1.0), [1, 2]))
    assert not minari.list_local_datasets()
