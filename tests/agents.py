"""Small agents over the skills of toy environments."""

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO

from didi_gym.models.policy import SkillPolicy
from didi_gym.wrappers import SkillActionWrapper
from tests.doubles import ScriptedPolicy, register_toys


def make_policy(seed=0, **changes):
    """A real policy, untrained, for the toy environments."""
    torch.manual_seed(seed)
    policy = SkillPolicy(ScriptedPolicy(**changes).config).eval().requires_grad_(False)
    for parameter in policy.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def toy(policy, **settings):
    register_toys()
    return SkillActionWrapper(gym.make("Toy-v0", disable_env_checker=True), policy, device="cpu", **settings)


def make_agent(env, algorithm=PPO):
    settings = {"n_steps": 8, "batch_size": 8} if issubclass(algorithm, PPO) else {}
    return algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **settings)


def predictions(agent):
    return agent.predict(np.random.default_rng(0).normal(size=(9, 3)), deterministic=True)[0]
