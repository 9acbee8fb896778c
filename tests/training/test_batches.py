"""Batches: normalised windows, robust against faults of a recording, and actions scaled by what the data uses."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from didi_gym.core.layout import Layout
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.policy import SkillPolicy
from didi_gym.training import Run, hold_out, train, train_dynamics
from didi_gym.training.config import DynamicsConfig, SkillConfig
from tests.examples import BODY, body_states, point_dataset, tiny

EVERY = torch.arange(0, 700, 10)


def _with_spike(column, value):
    dataset = point_dataset()
    observations = dataset.observations.copy()
    observations[100, column] = value
    return replace(dataset, observations=observations)


@pytest.mark.parametrize("layout", [Layout.flat(2), Layout(2, (1,), (0, 1), relative=(0,))])
def test_a_spike_is_named_and_stays_in_range_and_nothing_else_changes(layout):
    clean, spiked = replace(point_dataset(), layout=layout), replace(_with_spike(0, 1e4), layout=layout)
    expected = Run(clean, horizon=8).batches
    with pytest.warns(UserWarning, match=r"observations\[:, 0\]: [12] of 720 rows .* rows 100"):
        batches = Run(spiked, horizon=8).batches
    torch.testing.assert_close(batches.normalizer.scale, expected.normalizer.scale, rtol=0.3, atol=0)
    states = batches.at(torch.tensor([95, 100]), 8)[0]
    assert states.abs().max() == 10 and states[0, 5, 0] == 10
    batches.normalizer.load_state_dict(expected.normalizer.state_dict())
    untouched = torch.cat([torch.arange(60, 93), torch.arange(101, 113)])
    assert torch.equal(batches.at(untouched, 8)[0], expected.at(untouched, 8)[0])


def test_a_spike_costs_the_dynamics_of_the_other_columns_nothing():
    clean = point_dataset(60)
    observations = np.c_[clean.observations, np.zeros(3600, np.float32)]
    errors = []
    for value in (0.0, 1e4):
        observations[41, 2] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = Run(
                replace(clean, observations=observations.copy(), layout=Layout.flat(3)), horizon=8, progress=False
            )
        dynamics = train_dynamics(run, DynamicsConfig(steps=150, batch_size=128, width=32, members=2, unroll=3))
        states, actions = run.batches.at(torch.arange(60, 3540, 60), 2)
        with torch.no_grad():
            predicted = dynamics.rollout(states[:, 0], actions[:, :1])[:, 1]
        errors.append(float((predicted - states[:, 1])[:, :2].square().mean().sqrt()))
    assert errors[1] < 1.5 * errors[0]


def test_a_spike_in_a_constant_column_is_named_and_stays_in_range():
    clean = point_dataset(60)
    observations = np.c_[clean.observations, np.zeros(3600, np.float32)]
    constant = replace(clean, observations=observations, layout=Layout.flat(3))
    constant.observations[41, 2] = 1e4
    with pytest.warns(UserWarning, match=r"observations\[:, 2\]: 1 of 3600 rows .* rows 41, the first with 10000"):
        batches = Run(constant, horizon=8).batches
    assert batches.at(torch.tensor([41]), 1)[0][0, 0, 2] == 10


def test_ordinary_data_and_a_body_that_turns_are_not_warned_of():
    turning = [(body_states(60, seed), np.random.default_rng(seed).uniform(-1, 1, (60, 2))) for seed in range(9)]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        Run(point_dataset(), horizon=8)
        Run(TrajectoryDataset.from_episodes(turning, BODY), horizon=8)
    assert [str(warning.message) for warning in warned] == []


def _in_wide_bounds(bound):
    """The point whose actions lie in [-1, 1], in an action space of +-`bound`."""
    dataset = point_dataset()
    episodes = [
        (dataset.observations[a : a + n], dataset.actions[a : a + n])
        for a, n in zip(dataset.starts, dataset.lengths, strict=True)
    ]
    return TrajectoryDataset.from_episodes(episodes, action_low=[-bound] * 2, action_high=[bound] * 2)


def test_wide_bounds_change_nothing_that_is_learned_and_the_policy_keeps_its_scale(tmp_path):
    narrow = train(_in_wide_bounds(1.0), tiny(), tmp_path / "narrow", progress=False)
    wide = train(_in_wide_bounds(1000.0), tiny(), tmp_path / "wide", progress=False)
    assert narrow.config.action_range is None and wide.config.action_range == ((-1, -1), (1, 1))
    assert wide.action_high.tolist() == [1000, 1000]
    inputs, skills = np.zeros((5, 2), np.float32), np.eye(5, 2, dtype=np.float32)
    expected = narrow.plan_actions(inputs, skills)
    for policy in (wide, SkillPolicy.from_pretrained(tmp_path / "wide", device="cpu")):
        for name in ("numpy", "torch"):
            engine, other = policy.engine(name), narrow.engine(name)
            np.testing.assert_array_equal(engine(inputs, skills, 2), other(inputs, skills, 2))
        np.testing.assert_array_equal(policy.plan_actions(inputs, skills), expected)


def test_where_the_range_is_the_bounds_actions_are_scaled_as_before_to_the_bit():
    dataset = point_dataset()
    assert dataset.action_range is None
    actions = Run(dataset, horizon=8).batches.at(EVERY, 1)[1][:, 0]
    low, half = torch.as_tensor(dataset.action_low), torch.as_tensor((dataset.action_high - dataset.action_low) / 2)
    assert torch.equal(actions, ((torch.as_tensor(dataset.actions[EVERY]) - low) / half - 1).clamp(-1, 1))


def test_the_environments_spec_goes_into_the_policy():
    run = Run(replace(point_dataset(), env_spec='{"id": "Pendulum-v1"}'), horizon=8)
    policy = run.new_policy(SkillConfig(width=8), tiny().skills.skill_space, 8)
    assert policy.config.env_spec == '{"id": "Pendulum-v1"}'


def test_discrete_skills_of_short_episodes_are_refused_before_anything_is_trained(tmp_path):
    short = point_dataset(30, steps=6)
    config = tiny(skill_space=replace(tiny().skills.skill_space, kind="discrete", size=3))
    config = replace(config, horizon=4, behaviours=replace(config.behaviours, steps=3, tuning_steps=3))
    with pytest.raises(ValueError, match="at least 12 steps"):
        train(short, config, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("horizon", [2, 3, 4])
def test_the_longest_horizon_of_short_episodes_can_be_trained(tmp_path, horizon):
    short = TrajectoryDataset.from_episodes(
        [(rows, rows[:, :2]) for rows in np.random.default_rng(0).normal(size=(30, horizon, 3))]
    )
    with pytest.raises(ValueError, match=f"at most {horizon}"):
        hold_out(short, replace(tiny(), horizon=None))
    train(short, replace(tiny(), horizon=horizon), tmp_path, progress=False)
    SkillPolicy.from_pretrained(tmp_path, device="cpu")
