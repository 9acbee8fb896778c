"""Trajectory VAE: skills are codes of data windows (OPAL, arXiv 2010.13611; SPiRL, 2010.11944)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from didi_gym import SkillPolicy
from didi_gym.core.frames import localize, turn, turn_skill
from didi_gym.models.networks import ResidualMLP
from didi_gym.training.losses import Metrics
from methods.run import Run

_KL_WEIGHT = 1e-4
_PLAN_LENGTH: int | None = 1
_ROWS = 256  # plans in a batch: windows of smaller batches are reconstructed at several instants


def vae(run: Run, kl_weight: float = _KL_WEIGHT, plan_length: int | None = _PLAN_LENGTH) -> SkillPolicy:
    """Encoder q(z | window), policy pi(action | s, z) that reconstructs the window's actions, KL to p(z).

    Continuous: a Gaussian code x, prior N(0, I), and z = `squash(x)`, which makes z uniform in the ball under the
    prior, as skills are drawn. Discrete: a categorical code, straight-through. With a heading, the encoder sees the
    window in a world turned at random, as the method's discriminator does, and z turns back with it.
    It needs neither prior nor dynamics model, so it is given the dynamics model's gradient steps beside those of the
    skills; where the run's skills are imitated behaviours, the steps and batches of imitation.

    Tuned on seed 0 in trials of 800 to 1,200 steps: KL weights .01, .001 and .0001 (on the ant the code carries less
    than .001, .02 and 1.9 nats; .001 and .0001 do as well on the point), and feedback against chunks (weight .001: the
    probe on the point is .41 and .12). On the ant no setting had skills that a probe could read so early.
    """
    config, layout = run.skills, run.dataset.layout
    space, training, behaviours = config.skill_space, run.training(), run.config.behaviours
    batches = training.batches
    steps, batch = config.steps + run.config.dynamics.steps, config.batch_size
    if run.config.learns_behaviours:
        steps, batch = behaviours.scout_steps + behaviours.steps, behaviours.batch_size
    length = plan_length or run.horizon
    size = run.horizon * (layout.state_dim + run.dataset.action_dim)
    outputs = space.skill_dim if space.is_discrete else 2 * space.skill_dim
    with training.seeded():
        policy = training.new_policy(config, space, length)
        encoder = ResidualMLP(size, outputs, layout.state_dim, config.width, config.depth)
    modules = nn.ModuleDict({"policy": policy, "encoder": encoder})
    turns = layout.heading is not None and not space.is_discrete

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        states, actions = batches.draw(batch, run.horizon, generator)
        # 1. the window's code
        seen, angle = states, torch.zeros(len(states))
        if turns:
            assert layout.heading is not None
            angle = torch.rand(len(states), generator=generator) * (2 * torch.pi)
            turned = turn(batches.normalizer.denormalize(states), angle[:, None], layout.heading)
            seen = batches.normalizer.normalize(turned)
        window = torch.cat([seen, actions], dim=-1).flatten(1)
        skills, kl = draw_code(encoder(window, seen[:, 0]), space.is_discrete, generator)
        if turns:
            skills = turn_skill(skills, -angle)
        # 2. some of its actions, each from the state before it, seen in that state's own frame
        instants = 1 if length == run.horizon else max(_ROWS // batch, 1)
        first = torch.randint(run.horizon - length + 1, (len(states), instants), generator=generator)
        rows = torch.arange(len(states))[:, None]
        local, yaw = localize(batches.normalizer.denormalize(states[rows, first].flatten(0, 1))[:, None], layout)
        skills = skills.repeat_interleave(instants, dim=0)
        if turns:
            skills = turn_skill(skills, -yaw)
        here = batches.normalizer.normalize(local[:, 0])[:, policy.input_indices]
        wanted = actions[rows[..., None], first[..., None] + torch.arange(length)].flatten(0, 1)
        error = F.mse_loss(policy(here, skills, generator)[0], wanted)
        return error + kl_weight * kl, {"vae/error": error, "vae/kl": kl}

    return run.fit(training, "vae", modules, loss, run.steps or steps)


def draw_code(output: Tensor, discrete: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Skills drawn from the encoder's `output`, and the mean KL divergence of q from the prior, nats."""
    if discrete:
        logits = output.log_softmax(-1)
        waiting = torch.empty_like(logits).exponential_(generator=generator).clamp(min=1e-20)
        soft = (logits - waiting.log()).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).float()
        return hard + soft - soft.detach(), (logits.exp() * logits).sum(-1).mean() + math.log(soft.shape[-1])
    mean, log_std = output.chunk(2, dim=-1)
    log_std = log_std.clamp(-6, 2)
    code = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
    kl = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).sum(-1).mean()
    return squash(code), kl


def squash(code: Tensor) -> Tensor:
    """Codes `(batch, d)` into the unit ball, N(0, I) becoming uniform in it: the radius goes through its own cdf."""
    dim = code.shape[-1]
    square = code.square().sum(-1, keepdim=True).clamp(min=1e-8)
    share = torch.special.gammainc(torch.full_like(square, dim / 2), square / 2)
    return code / square.sqrt() * share ** (1 / dim)
