"""Environments whose actions are whole numbers: from integers in a data set to integers in the simulator."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from didi_gym.cli import main as cli
from didi_gym.core.layout import Layout
from didi_gym.core.schema import from_dict, to_dict
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import DatasetError, TrajectoryDataset
from didi_gym.data.writing import Episode, write_dataset
from didi_gym.evaluation.report import evaluate_skills
from didi_gym.evaluation.rollouts import SkillSimulator
from didi_gym.models.config import PolicyConfig
from didi_gym.models.networks import one_hot_choice
from didi_gym.models.policy import SkillPolicy
from didi_gym.training import Run, train, train_dynamics, train_prior, train_skills
from didi_gym.wrappers.executor import to_discrete
from tests.examples import random_policy, tiny

SPACE = spaces.Discrete(3, start=-1)  # left, stay, right


class Walk(gym.Env):
    """A point on a line, x' = x + 0.1 a, with a in {-1, 0, 1}."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = SPACE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.1, 0.1, 1).astype(np.float32)
        self.taken = []
        return self.x.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.taken.append(int(action))
        self.x = (self.x + np.float32(0.1 * int(action))).astype(np.float32)
        return self.x.copy(), 0.0, False, False, {}


def walks(episodes=60, steps=24, seed=0):
    """Episodes `(positions, whole numbers)` of the walk; a direction is held for six steps, mostly."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(episodes):
        actions = np.repeat(rng.integers(-1, 2, steps // 6), 6)
        actions = np.where(rng.random(steps) < 0.1, rng.integers(-1, 2, steps), actions)
        pairs.append((np.concatenate([[0], np.cumsum(0.1 * actions)])[:, None], actions))
    return pairs


def walk_dataset(**settings):
    return TrajectoryDataset.from_episodes(walks(**settings), action_space=SPACE)


def discrete_policy(**changes):
    """An untrained policy of 3 discrete actions."""
    policy = random_policy(discrete_actions=True, **changes)
    with torch.no_grad():
        policy.low.zero_(), policy.high.fill_(1)
    return policy


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_become_one_hot_counted_from_the_spaces_start(kind):
    episodes = [(np.zeros((4, 2)), np.array([5, 7, 6], kind)), (np.zeros((2, 2)), np.array([7, 5], kind))]
    dataset = TrajectoryDataset.from_episodes(episodes, action_space=spaces.Discrete(3, start=5))
    assert dataset.actions.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert dataset.actions.dtype == np.float32 and dataset.discrete_actions
    assert dataset.action_low.tolist() == [0, 0, 0] and dataset.action_high.tolist() == [1, 1, 1]


def test_execution_undoes_what_loading_did():
    episodes = walks()
    dataset = walk_dataset()
    np.testing.assert_array_equal(to_discrete(dataset.actions, SPACE), np.concatenate([a for _, a in episodes]))


def test_an_action_that_is_never_taken_keeps_its_place():
    dataset = TrajectoryDataset.from_episodes([(np.zeros((4, 2)), [0, 2, 0])], action_space=spaces.Discrete(4))
    assert dataset.actions.shape == (3, 4) and not dataset.actions[:, [1, 3]].any()


def test_both_parts_of_a_split_know_that_actions_are_discrete():
    assert all(part.discrete_actions for part in walk_dataset().split())


def test_a_box_given_as_action_space_gives_its_bounds():
    episodes = [(np.zeros((4, 2)), np.zeros((3, 2)))]
    dataset = TrajectoryDataset.from_episodes(episodes, action_space=spaces.Box(-2, 3, (2,)))
    assert dataset.action_low.tolist() == [-2, -2] and dataset.action_high.tolist() == [3, 3]
    assert not dataset.discrete_actions


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ([0, 2, 1], r"episode 1: actions\[1\] is 2, expected -1 to 1; remove or repair"),
        ([0, 1, -2], r"episode 1: actions\[2\] is -2, expected -1 to 1"),
        ([0.0, 1.0, 0.0], r"episode 1: actions of Discrete\(3, start=-1\) must be whole numbers .* float64"),
        ([[0], [1], [0]], r"episode 1: .* whole numbers of shape \(steps,\), got \(3, 1\)"),
    ],
)
def test_an_action_outside_the_space_is_an_error_that_names_the_episode(actions, words):
    episodes = [(np.zeros((4, 2)), [0, 1, 0]), (np.zeros((4, 2)), actions)]
    with pytest.raises(DatasetError, match=words):
        TrajectoryDataset.from_episodes(episodes, action_space=SPACE)


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Dict(a=SPACE), spaces.Box(0, 1, (2, 2))]
)
def test_other_action_spaces_are_refused_by_name(space):
    with pytest.raises(DatasetError, match=r"must be a flat Box or Discrete, got .*not supported yet"):
        TrajectoryDataset.from_episodes([(np.zeros((4, 2)), np.zeros((3, 2)))], action_space=space)


# -- policy ------------------------------------------------------------------------------------------------------------


def test_a_choice_is_exactly_one_hot_and_its_gradient_is_the_softmaxs():
    logits = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).mul(5).requires_grad_()
    choice = one_hot_choice(logits)
    assert set(choice.unique().tolist()) == {-1, 1} and ((choice == 1).sum(-1) == 1).all()
    assert (choice.argmax(-1) == logits.argmax(-1)).all()
    weights = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((choice * weights).sum(), logits)
    (expected,) = torch.autograd.grad((2 * logits.softmax(-1) * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().mean() > 0.01


def test_in_training_a_choice_is_drawn_from_the_softmax_again_and_again_the_same():
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(40_000, 3).requires_grad_()
    drawn, again = (one_hot_choice(logits, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(drawn, again) and set(drawn.unique().tolist()) == {-1, 1}
    torch.testing.assert_close((drawn == 1).float().mean(0), logits[0].softmax(-1), atol=0.01, rtol=0)
    (gradient,) = torch.autograd.grad(drawn[:, 0].sum(), logits)
    assert gradient.isfinite().all() and gradient[:, 0].mean() > 0.05


@pytest.mark.parametrize("consistency", ["dynamics", "joint"])
def test_emitted_actions_are_what_is_executed_and_the_policy_learns_through_them(consistency):
    policy = discrete_policy(consistency=consistency).requires_grad_(True)
    actions, _ = policy(torch.randn(64, 6), torch.randn(64, 2))
    assert actions.shape == (64, 8, 3) and set(actions.unique().tolist()) == {-1, 1}
    actions[..., 0].sum().backward()
    assert policy.net.inlet.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("n", [1, 8, 200])
def test_planned_actions_are_one_hot_in_small_and_large_batches(n):
    policy = discrete_policy(layout=Layout.flat(4))
    rng = np.random.default_rng(0)
    inputs, skills = rng.normal(size=(n, 4)).astype(np.float32), policy.skill_space.sample(n, rng)
    planned = policy.plan_actions(inputs, skills)
    assert planned.shape == (n, 8, 3) and planned.dtype == np.float32
    assert set(np.unique(planned)) == {0, 1} and (planned.sum(-1) == 1).all()
    with torch.inference_mode():
        normalized = policy.normalizer.normalize(torch.from_numpy(inputs))
        expected = policy(normalized, torch.from_numpy(np.asarray(skills, np.float32)))[0]
    assert (planned == (expected.numpy() == 1)).mean() > 0.999  # numpy and torch may break a tie differently


def test_a_config_from_before_discrete_actions_is_read_as_one_of_continuous_actions():
    old = to_dict(random_policy().config)
    del old["discrete_actions"]
    assert from_dict(PolicyConfig, old) == random_policy().config


# -- training and simulation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"consistency": "joint"}], ids=str)
def test_training_records_that_actions_are_discrete_and_plans_are_one_hot(tmp_path, form):
    train(walk_dataset(), tiny(skill_space=SkillSpace("discrete", 3), **form), tmp_path, progress=False)
    policy = SkillPolicy.from_pretrained(tmp_path, device="cpu")
    assert policy.config.discrete_actions and policy.config.action_dim == 3
    assert policy.action_low.tolist() == [0, 0, 0] and policy.action_high.tolist() == [1, 1, 1]
    skills = np.eye(policy.skill_space.size)  # rare ones were merged
    starts = np.zeros((len(skills), 1))
    plan = policy.plan(starts, skills)
    assert set(np.unique(plan.actions)) == {0, 1} and (plan.actions.sum(-1) == 1).all()
    first = policy.plan_actions(starts, skills)
    np.testing.assert_array_equal(plan.actions[:, : first.shape[1]], first)


def test_skills_of_a_walk_learn_to_go_both_ways():
    """End to end, executed: of skills on a line, one walks left, the other right."""
    dataset, config = walk_dataset(), tiny(skill_space=SkillSpace("box", 1), steps=500)
    run = Run(dataset, horizon=8, progress=False)
    prior = train_prior(run, replace(config.prior, steps=300))
    dynamics = train_dynamics(run, replace(config.dynamics, steps=200))
    policy, _ = train_skills(run, prior, dynamics, config.skills)
    env = Walk()
    simulator = SkillSimulator(policy, env)
    ends = []
    for skill in (-1.0, 1.0):
        state = simulator.visit(simulator.random_starts(1, np.random.default_rng(0), burn_in=0)[0])
        rollout = simulator.hold(state, np.array([skill]), 8)
        np.testing.assert_array_equal(to_discrete(rollout.actions, SPACE), env.taken)
        ends.append(float((rollout.states[-1] - rollout.states[0])[0]))
    assert min(ends) < -0.5 and max(ends) > 0.5, ends
    report, _ = evaluate_skills(policy, Walk(), dataset, starts=8, skills=4, held_steps=16, progress=False)
    assert report.real_spread > 0.2 and report.fidelity > 0.5


def cart_pole_episodes(n=12, steps=40):
    """Bang-bang balancing of a pole, with one push in five at random: `(observations, pushes, fell)`."""
    env, rng = gym.make("CartPole-v1"), np.random.default_rng(0)
    for seed in range(n):
        observations, pushes, fell = [env.reset(seed=seed)[0]], [], False
        while len(pushes) < steps and not fell:
            _, v, angle, spin = observations[-1]
            push = int(v + 12 * angle + 3 * spin > 0) if rng.random() > 0.2 else int(rng.integers(2))
            observation, _, fell, _, _ = env.step(push)
            pushes.append(push)
            observations.append(observation)
        yield Episode(np.stack(observations), np.array(pushes), np.ones(len(pushes)), fell, seed)


def test_skills_of_a_cart_pole_from_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    spec = gym.spec("CartPole-v1")
    write_dataset(
        "test/cart-pole-v0",
        list(cart_pole_episodes()),
        env_spec=spec,
        layout=Layout.flat(4),
        algorithm_name="bang-bang",
        description="x",
    )
    dataset = TrajectoryDataset.from_minari("test/cart-pole-v0")
    assert dataset.actions.shape == (dataset.lengths.sum(), 2) and dataset.discrete_actions
    folder = tmp_path / "policy"
    sizes = {f"{part}.{what}": 30 for part in ("prior", "dynamics", "skills") for what in ("steps", "width")}
    settings = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    cli.run(f"train --dataset test/cart-pole-v0 --output {folder} --device cpu --horizon 8".split() + settings)
    assert json.loads((folder / "config.json").read_text())["discrete_actions"] is True
    cli.run(f"evaluate {folder} --starts 4 --skills 4 --held-steps 16 --no-video".split())
    results = json.loads((folder / "results.json").read_text())
    assert all(results[name] is not None for name in ("real_spread", "planned_spread", "probe", "fidelity", "falls"))
    assert "Fidelity is left out" not in capfd.readouterr().err
