"""PPO and A2C over skills: what they store, and that nothing else of stable-baselines3's algorithms has changed."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import MaskablePPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from didi_gym.sb3 import (
    SkillA2C,
    SkillDictRolloutBuffer,
    SkillMaskableDictRolloutBuffer,
    SkillMaskablePPO,
    SkillMaskableRolloutBuffer,
    SkillPPO,
    SkillRolloutBuffer,
)
from didi_gym.wrappers import SkillActionWrapper
from tests.doubles import ScriptedPolicy, ToyEnv, ToyGoalEnv

GAMMA = 0.9
ENVS = {"Box": ToyEnv, "Dict": lambda *lengths: ToyGoalEnv(*lengths, continuing=True)}
ALGORITHMS = [(SkillPPO, PPO), (SkillA2C, A2C), (SkillMaskablePPO, MaskablePPO)]
EACH = pytest.mark.parametrize("ours", [ours for ours, _ in ALGORITHMS])


def is_maskable(algorithm):
    return issubclass(algorithm, MaskablePPO)


def skill_vec_env(algorithm, observations="Box", lengths=(20, 1), n_envs=3, kind=None, **settings):
    """Episodes of random lengths; half of them are truncated, in the middle of a skill too."""

    def make():
        policy = ScriptedPolicy(kind or ("discrete" if is_maskable(algorithm) else "box"))
        env = SkillActionWrapper(ENVS[observations](*lengths), policy, **settings)
        return ActionMasker(env, lambda env: np.ones(2, bool)) if is_maskable(algorithm) else env

    return DummyVecEnv([make] * n_envs)


def make_agent(algorithm, venv, **kwargs):
    policy = "MultiInputPolicy" if isinstance(venv.observation_space.sample(), dict) else "MlpPolicy"
    if not issubclass(algorithm, A2C):
        kwargs = {"batch_size": 24, "n_epochs": 2, **kwargs}
    kwargs = {"n_steps": 16, "gamma": GAMMA, "policy_kwargs": {"net_arch": [16]}, **kwargs}
    return algorithm(policy, venv, seed=0, device="cpu", **kwargs)


def collect(agent, callback=None):
    """One rollout, without learning from it."""
    _, callback = agent._setup_learn(1000, callback)
    agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
    return agent.rollout_buffer


def parameters(agent):
    return th.nn.utils.parameters_to_vector(agent.policy.parameters()).detach().clone()


class Record(BaseCallback):
    """What each step returned; stops after `stop_after` steps."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after
        self.steps, self.rollouts = [], 0

    def _on_step(self):
        self.steps.append((self.locals["rewards"].copy(), self.locals["infos"]))
        return self.n_calls != self.stop_after

    def _on_rollout_end(self):
        self.rollouts += 1


@pytest.mark.parametrize("observations", ENVS)
@pytest.mark.parametrize(("ours", "theirs"), ALGORITHMS)
def test_with_skills_of_one_step_learning_is_that_of_stable_baselines_bit_for_bit(ours, theirs, observations):
    learned = [
        parameters(make_agent(algorithm, skill_vec_env(algorithm, observations, skill_duration=1)).learn(150))
        for algorithm in (ours, theirs)
    ]
    assert th.equal(*learned)


@pytest.mark.parametrize(("ours", "theirs"), ALGORITHMS)
def test_with_skills_of_one_length_gamma_to_its_power_is_exact(ours, theirs):
    buffers = []
    for algorithm, gamma in ((ours, GAMMA), (theirs, GAMMA**6)):
        venv = skill_vec_env(algorithm, lengths=(18, 18), skill_duration=6)  # truncated or terminated, never inside
        agent = make_agent(algorithm, venv, gamma=gamma, n_steps=64)
        buffers.append(collect(agent))
    assert (buffers[0].skill_lengths == 6).all()
    np.testing.assert_array_equal(buffers[0].actions, buffers[1].actions)
    np.testing.assert_allclose(buffers[0].advantages, buffers[1].advantages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("observations", ENVS)
@EACH
def test_a_truncated_skill_is_bootstrapped_by_its_own_length(ours, observations, normalise):
    venv = skill_vec_env(ours, observations, skill_duration=5)
    venv = VecNormalize(venv, gamma=GAMMA**5) if normalise else venv
    agent, record = make_agent(ours, venv), Record()
    buffer, bootstrapped = collect(agent, record), 0
    for step, (rewards, infos) in enumerate(record.steps):
        for env, (reward, info) in enumerate(zip(rewards, infos, strict=True)):
            expected = reward
            if info["TimeLimit.truncated"]:
                bootstrapped += 1
                terminal = agent.policy.obs_to_tensor(info["terminal_observation"])[0]
                expected += GAMMA ** info["skill_length"] * agent.policy.predict_values(terminal).item()
            assert buffer.rewards[step, env] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert buffer.skill_lengths[step, env] == info["skill_length"]
    assert bootstrapped > 3
    assert len(np.unique(buffer.skill_lengths)) == 5


@pytest.mark.parametrize("observations", ENVS)
@EACH
def test_agents_save_load_take_another_environment_and_go_on(tmp_path, ours, observations):
    agent = make_agent(ours, skill_vec_env(ours, observations)).learn(96)
    agent.save(tmp_path / "agent")
    loaded = ours.load(tmp_path / "agent", env=skill_vec_env(ours, observations, n_envs=2), device="cpu")
    observation = loaded.env.reset()
    predictions = [each.predict(observation, deterministic=True)[0] for each in (agent, loaded)]
    np.testing.assert_array_equal(*predictions)
    assert isinstance(loaded.rollout_buffer, SkillRolloutBuffer)
    assert loaded.rollout_buffer.skill_lengths.shape == (16, 2)
    before = parameters(loaded)
    loaded.learn(40)
    loaded.set_env(skill_vec_env(ours, observations, n_envs=2))
    loaded.learn(40, reset_num_timesteps=False)
    assert not th.equal(parameters(loaded), before)
    assert loaded.num_timesteps == 128


@EACH
def test_the_buffer_follows_the_observations(ours):
    expected = (
        (SkillMaskableRolloutBuffer, SkillMaskableDictRolloutBuffer)
        if is_maskable(ours)
        else (SkillRolloutBuffer, SkillDictRolloutBuffer)
    )
    for observations, cls in zip(ENVS, expected, strict=True):
        assert type(make_agent(ours, skill_vec_env(ours, observations)).rollout_buffer) is cls


@EACH
def test_callbacks_are_called_as_ever_and_can_stop_the_training(ours, tmp_path):
    agent, record = make_agent(ours, skill_vec_env(ours)), Record(stop_after=21)
    evaluation = EvalCallback(
        DummyVecEnv([lambda: Monitor(skill_vec_env(ours, n_envs=1).envs[0])]),
        n_eval_episodes=2,
        eval_freq=10,
        log_path=str(tmp_path),
        verbose=0,
    )
    agent.learn(1000, callback=[record, evaluation])
    assert (len(record.steps), record.rollouts, evaluation.n_calls) == (21, 1, 21)
    assert len(evaluation.evaluations_timesteps) == 2
    assert agent.num_timesteps == 63  # skills, in three environments
    agent.learn(48, callback=lambda local, _: len(local["infos"]) == 3)  # after a stop in the middle of a rollout
    assert agent.num_timesteps == 48


@pytest.mark.parametrize("normalise", [False, True])
@EACH
def test_learning_reaches_the_skill_that_pays(ours, normalise):
    """The reward is the first number of the low-level action, to which skill 0 adds a half, and skill 1 nothing."""
    venv = skill_vec_env(ours, kind="discrete", lengths=(20, 20))
    for env in venv.envs:
        env.unwrapped.step = paying_first_action(env.unwrapped.step)
    venv = VecNormalize(venv, gamma=GAMMA**6) if normalise else venv
    agent = make_agent(ours, venv, learning_rate=3e-3, n_steps=32).learn(2000)
    actions = agent.predict(venv.reset(), deterministic=True)[0]
    assert (actions == 0).all()


def paying_first_action(step):
    def pay(action):
        observation, _, terminated, truncated, info = step(action)
        return observation, float(action[0]), terminated, truncated, info

    return pay


def test_masked_skills_are_never_taken():
    def make():
        env = SkillActionWrapper(ToyEnv(), ScriptedPolicy("discrete"))
        return ActionMasker(env, lambda env: np.array([env.unwrapped.episode % 2 == 0, True]))

    agent = make_agent(SkillMaskablePPO, DummyVecEnv([make] * 2))
    buffer = collect(agent)
    forbidden = buffer.action_masks[..., 0] == 0
    assert 0 < forbidden.mean() < 1
    assert (buffer.actions[forbidden] == 1).all()
    assert (buffer.actions == 0).any()
    samples = next(buffer.get(batch_size=None))
    assert samples.action_masks.shape == (32, 2)


@pytest.mark.filterwarnings("ignore::tqdm.std.TqdmExperimentalWarning")
def test_the_progress_bar_counts_skills(capsys):
    make_agent(SkillPPO, skill_vec_env(SkillPPO)).learn(48, progress_bar=True)
    assert "48/48" in capsys.readouterr().out


def test_an_algorithm_that_announces_no_lengths_is_refused():
    agent = make_agent(PPO, skill_vec_env(PPO), rollout_buffer_class=SkillRolloutBuffer)
    with pytest.raises(ValueError, match="did not announce it; use SkillPPO, SkillA2C or SkillMaskablePPO"):
        agent.learn(48)


@EACH
def test_an_environment_without_skills_is_refused(ours):
    def make():
        env = gym.wrappers.TransformAction(ToyEnv(), lambda action: np.zeros(2, np.float32), gym.spaces.Discrete(2))
        return ActionMasker(env, lambda env: np.ones(2, bool))

    with pytest.raises(ValueError, match="expected 'skill_length' in every info"):
        make_agent(ours, DummyVecEnv([make] * 3)).learn(48)


@EACH
def test_settings_that_do_not_fit_are_refused(ours):
    venv = skill_vec_env(ours)
    with pytest.raises(ValueError, match=f"{ours.__name__} .* needs a SkillRolloutBuffer, got RolloutBuffer; leave"):
        make_agent(ours, venv, rollout_buffer_class=RolloutBuffer)
    with pytest.raises(ValueError, match=r"discount per low-level step and must be in \(0, 1\], got 0"):
        make_agent(ours, venv, gamma=0)
    with pytest.raises(ValueError, match=r"for Dict observations, .*; leave rollout_buffer_class out"):
        make_agent(ours, venv, rollout_buffer_class=SkillDictRolloutBuffer)


class FollowSignal(ToyEnv):
    """Pays 1 for every step whose action points where the signal says; the signal is drawn anew every fourth step."""

    def step(self, action):
        paid = float(int(action.argmax()) == self.signal)
        self.steps_left -= 1
        if self.steps_left % 4 == 0:
            self.signal = int(self.np_random.integers(2))
        return self._observation(), paid, False, self.steps_left == 0, {}

    def _observation(self):
        if not hasattr(self, "signal"):
            self.signal = 0
        return np.array([0.0, 0.0, self.signal])


@pytest.mark.parametrize(
    ("algorithm", "gamma", "pays"), [(SkillPPO, 0.9, 0.95), (PPO, 0.9**4, 0.7), (PPO, 0.9**16, 0.7)]
)
def test_of_skills_of_several_lengths_a_discount_by_length_takes_those_that_pay_per_step(algorithm, gamma, pays):
    # A skill of 4 steps earns 4, one of 16 earns 10: for one discount whatever the length, the longer one wins.
    def make():
        return SkillActionWrapper(
            FollowSignal(64, 64), ScriptedPolicy("discrete"), skill_duration=(4, 16), discount=0.9
        )

    agent = make_agent(algorithm, DummyVecEnv([make] * 8), gamma=gamma, learning_rate=0.01, n_steps=32, batch_size=128)
    agent.learn(3000)
    env, paid = make(), 0.0
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            observation, _, _, ended, info = env.step(int(agent.predict(observation, deterministic=True)[0]))
            paid += info["skill_return"]
    assert (paid / 640 > pays) == (algorithm is SkillPPO)
