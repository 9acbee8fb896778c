"""What executed skills are worth: every number here is measured on simulator rollouts from held-out starts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from didi_gym.core.files import write_atomically
from didi_gym.core.frames import localize
from didi_gym.core.observations import step_seconds_of
from didi_gym.core.progress import progress as progress_bar
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.windows import MIN_WINDOW, describe_windows, principal_axes
from didi_gym.evaluation.metrics import (
    Information,
    coverage,
    direction_error,
    mutual_information,
    nearest_distance,
    skill_probe,
    skill_spread,
    smoothness,
    vendi_score,
)
from didi_gym.evaluation.rollouts import (
    HeldSkills,
    Rollout,
    SkillSimulator,
    Start,
    held_steps_for,
    hold_skills,
    make_data_env,
)
from didi_gym.models.policy import SkillPolicy
from didi_gym.wrappers.references import check_actions

_PROBE_STARTS, _PROBE_SKILLS = 4, 4  # starts for the probe, as a multiple, and random skills from each
_REFERENCE_WINDOWS = 20_000  # data windows among which nearest neighbours are sought
_COMPARED_WINDOWS = 2_000  # data windows that set the scale of the Vendi score and the cells to cover
_CELLS = 10  # of the coverage grid, along each feature
_DESCRIBED = 32  # steps that describe a rhythm
_SIGNALS, _COMPONENTS = 10, 32  # signals whose correlations are taken, and components kept of descriptions


@dataclass(frozen=True)
class SkillReport:
    """Metrics of executed skills. NaN (null in JSON) marks what could not be measured, e.g. plans without dynamics.

    Spreads and errors are in units of the policy's normaliser; a policy's horizon is H. `docs/metrics.md` has formulas.
    """

    starts: int
    skills: int
    replan_every: int
    """Environment steps executed of each plan, in all rollouts but those of `open_loop_spread` and `plan_error`."""
    real_spread: float
    """Standard deviation over skills of the features' change in H-1 steps, same start, mean over starts."""
    planned_spread: float
    """The same, as imagined from the same starts with the policy planning again as often."""
    spread_ratio: float
    """real_spread / planned_spread: good between 0.8 and 1.2. A ratio far above 1 is as bad as one far below: skills
    lead elsewhere than was planned."""
    open_loop_spread: float
    """real_spread with each plan executed to its end without replanning."""
    plan_error: float
    """Root mean squared distance between planned and open-loop real change of the features."""
    probe: float
    """R^2 (continuous) or accuracy (discrete) of a fresh network that reads z from rollouts of unseen starts."""
    mutual_information_bits: float
    """Lower bound log2(skills) - cross entropy of a fresh classifier on rollouts of unseen starts, and at least 0."""
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
    """Share of held rollouts that the environment terminated, within `held_seconds`; ends by length are no falls."""
    contact: float
    """Mean share of steps of the H-step rollouts in contact with the geoms asked for; NaN where none were."""
    # Reports written before these were measured lack them.
    vendi: float = math.nan
    """Effective number of different held skills by the change of the features, same reset, mean over resets; the scale
    is the median distance between data windows as long (`held_steps`, or the data's median episode if shorter)."""
    vendi_ceiling: float = math.nan
    """Held skills compared."""
    coverage: float = math.nan
    """Share of the cells that the features of those data windows reach from their first step that held skills reach."""
    smoothness: float = math.nan
    """Mean squared change between consecutive actions of the H-step rollouts, in half action ranges; 0 is constant."""
    held_information_bits: float = math.nan
    """mutual_information_bits after the same skills were held on for `hold` horizons."""
    held_fidelity: float = math.nan
    """fidelity of the last H steps of those."""
    mutual_information_low: float = math.nan
    mutual_information_high: float = math.nan
    """95 % interval of mutual_information_bits, over start states drawn anew."""
    held_information_low: float = math.nan
    held_information_high: float = math.nan
    """The same of held_information_bits."""
    step_seconds: float = math.nan
    """Simulated time of one step, where the environment says it."""
    held_seconds: float = math.nan
    """held_steps in seconds of simulated time."""
    held_cut: float = math.nan
    """Share of held rollouts that the environment ended for their length, before `held_steps`."""

    def save(self, file: Path) -> None:
        """Write JSON, with null for NaN."""
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}
        write_atomically(file, (json.dumps(values, indent=2) + "\n").encode())


def evaluate_skills(
    policy: SkillPolicy,
    env: gym.Env | None = None,
    dataset: TrajectoryDataset | None = None,
    *,
    starts: int = 64,
    skills: int = 16,
    held_skills: int = 8,
    held_episodes: int = 16,
    held_steps: int | None = None,
    hold: int = 8,
    replan_every: int | None = None,
    contact_geoms: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[SkillReport, HeldSkills]:
    """Roll skills out from held-out starts and measure them.

    Args:
        policy: Loaded beside its `training.safetensors` where planned spread and plan error are wanted.
        env: Default: the environment of its data set, with the wrappers that it was recorded with.
        dataset: Data to measure fidelity, Vendi score and coverage against; its held-out tenth sets the yardstick of
            fidelity and gives the start states.
        starts: Start states: of the held-out data where the simulator can be put into them; else resets, from seeds no
            data set was made with, and up to 64 steps of random skills.
        skills: Skills compared from each start, spread over the skill space.
        held_skills, held_episodes, held_steps: Skills held from a reset, resets each, and for how many steps; default
            4.8 s of simulated time where the environment says how long a step is, else 96 steps.
        hold: Horizons for which the skills compared are held on from each start, for `held_information_bits` and
            `held_fidelity`; 1 leaves those out.
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
    held_steps = held_steps_for(policy, env) if held_steps is None else held_steps
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

        def hold_on(begun: Rollout, skill: np.ndarray) -> Rollout:
            if begun.ended or hold <= 1:
                return begun
            rest = simulator.hold(begun.states[-1], skill, (hold - 1) * horizon, every)
            states = np.concatenate([begun.states, rest.states[1:]])
            return replace(rest, states=states, actions=np.concatenate([begun.actions, rest.actions]), contact=math.nan)

        closed: list[list[Rollout]] = []
        long: list[list[Rollout]] = []
        for start in begins:
            closed.append([])
            long.append([])
            for z in grid:
                closed[-1].append(roll(start, z))
                long[-1].append(hold_on(closed[-1][-1], z))
        opened = [[roll(start, z, config.actions_per_plan) for z in grid] for start in begins]
        drawn = policy.skill_space.sample(len(probe_begins) * _PROBE_SKILLS, generator)
        drawn = drawn.reshape(len(probe_begins), _PROBE_SKILLS, -1)
        random = [[roll(start, z) for z in row] for start, row in zip(probe_begins, drawn, strict=True)]
    held = hold_skills(
        policy,
        simulator.env,
        skills=held_skills,
        episodes=held_episodes,
        steps=held_steps,
        replan_every=every,
        seed=seed,
        progress=progress,
    )

    def changes(rollouts: list[list[Rollout]], at: int) -> np.ndarray:
        rows = [[r.states[min(at, len(r.states) - 1)] - r.states[0] for r in row] for row in rollouts]
        return np.asarray(rows)[..., features] / scale

    def imagined(every: int) -> np.ndarray:
        rows = np.stack([_planned(policy, row, every) for row in closed])
        return rows[..., features] / scale if rows.size else np.full((starts, len(grid), len(features)), math.nan)

    planned = imagined(config.actions_per_plan)
    real_spread, planned_spread = skill_spread(changes(closed, horizon - 1)), skill_spread(imagined(every))
    open_changes = changes(opened, horizon - 1)
    told = mutual_information(_signatures(policy, closed), len(grid), seed)
    unknown = Information(math.nan, math.nan, math.nan, math.nan)
    told_held = mutual_information(_signatures(policy, long), len(grid), seed) if hold > 1 else unknown
    probe = told.accuracy if policy.skill_space.is_discrete else skill_probe(_signatures(policy, random), drawn, seed)
    moved = (held.paths - held.paths[:, :1]).reshape(held_episodes, -1, held_steps + 1, len(features))
    held_changes = moved[:, :, -1]
    vendi, covered = (math.nan, math.nan) if dataset is None else _diversity(policy, dataset, moved, seed)
    inside, held_inside = math.nan, math.nan
    if dataset is not None:
        inside = fidelity(policy, dataset, [r for row in closed for r in row], seed)
        if hold > 1:
            ends = [_last(r, horizon, hold * horizon) for row in long for r in row]
            held_inside = fidelity(policy, dataset, ends, seed)
    seconds = step_seconds_of(env)
    report_ = SkillReport(
        starts=starts,
        skills=len(grid),
        replan_every=every,
        real_spread=real_spread,
        planned_spread=planned_spread,
        spread_ratio=real_spread / planned_spread if planned_spread > 0 else math.nan,
        open_loop_spread=skill_spread(open_changes),
        plan_error=float(np.sqrt(np.square(open_changes - planned).sum(-1).mean())),
        probe=probe,
        mutual_information_bits=told.bits,
        mutual_information_ceiling=math.log2(len(grid)),
        fidelity=inside,
        held_steps=held_steps,
        held_distance=float(np.linalg.norm(held_changes, axis=-1).mean()),
        direction_error_degrees=direction_error(policy.skill_space.grid(held_skills), held_changes),
        falls=float(held.terminated.mean()),
        contact=float(np.mean([r.contact for row in closed for r in row])),
        vendi=vendi,
        vendi_ceiling=float(moved.shape[1]),
        coverage=covered,
        smoothness=smoothness([r.actions for row in closed for r in row], _action_width(policy) / 2),
        held_information_bits=told_held.bits,
        held_fidelity=held_inside,
        mutual_information_low=told.low,
        mutual_information_high=told.high,
        held_information_low=told_held.low,
        held_information_high=told_held.high,
        step_seconds=math.nan if seconds is None else seconds,
        held_seconds=math.nan if seconds is None else round(held_steps * seconds, 9),
        held_cut=math.nan if held.truncated is None else float(held.truncated.mean()),
    )
    return report_, held


def _last(rollout: Rollout, steps: int, length: int) -> Rollout:
    """The last steps of a rollout; nothing of one that ended before its full length."""
    keep = steps if len(rollout.actions) == length else 0
    first = len(rollout.actions) - keep
    return replace(rollout, states=rollout.states[first:], actions=rollout.actions[first:])


def _planned(policy: SkillPolicy, rollouts: list[Rollout], every: int) -> np.ndarray:
    """Imagined change of the state over the horizon, with a new plan every `every` steps, for the skills compared at
    one start `(skills, state_dim)`."""
    grid = policy.skill_space.grid(len(rollouts))
    first = np.stack([r.states[0] for r in rollouts])
    inputs = first[:, list(policy.config.layout.policy_inputs)]
    imagined = policy.plan(inputs, grid, replan_every=every).observations
    if imagined is None:
        return np.empty((len(rollouts), 0))
    return imagined[:, -1] - imagined[:, 0]


def _signatures(policy: SkillPolicy, rollouts: list[list[Rollout]]) -> np.ndarray:
    """What a probe sees of rollouts, `(starts, skills, numbers)`.

    The change of the features at four instants; for discrete skills, which are told by posture and rhythm, the
    principal components of a description of the second half (of the whole, where that is short).
    """
    every = [r for row in rollouts for r in row]
    seen = _rhythms(policy, every) if policy.skill_space.is_discrete else None
    if seen is None:
        features = list(policy.config.layout.features)
        scale = policy.normalizer.scale.cpu().numpy()[features]
        rows = []
        for r in every:
            at = np.linspace(0, len(r.states) - 1, 5).round().astype(int)[1:]
            rows.append(((r.states[at] - r.states[0])[:, features] / scale).ravel())
        seen = np.asarray(rows, np.float32)
    return seen.reshape(len(rollouts), len(rollouts[0]), -1)


def _rhythms(policy: SkillPolicy, rollouts: list[Rollout]) -> np.ndarray | None:
    """Descriptions of what was done, `(rollouts, components)`; None where rollouts are too short for one."""
    longest = max(len(r.actions) for r in rollouts)
    length = longest if longest < 2 * _DESCRIBED else longest // 2
    if length < MIN_WINDOW:
        return None
    inputs = list(policy.config.layout.policy_inputs)
    signals = np.zeros((len(rollouts), length, len(inputs) + policy.config.action_dim), np.float32)
    for row, r in zip(signals, rollouts, strict=True):  # one that ended early stays still from there
        part = np.concatenate([r.states[:-1, inputs], r.actions], axis=1)[-length:]
        row[:] = np.concatenate([part, np.repeat(part[-1:], length - len(part), axis=0)])
    signals = (signals - signals.mean((0, 1))) / np.maximum(signals.std((0, 1)), 1e-6)
    flat = signals.reshape(-1, signals.shape[-1])
    described = describe_windows(signals, principal_axes(flat, _SIGNALS))
    described = (described - described.mean(0)) / np.maximum(described.std(0), 1e-6)
    return (described @ principal_axes(described, _COMPONENTS).T).astype(np.float32)


def _diversity(policy: SkillPolicy, dataset: TrajectoryDataset, moved: np.ndarray, seed: int) -> tuple[float, float]:
    """Vendi score, mean over resets, and coverage of held skills against data windows of the same length.

    Args:
        moved: Features relative to the reset `(resets, skills, steps + 1, features)`, environment units.
    """
    features = list(policy.config.layout.features)
    scale = policy.normalizer.scale.cpu().numpy()[features]
    usable = dataset.lengths[dataset.lengths >= policy.config.horizon]
    length = min(moved.shape[2], int(np.median(usable)))  # half of the episodes can be drawn from
    drawn = np.random.default_rng(seed).integers(dataset.num_windows(length), size=_COMPARED_WINDOWS)
    states = dataset.windows(dataset.window_starts(drawn, length), length)[0][..., features]
    data, skills = (states - states[:, :1]) / scale, moved[:, :, :length] / scale
    ends = data[:, -1]
    distance = float(np.median(np.linalg.norm(ends[::2] - ends[1::2], axis=-1)))
    vendi = float(np.mean([vendi_score(row[:, -1], distance) for row in skills])) if distance > 0 else math.nan
    return vendi, coverage(skills.reshape(-1, len(features)), data.reshape(-1, len(features)), _CELLS)


def fidelity(policy: SkillPolicy, dataset: TrajectoryDataset, rollouts: list[Rollout], seed: int = 0) -> float:
    """Share of rollouts whose first H steps are as near to a training window as 99 % of held-out windows are.

    A rollout that fell within H, the policy's horizon, counts as outside; one that the environment ended for its length
    before that is left out. NaN where nothing was held out, or no rollout is left.
    """
    horizon = policy.config.horizon
    generator = np.random.default_rng(seed)
    train, held_out = dataset.split(horizon=horizon)
    if np.array_equal(train.starts, held_out.starts):  # a single episode: nothing was held out to set the yardstick
        return math.nan

    def draw(part: TrajectoryDataset, n: int) -> torch.Tensor:
        starts = part.window_starts(generator.integers(part.num_windows(horizon), size=n), horizon)
        return _embed(policy, *part.windows(starts, horizon))

    whole = [r for r in rollouts if len(r.actions) >= horizon]
    judged = len(whole) + sum(r.terminated and len(r.actions) < horizon for r in rollouts)
    if not whole:
        return 0.0 if judged else math.nan
    states = np.stack([r.states[:horizon] for r in whole])
    actions = np.stack([r.actions[:horizon] for r in whole])
    reference = draw(train, _REFERENCE_WINDOWS)
    yardstick = nearest_distance(draw(held_out, 2000), reference).quantile(0.99)
    return float((nearest_distance(_embed(policy, states, actions), reference) <= yardstick).sum()) / judged


def _embed(policy: SkillPolicy, states: np.ndarray, actions: np.ndarray) -> torch.Tensor:
    local = torch.as_tensor(localize(states, policy.config.layout)[0])
    normalized = policy.normalizer.normalize(local.to(policy.device)).cpu()
    scaled = (actions - policy.action_range[0].cpu().numpy()) / _action_width(policy) * 2 - 1
    return torch.cat([normalized.flatten(1), torch.as_tensor(scaled, dtype=torch.float32).flatten(1)], dim=-1)


def _action_width(policy: SkillPolicy) -> np.ndarray:
    """Width of the range that actions are scaled by, `(action_dim,)`."""
    low, high = (limit.cpu().numpy() for limit in policy.action_range)
    return np.maximum(high - low, 1e-6)  # zero where the data's action never changes
