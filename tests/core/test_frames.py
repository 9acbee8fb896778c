import numpy as np
import pytest
import torch

from didi_gym.core.frames import inputs_to_state, localize, turn, turn_skill, yaw_of
from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.observations import choose_numbers, recover_numbers
from tests.examples import BODY, DISC, body_states, disc_states


def _windows(n=64, horizon=5, seed=0):
    return body_states(n * horizon, seed).reshape(n, horizon, 8)


def _rotate(q, v):
    """Vector v turned by quaternion q, by the textbook formula."""
    u, w = q[1:], q[0]
    return v + 2 * np.cross(u, np.cross(u, v) + w * v)


def test_turning_turns_orientation_position_and_velocity_alike():
    state = body_states(1)[0]
    turned = turn(state, np.array(0.7), BODY.heading)
    c, s = np.cos(0.7), np.sin(0.7)
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(turned[:2], matrix[:2, :2] @ state[:2], rtol=1e-5)
    np.testing.assert_allclose(turned[6:], matrix[:2, :2] @ state[6:], rtol=1e-5)
    forward = np.array([1.0, 0.2, -0.3])
    np.testing.assert_allclose(_rotate(turned[2:6], forward), matrix @ _rotate(state[2:6], forward), atol=1e-5)


def test_turning_back_is_the_inverse():
    states = body_states(50)
    np.testing.assert_allclose(
        turn(turn(states, np.full(50, 1.1), BODY.heading), np.full(50, -1.1), BODY.heading), states, atol=1e-5
    )


def test_yaw_of_a_pure_turn_is_its_angle():
    states = np.zeros((1, 8), np.float32)
    states[0, 2] = 1
    for angle in (-3.0, -0.5, 0.0, 2.5):
        assert yaw_of(turn(states, np.array([angle]), BODY.heading), BODY.heading)[0] == pytest.approx(angle, abs=1e-5)


def test_a_local_trajectory_starts_at_the_origin_with_yaw_zero_and_a_positive_quaternion():
    local, yaw = localize(_windows(), BODY)
    np.testing.assert_allclose(local[:, 0, :2], 0)
    np.testing.assert_allclose(yaw_of(local[:, 0], BODY.heading), 0, atol=1e-5)
    assert (local[:, 0, 2] >= 0).all() and yaw.shape == (64,)


def test_a_local_trajectory_does_not_know_where_and_how_turned_the_world_was():
    windows = _windows()
    moved = turn(windows, np.full((64, 1), 2.1), BODY.heading)
    moved[..., :2] += [10.0, -4.0]
    moved[:32, :, 2:6] *= -1  # the same orientation by its other name
    np.testing.assert_allclose(localize(moved, BODY)[0], localize(windows, BODY)[0], atol=2e-5)


def test_a_heading_by_an_angle_turns_the_world_and_adds_to_the_angle():
    states = disc_states(50)
    numbers = recover_numbers(turn(states, np.full(50, 0.7, np.float32), DISC.heading), DISC.state_source)
    before = recover_numbers(states, DISC.state_source)
    c, s = np.cos(0.7), np.sin(0.7)
    matrix = np.array([[c, -s], [s, c]])
    np.testing.assert_allclose(numbers[:, :2], before[:, :2] @ matrix.T, atol=1e-4)
    np.testing.assert_allclose(numbers[:, 3:], before[:, 3:] @ matrix.T, atol=1e-4)
    np.testing.assert_allclose(np.exp(1j * numbers[:, 2]), np.exp(1j * (before[:, 2] + 0.7)), atol=1e-5)
    np.testing.assert_allclose(yaw_of(states, DISC.heading), before[:, 2], atol=1e-6)


def test_a_local_trajectory_with_a_heading_by_an_angle_knows_nothing_of_the_world():
    windows = disc_states(64 * 5).reshape(64, 5, 6)
    local, yaw = localize(windows, DISC)
    np.testing.assert_allclose(local[:, 0, [0, 1, 2, 5]], np.tile([0, 0, 1, 0], (64, 1)), atol=1e-6)
    moved = turn(windows, np.full((64, 1), 2.1, np.float32), DISC.heading)
    moved[..., :2] += [10.0, -4.0]
    again, turned = localize(moved, DISC)
    np.testing.assert_allclose(again, local, atol=2e-5)
    np.testing.assert_allclose(np.exp(1j * (turned - yaw)), np.exp(2.1j), atol=1e-5)


@pytest.mark.parametrize(("layout", "windows"), [(BODY, _windows()), (DISC, disc_states(320).reshape(64, 5, 6))])
def test_numpy_and_torch_agree(layout, windows):
    for ours, theirs in zip(localize(windows, layout), localize(torch.from_numpy(windows), layout), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    skills, angle = np.array([[1.0, 0.0, 7.0]], np.float32), np.array([np.pi / 2], np.float32)
    np.testing.assert_allclose(turn_skill(skills, angle), [[0, 1, 7]], atol=1e-6)
    np.testing.assert_allclose(turn_skill(torch.from_numpy(skills), torch.from_numpy(angle)), [[0, 1, 7]], atol=1e-6)


def test_nothing_is_changed_in_place_and_a_flat_layout_changes_nothing():
    windows = _windows()
    before = windows.copy()
    local, yaw = localize(windows, Layout.flat(8))
    np.testing.assert_array_equal(local, before)
    localize(windows, BODY)
    np.testing.assert_array_equal(windows, before)
    assert yaw is None


def test_inputs_fill_the_state_and_the_rest_is_zero():
    state = inputs_to_state(np.arange(1.0, 7.0)[None], BODY)
    np.testing.assert_array_equal(state, [[0, 0, 1, 2, 3, 4, 5, 6]])


def test_angles_become_cosine_and_sine_and_come_back():
    source = ObservationSource(5, (4, 1, 3), angles=(1,))
    observations = np.random.default_rng(0).uniform(-3, 3, (7, 5))
    state = choose_numbers(observations, source)
    assert source.width == state.shape[1] == 4
    np.testing.assert_allclose(state[:, [0, 2]], observations[:, [4, 3]], rtol=1e-6)
    np.testing.assert_allclose(state[:, 1], np.cos(observations[:, 1]), atol=1e-6)
    np.testing.assert_allclose(state[:, 3], np.sin(observations[:, 1]), atol=1e-6)
    np.testing.assert_allclose(recover_numbers(state, source), observations[:, [4, 1, 3]], atol=1e-6)
    wound = observations + np.array([0, 6 * np.pi, 0, 0, 0])
    np.testing.assert_allclose(choose_numbers(wound, source), state, atol=1e-5)
