import builtins
import warnings
from typing import Any

import numpy as np
import pytest

import didi_gym
from didi_gym import SkillSpace, TrajectoryDataset
from didi_gym.data import read_labels

pytest.importorskip("gymnasium_robotics")

from didi_gym.data.generators import kitchen
from didi_gym.data.generators.kitchen import BEHAVIOURS, collect_kitchen, cook
from didi_gym.data.generators.kitchen_experts import EXPERTS, HOME_POINT, SUBTASKS, Arm, Follower, go_home
from didi_gym.data.generators.parallel import ordered_map
from tests.examples import random_policy


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_each_expert_does_its_subtask_and_no_other_and_goes_home(subtask: str) -> None:
    env = kitchen._env()
    env.reset(seed=0)
    arm = Arm(env)
    assert np.linalg.norm(arm.hand - HOME_POINT) < 0.01
    follower, steps, info = Follower(arm, EXPERTS[subtask](arm, np.zeros(3)), pace=1.5), 0, {}
    while not follower.done:
        *_, info = env.step(follower.act())
        steps += 1
    assert info["episode_task_completions"] == [subtask] and steps < 200
    follower = Follower(arm, go_home(arm, np.zeros(3), 0.0), pace=1.5)
    while not follower.done:
        *_, info = env.step(follower.act())
    assert np.linalg.norm(arm.hand - HOME_POINT) < 0.03
    assert info["episode_task_completions"] == [subtask]


def test_a_collected_data_set_is_complete_labelled_and_knows_its_environment() -> None:
    dataset = collect_kitchen("didi/kitchen-test-v0", steps=400, processes=1, progress=False)
    assert dataset.total_steps == 400 and dataset.total_episodes == 1
    (episode,) = dataset.iterate_episodes()
    assert episode.observations["observation"].shape == (401, 59) and np.abs(episode.actions).max() <= 1
    assert set(episode.observations["achieved_goal"]) == set(SUBTASKS)
    assert all(np.isfinite(array).all() for array in (*episode.observations["achieved_goal"].values(), episode.actions))
    (about,) = dataset.storage.get_episode_metadata(range(1))
    labels = read_labels("didi/kitchen-test-v0")
    first = about["chain"].split(", ")[0]
    assert labels.names == BEHAVIOURS and labels.names[labels.steps[0]] == first
    assert first in about["completed"].split(", ")
    env = dataset.recover_environment()
    assert env.spec.id == "FrankaKitchen-v1" and env.spec.max_episode_steps == kitchen.EPISODE_STEPS
    assert not env.unwrapped.terminate_on_tasks_completed
    read = TrajectoryDataset.from_minari("didi/kitchen-test-v0")
    assert read.layout.state_dim == 49 and len(labels.steps) == len(read.observations) == 400
    assert read.layout.sources[0].size == 59


def test_the_layout_keeps_the_joints_and_all_objects_of_subtasks() -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_INDICES

    layout = kitchen.kitchen_layout()
    assert layout.state_source is not None
    kept = layout.state_source.indices
    # In an observation 9 velocities come between the joints and the objects.
    places = {9 + int(joint) for joints in OBS_ELEMENT_INDICES.values() for joint in joints}
    places.remove(9 + 20)  # the left door, whose goal is to stay closed
    assert set(range(18)) | places <= set(kept) and len(kept) == 49
    assert {kept[i] for i in layout.features} == {*range(9), *places}


def test_the_kitchen_runs_on_skills_that_read_its_observations() -> None:
    policy = random_policy(
        kitchen.kitchen_layout(), low=[-1.0] * 9, high=[1.0] * 9, skill_space=SkillSpace("discrete", 8)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*share an object")  # the environment's own
        env = didi_gym.make("FrankaKitchen-v1", policy, device="cpu")
        observation, _ = env.reset(seed=0)
        _, _, _, _, info = env.step(3)
    assert set(observation) == {"observation", "achieved_goal", "desired_goal"} and info["skill_length"] > 0


def test_the_top_burner_comes_before_the_hinge_cabinet() -> None:
    chains = [kitchen._draw_chain(np.random.default_rng(seed)) for seed in range(200)]
    both = [chain for chain in chains if {"hinge cabinet", "top burner"} <= set(chain)]
    assert both and all(chain.index("top burner") < chain.index("hinge cabinet") for chain in both)
    assert {len(chain) for chain in chains} == {4, 5, 6, 7} and all(len(set(chain)) == len(chain) for chain in chains)
    assert {chain[0] for chain in chains} == set(SUBTASKS)


def test_the_same_seed_cooks_the_same_in_one_process_or_two() -> None:
    alone = cook(5, steps=300, longest=120)
    with ordered_map(2) as run:
        together = cook(5, steps=300, longest=120, run=run)
    assert [len(one) for one in alone] == [len(two) for two in together] == [120, 120, 60]
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.observations["observation"], two.observations["observation"])
        np.testing.assert_array_equal(one.infos["behaviour"], two.infos["behaviour"])


def test_without_gymnasium_robotics_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_robotics(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gymnasium_robotics":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_robotics)
    with pytest.raises(ImportError, match=r"didi-gym\[envs\]"):
        kitchen._env.__wrapped__()
