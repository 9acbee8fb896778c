"""Training: the prior, the dynamics model, then policy and discriminator under the joint DIDI objective.

Every stage is seeded, shows its progress, and with a checkpoint file survives `kill -9`: the same call continues and
ends with the same weights, bit for bit on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from didi_gym.checkpoints import Interrupts, TrainingState, TrainingStopped
from didi_gym.config import DynamicsConfig, PolicyConfig, PriorConfig, SkillConfig, from_dict, to_dict
from didi_gym.data import TrajectoryDataset
from didi_gym.diffusion import DiffusionPrior
from didi_gym.discriminator import Discriminator
from didi_gym.dynamics import DynamicsEnsemble
from didi_gym.frames import localize
from didi_gym.losses import Metrics, diversity_loss, dynamics_loss, guidance_loss, prior_loss
from didi_gym.normalization import Normalizer
from didi_gym.policy import TRAINING_FILE, SkillPolicy
from didi_gym.progress import progress as progress_bar
from didi_gym.tensors import load_info, load_tensors, load_weights, write_tensors
from didi_gym.version import __version__

_FIT_WINDOWS = 20_000  # windows from which statistics are fitted
_REPORT_EVERY = 50  # steps between readings of metrics, each of which waits for the device
_GRADIENT_LIMIT = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `didi-gym train`."""

    skills: SkillConfig = field(default_factory=SkillConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    seed: int = 0


class Batches:
    """Normalised windows of a data set on a device, drawn with a generator."""

    def __init__(self, dataset: TrajectoryDataset, normalizer: Normalizer, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.normalizer = normalizer.to(device)
        self.observations = torch.from_numpy(dataset.observations).to(device)
        self.actions = torch.from_numpy(dataset.actions).to(device)
        self.low = torch.as_tensor(dataset.action_low, device=device)
        self.half = torch.as_tensor((dataset.action_high - dataset.action_low) / 2, device=device).clamp(min=1e-6)

    def draw(self, n: int, horizon: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States `(n, horizon, state_dim)` in the windows' own frames and actions `(n, horizon, action_dim)`."""
        count = self.dataset.num_windows(horizon)
        indices = torch.randint(count, (n,), generator=generator, device=generator.device).cpu().numpy()
        starts = torch.from_numpy(self.dataset.window_starts(indices, horizon)).to(self.device)
        steps = starts[:, None] + torch.arange(horizon, device=self.device)
        states = localize(self.observations[steps], self.dataset.layout)[0]
        actions = (self.actions[steps] - self.low) / self.half - 1
        return self.normalizer.normalize(states), actions.clamp(-1, 1)


def fit_normalizer(dataset: TrajectoryDataset, horizon: int, seed: int = 0) -> Normalizer:
    """Fit the state normaliser to random windows of the data."""
    dataset.require_horizon(horizon)
    dataset.require_change()
    indices = np.random.default_rng(seed).integers(dataset.num_windows(horizon), size=_FIT_WINDOWS)
    return Normalizer.fit(dataset.windows(dataset.window_starts(indices, horizon), horizon)[0], dataset.layout)


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
    _optimize("prior", state, loss, config.steps, config.learning_rate, progress)
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
    _optimize("dynamics", state, loss, config.steps, config.learning_rate, progress)
    return state.averaged()


def train_skills(
    dataset: TrajectoryDataset,
    prior: DiffusionPrior,
    dynamics: DynamicsEnsemble | None,
    config: SkillConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: bool = True,
) -> tuple[SkillPolicy, Discriminator]:
    """Train policy and discriminator on the joint objective (DIDI, section 4).

    minimise  diversity_weight * E[-log q(z | tau)]  +  guidance_weight * E ||tau - sg[x0hat(tau_t)]||^2
    over tau = pi(s_0, z), s_0 from the data, z from its prior; dual ascent moves the second weight so that the residual
    stays at `residual_target` times the data's own, or as near as leaves z explained up to `diversity_floor`.

    Args:
        dynamics: Makes states follow from actions; None for `consistency="joint"`.

    Returns:
        The policy (averaged weights, with `dynamics` attached) and the discriminator.
    """
    horizon = prior.horizon
    config = _with_horizon(config or SkillConfig(), horizon)
    space, layout = config.skill_space, dataset.layout
    if config.consistency == "dynamics" and dynamics is None:
        raise ValueError('consistency="dynamics" needs a dynamics model: pass train_dynamics(dataset)')
    batches = Batches(dataset, fit_normalizer(dataset, horizon), torch.device(device))
    torch.manual_seed(seed)
    policy = SkillPolicy(_policy_config(dataset, config, horizon)).to(device)
    policy.normalizer.load_state_dict(batches.normalizer.state_dict())
    policy.low.copy_(batches.low)
    policy.high.copy_(torch.as_tensor(dataset.action_high))
    discriminator = Discriminator(config, layout).to(device)
    sample = batches.draw(4096, horizon, torch.Generator(device).manual_seed(seed))[0]
    discriminator.fit_scale(batches.normalizer.denormalize(sample))
    modules = nn.ModuleDict({"policy": policy, "discriminator": discriminator})

    def loss(generator: torch.Generator, memory: dict[str, float]) -> tuple[Tensor, Metrics]:
        # 1. start states and the data's own trajectories from them
        data_states, data_actions = batches.draw(config.batch_size, horizon, generator)
        data = torch.cat([data_states, data_actions], dim=-1)
        # 2. trajectories of random skills from the same starts
        skills = space.sample(config.batch_size, generator)
        choice = torch.randint(len(config.plans), (), generator=generator, device=generator.device)
        every = max(horizon // config.plans[int(choice)], 1)
        states, actions = policy.trajectory(data_states[:, 0], skills, dynamics, every, generator)
        trajectories = torch.cat([states, actions], dim=-1)
        # 3. they must tell their skill ...
        seen = batches.normalizer.denormalize(states)
        diversity, metrics = diversity_loss(discriminator, seen, skills, space, generator)
        # 4. ... and stay where the prior puts its mass
        guidance, more = guidance_loss(prior, trajectories, data, config.noise_range, generator)
        weight = memory.setdefault("guidance_weight", config.guidance_weight)
        total = config.diversity_weight * diversity + weight * guidance
        # 5. dual ascent on the weight: up while the residual is above target, but never at the price of the skills
        if config.residual_target > 0:
            excess = float(more["guidance/ratio"].detach()) - config.residual_target
            slack = float(metrics["diversity/explained"].detach()) - config.diversity_floor
            weight_step = config.dual_rate * min(excess, slack)
            memory["guidance_weight"] = min(weight * math.exp(weight_step), config.guidance_weight_max)
        return total, {**metrics, **more, "guidance/weight": torch.tensor(weight)}

    identity = {"data": dataset.fingerprint(), "seed": seed, **to_dict(config)}
    state = TrainingState(modules, config.learning_rate, config.ema_decay, seed, identity, checkpoint)
    try:
        _optimize("skills", state, loss, config.steps, config.learning_rate, progress)
    except TrainingStopped as stop:
        stop.result = _finished(state, dynamics)
        raise
    return _finished(state, dynamics)


def _finished(
    state: TrainingState[nn.ModuleDict], dynamics: DynamicsEnsemble | None
) -> tuple[SkillPolicy, Discriminator]:
    averaged: Any = state.averaged()
    averaged["policy"].attach_dynamics(dynamics)
    return averaged["policy"], averaged["discriminator"]


def _with_horizon(config: SkillConfig, horizon: int) -> SkillConfig:
    if config.horizon not in (None, horizon):
        raise ValueError(f"the prior was trained on windows of {horizon} steps, the skills ask for {config.horizon}")
    return replace(config, horizon=horizon)


def train(
    dataset: TrajectoryDataset,
    config: TrainConfig,
    output: Path,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SkillPolicy:
    """Train everything and write the policy folder `output`; called again after a stop, it continues.

    On Ctrl-C the current stage's checkpoint is written, and the policy folder with what the skills stage has so far,
    before TrainingStopped (a KeyboardInterrupt) is raised.
    """
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    horizon = config.skills.horizon or dataset.suggest_horizon()
    config = replace(config, skills=_with_horizon(config.skills, horizon))
    common: dict[str, Any] = {"seed": config.seed, "device": device, "progress": progress}
    joint = config.skills.consistency == "joint"
    prior = train_prior(dataset, config.prior, horizon=horizon, checkpoint=checkpoints / "prior.safetensors", **common)
    dynamics = None
    if not joint:
        dynamics = train_dynamics(
            dataset, config.dynamics, horizon=horizon, checkpoint=checkpoints / "dynamics.safetensors", **common
        )
    stopped = None
    try:
        policy, discriminator = train_skills(
            dataset, prior, dynamics, config.skills, checkpoint=checkpoints / "skills.safetensors", **common
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


def load_training(folder: Path, policy: SkillPolicy) -> tuple[DiffusionPrior, Discriminator]:
    """The prior and the discriminator in a training folder, frozen.

    Raises:
        SafeFileError: absent or damaged.
    """
    path = folder / TRAINING_FILE
    config = from_dict(TrainConfig, load_info(path))
    prior = DiffusionPrior(
        config.prior, policy.config.horizon, policy.config.layout.state_dim, policy.config.action_dim
    )
    discriminator = Discriminator(config.skills, policy.config.layout)
    for name, module in (("prior", prior), ("discriminator", discriminator)):
        load_weights(module, load_tensors(path, f"{name}."), f"{path}: {name}")
        module.eval().requires_grad_(False)
    return prior, discriminator


def _policy_config(dataset: TrajectoryDataset, config: SkillConfig, horizon: int) -> PolicyConfig:
    return PolicyConfig(
        horizon=horizon,
        action_dim=dataset.action_dim,
        layout=dataset.layout,
        skill_space=config.skill_space,
        skill_duration=horizon,
        replan_every=max(horizon // 8, 1),
        width=config.width,
        depth=config.depth,
        consistency=config.consistency,
        discrete_actions=dataset.discrete_actions,
        dataset_id=dataset.dataset_id,
        env_id=dataset.env_id,
        env_kwargs=dataset.env_kwargs,
        didi_gym_version=__version__,
    )


def _optimize(
    label: str,
    state: TrainingState,
    loss: Callable[[torch.Generator, dict[str, float]], tuple[Tensor, Metrics]],
    steps: int,
    learning_rate: float,
    progress: bool,
) -> None:
    """The training loop: Adam, cosine learning rate, clipped gradients, averaged weights, checkpoints."""
    parameters = [p for p in state.module.parameters() if p.requires_grad]
    shown: dict[str, float] = {}
    with progress_bar(label, steps, progress) as report, Interrupts() as interrupts:
        while state.step < steps:
            state.optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * state.step / steps))
            value, metrics = loss(state.generator, state.memory)
            state.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, _GRADIENT_LIMIT)
            state.optimizer.step()
            state.finish_step()
            if state.step % _REPORT_EVERY == 0 or state.step == steps:
                shown = {name: float(number.detach()) for name, number in metrics.items()}
                if not math.isfinite(sum(shown.values())):
                    raise FloatingPointError(
                        f"{label}: the loss became {shown} at step {state.step}; lower learning_rate"
                    )
                state.log(shown)
            report(state.step, shown)
            if interrupts.requested:
                state.save()
                raise TrainingStopped(f"{label} at step {state.step} of {steps}.")
            state.save_if_due()
    state.save()


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
