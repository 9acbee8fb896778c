"""The humanoid's data set, from made-up gaits that read 376 numbers as the real ones do."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from didi_gym.cli import main as cli
from didi_gym.core.environments import LIGHT_HUMANOID
from didi_gym.core.frames import yaw_of
from didi_gym.data import BehaviourError, TrajectoryDataset, check_recording, read_labels
from didi_gym.data.generators.behaviours import find_gaits, read_folder
from didi_gym.data.generators.humanoid import (
    HEADING,
    NOISE,
    STEADY,
    UNSTEADY,
    collect_humanoid_gaits,
    whole_observation,
)
from didi_gym.data.labels import LABEL

minari = pytest.importorskip("minari")
pytest.importorskip("mujoco")
ID = "didi/humanoid-gaits-v0"


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """A policy for each gait, that pushes as the actuators' forces and the inertias say, which no recording holds."""
    folder, rng = tmp_path / "agents", np.random.default_rng(0)
    folder.mkdir()
    for name in (*(f"someones-{gait}" for gait in (*STEADY, *UNSTEADY)), "someones-else"):
        weights = np.zeros((376, 17))
        weights[45:] = rng.normal(0, 3e-3, (331, 17))
        np.savez(
            folder / f"{name}.npz",
            n_layers=1,
            W0=weights,
            b0=rng.normal(0, 0.1, 17),
            activation="tanh",
            squash=False,
            time_feature=False,
            env="Humanoid",
        )
    return folder


def collect(agents: Path, dataset_id: str = ID, **settings):
    return collect_humanoid_gaits(
        dataset_id, agents=agents, **{"steps": 300, "processes": 1, "progress": False} | settings
    )


def test_behaviours_read_what_old_humanoids_showed():
    env = gym.make("Humanoid-v5")
    observation, _ = env.reset(seed=0)
    seen = whole_observation(env)
    assert seen.shape == (376,)
    np.testing.assert_array_equal(seen[:45], observation[:45])
    observation = env.step(np.full(17, 0.1, np.float32))[0]
    seen = whole_observation(env)
    # Version 5 leaves out the entries of the world and of the root.
    parts = np.split(seen[45:], np.cumsum([140, 84, 23]))
    trimmed = [parts[0][10:], parts[1][6:], parts[2][6:], parts[3][6:]]
    np.testing.assert_array_equal(np.concatenate([seen[:45], *trimmed]), observation)


def test_fifteen_gaits_are_recorded_as_47_numbers_that_lead_back_to_their_actions(agents):
    dataset = collect(agents)
    assert dataset.recover_environment().spec.id == LIGHT_HUMANOID
    labels = read_labels(ID)
    assert sorted(labels.names) == sorted(f"someones-{gait}" for gait in (*STEADY, *UNSTEADY))
    assert np.bincount(labels.steps).tolist() == [20] * 15
    behaviours = [policy for policy in read_folder(agents, "Humanoid-v4") if policy.name in labels.names]
    check_recording(ID, behaviours, reads=whole_observation)
    with pytest.raises(ValueError, match="the action is not that of"):
        check_recording(ID, behaviours[::-1], reads=whole_observation)
    episode = next(dataset.iterate_episodes())
    assert episode.observations.shape[1] == 47 and labels.settings["noise"] == NOISE


def test_skills_see_the_body_in_its_own_heading(agents):
    collect(agents)
    layout = TrajectoryDataset.from_minari(ID).layout
    assert layout.heading == HEADING and layout.relative == (0, 1) and layout.policy_inputs == tuple(range(2, 47))
    env = gym.make(LIGHT_HUMANOID, exclude_current_positions_from_observation=False)
    observation, _ = env.reset(seed=0)
    data = env.unwrapped.data
    data.qpos[3:7], data.qvel[:2] = [np.cos(0.5), 0, 0, np.sin(0.5)], [7, 8]
    observation = env.unwrapped._get_obs()
    assert yaw_of(observation, HEADING) == pytest.approx(1.0)
    assert [observation[i] for i in HEADING.vectors[1]] == [7, 8]


def test_the_same_seed_gives_the_same_bytes_in_one_process_or_two(agents):
    def contents(name: str, **settings) -> list[bytes]:
        episodes = collect(agents, name, **settings).iterate_episodes()
        return [array.tobytes() for e in episodes for array in (e.observations, e.actions, e.infos[LABEL])]

    first = contents("didi/a-v0")
    assert contents("didi/b-v0", processes=2) == first
    assert contents("didi/c-v0", seed=1) != first


def test_a_gait_is_found_by_the_end_of_its_name_and_a_missing_one_is_named(agents, tmp_path):
    assert find_gaits(agents, ["tiptoe", "spin-9363"]) == ["someones-tiptoe", "someones-spin-9363"]
    (agents / "someones-tiptoe.npz").rename(agents / "tiptoe.npz")
    assert find_gaits(agents, ["tiptoe"]) == ["tiptoe"]
    (agents / "my-tiptoe.npz").write_bytes(b"")
    with pytest.raises(BehaviourError, match=r"my-tiptoe, tiptoe for tiptoe; none for crawl"):
        find_gaits(agents, ["tiptoe", "crawl", "jumping"])
    with pytest.raises(BehaviourError, match="none for tiptoe"):
        collect(tmp_path)


def test_the_command_asks_for_the_folder_and_passes_it_on(agents, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["didi-gym", "data", "humanoid-gaits"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert str(stop.value.code).startswith(
        f"didi-gym: {ID} is recorded from policies of others"
    ) and "--agents DIR" in str(stop.value.code)
    asked = []
    monkeypatch.setattr(
        "didi_gym.data.generators.humanoid.collect_humanoid_gaits", lambda **kwargs: asked.append(kwargs)
    )
    cli.run(["data", "humanoid-gaits", "--agents", str(agents), "--steps", "30"])
    assert asked == [{"dataset_id": ID, "agents": agents, "steps": 30, "seed": 0, "overwrite": False}]
