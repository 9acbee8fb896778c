import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))  # scripts import what lies beside them

import baselines
from domains.humanoid import SETTLED, body_velocity
from methods import METHODS, Run
from methods.diversity import Entropy, Metra
from methods.recorded import the_behaviours
from methods.run import train_joint
from methods.untrained import prior_sampling, random_skills
from methods.vae import draw_code, squash, vae

from didi_gym.core.frames import inputs_to_state, turn
from didi_gym.core.layout import Heading
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.generators.agents import agents_layout
from didi_gym.evaluation.report import SkillReport
from didi_gym.evaluation.rollouts import Rollout
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.prior import DiffusionPrior
from didi_gym.models.weights import load_tensors
from didi_gym.training import train, train_skills
from didi_gym.training.segmentation import Segmentation
from tests.data.generators.test_from_agents import save
from tests.examples import BODY, body_states, gait_dataset, point_dataset, random_policy, tiny

CONTINUOUS = [name for name in METHODS if name not in ("imitation-only", "behaviours")]


def body_dataset() -> TrajectoryDataset:
    return TrajectoryDataset.from_episodes(
        [(body_states(41, i), body_states(40, i)[:, :3].clip(-1, 1)) for i in range(6)],
        BODY,
        action_low=[-1, -1, -1],
        action_high=[1, 1, 1],
    )


def make_run(folder, dataset, steps=3, **skills):
    train(dataset, tiny(**skills), folder, progress=False)
    return Run.load(dataset, folder, seed=0, steps=steps, progress=False)


@pytest.fixture(scope="module")
def point_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("point"), point_dataset())


@pytest.fixture(scope="module")
def body_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("body"), body_dataset())


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("method", CONTINUOUS)
def test_every_method_plans_for_points_and_bodies_and_leaves_the_run_alone(point_run, body_run, method):
    for run in (point_run, body_run):
        before = contents(run.folder)
        policy = METHODS[method](run)
        inputs = run.dataset.observations[:5][:, list(run.dataset.layout.policy_inputs)]
        skills = policy.skill_space.grid(5)
        actions = policy.plan_actions(inputs, skills, 1)
        assert actions.shape == (5, 1, run.dataset.action_dim)
        assert (actions >= policy.action_low).all() and (actions <= policy.action_high).all()
        assert policy.plan(inputs, skills).observations.shape == (5, 8, run.dataset.layout.state_dim)
        assert contents(run.folder) == before


@pytest.mark.parametrize("method", ["imitation-only", "no-prior", "vae", "prior-sampling", "released", "random-skills"])
def test_methods_for_behaviours_plan_for_every_discrete_skill(tmp_path, method):
    run = make_run(tmp_path, gait_dataset(episodes=6, steps=80)[0], skill_space=SkillSpace("discrete", 4))
    before = contents(tmp_path)
    policy = METHODS[method](run)
    skills = policy.skill_space.grid(16)
    actions = policy.plan_actions(np.zeros((len(skills), 2)), skills, 1)
    assert actions.shape == (len(skills), 1, 2)
    assert len(np.unique(actions[:, 0].round(6), axis=0)) == len(skills), "all skills act alike"
    assert contents(tmp_path) == before


def test_imitation_alone_is_the_policy_that_the_run_tuned(tmp_path):
    run = make_run(tmp_path, gait_dataset(episodes=6, steps=80)[0], skill_space=SkillSpace("discrete", 4))
    imitated = load_tensors(tmp_path / "checkpoints" / "imitation.safetensors", "average.")
    weights = METHODS["imitation-only"](run).state_dict()
    assert all(torch.equal(weights[name], imitated[name]) for name in weights)


def test_methods_for_continuous_skills_refuse_discrete_ones(tmp_path):
    run = make_run(tmp_path, gait_dataset(episodes=6, steps=80)[0], skill_space=SkillSpace("discrete", 4))
    with pytest.raises(ValueError, match="bc-anchor is for continuous skills"):
        METHODS["bc-anchor"](run)


def test_with_no_part_replaced_the_joint_objective_is_the_librarys(point_run):
    run = replace(point_run, config=replace(point_run.config, skills=replace(point_run.skills, steps=12)))
    ours = train_joint(run, "didi").state_dict()
    library = train_skills(run.training(), run.prior, run.policy.dynamics, run.skills)[0]
    assert all(torch.equal(ours[name], value) for name, value in library.state_dict().items())


@pytest.mark.parametrize(("method", "heeds"), [("no-prior", False), ("bc-anchor", False), ("metra", True)])
def test_only_methods_with_a_prior_heed_it(point_run, method, heeds):
    other = DiffusionPrior(8, 2, 2, **point_run.config.prior.sizes).requires_grad_(False)
    a, b = (METHODS[method](run).net.state_dict() for run in (point_run, replace(point_run, prior=other)))
    assert all(torch.equal(a[name], b[name]) for name in a) != heeds


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_gaussian_codes_become_skills_that_fill_the_ball_evenly(dim):
    skills = squash(torch.randn(20_000, dim, generator=torch.Generator().manual_seed(0)))
    radius = skills.norm(dim=-1)
    assert radius.max() <= 1
    share_within = [float((radius <= r).float().mean()) for r in (0.5, 0.8, 0.95)]
    np.testing.assert_allclose(share_within, [r**dim for r in (0.5, 0.8, 0.95)], atol=0.015)


def test_squash_keeps_directions_and_has_finite_gradients_at_zero():
    codes = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    skills = squash(codes)
    torch.testing.assert_close(skills[0] / skills[0].norm(), torch.tensor([0.6, 0.8]))
    skills.sum().backward()
    assert torch.isfinite(codes.grad).all()


def test_the_divergence_from_the_prior_is_known_by_hand():
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.tensor([[2.0, 0.0, 0.0, math.log(2)]])  # means, then log standard deviations
    assert draw_code(gaussian, False, generator)[1].item() == pytest.approx(2 + 1.5 - math.log(2), rel=1e-5)
    assert draw_code(torch.zeros(3, 4), True, generator)[1].item() == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[0.0, 50.0, 0.0, 0.0]])
    skill, divergence = draw_code(certain, True, generator)
    assert skill.tolist() == [[0, 1, 0, 0]] and divergence.item() == pytest.approx(math.log(4), rel=1e-5)


def test_the_vae_reconstructs_held_directions(point_run):
    run = replace(
        point_run, steps=400, config=replace(point_run.config, skills=replace(point_run.skills, batch_size=64))
    )
    policy = vae(run, kl_weight=0.001)
    first = policy.plan_actions(np.zeros((16, 2)), policy.skill_space.grid(16), 1)[:, 0]
    assert first.std(0).min() > 0.4  # the data's own actions have 0.58


def test_skills_of_the_same_start_make_the_entropy(point_run):
    torch.manual_seed(0)
    objective = Entropy(point_run, point_run.training().batches)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(16, 8, 2, generator=generator)
    states[:, 0] = 0
    skills = torch.zeros(16, 2)
    apart = states.clone()
    apart[:8] += torch.linspace(0, 100, 8)[None, :, None]  # all skills of one start alike: nothing is won
    near, same = (objective(x, skills, generator)[0].item() for x in (states, apart))
    assert same == pytest.approx(near, rel=1e-4)
    assert objective(3 * states, skills, generator)[0].item() < near


def test_the_dual_variable_of_metra_rises_while_its_embedding_stretches(point_run):
    objective = Metra(point_run, point_run.training().batches)
    states = torch.randn(32, 8, 2, generator=torch.Generator().manual_seed(0)).cumsum(1) / 10
    for stretch, rises in ((100.0, True), (0.0, False)):
        with torch.no_grad():
            objective.embedding[-1].weight.fill_(stretch)
        before = objective.dual.item()
        objective(states, torch.zeros(32, 2), torch.Generator().manual_seed(0))
        assert (objective.dual.item() > before) == rises


def test_samples_of_the_prior_turn_with_the_world(body_run):
    policy = prior_sampling(body_run)
    inputs = body_states(4, 7)[:, 2:]
    angle = np.full(4, 1.1, np.float32)
    turned = turn(inputs_to_state(inputs, BODY), angle, BODY.heading)[:, 2:]
    skills = policy.skill_space.grid(4)
    plan, other = policy.plan(inputs, skills), policy.plan(turned, skills)
    np.testing.assert_allclose(other.actions, plan.actions, atol=1e-4)
    expected = turn(plan.observations, np.repeat(angle[:, None], 8, axis=1), BODY.heading)
    xy = [0, 1, 6, 7]  # a quaternion has two signs
    np.testing.assert_allclose(other.observations[..., xy], expected[..., xy], atol=1e-3)


def test_a_random_skill_is_one_action_wherever_it_is_held(body_run):
    policy = random_skills(body_run)
    skill = np.repeat(policy.skill_space.grid(5)[3:4], 6, axis=0)
    actions = policy.plan_actions(body_states(6, 3)[:, 2:], skill)
    assert actions.shape == (6, 8, 3) and np.ptp(actions, axis=(0, 1)).max() == 0
    np.testing.assert_allclose(actions, policy.plan(body_states(6, 3)[:, 2:], skill).actions, atol=1e-6)


def test_the_behaviours_themselves_see_angles_as_they_were_recorded(tmp_path, monkeypatch):
    layout = agents_layout(3, 1, [0])  # x, which behaviours do not read, an angle, and a velocity
    config = replace(random_policy().config, layout=layout, action_dim=1, dataset_id="d", env_id="Pendulum-v1")
    save(tmp_path, "b-turns", 2, W0=np.array([[0.1], [0.0]]))
    save(tmp_path, "a-slows", 2, W0=np.array([[0.0], [-0.2]]))
    labels = SimpleNamespace(names=("b-turns", "a-slows"), settings={"noise": 0.0})
    monkeypatch.setattr("methods.recorded.read_labels", lambda name: labels)
    policy = the_behaviours(SkillPolicy(config), tmp_path, seed=0)
    angles, speed = np.array([-1.0, 0.5, 3.3]), 2.0  # 3.3 is that of a body on its back: it winds no further
    inputs = np.stack([np.cos(angles), np.full(3, speed), np.sin(angles)], axis=1).astype(np.float32)
    actions = policy.plan_actions(inputs, np.eye(2)[[0, 0, 0]])[:, 0, 0]
    np.testing.assert_allclose(actions, 0.1 * angles, atol=1e-6)
    np.testing.assert_allclose(policy.act(inputs, np.eye(2)[[1, 1, 1]])[:, 0], -0.4, atol=1e-6)

    labels.settings["noise"] = 0.5
    noisy = the_behaviours(SkillPolicy(config), tmp_path, seed=0).act(
        np.repeat(inputs[1:2], 4000, 0), np.eye(2)[[0] * 4000]
    )
    assert noisy.std() == pytest.approx(0.5, rel=0.1) and noisy.mean() == pytest.approx(0.05, abs=0.03)

    save(tmp_path, "b-turns", 2, W0=np.zeros((3, 1)), time_feature=True)
    with pytest.raises(ValueError, match="b-turns read the time"):
        the_behaviours(SkillPolicy(config), tmp_path, seed=0)


def row(method="vae", seed=0, spread=0.5):
    report = dict.fromkeys(SkillReport.__dataclass_fields__, math.nan)
    return {"dataset": "d", "method": method, "seed": seed, "training_seconds": 1.0, **report, "real_spread": spread}


def test_rows_are_merged_by_key(tmp_path):
    file = tmp_path / "results" / "skills.csv"
    for new in (row(), row("metra"), row(seed=1), row(spread=0.75)):
        baselines.merge_row(file, new)
    rows = list(baselines.read_rows(file).values())
    assert [(r["method"], r["seed"], r["real_spread"]) for r in rows] == [
        ("metra", "0", "0.5"),
        ("vae", "0", "0.75"),
        ("vae", "1", "0.5"),
    ]
    assert tuple(rows[0]) == baselines.COLUMNS and rows[0]["contact"] == "nan"


def test_what_the_file_holds_is_measured_only_when_asked_again(tmp_path, monkeypatch):
    done = []

    def measure(args, dataset, method, seed):
        done.append((method, seed))
        return row(method, seed)

    monkeypatch.setattr(baselines, "measure", measure)
    monkeypatch.setattr(baselines.TrajectoryDataset, "from_minari", lambda name: SimpleNamespace())
    args = baselines.Baselines("d", ("vae", "metra"), (0,), csv=tmp_path / "skills.csv")
    baselines.main(args)
    baselines.main(replace(args, seeds=(0, 1)))
    assert done == [("vae", 0), ("metra", 0), ("vae", 1), ("metra", 1)]
    baselines.main(replace(args, methods=("vae",), again=True))
    assert done[4:] == [("vae", 0)]


def test_a_method_that_is_not_known_and_a_run_that_is_not_there_are_named(tmp_path):
    with pytest.raises(SystemExit, match="no method gan; there are didi"):
        baselines.main(baselines.Baselines("d", ("gan",)))
    args = baselines.Baselines("didi/d-v0", runs=tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"didi-gym train --dataset didi/d-v0 --output .*didi-d-v0-seed3 --seed 3"
    ):
        baselines.measure(args, point_dataset(), "vae", 3)


def test_the_pages_with_tables_are_made_of_the_committed_results(tmp_path, monkeypatch):
    import tables

    committed = {tables.README: tmp_path / "README.md"}
    committed |= {tables.DOCS / name: tmp_path / name for name in ("performance.md", "results.md")}
    for page, copy in committed.items():
        copy.write_text(page.read_text())
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    tables.main()
    for page, made in committed.items():
        assert made.read_text() == page.read_text(), f"{page.name} is out of date: make paper-tables"
    for picture in ("results-scores.png", "results-sensitivity.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_mean_over_a_handful_of_successes_is_not_shown():
    import tables

    rate = {"maze": "Medium", "low_level_steps": "1", "steps_to_goal": "300.4", "seed": "0"}
    rows = [
        {"agent": agent, "success": success, **rate}
        for agent, success in (("skill-graph", "0.2"), ("sac", "0.18"), ("ppo", "0"))
    ]
    shown = [line.split(" | ")[-1].strip("| ") for line in tables.mazes_table(rows).splitlines()[2:]]
    assert shown == ["300", "-", "-"]


def test_the_combined_score_needs_every_share_and_leaves_out_what_has_no_plan():
    from rows import combined_score

    row = {"mutual_information_bits": "2", "mutual_information_ceiling": "4", "spread_ratio": "1", "fidelity": "0.5"}
    assert combined_score(row) == pytest.approx(0.25 ** (1 / 3))
    for far in ("0.25", "4"):  # skills that lead further than planned are as bad as skills that stay behind
        assert combined_score({**row, "spread_ratio": far}) == pytest.approx(0.0625 ** (1 / 3))
    assert combined_score({**row, "spread_ratio": "0"}) == 0
    assert combined_score({**row, "mutual_information_bits": "-0.1"}) == 0
    assert combined_score({**row, "spread_ratio": "nan"}) == pytest.approx(0.5)


def test_a_method_is_compared_on_the_seeds_and_data_that_both_have():
    import tables

    def row(method, dataset, seed, bits):
        ceiling = {"mutual_information_ceiling": "4", "spread_ratio": "1", "fidelity": "1"}
        return {"method": method, "dataset": dataset, "seed": seed, "mutual_information_bits": str(bits), **ceiling}

    rows = [row("didi", d, s, 3) for d in "ab" for s in "01234"] + [row("rival", "a", s, 1) for s in "012"]
    assert tables.improvement(rows, "rival", ["a", "b"]) == "1.00 [1.00, 1.00]"
    assert tables.improvement(rows[:-1], "rival", ["a", "b"]) == "-"


def test_purity_counts_steps_and_covers_only_behaviours_that_make_up_most_of_a_skill():
    from assignment import score

    truth = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    labels = np.array([0, 0, 0, 0, 1, 1, -1, -1])  # the second skill is half of either; two steps are no skill's
    expected = {"skills": 2, "purity": round(4 / 6, 4), "covered": 1, "behaviours": 3}
    assert score(Segmentation(labels, 2), truth) == expected


def test_velocities_are_those_of_the_bodys_own_frame():
    steps, turning = SETTLED + 200, 0.02  # rad a step: the yaw winds more than once
    yaw = np.pi / 2 + turning * np.arange(steps + 1)
    ahead = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    path = np.cumsum(0.3 * ahead + 0.1 * ahead[:, ::-1] * [-1, 1], axis=0)  # ahead, and to the left
    states = np.column_stack([path, np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)])
    states[1:, :2] = states[:-1, :2]  # where a step leads is seen after it
    rollout = Rollout(states, np.zeros((steps, 1)), False, np.nan)
    found = body_velocity(rollout, Heading((2, 3, 4, 5), ((0, 1),)), seconds=0.1)
    np.testing.assert_allclose(found, [3, 1, 0.2], rtol=1e-6)
