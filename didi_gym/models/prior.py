"""The diffusion prior over trajectories: DDPM noise schedule, x0-predicting denoiser, sampling."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from didi_gym.models.config import UNetConfig
from didi_gym.models.networks import ResidualMLP, time_embedding
from didi_gym.models.unet import TemporalUNet

_TIME_DIM = 32
_CLAMP = 1.25  # estimates of x0 beyond this lie outside all data, which is normalised to about [-1, 1]


class NoiseSchedule(nn.Module):
    """Cosine schedule q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Nichol & Dhariwal 2021, eq. 17)."""

    alphas_cumprod: Tensor

    def __init__(self, diffusion_steps: int) -> None:
        super().__init__()
        edge = [math.cos((i / diffusion_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(diffusion_steps + 1)]
        betas = [min(1 - edge[i + 1] / edge[i], 0.999) for i in range(diffusion_steps)]
        alphas_cumprod = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64, device="cpu"), 0)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from x_0 `(batch, ...)` at diffusion steps t `(batch,)`."""
        abar = self.alphas_cumprod[t].view(-1, *[1] * (x0.ndim - 1))
        return abar.sqrt() * x0 + (1 - abar).sqrt() * noise


class DiffusionPrior(nn.Module):
    """p(trajectory | first observation), in normalised units.

    A trajectory is `(batch, horizon, state_dim + action_dim)`, observations first; its first observation is given and
    never noised.

    Args:
        network: The denoiser: an MLP of `width` and `depth`, or a U-Net of the sizes in `unet`.
        diffusion_steps: Noise levels T of the cosine schedule.
    """

    def __init__(
        self,
        horizon: int,
        state_dim: int,
        action_dim: int,
        *,
        network: Literal["mlp", "unet"] = "mlp",
        width: int = 320,
        depth: int = 3,
        unet: UNetConfig | None = None,
        diffusion_steps: int = 100,
    ) -> None:
        super().__init__()
        self.horizon, self.state_dim, self.action_dim = horizon, state_dim, action_dim
        self.schedule = NoiseSchedule(diffusion_steps)
        dim, condition_dim = state_dim + action_dim, _TIME_DIM + state_dim
        self.denoiser: nn.Module
        if network == "unet":
            self.denoiser = TemporalUNet(horizon, dim, dim, condition_dim, unet or UNetConfig())
        else:
            self.denoiser = ResidualMLP(horizon * dim, horizon * dim, condition_dim, width, depth)

    def pin(self, trajectory: Tensor, first: Tensor) -> Tensor:
        """The trajectory with its first observation replaced by `first` `(batch, state_dim)`."""
        head = torch.cat([first, trajectory[:, 0, self.state_dim :]], dim=-1)
        return torch.cat([head[:, None], trajectory[:, 1:]], dim=1)

    def denoise(self, x_t: Tensor, t: Tensor, first: Tensor) -> Tensor:
        """The estimate E[x_0 | x_t, first observation].

        Args:
            x_t: Noised trajectories `(batch, horizon, state_dim + action_dim)`.
            t: Diffusion steps `(batch,)`.
            first: First observations `(batch, state_dim)`.
        """
        condition = torch.cat([time_embedding(t, _TIME_DIM), first], dim=-1)
        x0 = self.denoiser(self.pin(x_t, first).flatten(1), condition).view_as(x_t)
        return self.pin(x0, first)

    @torch.no_grad()
    def sample(self, first: Tensor, generator: torch.Generator, sampling_steps: int | None = None) -> Tensor:
        """Draw trajectories by DDIM with eta = 1 (Song et al. 2021, eq. 12; ancestral sampling at full length).

        Args:
            first: First observations `(batch, state_dim)`, normalised.
            generator: Source of noise, on the same device.
            sampling_steps: Denoiser calls; default one per diffusion step.

        Returns:
            `(batch, horizon, state_dim + action_dim)`, normalised.
        """
        shape = (len(first), self.horizon, self.state_dim + self.action_dim)
        noise: dict[str, Any] = {"generator": generator, "device": first.device, "dtype": first.dtype}
        x = torch.randn(shape, **noise)
        times = torch.linspace(len(self.schedule) - 1, 0, sampling_steps or len(self.schedule)).round().long()
        abars = self.schedule.alphas_cumprod[times].tolist() + [1.0]
        for i, t in enumerate(times):
            abar, abar_next = abars[i], abars[i + 1]
            x0 = self.denoise(x, t.to(first.device).expand(len(x)), first).clamp(-_CLAMP, _CLAMP)
            epsilon = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
            sigma2 = (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
            x = math.sqrt(abar_next) * x0 + math.sqrt(max(1 - abar_next - sigma2, 0.0)) * epsilon
            x = x + math.sqrt(sigma2) * torch.randn(shape, **noise)
        return self.pin(x, first)

    @torch.no_grad()
    def estimate(self, x: Tensor, t: Tensor, noise: Tensor, steps: int = 1) -> Tensor:
        """Noise trajectories x to level t and denoise them: the DIDI target, without gradient.

        Args:
            steps: Denoiser calls. One gives the conditional mean E[x_0 | x_t]; more follow DDIM with eta = 0 (Song et
                al. 2021, eq. 12) over evenly spaced levels below t, and end at a mode near x rather than between modes.
        """
        first = x[:, 0, : self.state_dim]
        x_t = self.schedule.add_noise(x, t, noise)
        x0 = self.denoise(x_t, t, first).clamp(-_CLAMP, _CLAMP)
        levels = [t * (steps - step) // steps for step in range(steps)]
        abars = [self.schedule.alphas_cumprod[level].view(-1, 1, 1) for level in levels]
        for following, abar, abar_next in zip(levels[1:], abars, abars[1:], strict=False):
            epsilon = (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()
            x_t = abar_next.sqrt() * x0 + (1 - abar_next).sqrt() * epsilon
            x0 = self.denoise(x_t, following, first).clamp(-_CLAMP, _CLAMP)
        return x0
