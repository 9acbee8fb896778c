"""Features of a goal observation, for skill agents and for flat ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


class RelativeGoalExtractor(BaseFeaturesExtractor):
    """Features of a goal observation that hold the goal relative to what is achieved: direction and two distances.

    The difference is taken inside the network's input, so it stays right when hindsight changes the desired goal. Use
    it for a skill agent and for its flat baseline alike. Not together with VecNormalize, which scales both goals apart.

    Features: the chosen observations, delta / |delta|, tanh(|delta| / near_scale), |delta| / far_scale, with
    delta = desired_goal - achieved_goal; with `absolute_goals` also both goals / far_scale, for tasks with walls.

    Args:
        observation_space: a Dict of `observation`, `achieved_goal` and `desired_goal`, each `(n,)`.
        observation_indices: which numbers of `observation` to keep; all where None.
        near_scale: distance at which precision begins to matter, in units of the goal.
        far_scale: distance that counts as far, in units of the goal.
        absolute_goals: whether where, not only how far, matters.

    Example:
        >>> features = {"observation_indices": range(27), "far_scale": 10.0}
        >>> kwargs = {"features_extractor_class": RelativeGoalExtractor, "features_extractor_kwargs": features}
        >>> agent = SAC("MultiInputPolicy", env, policy_kwargs=kwargs)
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        observation_indices: Sequence[int] | None = None,
        near_scale: float = 2.0,
        far_scale: float = 8.0,
        absolute_goals: bool = False,
    ) -> None:
        missing = {"observation", "achieved_goal", "desired_goal"} - set(getattr(observation_space, "spaces", {}))
        if missing:
            raise ValueError(f"RelativeGoalExtractor needs a goal observation, {sorted(missing)} missing")
        if near_scale <= 0 or far_scale <= 0:
            raise ValueError(f"near_scale and far_scale must be positive, got {near_scale} and {far_scale}")
        size, goal_dim = (int(np.prod(observation_space[key].shape or ())) for key in ("observation", "achieved_goal"))
        indices = list(range(size)) if observation_indices is None else list(observation_indices)
        if any(not 0 <= index < size for index in indices):
            raise ValueError(f"observation_indices must lie in 0..{size - 1}, got {indices}")
        super().__init__(observation_space, features_dim=len(indices) + goal_dim * (3 if absolute_goals else 1) + 2)
        self.near_scale, self.far_scale, self.absolute_goals = near_scale, far_scale, absolute_goals
        self.register_buffer("indices", th.tensor(indices, dtype=th.long), persistent=False)
        self.indices: th.Tensor

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """`(batch, features_dim)`."""
        achieved, desired = observations["achieved_goal"], observations["desired_goal"]
        delta = desired - achieved
        distance = delta.norm(dim=-1, keepdim=True)
        features = [
            observations["observation"][..., self.indices],
            delta / distance.clamp_min(1e-6),
            th.tanh(distance / self.near_scale),
            distance / self.far_scale,
        ]
        if self.absolute_goals:
            features += [achieved / self.far_scale, desired / self.far_scale]
        return th.cat(features, dim=-1)
