"""The executor on its own: chunks, sticky ends, what is reported when, rewards, and input selection."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.observations import InputSelector
from didi_gym.wrappers.executor import SkillExecutor
from didi_gym.wrappers.rewards import RewardRule
from tests.doubles import ToyEnv, ToyGoalEnv


def chunk(actions: np.ndarray, n: int, last: bool, duration: int = 0) -> dict:
    """`duration` begins a skill; 0 goes on with it."""
    return {"actions": actions, "n": n, "duration": duration, "last": int(last)}


def scripted(length: int, truncates: bool = False, **kwargs) -> SkillExecutor:
    """An executor over a ToyEnv whose first episode has this length and kind of end."""
    env = ToyEnv(shortest=length, longest=length)
    executor = SkillExecutor(env, **kwargs)
    executor.reset(seed=0)
    env.ends_by_truncation = truncates
    return executor


HALF = np.full((4, 2), 0.5, np.float32)


@pytest.mark.parametrize("module", ["didi_gym.wrappers.executor", "didi_gym.wrappers.make", "didi_gym.wrappers"])
def test_what_runs_in_workers_imports_no_torch(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules and 'stable_baselines3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_skill_reports_only_with_its_last_chunk():
    executor = scripted(length=20, skill_duration=8, replan_every=4)
    _, reward, terminated, truncated, info = executor.step(chunk(HALF, 4, last=False, duration=8))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"skill_over": False})
    observation, reward, terminated, truncated, info = executor.step(chunk(HALF, 4, last=True))
    assert executor.env.steps_left == 12 == observation[2] == info["left"]
    assert (info["skill_length"], info["skill_interrupted"], terminated, truncated) == (8, False, False, False)
    assert reward == info["skill_return"] != 0


@pytest.mark.parametrize("truncates", [False, True])
def test_an_end_inside_a_skill_is_sticky_and_later_actions_do_nothing(truncates):
    executor = scripted(length=6, truncates=truncates, skill_duration=12, replan_every=4)
    executor.step(chunk(HALF, 4, last=False, duration=12))
    _, reward, terminated, truncated, info = executor.step(chunk(HALF, 4, last=False))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"skill_over": True})
    observation, _, terminated, truncated, info = executor.step(chunk(HALF, 4, last=True))
    assert (terminated, truncated) == (not truncates, truncates)
    assert (info["skill_length"], info["skill_interrupted"]) == (6, True)
    assert observation[2] == 0
    assert executor.low_level_steps == len(executor.env.trace) == 6


def test_a_skill_that_ends_with_its_episode_is_not_interrupted():
    executor = scripted(length=4, skill_duration=4)
    *_, info = executor.step(chunk(HALF, 4, last=True, duration=4))
    assert info["skill_interrupted"] is False


def test_n_runs_only_the_first_actions_and_n_zero_is_a_vector_reset_step():
    executor = scripted(length=9, skill_duration=4)
    assert executor.step(chunk(HALF, 0, last=True))[1:] == (0.0, False, False, {})
    *_, info = executor.step(chunk(HALF, 3, last=True, duration=4))
    assert info["skill_length"] == 3


def test_reset_in_the_middle_of_a_skill_forgets_it():
    executor = scripted(length=6, skill_duration=8, replan_every=4)
    executor.step(chunk(HALF, 4, last=False, duration=8))
    executor.step(chunk(HALF, 4, last=False))
    executor.reset(seed=1)
    *_, info = executor.step(chunk(HALF, 2, last=True, duration=2))
    assert info["skill_length"] == 2


def test_actions_are_clipped_and_cast_to_the_environments_space():
    executor = scripted(length=9, skill_duration=4)
    executor.step(
        chunk(np.full((4, 2), 7.0), 4, last=True, duration=4)
    )  # ToyEnv asserts that its space contains every action
    assert all((action == 1).all() and action.dtype == np.float32 for _, action in executor.env.trace)


def test_the_last_infos_keys_survive_and_inner_wrappers_see_low_level_steps():
    env = gym.wrappers.RecordEpisodeStatistics(ToyEnv(shortest=5, longest=5))
    executor = SkillExecutor(env, skill_duration=8)
    executor.reset(seed=0)
    *_, info = executor.step(chunk(np.zeros((8, 2)), 8, last=True, duration=8))
    assert info["episode"]["l"] == 5 == info["skill_length"]


def test_goal_environments_report_the_goals_achieved_on_the_way():
    env = ToyGoalEnv(shortest=3, longest=3)
    executor = SkillExecutor(env, skill_duration=5)
    start, _ = executor.reset(seed=3)
    *_, info = executor.step(chunk(np.full((5, 2), 0.25), 5, last=True, duration=5))
    length = info["skill_length"]
    steps = np.minimum(np.arange(1, 6), length)[:, None]
    np.testing.assert_allclose(info["skill_achieved_goals"], start["achieved_goal"] + 0.25 * steps)
    assert info["skill_rewards"].shape == (5,)
    assert not info["skill_rewards"][length:].any()


class Reusing(ToyGoalEnv):
    """Hands out one array for all achieved goals, as some simulators do."""

    def _goal_observation(self):
        self.shared = getattr(self, "shared", np.empty(2))
        self.shared[:] = self.position
        return {**super()._goal_observation(), "achieved_goal": self.shared}


def test_goals_achieved_on_the_way_are_copies():
    executor = SkillExecutor(Reusing(shortest=9, longest=9, continuing=True), skill_duration=3)
    executor.reset(seed=0)
    *_, info = executor.step(chunk(HALF, 3, last=True, duration=3))
    assert len(set(info["skill_achieved_goals"][:, 0])) == 3


def test_the_action_space_describes_a_chunk():
    executor = SkillExecutor(ToyEnv(), skill_duration=8, replan_every=3)
    executor.reset(seed=0)
    assert executor.action_space["actions"].shape == (3, 2)
    assert executor.action_space.contains(executor.action_space.sample())
    executor.step(executor.action_space.sample())


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=12), st.floats(0.1, 1.0), st.integers(0, 5), st.randoms())
def test_reward_rules_equal_the_formula_whatever_the_padding(rewards, discount, padding, random):
    total = 0.0
    for i, reward in enumerate(rewards):
        total += discount**i * reward
    junk = [random.uniform(-9, 9) for _ in range(padding)]
    rows = np.array([rewards + junk, rewards + junk])
    lengths = np.array([len(rewards), 1])
    assert RewardRule("sum", discount).totals(rows, lengths).tolist() == [total, rewards[0]]
    assert RewardRule("last").totals(rows, lengths).tolist() == [rewards[-1], rewards[0]]
    assert RewardRule(np.max).totals(rows, lengths).tolist() == [max(rewards), rewards[0]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 4), k=st.integers(1, 6), discount=st.sampled_from([1.0, 0.9]))
def test_recomputed_goal_rewards_equal_the_reported_ones(seed, n, k, discount):
    executor = SkillExecutor(ToyGoalEnv(continuing=True), skill_duration=k, discount=discount)
    rewards, goals, infos = [], [], []
    for i in range(n):
        executor.reset(seed=seed + i)
        observation, reward, *_, info = executor.step(chunk(np.ones((k, 2)), k, last=True, duration=k))
        assert executor.compute_reward(observation["achieved_goal"], observation["desired_goal"], info) == reward
        rewards.append(reward), goals.append(observation["desired_goal"]), infos.append(info)
    assert executor.compute_reward(None, np.stack(goals), infos).tolist() == rewards


class Odd(ToyEnv):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkillExecutor(ToyEnv(), skill_duration=0), "skill_duration and replan_every must be at least 1"),
        (lambda: SkillExecutor(Odd(), skill_duration=4), "Box or Discrete action space, got MultiDiscrete"),
        (lambda: SkillExecutor(ToyEnv(), until_done=True), r"Pass skill_duration=, or until_done=True for an"),
        (
            lambda: SkillExecutor(ToyEnv(), skill_duration=4, terminate_fn=lambda *_: True),
            "terminate_fn gets the skill: pass skill_dim=",
        ),
        (
            lambda: SkillExecutor(SkillExecutor(ToyEnv(), skill_duration=4), skill_duration=4),
            "already runs skills: found SkillExecutor inside",
        ),
        (lambda: RewardRule("mean"), "reward must be 'sum', 'discounted', 'last' or a function, got 'mean'"),
        (lambda: RewardRule("sum", 1.5), r"discount must be in \(0, 1\], got 1.5"),
        (lambda: RewardRule("discounted"), "'discounted' needs a discount below 1"),
        (lambda: RewardRule("last", 0.9), "discount=0.9 has no effect with reward='last'"),
    ],
)
def test_wrong_settings_are_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_chunk_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"must have shape \(n, \*\(2,\)\), got \(4, 3\)"):
        scripted(length=9, skill_duration=4).run(np.zeros((4, 3)))


def test_a_skill_takes_no_more_actions_than_it_lasts():
    executor = scripted(length=9, skill_duration=6)
    executor.begin(6)
    assert not executor.run(HALF)
    assert executor.run(HALF)
    assert len(executor.env.trace) == 6


def test_without_a_skill_actions_do_nothing():
    executor = scripted(length=9, skill_duration=6)
    assert executor.step(chunk(HALF, 4, last=False))[4] == {"skill_over": True}
    assert executor.env.trace == []


def test_beginning_without_a_running_episode_is_refused():
    executor = SkillExecutor(ToyEnv(shortest=2, longest=2), skill_duration=4)
    with pytest.raises(gym.error.ResetNeeded, match="no episode is running"):
        executor.begin(4)
    executor.reset(seed=0)
    executor.step(chunk(HALF, 4, last=True, duration=4))
    with pytest.raises(gym.error.ResetNeeded, match="no episode is running"):
        executor.begin(4)


def test_a_duration_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"a skill lasts 1\.\.4 low-level steps here, got 5"):
        scripted(length=9, skill_duration=4).begin(5)


def test_terminate_fn_ends_the_skill_and_not_the_episode():
    calls = []

    def stop(observation, skill, steps):
        calls.append((float(observation[2]), skill.tolist(), steps))
        return steps == 3

    executor = scripted(length=20, skill_duration=8, terminate_fn=stop, skill_dim=2)
    assert executor.action_space["skill"].shape == (2,)
    begin = {**chunk(np.zeros((8, 2)), 8, last=True, duration=8), "skill": np.array([0.5, -1])}
    _, _, terminated, truncated, info = executor.step(begin)
    assert calls == [(19.0, [0.5, -1.0], 1), (18.0, [0.5, -1.0], 2), (17.0, [0.5, -1.0], 3)]
    assert (terminated, truncated) == (False, False)
    assert (info["skill_length"], info["skill_interrupted"]) == (3, True)


def test_until_done_lasts_for_the_environments_time_limit_and_its_end_is_no_interruption():
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1", max_episode_steps=50), 30)
    executor = SkillExecutor(env, until_done=True)
    assert executor.skill_duration == 30
    executor.reset(seed=0)
    *_, truncated, info = executor.step(chunk(np.zeros((30, 1)), 30, last=True, duration=30))
    assert truncated and info["skill_length"] == 30
    short = scripted(length=5, skill_duration=8, until_done=True)
    *_, info = short.step(chunk(np.zeros((8, 2)), 8, last=True, duration=8))
    assert (info["skill_length"], info["skill_interrupted"]) == (5, False)


def test_discrete_actions_are_the_largest_of_their_numbers():
    env = gym.wrappers.TransformAction(
        gym.make("CartPole-v1"), lambda action: action - 3, gym.spaces.Discrete(2, start=3)
    )
    taken = []
    env.env.step = lambda action, step=env.env.step: (taken.append(int(action)), step(action))[1]
    executor = SkillExecutor(env, skill_duration=3)
    assert executor.action_space["actions"] == spaces.MultiBinary((3, 2))
    executor.reset(seed=0)
    executor.step(chunk(np.array([[0.9, 0.1], [0.2, 0.3], [0.6, 0.5]]), 3, last=True, duration=3))
    assert taken == [0, 1, 0]


def test_an_environment_that_uses_our_info_keys_is_refused():
    executor = scripted(length=9, skill_duration=4)
    executor.begin(4)
    executor.run(HALF)
    executor._last_info["skill_return"] = 1
    with pytest.raises(ValueError, match=r"info already has \['skill_return'\]"):
        executor.finish()


def test_scoring_a_goal_needs_a_goal_environment():
    with pytest.raises(ValueError, match="ToyEnv: expected a Dict observation"):
        scripted(length=9, skill_duration=4).goal_rewards(np.zeros((1, 4, 2)), np.zeros((1, 2)))


def test_scoring_a_skill_needs_the_goals_achieved_on_the_way():
    executor = SkillExecutor(ToyGoalEnv(), skill_duration=4)
    with pytest.raises(ValueError, match=r"expected 'skill_achieved_goals' in every info.*copy_info_dict=True"):
        executor.compute_reward(np.zeros((1, 2)), np.zeros((1, 2)), [{}])


def layout(*sources: ObservationSource) -> Layout:
    return Layout(2, (0, 1), (0, 1), sources=sources)


SOURCES = (ObservationSource(5, (4, 0), ("b", "a")), ObservationSource(4, (3, 1)))
BOX = spaces.Box(-1, 1, (4,), np.float64)
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (3,)), "c": spaces.Discrete(3)})


def test_inputs_come_from_the_first_source_that_fits():
    assert InputSelector(BOX, layout(*SOURCES)).source is SOURCES[1]
    selector = InputSelector(DICT, layout(*SOURCES))
    assert selector({"a": np.array([4.0, 5.0]), "b": np.array([1.0, 2.0, 3.0]), "c": 0}).tolist() == [5.0, 1.0]


def test_inputs_are_new_float32_arrays_and_batches_select_like_singles():
    selector = InputSelector(BOX, layout(*SOURCES))
    observations = np.arange(12.0).reshape(3, 4)
    before = observations.copy()
    inputs = selector(observations)
    assert inputs.dtype == np.float32
    assert inputs.tolist() == [selector(row).tolist() for row in observations] == [[3, 1], [7, 5], [11, 9]]
    inputs[:] = 0
    assert (observations == before).all()


@pytest.mark.parametrize(
    ("space", "got"),
    [
        (spaces.Box(-1, 1, (5,)), r"a Box of shape \(5,\)"),
        (spaces.Box(-1, 1, (2, 2)), r"a Box of shape \(2, 2\)"),
        (spaces.Discrete(4), r"a Discrete of shape \(\)"),
        (spaces.Dict({"a": BOX, "b": spaces.Discrete(1)}), r"a Dict of 'a' \(4,\), 'b' \(\)"),
    ],
)
def test_an_observation_without_the_inputs_is_refused_saying_what_was_expected_and_what_to_do(space, got):
    expected = "expected a Dict whose 'b' \\+ 'a' has 5 numbers or a Box of 4 numbers, got " + got
    with pytest.raises(ValueError, match=expected + r"; pass obs_fn=.*2 numbers the policy reads"):
        InputSelector(space, layout(*SOURCES))
