"""The skill space: what a skill is, its prior p(z), and the map from an agent's action to z. Imports no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    import torch

MAX_SKILL = 1_024  # far beyond what is of use, and what no computer is brought down by


@dataclass(frozen=True)
class SkillSpace:
    """A space of skills z with its prior p(z), uniform in every kind.

    | kind | skills | agent action |
    |---|---|---|
    | `ball` | the unit ball of R^size | Box(-1, 1, (size,)), pulled onto the ball where outside |
    | `sphere` | the unit sphere in R^size | Box(-1, 1, (size,)), normalised |
    | `box` | [-1, 1]^size | Box(-1, 1, (size,)) |
    | `discrete` | `size` one-hot vectors | Discrete(size) |
    """

    kind: Literal["ball", "sphere", "box", "discrete"]
    size: int
    """Dimensions of a continuous skill, or the number of discrete skills."""

    def __post_init__(self) -> None:
        smallest = {"ball": 1, "box": 1, "sphere": 2, "discrete": 2}
        if self.kind not in smallest:
            raise ValueError(f"skill_space.kind must be one of {', '.join(smallest)}, got {self.kind!r}")
        if not smallest[self.kind] <= self.size <= MAX_SKILL:
            least = smallest[self.kind]
            raise ValueError(f"skill_space.size of a {self.kind} must be in {least}..{MAX_SKILL}, got {self.size}")

    @property
    def skill_dim(self) -> int:
        """Length of the vector z."""
        return self.size

    @property
    def is_discrete(self) -> bool:
        return self.kind == "discrete"

    @property
    def gym_space(self) -> spaces.Box | spaces.Discrete:
        """The agent's action space."""
        if self.is_discrete:
            return spaces.Discrete(self.size)
        return spaces.Box(-1.0, 1.0, (self.size,), np.float32)

    def to_skill(self, action: Any) -> np.ndarray:
        """Map agent actions to skills.

        Args:
            action: `(..., size)` numbers, or `(...)` integers for discrete skills. Numbers outside [-1, 1] are clipped.

        Returns:
            Skills z, float32 `(..., skill_dim)`.

        Raises:
            ValueError: a wrong shape, a non-finite number, or an index outside 0..size-1.
        """
        if self.is_discrete:
            index = np.asarray(action)
            if not np.issubdtype(index.dtype, np.integer) or np.any((index < 0) | (index >= self.size)):
                raise ValueError(f"a discrete skill must be an integer in 0..{self.size - 1}, got {action!r}")
            return np.eye(self.size, dtype=np.float32)[index]
        skill = np.asarray(action, dtype=np.float32)
        if skill.ndim == 0 or skill.shape[-1] != self.size:
            raise ValueError(f"a skill action must have shape (..., {self.size}), got {skill.shape}")
        if not np.isfinite(skill).all():
            raise ValueError(f"a skill action must be finite, got {skill}; check the agent's observations and rewards")
        skill = np.minimum(np.maximum(skill, -1.0), 1.0)  # what np.clip does, without its overhead
        if self.kind == "box":
            return skill
        norm = np.sqrt(np.square(skill).sum(axis=-1, keepdims=True))
        if self.kind == "ball":
            return skill / np.maximum(norm, 1.0)
        fixed = np.eye(1, self.size, dtype=np.float32)[0]  # the zero vector names no direction
        return np.where(norm > 1e-6, skill / np.maximum(norm, 1e-6), fixed)

    def sample(self, n: int, generator: np.random.Generator | torch.Generator) -> Any:
        """Draw `n` skills from the prior.

        Returns:
            `(n, skill_dim)` float32: an array for a numpy generator, a tensor on its device for a torch one.
        """
        if isinstance(generator, np.random.Generator):
            if self.is_discrete:
                return self.to_skill(generator.integers(self.size, size=n))
            if self.kind == "box":
                return generator.uniform(-1, 1, (n, self.size)).astype(np.float32)
            point = generator.standard_normal((n, self.size))
            point /= np.linalg.norm(point, axis=-1, keepdims=True)
            radius = generator.uniform(0, 1, (n, 1)) ** (1 / self.size) if self.kind == "ball" else 1.0
            return (point * radius).astype(np.float32)
        torch = sys.modules["torch"]  # whoever has its generator has loaded it
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        if self.is_discrete:
            return torch.nn.functional.one_hot(torch.randint(self.size, (n,), **options), self.size).float()
        if self.kind == "box":
            return torch.rand(n, self.size, **options) * 2 - 1
        direction = torch.nn.functional.normalize(torch.randn(n, self.size, **options), dim=-1)
        return direction * torch.rand(n, 1, **options) ** (1 / self.size) if self.kind == "ball" else direction

    def grid(self, n: int) -> np.ndarray:
        """`n` well-spread skills for pictures and tests: all discrete ones, else even directions on the rim.

        Returns:
            `(n, skill_dim)` float32; for discrete skills n is at most their number.
        """
        if self.is_discrete:
            return np.eye(self.size, dtype=np.float32)[:n]
        if self.size == 1:
            return np.linspace(-1, 1, n, dtype=np.float32)[:, None]
        if self.size == 2:
            angle = np.arange(n) * (2 * np.pi / n)
            return self.to_skill(np.stack([np.cos(angle), np.sin(angle)], axis=-1))
        return SkillSpace("sphere", self.size).sample(n, np.random.default_rng(0))

    def require_rotatable(self) -> None:
        """Raise ValueError for a continuous space whose first two coordinates cannot be turned like a direction."""
        if not self.is_discrete and (self.kind == "box" or self.size < 2):
            raise ValueError(
                f"a layout with a heading turns skills with the body, so the skill space must be discrete, or a ball "
                f"or sphere of size >= 2; got {self.kind} of size {self.size}"
            )
