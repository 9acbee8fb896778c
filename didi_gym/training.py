"""Training: the prior, the dynamics model, then policy and discriminator under the joint DIDI objective.

Every stage is seeded, shows its progress, and with a checkpoint file survives `kill -9`: the same call continues and
ends with the same weights, bit for bit on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from didi_gym.anchor import Anchored, train_anchor
from didi_gym.checkpoints import TrainingState, TrainingStopped
from didi_gym.config import DynamicsConfig, PriorConfig, SkillConfig
from didi_gym.data import TrajectoryDataset
from didi_gym.decoding import from_dict, to_dict
from didi_gym.diffusion import DiffusionPrior
from didi_gym.discriminator import Discriminator, WindowClassifier
from didi_gym.dynamics import DynamicsEnsemble
from didi_gym.files import SafeFileError, in_short
from didi_gym.loops import Batches, build_policy, fit_normalizer, optimize
from didi_gym.losses import (
    Metrics,
    anchor_loss,
    diversity_loss,
    dynamics_loss,
    guidance_loss,
    prior_loss,
    recognition_loss,
)
from didi_gym.policy import SkillPolicy
from didi_gym.policy_folder import TRAINING_FILE
from didi_gym.tensors import LONGEST_HEADER, load_info, load_network, write_tensors


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `didi-gym train`."""

    skills: SkillConfig = field(default_factory=SkillConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    seed: int = 0


def train_prior(
    dataset: TrajectoryDataset,
    config: PriorConfig | None = None,
    *,
    horizon: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: bool = True,
) -> DiffusionPrior:
    """Train the diffusion prior on windows of `horizon` steps (default: as the data suggests).

    Returns:
        Its averaged (EMA) weights, frozen.
    """
    config = config or PriorConfig()
    horizon = horizon or dataset.suggest_horizon()
    batches = Batches(dataset, fit_normalizer(dataset, horizon), torch.device(device))
    torch.manual_seed(seed)
    prior = DiffusionPrior(config, horizon, dataset.layout.state_dim, dataset.action_dim).to(device)

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        states, actions = batches.draw(config.batch_size, horizon, generator)
        return prior_loss(prior, torch.cat([states, actions], dim=-1), generator)

    identity = {"data": dataset.fingerprint(), "horizon": horizon, "seed": seed, **to_dict(config)}
    state = TrainingState(prior, config.learning_rate, config.ema_decay, seed, identity, checkpoint)
    optimize("prior", state, loss, config.steps, config.learning_rate, progress)
    return state.averaged()


def train_dynamics(
    dataset: TrajectoryDataset,
    config: DynamicsConfig | None = None,
    *,
    horizon: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: bool = True,
) -> DynamicsEnsemble:
    """Train the dynamics ensemble; `horizon` fixes the normalisation it shares with the prior."""
    config = config or DynamicsConfig()
    horizon = horizon or dataset.suggest_horizon()
    length = min(config.unroll, horizon - 1) + 1
    batches = Batches(dataset, fit_normalizer(dataset, horizon), torch.device(device))
    torch.manual_seed(seed)
    dynamics = DynamicsEnsemble(config, dataset.layout, dataset.action_dim).to(device)
    sample = batches.draw(4096, length, torch.Generator(device).manual_seed(seed))[0]
    spread = sample.diff(dim=1).square().mean((0, 1)).sqrt()
    dynamics.delta_scale.copy_(spread.clamp(min=1e-4))

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        states, actions = batches.draw(config.members * config.batch_size, length, generator)
        by_member = (config.members, config.batch_size)
        return dynamics_loss(dynamics, states.unflatten(0, by_member), actions.unflatten(0, by_member))

    identity = {"data": dataset.fingerprint(), "horizon": horizon, "seed": seed, **to_dict(config)}
    state = TrainingState(dynamics, config.learning_rate, 0.99, seed, identity, checkpoint)
    optimize("dynamics", state, loss, config.steps, config.learning_rate, progress)
    return state.averaged()


def train_skills(
    dataset: TrajectoryDataset,
    prior: DiffusionPrior,
    dynamics: DynamicsEnsemble | None,
    config: SkillConfig | None = None,
    anchored: Anchored | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[SkillPolicy, Discriminator | WindowClassifier]:
    """Train policy and discriminator on the joint objective (DIDI, section 4).

    minimise  diversity_weight * E[-log q(z | tau)]  +  guidance_weight * E ||tau - sg[x0hat(tau_t)]||^2
    over tau = pi(s_0, z), s_0 from the data, z from its prior; dual ascent moves the second weight so that the residual
    stays at `residual_target` times the data's own, or as near as leaves z explained up to `diversity_floor`.

    Args:
        dynamics: Makes states follow from actions; None for `consistency="joint"`.
        anchored: What `train_anchor` found, for discrete skills: the policy to start from, start states of each skill's
            own, the discriminator, which is frozen then, and a further loss, the squared error of the policy's actions
            on each skill's own data.

    Returns:
        The policy (averaged weights, with `dynamics` attached) and the discriminator.
    """
    horizon = prior.horizon
    config = _with_horizon(config or SkillConfig(), horizon)
    layout = dataset.layout
    space = config.skill_space if anchored is None else anchored.policy.skill_space
    steps, learning_rate, residual_target = config.steps, config.learning_rate, config.residual_target
    if anchored is not None:
        anchor = config.anchor
        steps, learning_rate, residual_target = anchor.tuning_steps, anchor.tuning_rate, anchor.residual_target
    if config.consistency == "dynamics" and dynamics is None:
        raise ValueError('consistency="dynamics" needs a dynamics model: pass train_dynamics(dataset)')
    batches = Batches(dataset, fit_normalizer(dataset, horizon), torch.device(device))
    torch.manual_seed(seed)
    policy = build_policy(batches, config, horizon) if anchored is None else anchored.trainable_policy()
    modules = nn.ModuleDict({"policy": policy})
    if anchored is None:
        discriminator = Discriminator(replace(config, skill_space=space), layout).to(device)
        sample = batches.draw(4096, horizon, torch.Generator(device).manual_seed(seed))[0]
        discriminator.fit_scale(batches.normalizer.denormalize(sample))
        modules["discriminator"] = discriminator

    def loss(generator: torch.Generator, memory: dict[str, float]) -> tuple[Tensor, Metrics]:
        # 1. start states and the data's own trajectories from them
        if anchored is None:
            data_states, data_actions = batches.draw(config.batch_size, horizon, generator)
            skills = space.sample(config.batch_size, generator)
        else:
            data_states, data_actions, skills = anchored.draw(batches, config.batch_size, horizon, generator)
        data = torch.cat([data_states, data_actions], dim=-1)
        # 2. trajectories of random skills from the same starts
        choice = torch.randint(len(config.plans), (), generator=generator, device=generator.device)
        every = max(horizon // config.plans[int(choice)], 1)
        states, actions = policy.trajectory(data_states[:, 0], skills, dynamics, every, generator)
        trajectories = torch.cat([states, actions], dim=-1)
        # 3. they must tell their skill ...
        if anchored is None:
            seen = batches.normalizer.denormalize(states)
            diversity, metrics = diversity_loss(discriminator, seen, skills, space, generator)
        else:
            diversity, metrics = recognition_loss(anchored.classifier, states, actions, skills, generator)
        # 4. ... and stay where the prior puts its mass
        guidance, more = guidance_loss(prior, trajectories, data, config.noise_range, generator)
        weight = memory.setdefault("guidance_weight", config.guidance_weight)
        total = config.diversity_weight * diversity + weight * guidance
        if anchored is not None:
            own = anchored.draw(batches, config.anchor.batch_size, policy.config.actions_per_plan, generator)
            imitation, anchor_metrics = anchor_loss(policy, *own)
            total, metrics = total + config.anchor.weight * imitation, {**metrics, **anchor_metrics}
        # 5. dual ascent on the weight: up while the residual is above target, but never at the price of the skills
        if residual_target > 0:
            excess = float(more["guidance/ratio"].detach()) - residual_target
            slack = float(metrics["diversity/explained"].detach()) - config.diversity_floor
            weight_step = config.dual_rate * min(excess, slack)
            memory["guidance_weight"] = min(weight * math.exp(weight_step), config.guidance_weight_max)
        return total, {**metrics, **more, "guidance/weight": torch.tensor(weight)}

    identity = {"data": dataset.fingerprint(), "seed": seed, **to_dict(config)}
    state = TrainingState(modules, learning_rate, config.ema_decay, seed, identity, checkpoint)
    try:
        optimize("skills", state, loss, steps, learning_rate, progress)
    except TrainingStopped as stop:
        stop.result = _finished(state, dynamics, anchored)
        raise
    return _finished(state, dynamics, anchored)


def _finished(
    state: TrainingState[nn.ModuleDict], dynamics: DynamicsEnsemble | None, anchored: Anchored | None
) -> tuple[SkillPolicy, Discriminator | WindowClassifier]:
    averaged: Any = state.averaged()
    averaged["policy"].attach_dynamics(dynamics)
    return averaged["policy"], averaged["discriminator"] if anchored is None else anchored.classifier


def _with_horizon(config: SkillConfig, horizon: int) -> SkillConfig:
    if config.horizon not in (None, horizon):
        raise ValueError(f"the prior was trained on windows of {horizon} steps, the skills ask for {config.horizon}")
    return replace(config, horizon=horizon)


def train(
    dataset: TrajectoryDataset,
    config: TrainConfig,
    output: Path,
    *,
    reuse: Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SkillPolicy:
    """Train everything and write the policy folder `output`; called again after a stop, it continues.

    Args:
        reuse: A finished run on the same data and horizon, whose prior and dynamics model are taken instead of training
            them: for further seeds, or other settings of the skills.

    On Ctrl-C the current stage's checkpoint is written, and the policy folder with what the skills stage has so far,
    before TrainingStopped (a KeyboardInterrupt) is raised.
    """
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    horizon = config.skills.horizon_for(dataset)
    config = replace(config, skills=_with_horizon(config.skills, horizon))
    common: dict[str, Any] = {"seed": config.seed, "device": device, "progress": progress}
    joint = config.skills.consistency == "joint"
    dynamics: DynamicsEnsemble | None = None
    if reuse is not None:
        prior, dynamics, config = _take(reuse, dataset, config, torch.device(device))
    else:
        prior = train_prior(
            dataset, config.prior, horizon=horizon, checkpoint=checkpoints / "prior.safetensors", **common
        )
        if not joint:
            dynamics = train_dynamics(
                dataset, config.dynamics, horizon=horizon, checkpoint=checkpoints / "dynamics.safetensors", **common
            )
    anchored = None
    if config.skills.is_anchored:
        anchored = train_anchor(dataset, config.skills, horizon=horizon, checkpoints=checkpoints, **common)
    stopped = None
    try:
        policy, discriminator = train_skills(
            dataset, prior, dynamics, config.skills, anchored, checkpoint=checkpoints / "skills.safetensors", **common
        )
    except TrainingStopped as stop:
        stopped, (policy, discriminator) = stop, stop.result
    parts: dict[str, nn.Module | None] = {"prior": prior, "dynamics": dynamics, "discriminator": discriminator}
    tensors = {f"{name}.{k}": v for name, part in parts.items() if part for k, v in part.state_dict().items()}
    write_tensors(output / TRAINING_FILE, tensors, to_dict(config))
    policy.save_pretrained(output)
    if stopped is not None:
        raise stopped
    return policy


def _take(
    folder: Path, dataset: TrajectoryDataset, config: TrainConfig, device: torch.device
) -> tuple[DiffusionPrior, DynamicsEnsemble | None, TrainConfig]:
    """Prior and dynamics model of a run, and the settings with those that they were trained with."""
    policy = SkillPolicy.from_pretrained(folder, device=device)
    theirs, ours = (policy.config.dataset_id, policy.config.horizon), (dataset.dataset_id, config.skills.horizon)
    if theirs != ours or policy.config.layout != dataset.layout:
        raise ValueError(
            f"{folder} was trained on {theirs[0]} with horizon {theirs[1]}; this run has {ours[0]}, {ours[1]}"
        )
    if config.skills.consistency == "dynamics" and policy.dynamics is None:
        raise ValueError(f"{folder} has no dynamics model (it emits states itself); train without reuse")
    trained = from_dict(TrainConfig, load_info(folder / TRAINING_FILE))
    prior = load_training(folder, policy)[0].to(device)
    return prior, policy.dynamics, replace(config, prior=trained.prior, dynamics=trained.dynamics)


def load_training(folder: Path, policy: SkillPolicy) -> tuple[DiffusionPrior, Discriminator | WindowClassifier]:
    """The prior and the discriminator in a training folder, frozen.

    Raises:
        SafeFileError: absent or damaged.
    """
    path = folder / TRAINING_FILE
    try:
        config = from_dict(TrainConfig, load_info(path, LONGEST_HEADER))
    except ValueError as error:
        raise error if isinstance(error, SafeFileError) else SafeFileError(f"{path}: {in_short(error)}") from error
    horizon, layout, action_dim = policy.config.horizon, policy.config.layout, policy.config.action_dim
    judged = replace(config.skills, skill_space=policy.skill_space)
    prior = load_network(
        lambda: DiffusionPrior(config.prior, horizon, layout.state_dim, action_dim), path, "prior.", f"{path}: prior"
    )

    def blank() -> Discriminator | WindowClassifier:
        return WindowClassifier(judged, layout, action_dim) if judged.is_anchored else Discriminator(judged, layout)

    discriminator = load_network(blank, path, "discriminator.", f"{path}: discriminator")
    return prior.eval().requires_grad_(False), discriminator.eval().requires_grad_(False)


def write_run(output: Path, config: TrainConfig, dataset_id: str, **selection: Sequence[Any]) -> None:
    """Write `run.json`, and refuse to continue a folder that another run began.

    Args:
        selection: What was taken of each observation, `keys` or `indices`; empty ones count as not given.

    Raises:
        FileExistsError: the folder holds a run with other settings.
    """
    chosen = {name: list(values) for name, values in selection.items() if values}
    run = {"dataset": dataset_id, **chosen, **to_dict(config)}
    path = output / "run.json"
    if path.is_file() and json.loads(path.read_text()) != json.loads(json.dumps(run)):
        raise FileExistsError(
            f"{output} holds a run with other settings ({path.name} tells which); continue with those, or choose "
            f"another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=2) + "\n")
