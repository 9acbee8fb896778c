"""The training losses, one function each, returning `(loss, metrics)`. All in normalised units."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from didi_gym.core.frames import turn_skill
from didi_gym.core.skill_space import SkillSpace
from didi_gym.models.discriminator import Discriminator, WindowClassifier
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.policy_network import PolicyNetwork
from didi_gym.models.prior import DiffusionPrior

Metrics = dict[str, Tensor]


def prior_loss(prior: DiffusionPrior, trajectories: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """Denoising loss E ||x_0 - x0hat(x_t, t, s_0)||^2 (Ho et al. 2020, with x0-prediction).

    Args:
        trajectories: `(batch, horizon, state_dim + action_dim)`.
    """
    t, noise = _draw_noise(prior, trajectories, (0.0, 1.0), generator)
    first = trajectories[:, 0, : prior.state_dim]
    x_t = prior.schedule.add_noise(trajectories, t, noise)
    loss = F.mse_loss(prior.denoise(x_t, t, first), trajectories)
    return loss, {"prior/loss": loss}


def dynamics_loss(dynamics: DynamicsEnsemble, states: Tensor, actions: Tensor) -> tuple[Tensor, Metrics]:
    """Error of predictions fed back into themselves, in units of the data's one-step change (smooth L1).

    Args:
        states: `(members, batch, unroll + 1, state_dim)`, another batch for each member.
        actions: `(members, batch, unroll + 1, action_dim)`; the last action is not used.
    """
    state, losses = states[:, :, 0], []
    for step in range(states.shape[2] - 1):
        state = dynamics(state, actions[:, :, step])
        losses.append(F.smooth_l1_loss(state / dynamics.delta_scale, states[:, :, step + 1] / dynamics.delta_scale))
    loss = torch.stack(losses).mean()
    return loss, {"dynamics/loss": loss, "dynamics/one_step": losses[0], "dynamics/last_step": losses[-1]}


def imitation_loss(policy: PolicyNetwork, states: Tensor, actions: Tensor, skills: Tensor) -> tuple[Tensor, Metrics]:
    """Squared error of the policy's actions on data of its skills (behaviour cloning; Pomerleau 1991).

    Args:
        states: `(batch, plan_length, state_dim)`, of which the policy sees the first.
        actions: `(batch, plan_length, action_dim)`.
        skills: `(batch, skill_dim)`.
    """
    loss = F.mse_loss(policy(states[:, 0, policy.input_indices], skills)[0], actions)
    return loss, {"imitation/loss": loss}


def diversity_loss(
    discriminator: Discriminator,
    states: Tensor,
    skills: Tensor,
    skill_space: SkillSpace,
    generator: torch.Generator,
) -> tuple[Tensor, Metrics]:
    """Negative lower bound of I(z; trajectory) up to a constant: E -log q(z | trajectory) (Barber & Agakov 2003).

    A unit Gaussian q for continuous skills, a categorical one for discrete skills. With a heading, continuous skills
    are turned together with their trajectory by a random angle, so that q knows skills as directions in the world.

    Args:
        states: Environment units, `(batch, horizon, state_dim)`.
        skills: z in the trajectory's frame, `(batch, skill_dim)`.
    """
    angle = None
    if discriminator.layout.heading is not None and not skill_space.is_discrete:
        angle = torch.rand(len(skills), generator=generator, device=skills.device) * (2 * torch.pi)
        skills = turn_skill(skills, angle)
    estimate = discriminator(states, angle, generator)
    if skill_space.is_discrete:
        index = skills.argmax(-1)
        loss = F.cross_entropy(estimate, index)
        explained = 1 - loss / math.log(skill_space.size)
        return loss, {"diversity/loss": loss, "diversity/explained": explained}
    loss = F.mse_loss(estimate, skills)
    explained = 1 - loss / skills.var(0).mean()
    return loss, {"diversity/loss": loss, "diversity/explained": explained}


def recognition_loss(
    classifier: WindowClassifier, states: Tensor, actions: Tensor, skills: Tensor, generator: torch.Generator
) -> tuple[Tensor, Metrics]:
    """E -log q(z | window): on data windows the classifier's own loss, on the policy's windows their diversity loss.

    Args:
        states: Normalised, `(batch, horizon, state_dim)`.
        actions: Normalised, `(batch, horizon, action_dim)`.
        skills: One-hot, `(batch, skills)`.
    """
    loss = F.cross_entropy(classifier(states, actions, generator), skills.argmax(-1))
    return loss, {"diversity/loss": loss, "diversity/explained": 1 - loss / math.log(skills.shape[-1])}


def guidance_loss(
    prior: DiffusionPrior,
    trajectories: Tensor,
    data: Tensor,
    noise_range: tuple[float, float],
    generator: torch.Generator,
    steps: int = 1,
) -> tuple[Tensor, Metrics]:
    """Diffusion-guided regularisation: E ||x - sg[x0hat(x_t, t, s_0)]||^2 for the policy's trajectories x.

    Args:
        trajectories: The policy's, `(batch, horizon, state_dim + action_dim)`.
        data: Data windows of the same shape; their residual at the same noise is the yardstick of dual ascent.
        noise_range: Diffusion steps as fractions of T.
        steps: Denoiser calls of an estimate (`DiffusionPrior.estimate`).
    """
    t, noise = _draw_noise(prior, trajectories, noise_range, generator)
    both = torch.cat([trajectories.detach(), data])
    estimate, data_estimate = prior.estimate(both, t.repeat(2), torch.cat([noise, noise]), steps).chunk(2)
    loss = F.mse_loss(trajectories, estimate)
    return loss, {"guidance/residual": loss, "guidance/ratio": loss / F.mse_loss(data, data_estimate)}


def _draw_noise(
    prior: DiffusionPrior, like: Tensor, noise_range: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    total = len(prior.schedule)
    low = min(int(noise_range[0] * total), total - 1)
    high = max(int(noise_range[1] * total), low + 1)
    t = torch.randint(low, high, (len(like),), generator=generator, device=like.device)
    return t, torch.randn(like.shape, generator=generator, device=like.device)
