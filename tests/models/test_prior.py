import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from didi_gym.models.prior import DiffusionPrior, NoiseSchedule
from didi_gym.training.config import PriorConfig
from didi_gym.training.losses import guidance_loss, prior_loss


def test_the_cosine_schedule_is_that_of_diffusers():
    from diffusers import DDPMScheduler

    oracle = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    schedule = NoiseSchedule(100)
    torch.testing.assert_close(schedule.alphas_cumprod, oracle.alphas_cumprod, rtol=1e-4, atol=1e-6)
    x, noise, t = torch.randn(5, 3, 2), torch.randn(5, 3, 2), torch.tensor([0, 20, 50, 98, 99])
    torch.testing.assert_close(schedule.add_noise(x, t, noise), oracle.add_noise(x, noise, t), rtol=1e-4, atol=1e-4)


def test_ancestral_sampling_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    prior = DiffusionPrior(4, 2, 1, width=16, depth=1, diffusion_steps=20)
    first = torch.zeros(3, 2)
    ours = prior.sample(first, torch.Generator().manual_seed(0))
    oracle = DDIMScheduler(
        20,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
        clip_sample_range=1.25,
        set_alpha_to_one=True,
    )
    oracle.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 3, generator=generator)
    with torch.no_grad():
        for t in oracle.timesteps:
            x0 = prior.denoise(x, t.expand(3), first)
            noise = torch.randn(3, 4, 3, generator=generator)
            x = oracle.step(x0, int(t), x, eta=1.0, use_clipped_model_output=True, variance_noise=noise).prev_sample
    torch.testing.assert_close(ours, prior.pin(x, first), rtol=1e-3, atol=1e-3)


def test_the_first_observation_is_pinned_and_never_noised():
    prior = DiffusionPrior(4, 2, 1, width=16, depth=1, diffusion_steps=10)
    first = torch.tensor([[0.3, -0.2]]).repeat(6, 1)
    sample = prior.sample(first, torch.Generator().manual_seed(1), sampling_steps=4)
    assert torch.equal(sample[:, 0, :2], first) and sample.std() > 0
    x = torch.randn(6, 4, 3)
    estimate = prior.estimate(x, torch.full((6,), 5), torch.randn_like(x))
    assert torch.equal(estimate[:, 0, :2], x[:, 0, :2].clamp(-1.25, 1.25)) and not estimate.requires_grad
    assert torch.equal(prior.pin(x, first)[:, 1:], x[:, 1:])


def test_an_estimate_of_several_steps_ends_at_a_mode_and_one_of_one_step_between_modes():
    """x_0 = -1 or 1, equally likely: E[x_0 | x_t] = tanh(a x_t / b^2), a^2 = abar, b^2 = 1 - abar."""

    class TwoModes(DiffusionPrior):
        def denoise(self, x_t, t, first):
            abar = self.schedule.alphas_cumprod[t].view(-1, 1, 1)
            return self.pin(torch.tanh(abar.sqrt() * x_t / (1 - abar)), first)

    prior = TwoModes(4, 1, 1, width=8, depth=1, diffusion_steps=100)
    x, noise = torch.full((500, 4, 2), 0.4), torch.randn(500, 4, 2, generator=torch.Generator().manual_seed(0))
    t = torch.full((500,), 60)
    far = [1 - prior.estimate(x, t, noise, steps)[:, 1:].abs().mean() for steps in (1, 3, 10)]
    assert far[0] > 0.3 and far[0] > 2 * far[1] and far[2] < 0.05
    same = prior.denoise(prior.schedule.add_noise(x, t, noise), t, x[:, 0, :1])
    assert torch.equal(prior.estimate(x, t, noise), same.clamp(-1.25, 1.25))


def test_the_prior_learns_the_closed_form_denoiser_of_gaussian_data():
    """x_i ~ N(mu, diag(s^2)), independent: E[x_0 | x_t] = mu + s^2 a / (s^2 a^2 + b^2) (x_t - a mu), a^2 = abar."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    horizon, dims = 2, 2  # one observation, one action
    mean, std = torch.tensor([[0.0, 0.3], [-0.2, 0.1]]), torch.tensor([[0.0, 0.4], [0.3, 0.5]])
    config = PriorConfig(steps=4000, batch_size=2048, width=64, depth=2, diffusion_steps=20)
    prior = DiffusionPrior(horizon, 1, 1, **config.sizes)
    optimizer = torch.optim.Adam(prior.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        x = mean + std * torch.randn(config.batch_size, horizon, dims, generator=generator)
        loss, _ = prior_loss(prior, x, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x0 = mean + std * torch.randn(20_000, horizon, dims, generator=generator)
    t = torch.randint(0, 20, (len(x0),), generator=generator)
    x_t = prior.schedule.add_noise(x0, t, torch.randn(x0.shape, generator=generator))
    abar = prior.schedule.alphas_cumprod[t].view(-1, 1, 1)
    gain = std**2 * abar.sqrt() / (std**2 * abar + 1 - abar)
    best = mean + gain * (x_t - abar.sqrt() * mean)
    with torch.no_grad():
        learned = prior.denoise(x_t, t, x0[:, 0, :1])
    free = torch.tensor([[False, True], [True, True]])
    error = (learned - best)[:, free].square().mean().sqrt() / (best - mean)[:, free].square().mean().sqrt()
    excess = F.mse_loss(learned[:, free], x0[:, free]) / F.mse_loss(best[:, free], x0[:, free])
    assert excess < 1.001, f"denoising loss {excess:.5f} of the best possible"
    assert error < 0.02, f"relative distance to the closed form {error:.4f}"


class _ShrinkingPrior(DiffusionPrior):
    """A scripted denoiser: the estimate of x_0 is half of x_t."""

    def denoise(self, x_t, t, first):
        return self.pin(x_t / 2, first)


def test_guidance_pulls_trajectories_to_the_stopped_estimate():
    prior = _ShrinkingPrior(2, 1, 1, width=8, depth=1, diffusion_steps=10)
    prior.schedule.alphas_cumprod.fill_(1.0)  # no noise at all: x_t = x
    x = torch.tensor([[[0.5, 0.4], [0.2, -0.6]]], requires_grad=True)
    loss, metrics = guidance_loss(prior, x, x.detach() * 2, (0.1, 0.7), torch.Generator().manual_seed(0))
    expected = (0.2**2 + 0.1**2 + 0.3**2) / 4  # the first observation is pinned: no residual there
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["guidance/ratio"].item() == pytest.approx(1 / 4, rel=1e-5)
    loss.backward()
    np.testing.assert_allclose(x.grad[0], [[0, 2 * 0.2 / 4], [2 * 0.1 / 4, -2 * 0.3 / 4]], rtol=1e-5)


def test_the_noise_range_bounds_the_levels_at_which_the_prior_judges():
    seen = []

    class Recording(_ShrinkingPrior):
        def denoise(self, x_t, t, first):
            seen.append(t)
            return super().denoise(x_t, t, first)

    prior = Recording(2, 1, 1, width=8, depth=1)
    guidance_loss(prior, torch.zeros(2000, 2, 2), torch.zeros(2000, 2, 2), (0.1, 0.7), torch.Generator().manual_seed(0))
    levels = torch.cat(seen)
    assert levels.min() == 10 and levels.max() == 69
    assert math.isclose(levels.float().mean(), 39.5, abs_tol=1)
