"""What an agent's action means: skills, durations, masks; and which settings are refused."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from didi_gym.wrappers.controller import SkillController
from didi_gym.wrappers.references import resolve_settings
from tests.doubles import ScriptedPolicy, ToyEnv

SPACE = ToyEnv().observation_space


def controller(kind="box", durations=(6,), **kwargs):
    return SkillController(ScriptedPolicy(kind), SPACE, durations=durations, replan_every=4, **kwargs)


def test_one_duration_leaves_the_skill_space_as_it_is():
    assert controller("box").action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
    assert controller("discrete").action_space == gym.spaces.Discrete(2)
    skills, durations = controller("ball").decode(np.array([[3.0, 0.0], [0.0, 0.5]]))
    assert skills.tolist() == [[1, 0], [0, 0.5]]
    assert durations.tolist() == [6, 6]


def test_durations_cut_one_more_coordinate_into_equal_parts():
    plan = controller("box", (4, 8, 16))
    assert plan.action_space == gym.spaces.Box(-1, 1, (3,), np.float32)
    coordinate = [-1, -0.34, -0.33, 0.33, 0.34, 1, 7]
    actions = np.array([[0.5, -0.5, x] for x in coordinate], dtype=np.float32)
    skills, durations = plan.decode(actions)
    assert durations.tolist() == [4, 4, 8, 8, 16, 16, 16]
    assert skills.tolist() == [[0.5, -0.5]] * 7
    assert plan.decode(actions[2])[1] == 8


def test_durations_multiply_discrete_actions():
    plan = controller("discrete", (4, 8, 16))
    assert plan.action_space == gym.spaces.Discrete(6)
    skills, durations = plan.decode(np.arange(6))
    assert skills.argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1]
    assert durations.tolist() == [4, 8, 16, 4, 8, 16]


@given(seed=st.integers(0, 999), kind=st.sampled_from(["box", "ball", "sphere", "discrete"]))
def test_every_action_of_the_space_names_a_skill_and_a_duration(seed, kind):
    plan = controller(kind, (3, 5))
    plan.action_space.seed(seed)
    skill, duration = plan.decode(plan.action_space.sample())
    assert np.abs(skill).max() <= 1 and skill.shape == (2,)
    assert int(duration) in (3, 5)


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("box", [0.0, 0.0], r"must have shape \(\.\.\., 3\), a skill and its duration; got \(2,\)"),
        ("box", [0.0, 0.0, np.nan], "must be finite"),
        ("box", [np.inf, 0.0, 0.0], "must be finite"),
        ("discrete", 4, r"must be an integer in 0\.\.3, got 4"),
        ("discrete", -1, r"must be an integer in 0\.\.3"),
        ("discrete", 1.0, r"must be an integer in 0\.\.3"),
    ],
)
def test_an_action_that_names_nothing_is_refused(kind, action, message):
    with pytest.raises(ValueError, match=message):
        controller(kind, (3, 5)).decode(action)


def test_a_mask_counts_for_every_duration():
    plan = controller("discrete", (4, 8), mask_fn=lambda observation: [bool(observation[2] > 0), True])
    observations = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    masks = plan.masks(plan.singles(observations))
    assert masks.tolist() == [[True] * 4, [False, False, True, True]]
    assert controller("discrete").masks([observations[0]]).tolist() == [[True, True]]


def test_masks_are_for_discrete_skills():
    with pytest.raises(ValueError, match="mask_fn says which discrete skills are allowed, but these are continuous"):
        controller("box", mask_fn=lambda observation: [True, True])
    with pytest.raises(ValueError, match="action masks are for discrete skills"):
        controller("box").masks([np.zeros(3)])


def test_an_engine_may_be_a_function():
    plan = controller(engine=lambda inputs, skills, steps: np.full((len(inputs), steps, 2), 0.25))
    assert plan.plan(np.zeros((3, 2)), np.zeros((3, 2))).shape == (3, 4, 2)


def test_settings_come_from_the_policy_where_none_are_given():
    policy = ScriptedPolicy(skill_duration=6, replan_every=4)
    assert resolve_settings(policy, None, False, None) == ((6,), 4)
    assert resolve_settings(policy, (2, 9), False, None) == ((2, 9), 2)
    assert resolve_settings(policy, None, True, None) == ((), 4)
    assert resolve_settings(policy, 50, True, 3) == ((50,), 3)


@pytest.mark.parametrize(
    ("duration", "until_done", "replan_every", "message"),
    [
        (0, False, None, "must be a number of low-level steps, or several, got 0"),
        ((), False, None, "or several, got"),
        ((4, 0), False, None, "or several, got"),
        (2.5, False, None, "or several, got 2.5"),
        ((4, 4), False, None, "durations differ"),
        ((4, 8), True, None, "until_done takes one skill_duration or none"),
        (None, False, 9, r"replan_every must be in 1\.\.8, the policy's horizon, got 9"),
        (None, False, 0, r"replan_every must be in 1\.\.8"),
    ],
)
def test_settings_out_of_range_are_refused(duration, until_done, replan_every, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(ScriptedPolicy(), duration, until_done, replan_every)
