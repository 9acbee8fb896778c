"""What executed skills are worth: every number here is measured on simulator rollouts from held-out starts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from didi_gym.data import TrajectoryDataset
from didi_gym.execution import InputSelector
from didi_gym.frames import localize
from didi_gym.policy import SkillPolicy
from didi_gym.progress import progress as progress_bar
from didi_gym.registration import make_low_level
from didi_gym.tensors import write_atomically
from didi_gym.wrappers.single import check_actions

_FIRST_SEED = 1_000_000  # far from the seeds that data sets are made with
_BURN_IN = 64  # starts lie up to this many steps of random skills after a reset
_PROBE_STARTS, _PROBE_SKILLS = 4, 4  # starts for the probe, as a multiple, and random skills from each
_REFERENCE_WINDOWS = 20_000  # data windows among which nearest neighbours are sought


@dataclass(frozen=True)
class Rollout:
    """One skill held in the simulator."""

    states: np.ndarray
    """`(steps + 1, state_dim)`, environment units."""
    actions: np.ndarray
    """`(steps, action_dim)`, as sent to the environment."""
    terminated: bool
    """The environment ended the episode: a fall, where episodes end for that."""
    contact: float
    """Share of the steps in contact with a geom that was asked for."""


@dataclass(frozen=True)
class Start:
    """A state of the simulator that can be visited again: a reset, then a state to put it in or actions to replay."""

    seed: int
    actions: np.ndarray | None = None
    """`(n, action_dim)`."""
    state: np.ndarray | None = None
    """`(state_dim,)`; only where the state is MuJoCo's positions and velocities."""


@dataclass(frozen=True)
class HeldSkills:
    """Skills held from resets of the environment, for pictures."""

    paths: np.ndarray
    """The features over time `(n, steps + 1, features)`, environment units; an ended episode stays where it ended."""
    skills: np.ndarray
    """`(n, skill_dim)`."""
    terminated: np.ndarray
    """Whether the environment ended the episode `(n,)`."""


@dataclass(frozen=True)
class SkillReport:
    """Metrics of executed skills. NaN (null in JSON) marks what could not be measured, e.g. plans without dynamics.

    Spreads and errors are in units of the policy's normaliser; a policy's horizon is H.
    """

    starts: int
    skills: int
    replan_every: int
    """Environment steps executed of each plan, in all rollouts but those of `open_loop_spread` and `plan_error`."""
    real_spread: float
    """Standard deviation over skills of the features' change in H-1 steps, same start, mean over starts."""
    planned_spread: float
    """The same, as imagined from the same starts."""
    spread_ratio: float
    """real_spread / planned_spread: the execution gap."""
    open_loop_spread: float
    """real_spread with each plan executed to its end without replanning."""
    plan_error: float
    """Root mean squared distance between planned and open-loop real change of the features."""
    probe: float
    """R^2 (continuous) or accuracy (discrete) of a fresh network that reads z from rollouts of unseen starts."""
    mutual_information_bits: float
    """Lower bound log2(skills) - cross entropy of a fresh classifier on rollouts of unseen starts."""
    mutual_information_ceiling: float
    """log2(skills)."""
    fidelity: float
    """Share of rollouts whose distance to the nearest data window is within the held-out data's 99th percentile."""
    held_steps: int
    held_distance: float
    """Mean length of the change of the features after one skill was held for `held_steps` from a reset."""
    direction_error_degrees: float
    """2-d skills and features: worst deviation of the held skills' mean directions from even spacing."""
    falls: float
    """Share of held rollouts that the environment terminated."""
    contact: float
    """Mean share of steps of the H-step rollouts in contact with the geoms asked for; NaN where none were."""

    def save(self, file: Path) -> None:
        """Write JSON, with null for NaN."""
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        write_atomically(file, (json.dumps(values, indent=2) + "\n").encode())


class SkillSimulator:
    """Holds skills in an environment, from starts that can be visited again.

    Args:
        env: An environment whose observation holds the policy's whole state; its time limit is taken off.
        contact_geoms: Regular expression of MuJoCo geom names; contacts with them are counted.
    """

    def __init__(self, policy: SkillPolicy, env: gym.Env, contact_geoms: str | None = None) -> None:
        layout = policy.config.layout
        if layout.state_source is None:
            raise ValueError("this policy's layout has no state_source, so rollouts cannot be compared with its data")
        self.policy = policy
        self.env = _without_time_limit(env)
        self._inputs = list(layout.policy_inputs)
        state_layout = type(layout).flat(layout.state_dim)
        self._select = InputSelector(
            env.observation_space, type(layout)(**{**vars(state_layout), "sources": (layout.state_source,)})
        )
        self._touches = None if contact_geoms is None else _contact_counter(env, contact_geoms)

    def starts(self, n: int, dataset: TrajectoryDataset | None, generator: np.random.Generator) -> list[Start]:
        """`n` states of `dataset` where that is possible, else states after random skills."""
        found = [] if dataset is None else self.data_starts(n, dataset, generator)
        return found or self.random_starts(n, generator)

    def data_starts(self, n: int, dataset: TrajectoryDataset, generator: np.random.Generator) -> list[Start]:
        """`n` states of the data as starts, or an empty list where the simulator cannot be put into a state.

        It can where the state is the positions and velocities of a MuJoCo model, which is found out by comparing.
        """
        state = self.visit(Start(_FIRST_SEED))
        inner = self.env.unwrapped
        data = getattr(inner, "data", None)
        if (
            data is None
            or data.qpos.size + data.qvel.size != len(state)
            or not np.allclose(np.concatenate([data.qpos, data.qvel]), state, atol=1e-5)
        ):
            return []
        steps = dataset.window_starts(generator.integers(dataset.num_windows(1), size=n), 1)
        seeds = _FIRST_SEED + generator.integers(1_000_000, size=n)
        return [Start(int(seed), state=dataset.observations[step]) for seed, step in zip(seeds, steps, strict=True)]

    def random_starts(self, n: int, generator: np.random.Generator, burn_in: int = _BURN_IN) -> list[Start]:
        """`n` starts up to `burn_in` steps of random skills after a reset."""
        starts: list[Start] = []
        seed = _FIRST_SEED + int(generator.integers(1_000_000))
        while len(starts) < n:
            seed += 1
            state, ended = self.visit(Start(seed)), False
            actions: list[np.ndarray] = []
            for _ in range(0, int(generator.integers(burn_in + 1)), self.policy.config.horizon):
                skill = self.policy.skill_space.sample(1, generator)[0]
                rollout = self.hold(state, skill, self.policy.config.horizon)
                actions.append(rollout.actions)
                state, ended = rollout.states[-1], ended or rollout.terminated
            if not ended:
                starts.append(Start(seed, np.concatenate(actions) if actions else None))
        return starts

    def visit(self, start: Start) -> np.ndarray:
        """Go to a start and return its state `(state_dim,)`."""
        observation, _ = self.env.reset(seed=start.seed)
        if start.state is not None:
            inner = self.env.unwrapped
            _set_mujoco_state(inner, start.state[: inner.model.nq], start.state[inner.model.nq :])  # type: ignore[attr-defined]
            return start.state
        for action in () if start.actions is None else start.actions:
            observation = self._step(action)[0]
        return self._select(observation)

    def hold(self, state: np.ndarray, skill: np.ndarray, steps: int, replan_every: int | None = None) -> Rollout:
        """Hold `skill` for `steps` environment steps from the present `state`, or until the episode ends."""
        every = replan_every or self.policy.config.replan_every
        states, touching, terminated = [state], 0, False
        actions: list[np.ndarray] = []
        while len(actions) < steps and not terminated:
            chunk = min(every, steps - len(actions))
            for action in self.policy.plan_actions(states[-1][None, self._inputs], skill[None], chunk)[0]:
                observation, _, terminated, _, _ = self._step(action)
                states.append(self._select(observation))
                actions.append(action)
                touching += 0 if self._touches is None else self._touches()
                if terminated:
                    break
        contact = touching / len(actions) if self._touches else math.nan
        return Rollout(np.stack(states), np.stack(actions), bool(terminated), contact)

    def _step(self, action: np.ndarray) -> Any:
        space: Any = self.env.action_space  # float32 may round past a float64 bound
        return self.env.step(np.clip(action, space.low, space.high).astype(space.dtype))


def evaluate_skills(
    policy: SkillPolicy,
    env: gym.Env | None = None,
    dataset: TrajectoryDataset | None = None,
    *,
    starts: int = 64,
    skills: int = 16,
    held_skills: int = 8,
    held_episodes: int = 16,
    held_steps: int = 96,
    replan_every: int | None = None,
    contact_geoms: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[SkillReport, HeldSkills]:
    """Roll skills out from held-out starts and measure them.

    Args:
        policy: Loaded beside its `training.safetensors` where planned spread and plan error are wanted.
        env: Default: the environment of its data set.
        dataset: Data to measure fidelity against; its held-out tenth sets the yardstick and gives the start states.
        starts: Start states: of the held-out data where the simulator can be put into them; else resets, from seeds no
            data set was made with, and up to 64 steps of random skills.
        skills: Skills compared from each start, spread over the skill space.
        held_skills, held_episodes, held_steps: Skills held from a reset, resets each, and for how long.
        replan_every: Steps executed of each plan; default: the policy's.
        contact_geoms: Regular expression of MuJoCo geom names to count contacts with, e.g. `block`.

    Returns:
        The report, and the held skills for pictures.
    """
    config, generator = policy.config, np.random.default_rng(seed)
    if starts < 2 or skills < 2:
        raise ValueError(f"evaluation compares at least 2 skills from 2 starts, got {skills} skills, {starts} starts")
    if dataset is not None and dataset.layout.state_dim != config.layout.state_dim:
        raise ValueError(
            f"the policy's states have {config.layout.state_dim} numbers, those of data set {dataset.dataset_id} "
            f"{dataset.layout.state_dim}; load it with the keys and indices that the policy was trained with"
        )
    env = env or make_data_env(policy)
    check_actions(env.action_space, policy)
    simulator = SkillSimulator(policy, env, contact_geoms)
    every = replan_every or config.replan_every
    features, horizon = list(config.layout.features), config.horizon
    grid = policy.skill_space.grid(skills)
    scale = policy.normalizer.scale.cpu().numpy()[features]
    held_out = None if dataset is None else dataset.split(horizon=horizon)[1]
    begins = simulator.starts(starts, held_out, generator)
    probe_begins = simulator.starts(_PROBE_STARTS * starts, held_out, generator)
    total = 2 * len(begins) * len(grid) + len(probe_begins) * _PROBE_SKILLS
    with progress_bar("evaluate", total, progress) as report:
        done = iter(range(1, total + 1))

        def roll(start: Start, skill: np.ndarray, every: int = every) -> Rollout:
            rollout = simulator.hold(simulator.visit(start), skill, horizon, every)
            report(next(done), {})
            return rollout

        closed = [[roll(start, z) for z in grid] for start in begins]
        opened = [[roll(start, z, horizon) for z in grid] for start in begins]
        drawn = policy.skill_space.sample(len(probe_begins) * _PROBE_SKILLS, generator)
        drawn = drawn.reshape(len(probe_begins), _PROBE_SKILLS, -1)
        random = [[roll(start, z) for z in row] for start, row in zip(probe_begins, drawn, strict=True)]
    held = hold_skills(
        policy,
        simulator.env,
        skills=held_skills,
        episodes=held_episodes,
        steps=held_steps,
        seed=seed,
        progress=progress,
    )

    def changes(rollouts: list[list[Rollout]], at: int) -> np.ndarray:
        rows = [[r.states[min(at, len(r.states) - 1)] - r.states[0] for r in row] for row in rollouts]
        return np.asarray(rows)[..., features] / scale

    planned = np.stack([_planned(policy, row) for row in closed])
    planned = planned[..., features] / scale if planned.size else np.full((starts, len(grid), len(features)), math.nan)
    real_spread, planned_spread = _spread(changes(closed, horizon - 1)), _spread(planned)
    open_changes = changes(opened, horizon - 1)
    bits, accuracy = _mutual_information(_signatures(closed, features, scale), len(grid), seed)
    probe = accuracy if policy.skill_space.is_discrete else _probe(_signatures(random, features, scale), drawn, seed)
    held_changes = (held.paths[:, -1] - held.paths[:, 0]).reshape(held_episodes, -1, len(features))
    report_ = SkillReport(
        starts=starts,
        skills=len(grid),
        replan_every=every,
        real_spread=real_spread,
        planned_spread=planned_spread,
        spread_ratio=real_spread / planned_spread if planned_spread > 0 else math.nan,
        open_loop_spread=_spread(open_changes),
        plan_error=float(np.sqrt(np.square(open_changes - planned).sum(-1).mean())),
        probe=probe,
        mutual_information_bits=bits,
        mutual_information_ceiling=math.log2(len(grid)),
        fidelity=math.nan if dataset is None else _fidelity(policy, dataset, [r for row in closed for r in row], seed),
        held_steps=held_steps,
        held_distance=float(np.linalg.norm(held_changes, axis=-1).mean()),
        direction_error_degrees=_direction_error(policy.skill_space.grid(held_skills), held_changes),
        falls=float(held.terminated.mean()),
        contact=float(np.mean([r.contact for row in closed for r in row])),
    )
    return report_, held


def hold_skills(
    policy: SkillPolicy,
    env: gym.Env | None = None,
    *,
    skills: int = 8,
    episodes: int = 16,
    steps: int = 96,
    replan_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> HeldSkills:
    """Hold each of `skills` evenly spread skills for `steps` environment steps, from the same `episodes` resets."""
    simulator = SkillSimulator(policy, env or make_data_env(policy))
    grid = policy.skill_space.grid(skills)
    resets = simulator.random_starts(episodes, np.random.default_rng(seed), burn_in=0)
    rollouts = []
    with progress_bar("hold skills", episodes * len(grid), progress) as report:
        for start in resets:
            for z in grid:
                rollouts.append(simulator.hold(simulator.visit(start), z, steps, replan_every))
                report(len(rollouts), {})
    features = list(policy.config.layout.features)
    paths = np.stack([_padded(r.states[:, features], steps + 1) for r in rollouts])
    return HeldSkills(paths, np.tile(grid, (episodes, 1)), np.array([r.terminated for r in rollouts]))


def data_env_id(policy: SkillPolicy) -> tuple[str, dict[str, Any]]:
    """Id and settings of the environment that the policy's data set was recorded in.

    Raises:
        ValueError: the data set did not say.
    """
    if policy.config.env_id is None:
        raise ValueError(
            "the policy's data set names no environment; pass env= (--env), one whose observation is its state"
        )
    return policy.config.env_id, policy.config.env_kwargs


def make_data_env(policy: SkillPolicy) -> gym.Env:
    """The environment that the policy's data set was recorded in."""
    env_id, kwargs = data_env_id(policy)
    return make_low_level(env_id, **kwargs)


def _planned(policy: SkillPolicy, rollouts: list[Rollout]) -> np.ndarray:
    """Imagined change of the state over the horizon for the skills compared at one start `(skills, state_dim)`."""
    grid = policy.skill_space.grid(len(rollouts))
    first = np.stack([r.states[0] for r in rollouts])
    imagined = policy.plan(first[:, list(policy.config.layout.policy_inputs)], grid).observations
    if imagined is None:
        return np.empty((len(rollouts), 0))
    return imagined[:, -1] - imagined[:, 0]


def _spread(changes: np.ndarray) -> float:
    """Standard deviation over skills (axis 1) of changes `(starts, skills, features)`, mean over starts."""
    return float(np.sqrt(changes.var(axis=1).mean(-1)).mean())


def _signatures(rollouts: list[list[Rollout]], features: list[int], scale: np.ndarray) -> np.ndarray:
    """What a probe sees of rollouts: change of the features at four instants, `(starts, skills, 4 * features)`."""
    rows = []
    for row in rollouts:
        for r in row:
            at = np.linspace(0, len(r.states) - 1, 5).round().astype(int)[1:]
            rows.append(((r.states[at] - r.states[0])[:, features] / scale).ravel())
    return np.asarray(rows, np.float32).reshape(len(rollouts), len(rollouts[0]), -1)


def _fit(
    x: np.ndarray, outputs: int, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], y: torch.Tensor, seed: int
) -> Callable[[np.ndarray], torch.Tensor]:
    """A fresh two-layer network, fitted with early stopping on the last fifth of the rows `(n, inputs)`."""
    center, spread = x.mean(0), x.std(0) + 1e-6
    data = torch.as_tensor((x - center) / spread)
    cut = len(data) * 4 // 5
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, outputs))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    best, best_weights = math.inf, net.state_dict()
    for _ in range(400):
        optimizer.zero_grad()
        loss(net(data[:cut]), y[:cut]).backward()
        optimizer.step()
        with torch.no_grad():
            value = float(loss(net(data[cut:]), y[cut:]))
        if value < best:
            best, best_weights = value, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(best_weights)
    return lambda rows: net(torch.as_tensor((rows - center) / spread)).detach()


def _halves(x: np.ndarray, y: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows of the first and of the second half of the starts: a probe is judged on starts it never saw."""
    half = len(x) // 2
    first, second = (x[:half], y[:half]), (x[half:], y[half:])
    return tuple((a.reshape(-1, a.shape[-1]), b.reshape(len(a) * a.shape[1], -1)) for a, b in (first, second))  # type: ignore[return-value]


def _probe(signatures: np.ndarray, skills: np.ndarray, seed: int) -> float:
    """R^2 of z from rollouts, two-fold over starts."""
    errors, totals = 0.0, 0.0
    halves = _halves(signatures, skills)
    for (x, y), (x_test, y_test) in (halves, halves[::-1]):
        predict = _fit(x, y.shape[1], F.mse_loss, torch.as_tensor(y), seed)
        errors += float(np.square(predict(x_test).numpy() - y_test).sum())
        totals += float(np.square(y_test - y_test.mean(0)).sum())
    return 1 - errors / totals


def _mutual_information(signatures: np.ndarray, skills: int, seed: int) -> tuple[float, float]:
    """Lower bound in bits, and accuracy, of a fresh classifier, two-fold over starts."""
    labels = np.tile(np.arange(skills), (len(signatures), 1))[..., None]
    entropy, correct, count = 0.0, 0, 0
    halves = _halves(signatures, labels)
    for (x, y), (x_test, y_test) in (halves, halves[::-1]):
        predict = _fit(x, skills, F.cross_entropy, torch.as_tensor(y[:, 0]), seed)
        logits, truth = predict(x_test), torch.as_tensor(y_test[:, 0])
        entropy += float(F.cross_entropy(logits, truth, reduction="sum"))
        correct += int((logits.argmax(-1) == truth).sum())
        count += len(truth)
    return math.log2(skills) - entropy / count / math.log(2), correct / count


def _direction_error(skills: np.ndarray, changes: np.ndarray) -> float:
    """Worst angle in degrees between mean directions and even spacing, after the best turn (and mirror image).

    Args:
        skills: Directions on a circle `(n, 2)`.
        changes: `(episodes, n, 2)`.
    """
    if skills.shape[-1] != 2 or changes.shape[-1] != 2:
        return math.nan
    mean = changes.mean(0)
    direction = np.arctan2(mean[:, 1], mean[:, 0])
    angle = np.arctan2(skills[:, 1], skills[:, 0])
    worst = []
    for mirror in (1, -1):
        offset = np.angle(np.exp(1j * (direction - mirror * angle)).mean())
        worst.append(np.abs(np.angle(np.exp(1j * (direction - mirror * angle - offset)))).max())
    return float(np.degrees(min(worst)))


def _fidelity(policy: SkillPolicy, dataset: TrajectoryDataset, rollouts: list[Rollout], seed: int) -> float:
    horizon = policy.config.horizon
    generator = np.random.default_rng(seed)
    train, held_out = dataset.split(horizon=horizon)
    if np.array_equal(train.starts, held_out.starts):  # a single episode: nothing was held out to set the yardstick
        return math.nan

    def draw(part: TrajectoryDataset, n: int) -> torch.Tensor:
        starts = part.window_starts(generator.integers(part.num_windows(horizon), size=n), horizon)
        return _embed(policy, *part.windows(starts, horizon))

    whole = [r for r in rollouts if len(r.actions) >= horizon]  # a fall within the horizon counts as unfaithful
    if not whole:
        return 0.0
    states = np.stack([r.states[:horizon] for r in whole])
    actions = np.stack([r.actions[:horizon] for r in whole])
    reference = draw(train, _REFERENCE_WINDOWS)
    yardstick = _nearest(draw(held_out, 2000), reference).quantile(0.99)
    return float((_nearest(_embed(policy, states, actions), reference) <= yardstick).sum()) / len(rollouts)


def _embed(policy: SkillPolicy, states: np.ndarray, actions: np.ndarray) -> torch.Tensor:
    local = torch.as_tensor(localize(states, policy.config.layout)[0])
    normalized = policy.normalizer.normalize(local.to(policy.device)).cpu()
    width = np.maximum(policy.action_high - policy.action_low, 1e-6)  # zero where the data's action never changes
    scaled = (actions - policy.action_low) / width * 2 - 1
    return torch.cat([normalized.flatten(1), torch.as_tensor(scaled, dtype=torch.float32).flatten(1)], dim=-1)


def _nearest(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.cdist(part, reference).amin(1) for part in x.split(256)])


def _set_mujoco_state(inner: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
    import mujoco

    mujoco.mj_resetData(inner.model, inner.data)
    inner.data.qpos[:], inner.data.qvel[:] = qpos, qvel
    mujoco.mj_forward(inner.model, inner.data)


def _padded(states: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([states, np.repeat(states[-1:], length - len(states), axis=0)])


def _without_time_limit(env: gym.Env) -> gym.Env:
    """The environment with its TimeLimit wrappers taken off: a held skill must not be cut by the clock."""
    if isinstance(env, gym.wrappers.TimeLimit):
        return _without_time_limit(env.env)
    if isinstance(env, gym.Wrapper):
        env.env = _without_time_limit(env.env)
    return env


def _contact_counter(env: gym.Env, pattern: str) -> Callable[[], int]:
    """A function that tells whether any MuJoCo geom whose name matches is touched now (1) or not (0)."""
    inner = env.unwrapped
    if not hasattr(inner, "data"):
        raise ValueError(f"contacts are counted in MuJoCo environments only, got {inner}")
    model = inner.model  # type: ignore[attr-defined]
    chosen = {i for i in range(model.ngeom) if re.search(pattern, model.geom(i).name)}
    if not chosen:
        raise ValueError(f"no geom of the environment matches {pattern!r}")
    return lambda: int(any(set(pair) & chosen for pair in inner.data.contact.geom[: inner.data.ncon].tolist()))
