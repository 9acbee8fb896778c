"""A reward-free humanoid data set: fifteen gaits by other authors, recorded in the body that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.core.environments import LIGHT_HUMANOID
from didi_gym.core.layout import Heading
from didi_gym.data.generators.agents import collect_from_agents
from didi_gym.data.generators.behaviours import find_gaits

STEADY = (
    "almost_fall_over",
    "arm_swing",
    "average_one",
    "cs285-Humanoid",
    "galloping",
    "hop_leg_kick",
    "jumping",
    "limp_arms_up",
    "policy_reward_11600",
    "stiff_leg_hop",
    "tiptoe",
)
"""Forwards; most episodes last as long as they may."""
UNSTEADY = ("hop_one_leg_sideways", "hunched_sideways", "run_backwards", "spin-9363")
"""Sideways to the left and to the right, backwards, and in circles, which ends in a fall within 400 steps."""
HEADING = Heading(quaternion=(3, 4, 5, 6), vectors=((0, 1), (24, 25)))
"""Of observations of 47 numbers: position and orientation (7), joints (17), velocities in the world and of turning (6),
velocities of the joints (17)."""
EPISODE_STEPS = 400
"""Short, so that there are many starts, from which a humanoid first has to find its gait."""
NOISE = 0.05
"""Of half the action range."""


def whole_observation(env: Any) -> np.ndarray:
    """What `Humanoid-v2` showed, (376,): positions without x and y, velocities, inertias and velocities of the parts,
    forces of the actuators and of contacts, all with the entries of the world."""
    data = env.unwrapped.data
    parts = (data.qpos[2:], data.qvel, data.cinert, data.cvel, data.qfrc_actuator, data.cfrc_ext)
    return np.concatenate([part.ravel() for part in parts])


def collect_humanoid_gaits(
    dataset_id: str = "didi/humanoid-gaits-v0",
    *,
    agents: Path | str,
    steps: int = 300_000,
    seed: int = 0,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Record `STEADY` and `UNSTEADY` gaits in `didi_gym/LightHumanoid-v0`, one in each episode, all equally long.

    The policies read 376 numbers; recorded are 47, in which skills see the body in its own heading. Labels serve
    evaluation only; see `collect_from_agents`.

    Args:
        agents: folder with a policy for each gait, `GAIT.npz` or `ANYTHING-GAIT.npz`; others are left out.
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        BehaviourError: a gait is missing or cannot be read.
        FileExistsError: the data set exists and `overwrite` is not set.
    """
    return collect_from_agents(
        LIGHT_HUMANOID,
        agents,
        dataset_id=dataset_id,
        body="Humanoid",
        reads=whole_observation,
        only=find_gaits(agents, (*STEADY, *UNSTEADY)),
        steps=steps,
        heading=HEADING,
        noise=NOISE,
        episode_steps=EPISODE_STEPS,
        seed=seed,
        processes=processes,
        overwrite=overwrite,
        progress=progress,
    )
