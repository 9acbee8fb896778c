"""The stages of DIDI: the diffusion prior, the dynamics model, then policy and discriminator on the joint objective.

Every stage is seeded, shows its progress, and with a folder for checkpoints survives `kill -9`: the same call continues
and ends with the same weights, bit for bit on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from didi_gym.core.schema import to_dict
from didi_gym.models.discriminator import Discriminator
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.prior import DiffusionPrior
from didi_gym.training.checkpoints import TrainingStopped
from didi_gym.training.config import DynamicsConfig, PriorConfig, SkillConfig
from didi_gym.training.losses import Metrics, diversity_loss, dynamics_loss, guidance_loss, prior_loss
from didi_gym.training.run import Run

_SAMPLE = 4096  # windows from which units are fitted
_DYNAMICS_EMA_DECAY = 0.99


def train_prior(run: Run, config: PriorConfig | None = None) -> DiffusionPrior:
    """Train the diffusion prior on windows of the run's horizon.

    Returns:
        Its averaged (EMA) weights, frozen.
    """
    config = config or PriorConfig()
    with run.seeded():
        prior = DiffusionPrior(run.horizon, run.dataset.layout.state_dim, run.dataset.action_dim, **config.sizes)
    prior.to(run.device)

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        states, actions = run.batches.draw(config.batch_size, run.horizon, generator)
        return prior_loss(prior, torch.cat([states, actions], dim=-1), generator)

    rates = {"learning_rate": config.learning_rate, "ema_decay": config.ema_decay}
    return run.learn("prior", prior, loss, steps=config.steps, **rates, settings=to_dict(config))


def train_dynamics(run: Run, config: DynamicsConfig | None = None) -> DynamicsEnsemble:
    """Train the dynamics ensemble, which makes states follow from actions.

    Returns:
        Its averaged (EMA) weights, frozen.
    """
    config = config or DynamicsConfig()
    length = min(config.unroll, run.horizon - 1) + 1
    with run.seeded():
        dynamics = DynamicsEnsemble(run.dataset.layout, run.dataset.action_dim, config.members, config.width)
    dynamics.to(run.device)
    sample = run.batches.draw(_SAMPLE, length, run.generator())[0]
    spread = sample.diff(dim=1).square().mean((0, 1)).sqrt()
    dynamics.delta_scale.copy_(spread.clamp(min=1e-4))

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        states, actions = run.batches.draw(config.members * config.batch_size, length, generator)
        by_member = (config.members, config.batch_size)
        return dynamics_loss(dynamics, states.unflatten(0, by_member), actions.unflatten(0, by_member))

    rates = {"learning_rate": config.learning_rate, "ema_decay": _DYNAMICS_EMA_DECAY}
    return run.learn("dynamics", dynamics, loss, steps=config.steps, **rates, settings=to_dict(config))


@dataclass(frozen=True)
class SkillTask:
    """What the objective is applied to: a policy, where its trajectories start, and what must recognise the skills."""

    policy: SkillPolicy
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]
    """`(n, generator)` -> normalised data windows, states `(n, horizon, state_dim)` and actions
    `(n, horizon, action_dim)`, with the skill `(n, skill_dim)` to be executed from the first state of each."""
    recognise: Callable[[Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Metrics]]
    """`(states, actions, skills, generator)` of the policy's trajectories, normalised -> the diversity loss."""
    discriminator: nn.Module | None = None
    """What `recognise` uses and the objective trains beside the policy; None where it is frozen."""
    imitate: Callable[[torch.Generator], tuple[Tensor, Metrics]] | None = None
    """A further loss, already weighted."""


def didi_task(run: Run, config: SkillConfig) -> SkillTask:
    """DIDI from nothing: a fresh policy and discriminator, random skills from random states of the data."""
    space, layout, horizon = config.skill_space, run.dataset.layout, run.horizon
    with run.seeded():
        policy = run.new_policy(config, space, config.plan_length or horizon)
        discriminator = Discriminator(layout, space.skill_dim, horizon, **config.discriminator_sizes).to(run.device)
    denormalize = run.batches.normalizer.denormalize
    discriminator.fit_scale(denormalize(run.batches.draw(_SAMPLE, horizon, run.generator())[0]))

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return *run.batches.draw(n, horizon, generator), space.sample(n, generator)

    def recognise(states: Tensor, _: Tensor, skills: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return diversity_loss(discriminator, denormalize(states), skills, space, generator)

    return SkillTask(policy, draw, recognise, discriminator)


def train_skills(
    run: Run,
    prior: DiffusionPrior,
    dynamics: DynamicsEnsemble | None = None,
    config: SkillConfig | None = None,
    task: SkillTask | None = None,
) -> tuple[SkillPolicy, nn.Module | None]:
    """Train policy and discriminator on the joint objective (DIDI, section 4).

    minimise  diversity_weight * E[-log q(z | tau)]  +  guidance_weight * E ||tau - sg[x0hat(tau_t)]||^2

    tau has the actions of pi(. | s_0, z) and the states to which `dynamics` says they lead, with s_0 from the data and
    z ~ p(z). Dual ascent, which is not in the paper, moves the second weight so that the residual stays at
    `residual_target` times the data's own, or as near to that as leaves z explained up to `diversity_floor`.

    Args:
        dynamics: Makes states follow from actions; None for `consistency="joint"`.
        task: What the objective is applied to; default: `didi_task`, a fresh policy and random skills.

    Returns:
        The policy (averaged weights, with `dynamics` attached), and the discriminator where it was trained too.
    """
    config, horizon = config or SkillConfig(), run.horizon
    if prior.horizon != horizon:
        raise ValueError(f"the prior was trained on windows of {prior.horizon} steps, the run has windows of {horizon}")
    if config.consistency == "dynamics" and dynamics is None:
        raise ValueError('consistency="dynamics" needs a dynamics model: pass train_dynamics(run)')
    task = task or didi_task(run, config)
    policy = task.policy
    modules = nn.ModuleDict({"policy": policy})
    if task.discriminator is not None:
        modules["discriminator"] = task.discriminator

    def loss(generator: torch.Generator, carried: dict[str, float]) -> tuple[Tensor, Metrics]:
        # 1. skills, and start states from the data with what the data did from there, which is the yardstick of step 5
        data_states, data_actions, skills = task.draw(config.batch_size, generator)
        data = torch.cat([data_states, data_actions], dim=-1)
        # 2. the policy's trajectories of these skills; as in execution it plans again on the way, 8, 4, 2 or 1 times
        choice = torch.randint(len(config.plans), (), generator=generator, device=generator.device)
        steps_per_plan = max(horizon // config.plans[int(choice)], 1)
        states, actions = policy.trajectory(data_states[:, 0], skills, dynamics, steps_per_plan, generator)
        trajectories = torch.cat([states, actions], dim=-1)
        # 3. the skill must be recognised from them ...
        diversity, metrics = task.recognise(states, actions, skills, generator)
        # 4. ... and they must stay where the prior puts its mass
        near = config.noise_range, generator, config.estimate_steps
        guidance, guided = guidance_loss(prior, trajectories, data, *near)
        weight = carried.setdefault("guidance_weight", config.guidance_weight)
        total = config.diversity_weight * diversity + weight * guidance
        if task.imitate is not None:
            imitation, imitated = task.imitate(generator)
            total, metrics = total + imitation, {**metrics, **imitated}
        # 5. dual ascent: the weight rises while the residual is above target and skills above the floor, else it falls
        if config.residual_target > 0:
            excess = float(guided["guidance/ratio"].detach()) - config.residual_target
            slack = float(metrics["diversity/explained"].detach()) - config.diversity_floor
            weight_step = config.dual_rate * min(excess, slack)
            carried["guidance_weight"] = min(weight * math.exp(weight_step), config.guidance_weight_max)
        return total, {**metrics, **guided, "guidance/weight": torch.tensor(weight)}

    def finished(averaged: nn.ModuleDict) -> tuple[SkillPolicy, nn.Module | None]:
        learned = averaged["policy"]
        assert isinstance(learned, SkillPolicy)
        learned.attach_dynamics(dynamics)
        return learned, averaged["discriminator"] if task.discriminator is not None else None

    rates = {"learning_rate": config.learning_rate, "ema_decay": config.ema_decay}
    given = {"prior's weights": prior, "dynamics' weights": dynamics}
    try:
        learned = run.learn("skills", modules, loss, steps=config.steps, **rates, settings=to_dict(config), given=given)
        return finished(learned)
    except TrainingStopped as stop:
        stop.result = finished(stop.result)
        raise
