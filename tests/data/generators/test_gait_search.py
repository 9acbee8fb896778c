import dataclasses

import numpy as np
import pytest

from didi_gym.data.generators import gait_search, gaits
from didi_gym.data.generators.gaits import GAIT_SIZE, Motion


@pytest.mark.parametrize("degrees", range(-170, 181, 25))
def test_folding_brings_every_direction_between_0_and_45_degrees(degrees: int) -> None:
    gait = gait_search.random_gait(np.random.default_rng(1))
    kept, within = gait_search.folded(gait, np.deg2rad(degrees))
    images = [gaits.turned(g, q) for g in (gait, gaits.mirrored(gait)) for q in range(4)]
    directions = [s * degrees + 90 * q for s in (1, -1) for q in range(4)]
    chosen = [d for image, d in zip(images, directions, strict=True) if np.array_equal(image, kept)]
    assert len(chosen) == 1
    assert 0 <= within <= np.pi / 4 + 1e-9
    assert np.isclose(np.cos(np.deg2rad(chosen[0])), np.cos(within))
    assert np.isclose(np.sin(np.deg2rad(chosen[0])), np.sin(within))


def scripted_trials(trials: list[gait_search.Trial]) -> list[Motion]:
    """A stand-in for the simulator: a gait's first two numbers are its velocity."""
    return [
        Motion(float(np.arctan2(g[1], g[0])), float(np.hypot(g[0], g[1])), 0.0, 1.0, 0.6, False) for g, *_ in trials
    ]


def test_the_search_fills_every_sector_and_repeats_itself() -> None:
    archive = gait_search.search_gaits(scripted_trials, 0, search_steps=200_000)
    again = gait_search.search_gaits(scripted_trials, 0, search_steps=200_000)
    assert all(archive)
    for members, others in zip(archive, again, strict=True):
        for elite, other in zip(members, others, strict=True):
            assert elite.gait.shape == (GAIT_SIZE,)
            np.testing.assert_array_equal(elite.gait, other.gait)


def test_falling_costs_more_than_turning_and_turning_more_than_walking_straight() -> None:
    straight = Motion(0.0, 2.0, 0.0, 1.0, 0.6, False)
    turning, fallen = dataclasses.replace(straight, yaw_rate=1.0), dataclasses.replace(straight, fell=True)
    assert gait_search.trial_score(fallen) < gait_search.trial_score(turning) < gait_search.trial_score(straight)
