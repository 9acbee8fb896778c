import subprocess
import sys

import numpy as np
import pytest

from didi_gym.data.generators import ant, gait_search
from didi_gym.data.generators.ant import (
    Repertoire,
    ant_layout,
    collect_ant_directions,
    find_gaits,
    walk,
    walk_episode,
    wrapped,
)
from didi_gym.data.generators.gait_search import Elite, random_gait
from didi_gym.data.generators.gaits import GAIT_SIZE, Motion
from didi_gym.data.generators.parallel import ordered_map

pytest.importorskip("mujoco")


@pytest.fixture
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUICK", "THOROUGH"):
        monkeypatch.setattr(gait_search, name, (8, 2, 0.1))


def repertoire() -> Repertoire:
    """Two elites, at 10 and 40 degrees, of which only the numbers matter."""
    rng = np.random.default_rng(0)
    archive = [
        [Elite(0.3 * random_gait(rng), (Motion(np.deg2rad(degrees), 1.5, 0.0, 1.0, 0.6, False),))]
        for degrees in (10, 40)
    ]
    return Repertoire.from_archive(archive, per_sector=1)


def test_symmetry_spreads_two_elites_over_sixteen_directions() -> None:
    directions = np.sort(np.rad2deg(repertoire().directions).round().astype(int) % 360)
    assert directions.tolist() == sorted(
        (s * d + q) % 360 for d in (10, 40) for s in (1, -1) for q in (0, 90, 180, 270)
    )


def test_the_gait_is_kept_while_it_fits_and_changed_when_it_does_not() -> None:
    known, rng = repertoire(), np.random.default_rng(0)
    first = known.choose(np.deg2rad(12), None, rng)
    assert np.isclose(known.directions[first], np.deg2rad(10))
    assert known.choose(np.deg2rad(-3), first, rng) == first
    assert np.isclose(known.directions[known.choose(np.deg2rad(-6), first, rng)], np.deg2rad(-10))
    assert np.isclose(known.directions[known.choose(np.deg2rad(10 + 180 + 360), first, rng)], np.deg2rad(-170))


def test_wrapped_angles_are_within_half_a_turn() -> None:
    np.testing.assert_allclose(
        wrapped(np.array([3.5, -3.5, 7.0])), np.array([3.5, -3.5, 7.0]) - 2 * np.pi * np.array([1, -1, 1])
    )


def test_a_repertoire_of_mismatched_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="repertoire"):
        Repertoire(np.zeros((2, GAIT_SIZE)), np.zeros(1), np.zeros(2))


def test_an_empty_archive_asks_for_a_longer_search() -> None:
    with pytest.raises(ValueError, match="search_steps"):
        Repertoire.from_archive([[], []], per_sector=1)


def test_every_source_of_the_layout_reads_as_many_numbers_as_the_policy() -> None:
    layout = ant_layout()
    assert {len(source.indices) for source in layout.sources} == {len(layout.policy_inputs)} == {27}


def test_the_same_seed_walks_the_same_way_in_one_process_or_two() -> None:
    alone = walk(repertoire(), 3, steps=1500)
    with ordered_map(2) as run:
        together = walk(repertoire(), 3, steps=1500, run=run)
    assert sum(map(len, alone)) == 1500
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.actions, two.actions)
        assert one.labels == two.labels
    assert not np.array_equal(walk_episode(repertoire(), 4).actions[0], alone[0].actions[0])


@pytest.mark.usefixtures("short_trials")
def test_the_same_seed_finds_the_same_gaits_in_one_process_or_two() -> None:
    alone = find_gaits(0, search_steps=2_500, per_sector=1)
    with ordered_map(2) as run:
        together = find_gaits(0, search_steps=2_500, per_sector=1, run=run)
    np.testing.assert_array_equal(alone.gaits, together.gaits)
    np.testing.assert_array_equal(alone.directions, together.directions)


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("short_trials")
def test_a_collected_data_set_is_complete_finite_and_within_bounds() -> None:
    dataset = collect_ant_directions("didi/ant-test-v0", steps=1200, search_steps=2_500, processes=1, progress=False)
    assert dataset.total_steps == 1200
    labels = list(dataset.storage.get_episode_metadata(range(dataset.total_episodes)))
    for episode, label in zip(dataset.iterate_episodes(), labels, strict=True):
        assert episode.observations.shape == (len(episode.actions) + 1, 29)
        assert np.isfinite(episode.observations).all() and np.isfinite(episode.rewards).all()
        assert np.abs(episode.actions).max() <= 1
        assert episode.infos["target"].shape == (len(episode.actions) + 1, 2)
        assert 0 <= label["noise"] <= 0.25
        assert {"fell", "mean_velocity_x", "mean_velocity_y"} <= set(label)
    env = dataset.recover_environment()
    assert env.observation_space.shape == (29,) and env.unwrapped.spec.id == "Ant-v5"


def test_importing_the_generators_loads_no_simulator_and_no_minari() -> None:
    program = (
        "import sys, didi_gym.data; "
        "sys.exit(any(name in sys.modules for name in ('minari', 'gymnasium_robotics', 'mujoco', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_gaits_are_measured_at_every_amplitude_and_chosen_by_speed() -> None:
    gaits = np.stack([np.full(GAIT_SIZE, float(k)) for k in (1, 2) for _ in range(8)])
    repertoire = ant.Repertoire(gaits, np.zeros(16), np.ones(16))

    def trials(asked):
        for gait, _seed, _steps, _warmup, _noise, scale in asked:
            fell = gait[0] == 2 and scale == 1.0
            yield Motion(0.1, 2.0 * scale**2, 0.0, 1.0, 0.6, fell)

    at_scales = repertoire.at_scales(trials, 0, repeats=2)
    assert len(at_scales.gaits) == 8 * (2 * len(ant.SCALES) - 1)  # the pair that fell is left out
    assert at_scales.scales is not None
    np.testing.assert_allclose(at_scales.speeds, 2.0 * at_scales.scales**2)
    assert sorted(np.degrees(at_scales.directions[:8]).round()) == [-174, -96, -84, -6, 6, 84, 96, 174]
    rng = np.random.default_rng(0)
    slow = at_scales.choose(0.1, None, rng, 0.5)
    assert at_scales.scales[slow] == 0.5 and abs(at_scales.directions[slow]) < 0.2
    assert at_scales.choose(0.12, slow, rng, 0.6) == slow  # within tolerance the gait stays
    assert at_scales.scales[at_scales.choose(0.1, slow, rng, 2.0)] == 1.0


def test_velocities_are_spread_evenly_over_the_disc() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([ant._draw_velocity(rng)[1] for _ in range(4000)])
    assert shares.max() <= 1 and abs((shares < 0.5).mean() - 0.25) < 0.03
