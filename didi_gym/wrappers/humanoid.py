"""Gymnasium's Humanoid with the masses of MuJoCo 1.x, in which gaits that were trained then still walk."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv

DENSITY = 1000.0
"""Of every geom, in kg/m^3: MuJoCo's default."""


def light_capsule(radius: float, length: float) -> float:
    """The mass in kg that MuJoCo 1.x gave a capsule of so much cylinder, in m: its two half spheres, which have the
    volume of a cylinder of 4/3 r, counted as one of r."""
    return float(DENSITY * np.pi * radius**2 * (length + radius))


class LightHumanoidEnv(HumanoidEnv):
    """`Humanoid-v5` whose capsules have the masses of MuJoCo 1.x (`light_capsule`): 39.6 kg in place of 42.1 kg.

    Policies that were trained with MuJoCo 1.x, such as the gaits of Mania et al. (2018), fall within two seconds on
    `Humanoid-v5`, and walk here. Everything else is `Humanoid-v5`, with all its arguments. The registered id leaves
    inertias, forces and velocities of the parts out of the observation, which then has 45 numbers; 47 with
    `exclude_current_positions_from_observation=False`.

    Example:
        >>> import didi_gym, gymnasium
        >>> env = gymnasium.make("didi_gym/LightHumanoid-v0")
    """

    def _initialize_simulation(self) -> tuple[Any, Any]:
        # The model is changed in memory: no file, so nothing that processes could tread on.
        spec = mujoco.MjSpec.from_file(self.fullpath)
        sizes = spec.compile().geom_size  # of a capsule the radius and half the length, however the file gave them
        for geom, (radius, half, _) in zip(spec.geoms, sizes, strict=True):
            if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
                geom.mass = light_capsule(radius, 2 * half)
        model = spec.compile()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)  # as in MujocoEnv
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)
