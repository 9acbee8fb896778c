"""Every algorithm over skills: the discounts that reach its critic, what it counts, and what comes back from a file."""

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from didi_gym.sb3 import (
    RelativeGoalExtractor,
    SkillA2C,
    SkillDictReplayBuffer,
    SkillHerReplayBuffer,
    SkillMaskablePPO,
    SkillPPO,
    SkillReplayBuffer,
)
from didi_gym.wrappers import SkillActionWrapper
from tests.doubles import ScriptedPolicy, ToyEnv, ToyGoalEnv

GAMMA = 0.9
OFF_POLICY = {SAC: "box", TD3: "box", TQC: "box", CrossQ: "box", DQN: "discrete", QRDQN: "discrete"}
ON_POLICY = {PPO: "box", A2C: "box", SkillPPO: "box", SkillA2C: "discrete", MaskablePPO: "discrete"}
ON_POLICY |= {SkillMaskablePPO: "discrete"}


def skill_vec_env(algorithm, make_env=ToyEnv, n_envs=2):
    def make():
        env = SkillActionWrapper(make_env(), ScriptedPolicy((OFF_POLICY | ON_POLICY)[algorithm]), discount=GAMMA)
        return ActionMasker(env, lambda env: np.ones(2, bool)) if issubclass(algorithm, MaskablePPO) else env

    return DummyVecEnv([make] * n_envs)


class Spy(SkillReplayBuffer):
    """Remembers which transitions were sampled."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.samples = []

    def sample(self, *args, **kwargs):
        samples = super().sample(*args, **kwargs)
        self.samples.append(samples)
        return samples


def make_agent(algorithm, venv, **kwargs):
    kwargs.setdefault("gamma", GAMMA)
    if algorithm in OFF_POLICY:
        gamma = kwargs.pop("buffer_gamma", GAMMA)
        common = {
            "learning_starts": 10,
            "train_freq": 1,
            "batch_size": 32,
            "replay_buffer_class": SkillReplayBuffer,
            "replay_buffer_kwargs": {"gamma": gamma},
        }
        if algorithm in (DQN, QRDQN):
            common["target_update_interval"] = 10
    else:
        common = {"n_steps": 16} | ({} if issubclass(algorithm, A2C) else {"batch_size": 16, "n_epochs": 2})
    kwargs = {"policy_kwargs": {"net_arch": [16]}, **common, **kwargs}
    policy = "MultiInputPolicy" if hasattr(venv.observation_space, "spaces") else "MlpPolicy"
    return algorithm(policy, venv, seed=0, device="cpu", **kwargs)


def parameters(agent):
    return th.nn.utils.parameters_to_vector(agent.policy.parameters()).detach().clone()


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_critics_are_given_gamma_to_the_length_of_each_skill(algorithm):
    agent = make_agent(algorithm, skill_vec_env(algorithm), replay_buffer_class=Spy).learn(120)
    buffer = agent.replay_buffer
    filled = slice(0, buffer.size())
    observations = buffer.observations[filled].reshape(-1, 3)
    lengths = buffer.skill_lengths[filled].ravel()
    length_of = dict(zip(map(tuple, observations.tolist()), lengths, strict=True))
    assert len(length_of) == len(lengths)  # an observation tells the transition
    assert set(lengths) == {1, 2, 3, 4, 5, 6}
    assert len(buffer.samples) >= 50
    for samples in buffer.samples:
        expected = [[GAMMA ** length_of[tuple(row)]] for row in samples.observations.tolist()]
        np.testing.assert_array_equal(samples.discounts.numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_the_buffers_gamma_counts_and_the_agents_own_does_not(algorithm):
    first, other_agent, other_buffer = (
        parameters(make_agent(algorithm, skill_vec_env(algorithm), gamma=gamma, buffer_gamma=buffer_gamma).learn(60))
        for gamma, buffer_gamma in ((0.99, GAMMA), (0.1, GAMMA), (0.99, 0.5))
    )
    assert th.equal(first, other_agent)
    assert not th.equal(first, other_buffer)


@pytest.mark.parametrize("algorithm", OFF_POLICY | ON_POLICY)
def test_agents_count_skills_learn_and_come_back_from_a_file(algorithm, tmp_path):
    venv = skill_vec_env(algorithm)
    agent = make_agent(algorithm, venv)
    before = parameters(agent)
    agent.learn(96)
    assert agent.num_timesteps == 96
    assert sum(venv.get_attr("low_level_steps")) > 2 * 96
    assert not th.equal(parameters(agent), before)
    assert parameters(agent).isfinite().all()
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=skill_vec_env(algorithm), device="cpu")
    observations = np.random.default_rng(0).normal(size=(20, 3))
    for deterministic in (True, False):
        predictions = []
        for each in (agent, loaded):
            each.set_random_seed(3)
            predictions.append(each.predict(observations, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*predictions)
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128


@pytest.mark.parametrize("buffer", [SkillDictReplayBuffer, SkillHerReplayBuffer])
@pytest.mark.parametrize(
    "algorithm", [each for each in OFF_POLICY if each is not CrossQ]
)  # which reads no Dict observations
def test_agents_of_goals_learn_from_stored_and_from_relabelled_skills(algorithm, buffer):
    venv = skill_vec_env(algorithm, ToyGoalEnv)
    networks = {"net_arch": [16], "features_extractor_class": RelativeGoalExtractor}
    agent = make_agent(algorithm, venv, replay_buffer_class=buffer, policy_kwargs=networks)
    before = parameters(agent)
    agent.learn(60)
    assert not th.equal(parameters(agent), before)
    assert parameters(agent).isfinite().all()


def test_a_vec_normalize_outside_leaves_the_skill_policy_its_raw_observations():
    traces, seen = [], []
    for normalise in (False, True):
        venv = raw = skill_vec_env(SAC)
        if normalise:
            venv = VecNormalize(venv, gamma=GAMMA ** raw.get_attr("skill_duration")[0])
        venv.seed(0)
        venv.action_space.seed(0)
        venv.reset()
        for _ in range(30):
            observations, *_ = venv.step(np.stack([venv.action_space.sample() for _ in range(2)]))
        traces.append([np.array([action for _, action in env.unwrapped.trace]) for env in raw.envs])
        seen.append(observations)
    for plain, normalised in zip(*traces, strict=True):
        np.testing.assert_array_equal(plain, normalised)
    assert not np.allclose(*seen)  # while the agent sees normalised ones
