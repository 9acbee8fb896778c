"""What a skill does to the achieved goal: a linear model, learned from the decisions that were taken."""

from __future__ import annotations

import numpy as np

_RIDGE = 1e-3  # in decisions
_ENOUGH = 40  # decisions after which something is known
_EACH = 4  # decisions for each number of a skill, where that is more: many discrete skills want to be tried
_FITS = frozenset(_ENOUGH // 2 * 2**k for k in range(6))  # decisions of a duration after which it is fitted anew
_ROUNDS = 5  # of leaving out what was blocked
_BLOCKED = 0.3  # a decision that made less than this share of the expected way was blocked, and teaches nothing
_SETTLING = 8  # decisions after which a skill that is kept moves steadily


class SkillModel:
    """Ridge regression of the displacement of the achieved goal on skill, velocity and a constant.

    One model for each duration that the agent can choose, from its first decisions. Those that were blocked (by a wall,
    after a fall) are left out, as far as the others tell.

    Args:
        skill_dim: Numbers in a skill.
        goal_dim: Numbers in a goal.
        durations: Low-level steps of a skill, those that the agent can choose.
    """

    def __init__(self, skill_dim: int, goal_dim: int, durations: tuple[int, ...]) -> None:
        self.durations = durations
        self.dims = (skill_dim + goal_dim + 1, goal_dim)
        self.enough = min(max(_ENOUGH, _EACH * skill_dim), max(_FITS))
        """Decisions after which `is_fitted`."""
        self.weights = np.zeros((len(durations), *self.dims))
        self.seen: list[list[np.ndarray]] = [[] for _ in durations]
        """Of each duration, inputs and displacement of its decisions, one after the other."""

    @property
    def is_fitted(self) -> bool:
        return sum(map(len, self.seen)) >= self.enough

    def add(self, choice: int, skill: np.ndarray, velocity: np.ndarray, displacement: np.ndarray) -> None:
        """Learn from one decision.

        Args:
            choice: Which duration.
            skill: z `(skill_dim,)`.
            velocity: Of the achieved goal before the decision, per low-level step `(goal_dim,)`.
            displacement: Of the achieved goal `(goal_dim,)`.
        """
        seen = self.seen[choice]
        if len(seen) < max(_FITS):
            seen.append(np.concatenate([skill, velocity, [1.0], displacement]))
            if len(seen) in _FITS:
                self.weights[choice] = self._fit(np.stack(seen))

    def _fit(self, seen: np.ndarray) -> np.ndarray:
        inputs, moves = seen[:, : self.dims[0]], seen[:, self.dims[0] :]
        free = np.ones(len(seen), bool)
        for _ in range(_ROUNDS):
            x, y = inputs[free], moves[free]
            weights = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
            expected = inputs @ weights
            free = (moves * expected).sum(1) >= _BLOCKED * (expected**2).sum(1)
        return weights

    def predict(self, choice: int, skills: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Displacements `(n, goal_dim)` of skills `(n, skill_dim)` from one velocity `(goal_dim,)`."""
        weights, dim = self._of(choice), skills.shape[1]
        return skills @ weights[:dim] + (velocity @ weights[dim:-1] + weights[-1])

    def _of(self, choice: int) -> np.ndarray:
        """The weights of a duration; of one that was hardly tried, those of the most frequent one, in proportion."""
        if len(self.seen[choice]) >= min(_FITS):
            return self.weights[choice]
        known = int(np.argmax([len(seen) for seen in self.seen]))
        return self.weights[known] * (self.durations[choice] / self.durations[known])

    def stride(self, choice: int, skills: np.ndarray) -> float:
        """How far a decision leads in full motion: the upper quartile over the skills `(n, skill_dim)`."""
        moves = np.zeros((len(skills), self.weights.shape[-1]))
        for _ in range(_SETTLING):
            velocities = moves / self.durations[choice]
            moves = np.concatenate([self.predict(choice, z[None], v) for z, v in zip(skills, velocities, strict=True)])
        return float(np.quantile(np.linalg.norm(moves, axis=1), 0.75))

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it has learned."""
        rows = [np.array(seen).reshape(-1, sum(self.dims)) for seen in self.seen]
        return {
            "weights": self.weights,
            **{f"seen.{duration}": a for duration, a in zip(self.durations, rows, strict=True)},
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over the `arrays` of another model of the same skills, goals and durations.

        Raises:
            ValueError: arrays of other shapes or kinds, or with numbers that are not finite.
        """
        for name, own in self.arrays().items():
            given, shape = arrays[name], own.shape if name == "weights" else (len(arrays[name]), own.shape[1])
            if given.shape != shape or given.dtype != own.dtype or not np.isfinite(given).all():
                raise ValueError(f"{name} must be {shape} {own.dtype}, finite; got {given.shape} {given.dtype}")
        self.weights[...] = arrays["weights"]
        self.seen = [list(arrays[f"seen.{duration}"]) for duration in self.durations]
