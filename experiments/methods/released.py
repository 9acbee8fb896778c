"""The loss of the authors' released code as it is written there (huey0528/icml24didi on GitHub, `models/didi.py`)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from didi_gym import SkillPolicy, SkillSpace
from didi_gym.training.losses import Metrics
from methods.run import Run

_DIFFUSION_WEIGHT, _DIVERSITY_WEIGHT, _DISCRIMINATOR_WEIGHT = 10.0, 50.0, 5.0
_FIRST_STEP_WEIGHT = 5.0  # `action_weight` of its locomotion scripts: of all that the first step holds
_NOISE_ONLY, _LAST_LEVELS = 0.5, 5
_INPUT_NOISE = 0.4
_SKILLS = 16


def released(run: Run) -> SkillPolicy:
    """Joint output of actions and states, discrete skills, and the released loss with all its peculiarities.

    * 10 |x - sg(x0hat)|^2, the first step counting five times, + 50 MSE(D(x), one-hot z); no reward;
    * noise is uniform in [0, 1]; a coin decides for each batch whether plans are noised (all levels) or uniform
      noise in their place (the last five levels);
    * D is linear (two layers without a nonlinearity) in the mean of x over time, states and actions, and is trained on
      plans plus noise in [-0.4, 0].

    Not as released: networks, batches and steps are this project's, actions pass a tanh, and the first state is given.
    """
    config, prior = run.skills, run.require_prior()
    space = config.skill_space if config.skill_space.is_discrete else SkillSpace("discrete", _SKILLS)
    config = replace(config, skill_space=space, consistency="joint", plan_length=None)
    training, width = run.training(), prior.state_dim + prior.action_dim
    batches = training.batches
    with training.seeded():
        policy = training.new_policy(config, space, run.horizon)
        first_layer = nn.Linear(width, config.discriminator_width)
        last_layer = nn.Linear(config.discriminator_width, space.size)
    modules = nn.ModuleDict({"policy": policy, "first": first_layer, "last": last_layer})
    step_weights = torch.ones(run.horizon, 1)
    step_weights[0] = _FIRST_STEP_WEIGHT

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        first = batches.draw(config.batch_size, run.horizon, generator)[0][:, 0]
        skills = space.sample(len(first), generator)
        x = torch.cat(policy.trajectory(first, skills, None), dim=-1)
        levels, begin, lowest = len(prior.schedule), x.detach(), 0
        if torch.rand((), generator=generator) < _NOISE_ONLY:
            begin, lowest = torch.rand(x.shape, generator=generator), levels - _LAST_LEVELS
        t = torch.randint(lowest, levels, (len(x),), generator=generator)
        with torch.no_grad():
            noised = prior.schedule.add_noise(begin, t, torch.rand(x.shape, generator=generator))
            estimate = prior.denoise(noised, t, first)
        diffusion = (step_weights * (x - estimate).square()).mean()
        weight = last_layer.weight @ first_layer.weight
        bias = last_layer.weight @ first_layer.bias + last_layer.bias
        diversity = F.mse_loss(F.linear(x.mean(1), weight.detach(), bias.detach()), skills)
        shifted = x.detach() + (torch.rand(x.shape, generator=generator) - 1) * _INPUT_NOISE
        discriminator = F.mse_loss(F.linear(shifted.mean(1), weight, bias), skills)
        total = _DIFFUSION_WEIGHT * diffusion + _DIVERSITY_WEIGHT * diversity + _DISCRIMINATOR_WEIGHT * discriminator
        return total, {"released/diffusion": diffusion, "released/diversity": diversity}

    return run.fit(training, "released", modules, loss, config.steps)
