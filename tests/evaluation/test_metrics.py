import math

import numpy as np
import pytest

from didi_gym.evaluation.metrics import coverage, smoothness, vendi_score
from didi_gym.evaluation.statistics import interquartile_mean, probability_of_improvement, stratified_bootstrap


def test_vendi_score_counts_the_rows_that_differ():
    assert vendi_score(np.ones((5, 2)), 1.0) == pytest.approx(1)
    assert vendi_score(1000 * np.eye(5), 1.0) == pytest.approx(5)
    assert vendi_score(np.array([[0.0], [0.0], [1000.0], [1000.0]]), 1.0) == pytest.approx(2)


def test_vendi_score_of_two_rows_is_the_formula_by_hand():
    k = math.exp(-0.5)  # rows one scale apart: K / 2 has the eigenvalues (1 + k) / 2 and (1 - k) / 2
    by_hand = math.exp(-sum(v * math.log(v) for v in ((1 + k) / 2, (1 - k) / 2)))
    assert vendi_score(np.array([[0.0, 0.0], [3.0, 4.0]]), 5.0) == pytest.approx(by_hand)


def test_vendi_score_does_not_depend_on_the_unit_or_the_order():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    assert vendi_score(10 * rows[::-1], 20.0) == pytest.approx(vendi_score(rows, 2.0))


def test_vendi_score_of_the_data_is_far_below_its_ceiling_as_docs_metrics_says():
    median = 2 * math.sqrt(math.log(2))  # distance of two draws from a 2-d Gaussian: Rayleigh of scale sqrt(2)
    rng, angles = np.random.default_rng(0), np.arange(8) * math.pi / 4
    assert np.mean([vendi_score(rng.normal(size=(8, 2)), median) for _ in range(400)]) == pytest.approx(2.8, abs=0.05)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = [vendi_score(radius * directions, median) for radius in (1, 2, 4)]
    assert scores == pytest.approx([2.4, 4.9, 7.7], abs=0.05)


def test_vendi_score_refuses_a_scale_that_tells_nothing_apart():
    for scale in (0.0, math.nan):
        with pytest.raises(ValueError, match="positive distance, got"):
            vendi_score(np.eye(2), scale)


def test_coverage_of_the_data_by_itself_is_one_and_by_one_point_one_cell():
    data = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.9, 0.9]])  # four of 2 x 2 cells
    assert coverage(data, data, 2) == 1
    assert coverage(data[:1], data, 2) == 1 / 4
    assert coverage(data[3:], data, 2) == 1 / 4  # two points of one cell
    many = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    assert coverage(many, many, 10) == 1


def test_coverage_counts_neither_what_lies_outside_the_data_nor_cells_that_the_data_never_visits():
    diagonal = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert coverage(np.array([[5.0, 5.0], [-0.1, 0.0], [0.0, 1.0]]), diagonal, 2) == 0
    ramp = np.arange(1, 1001, dtype=float)[:, None]  # 1st to 99th percentile: 10 to 990
    assert coverage(ramp[10:990], ramp, 10) == 1 and coverage(ramp[:9], ramp, 10) == 0


def test_coverage_along_a_feature_that_never_changes_is_that_of_the_others():
    data = np.array([[0.0, 7.0], [1.0, 7.0]])
    assert coverage(data[:1], data, 10) == 1 / 2


def test_coverage_of_many_dimensions_is_that_of_the_plane_in_which_the_data_varies_most():
    rng = np.random.default_rng(0)
    plane = rng.uniform(-1, 1, (5000, 2)) * [3, 2]
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]

    def lifted(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, rng.normal(0, 0.01, (len(rows), 10))], axis=1) @ turn

    assert coverage(lifted(plane), lifted(plane), 10) == 1
    assert coverage(lifted(plane[plane[:, 0] > 0]), lifted(plane), 10) == pytest.approx(
        0.5, abs=0.06
    )  # a column of cells on the border


def test_smoothness_is_zero_for_constant_actions_and_four_from_bound_to_bound():
    half = np.array([2.0])
    assert smoothness([np.full((3, 1), 0.7)], half) == 0
    assert smoothness([np.array([[-2.0], [2.0], [-2.0]])], half) == 4
    assert smoothness([np.array([[0.0], [2.0]]), np.array([[0.0], [0.0]])], half) == 1 / 2  # no step between rollouts
    assert math.isnan(smoothness([np.zeros((1, 1))], half))


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    assert interquartile_mean(np.arange(1.0, 9).reshape(4, 2)) == 4.5  # 3, 4, 5, 6
    assert interquartile_mean(np.array([[-1e9], [1.0], [2.0], [1e9]])) == 1.5
    assert interquartile_mean(np.array([[3.0]])) == 3


def test_the_bootstrap_interval_holds_the_statistic_and_shrinks_with_runs():
    scores = np.random.default_rng(0).normal(size=(80, 3))
    widths = []
    for runs in (5, 80):
        low, high = stratified_bootstrap(scores[:runs], interquartile_mean, samples=300)
        assert low < interquartile_mean(scores[:runs]) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    narrow = stratified_bootstrap(scores, interquartile_mean, confidence=0.5, samples=300)
    assert narrow[1] - narrow[0] < widths[1]


def test_the_bootstrap_draws_runs_within_each_task_and_the_same_with_the_same_seed():
    tasks = np.tile([[0.0, 100.0]], (4, 1))  # runs agree: a draw across tasks would not
    assert stratified_bootstrap(tasks, np.mean, samples=50) == (50, 50)
    mixed = np.array([[0.0, 1.0], [1.0, 0.0]])  # whole rows have mean 1/2; runs drawn within each task do not
    low, high = stratified_bootstrap(mixed, np.mean, samples=50)
    assert low < 0.5 < high
    assert stratified_bootstrap(mixed, np.mean, samples=50) == (low, high)


def test_probability_of_improvement_counts_wins_and_half_of_the_ties():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    assert probability_of_improvement(scores, scores) == 0.5
    assert probability_of_improvement(scores + 100, scores) == 1
    x, y = np.array([[1.0], [3.0]]), np.array([[1.0], [2.0], [4.0]])  # wins: 3 > 1, 3 > 2; tie: 1 = 1; of 6 pairs
    assert probability_of_improvement(x, y) == pytest.approx(2.5 / 6)
    assert probability_of_improvement(y, x) == pytest.approx(3.5 / 6)
    with pytest.raises(ValueError, match=r"same tasks, got shapes \(2, 1\) and \(5, 3\)"):
        probability_of_improvement(x, scores)
