"""Settings of training: frozen dataclasses that are the command line, the record of a run and its documentation."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.windows import MIN_WINDOW
from didi_gym.models.config import Count, Depth, Members, Noises, Rate, Share, UNetConfig, Weight, Width, settings


@settings
class PriorConfig:
    """Settings of the diffusion prior over trajectories."""

    steps: Count = 10_000
    """Gradient steps."""
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    """Peak of a cosine schedule that ends at zero."""
    network: Literal["mlp", "unet"] = "mlp"
    """The denoiser: `mlp`, over the whole trajectory at once; `unet`, the paper's, slower by far."""
    width: Width = 320
    depth: Depth = 3
    """Residual blocks of the MLP."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion_steps: Noises = 100
    """Noise levels T of the cosine schedule."""
    ema_decay: Share = 0.995

    @property
    def sizes(self) -> dict[str, Any]:
        """The numbers that `DiffusionPrior` is made from."""
        names = ("network", "width", "depth", "unet", "diffusion_steps")
        return {name: getattr(self, name) for name in names}


@settings
class DynamicsConfig:
    """Settings of the ensemble of one-step models that makes trajectories consistent during training."""

    steps: Count = 6_000
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    width: Width = 256
    members: Members = 3
    """Models in the ensemble; each trajectory is rolled out through one of them."""
    unroll: Count = 8
    """Environment steps a prediction is fed back into itself in the loss."""


@settings
class BehaviourConfig:
    """Settings of behaviour skills: how behaviours are found in the data, imitated and, where wanted, tuned by DIDI."""

    window: Annotated[int, Field(ge=MIN_WINDOW)] | None = None
    """Environment steps by which a behaviour is recognised; default: of 16, 32, 64, 128 and 256 those that tell
    behaviours apart best in this data."""
    stride: Count = 8
    """Steps from one window to the next."""
    components: Count = 32
    """Principal components of the windows' descriptions that are clustered."""
    rare: float = 0.33
    """A cluster with less than this share of an even split of the steps is not a behaviour (a start, a fall): each of
    its steps is given to the behaviour that comes next in the episode."""
    scout_steps: Count = 3_000
    """Gradient steps of the policy whose errors refine the segmentation, and of the window classifier."""
    merge_ratio: Annotated[float, Field(ge=1)] = 3.0
    """Two clusters are merged into one behaviour where switches mostly lead from one to the other, and the policy of
    either errs at most so many times as much on the other's data as the other's own policy (geometric mean); 1: none
    are merged."""
    smoothing: Count = 20
    """Steps over which a policy's action error is averaged when the segmentation is refined."""
    stay: Annotated[float, Field(ge=0.5, le=0.999)] = 0.85
    """Probability with which a behaviour goes on from one step to the next, as the refinement assumes."""
    steps: int = 14_000
    """Gradient steps of imitation, whose number matters more than anything else here; 0: discrete skills are learned by
    DIDI alone, as continuous ones are."""
    batch_size: Count = 512
    learning_rate: Rate = 1e-3
    weight: float = 20.0
    """Weight of imitation beside DIDI's objective, where that tunes the policy."""
    tuning_steps: Annotated[int, Field(ge=0)] = 0
    """Gradient steps of DIDI's objective after imitation (in place of `skills.steps`); none by default, since they were
    measured to change little (docs/decisions.md)."""
    tuning_rate: Rate = 1e-4
    """Its learning rate."""
    residual_target: float = 1.0
    """In place of `skills.residual_target` in tuning: skills that act as the data does need the prior only where they
    no longer do."""
    ema_decay: Share = 0.995


@settings
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
    steps: Count = 2_500
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    network: Literal["mlp", "unet"] = "mlp"
    """The policy's: see `PriorConfig.network`."""
    width: Width = 256
    depth: Depth = 3
    unet: UNetConfig = field(default_factory=UNetConfig)
    plans: Annotated[tuple[Count, ...], Field(min_length=1)] = (8, 4, 2, 1)
    """Plans that make up one trajectory in training, drawn from these per batch: plans are trained as they are
    executed, each to its first part. 1 is the paper's single pass; `consistency="joint"` always has one."""
    replan_every: Count | None = None
    """Environment steps that a finished policy executes of each plan, recorded in its `config.json`; default: the
    fewest that were trained, the horizon over the largest of `plans` (1 with `consistency="joint"`). Where there are
    several ways to one place (round a block on either side), a new plan at every step can waver between them."""
    diversity_weight: Weight = 1.0
    """Weight of the mutual-information lower bound."""
    residual_target: Weight = 0.6
    """Dual ascent holds the policy's denoising residual at this multiple of the data's own; 0 keeps the weight."""
    diversity_floor: float = 0.75
    """Share of z that the discriminator must explain (R^2, or mutual information over its ceiling) for dual ascent to
    raise the guidance weight: below it, a stronger prior would buy fidelity with collapsed skills."""
    guidance_weight: Weight = 3.0
    """Weight of the diffusion regulariser, at the start where dual ascent tunes it."""
    guidance_weight_max: float = 100.0
    dual_rate: Weight = 0.05
    noise_range: tuple[float, float] = (0.1, 0.7)
    """Noise levels at which the prior judges, as fractions of T."""
    estimate_steps: Count = 1
    """Denoiser calls that turn a noised trajectory into the one it is drawn to: 1, the mean of all that it may have
    been; more, by DDIM, one of those."""
    feature_noise: Weight = 0.25
    """Noise on the discriminator's input, in standard deviations of the data's features: what cannot be told apart at
    this resolution does not count as different."""
    feature_times: Count = 4
    """Instants, evenly spaced over the horizon, at which the discriminator looks."""
    discriminator_width: Width = 128
    ema_decay: Share = 0.99

    def __post_init__(self) -> None:
        low, high = self.noise_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"noise_range must satisfy 0 <= low < high <= 1, got {self.noise_range}")

    def executed(self, horizon: int) -> int:
        """Environment steps of each plan that a policy for `horizon` steps executes."""
        if self.replan_every is not None:
            return self.replan_every
        return 1 if self.consistency == "joint" else max(horizon // max(self.plans), 1)

    @property
    def discriminator_sizes(self) -> dict[str, Any]:
        """The numbers that `Discriminator` and `WindowClassifier` are made from."""
        return {"times": self.feature_times, "noise": self.feature_noise, "width": self.discriminator_width}


@settings
class TrainConfig:
    """All settings of `didi-gym train`."""

    skills: SkillConfig = field(default_factory=SkillConfig)
    behaviours: BehaviourConfig = field(default_factory=BehaviourConfig)
    """For discrete skills, which are found in the data unless `behaviours.steps` is 0."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    horizon: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Length H of a trajectory, in environment steps; default: for behaviour skills half of `behaviours.window` and at
    most 64, else what `TrajectoryDataset.suggest_horizon` finds."""
    imagine: bool = False
    """Train the dynamics model even where the skills do not need it, so that `SkillPolicy.plan` can imagine states and
    evaluation can compare them with what happens."""
    seed: int = 0

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
