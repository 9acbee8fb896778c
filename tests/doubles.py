"""Tiny scripted doubles: two environments, a policy, and a module to load it from. Nothing here imports torch."""

from __future__ import annotations

import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.skill_space import SkillSpace
from didi_gym.models.config import PolicyConfig


class ToyEnv(gym.Env):
    """A point that adds up its actions; rewards are random, an episode's length and kind of end are drawn at reset.

    Remembers what was done to it: `trace` holds (episode, action) of every step, `rewards_given` their sum of rewards.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    action_space: spaces.Box = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, longest: int = 20, shortest: int = 1, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-100.0, 100.0, (3,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.longest, self.shortest, self.render_mode = longest, shortest, render_mode
        self.trace: list[tuple[int, np.ndarray]] = []
        self.episode = 0
        self.closed = 0
        self.rewards_given = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.position = self.np_random.uniform(-1, 1, 2)
        self.steps_left = int(self.np_random.integers(self.shortest, self.longest + 1))
        self.ends_by_truncation = bool(self.np_random.random() < 0.5)
        return self._observation(), {"options": dict(options or {})}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.steps_left > 0, "stepped after the episode ended"
        assert self.action_space.contains(action)
        self.trace.append((self.episode, np.array(action)))
        self.position = np.clip(self.position + action, -50, 50)
        self.steps_left -= 1
        end = self.steps_left == 0
        reward = float(self.np_random.normal())
        self.rewards_given += reward
        info = {"left": self.steps_left}
        return self._observation(), reward, end and not self.ends_by_truncation, end and self.ends_by_truncation, info

    def _observation(self) -> Any:
        return np.array([*self.position, self.steps_left], dtype=np.float64)

    def render(self) -> Any:
        return np.zeros((4, 4, 3), dtype=np.uint8)

    def close(self) -> None:
        self.closed += 1


class ToyGoalEnv(ToyEnv):
    """A ToyEnv with a goal: reward 1 within 1 of it (`miss` elsewhere), which ends the episode unless `continuing`."""

    def __init__(
        self,
        longest: int = 40,
        shortest: int = 1,
        miss: float = 0.0,
        hit: float = 1.0,
        continuing: bool = False,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(longest, shortest, render_mode)
        self.miss, self.hit, self.continuing = miss, hit, continuing
        goal = spaces.Box(-100.0, 100.0, (2,), np.float64)
        self.observation_space = spaces.Dict(
            {"observation": self.observation_space, "achieved_goal": goal, "desired_goal": goal}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(seed=seed, options=options)
        self.goal = self.np_random.uniform(-4, 4, 2)
        return self._goal_observation(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, _, terminated, truncated, info = super().step(action)
        reward = float(self.compute_reward(self.position, self.goal, info))
        if reward == self.hit and not self.continuing:
            terminated, truncated, self.steps_left = True, False, 0
        return self._goal_observation(), reward, terminated, truncated, info

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        near = np.linalg.norm(achieved_goal - desired_goal, axis=-1) <= 1.0
        return np.where(near, self.hit, self.miss)

    def _goal_observation(self) -> dict[str, Any]:
        return {
            "observation": self._observation(),
            "achieved_goal": self.position.copy(),
            "desired_goal": self.goal.copy(),
        }


class ScriptedPolicy:
    """Plans action (t + sum of inputs) * skill, each row by itself; reads the first two numbers of the observation."""

    def __init__(
        self,
        kind: Any = "box",
        *,
        horizon: int = 8,
        skill_duration: int = 6,
        replan_every: int = 4,
        name_or_path: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.skill_space = SkillSpace(kind, 2)
        sources = (ObservationSource(3, (0, 1)), ObservationSource(3, (0, 1), ("observation",)))
        self.config = PolicyConfig(
            horizon=horizon,
            action_dim=2,
            layout=Layout(2, (0, 1), (0, 1), sources=sources),
            skill_space=self.skill_space,
            skill_duration=skill_duration,
            replan_every=replan_every,
            width=1,
            depth=1,
            env_id="Toy-v0",
        )
        self.action_low = np.full(2, -1, np.float32)
        self.action_high = np.full(2, 1, np.float32)
        self.name_or_path, self.revision = name_or_path, revision
        self.plans = 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def plan_actions(self, inputs: np.ndarray, skills: np.ndarray, steps: int | None = None) -> np.ndarray:
        steps = self.config.horizon if steps is None else steps
        assert inputs.dtype == np.float32 and inputs.shape == (len(skills), 2) and 1 <= steps <= self.config.horizon
        self.plans += 1
        phase = np.arange(steps)[None, :] + inputs.sum(axis=1, keepdims=True)
        return (np.sin(phase)[..., None] * 0.5 + skills[:, None] * 0.5).astype(np.float32)


def register_toys() -> None:
    """Register `Toy-v0` and `ToyGoal-v0`, without a checker and with a TimeLimit of 15."""
    for name, cls in {"Toy-v0": "ToyEnv", "ToyGoal-v0": "ToyGoalEnv"}.items():
        if name not in gym.registry:
            gym.register(name, entry_point=f"tests.doubles:{cls}", max_episode_steps=15)


def install_policies(monkeypatch: Any, **policies: ScriptedPolicy) -> list[tuple[str, str]]:
    """Let `SkillPolicy.from_pretrained` give `policies` by name; returns the list of (name, device) asked for."""
    asked: list[tuple[str, str]] = []

    def from_pretrained(name_or_path: Any, device: str = "auto") -> ScriptedPolicy:
        asked.append((str(name_or_path), device))
        return policies[str(name_or_path).partition("@")[0]]

    module = types.ModuleType("didi_gym.models.policy")
    module.SkillPolicy = type("SkillPolicy", (), {"from_pretrained": staticmethod(from_pretrained)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "didi_gym.models.policy", module)
    return asked
