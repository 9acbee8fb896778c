import json

import numpy as np

from didi_gym.core.frames import localize
from didi_gym.core.layout import Layout
from didi_gym.core.schema import from_dict
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.generators.parallel import ordered_map
from didi_gym.data.generators.swimmer import Stroke, collect_swimmer, swim, swimmer_layout


def test_a_swimmer_is_seen_from_its_own_place_and_heading() -> None:
    layout = swimmer_layout()
    assert layout.features == layout.relative == (0, 1) and layout.heading is not None
    assert layout.heading.angle == (2, 10)  # cosine and sine
    assert [source.size for source in layout.sources] == [10, 8]  # with and without the position
    states = np.zeros((2, 11), np.float32)
    states[:, 10] = 1  # the body points to +y,
    states[:, :2] = [[5, 5], [5, 6]]  # and swims there,
    states[:, 6] = 2  # at 2 m/s
    local = localize(states, layout)[0]
    np.testing.assert_allclose(local[1, [0, 1, 2, 5, 6, 10]], [1, 0, 1, 2, 0, 0], atol=1e-6)


def test_a_stroke_swings_both_joints_about_its_bend() -> None:
    still = np.zeros(2)
    np.testing.assert_allclose(Stroke(1, 0.0, 0.3, 30).torque(np.pi / 2, still, still), [0.6, 0.0], atol=1e-9)
    np.testing.assert_allclose(Stroke(-1, 0.0, 0.3, 30).torque(0.0, still, still), [0.0, 0.6], atol=1e-9)
    np.testing.assert_allclose(Stroke(1, 0.2, 0.3, 30).torque(0.0, still, still), [0.4, -0.2], atol=1e-9)


def test_a_collected_data_set_says_what_it_holds_and_gives_its_environment_back() -> None:
    dataset = collect_swimmer("didi/swimmer-test-v0", steps=700, processes=1, progress=False)
    assert dataset.total_steps == 700 and dataset.total_episodes == 2
    for episode, labels in zip(dataset.iterate_episodes(), dataset.storage.get_episode_metadata(range(2)), strict=True):
        assert episode.observations.shape == (len(episode.actions) + 1, 10)
        assert np.isfinite(episode.observations).all() and np.abs(episode.actions).max() <= 1
        assert labels["way"] == episode.infos["way"][0] in (-1, 1) and labels["bend"] == episode.infos["bend"][0]
    assert from_dict(Layout, json.loads(dataset.storage.metadata["didi_gym_layout"])) == swimmer_layout()
    assert TrajectoryDataset.from_minari("didi/swimmer-test-v0").observations.shape == (700, 11)
    env = dataset.recover_environment()
    assert env.spec.id == "Swimmer-v5" and env.observation_space.shape == (10,)


def test_the_same_seed_collects_the_same_strokes_in_one_process_or_two() -> None:
    alone = swim(5, steps=1_300)
    with ordered_map(2) as run:
        together = swim(5, steps=1_300, run=run)
    other = swim(6, steps=100)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.observations, two.observations)
    assert not np.array_equal(alone[0].actions[:100], other[0].actions)


def test_the_body_swims_the_way_of_its_label() -> None:
    """Over strokes that stay the same for two seconds, the body moves towards its head, or its tail."""
    along = []
    for episode in swim(0, steps=4_000):
        way, bend, states = episode.infos["way"], episode.infos["bend"], episode.observations
        for start in range(50, len(episode.actions) - 70, 70):
            own = slice(start, start + 70)
            if len(set(way[own])) == 1 and len(set(bend[own])) == 1:
                links = states[own, 2] + (2 * states[own, 3] + states[own, 4]) / 3  # mean angle of the three
                heading = np.array([np.cos(links).mean(), np.sin(links).mean()])
                moved = states[start + 70, :2] - states[start, :2]
                along.append(way[start] * moved @ heading / np.linalg.norm(moved))
    assert len(along) > 10 and np.mean(along) > 0.7
