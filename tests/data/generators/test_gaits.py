import numpy as np
import pytest

from didi_gym.data.generators import gait_search, gaits
from didi_gym.data.generators.gaits import LEG_PARAMETERS, LEGS

pytest.importorskip("mujoco")


def walking_gait() -> np.ndarray:
    """A slow gait that walks steadily somewhere: hips and ankles of opposite legs in phase."""
    legs = np.zeros((LEGS, LEG_PARAMETERS))
    legs[:, gaits.HIP_AMPLITUDE] = [0.6, 0.5, -0.6, -0.4]
    legs[:, gaits.ANKLE_AMPLITUDE] = 0.7
    legs[:, gaits.HIP_PHASE] = [0, np.pi, 0, np.pi]
    legs[:, gaits.ANKLE_PHASE] = legs[:, gaits.HIP_PHASE] + np.pi / 2
    return np.append(legs.ravel(), 1.5)


def walk_from_rest(gait: np.ndarray, steps: int) -> np.ndarray:
    """Torso positions (steps + 1, 3) and yaw, from the exact, symmetric standing pose and without noise."""
    import gymnasium as gym

    env = gym.make(gaits.ENV_ID, reset_noise_scale=0.0, **gaits.ENV_KWARGS).unwrapped
    env.reset(seed=0)
    path = []
    for i in range(steps + 1):
        path.append([*env.data.qpos[:2], gaits.yaw_of(env.data.qpos[3:7])])
        phase = 2 * np.pi * gait[-1] * i * gaits.CONTROL_PERIOD
        env.do_simulation(gaits.pd_action(gait, phase, env.data.qpos, env.data.qvel), env.frame_skip)
    env.close()
    return np.array(path)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_gait_turned_by_quarters_walks_the_same_path_turned(quarters: int) -> None:
    path, turned = walk_from_rest(walking_gait(), 25), walk_from_rest(gaits.turned(walking_gait(), quarters), 25)
    assert np.linalg.norm(path[-1, :2]) > 0.1
    expected = gaits.turn(path[:, :2], quarters * np.pi / 2)
    np.testing.assert_allclose(turned[:, :2], expected, atol=0.03)
    np.testing.assert_allclose(turned[:, 2], path[:, 2], atol=0.06)


def test_a_mirrored_gait_walks_the_mirrored_path() -> None:
    path, mirrored = walk_from_rest(walking_gait(), 25), walk_from_rest(gaits.mirrored(walking_gait()), 25)
    np.testing.assert_allclose(mirrored, path * [1, -1, -1], atol=0.06)


def test_turning_four_quarters_or_mirroring_twice_changes_nothing() -> None:
    gait = gait_search.random_gait(np.random.default_rng(0))
    np.testing.assert_array_equal(gaits.turned(gait, 4), gait)
    np.testing.assert_array_equal(gaits.mirrored(gaits.mirrored(gait)), gait)


def test_targets_stay_put_at_scale_zero_and_speeds_are_their_derivative() -> None:
    gait, phase, small = gait_search.random_gait(np.random.default_rng(2)), 0.7, 1e-6
    targets, speeds = gaits.joint_targets(gait, phase)
    later, _ = gaits.joint_targets(gait, phase + small)
    np.testing.assert_allclose((later - targets) / small * 2 * np.pi * gait[-1], speeds, atol=1e-3)
    assert not gaits.joint_targets(gait, phase, scale=0.0)[1].any()


def test_the_same_seed_measures_the_same_motion_and_another_does_not() -> None:
    settings = {"steps": 20, "warmup": 5, "noise": 0.1}
    first = gaits.measure(walking_gait(), 3, **settings)
    gaits.measure(walking_gait(), 4, **settings)
    assert gaits.measure(walking_gait(), 3, **settings) == first
    assert gaits.measure(walking_gait(), 4, **settings) != first
