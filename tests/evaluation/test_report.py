import json
import math
from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.observations import step_seconds_of, warn_of_other_step
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.evaluation.metrics import direction_error, mutual_information, nearest_distance, skill_probe, skill_spread
from didi_gym.evaluation.report import SkillReport, evaluate_skills
from didi_gym.evaluation.rollouts import SkillSimulator, Start, held_steps_for, hold_skills, make_data_env
from didi_gym.models.config import PolicyConfig
from didi_gym.models.policy import SkillPolicy
from tests.examples import point_dataset, random_policy

POINT = Layout.flat(2)


class Point(gym.Env):
    """x' = x + 0.1 a; the episode ends outside a square of half-width `wall`."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (2,))

    def __init__(self, wall=math.inf):
        self.wall = wall

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.1, 0.1, 2).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.x = (self.x + 0.1 * action).astype(np.float32)
        return self.x.copy(), 0.0, bool(np.abs(self.x).max() > self.wall), False, {}


class Compass(SkillPolicy):
    """Moves where z points: a perfect policy for `Point`."""

    def __init__(self, turn=0.0, deaf=False):
        space = SkillSpace("ball", 2)
        super().__init__(PolicyConfig(8, 2, POINT, space, skill_duration=8, replan_every=4, width=8, depth=1))
        self.turn, self.deaf = turn, deaf

    def plan_actions(self, inputs, skills, steps=None):
        actions = np.repeat(np.asarray(skills, np.float32)[:, None], steps or 8, axis=1)
        return np.zeros_like(actions) if self.deaf else actions

    def plan(self, observations, skills, *, replan_every=None):
        from didi_gym.models.policy import Plan

        actions = self.plan_actions(observations, skills)
        moved = np.cumsum(0.1 * actions, axis=1) - 0.1 * actions
        return Plan(actions, observations[:, None] + moved)


class Shaking(Compass):
    """Jumps from bound to bound whatever z is."""

    def plan_actions(self, inputs, skills, steps=None):
        actions = super().plan_actions(inputs, skills, steps)
        actions[:, ::2] = -1
        actions[:, 1::2] = 1
        return actions


def test_a_perfect_policy_gets_perfect_marks():
    report, held = evaluate_skills(Compass(), Point(), starts=16, progress=False)
    assert report.spread_ratio == pytest.approx(1, abs=1e-3) and report.plan_error < 1e-5
    assert report.real_spread == pytest.approx(0.7 * math.sqrt(0.5), rel=1e-3)  # 7 steps of 0.1 on the rim
    assert report.probe > 0.98 and report.direction_error_degrees < 0.1
    assert report.mutual_information_bits > 3.3 and report.mutual_information_ceiling == 4
    assert report.held_distance == pytest.approx(9.6, rel=1e-3) and report.falls == 0
    assert math.isnan(report.fidelity) and math.isnan(report.contact)
    assert held.paths.shape == (8 * 16, 97, 2) and held.skills.shape == (8 * 16, 2)


def test_plans_are_imagined_with_as_many_new_plans_as_are_executed():
    class Known(nn.Module):  # x' = x + 0.1 a, in the units of a policy that was never fitted to data
        def rollout(self, first, actions):
            return torch.cat([first[:, None], first[:, None] + 0.1 * actions.cumsum(1)], dim=1)

    config = PolicyConfig(8, 2, POINT, SkillSpace("ball", 2), skill_duration=8, replan_every=2, width=8, depth=1)
    torch.manual_seed(0)
    policy = SkillPolicy(config).eval().requires_grad_(False)
    policy.attach_dynamics(Known())
    again, _ = evaluate_skills(policy, Point(), starts=8, held_episodes=1, hold=1, progress=False)
    once, _ = evaluate_skills(policy, Point(), starts=8, held_episodes=1, hold=1, replan_every=8, progress=False)
    assert again.spread_ratio == pytest.approx(1, abs=1e-3) and once.spread_ratio == pytest.approx(1, abs=1e-3)
    assert abs(again.planned_spread / once.planned_spread - 1) > 0.05
    assert again.plan_error == pytest.approx(once.plan_error, abs=1e-6) and once.plan_error < 1e-5


def test_motion_far_from_the_origin_is_seen_where_only_changes_count():
    class Far(Point):
        observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

        def reset(self, *, seed=None, options=None):
            return self.seen(super().reset(seed=seed)[0]), {}

        def step(self, action):
            observation, *rest = super().step(action)
            return self.seen(observation), *rest

        def seen(self, observation):
            return np.array([*(observation.astype(np.float64) + 5e6), 0])

    policy = Compass()
    source = ObservationSource(3, (0, 1, 2))
    policy.config = replace(
        policy.config,
        layout=Layout(3, (2,), (0, 1), relative=(0, 1), sources=(ObservationSource(3, (2,)),), state_source=source),
    )
    held = hold_skills(policy, Far(), skills=4, episodes=2, steps=20, progress=False)
    np.testing.assert_allclose(np.linalg.norm(np.diff(held.paths, axis=1), axis=-1), 0.1, rtol=1e-4)


def test_plans_that_differ_while_the_body_stands_still_get_no_marks():
    class Dreamer(Compass):
        def plan(self, observations, skills, *, replan_every=None):
            return Compass().plan(observations, skills)

    report, _ = evaluate_skills(Dreamer(deaf=True), Point(), starts=16, progress=False)
    assert report.planned_spread > 0.4 and report.real_spread == report.spread_ratio == 0
    assert report.probe < 0.05 and report.mutual_information_bits < 0.1 and report.held_distance == 0
    assert report.plan_error == pytest.approx(0.7, rel=1e-3)


def test_falls_are_counted_and_a_fallen_body_stays_where_it_fell():
    held = hold_skills(Compass(), Point(wall=0.5), skills=4, episodes=3, steps=30, progress=False)
    assert held.terminated.all() and held.paths.shape == (12, 31, 2)
    assert (held.paths[:, -1] == held.paths[:, -2]).all() and np.abs(held.paths).max() < 0.7


class Clocked(Point):
    """A Point that counts its own steps and refuses to go on after its last."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        self.left = self.limit
        return super().reset(seed=seed, options=options)

    def step(self, action):
        assert self.left > 0, "stepped after the episode ended"
        self.left -= 1
        return *super().step(action)[:3], self.left == 0, {}


def test_an_episode_that_ends_for_its_length_ends_a_held_skill_and_is_no_fall():
    with pytest.warns(UserWarning, match="100% of the held rollouts.*after 12 of 30 steps"):
        held = hold_skills(Compass(), Clocked(12), skills=4, episodes=3, steps=30, progress=False)
    assert held.truncated.all() and not held.terminated.any()
    moved = np.linalg.norm(held.paths[:, -1] - held.paths[:, 0], axis=-1)
    np.testing.assert_allclose(moved, 1.2, rtol=1e-3)  # twelve steps, and the place where they ended
    exact = hold_skills(Compass(), Clocked(12), skills=4, episodes=1, steps=12, progress=False)
    assert not exact.truncated.any()


@pytest.mark.filterwarnings("ignore:.*of the held rollouts were ended")
def test_short_episodes_are_evaluated_and_count_neither_as_falls_nor_as_unlike_the_data():
    dataset = point_dataset(40)
    report, _ = evaluate_skills(Compass(), Clocked(20), dataset, starts=4, held_steps=96, progress=False)
    assert report.falls == 0 and report.held_cut == 1 and report.held_distance < 2.1
    assert math.isnan(report.held_fidelity)  # no rollout lasts eight horizons
    free, _ = evaluate_skills(Compass(), Point(), dataset, starts=4, held_steps=20, progress=False)
    assert report.fidelity == pytest.approx(free.fidelity, abs=0.2)
    shorter, _ = evaluate_skills(Compass(), Clocked(5), dataset, starts=4, progress=False)
    assert shorter.falls == 0 and math.isnan(shorter.fidelity)


def test_a_start_that_an_unsteady_environment_does_not_repeat_is_its_reset():
    class Unsteady(Clocked):
        def reset(self, **kwargs):
            self.limit -= 1
            return super().reset(**kwargs)

    simulator = SkillSimulator(Compass(), Unsteady(5))
    start = Start(0, np.ones((3, 2), np.float32))
    for _ in range(2):  # the second time the episode ends with the start's actions
        state = simulator.visit(start)
    np.testing.assert_array_equal(state, simulator.visit(Start(0, None)))
    assert len(simulator.hold(state, np.zeros(2, np.float32), 1).actions) == 1


def test_held_times_are_seconds_where_the_environment_says_how_long_a_step_is():
    class Timed(Point):
        dt = 0.1

    assert hold_skills(Compass(), Timed(), skills=2, episodes=1, progress=False).paths.shape[1] == 49  # 4.8 s
    for seconds, steps in ((60.0, 8), (1e-9, 2_000)):
        Timed.dt = seconds
        assert held_steps_for(Compass(), Timed()) == steps
    Timed.dt = 0.1
    report, _ = evaluate_skills(Compass(), Timed(), starts=2, hold=1, progress=False)
    assert (report.held_steps, report.held_seconds, report.step_seconds) == (48, 4.8, 0.1)
    report, _ = evaluate_skills(Compass(), Point(), starts=2, hold=1, progress=False)
    assert report.held_steps == 96 and math.isnan(report.held_seconds) and math.isnan(report.step_seconds)


def test_an_environment_of_other_time_steps_than_the_data_is_warned_of():
    class Timed(Point):
        dt = 0.1

    with pytest.warns(UserWarning, match=r"takes 0.1 s of simulated time, but.* 0.05 s"):
        warn_of_other_step(0.1, 0.05)
    policy = Compass()
    policy.config = replace(policy.config, step_seconds=0.05)
    with pytest.warns(UserWarning, match=r"takes 0.1 s of simulated time, but.* 0.05 s"):
        SkillSimulator(policy, Timed())
    warn_of_other_step(0.1, 0.1), warn_of_other_step(0.1, None), warn_of_other_step(None, 0.05)
    assert step_seconds_of(gym.make("HalfCheetah-v5")) == pytest.approx(0.05)
    assert step_seconds_of(gym.make("CartPole-v1")) is None  # 50 pictures a second say nothing about time


def test_a_start_can_be_visited_again():
    simulator = SkillSimulator(Compass(), Point())
    for start in simulator.random_starts(5, np.random.default_rng(0)):
        np.testing.assert_array_equal(simulator.visit(start), simulator.visit(start))


def test_fidelity_is_high_in_the_datas_world_and_low_outside():
    dataset = point_dataset(40)
    policy = Compass()
    scale = dataset.observations.max(0) - dataset.observations.min(0)
    policy.normalizer.scale.copy_(policy.normalizer.scale.new_tensor(scale / 2))
    near, _ = evaluate_skills(policy, Point(), dataset, starts=8, progress=False)

    shaking = Shaking()
    shaking.normalizer.load_state_dict(policy.normalizer.state_dict())
    far, _ = evaluate_skills(shaking, Point(), dataset, starts=8, progress=False)
    assert near.fidelity > 0.5 and far.fidelity == 0


def test_fidelity_is_zero_where_every_rollout_falls_and_unknown_where_nothing_was_held_out():
    fallen, _ = evaluate_skills(Compass(), Point(wall=0.3), point_dataset(10), starts=4, progress=False)
    assert fallen.fidelity == 0 and fallen.falls == 1
    alone, _ = evaluate_skills(Compass(), Point(), point_dataset(1), starts=4, progress=False)
    assert math.isnan(alone.fidelity)


def test_skills_that_go_everywhere_are_told_from_one_that_stays_and_from_one_that_shakes():
    dataset = point_dataset(20)
    compass, _ = evaluate_skills(Compass(), Point(), dataset, starts=4, progress=False)
    assert compass.vendi > 7.5 and compass.vendi_ceiling == 8 and compass.smoothness == 0
    still, _ = evaluate_skills(Compass(deaf=True), Point(), dataset, starts=4, progress=False)
    assert still.vendi == pytest.approx(1) and still.smoothness == 0
    assert 0 < still.coverage < 0.05 < 0.3 < compass.coverage < 1  # of the data's cells: one, and eight rays

    shaking, _ = evaluate_skills(Shaking(), Point(), dataset, starts=4, progress=False)
    assert shaking.smoothness == 4 and shaking.vendi == pytest.approx(1)


def test_diversity_against_the_data_is_unknown_without_data_and_in_data_that_mostly_stands_still():
    alone, _ = evaluate_skills(Compass(), Point(), starts=4, progress=False)
    assert math.isnan(alone.vendi) and math.isnan(alone.coverage) and alone.vendi_ceiling == 8
    still = TrajectoryDataset.from_episodes([(np.zeros((20, 2)), np.eye(20, 2))] * 3)
    frozen, _ = evaluate_skills(Compass(), Point(), still, starts=4, progress=False)
    assert math.isnan(frozen.vendi) and frozen.coverage == 1  # its only cell is the start


def test_two_reports_of_the_same_seed_are_the_same():
    first, second = (evaluate_skills(Compass(), Point(), point_dataset(), starts=4, progress=False)[0] for _ in "ab")
    assert repr(first) == repr(second)


def test_reports_written_before_diversity_was_measured_can_still_be_read():
    report, _ = evaluate_skills(Compass(), Point(), starts=4, progress=False)
    new = {"vendi", "vendi_ceiling", "coverage", "smoothness"}
    old = SkillReport(**{k: v for k, v in asdict(report).items() if k not in new})
    assert old.probe == report.probe and math.isnan(old.smoothness)


def test_actions_stay_inside_bounds_that_float32_rounds_outwards():
    class Narrow(Point):
        action_space = spaces.Box(-0.1, 0.1, (2,), np.float64)  # float32(0.1) > 0.1

    policy = Compass()
    policy.low.fill_(-0.1), policy.high.fill_(0.1)
    policy.plan_actions = lambda inputs, skills, steps=None: np.full((1, steps, 2), 0.1, np.float32)
    assert hold_skills(policy, Narrow(), skills=2, episodes=1, steps=4, progress=False).paths.shape == (2, 5, 2)


def test_mujoco_states_of_the_data_are_starts_where_the_simulator_can_be_put_into_them():
    env = gym.make("InvertedPendulum-v5")  # its observation is positions and velocities
    layout = Layout.flat(4)
    policy = random_policy(layout, action_dim=3)
    states = np.random.default_rng(0).normal(0, 0.05, (31, 4))
    dataset = TrajectoryDataset.from_episodes([(states, np.zeros((30, 3)))], layout)
    simulator = SkillSimulator(policy, env)
    starts = simulator.data_starts(3, dataset, np.random.default_rng(0))
    assert len(starts) == 3
    for start in starts:
        simulator.visit(start)
        data = env.unwrapped.data
        np.testing.assert_allclose(np.concatenate([data.qpos, data.qvel]), start.state, atol=1e-6)
    assert SkillSimulator(Compass(), Point()).data_starts(3, point_dataset(), np.random.default_rng(0)) == []


def test_the_report_is_saved_as_json_with_null_for_what_was_not_measured(tmp_path):
    report, _ = evaluate_skills(Compass(), Point(), starts=4, progress=False)
    report.save(tmp_path / "results.json")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["fidelity"] is None and saved["probe"] == report.probe


def test_spread_is_the_standard_deviation_over_skills_from_the_same_start():
    changes = np.array([[[0.0, 0.0], [2.0, 0.0]], [[5.0, 1.0], [5.0, 3.0]]])  # (starts, skills, features)
    assert skill_spread(changes) == pytest.approx(math.sqrt(0.5))


def test_direction_error_forgives_a_turn_and_a_mirror_but_not_a_missing_direction():
    grid = SkillSpace("ball", 2).grid(8)
    c, s = np.cos(1.0), np.sin(1.0)
    turned = grid @ np.array([[c, s], [-s, c]])
    assert direction_error(grid, turned[None]) < 0.01
    assert direction_error(grid, (turned * [1, -1])[None]) < 0.01
    lost = turned.copy()
    lost[3] = turned[2]
    assert 30 < direction_error(grid, lost[None]) < 45
    assert math.isnan(direction_error(np.eye(3), np.ones((1, 3, 2))))


def test_probes_find_what_is_there_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    skills = rng.uniform(-1, 1, (40, 16, 2)).astype(np.float32)
    told = skills @ np.array([[1.0, 2.0], [-1.0, 0.5]], np.float32)
    noise = rng.normal(size=told.shape).astype(np.float32)
    assert skill_probe(told, skills, 0) > 0.98 and skill_probe(noise, skills, 0) < 0.05
    labelled = np.eye(16, dtype=np.float32)[None].repeat(40, 0)
    found = mutual_information(labelled, 16, 0)
    assert found.low <= found.bits <= found.high and found.low > 3.8 and found.accuracy == 1
    found = mutual_information(rng.normal(size=(40, 16, 2)).astype(np.float32), 16, 0)
    assert 0 <= found.low <= found.bits <= found.high < 0.1 and found.accuracy < 0.2


def test_probes_leave_torchs_global_generators_as_they_were(monkeypatch):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the generators of GPUs are seeded"))
    mutual_information(np.random.default_rng(0).normal(size=(6, 4, 3)), 4, 0)
    assert torch.equal(torch.rand(3), expected)


def test_columns_that_hardly_ever_change_neither_blow_a_probe_up_nor_hide_what_others_tell():
    rng = np.random.default_rng(0)
    labelled = np.eye(16, dtype=np.float32)[None].repeat(40, 0)
    skills = rng.uniform(-1, 1, (40, 16, 2)).astype(np.float32)
    rare = (rng.random((40, 16, 3)) < 0.005).astype(np.float32)
    rare[:20] = 0  # contacts that one half of the starts never had
    constant = np.full((40, 16, 1), 0.1, np.float32)
    noise = rng.normal(size=(40, 16, 2)).astype(np.float32)
    for nothing in (np.concatenate([noise, rare, constant], -1), np.concatenate([rare, constant], -1), constant):
        found = mutual_information(nothing, 16, 0)
        assert 0 <= found.bits < 0.1 and found.high < 0.1
        assert -0.1 < skill_probe(nothing, skills, 0) < 0.05
    found = mutual_information(np.concatenate([labelled, rare, constant], -1), 16, 0)
    assert found.bits > 3.7
    assert skill_probe(np.concatenate([skills, rare, constant], -1), skills, 0) > 0.95


def test_nearest_distances():
    import torch

    distances = nearest_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 3.0]]))
    assert distances.tolist() == [1, 1]


def test_what_cannot_be_evaluated_says_why():
    with pytest.raises(ValueError, match="at least 2 skills from 2 starts, got 1 skills, 4 starts"):
        evaluate_skills(Compass(), Point(), starts=4, skills=1, progress=False)
    three = TrajectoryDataset.from_episodes([(np.zeros((9, 3)), np.zeros((9, 2)))])
    with pytest.raises(ValueError, match="states have 2 numbers, those of data set None 3"):
        evaluate_skills(Compass(), Point(), three, progress=False)
    wide = Point()
    wide.action_space = spaces.Box(-2, 2, (2,))
    with pytest.raises(ValueError, match="not those the policy was trained on"):
        evaluate_skills(Compass(), wide, progress=False)
    with pytest.raises(ValueError, match="names no environment"):
        make_data_env(Compass())
    policy = random_policy(replace(POINT, state_source=None), action_dim=3)
    with pytest.raises(ValueError, match="no state_source"):
        SkillSimulator(policy, Point())
    with pytest.raises(ValueError, match="MuJoCo environments only"):
        evaluate_skills(Compass(), Point(), contact_geoms="wall", progress=False)
    with pytest.raises(ValueError, match="no geom of the environment matches 'wall'"):
        SkillSimulator(random_policy(Layout.flat(4)), gym.make("InvertedPendulum-v5"), "wall")
