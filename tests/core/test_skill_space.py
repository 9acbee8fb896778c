import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from didi_gym.core.skill_space import SkillSpace

CONTINUOUS = [SkillSpace("ball", 2), SkillSpace("ball", 5), SkillSpace("sphere", 3), SkillSpace("box", 1)]


@pytest.mark.parametrize("space", [*CONTINUOUS, SkillSpace("discrete", 4)], ids=str)
@pytest.mark.parametrize(
    "generator", [np.random.default_rng(0), torch.Generator().manual_seed(0)], ids=["numpy", "torch"]
)
def test_the_prior_is_uniform_over_the_space(space, generator):
    skills = np.asarray(space.sample(20_000, generator))
    assert skills.shape == (20_000, space.skill_dim) and skills.dtype == np.float32
    norm = np.linalg.norm(skills, axis=1)
    if space.is_discrete:
        np.testing.assert_allclose(skills.mean(0), 1 / space.size, atol=0.02)
        assert set(np.unique(skills)) == {0.0, 1.0}
        return
    np.testing.assert_allclose(skills.mean(0), 0, atol=0.03)
    if space.kind == "ball":  # P(|z| < r) = r^d
        assert abs((norm < 0.8).mean() - 0.8**space.size) < 0.02 and norm.max() <= 1 + 1e-6
    elif space.kind == "sphere":
        np.testing.assert_allclose(norm, 1, atol=1e-5)
        np.testing.assert_allclose(skills.var(0), 1 / space.size, atol=0.02)
    else:
        np.testing.assert_allclose(skills.var(0), 1 / 3, atol=0.02)


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2))
def test_every_action_becomes_a_skill_of_the_space(action):
    assert np.linalg.norm(SkillSpace("ball", 2).to_skill(action)) <= 1 + 1e-6
    assert np.linalg.norm(SkillSpace("sphere", 2).to_skill(action)) == pytest.approx(1, abs=1e-5)
    assert np.abs(SkillSpace("box", 2).to_skill(action)).max() <= 1


def test_the_map_from_actions_keeps_directions_and_inner_points():
    ball, sphere = SkillSpace("ball", 2), SkillSpace("sphere", 2)
    np.testing.assert_allclose(ball.to_skill([0.3, -0.4]), [0.3, -0.4])
    np.testing.assert_allclose(ball.to_skill([1, 1]), [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(sphere.to_skill([0, -0.1]), [0, -1])
    np.testing.assert_allclose(sphere.to_skill([0, 0]), [1, 0])
    np.testing.assert_allclose(SkillSpace("discrete", 3).to_skill(np.array([2, 0])), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("space", "action", "words"),
    [
        (SkillSpace("ball", 2), [np.nan, 0], "finite"),
        (SkillSpace("ball", 2), [0, 0, 0], r"shape \(\.\.\., 2\), got \(3,\)"),
        (SkillSpace("box", 1), 0.5, r"got \(\)"),
        (SkillSpace("discrete", 3), 3, r"integer in 0\.\.2"),
        (SkillSpace("discrete", 3), 1.0, "integer"),
    ],
)
def test_a_wrong_action_says_what_was_expected(space, action, words):
    with pytest.raises(ValueError, match=words):
        space.to_skill(action)


def test_a_wrong_space_is_refused():
    with pytest.raises(ValueError, match=r"skill_space\.kind .*got .torus"):
        SkillSpace("torus", 2)
    with pytest.raises(ValueError, match=r"skill_space\.size .*got 1"):
        SkillSpace("sphere", 1)


def test_the_agents_action_space_samples_are_valid_skills():
    for space in [*CONTINUOUS, SkillSpace("discrete", 4)]:
        space.gym_space.seed(0)
        assert np.isfinite(space.to_skill(space.gym_space.sample())).all()


def test_the_grid_is_evenly_spread():
    grid = SkillSpace("ball", 2).grid(8)
    np.testing.assert_allclose(np.linalg.norm(grid, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose((grid * np.roll(grid, -1, axis=0)).sum(1), np.cos(np.pi / 4), rtol=1e-5)
    np.testing.assert_allclose(SkillSpace("discrete", 3).grid(9), np.eye(3))
    np.testing.assert_allclose(SkillSpace("box", 1).grid(3), [[-1], [0], [1]])
