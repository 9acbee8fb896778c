"""Settings of training: frozen dataclasses that are the command line, the record of a run and its documentation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from didi_gym.config import UNetConfig
from didi_gym.data import TrajectoryDataset
from didi_gym.limits import (
    MAX_DIFFUSION_STEPS,
    MAX_HORIZON,
    MAX_MEMBERS,
    MAX_WIDTH,
    require_between,
    require_positive,
    require_size,
)
from didi_gym.skills import SkillSpace
from didi_gym.windows import MIN_WINDOW


@dataclass(frozen=True)
class PriorConfig:
    """Settings of the diffusion prior over trajectories."""

    steps: int = 10_000
    """Gradient steps."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Peak of a cosine schedule that ends at zero."""
    network: Literal["mlp", "unet"] = "mlp"
    """The denoiser: `mlp`, over the whole trajectory at once; `unet`, the paper's, slower by far."""
    width: int = 320
    depth: int = 3
    """Residual blocks of the MLP."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion_steps: int = 100
    """Noise levels T of the cosine schedule."""
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "learning_rate", "width", "depth")
        require_between(self, "ema_decay", 0, 1)
        require_size(self)
        if self.diffusion_steps < 2:
            raise ValueError(f"diffusion_steps must be at least 2, got {self.diffusion_steps}")
        require_between(self, "diffusion_steps", 2, MAX_DIFFUSION_STEPS)

    @property
    def sizes(self) -> dict[str, Any]:
        """The numbers that `DiffusionPrior` is made from."""
        names = ("network", "width", "depth", "unet", "diffusion_steps")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DynamicsConfig:
    """Settings of the ensemble of one-step models that makes trajectories consistent during training."""

    steps: int = 6_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    width: int = 256
    members: int = 3
    """Models in the ensemble; each trajectory is rolled out through one of them."""
    unroll: int = 8
    """Environment steps a prediction is fed back into itself in the loss."""

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "learning_rate", "width", "members", "unroll")
        require_size(self)
        require_between(self, "members", 1, MAX_MEMBERS)


@dataclass(frozen=True)
class BehaviourConfig:
    """Settings of behaviour skills: how behaviours are found in the data, imitated and, where wanted, tuned by DIDI."""

    window: int = 32
    """Environment steps by which a behaviour is recognised."""
    stride: int = 8
    """Steps from one window to the next."""
    components: int = 32
    """Principal components of the windows' descriptions that are clustered."""
    rare: float = 0.33
    """A cluster with less than this share of an even split of the steps is not a behaviour (a start, a fall): each of
    its steps is given to the behaviour that comes next in the episode."""
    scout_steps: int = 3_000
    """Gradient steps of the policy whose errors refine the segmentation, and of the window classifier."""
    merge_ratio: float = 3.0
    """Two clusters are merged into one behaviour where switches mostly lead from one to the other, and the policy of
    either errs at most so many times as much on the other's data as the other's own policy (geometric mean); 1: none
    are merged."""
    smoothing: int = 20
    """Steps over which a policy's action error is averaged when the segmentation is refined."""
    stay: float = 0.85
    """Probability with which a behaviour goes on from one step to the next, as the refinement assumes."""
    steps: int = 14_000
    """Gradient steps of imitation, whose number matters more than anything else here; 0: discrete skills are learned by
    DIDI alone, as continuous ones are."""
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight: float = 20.0
    """Weight of imitation beside DIDI's objective, where that tunes the policy."""
    tuning_steps: int = 0
    """Gradient steps of DIDI's objective after imitation (in place of `skills.steps`); none by default, since they were
    measured to change little (docs/decisions.md)."""
    tuning_rate: float = 1e-4
    """Its learning rate."""
    residual_target: float = 1.0
    """In place of `skills.residual_target` in tuning: skills that act as the data does need the prior only where they
    no longer do."""
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        names = ("stride", "components", "scout_steps", "smoothing", "batch_size", "learning_rate", "tuning_rate")
        require_positive(self, *names)
        require_between(self, "ema_decay", 0, 1)
        require_between(self, "stay", 0.5, 0.999)
        if self.merge_ratio < 1:
            raise ValueError(f"merge_ratio must be at least 1, which merges none, got {self.merge_ratio}")
        if self.tuning_steps < 0:
            raise ValueError(f"tuning_steps must not be negative, got {self.tuning_steps}")
        if self.window < MIN_WINDOW:
            raise ValueError(f"window must be at least {MIN_WINDOW} environment steps, got {self.window}")


@dataclass(frozen=True)
class SkillConfig:
    """Settings of the skills and of DIDI's objective: contextual policy and discriminator under the diffusion prior."""

    skill_space: SkillSpace = field(default_factory=lambda: SkillSpace("ball", 2))
    """Continuous skills for data that varies continuously (directions, goals); `discrete` for a mixture of behaviours
    (gaits): ask for about one and a half times as many as there are, since rare and duplicate clusters are merged."""
    plan_length: int | None = None
    """Actions one pass of the policy emits; default: the horizon, for behaviour skills 1 (a feedback policy)."""
    consistency: Literal["dynamics", "joint"] = "dynamics"
    """`dynamics`: states follow from the actions through the learned dynamics; `joint`: the paper's form, the policy
    emits states beside actions."""
    steps: int = 2_500
    batch_size: int = 128
    learning_rate: float = 1e-3
    network: Literal["mlp", "unet"] = "mlp"
    """The policy's: see `PriorConfig.network`."""
    width: int = 256
    depth: int = 3
    unet: UNetConfig = field(default_factory=UNetConfig)
    plans: tuple[int, ...] = (8, 4, 2, 1)
    """Plans that make up one trajectory in training, drawn from these per batch: plans are trained as they are
    executed, each to its first part. 1 is the paper's single pass; `consistency="joint"` always has one."""
    diversity_weight: float = 1.0
    """Weight of the mutual-information lower bound."""
    residual_target: float = 0.6
    """Dual ascent holds the policy's denoising residual at this multiple of the data's own; 0 keeps the weight."""
    diversity_floor: float = 0.75
    """Share of z that the discriminator must explain (R^2, or mutual information over its ceiling) for dual ascent to
    raise the guidance weight: below it, a stronger prior would buy fidelity with collapsed skills."""
    guidance_weight: float = 3.0
    """Weight of the diffusion regulariser, at the start where dual ascent tunes it."""
    guidance_weight_max: float = 100.0
    dual_rate: float = 0.05
    noise_range: tuple[float, float] = (0.1, 0.7)
    """Noise levels at which the prior judges, as fractions of T."""
    feature_noise: float = 0.25
    """Noise on the discriminator's input, in standard deviations of the data's features: what cannot be told apart at
    this resolution does not count as different."""
    feature_times: int = 4
    """Instants, evenly spaced over the horizon, at which the discriminator looks."""
    discriminator_width: int = 128
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "learning_rate", "width", "depth", "discriminator_width")
        require_between(self, "ema_decay", 0, 1)
        require_size(self)
        require_between(self, "discriminator_width", 1, MAX_WIDTH)
        require_positive(self, "feature_times")
        if not self.plans or min(self.plans) < 1:
            raise ValueError(f"plans must name at least one positive number, got {self.plans}")
        low, high = self.noise_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"noise_range must satisfy 0 <= low < high <= 1, got {self.noise_range}")
        for name in ("diversity_weight", "residual_target", "guidance_weight", "feature_noise", "dual_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def discriminator_sizes(self) -> dict[str, Any]:
        """The numbers that `Discriminator` and `WindowClassifier` are made from."""
        return {"times": self.feature_times, "noise": self.feature_noise, "width": self.discriminator_width}


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `didi-gym train`."""

    skills: SkillConfig = field(default_factory=SkillConfig)
    behaviours: BehaviourConfig = field(default_factory=BehaviourConfig)
    """For discrete skills, which are found in the data unless `behaviours.steps` is 0."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    horizon: int | None = None
    """Length H of a trajectory, in environment steps; default: for behaviour skills half of `behaviours.window`, else
    what `TrajectoryDataset.suggest_horizon` finds."""
    imagine: bool = False
    """Train the dynamics model even where the skills do not need it, so that `SkillPolicy.plan` can imagine states and
    evaluation can compare them with what happens."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.horizon is not None:
            require_between(self, "horizon", 2, MAX_HORIZON)

    @property
    def learns_behaviours(self) -> bool:
        """Whether skills are behaviours found in the data (`train_behaviours`) rather than learned by DIDI alone."""
        skills = self.skills
        return skills.skill_space.is_discrete and self.behaviours.steps > 0 and skills.consistency == "dynamics"

    @property
    def needs_prior(self) -> bool:
        """Whether any stage uses the diffusion prior: DIDI does, and imitation alone does not."""
        return not self.learns_behaviours or self.behaviours.tuning_steps > 0

    @property
    def needs_dynamics(self) -> bool:
        """Whether any stage uses the dynamics model."""
        return self.imagine or (self.needs_prior and self.skills.consistency == "dynamics")

    def with_horizon_for(self, dataset: TrajectoryDataset) -> TrainConfig:
        """These settings with the horizon decided: the default for behaviour skills asks that half of the episodes are
        as long."""
        if self.horizon is not None:
            return self
        rhythm = self.behaviours.window // 2
        suits = self.learns_behaviours and (dataset.lengths >= rhythm).mean() >= 0.5
        return replace(self, horizon=rhythm if suits else dataset.suggest_horizon())
