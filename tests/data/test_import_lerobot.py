"""LeRobot's parquet files become data sets; these tests need pyarrow."""

import json

import minari
import numpy as np
import pytest

from didi_gym.data import DatasetError, TrajectoryDataset, import_file
from didi_gym.data.importers import lerobot, reading

pa = pytest.importorskip("pyarrow", reason="parquet files need pyarrow: pip install 'didi-gym[lerobot]'")
pq = pytest.importorskip("pyarrow.parquet")


def frames(lengths=(5, 3), first=0, dtype=np.float32):
    """Columns as `LeRobotDataset` stores them, of consecutive episodes."""
    rng, n = np.random.default_rng(first), sum(lengths)
    return {
        "observation.state": rng.normal(size=(n, 4)).astype(dtype),
        "observation.environment_state": rng.normal(size=(n, 2)).astype(dtype),
        "action": rng.uniform(-1, 1, (n, 2)).astype(dtype),
        "next.reward": rng.normal(size=n).astype(np.float32),
        "next.done": np.concatenate([np.arange(k) == k - 1 for k in lengths]),
        "timestamp": np.concatenate([np.arange(k) / 10 for k in lengths]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(k) for k in lengths]),
        "episode_index": np.concatenate([np.full(k, first + i) for i, k in enumerate(lengths)]),
        "index": np.arange(n),
        "task_index": np.zeros(n, np.int64),
    }


def column(array):
    if isinstance(array, pa.Array) or array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def write(path, columns, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: column(array) for name, array in columns.items() if array is not None})
    pq.write_table(table, path, **how)
    return path


def folder(path, files, **info):
    """The folder of a data set of version 2 or 3, by the names of its files."""
    for name, columns in files.items():
        write(path / "data" / "chunk-000" / name, columns)
    features = {
        "observation.state": {"dtype": "float32", "shape": [4]},
        "observation.images.top": {"dtype": "video", "shape": [480, 640, 3]},
    }
    (path / "meta").mkdir()
    (path / "meta" / "info.json").write_text(
        json.dumps({"codebase_version": "v3.0", "fps": 10, "total_episodes": 2, "features": features, **info})
    )
    return path


def stored(dataset):
    return list(minari.load_dataset(dataset.spec.dataset_id).iterate_episodes())


def same(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("version", [2, 3])
def test_a_folder_of_either_version_keeps_every_number(tmp_path, dtype, version):
    both = frames(dtype=dtype)
    files = {"file-000.parquet": both}
    if version == 2:
        files = {
            f"episode_{i:06d}.parquet": {name: array[a:b] for name, array in both.items()}
            for i, (a, b) in enumerate([(0, 5), (5, 8)])
        }
    dataset = import_file(folder(tmp_path / "arm", files), progress=False)
    assert dataset.spec.dataset_id == "imported/arm-v0"
    for episode, first, end in zip(stored(dataset), (0, 5), (5, 8), strict=True):
        same(episode.observations, both["observation.state"][first:end])
        same(episode.actions, both["action"][first : end - 1])
        same(episode.rewards, both["next.reward"][first : end - 1])
        assert episode.truncations[-1] and not episode.terminations.any()
    loaded = TrajectoryDataset.from_minari(dataset.spec.dataset_id)
    inside = np.flatnonzero(~both["next.done"])
    same(loaded.observations, both["observation.state"][inside].astype(np.float32))
    same(loaded.actions, both["action"][inside].astype(np.float32))
    notes = dataset.storage.metadata["description"]
    assert "1/10 s" in notes and "2 actions were left out" in notes and "spaces are made from the data" in notes


def test_columns_become_keys_and_an_episode_may_go_on_in_the_next_row_group_or_file(tmp_path):
    both = frames((9, 4))
    parts = {f"file-{i:03d}.parquet": {n: a[7 * i : 7 * i + 7] for n, a in both.items()} for i in range(2)}
    keys = ["observation.environment_state", "observation.state"]
    first, second = stored(import_file(folder(tmp_path / "x", parts), keys=keys, progress=False))
    for key in keys:
        same(first.observations[key], both[key][:9])
        same(second.observations[key], both[key][9:])
    path = write(tmp_path / "y.parquet", both, row_group_size=3)
    assert [len(episode) for episode in lerobot.read(path, progress=False).episodes] == [8, 3]
    name = import_file(path, keys=keys, progress=False).spec.dataset_id
    same(TrajectoryDataset.from_minari(name).observations[:, :2], both[keys[0]][[*range(8), *range(9, 12)]])


def test_lists_of_any_length_that_are_of_one_length_are_rows_and_single_numbers_are_columns(tmp_path):
    columns = frames()
    expected = columns["observation.state"]
    columns["observation.state"] = pa.array(expected.tolist(), pa.list_(pa.float32()))
    columns["action"] = columns["action"][:, 0]
    episode = lerobot.read(write(tmp_path / "x.parquet", columns), progress=False).episodes[1]
    same(episode.observations["observation.state"], expected[5:])
    assert episode.actions.shape == (2, 1)


def test_episodes_that_are_not_there_are_said(tmp_path):
    dataset = import_file(folder(tmp_path / "x", {"file-000.parquet": frames()}, total_episodes=50), progress=False)
    assert "says that there are 50 episodes, and the files here hold 2" in dataset.storage.metadata["description"]


@pytest.mark.parametrize(
    ("change", "keys", "words"),
    [
        ({"action": None}, (), "there is no column action, only observation.state"),
        ({"observation.state": None}, (), "no column observation.state, .*--keys among observation.environment_state"),
        ({"frame_index": None}, (), "there is no column frame_index"),
        ({"frame_index": np.arange(8)}, (), "episode 1: expected frame 0 in row 0 .*got frame 5; frames are missing"),
        ({"episode_index": np.array([0, 0, 0, 1, 1, 0, 0, 0])}, (), "frames are missing|there twice"),
        ({"action": pa.array([[0.0]] * 7 + [[0.0, 1.0]])}, (), "rows of one length in action"),
        ({"action": pa.array([[0.0]] * 7 + [None])}, (), "action is empty in 1 frames"),
        ({"action": pa.array([[0.0]] * 7 + [[None]])}, (), "1 numbers of action are empty"),
        ({"action": pa.array(["left"] * 8)}, (), "action holds string, expected a number or a row"),
        ({"image": pa.array([{"bytes": b"png"}] * 8)}, ("image",), "image holds images.*observation.state"),
        ({"a/b": np.zeros(8)}, ("a/b",), "without '/'"),
    ],
)
def test_a_parquet_file_that_lacks_something_is_refused_with_what(tmp_path, change, keys, words):
    with pytest.raises(DatasetError, match=words):
        import_file(write(tmp_path / "x.parquet", {**frames(), **change}), keys=keys, progress=False)


def test_a_number_that_is_none_is_refused_by_episode_and_column(tmp_path):
    columns = frames()
    columns["observation.state"][6, 3] = np.nan
    with pytest.raises(DatasetError, match=r"episode 1: observation.state\[1, 3\] is nan"):
        import_file(write(tmp_path / "x.parquet", columns), progress=False)


def test_a_video_is_refused_by_name(tmp_path):
    path = folder(tmp_path / "x", {"file-000.parquet": frames()})
    with pytest.raises(DatasetError, match=r"observation.images.top holds images"):
        import_file(path, keys=["observation.images.top"], progress=False)


def test_folders_and_files_that_are_none_of_lerobots_are_refused(tmp_path):
    (tmp_path / "x" / "data").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"has no data/chunk-000/\*.parquet"):
        import_file(tmp_path / "x")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 or not" * 9)
    with pytest.raises(DatasetError, match="is no parquet file"):
        import_file(tmp_path / "y.parquet", progress=False)
    path = folder(tmp_path / "z", {"file-000.parquet": frames()})
    (path / "meta" / "info.json").write_text("[]")
    with pytest.raises(DatasetError, match="expected an object with features"):
        import_file(path)


def test_columns_that_would_unpack_to_more_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 1 << 12)
    columns = {**frames((2000,)), "action": np.zeros((2000, 2))}
    with pytest.raises(DatasetError, match="bytes, expected at most 4,096"):
        import_file(write(tmp_path / "x.parquet", columns), progress=False)


def test_an_episode_that_comes_twice_is_refused(tmp_path):
    files = {"file-000.parquet": frames((3,)), "file-001.parquet": frames((3,), 1), "file-002.parquet": frames((3,))}
    with pytest.raises(DatasetError, match="episode 0 is there twice"):
        import_file(folder(tmp_path / "x", files), progress=False)
