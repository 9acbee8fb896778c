"""Transitions of another agent in a replay buffer: learning begins from what that agent does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from didi_gym.core.env_rows import Step


def store_transitions(agent: OffPolicyAlgorithm) -> Callable[[int, Any, Any, Step], None]:
    """A function that puts every decision it is given into the agent's replay buffer.

    It takes what `didi_gym.planning.SkillGraph.learn` gives to `on_step`: the index of the environment, the
    observation, the action, and what came of it. Both need as many environments, with the same spaces; transitions of
    different environments are stored together once each has one, as the buffer wants them.

    Args:
        agent: SAC, TD3, DQN or their kin, with any replay buffer of `didi_gym.sb3` or of Stable-Baselines3.

    Raises:
        TypeError: an agent without a replay buffer; when called, ValueError for decisions out of turn or actions of
            another shape.

    Example:
        >>> graph = SkillGraph(didi_gym.make("AntMaze_Medium-v5", "ant-directions", skill_duration=8))
        >>> agent = SAC("MultiInputPolicy", graph.env, replay_buffer_class=SkillHerReplayBuffer, learning_starts=0)
        >>> graph.learn(50_000, on_step=store_transitions(agent))
        >>> agent.learn(10_000)
    """
    if getattr(agent, "replay_buffer", None) is None:
        raise TypeError(
            f"expected an agent with a replay buffer (SAC, TD3, DQN), got {type(agent).__name__}; agents without one "
            "learn from nothing but what they do themselves"
        )
    waiting: dict[int, tuple[Any, Any, Step]] = {}

    def store(row: int, observation: Any, action: Any, step: Step) -> None:
        if row in waiting or row >= agent.n_envs:
            raise ValueError(
                f"the agent has {agent.n_envs} environments, and each must take one decision before any takes another; "
                f"got a decision of number {row}"
            )
        if np.shape(action) != agent.action_space.shape:
            raise ValueError(
                f"expected actions of shape {agent.action_space.shape}, as the agent's are, got {np.shape(action)}: "
                "make both environments with the same skills and durations"
            )
        waiting[row] = (observation, action, step)
        if len(waiting) < agent.n_envs:
            return
        observations, actions, steps = zip(*(waiting[row] for row in sorted(waiting)), strict=True)
        waiting.clear()
        infos = [{**s.info, "TimeLimit.truncated": s.truncated and not s.terminated} for s in steps]
        acted = np.stack([np.asarray(action) for action in actions])
        if hasattr(agent.policy, "scale_action") and acted.dtype.kind == "f":
            acted = agent.policy.scale_action(acted)
        agent.replay_buffer.add(  # type: ignore[union-attr]
            _stacked(observations),
            _stacked([s.observation for s in steps]),
            acted,
            np.array([s.reward for s in steps]),
            np.array([s.ended for s in steps]),
            infos,
        )

    return store


def _stacked(observations: Any) -> Any:
    first = observations[0]
    if isinstance(first, dict):
        return {key: np.stack([one[key] for one in observations]) for key in first}
    return np.stack(observations)
