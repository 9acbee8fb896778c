"""Data sets from behaviour policies: made-up ones on a pendulum, and on a cheetah where MuJoCo is there."""

import io
import json
import os
import pickle
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from didi_gym.cli import main as cli
from didi_gym.data import ArrayPolicy, BehaviourError, check_recording, collect_from_agents, read_labels
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.generators.behaviours import read_folder
from didi_gym.data.labels import BEHAVIOURS_KEY, LABEL, SETTLED, Measured, table
from didi_gym.sb3.recorded import SB3Policy

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
ENV, ID = "Pendulum-v1", "didi/pendulum-gaits-v0"
PUSHES = {"left": -1.0, "none": 0.0, "right": 1.5}  # of the pendulum's torque, which lies in -2..2


def save(folder: Path, name: str, inputs: int = 3, actions: int = 1, *, push: float = 0.0, **entries: Any) -> Path:
    """A policy of one layer, which pushes with a constant torque; `entries` replace or, if None, remove its own."""
    arrays = {
        "n_layers": 1,
        "W0": np.zeros((inputs, actions)),
        "b0": np.full(actions, push),
        "activation": "tanh",
        "squash": False,
        "time_feature": False,
        "env": "Pendulum",
    } | entries
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder / f"{name}.npz"


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    for name, push in PUSHES.items():
        save(tmp_path / "agents", name, push=push)
    save(tmp_path / "agents", "other-body", env="Ant")
    return tmp_path / "agents"


def collect(agents: Path, dataset_id: str = ID, **settings: Any) -> Any:
    settings = {"steps": 600, "noise": 0.0, "processes": 1, "progress": False} | settings
    return collect_from_agents(ENV, agents, dataset_id=dataset_id, **settings)


def labels_of(dataset: Any) -> list[np.ndarray]:
    return [episode.infos[LABEL] for episode in dataset.iterate_episodes()]


def rewrite(dataset: Any, field: str, change: Any) -> None:
    """Replace an array of the first episode in the file."""
    with h5py.File(dataset.storage.data_path / "main_data.hdf5", "a") as file:
        file[f"episode_0/{field}"][...] = change(file[f"episode_0/{field}"][...])


def said(monkeypatch: pytest.MonkeyPatch, *words: Any) -> str:
    """What `didi-gym data from-agents` ends with."""
    monkeypatch.setattr(sys, "argv", ["didi-gym", "data", "from-agents", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return str(stop.value.code)


def test_a_policy_normalises_clips_and_squashes_in_the_documented_order(tmp_path: Path) -> None:
    layers = {"n_layers": 2, "W0": np.eye(2), "b0": np.array([0.0, -3.0]), "W1": np.ones((2, 1)), "b1": np.array([0.5])}
    normal = {"obs_mean": np.array([1.0, 0.0]), "obs_std": np.array([2.0, 1.0]), "obs_clip": 2.5}
    path = save(tmp_path, "p", **layers, **normal, activation="lrelu", squash=True)
    policy = ArrayPolicy.read(path)
    assert (policy.name, policy.inputs, policy.action_dim) == ("p", 2, 1)
    # (5 - 1) / 2 = 2, and 9 is clipped to 2.5: 2 + 0.01 * (2.5 - 3) + 0.5
    np.testing.assert_allclose(policy(np.array([[5.0, 9.0]]), np.zeros(1)), np.tanh([[2.495]]))


def test_the_time_feature_falls_from_one_to_zero_in_a_thousand_steps(tmp_path: Path) -> None:
    policy = ArrayPolicy.read(save(tmp_path, "p", 3, W0=np.array([[0.0], [0.0], [10.0]]), time_feature=True))
    assert policy.inputs == 2
    np.testing.assert_allclose(policy(np.zeros((3, 2)), np.array([0, 250, 1000])), [[10], [7.5], [0]])


def test_policies_of_other_bodies_are_left_out_whatever_the_version(agents: Path) -> None:
    assert [policy.name for policy in read_folder(agents, "some.module:Pendulum-v7")] == sorted(PUSHES)
    with pytest.raises(BehaviourError, match=r"no policy for Walker2d.*only for Ant, Pendulum"):
        read_folder(agents, "Walker2d-v5")


def test_a_name_of_a_file_in_the_table_acts_on_no_terminal() -> None:
    shown = table([Measured("up\x1b[31m\nforged", "a", 10, 1, 0, None, None)])
    assert all(line.isprintable() for line in shown.splitlines()) and r"up\x1b[31m\nforged" in shown


def test_every_label_stands_in_the_row_of_its_action(agents: Path) -> None:
    collect(agents, switch_every=20)
    dataset, labels = TrajectoryDataset.from_minari(ID), read_labels(ID)
    assert labels.names == tuple(sorted(PUSHES)) and labels.steps.shape == (600,)
    np.testing.assert_array_equal(dataset.actions[:, 0], np.array([PUSHES[n] for n in labels.names])[labels.steps])
    held_out = dataset.split(horizon=8)[1]
    steps = held_out.window_starts(np.arange(held_out.num_windows(8)), 8)
    np.testing.assert_array_equal(
        held_out.actions[steps, 0], np.array([PUSHES[n] for n in labels.names])[labels.steps[steps]]
    )


def test_without_switches_each_episode_is_one_behaviour_and_all_have_as_many_steps(agents: Path) -> None:
    dataset = collect(agents, steps=601, episode_steps=50)
    assert all(len(set(label)) == 1 for label in labels_of(dataset))
    assert np.bincount(read_labels(ID).steps).tolist() == [201, 200, 200]
    assert [m.steps for m in read_labels(ID).behaviours] == [201, 200, 200]
    assert [m.stretches for m in read_labels(ID).behaviours] == [5, 4, 4]
    order = [int(label[0]) for label in labels_of(dataset)]
    assert order != sorted(order)


def test_with_switches_behaviours_take_turns_evenly_for_the_time_asked_for(agents: Path) -> None:
    dataset = collect(agents, steps=6000, switch_every=25)
    steps, switches = read_labels(ID).steps, sum(int((np.diff(label) != 0).sum()) for label in labels_of(dataset))
    assert dataset.total_steps == 6000 and 0.75 < switches * 25 / 6000 < 1.25
    assert np.abs(np.bincount(steps) / 6000 - 1 / 3).max() < 0.06
    pair = collect(agents, "didi/pair-v0", steps=3000, switch_every=25, only=["left", "right"])
    switches = sum(int((np.diff(label) != 0).sum()) for label in labels_of(pair))
    assert 0.75 < switches * 25 / 3000 < 1.25  # half of that if a behaviour could follow itself


def test_an_episode_ends_where_a_final_behaviour_would_be_left(agents: Path) -> None:
    dataset = collect(agents, steps=3000, switch_every=20, final=["none"])
    labels = [label.tolist() for label in labels_of(dataset)]
    for label in labels:
        first = label.index(1) if 1 in label else len(label)
        assert set(label[first:]) <= {1}
    assert sum(len(label) < 201 for label in labels) > 5 and sum(1 in label for label in labels) > 5


def test_an_episode_ends_where_its_body_leaves_the_healthy_range_unless_that_is_its_way(agents: Path) -> None:
    settings = {"steps": 900, "healthy": (2, -1.5, 1.5), "final": ["left"]}  # rad/s
    dataset = collect(agents, **settings)
    for episode in dataset.iterate_episodes():
        outside = np.flatnonzero(np.abs(episode.observations[1:, 2]) > 1.5)
        assert episode.infos[LABEL][0] == 0 or set(outside) <= {len(episode.actions) - 1}
    falls = [measured.falls for measured in read_labels(ID).behaviours]
    metadata = dataset.storage.get_episode_metadata(range(dataset.total_episodes))
    assert falls[0] == 0 < falls[1] and sum(falls) == sum(bool(about["fell"]) for about in metadata)
    assert not any(episode.terminations.any() for episode in dataset.iterate_episodes())
    assert np.bincount(read_labels(ID).steps).tolist() == [300, 300, 300]


def test_a_lead_in_is_not_recorded_and_begins_episodes_in_other_places(agents: Path) -> None:
    dataset = collect(agents, lead_in=30, episode_steps=60)
    metadata = list(dataset.storage.get_episode_metadata(range(dataset.total_episodes)))
    starts = {int(about["lead_in"]) for about in metadata}
    assert len(starts) > 3 and max(starts) <= 30
    reset, moved = (
        np.array([abs(e.observations[0, 2]) for e, about in zip(dataset, metadata, strict=True) if test(about)])
        for test in (lambda about: about["lead_in"] == 0, lambda about: about["lead_in"] > 10)
    )
    assert (reset <= 1).all() and moved.max() > 1  # resets are slow
    with pytest.raises(ValueError, match="a lead-in needs two behaviours that are not final"):
        collect(agents, lead_in=3, final=["left", "none"], overwrite=True)


def test_noise_has_the_size_asked_for_and_stays_within_the_bounds(agents: Path) -> None:
    dataset = collect(agents, noise=0.1, only=["none"])
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    assert 0.17 < actions.std() < 0.23  # a tenth of 2, half the range
    assert read_labels(ID).settings["noise"] == 0.1


def test_the_same_seed_gives_the_same_file_in_one_process_or_two_and_another_does_not(agents: Path) -> None:
    def contents(name: str, **settings: Any) -> list[bytes]:
        dataset = collect(agents, name, noise=0.1, switch_every=20, lead_in=10, **settings)
        parts = [[e.observations, e.actions, e.rewards, e.infos[LABEL]] for e in dataset.iterate_episodes()]
        return [array.tobytes() for part in parts for array in part] + [
            dataset.storage.metadata[BEHAVIOURS_KEY].encode()
        ]

    first = contents("didi/a-v0")
    assert contents("didi/b-v0", processes=2) == first
    assert contents("didi/c-v0", seed=1)[0] != first[0]


def test_training_sees_the_same_data_whatever_the_labels_are(agents: Path) -> None:
    dataset = collect(agents, steps=150, noise=0.1)
    seen = TrajectoryDataset.from_minari(ID)
    rewrite(dataset, f"infos/{LABEL}", lambda label: (label + 1) % 3)
    dataset.storage.update_metadata({BEHAVIOURS_KEY: "{}"})
    assert TrajectoryDataset.from_minari(ID).fingerprint() == seen.fingerprint()
    assert seen.observations.shape == (150, 3) and seen.env_id == ENV


@pytest.mark.parametrize(
    ("field", "change", "words"),
    [
        (f"infos/{LABEL}", lambda label: (label + 1) % 3, "the action is not that of"),
        ("actions", lambda actions: actions + 0.1 * (np.arange(len(actions)) == 7)[:, None], "step 7: the action"),
        ("observations", lambda observations: observations + 0.1, "replayed actions do not lead"),
    ],
)
def test_a_recording_that_is_not_what_it_says_is_found_out(field: str, change: Any, words: str, agents: Path) -> None:
    dataset, behaviours = collect(agents), read_folder(agents, ENV)
    check_recording(ID, behaviours)
    rewrite(dataset, field, change)
    with pytest.raises(ValueError, match=words):
        check_recording(ID, behaviours)


def test_a_data_set_without_labels_says_so(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(agents)
    monkeypatch.setattr("didi_gym.data.labels.BEHAVIOURS_KEY", "another_key")
    with pytest.raises(ValueError, match="has no labels"):
        read_labels(ID)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"env": None}, "['env'] are missing"),
        ({"b0": None}, "missing ['b0']"),
        ({"W1": np.zeros((1, 1))}, "unknown ['W1']"),
        ({"n_layers": 2.0}, "a single value for n_layers, got float64"),
        ({"W0": np.zeros((3, 2))}, "W0 of shape (in, out) = (3, 1), got (3, 2)"),
        ({"W0": np.zeros(3)}, "W0 to be finite numbers with 2 dimensions"),
        ({"b0": np.array([np.nan])}, "b0 to be finite numbers"),
        ({"b0": np.array([None])}, "without pickles: Object arrays cannot be loaded"),
        ({"activation": "gelu"}, "activation tanh or relu or lrelu, got 'gelu'"),
        ({"obs_mean": np.zeros(3)}, "obs_std to be finite numbers"),
        ({"obs_mean": np.zeros(2), "obs_std": np.ones(2)}, "as many as W0 reads, (3,), got shapes (2,)"),
        ({"obs_mean": np.zeros(3), "obs_std": np.zeros(3)}, "least std 0"),
        ({"W0": np.zeros((4, 1))}, "expected 3 inputs and 1 actions, as the environment has, got 4 and 1"),
        ({"W0": np.zeros((3, 2)), "b0": np.zeros(2)}, "got 3 and 2"),
    ],
)
def test_a_file_that_is_no_such_policy_is_refused_in_one_sentence(
    entries: dict[str, Any], words: str, agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(agents, "wrong", **entries)
    message = said(monkeypatch, "--env", ENV, "--agents", agents)
    assert message.startswith("didi-gym: ") and words in message and "wrong" in message and "\n" not in message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense", pickle.dumps({"W0": 1})])
def test_a_file_of_another_kind_is_refused_and_never_unpickled(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(BehaviourError, match=r"bad\.npz: expected plain arrays in an \.npz file without pickles"):
        ArrayPolicy.read(tmp_path / "bad.npz")


def _announced(path: Path, shape: tuple[int, ...]) -> None:
    """An archive whose array says that it has this shape, and has nothing."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W0.npy", header.getvalue())


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    bomb, liar, layers = (tmp_path / f"{name}.npz" for name in ("bomb", "liar", "layers"))
    np.savez_compressed(bomb, W0=np.zeros(9_000_000))
    _announced(liar, (1 << 40,))
    save(tmp_path, "layers", n_layers=1 << 40)
    tracemalloc.start()
    for path, words in ((bomb, "bomb.npz: .*unpack to 72,000"), (liar, "liar.npz: .*W0"), (layers, "layers.npz: ")):
        with pytest.raises(BehaviourError, match=words):
            ArrayPolicy.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are not known here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(BehaviourError, match=r"pipe\.npz"):
        ArrayPolicy.read(tmp_path / "pipe.npz")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--agents {0}/absent", "absent is no folder"),
        ("--agents {0}", "no policy for Pendulum"),
        ("", "expected behaviours, got none"),
        ("--agents {0}/agents --only up", "--only up: no such behaviour; there are left, none, right"),
        ("--agents {0}/agents --final up", "--final up: no such behaviour"),
        ("--agents {0}/agents --switch-every 0.5", "expected switch_every of at least 1"),
        ("--agents {0}/agents --only left --switch-every 9", "two behaviours to switch between"),
        ("--agents {0}/agents --steps 2", "at least a step for each of 3"),
        ("--agents {0}/agents --noise 2", "expected noise of 0 to 1"),
        ("--agents {0}/agents --lead-in 200", "expected lead_in of 0 to 199"),
        ("--agents {0}/agents --healthy 3 -1 1", "healthy as an index of 0 to 2"),
        ("--agents {0}/agents --healthy 1 1 -1", "a least and a greater value, got (1, 1.0, -1.0)"),
        ("--agents {0}/agents --output nonsense", "a data set id such as didi/name-v0, got 'nonsense'"),
        ("--agents {0}/agents --episode-steps 0", "episode_steps of at least 1"),
        ("--agents {0}/agents --env-kwargs [1]", "expected --env-kwargs as a JSON object"),
        ('--agents {0}/agents --env-kwargs {{"wind":1}}', "does not take the settings"),
        ("--agents {0}/agents --env CartPole-v1", "expected actions in a flat Box"),
        ("--sb3 {0}/sac-Pendulum-v1.zip", "pass --trust"),
        ("--trust --sb3 {0}/sac-Pendulum-v1.zip", "neither a file nor a Hugging Face Hub id"),
        ("--trust --sb3 sb3/sac-Pendulum-v1", "sb3/sac-Pendulum-v1 is not in the Hub client's cache"),
    ],
)
def test_an_error_a_user_can_mend_is_one_sentence(
    words: str, answer: str, agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = said(monkeypatch, "--env", ENV, *words.format(agents.parent).split())
    assert message.startswith("didi-gym: ") and answer in message and "\n" not in message


def test_what_policies_read_beyond_the_observation_is_zero_only_if_asked(agents: Path) -> None:
    save(agents, "longer", 5, push=0.5, W0=np.array([[0.0], [0.0], [0.0], [9.0], [9.0]]))
    dataset = collect(agents, zero_padding=True, only=["longer"])
    assert {float(a) for episode in dataset.iterate_episodes() for a in episode.actions[:, 0]} == {0.5}


def test_the_command_prints_what_it_measured_and_keeps_an_existing_data_set(
    agents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env", ENV, "--agents", str(agents), "--steps", "300", "--processes", "1"]
    cli.run(["data", "from-agents", *words])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == sorted(PUSHES) and " 33.3% " in lines[1]
    assert lines[4] == f"Data set {ID}. Next: didi-gym train --dataset {ID} --output DIR"
    assert f"data set '{ID}' exists already" in said(monkeypatch, *words)
    cli.run(["data", "from-agents", *words, "--switch-every", "50"])
    assert "Data set didi/pendulum-gaits-switching-v0." in capsys.readouterr().out


def test_help_teaches_the_files_and_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["data", "from-agents", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "n_layers, W0 (in, out), b0",
        "for evaluation only",
        "--switch-every",
        "--trust",
        "Pickles in them are",
    ):
        assert words in text


def test_a_saved_stable_baselines3_policy_acts_as_the_model_with_its_normalisation(tmp_path: Path) -> None:
    import gymnasium as gym
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = VecNormalize(DummyVecEnv([lambda: gym.make(ENV)]))
    env.obs_rms.mean[:], env.obs_rms.var[:] = 0.2, 4.0
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, policy_kwargs={"net_arch": [8]}, device="cpu")
    model.save(tmp_path / "ppo-Pendulum-v1.zip")
    env.save(str(tmp_path / "vec_normalize.pkl"))
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    settings = {"inputs": 3, "low": np.array([-2.0]), "high": np.array([2.0]), "trust": True}
    policy = SB3Policy.find(str(tmp_path / "ppo-Pendulum-v1.zip"), **settings)
    expected = model.predict((observations - 0.2) / 2, deterministic=True)[0]
    np.testing.assert_allclose(policy(observations, np.zeros(5)), expected, atol=1e-5)
    assert not np.allclose(model.predict(observations, deterministic=True)[0], expected, atol=1e-3)

    words = ["--env", ENV, "--sb3", str(policy.path), "--trust", "--steps", "200", "--processes", "1"]
    cli.run(["data", "from-agents", *words])
    assert read_labels(ID).names == ("ppo-Pendulum-v1",)

    with pytest.raises(BehaviourError, match="could not load it as PPO with 5 inputs"):
        SB3Policy.find(str(policy.path), **{**settings, "inputs": 5})
    with pytest.raises(BehaviourError, match="begins with its algorithm"):
        SB3Policy.find(str(policy.path.rename(tmp_path / "best_model.zip")), **settings)


@pytest.mark.parametrize("switch_every", [None, 40])
def test_a_cheetah_records_its_position_which_behaviours_do_not_read(tmp_path: Path, switch_every: int | None) -> None:
    pytest.importorskip("mujoco")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        save(tmp_path / "agents", name, 17, 6, W0=rng.normal(size=(17, 6)), squash=True, env="HalfCheetah-v3")
    settings = {"steps": 400, "episode_steps": 100, "processes": 1, "progress": False, "switch_every": switch_every}
    minari_data = collect_from_agents("HalfCheetah-v5", tmp_path / "agents", **settings)
    name = f"didi/halfcheetah-gaits{'-switching' if switch_every else ''}-v0"
    dataset, labels = TrajectoryDataset.from_minari(name), read_labels(name)
    assert minari_data.spec.dataset_id == name and dataset.observations.shape == (400, 18)
    assert dataset.layout.relative == (0,) and dataset.layout.policy_inputs == tuple(range(1, 18))
    assert dataset.layout.sources[1].size == 17  # the environment as others make it
    assert dataset.env_kwargs == {"exclude_current_positions_from_observation": False}
    about = json.loads(minari_data.storage.metadata[BEHAVIOURS_KEY])
    assert about["settings"]["hidden"] == 1 and about["behaviours"][0]["name"] == "a"
    if switch_every is None:
        paths = [e.observations[SETTLED:, 0] for e in minari_data.iterate_episodes() if e.infos[LABEL][0] == 0]
        metres, steps = sum(x[-1] - x[0] for x in paths), sum(len(x) - 1 for x in paths)
        assert labels.behaviours[0].speed == pytest.approx(metres / steps / 0.05)
        assert np.bincount(labels.steps).tolist() == [200, 200]


def test_behaviours_that_fall_get_as_many_steps_as_others_and_their_falls_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    for name, push in (("falls", 3.0), ("idle", 0.0)):
        save(tmp_path / "agents", name, 4, push=push, env="InvertedPendulum")
    collect_from_agents(
        "InvertedPendulum-v5", tmp_path / "agents", dataset_id=ID, steps=300, processes=1, progress=False
    )
    falling, idle = read_labels(ID).behaviours
    assert falling.steps == idle.steps == 150
    assert falling.falls > idle.falls > 0 and falling.speed is None
    assert falling.falls >= falling.stretches - 1
