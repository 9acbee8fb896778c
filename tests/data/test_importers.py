"""Files of D4RL, OGBench and robomimic become data sets: every number survives, and no step leads between episodes."""

import json
import sys
import zipfile

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

from didi_gym.cli import main as cli
from didi_gym.core.files import SafeFileError
from didi_gym.data import DatasetError, TrajectoryDataset, import_file
from didi_gym.data.importers import d4rl, ogbench, reading, robomimic
from didi_gym.data.importers.convert import IMPORT_KEY, guess_format
from didi_gym.data.importers.fitting import fit
from didi_gym.data.importers.rows import Collector, Recording

ENV = "Pendulum-v1"  # 3 numbers of state, 1 of action in [-2, 2]
LENGTHS = (4, 1, 3)  # rows of the episodes


def rows(lengths=LENGTHS, width=3, dtype=np.float32, seed=0):
    """Columns of a file with an observation and an action in each row."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    return {
        "observations": rng.normal(size=(n, width)).astype(dtype),
        "actions": rng.uniform(-2, 2, (n, 1)).astype(dtype),
        "rewards": rng.normal(size=n).astype(dtype),
    }


def last_rows(lengths=LENGTHS):
    flagged = np.zeros(sum(lengths), bool)
    flagged[np.cumsum(lengths) - 1] = True
    return flagged


def d4rl_columns(lengths=LENGTHS, *, after=True, dtype=np.float32, **more):
    """A D4RL file in which the second episode ended for good and the others were cut."""
    columns, last = rows(lengths, dtype=dtype), last_rows(lengths)
    columns["terminals"] = np.zeros(len(last), bool)
    columns["terminals"][sum(lengths[:2]) - 1] = True
    columns["timeouts"] = last & ~columns["terminals"]
    if after:
        columns["next_observations"] = np.roll(columns["observations"], -1, axis=0)
        columns["next_observations"][last] = np.random.default_rng(1).normal(size=(len(lengths), 3))
    return {**columns, **more}


def write_hdf5(path, arrays, attributes=()):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
        for name, key, value in attributes:
            file[name].attrs[key] = value
    return path


def write_npz(path, **arrays):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def demos(lengths=(4, 3), *, after=True, dtype=np.float64):
    """Entries of a robomimic file: two parts of the observation, and an image."""
    arrays = {}
    for i, n in enumerate(lengths):
        rng, here = np.random.default_rng(i), f"data/demo_{i}"
        whole = {"object": rng.normal(size=(n + 1, 2)).astype(dtype), "robot0_eef_pos": rng.normal(size=(n + 1, 3))}
        for key, array in whole.items():
            arrays[f"{here}/obs/{key}"] = array[:-1]
            if after:
                arrays[f"{here}/next_obs/{key}"] = array[1:]
        arrays[f"{here}/obs/agentview_image"] = np.zeros((n, 4, 4, 3), np.uint8)
        arrays[f"{here}/actions"] = rng.uniform(-1, 1, (n, 2))
        arrays[f"{here}/rewards"] = rng.normal(size=n)
        arrays[f"{here}/dones"] = np.ones(n, np.int64)
        arrays[f"{here}/states"] = rng.normal(size=(n, 9))
    arrays["mask/train"] = np.array([f"demo_{len(lengths) - 1}"], dtype="S")
    return arrays


def stored(dataset):
    return list(minari.load_dataset(dataset.spec.dataset_id).iterate_episodes())


def same(got, expected):
    """The same numbers to the last bit, in the same type."""
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def notes(dataset):
    return " ".join(json.loads(dataset.storage.metadata[IMPORT_KEY])["notes"])


# D4RL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_d4rl_file_with_next_observations_keeps_every_number_and_every_step(tmp_path, dtype):
    columns = d4rl_columns(dtype=dtype)
    dataset = import_file(write_hdf5(tmp_path / "x.hdf5", columns), env=ENV, progress=False)
    assert (dataset.spec.dataset_id, dataset.total_steps) == ("imported/x-v0", sum(LENGTHS))
    for episode, first, end in zip(stored(dataset), (0, 4, 5), (4, 5, 8), strict=True):
        same(episode.observations[:-1], columns["observations"][first:end])
        same(episode.observations[-1], columns["next_observations"][end - 1])
        same(episode.actions, columns["actions"][first:end])
        same(episode.rewards, columns["rewards"][first:end])
        assert (bool(episode.terminations[-1]), bool(episode.truncations[-1])) == (first == 4, first != 4)
    loaded = TrajectoryDataset.from_minari(dataset.spec.dataset_id)
    same(loaded.observations, columns["observations"].astype(np.float32))
    same(loaded.actions, columns["actions"].astype(np.float32))
    assert loaded.lengths.tolist() == list(LENGTHS) and loaded.env_id == ENV
    assert "left out" not in notes(dataset)


def test_without_next_observations_the_last_action_of_an_episode_is_left_out_and_none_crosses(tmp_path):
    columns = d4rl_columns(after=False)
    dataset = import_file(write_hdf5(tmp_path / "my swing-v2.hdf5", columns), "d4rl", ENV, progress=False)
    assert dataset.spec.dataset_id == "imported/my-swing-v2"
    first, last = stored(dataset)
    same(first.observations, columns["observations"][:4])
    same(first.actions, columns["actions"][:3])
    same(last.observations, columns["observations"][5:])
    assert first.truncations[-1] and last.truncations[-1]
    assert "2 actions were left out, the last one of each episode" in notes(dataset)
    assert "1 episodes without a step" in notes(dataset)


def test_rows_that_do_not_follow_end_an_episode_though_nothing_is_flagged(tmp_path):
    columns = d4rl_columns((20, 20), timeouts=None, terminals=np.zeros(40))
    recording = d4rl.read(write_hdf5(tmp_path / "x.hdf5", columns), progress=False)
    assert [len(episode) for episode in recording.episodes] == [20, 20]
    assert "no timeouts" in recording.notes[0]
    columns["timeouts"] = np.zeros(40)
    recording = d4rl.read(write_hdf5(tmp_path / "y.hdf5", columns), progress=False)
    assert [len(episode) for episode in recording.episodes] == [20, 20] and "split there" in " ".join(recording.notes)


def test_a_stated_time_limit_cuts_episodes_from_their_own_start(tmp_path):
    terminals = np.zeros(11)
    terminals[2] = 1
    path = write_hdf5(tmp_path / "x.hdf5", d4rl_columns((11, 0, 0), after=False, timeouts=None, terminals=terminals))
    recording = d4rl.read(path, episode_steps=4, progress=False)
    assert [len(episode) + 1 for episode in recording.episodes] == [3, 4, 4]
    assert "after 4 steps" in recording.notes[0]


def test_ends_that_nothing_tells_are_refused(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", d4rl_columns(after=False, timeouts=None))
    with pytest.raises(DatasetError, match=r"neither timeouts nor next_observations.*--episode-steps"):
        import_file(path, progress=False)
    with pytest.raises(DatasetError, match=r"has timeouts.*leave --episode-steps out"):
        import_file(write_hdf5(tmp_path / "y.hdf5", d4rl_columns()), episode_steps=4, progress=False)


def test_single_transitions_are_refused(tmp_path):
    columns = d4rl_columns((12,) * 2, next_observations=np.random.default_rng(3).normal(size=(24, 3)))
    with pytest.raises(DatasetError, match=r"22 of 22 rows do not lead to the next row.*single transitions"):
        import_file(write_hdf5(tmp_path / "x.hdf5", columns), progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"terminals": None}, "as a D4RL file has, but there is no terminals, only actions"),
        ({"actions": np.zeros((7, 1))}, "as many rows in each array, got .*'actions': 7"),
        ({"observations": np.zeros((8, 4, 4, 3), np.uint8)}, r"observations has the shape \(8, 4, 4, 3\), as images"),
        ({"terminals": np.full(8, 0.5)}, "expected 0 or 1 in each row of terminals"),
        ({"next_observations": np.zeros((8, 2))}, r"next_observations of the shape \(8, 3\), got \(8, 2\)"),
        ({"actions": np.array(["a"] * 8, h5py.string_dtype())}, "actions holds objects or text"),
        ({"observations": np.zeros(())}, "observations is a single value"),
    ],
)
def test_a_d4rl_file_that_lacks_something_is_refused_with_what(tmp_path, change, words):
    with pytest.raises(DatasetError, match=words):
        import_file(write_hdf5(tmp_path / "x.hdf5", d4rl_columns(**change)), "d4rl", ENV, progress=False)


def test_a_number_that_is_none_is_refused_by_episode_and_column(tmp_path):
    columns = d4rl_columns()
    columns["observations"][6, 2] = columns["next_observations"][5, 2] = np.nan
    with pytest.raises(DatasetError, match=r"episode \d: observations\[\d, 2\] is nan"):
        import_file(write_hdf5(tmp_path / "x.hdf5", columns), progress=False)


# OGBench


def test_an_ogbench_file_keeps_every_number_and_its_last_states(tmp_path):
    lengths = (4, 3)
    columns, ends = rows(lengths, dtype=np.float64), last_rows(lengths)
    path = write_npz(tmp_path / "maze.npz", **columns | {"rewards": None}, terminals=ends, qpos=np.zeros((7, 2)))
    dataset = import_file(path, env=ENV, progress=False)
    for episode, first, end in zip(stored(dataset), (0, 4), (4, 7), strict=True):
        same(episode.observations, columns["observations"][first:end])
        same(episode.actions, columns["actions"][first : end - 1])
        assert not episode.rewards.any() and episode.truncations[-1]
    loaded = TrajectoryDataset.from_minari(dataset.spec.dataset_id)
    inside = np.flatnonzero(~ends)
    same(loaded.observations, columns["observations"][inside].astype(np.float32))
    same(loaded.actions, columns["actions"][inside].astype(np.float32))
    assert "2 actions were left out" in notes(dataset) and "taken to be ogbench" in notes(dataset)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_out_of_an_npz_as_numpy_reads_them(tmp_path, compressed):
    columns = {**rows((9,)), "terminals": last_rows((9,)), "by_column": np.asfortranarray(rows((9,))["observations"])}
    path = tmp_path / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, **columns)
    with reading.open_npz(path) as file:
        found = reading.read_columns(file, file.names(), progress=False)
    for name, array in columns.items():
        same(found[name], array)


def test_the_compact_form_of_ogbench_flags_two_rows_and_valids_tell_the_last(tmp_path):
    columns, ends = rows((4, 3)), last_rows((4, 3))
    twice = ends | np.roll(ends, -1)
    path = write_npz(tmp_path / "x.npz", **columns, terminals=twice.astype(np.float32), valids=1.0 - ends)
    assert [len(episode) for episode in ogbench.read(path, progress=False).episodes] == [3, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"terminals": None}, "as an OGBench file has, but there is no terminals"),
        ({"terminals": np.zeros(8)}, "terminals flags no row as the last"),
        ({"next_observations": np.zeros((8, 3))}, "which OGBench's files do not have"),
        ({"observations": np.zeros((8, 4, 4, 3), np.uint8)}, "as images have"),
        ({"actions": np.zeros((5, 1))}, "as many rows in each array"),
        ({"actions": np.array([{}] * 8, object)}, "actions holds objects or text"),
    ],
)
def test_an_ogbench_file_that_lacks_something_is_refused_with_what(tmp_path, change, words):
    path = write_npz(tmp_path / "x.npz", **{**rows(), "terminals": last_rows(), **change})
    with pytest.raises(DatasetError, match=words):
        import_file(path, progress=False)


# robomimic


def test_a_robomimic_file_keeps_every_number_under_its_keys(tmp_path):
    arrays = demos()
    path = write_hdf5(tmp_path / "low_dim.hdf5", arrays, [("data/demo_0", "num_samples", 4)])
    dataset = import_file(path, progress=False)
    for i, episode in enumerate(stored(dataset)):
        assert set(episode.observations) == {"object", "robot0_eef_pos"}
        for key, array in episode.observations.items():
            same(array[:-1], arrays[f"data/demo_{i}/obs/{key}"])
            same(array[1:], arrays[f"data/demo_{i}/next_obs/{key}"])
        same(episode.actions, arrays[f"data/demo_{i}/actions"])
        same(episode.rewards, arrays[f"data/demo_{i}/rewards"])
    name = dataset.spec.dataset_id
    both = np.concatenate(
        [np.hstack([arrays[f"data/demo_{i}/obs/{key}"] for key in ("object", "robot0_eef_pos")]) for i in (0, 1)]
    )
    same(TrajectoryDataset.from_minari(name).observations, both.astype(np.float32))
    same(TrajectoryDataset.from_minari(name, keys=["robot0_eef_pos"]).observations, both[:, 2:].astype(np.float32))
    assert "Images are not read: agentview_image" in notes(dataset) and "No environment was named" in notes(dataset)


def test_one_key_becomes_a_flat_observation_and_a_mask_chooses_demonstrations(tmp_path):
    arrays = demos(after=False)
    path = write_hdf5(tmp_path / "x.hdf5", arrays)
    dataset = import_file(path, keys=["object"], mask="train", progress=False)
    (episode,) = stored(dataset)
    same(episode.observations, arrays["data/demo_1/obs/object"])
    same(episode.actions, arrays["data/demo_1/actions"][:-1])
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float64)


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", demos(range(2, 14)))
    assert [len(episode) for episode in robomimic.read(path, progress=False).episodes] == list(range(2, 14))


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({}, {"keys": ["agentview_image"]}, "agentview_image holds images.*among object, robot0_eef_pos"),
        ({}, {"keys": ["gripper"]}, "obs has no 'gripper'; choose --keys among object"),
        ({}, {"keys": ["object", "object"]}, "each of --keys once, got object"),
        ({}, {"mask": "valid"}, "--mask to name an entry .* got 'valid'; it has train"),
        ({"mask/train": np.array(["demo_7"], "S")}, {"mask": "train"}, "lists demo_7, which is not among"),
        ({"mask/train": np.array(["demo_1"], h5py.string_dtype())}, {"mask": "train"}, "as bytes of fixed length"),
        ({"mask/train": h5py.SoftLink("/data/demo_0/actions")}, {"mask": "train"}, "mask/train is a link"),
        ({"data/demo_1/actions": None}, {}, "data/demo_1/actions is missing"),
        ({"data/demo_1/actions": np.zeros((9, 2))}, {}, "expected 9 rows"),
        ({"data/demo_1/next_obs/object": np.zeros((9, 2))}, {}, "expected 3 rows in data/demo_1/next_obs/object"),
        ({"data/demo_1/rewards": np.zeros(9)}, {}, "episode demo_1: expected 3 rows, .* got {'rewards': 9}"),
        ({"data/demo_1/obs/object": None}, {}, "data/demo_1/obs has no object, which other demonstrations have"),
        ({"data/demo_1/actions": np.zeros((3, 5))}, {}, "episode demo_1: actions has 5 numbers, in earlier episodes 2"),
        ({"data/demo_1/obs/object": np.full((3, 2), np.nan)}, {}, r"episode demo_1: object\[0, 0\] is nan"),
    ],
)
def test_a_robomimic_file_that_lacks_something_is_refused_with_what(tmp_path, change, settings, words):
    with pytest.raises(DatasetError, match=words):
        import_file(write_hdf5(tmp_path / "x.hdf5", {**demos(), **change}), progress=False, **settings)


def test_demonstrations_of_states_only_or_of_images_only_are_refused(tmp_path):
    states = {name: array for name, array in demos().items() if "obs/" not in name}
    with pytest.raises(DatasetError, match="data/demo_0 has no obs"):
        import_file(write_hdf5(tmp_path / "x.hdf5", states), progress=False)
    images = {name: array for name, array in demos().items() if "obs/" not in name or "image" in name}
    with pytest.raises(DatasetError, match="images only"):
        import_file(write_hdf5(tmp_path / "y.hdf5", images), progress=False)


def test_a_number_of_samples_that_is_wrong_is_refused(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", demos(), [("data/demo_1", "num_samples", 5)])
    with pytest.raises(DatasetError, match=r"says that it has 5 samples .num_samples., got 3"):
        import_file(path, progress=False)


# Formats, and files of strangers


def test_the_format_is_guessed_where_the_file_shows_it_and_another_one_is_refused(tmp_path):
    assert guess_format(write_hdf5(tmp_path / "a.hdf5", d4rl_columns())) == "d4rl"
    assert guess_format(write_hdf5(tmp_path / "b.h5", demos())) == "robomimic"
    assert guess_format(write_npz(tmp_path / "c.npz", **rows())) == "ogbench"
    assert guess_format(tmp_path / "d.parquet") == "lerobot"
    assert guess_format(write_hdf5(tmp_path / "e.hdf5", {**d4rl_columns(), **demos()})) is None
    with pytest.raises(DatasetError, match="looks like robomimic, not d4rl; pass --format robomimic"):
        import_file(tmp_path / "b.h5", "d4rl")
    with pytest.raises(DatasetError, match=r"does not show its format.*--format d4rl"):
        import_file(tmp_path / "e.hdf5")
    with pytest.raises(DatasetError, match=r"expected a format among d4rl, .* got 'rlds'"):
        import_file(tmp_path / "a.hdf5", "rlds")
    with pytest.raises(DatasetError, match="there is no file or folder"):
        import_file(tmp_path / "nowhere.hdf5")
    with pytest.raises(DatasetError, match="--mask is for robomimic files"):
        import_file(tmp_path / "a.hdf5", mask="train")


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    for name, words in (("x.hdf5", "is no HDF5 file"), ("x.npz", "is no NPZ file")):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 9)
        with pytest.raises(DatasetError, match=words):
            import_file(tmp_path / name)
    (tmp_path / "folder.hdf5").mkdir()
    with pytest.raises(SafeFileError, match="is a folder"):
        import_file(tmp_path / "folder.hdf5")


def test_links_and_arrays_in_other_files_are_not_followed(tmp_path):
    write_hdf5(tmp_path / "secret.hdf5", {"observations": np.zeros((8, 3))})
    (tmp_path / "raw").write_bytes(bytes(8 * 3 * 8))
    for kind in ("link", "external", "virtual"):
        path = write_hdf5(tmp_path / f"{kind}.hdf5", d4rl_columns(observations=None))
        with h5py.File(path, "a") as file:
            if kind == "link":
                file["observations"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "observations")
            elif kind == "external":
                file.create_dataset("observations", (8, 3), "f8", external=[(str(tmp_path / "raw"), 0, 8 * 3 * 8)])
            else:
                layout = h5py.VirtualLayout((8, 3), "f8")
                layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "observations", (8, 3))
                file.create_virtual_dataset("observations", layout)
        with pytest.raises(DatasetError, match="is a link" if kind == "link" else "lies in another file"):
            import_file(path, progress=False)


def test_arrays_that_would_unpack_to_more_than_the_limit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 1 << 20)
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "terminals", "timeouts"):
            file.create_dataset(name, (1 << 30, 3), "f8", chunks=True)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DatasetError, match="bytes, expected at most 1,048,576"):
        import_file(path, progress=False)
    np.savez_compressed(tmp_path / "y.npz", **{**rows(), "terminals": np.zeros(1 << 21)})
    with pytest.raises(DatasetError, match="bytes, expected at most 1,048,576"):
        import_file(tmp_path / "y.npz", progress=False)


def test_an_npz_whose_header_promises_more_than_there_is_is_refused(tmp_path):
    path = write_npz(tmp_path / "x.npz", **{**rows(), "terminals": last_rows()})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:-3] if name == "actions.npy" else content)
    with pytest.raises(ValueError, match=r"ends .* bytes early"):
        import_file(path, progress=False)


def test_nothing_is_written_where_a_data_set_is_there_already_or_the_file_is_wrong(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", d4rl_columns())
    import_file(path, dataset_id="mine/swings-v0", progress=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        import_file(path, dataset_id="mine/swings-v0", progress=False)
    import_file(path, dataset_id="mine/swings-v0", overwrite=True, progress=False)
    bad = write_hdf5(tmp_path / "y.hdf5", d4rl_columns(actions=np.full((8, 1), np.inf)))
    with pytest.raises(DatasetError, match="inf"):
        import_file(bad, dataset_id="mine/swings-v0", overwrite=True, progress=False)
    assert minari.load_dataset("mine/swings-v0").total_steps == sum(LENGTHS)


def test_without_pyarrow_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"parquet files need pyarrow: pip install 'didi-gym\[lerobot\]'"):
        import_file(tmp_path / "x.parquet")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("after", [True, False])
def test_no_step_leads_from_one_episode_into_another(tmp_path, seed, after):
    """Observations are (episode, step), so that a true step is one to the next number of the same episode."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, 12)
    seen = np.array([(i, step) for i, n in enumerate(lengths) for step in range(n)], np.float64)
    last, fell = last_rows(lengths), np.repeat(rng.random(12) < 0.5, lengths)
    columns = {"observations": seen, "actions": seen[:, 1:], "terminals": last & fell, "timeouts": last & ~fell}
    more = {"next_observations": seen + [0, 1]} if after else {}
    recordings = [d4rl.read(write_hdf5(tmp_path / "x.hdf5", {**columns, **more}), progress=False)]
    if after:
        unflagged = {**columns, **more, "timeouts": None}
        recordings.append(d4rl.read(write_hdf5(tmp_path / "y.hdf5", unflagged), progress=False))
    else:
        ends = write_npz(tmp_path / "x.npz", **{**columns, "terminals": last, "timeouts": None})
        recordings.append(ogbench.read(ends, progress=False))
    for made in recordings:
        assert sum(map(len, made.episodes)) == (sum(lengths) if after else sum(lengths - 1))
        for episode in made.episodes:
            states = episode.observations["observations"]
            np.testing.assert_array_equal(np.diff(states, axis=0), [[0, 1]] * len(episode))
            np.testing.assert_array_equal(episode.actions, states[:-1, 1:])


# The spaces


class Maze(gym.Env):
    """Observes a Dict as the mazes of gymnasium-robotics do; steps are never taken."""

    observation_space = spaces.Dict(
        {key: spaces.Box(-9, 9, (n,)) for key, n in (("achieved_goal", 1), ("desired_goal", 1), ("observation", 2))}
    )
    action_space = spaces.Box(-2, 2, (1,))


def recording(width=3, actions=None, **observed):
    collector = Collector("x", tuple(observed) or ("observations",))
    actions = np.zeros((4, 1)) if actions is None else actions
    collector.add(0, observed or {"observations": np.arange(4.0 * width).reshape(4, width)}, actions)
    return collector.finish()


def test_columns_fill_the_keys_of_a_dict_observation_in_the_order_given():
    fitted = fit(recording(), Maze(), ["achieved_goal", "observation"])
    (episode,) = fitted.episodes
    np.testing.assert_array_equal(episode.observations["achieved_goal"][:, 0], [0, 3, 6, 9])
    np.testing.assert_array_equal(episode.observations["observation"][1], [4, 5])
    assert fitted.keys == ("achieved_goal", "observation") == tuple(fitted.observation_space.spaces)


def test_a_dict_observation_takes_its_own_keys_or_says_which_it_needs():
    parts = {"observation": np.ones((4, 2)), "achieved_goal": np.zeros((4, 1))}
    assert fit(recording(**parts), Maze()).keys == ("observation", "achieved_goal")
    assert fit(recording(width=2), Maze()).keys == ("observation",)
    with pytest.raises(DatasetError, match=r"observes a Dict.*say with --env-keys"):
        fit(recording(), Maze())
    with pytest.raises(
        DatasetError, match=r"observations: expected 2 numbers.*under achieved_goal, desired_goal, got 3"
    ):
        fit(recording(), Maze(), ["achieved_goal", "desired_goal"])
    with pytest.raises(DatasetError, match=r"observation: expected 2 numbers.*under that key, got 1"):
        fit(recording(observation=np.ones((4, 1)), achieved_goal=np.zeros((4, 2))), Maze())
    with pytest.raises(DatasetError, match="observation key 'goal' must be a flat Box"):
        fit(recording(), Maze(), ["goal"])


def test_parts_are_joined_for_an_environment_with_a_flat_observation():
    fitted = fit(recording(a=np.zeros((4, 1)), b=np.ones((4, 2))), gym.make(ENV))
    np.testing.assert_array_equal(fitted.episodes[0].observations, [[0, 1, 1]] * 4)
    assert fitted.keys == ()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (recording(width=5), "observations: expected 3 numbers, as Pendulum-v1 observes, got 5.*leave --env out"),
        (recording(actions=np.zeros((4, 2))), "actions: expected 1 numbers, as Pendulum-v1 takes, got 2"),
    ],
)
def test_another_width_than_the_environments_is_refused(made, words):
    with pytest.raises(DatasetError, match=words):
        fit(made, gym.make(ENV))


def test_whole_numbers_are_discrete_actions_with_and_without_an_environment():
    acted = np.array([0, 2, 1, 0])
    assert fit(recording(actions=acted)).action_space == spaces.Discrete(3)
    assert fit(recording(2, actions=acted[:, None]), gym.make("MountainCar-v0")).episodes[0].actions.shape == (3,)
    with pytest.raises(DatasetError, match=r"actions\[1\] is 3, expected 0 to 2"):
        fit(recording(2, actions=acted + 1), gym.make("MountainCar-v0"))
    with pytest.raises(DatasetError, match="one whole number for each step, as MountainCar-v0"):
        fit(recording(2, actions=np.zeros((4, 1))), gym.make("MountainCar-v0"))
    with pytest.raises(DatasetError, match="count from 0, got -1"):
        fit(recording(actions=acted - 1))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float32])
def test_spaces_made_from_the_data_hold_it(dtype):
    observed, acted = np.array([[0, 1]] * 4, dtype), np.linspace(-1, 3, 4)[:, None]
    fitted = fit(recording(actions=acted, observation=observed))
    assert fitted.observation_space.shape == (2,)
    assert (fitted.action_space.low, fitted.action_space.high) == (-1, acted[2])  # the last one has no step
    assert all("evaluate` needs --env" in note for note in fitted.notes)
    with pytest.raises(DatasetError, match="--env-keys names keys of an environment"):
        fit(recording(), None, ["observation"])


def test_a_recording_without_a_step_is_refused():
    with pytest.raises(DatasetError, match="holds no episode with a step"):
        Collector("x", ("observations",)).finish()
    assert isinstance(recording(), Recording)


# The command


def test_the_command_says_what_it_did_and_what_comes_next(tmp_path, capsys):
    path = write_hdf5(tmp_path / "swings.hdf5", d4rl_columns(after=False))
    cli.run(["data", "import", str(path), "--env", f"gymnasium:{ENV}", "--dataset", "my/swings-v0"])
    out = capsys.readouterr().out
    for words in (
        "taken to be d4rl",
        "2 actions were left out",
        "2 episodes with 5 steps",
        "didi-gym train --dataset my/swings-v0 --output DIR",
    ):
        assert words in out
    cli.run(["data", "import", str(path), "--dataset", "my/swings-v0", "--overwrite", "--format", "d4rl"])
    assert "spaces are made from the data: actions are 1 numbers" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--env-kwargs are settings of an environment"):
        cli.run(["data", "import", str(path), "--env-kwargs", '{"g": 1}'])


def test_an_environment_is_imported_only_as_its_id_says(tmp_path):
    path = write_hdf5(tmp_path / "x.hdf5", d4rl_columns())
    with pytest.raises(ValueError, match="expected an environment id"):
        import_file(path, env="os;x:Name-v0")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_file(path, env="no_such_module:Name-v0")
    with pytest.raises(ValueError, match="does not take these settings"):
        import_file(path, env=ENV, env_kwargs={"no_such_setting": 1})
