"""What a skill does to the achieved goal: a linear model, learned from the decisions that were taken."""

from __future__ import annotations

import numpy as np

_RIDGE = 1e-3  # in decisions
_ENOUGH = 40  # decisions before the first fit
_SETTLING = 8  # decisions after which a skill that is kept moves steadily
_BLOCKED = 0.3  # a decision that made less than this share of the expected way was blocked, and teaches nothing


class SkillModel:
    """Ridge regression of the displacement of the achieved goal on skill, velocity and a constant.

    One model for each duration that the agent can choose. Decisions that were blocked (by a wall, after a fall) are
    left out once there is a first fit.

    Args:
        skill_dim: Numbers in a skill.
        goal_dim: Numbers in a goal.
        durations: Low-level steps of a skill, those that the agent can choose.
    """

    def __init__(self, skill_dim: int, goal_dim: int, durations: tuple[int, ...]) -> None:
        self.durations = durations
        inputs = skill_dim + goal_dim + 1
        self.gram = np.zeros((len(durations), inputs, inputs))
        self.moment = np.zeros((len(durations), inputs, goal_dim))
        self.count = np.zeros(len(durations), np.int64)
        self.weights = np.zeros((len(durations), inputs, goal_dim))

    @property
    def is_fitted(self) -> bool:
        return bool(self.count.sum() >= _ENOUGH)

    def add(self, choice: int, skill: np.ndarray, velocity: np.ndarray, displacement: np.ndarray) -> None:
        """Learn from one decision.

        Args:
            choice: Which duration.
            skill: z `(skill_dim,)`.
            velocity: Of the achieved goal before the decision, per low-level step `(goal_dim,)`.
            displacement: Of the achieved goal `(goal_dim,)`.
        """
        x = np.concatenate([skill, velocity, [1.0]])
        if self.is_fitted:
            expected = x @ self._of(choice)
            if displacement @ expected < _BLOCKED * (expected @ expected):
                return
        self.gram[choice] += np.outer(x, x)
        self.moment[choice] += np.outer(x, displacement)
        self.count[choice] += 1
        if self.count[choice] >= _ENOUGH // 2:
            ridge = _RIDGE * self.count[choice] * np.eye(len(x))
            self.weights[choice] = np.linalg.solve(self.gram[choice] + ridge, self.moment[choice])

    def predict(self, choice: int, skills: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Displacements `(n, goal_dim)` of skills `(n, skill_dim)` from one velocity `(goal_dim,)`."""
        x = np.concatenate([skills, np.tile([*velocity, 1.0], (len(skills), 1))], axis=1)
        return x @ self._of(choice)

    def _of(self, choice: int) -> np.ndarray:
        """The weights of a duration; of one that was hardly tried, those of the most frequent one, in proportion."""
        if self.count[choice] >= _ENOUGH // 2:
            return self.weights[choice]
        known = int(self.count.argmax())
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
        return {"gram": self.gram, "moment": self.moment, "count": self.count, "weights": self.weights}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over the `arrays` of another model of the same skills, goals and durations.

        Raises:
            ValueError: arrays of other shapes or kinds, or with numbers that are not finite.
        """
        for name, own in self.arrays().items():
            given = arrays[name]
            if given.shape != own.shape or given.dtype != own.dtype or not np.isfinite(given).all():
                raise ValueError(f"{name} must be {own.shape} {own.dtype}, finite; got {given.shape} {given.dtype}")
            own[...] = given
