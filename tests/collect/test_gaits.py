import dataclasses

import numpy as np
import pytest

from didi_gym.collect import gaits
from didi_gym.collect.gaits import GAIT_SIZE, LEG_PARAMETERS, LEGS, Motion

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
    np.testing.assert_allclose(turned[:, :2], expected, atol=0.02)
    np.testing.assert_allclose(turned[:, 2], path[:, 2], atol=0.02)


def test_a_mirrored_gait_walks_the_mirrored_path() -> None:
    path, mirrored = walk_from_rest(walking_gait(), 25), walk_from_rest(gaits.mirrored(walking_gait()), 25)
    np.testing.assert_allclose(mirrored, path * [1, -1, -1], atol=0.02)


def test_turning_four_quarters_or_mirroring_twice_changes_nothing() -> None:
    gait = gaits.random_gait(np.random.default_rng(0))
    np.testing.assert_array_equal(gaits.turned(gait, 4), gait)
    np.testing.assert_array_equal(gaits.mirrored(gaits.mirrored(gait)), gait)


@pytest.mark.parametrize("degrees", range(-170, 181, 25))
def test_folding_brings_every_direction_between_0_and_45_degrees(degrees: int) -> None:
    gait = gaits.random_gait(np.random.default_rng(1))
    direction, within = gaits.folded(gait, np.deg2rad(degrees))
    images = [gaits.turned(g, q) for g in (gait, gaits.mirrored(gait)) for q in range(4)]
    directions = [s * degrees + 90 * q for s in (1, -1) for q in range(4)]
    chosen = [d for image, d in zip(images, directions, strict=True) if np.array_equal(image, direction)]
    assert len(chosen) == 1
    assert 0 <= within <= np.pi / 4 + 1e-9
    assert np.isclose(np.cos(np.deg2rad(chosen[0])), np.cos(within))
    assert np.isclose(np.sin(np.deg2rad(chosen[0])), np.sin(within))


def test_targets_stay_put_at_scale_zero_and_speeds_are_their_derivative() -> None:
    gait, phase, small = gaits.random_gait(np.random.default_rng(2)), 0.7, 1e-6
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


def scripted_trials(trials: list[gaits.Trial]) -> list[Motion]:
    """A stand-in for the simulator: a gait's first two numbers are its velocity."""
    return [
        Motion(float(np.arctan2(g[1], g[0])), float(np.hypot(g[0], g[1])), 0.0, 1.0, 0.6, False) for g, *_ in trials
    ]


def test_the_search_fills_every_sector_and_repeats_itself() -> None:
    archive = gaits.search_gaits(scripted_trials, 0, search_steps=200_000)
    again = gaits.search_gaits(scripted_trials, 0, search_steps=200_000)
    assert all(archive)
    for members, others in zip(archive, again, strict=True):
        for elite, other in zip(members, others, strict=True):
            assert elite.gait.shape == (GAIT_SIZE,)
            np.testing.assert_array_equal(elite.gait, other.gait)


def test_falling_costs_more_than_turning_and_turning_more_than_walking_straight() -> None:
    straight = Motion(0.0, 2.0, 0.0, 1.0, 0.6, False)
    turning, fallen = dataclasses.replace(straight, yaw_rate=1.0), dataclasses.replace(straight, fell=True)
    assert gaits.trial_score(fallen) < gaits.trial_score(turning) < gaits.trial_score(straight)
