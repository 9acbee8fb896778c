"""Against exact solutions: values computed from the buffers' own numbers are those of the semi-Markov process."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from didi_gym.sb3 import SkillDictReplayBuffer, SkillDictRolloutBuffer, SkillReplayBuffer, SkillRolloutBuffer

GAMMA = 0.97
STATES, ACTIONS, OUTCOMES, LONGEST = 6, 3, 4, 9
STATE = spaces.Box(0, STATES, (1,), np.float32)
DICT = spaces.Dict({"state": STATE})


@dataclass(frozen=True)
class SMDP:
    """Every (state, action) has a few equally likely outcomes; each array is `(states, actions, outcomes)`.

    A truncated outcome stops the episode but not the task: its next state counts.
    """

    rewards: np.ndarray
    lengths: np.ndarray
    next_states: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    @classmethod
    def random(cls, seed):
        rng = np.random.default_rng(seed)
        shape = STATES, ACTIONS, OUTCOMES
        ends = rng.random(shape)
        return cls(
            rng.integers(-1024, 2048, shape) / 1024,  # float32 holds these exactly
            rng.integers(1, LONGEST + 1, shape),
            rng.integers(0, STATES, shape),
            ends < 0.1,
            ends > 0.8,
        )

    def action_values(self):
        """Q* `(states, actions)` by policy iteration: every evaluation solves its linear equations."""
        policy = np.zeros(STATES, int)
        while True:
            weights = GAMMA**self.lengths * ~self.terminated / OUTCOMES
            matrix = np.zeros((STATES, ACTIONS, STATES))
            for index in np.ndindex(weights.shape):
                matrix[(*index[:2], self.next_states[index])] += weights[index]
            own = np.arange(STATES), policy
            values = np.linalg.solve(np.eye(STATES) - matrix[own], self.rewards.mean(-1)[own])
            q = self.rewards.mean(-1) + matrix @ values
            if (q.argmax(-1) == policy).all():
                return q
            policy = q.argmax(-1)


def observe(states, space):
    states = np.asarray(states, np.float32).reshape(-1, 1)
    return {"state": states} if isinstance(space, spaces.Dict) else states


def fill(buffer, smdp):
    """Every outcome once, as SB3 stores it: two environments, a truncation is a done with a flag."""
    outcomes = list(np.ndindex(smdp.rewards.shape))
    for pair in zip(outcomes[::2], outcomes[1::2], strict=True):
        done = np.array([smdp.terminated[at] or smdp.truncated[at] for at in pair])
        infos = [{"skill_length": smdp.lengths[at], "TimeLimit.truncated": bool(smdp.truncated[at])} for at in pair]
        buffer.add(
            observe([at[0] for at in pair], buffer.observation_space),
            observe([smdp.next_states[at] for at in pair], buffer.observation_space),
            np.array([[at[1]] for at in pair]),
            np.array([smdp.rewards[at] for at in pair]),
            done,
            infos,
        )


def fixed_point(buffer, discounts):
    """Iterate Q(s, a) <- mean of r + discount (1 - done) max Q(s', .) over what the buffer stores."""
    everywhere = tuple(np.indices((buffer.size(), buffer.n_envs)).reshape(2, -1))
    rewards, dones, _ = buffer._stored(everywhere)
    states, next_states = (
        (part["state"] if isinstance(part, dict) else part)[everywhere][:, 0].astype(int)
        for part in (buffer.observations, buffer.next_observations)
    )
    actions = buffer.actions[everywhere][:, 0]
    q = np.zeros((STATES, ACTIONS))
    for _ in range(20_000):
        targets = rewards.astype(float) + discounts[everywhere] * (1 - dones.astype(float)) * q[next_states].max(-1)
        updated = np.zeros_like(q)
        np.add.at(updated, (states, actions), targets / OUTCOMES)
        q, change = updated, np.abs(updated - q).max()
        if change < 1e-15:
            break
    return q


@pytest.mark.parametrize(
    ("cls", "space"), [(SkillReplayBuffer, STATE), (SkillDictReplayBuffer, DICT)], ids=["Box", "Dict"]
)
@pytest.mark.parametrize("seed", range(3))
def test_q_learning_on_the_buffers_numbers_finds_the_exact_values_and_other_discounts_do_not(cls, space, seed):
    smdp = SMDP.random(seed)
    buffer = cls(smdp.rewards.size, space, spaces.Discrete(ACTIONS), device="cpu", n_envs=2, gamma=GAMMA)
    fill(buffer, smdp)
    assert buffer.full
    exact = smdp.action_values()
    discounts = {
        "gamma ** skill_length": buffer.discounts(buffer.skill_lengths),
        "gamma": np.full((buffer.buffer_size, 2), GAMMA),
        "gamma ** skill_duration": np.full((buffer.buffer_size, 2), GAMMA**LONGEST),
    }
    errors = {name: np.abs(fixed_point(buffer, value) - exact).max() for name, value in discounts.items()}
    relative = {name: error / np.abs(exact).max() for name, error in errors.items()}
    print(f"seed {seed}, error of Q / max |Q*|: " + ", ".join(f"{k} {v:.1e}" for k, v in relative.items()))
    assert errors["gamma ** skill_length"] <= 1e-12
    assert relative["gamma"] > 0.05
    assert relative["gamma ** skill_duration"] > 0.05


def rollout_buffer(cls, space, steps, n_envs, **settings):
    return cls(steps, space, spaces.Discrete(ACTIONS), device="cpu", n_envs=n_envs, **settings)


def store(buffer, rewards, lengths, starts, values):
    """What SB3 does, without a truncation: the rewards stored are those that the environments gave."""
    for step in range(len(rewards)):
        buffer.announce([{"skill_length": length} for length in lengths[step]], rewards[step])
        buffer.add(
            observe(np.zeros(buffer.n_envs), buffer.observation_space),
            np.zeros((buffer.n_envs, 1)),
            rewards[step],
            starts[step],
            th.tensor(values[step]),
            th.zeros(buffer.n_envs),
        )


@pytest.mark.parametrize(
    ("cls", "space"), [(SkillRolloutBuffer, STATE), (SkillDictRolloutBuffer, DICT)], ids=["Box", "Dict"]
)
def test_returns_of_whole_episodes_are_the_discounted_returns_in_low_level_time(cls, space):
    gamma = 0.5  # powers of it, and these rewards, are exact in float32
    low_level = [[1.0, 2.0, 4.0], [3.0], [8.0, 1.0], [5.0, 5.0, 5.0], [2.0]]  # rewards of five skills
    episode_ends = [False, False, True, False, True]
    rewards = np.array([[sum(gamma**i * r for i, r in enumerate(skill))] for skill in low_level])
    lengths = np.array([[len(skill)] for skill in low_level])
    buffer = rollout_buffer(cls, space, 5, 1, gamma=gamma, gae_lambda=1.0)
    values = np.random.default_rng(0).integers(-8, 8, (5, 1)).astype(np.float32)  # must not matter
    store(buffer, rewards, lengths, np.array([[True], [False], [False], [True], [False]]), values)
    buffer.compute_returns_and_advantage(th.tensor([[9.0]]), np.array([True]))
    for first in range(5):
        last = next(index for index in range(first, 5) if episode_ends[index])
        to_come = [reward for skill in low_level[first : last + 1] for reward in skill]
        assert buffer.returns[first, 0] == sum(gamma**i * reward for i, reward in enumerate(to_come))
    np.testing.assert_array_equal(buffer.advantages, buffer.returns - values)


def test_lengths_are_announced_for_one_step_only():
    buffer = rollout_buffer(SkillRolloutBuffer, STATE, 5, 1)
    step = np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), th.zeros(1), th.zeros(1)
    buffer.announce([{"skill_length": 3}], np.zeros(1))
    buffer.add(*step)
    with pytest.raises(ValueError, match="the algorithm did not announce it"):
        buffer.add(*step)
    buffer.announce([{"skill_length": 3}], np.zeros(1))
    buffer.reset()
    with pytest.raises(ValueError, match="the algorithm did not announce it"):
        buffer.add(*step)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_advantages_equal_the_definition_written_as_a_sum(gae_lambda, seed):
    rng = np.random.default_rng(seed)
    steps, n_envs = 40, 3
    rewards, values = rng.normal(size=(2, steps, n_envs)).astype(np.float32)
    lengths = rng.integers(1, LONGEST + 1, (steps, n_envs))
    starts = rng.random((steps, n_envs)) < 0.2
    last_values, dones = rng.normal(size=n_envs).astype(np.float32), np.array([True, False, False])
    buffer = rollout_buffer(SkillRolloutBuffer, STATE, steps, n_envs, gamma=GAMMA, gae_lambda=gae_lambda)
    store(buffer, rewards, lengths, starts, values)
    buffer.compute_returns_and_advantage(th.tensor(last_values), dones)
    ends = np.concatenate([starts[1:], dones[None]])
    next_values = np.concatenate([values[1:], last_values[None]]).astype(float)
    expected = np.zeros((steps, n_envs))
    for first, env in np.ndindex(steps, n_envs):
        weight = 1.0
        for step in range(first, steps):
            discount = GAMMA ** lengths[step, env] * (not ends[step, env])
            delta = rewards[step, env] + discount * next_values[step, env] - values[step, env]
            expected[first, env] += weight * delta
            weight *= discount * gae_lambda
    np.testing.assert_allclose(buffer.advantages, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(buffer.returns, expected + values, rtol=1e-5, atol=1e-5)
