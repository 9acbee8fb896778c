"""Decisions and reports of agents: the same over one environment and over many, in every autoreset mode."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from stable_baselines3.common.vec_env import DummyVecEnv

from didi_gym.evaluation import decisions, evaluate_agent
from didi_gym.wrappers import SkillActionVectorWrapper, SkillActionWrapper
from didi_gym.wrappers.executor import SkillExecutor
from tests.doubles import ScriptedPolicy
from tests.planning.test_skill_graph import WalledRoom, walk

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Straight:
    """Goes straight to the goal, and counts its decisions of an episode in its state."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        way = np.asarray(observation["desired_goal"] - observation["achieved_goal"])
        count = np.zeros(way.shape[:-1]) if state is None else np.where(episode_start.reshape(way.shape[:-1]), 0, state)
        action = way / np.linalg.norm(way, axis=-1, keepdims=True)
        return np.concatenate([action, count[..., None] % 2 - 0.5], axis=-1).astype(np.float32), count + 1


def make():
    return SkillActionWrapper(
        WalledRoom(limit=60), ScriptedPolicy("ball"), skill_duration=(2, 6), replan_every=2, engine=walk
    )


def make_vec(n, mode):
    def one():
        return SkillExecutor(WalledRoom(limit=60), skill_duration=6, replan_every=2)

    envs = SyncVectorEnv([one] * n, autoreset_mode=mode)
    return SkillActionVectorWrapper(envs, ScriptedPolicy("ball"), skill_duration=(2, 6), engine=walk)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 3])
def test_many_environments_give_the_episodes_of_one(mode, n):
    one = evaluate_agent(Straight(), make(), 8, progress=False)
    assert evaluate_agent(Straight(), make_vec(n, mode), 8, progress=False) == one
    assert 0 < one.success < 1 and {row.low_level_steps for row in one.episodes if not row.success} == {60}
    low, high = one.success_interval
    assert low < one.success < high and one.mean_return_interval[0] <= one.mean_return <= one.mean_return_interval[1]


@pytest.mark.parametrize("mode", MODES)
def test_decisions_follow_one_another_and_end_with_the_episodes_own_last_observation(mode):
    env, last = make_vec(3, mode), {}
    for decision in itertools.islice(decisions(env, Straight(), itertools.count(5)), 60):
        before = last.get(decision.row)
        if before is not None and not before.ended:
            assert decision.episode == before.episode and decision.index == before.index + 1
            np.testing.assert_array_equal(
                decision.observation["achieved_goal"], before.next_observation["achieved_goal"]
            )
        else:
            assert decision.index == 0 and decision.observation["observation"][2] == 0
        assert decision.seed == 5 + decision.episode
        expected = np.array([2, 6])[int(decision.action[2] > 0)]
        assert decision.low_level_steps == expected or decision.ended
        if decision.terminated:
            assert decision.success
            gap = decision.next_observation["achieved_goal"] - decision.next_observation["desired_goal"]
            assert np.linalg.norm(gap) < 0.3
        last[decision.row] = decision


def test_low_level_agents_are_evaluated_too():
    class Still:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros((*np.shape(observation)[:-1], 1), np.float32), None

    report = evaluate_agent(Still(), gym.make("Pendulum-v1", max_episode_steps=20), 3, progress=False)
    assert [row.low_level_steps for row in report.episodes] == [20] * 3
    assert np.isnan(report.success) and np.isnan(report.falls) and report.mean_return < 0
    vector = gym.make_vec("Pendulum-v1", num_envs=2, max_episode_steps=20)
    assert evaluate_agent(Still(), vector, 3, progress=False) == report


def test_what_cannot_be_evaluated_is_said_in_a_sentence():
    for none in ({"episodes": 0}, {"seeds": []}):
        with pytest.raises(ValueError, match="at least one episode"):
            evaluate_agent(Straight(), make(), progress=False, **none)
    with pytest.raises(TypeError, match="got DummyVecEnv; didi_gym"):
        evaluate_agent(Straight(), DummyVecEnv([make]), 2, progress=False)
    batched = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    with pytest.raises(TypeError, match="got CartPoleVectorEnv; make it with vectorization_mode='sync'"):
        evaluate_agent(Straight(), batched, 2, progress=False)
    with pytest.raises(TypeError, match="leave DictInfoToList out"):
        evaluate_agent(Straight(), DictInfoToList(make_vec(2, MODES[0])), 2, progress=False)
    twice = evaluate_agent(Straight(), make(), seeds=np.array([4, 4]), progress=False)
    assert twice.episodes[0] == twice.episodes[1] and twice.episodes[0].seed == 4
