"""Other objectives of diversity in place of the discriminator's regression; all else is the method's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from didi_gym import SkillPolicy
from didi_gym.core.frames import turn_skill
from didi_gym.models.discriminator import Discriminator
from didi_gym.training.batches import Batches
from didi_gym.training.losses import Metrics
from methods.run import Run, train_joint

_EMBEDDING, _TEMPERATURE = 32, 0.1
_SLACK, _DUAL_RATE = (
    1e-3,
    1e-2,
)  # of the dual variable, as METRA's epsilon and (scaled to fewer steps) its learning rate
_SKILLS_PER_START, _NEIGHBOUR = 8, 3


def contrastive(run: Run) -> SkillPolicy:
    """InfoNCE between skills and the change of the features (van den Oord et al. 2018, arXiv 1807.03748)."""
    return train_joint(run, "contrastive", objective=InfoNCE)


def metra(run: Run) -> SkillPolicy:
    """Wasserstein dependence: far along z in an embedding that is 1-Lipschitz (METRA, arXiv 2310.08887).

    The distance is that of the features, as in LSD (arXiv 2202.00914), not of time: plans all last the horizon.
    """
    return train_joint(run, "metra", objective=Metra)


def entropy(run: Run) -> SkillPolicy:
    """Nearest-neighbour entropy of the features' change, among skills of the same start (Singh et al. 2003).

    A plan is a function of start and skill, so this entropy is the mutual information of skill and change, and needs no
    discriminator. Over a whole batch the starts alone would give it.
    """
    return train_joint(run, "entropy", objective=Entropy, skills_per_start=_SKILLS_PER_START)


class _Seen(nn.Module):
    """The change of the features as the discriminator sees it, in a world turned at random where there is a heading."""

    def __init__(self, run: Run, batches: Batches, outputs: int) -> None:
        super().__init__()
        self.network: Discriminator = run.discriminator(batches, outputs)
        self.has_heading = run.dataset.layout.heading is not None

    def turned(self, skills: Tensor, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Angles `(batch,)` and skills in the turned world."""
        if not self.has_heading:
            return None, skills
        angle = torch.rand(len(skills), generator=generator) * (2 * torch.pi)
        return angle, turn_skill(skills, angle)


class InfoNCE(_Seen):
    """Which skill of the batch belongs to a trajectory: cosine similarity of two embeddings."""

    def __init__(self, run: Run, batches: Batches) -> None:
        super().__init__(run, batches, _EMBEDDING)
        width = run.skills.discriminator_width
        self.skills = nn.Sequential(
            nn.Linear(run.skills.skill_space.skill_dim, width), nn.SiLU(), nn.Linear(width, _EMBEDDING)
        )

    def forward(self, states: Tensor, skills: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        angle, skills = self.turned(skills, generator)
        rows = F.normalize(self.network(states, angle, generator), dim=-1)
        columns = F.normalize(self.skills(skills), dim=-1)
        loss = F.cross_entropy(rows @ columns.T / _TEMPERATURE, torch.arange(len(rows)))
        return loss, {"contrastive/loss": loss}


class Metra(_Seen):
    """-(phi(last) - phi(first)).z under |phi(x) - phi(y)| <= |x - y| at the instants that the discriminator sees."""

    dual: Tensor

    def __init__(self, run: Run, batches: Batches) -> None:
        super().__init__(run, batches, 1)  # for its units only
        width, features = run.skills.discriminator_width, len(run.dataset.layout.features)
        self.embedding = nn.Sequential(
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, run.skills.skill_space.skill_dim),
        )
        self.register_buffer("dual", torch.tensor(30.0))  # METRA's first value

    def forward(self, states: Tensor, skills: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        angle, skills = self.turned(skills, generator)
        x = self.network.change(states, angle) / self.network.feature_scale[-1]  # (batch, times, features)
        x = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)
        phi = self.embedding(x)
        gain = ((phi[:, -1] - phi[:, 0]) * skills).sum(-1).mean()
        # the constraint shapes the embedding, and must not draw the policy
        at, phi_at = x.detach(), self.embedding(x.detach())
        room = (at.diff(dim=1).square().sum(-1) - phi_at.diff(dim=1).square().sum(-1)).clamp(max=_SLACK).mean()
        dual = self.dual.clone()
        self.dual.mul_(torch.exp(-_DUAL_RATE * room.detach().clamp(min=-1)))
        return -gain - dual * room, {"metra/gain": gain, "metra/room": room, "metra/dual": dual}


class Entropy(_Seen):
    """-E log of the distance to the k-th nearest change among the skills of the same start."""

    def __init__(self, run: Run, batches: Batches) -> None:
        super().__init__(run, batches, 1)  # for its units and resolution only

    def forward(self, states: Tensor, skills: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        change = (self.network.change(states) / self.network.feature_scale).flatten(1)
        rows = change.unflatten(0, (-1, _SKILLS_PER_START))  # (starts, skills, times * features)
        squares = (rows[:, :, None] - rows[:, None]).square().mean(-1)
        near = squares.sort(-1).values[..., _NEIGHBOUR]  # the first is the row itself
        # differences below the discriminator's resolution count as none
        loss = -0.5 * (near + self.network.noise**2).log().mean()
        return loss, {"entropy/loss": loss}
