"""An agent learns from what a SkillGraph did, and evaluations count low-level steps."""

import csv
import io

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from didi_gym.planning import SkillGraph
from didi_gym.sb3 import LowLevelEvalCallback, SkillHerReplayBuffer, store_transitions
from didi_gym.wrappers import SkillActionWrapper
from tests.doubles import ScriptedPolicy
from tests.planning.test_skill_graph import WalledRoom, make_vec, walk
from tests.planning.test_skill_graph import make as make_graph_room


def make():
    return SkillActionWrapper(WalledRoom(), ScriptedPolicy("ball"), skill_duration=(2, 6), replan_every=2, engine=walk)


def sac(n=1, **settings):
    return SAC(
        "MultiInputPolicy",
        DummyVecEnv([make] * n),
        replay_buffer_class=SkillHerReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.99},
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        device="cpu",
        **settings,
    )


@pytest.mark.parametrize("n", [1, 3])
def test_the_buffer_holds_what_the_graph_did(n):
    agent, seen = sac(n), []
    store = store_transitions(agent)

    def both(*step):
        seen.append(step)
        store(*step)

    env = make() if n == 1 else make_vec(n, AutoresetMode.NEXT_STEP)
    SkillGraph(env, seed=0).learn(1_500, progress=False, on_step=both)
    buffer = agent.replay_buffer
    assert buffer.pos == len(seen) // n
    for number, (row, observation, action, step) in enumerate(seen):
        slot = number // n
        np.testing.assert_allclose(buffer.observations["achieved_goal"][slot, row], observation["achieved_goal"])
        np.testing.assert_allclose(
            buffer.next_observations["achieved_goal"][slot, row], step.observation["achieved_goal"]
        )
        np.testing.assert_allclose(buffer.actions[slot, row], action, atol=1e-6)
        assert buffer.rewards[slot, row] == step.reward
        assert buffer.skill_lengths[slot, row] == step.info["skill_length"]
        assert buffer.dones[slot, row] >= step.ended  # more where the graph left an episode
        assert buffer.timeouts[slot, row] >= (step.truncated and not step.terminated)
    assert sum(step.terminated for *_, step in seen) > 3


def test_decisions_out_of_turn_are_refused():
    agent = sac(2)
    store, seen = store_transitions(agent), []
    SkillGraph(make(), seed=0).learn(6, progress=False, on_step=lambda *step: seen.append(step))
    store(*seen[0])
    with pytest.raises(ValueError, match="2 environments"):
        store(*seen[0])


def test_agents_without_a_buffer_or_with_other_actions_are_refused():
    with pytest.raises(TypeError, match="got PPO"):
        store_transitions(PPO("MultiInputPolicy", make(), n_steps=64))
    other = make_graph_room(durations=(4,))
    assert other.action_space.shape == (2,)
    with pytest.raises(ValueError, match=r"shape \(2,\), as the agent's are, got \(3,\)"):
        SkillGraph(make_graph_room(), seed=0).learn(
            6, progress=False, on_step=store_transitions(SAC("MultiInputPolicy", other, buffer_size=10))
        )


def test_evaluations_come_every_so_many_low_level_steps_and_training_ends(tmp_path):
    agent, file = sac(learning_starts=10**6), tmp_path / "rows" / "eval.csv"
    callback = LowLevelEvalCallback(make(), every=200, until=900, episodes=2, file=file)
    agent.learn(10**9, callback=callback)
    counted = [steps for steps, _ in callback.reports]
    assert 900 <= callback.low_level_steps < 906 and agent.num_timesteps < callback.low_level_steps / 2
    assert [steps // 200 for steps in counted] == [1, 2, 3, 4, 4]
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [int(row["low_level_steps"]) for row in rows] == counted
    assert all(report.episodes[0].seed == 10_000_000 for _, report in callback.reports)
    with pytest.raises(ValueError, match="at least 1"):
        LowLevelEvalCallback(make(), every=0)
    with pytest.raises(ValueError, match="episodes"):
        LowLevelEvalCallback(make(), every=10, episodes=0)
    with pytest.raises(TypeError, match="got DummyVecEnv"):
        LowLevelEvalCallback(DummyVecEnv([make]), every=10)
