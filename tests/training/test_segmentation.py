"""Behaviours are found in data without labels: clusters, their borders, and clusters too rare to be behaviours."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import DatasetError, TrajectoryDataset
from didi_gym.training import BehaviourConfig, SkillConfig, TrainConfig
from didi_gym.training.segmentation import (
    Segmentation,
    _viterbi,
    balanced_rows,
    choose_window,
    cluster_windows,
    decide_lengths,
    refine,
    separation,
)
from tests.examples import gait_action, gait_dataset, point_dataset

CONFIG = BehaviourConfig(window=24, stride=4)


def purity(segmentation: Segmentation, labels: np.ndarray) -> float:
    table = np.zeros((segmentation.skills, 3))
    np.add.at(table, (segmentation.labels, labels), 1)
    return table.max(axis=1).sum() / table.sum()


@pytest.mark.parametrize("seed", range(3))
def test_behaviours_of_whole_episodes_are_told_apart(seed):
    dataset, labels = gait_dataset(seed=seed)
    found = cluster_windows(dataset, 5, CONFIG, seed)
    assert 3 <= found.skills <= 5
    assert purity(found, labels) > 0.95
    np.testing.assert_allclose(found.shares().sum(), 1)


def test_gaits_are_clearly_separate_and_wandering_is_not():
    assert separation(gait_dataset()[0], CONFIG, clusters=5) > 0.5
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(size=(200, 2)), axis=0) for _ in range(12)]
    wandering = TrajectoryDataset.from_episodes(
        [(walk, np.clip(np.diff(walk, axis=0, append=walk[-1:]), -1, 1)) for walk in walks],
        action_low=[-1, -1],
        action_high=[1, 1],
    )
    assert separation(wandering, CONFIG, clusters=5) < 0.5


def slow_and_quick(period: float, steps: int = 600) -> TrajectoryDataset:
    """Three postures whose mean is seen only over a whole period: between them, a swing that is much larger."""
    rng = np.random.default_rng(0)
    pairs = []
    for episode in range(18):
        turn = 2 * np.pi * np.arange(steps + 1) / period + rng.uniform(0, 6)
        place = 3 * np.stack([np.sin(turn), np.cos(turn)], axis=1) * rng.uniform(0.7, 1.3, (steps + 1, 1))
        place += np.array([[0, 0], [1, 0], [0, 1]])[episode % 3]
        pairs.append((place, np.clip(np.diff(place, axis=0), -1, 1)))
    return TrajectoryDataset.from_episodes(pairs, action_low=[-1, -1], action_high=[1, 1])


def test_the_window_is_as_long_as_the_rhythm_asks_and_32_where_that_does_as_well():
    usual, scores = choose_window(gait_dataset()[0], clusters=5)
    assert usual == 32 and set(scores) == {16, 32, 64}  # two windows fit into half of the episodes of 160 steps
    slow, scores = choose_window(slow_and_quick(200), clusters=3)
    assert slow == 128 and set(scores) == {16, 32, 64, 128, 256}
    assert separation(slow_and_quick(200), clusters=3) == scores[128] == max(scores.values())


def test_lengths_that_are_left_to_the_data_are_decided_once_and_recorded():
    gaits = TrainConfig(SkillConfig(skill_space=SkillSpace("discrete", 3)))
    decided = decide_lengths(slow_and_quick(200), gaits)
    assert (decided.behaviours.window, decided.horizon) == (128, 64)
    assert decide_lengths(slow_and_quick(200), decided) == decided
    given = replace(gaits, behaviours=BehaviourConfig(window=200))
    assert decide_lengths(slow_and_quick(200), given).horizon == 64  # no longer, so that training stays cheap
    assert decide_lengths(slow_and_quick(200), TrainConfig()).behaviours.window is None  # nothing reads it
    too_short = decide_lengths(gait_dataset(episodes=6, steps=9)[0], gaits)
    assert too_short.behaviours.window is None and too_short.horizon == 8


def test_refining_with_the_policies_errors_sharpens_the_borders():
    dataset, labels = gait_dataset(switch=True)
    rough = cluster_windows(dataset, 5, CONFIG)
    laws = [np.bincount(labels[rough.labels == skill]).argmax() for skill in range(rough.skills)]
    planned = np.stack([gait_action(dataset.observations, law) for law in laws], axis=1)
    errors = np.square(planned - dataset.actions[:, None]).mean(-1)
    refined = refine(dataset, errors, BehaviourConfig(window=24, stride=4, smoothing=5))
    assert purity(refined, labels) > max(purity(rough, labels), 0.97)


def test_the_same_seed_gives_the_same_assignment():
    dataset, _ = gait_dataset()
    first, second = cluster_windows(dataset, 5, CONFIG, 3), cluster_windows(dataset, 5, CONFIG, 3)
    assert (first.labels == second.labels).all()


def test_viterbi_finds_the_cheapest_path():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(6, 3))
    stay = 0.8

    def price(path):
        moves = sum(-np.log(stay if a == b else (1 - stay) / 2) for a, b in itertools.pairwise(path))
        return moves + sum(costs[step, skill] for step, skill in enumerate(path))

    every_path = np.stack(np.meshgrid(*[range(3)] * 6), axis=-1).reshape(-1, 6)
    best = min(price(path) for path in every_path)
    assert price(_viterbi(costs, stay)) == pytest.approx(best)


def test_a_rare_cluster_goes_with_what_follows_it():
    dataset = point_dataset(episodes=2, steps=60)
    costs = np.ones((120, 3))
    costs[:2, 2] = costs[2:60, 0] = costs[60:118, 1] = costs[118:, 2] = -100
    found = refine(dataset, costs - costs.min() + 1e-3, BehaviourConfig(window=16, smoothing=1, stay=0.5))
    assert found.skills == 2
    assert found.labels.tolist() == [0] * 60 + [1] * 60


def test_how_several_behaviours_begin_is_no_behaviour_however_often_it_is_seen():
    dataset = point_dataset(episodes=4, steps=60)
    config = BehaviourConfig(window=16, smoothing=1, stay=0.5)

    def found(episodes: str) -> tuple[int, list[int]]:
        truth = np.repeat([int(skill) for skill in episodes], 20)
        segmentation = refine(dataset, 1 + 99.0 * (np.arange(3) != truth[:, None]), config)
        return segmentation.skills, segmentation.labels.tolist()

    assert found("200211200211") == (2, [0] * 60 + [1] * 60 + [0] * 60 + [1] * 60)  # starts are a third of the steps
    assert found("200112200112")[0] == 2  # starts and falls
    assert found("200020111111")[0] == 3  # as often in the middle: a behaviour


@pytest.mark.parametrize(
    ("episodes", "error_on_the_other", "expected"),
    [
        (("0101", "1010", "2222", "2222"), 1.5, 2),  # they take turns and act nearly alike: one behaviour
        (("0101", "1010", "2222", "2222"), 9.0, 3),  # they take turns, but act otherwise
        (("0202", "1212", "2020", "2121"), 1.5, 3),  # nearly alike, but neither follows the other
    ],
)
def test_a_behaviour_that_was_cut_in_two_becomes_one_again(episodes, error_on_the_other, expected):
    dataset = point_dataset(episodes=4, steps=60)
    truth = np.repeat([int(skill) for skill in "".join(episodes)], 15)
    errors = np.full((240, 3), 30.0)
    errors[truth == 0, 1] = errors[truth == 1, 0] = error_on_the_other
    errors[np.arange(240), truth] = 1
    config = BehaviourConfig(window=16, smoothing=1, stay=0.5)
    found = refine(dataset, errors, config)
    assert found.skills == expected
    assert len(set(zip(found.labels, truth, strict=True))) == 3  # every step is where the others of its kind are
    assert refine(dataset, errors, replace(config, merge_ratio=1)).skills == 3


def test_episodes_shorter_than_the_smoothing_are_refined_too():
    dataset = point_dataset(episodes=2, steps=12)
    costs = np.tile([[1.0, 0.1]], (24, 1))
    assert refine(dataset, costs, BehaviourConfig(smoothing=20)).labels.tolist() == [0] * 24


def test_rows_are_drawn_alike_for_skills_of_unlike_shares_and_only_from_their_own():
    labels = np.array([-1] * 5 + [0] * 90 + [1] * 9 + [2])
    rows, skills = balanced_rows(Segmentation(labels, 3), 3000, torch.Generator().manual_seed(0))
    assert (labels[rows.numpy()] == skills.numpy()).all()
    assert np.bincount(skills.numpy()).min() > 900


def test_a_window_is_no_longer_than_half_of_the_episodes():
    dataset = point_dataset(episodes=6, steps=18)
    assert (cluster_windows(dataset, 3, BehaviourConfig(window=32)).labels >= 0).all()
    short = point_dataset(episodes=3, steps=6)
    with pytest.raises(
        DatasetError, match=r"at least 12 steps, but half of the episodes have at most 6.*behaviours\.steps=0"
    ):
        cluster_windows(short, 3, BehaviourConfig())


def test_episodes_too_short_to_tell_belong_to_no_skill_until_they_are_refined():
    episodes = [
        *([(np.zeros((61, 2)) + np.arange(61)[:, None], np.zeros((60, 2)))] * 3),
        (np.zeros((9, 2)), np.zeros((8, 2))),
    ]
    dataset = TrajectoryDataset.from_episodes(episodes, action_low=[-1, -1], action_high=[1, 1])
    rough = cluster_windows(dataset, 2, BehaviourConfig(window=16))
    assert (rough.labels[:180] >= 0).all() and (rough.labels[180:] == -1).all()
    assert (refine(dataset, np.tile([[0.1, 1.0]], (188, 1)), BehaviourConfig()).labels == 0).all()
