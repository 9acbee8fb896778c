"""What the labels and columns of the result tables are called on the pages and in the pictures."""

from __future__ import annotations

from typing import NamedTuple

OURS = "didi"
EQUAL = "didi-64-starts"  # ours, measured from as many start states as the rivals, for comparing
RECORDED = "behaviours"  # what a mixture was recorded from: no rival, but what imitation could reach

METHODS = {
    OURS: "DIDI, as in this library",
    EQUAL: "the same, measured from 64 start states",
    "contrastive": "InfoNCE in place of the discriminator",
    "metra": "METRA's objective in place of the discriminator",
    "entropy": "nearest-neighbour entropy in place of the discriminator",
    "bc-anchor": "imitation in place of the prior",
    "no-prior": "without the prior",
    **{f"ddim-{steps}": f"the prior's estimate in {steps} steps" for steps in (3, 5, 10)},
    "no-diversity": "without the diversity objective",
    "vae": "variational autoencoder of trajectories",
    "released": "the loss of the authors' released code",
    "joint": "the paper's form, with our networks",
    "unet-joint": "the paper's form, with its U-Nets",
    "prior-sampling": "plans sampled from the prior alone",
    "random-skills": "constant actions",
}
BEHAVIOURS = {
    OURS: "behaviour skills, the default",
    RECORDED: "the recorded policies themselves",
    "tuned": "behaviour skills, tuned by DIDI",
    "imitated": "behaviour skills, imitated for longer (control)",
    "unmerged": "behaviour skills, no clusters merged",
    "no-anchor": "DIDI alone",
}
STARTS = {"reset": "resets", "data": "held-out states", "push": "resets, with a push"}
LOOPS = {"ours": "this library", "plain": "plain PyTorch loop", "released": "released U-Net and loop"}


class Metric(NamedTuple):
    """How a column of a table is called, scaled and rounded."""

    title: str
    scale: float = 1.0
    digits: int = 2


IN_ONE_HORIZON = {
    "mutual_information_bits": Metric("information in one horizon, bits"),
    "fidelity": Metric("rollouts like the data, %", 100, 1),
    "spread_ratio": Metric("executed / planned spread"),
    "real_spread": Metric("executed spread", digits=3),
    "planned_spread": Metric("planned spread", digits=3),
    "open_loop_spread": Metric("spread without new plans", digits=3),
    "plan_error": Metric("error of plans", digits=3),
    "probe": Metric("probe (R^2 or accuracy)"),
    "contact": Metric("wall contact, %", 100, 1),
    "smoothness": Metric("change between actions", digits=3),
}
WHEN_HELD = {
    "held_information_bits": Metric("information when held, bits"),
    "held_fidelity": Metric("like the data when held, %", 100, 1),
    "held_distance": Metric("distance held"),
    "direction_error_degrees": Metric("direction error, degrees", digits=1),
    "falls": Metric("falls, %", 100, 1),
    "vendi": Metric("Vendi score, of 8"),
    "coverage": Metric("coverage, %", 100, 1),
    "training_seconds": Metric("training, s", digits=0),
}
CEILING = {"mutual_information_ceiling": Metric("ceiling of the information, bits")}
METRICS = {**CEILING, **IN_ONE_HORIZON, **WHEN_HELD}


def short(dataset: str) -> str:
    """A data set without its namespace and version."""
    return dataset.removeprefix("didi/").removesuffix("-v0")


def is_mixture(dataset: str) -> bool:
    """Whether skills of the data set are behaviours."""
    return "gaits" in dataset


def method(label: str, dataset: str = "") -> str:
    """A method in words: on a mixture of behaviours the default is another algorithm."""
    known = {**METHODS, **BEHAVIOURS} if is_mixture(dataset) else METHODS
    return known.get(label, label)
