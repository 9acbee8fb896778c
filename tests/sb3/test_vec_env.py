"""What users of stable-baselines3 do with `make_vec_env`: evaluate, log, save on the way, normalise, relabel, mask."""

import numpy as np
import pytest
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

import didi_gym
from didi_gym.sb3 import SkillHerReplayBuffer, SkillMaskablePPO, SkillReplayBuffer, make_vec_env
from tests.doubles import ScriptedPolicy, register_toys

GAMMA = 0.9
SETTINGS = {"skill_duration": (2, 4, 7), "discount": GAMMA, "shortest": 10}


def toys(n_envs=4, env_id="Toy-v0", kind="box", **kwargs):
    register_toys()
    return make_vec_env(env_id, ScriptedPolicy(kind), n_envs, **{**SETTINGS, **kwargs})


def make_sac(env, buffer=SkillReplayBuffer, learning_starts=20):
    return SAC(
        "MultiInputPolicy" if buffer is SkillHerReplayBuffer else "MlpPolicy",
        env,
        learning_starts=learning_starts,
        gradient_steps=-1,
        batch_size=16,
        replay_buffer_class=buffer,
        replay_buffer_kwargs={"gamma": GAMMA},
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )


def test_evaluate_policy_in_many_environments_reports_the_episodes_of_single_ones_stepped_by_hand():
    agent = make_sac(toys()).learn(100)
    returns, lengths = evaluate_policy(agent, toys(seed=7), 12, return_episode_rewards=True)
    envs = [didi_gym.make("Toy-v0", ScriptedPolicy(), **SETTINGS) for _ in range(4)]
    observations = np.stack([env.reset(seed=7 + i)[0] for i, env in enumerate(envs)])
    episodes, running, counts = [], np.zeros((4, 2)), np.zeros(4, int)
    while counts.min() < 3:
        actions, _ = agent.predict(observations, deterministic=True)
        for i, env in enumerate(envs):
            observations[i], _, terminated, truncated, info = env.step(actions[i])
            running[i] += info["skill_return"], info["skill_length"]
            if terminated or truncated:
                if counts[i] < 3:
                    episodes.append(tuple(running[i]))
                counts[i] += 1
                running[i] = 0
                observations[i], _ = env.reset()
    assert lengths == [length for _, length in episodes]
    np.testing.assert_allclose(returns, [total for total, _ in episodes], atol=1e-5)


def test_logged_episodes_are_counted_in_low_level_steps_and_training_in_skills():
    class Lengths(BaseCallback):
        total = 0

        def _on_step(self):
            self.total += sum(info["skill_length"] for info in self.locals["infos"])
            return True

    env, counted = toys(), Lengths()
    agent = make_sac(env).learn(200, callback=counted)
    assert agent.num_timesteps == 200
    assert counted.total == env.low_level_steps > 2 * 200
    assert {10, 15} <= {episode["l"] for episode in agent.ep_info_buffer} <= set(range(10, 16))


def test_callbacks_save_normalised_agents_that_come_back_and_learn_on(tmp_path):
    env = VecNormalize(toys(), gamma=GAMMA**4)
    evaluation = VecNormalize(toys(2, seed=9), training=False, norm_reward=False)
    callbacks = [
        EvalCallback(evaluation, eval_freq=10, n_eval_episodes=4, best_model_save_path=str(tmp_path), verbose=0),
        CheckpointCallback(20, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True),
    ]
    agent = make_sac(env).learn(80, callback=callbacks)
    np.testing.assert_array_equal(evaluation.obs_rms.mean, env.obs_rms.mean)  # both at the last step
    loaded_env = VecNormalize.load(tmp_path / "rl_model_vecnormalize_80_steps.pkl", toys())
    np.testing.assert_array_equal(loaded_env.obs_rms.mean, env.obs_rms.mean)
    loaded = SAC.load(tmp_path / "rl_model_80_steps", env=loaded_env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_80_steps.pkl")
    stored, all_stored = loaded.replay_buffer, agent.replay_buffer
    assert stored.pos == all_stored.pos - 1 == 19  # SB3 calls back before it stores a step
    np.testing.assert_array_equal(stored.skill_lengths[:19], all_stored.skill_lengths[:19])
    assert loaded.learn(40, reset_num_timesteps=False).num_timesteps == 120
    SAC.load(tmp_path / "best_model", env=loaded_env, device="cpu").learn(40)


@pytest.mark.parametrize("continuing", [False, True])
def test_hindsight_over_many_environments_reproduces_what_is_stored_where_the_goal_stays(continuing):
    env = toys(env_id="ToyGoal-v0", continuing=continuing, seed=1)
    agent = make_sac(env, SkillHerReplayBuffer, learning_starts=400)
    agent.replay_buffer.terminal_on_success = not continuing
    agent.learn(400)
    buffer = agent.replay_buffer
    at = np.divmod(np.arange(buffer.size() * 4), 4)
    relabelled = buffer._relabel(at, buffer.observations["desired_goal"][at])
    for new, stored in zip(relabelled, buffer._stored(at), strict=True):
        np.testing.assert_array_equal(new, stored)
    assert (buffer._stored(at)[0] > 0).sum() > 5


def only_where_even(observation):
    return np.array([int(observation[2]) % 2 == 0, True])


def test_masks_of_skills_hold_at_every_duration_for_an_agent_over_many_environments():
    class Taken(BaseCallback):
        forbidden = taken = 0

        def _on_step(self):
            masks, actions = self.locals["action_masks"], np.array(self.locals["actions"])
            self.forbidden += (~masks.astype(bool)).sum()
            self.taken += (~masks.astype(bool))[np.arange(4), actions].sum()
            return True

    env = toys(kind="discrete", mask_fn=only_where_even)
    agent = SkillMaskablePPO("MlpPolicy", VecNormalize(env), gamma=GAMMA, n_steps=8, batch_size=16, device="cpu")
    seen = Taken()
    agent.learn(96, callback=seen)
    assert env.action_space.n == 2 * 3
    assert seen.forbidden > 50
    assert seen.taken == 0
    _, lengths = evaluate_masked(agent, agent.get_env(), 4, return_episode_rewards=True)
    assert all(10 <= length <= 15 for length in lengths)
