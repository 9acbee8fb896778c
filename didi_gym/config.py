"""What `config.json` of a policy folder records: a frozen dataclass that checks itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from didi_gym.files import in_short
from didi_gym.layout import Layout
from didi_gym.limits import (
    MAX_ACTION,
    MAX_DURATION,
    MAX_HORIZON,
    MAX_LEVELS,
    MAX_SKILL,
    MAX_WIDTH,
    require_between,
    require_positive,
    require_size,
)
from didi_gym.skills import SkillSpace

FORMAT_VERSION = 1
MODEL_TYPE = "didi"


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a temporal U-Net, where that is the network; as in DIDI's released code."""

    channels: int = 32
    """Channels that the multipliers multiply, and size of the embedded condition."""
    multipliers: tuple[int, ...] = (1, 4, 8)
    """One for each level. Between levels the horizon is halved, so each further one more than doubles how far a step
    sees: three see 141 steps to either side."""

    def __post_init__(self) -> None:
        require_between(self, "channels", 1, MAX_WIDTH)
        levels = self.multipliers
        if not 1 <= len(levels) <= MAX_LEVELS or not 1 <= min(levels) <= max(levels) <= MAX_WIDTH:
            raise ValueError(
                f"multipliers must be 1 to {MAX_LEVELS} numbers in [1, {MAX_WIDTH}], got {in_short(str(levels))}"
            )


@dataclass(frozen=True)
class PolicyConfig:
    """What `config.json` of a policy folder records."""

    horizon: int
    action_dim: int
    layout: Layout
    skill_space: SkillSpace
    skill_duration: int
    """Default environment steps per skill."""
    replan_every: int
    """Default environment steps executed of each plan."""
    width: int
    depth: int
    plan_length: int | None = None
    """Actions emitted by one pass of the network: the whole horizon where None (the paper's form), 1 for a feedback
    policy a = pi(observation, z)."""
    consistency: Literal["dynamics", "joint"] = "dynamics"
    network: Literal["mlp", "unet"] = "mlp"
    """`mlp`: of `width` and `depth`; `unet`: the paper's temporal U-Net, of the sizes in `unet`."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    discrete_actions: bool = False
    """The environment's actions are `Discrete(action_dim)`: of an action's numbers, the largest names what is done."""
    dataset_id: str | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    model_type: str = MODEL_TYPE
    format_version: int = FORMAT_VERSION
    didi_gym_version: str = ""

    def __post_init__(self) -> None:
        require_positive(self, "replan_every")
        require_between(self, "horizon", 1, MAX_HORIZON)
        require_between(self, "action_dim", 1, MAX_ACTION)
        require_between(self, "skill_duration", 1, MAX_DURATION)
        require_size(self)
        require_between(self.skill_space, "size", 1, MAX_SKILL)
        if not 1 <= self.actions_per_plan <= self.horizon:
            raise ValueError(f"plan_length must be in 1..{self.horizon}, the horizon, got {self.plan_length}")
        if self.replan_every > self.actions_per_plan:
            raise ValueError(f"replan_every {self.replan_every} exceeds the {self.actions_per_plan} actions of a plan")
        if self.consistency == "joint" and self.actions_per_plan != self.horizon:
            raise ValueError('consistency="joint" emits whole trajectories: leave plan_length out')
        if self.layout.heading is not None:
            self.skill_space.require_rotatable()

    @property
    def actions_per_plan(self) -> int:
        """`plan_length`, or the horizon where that is None."""
        return self.horizon if self.plan_length is None else self.plan_length
