"""Walking gaits for the Gymnasium Ant: what they are, their symmetries, and how their motion is measured.

A gait is open loop: each joint follows a sine, and a PD controller turns the tracking error into torque.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LEGS = 4
"""Legs are numbered as joints are, counter-clockwise: hips at 45, 135, 225 and 315 degrees of the body."""
LEG_PARAMETERS = 6
"""Per leg: hip amplitude, phase, offset; ankle amplitude, phase, offset. Amplitude and offset in half joint ranges."""
HIP_AMPLITUDE, HIP_PHASE, HIP_OFFSET, ANKLE_AMPLITUDE, ANKLE_PHASE, ANKLE_OFFSET = range(LEG_PARAMETERS)
GAIT_SIZE = LEGS * LEG_PARAMETERS + 1
"""Numbers in a gait: the legs' parameters, then the frequency in Hz."""

ENV_ID = "Ant-v5"
ENV_KWARGS = {"include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False}
CONTROL_PERIOD = 0.05
"""Seconds per environment step of Ant-v5."""
HIP_HALF_RANGE = np.deg2rad(30)
ANKLE_CENTRE, ANKLE_HALF_RANGE = np.deg2rad(50), np.deg2rad(20)
ANKLE_SIGN = np.array([1.0, -1.0, -1.0, 1.0])
"""`ant.xml` turns the ankle axes of the second and the third leg the other way round."""
JOINT_OF_ACTUATOR = np.array([6, 7, 0, 1, 2, 3, 4, 5])
"""`ant.xml` lists the motors of the fourth leg first."""
STIFFNESS, DAMPING = 1.5, 0.12
"""PD gains: fraction of full torque per rad, and per rad/s."""
UPRIGHT = 0.3
"""An ant whose torso's up axis points less than this upwards has fallen, whatever its height."""


def joint_targets(gait: np.ndarray, phase: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Where the eight joints should be, in rad, and how fast they should move, in rad/s.

    Args:
        gait: (25,).
        phase: of the common clock, in rad.
        scale: of all amplitudes; 0 stands still.
    """
    legs, omega = gait[:-1].reshape(LEGS, LEG_PARAMETERS), 2 * np.pi * gait[-1]
    targets, speeds = np.empty((LEGS, 2)), np.empty((LEGS, 2))
    hip, ankle = phase + legs[:, HIP_PHASE], phase + legs[:, ANKLE_PHASE]
    hip_swing, ankle_swing = scale * legs[:, HIP_AMPLITUDE], scale * legs[:, ANKLE_AMPLITUDE]
    targets[:, 0] = HIP_HALF_RANGE * (legs[:, HIP_OFFSET] + hip_swing * np.sin(hip))
    speeds[:, 0] = HIP_HALF_RANGE * omega * hip_swing * np.cos(hip)
    lift = ANKLE_HALF_RANGE * (legs[:, ANKLE_OFFSET] + ankle_swing * np.sin(ankle))
    targets[:, 1] = ANKLE_SIGN * (ANKLE_CENTRE + lift)
    speeds[:, 1] = ANKLE_SIGN * ANKLE_HALF_RANGE * omega * ankle_swing * np.cos(ankle)
    return targets.ravel(), speeds.ravel()


def pd_action(gait: np.ndarray, phase: float, qpos: np.ndarray, qvel: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The action (8,) in [-1, 1] that tracks the gait from joint state `qpos[7:]`, `qvel[6:]`."""
    targets, speeds = joint_targets(gait, phase, scale)
    torque = STIFFNESS * (targets - qpos[7:15]) + DAMPING * (speeds - qvel[6:14])
    return np.clip(torque, -1.0, 1.0)[JOINT_OF_ACTUATOR]


def turned(gait: np.ndarray, quarters: int) -> np.ndarray:
    """The gait that does the same in a body frame turned by `quarters` times 90 degrees, counter-clockwise."""
    legs = gait[:-1].reshape(LEGS, LEG_PARAMETERS)
    return np.append(np.roll(legs, quarters, axis=0).ravel(), gait[-1])


def mirrored(gait: np.ndarray) -> np.ndarray:
    """The gait seen in a mirror along the body's x axis: direction d becomes -d, and so does the turning."""
    legs = gait[:-1].reshape(LEGS, LEG_PARAMETERS)[::-1].copy()
    legs[:, [HIP_AMPLITUDE, HIP_OFFSET]] *= -1
    return np.append(legs.ravel(), gait[-1])


def yaw_of(quaternion: np.ndarray) -> Any:
    """Yaw in rad of quaternions (..., 4) in the order w, x, y, z."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion), -1, 0)
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def up_of(quaternion: np.ndarray) -> Any:
    """How far the body's up axis points upwards, -1 to 1, for quaternions (..., 4) in the order w, x, y, z."""
    _, x, y, _ = np.moveaxis(np.asarray(quaternion), -1, 0)
    return 1 - 2 * (x * x + y * y)


def turn(vector: np.ndarray, angle: Any) -> np.ndarray:
    """Vectors (..., 2) turned counter-clockwise by `angle` rad."""
    x, y = np.moveaxis(np.asarray(vector), -1, 0)
    return np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=-1)


@dataclass(frozen=True)
class Motion:
    """What a gait was seen to do, averaged over whole steps after a warm-up."""

    direction: float
    """Of the velocity in the body's frame, in rad."""
    speed: float
    """Length of the mean velocity in the body's frame, in m/s."""
    yaw_rate: float
    """In rad/s."""
    upright: float
    """Mean of the torso's up axis, 1 = level."""
    peak: float
    """Greatest height of the torso, in m."""
    fell: bool


def measure(
    gait: np.ndarray, seed: int, *, steps: int, warmup: int, noise: float, scale: float = 1.0, env: Any = None
) -> Motion:
    """Run a gait, its amplitudes times `scale`, from rest in the simulator, with Gaussian action noise, and describe
    its motion."""
    import gymnasium as gym

    env = (env or gym.make(ENV_ID, **ENV_KWARGS)).unwrapped
    rng = np.random.default_rng(seed)
    env.reset(seed=int(rng.integers(2**31)))
    noises = noise * rng.standard_normal((warmup + steps, 8))
    path = np.empty((steps + 1, 7))
    for i in range(warmup + steps):
        qpos, qvel = env.data.qpos, env.data.qvel
        if i >= warmup:
            path[i - warmup] = qpos[:7]
        action = pd_action(gait, 2 * np.pi * gait[-1] * i * CONTROL_PERIOD, qpos, qvel, scale)
        env.do_simulation(np.clip(action + noises[i], -1, 1), env.frame_skip)
        if up_of(env.data.qpos[3:7]) < UPRIGHT or not 0.2 <= env.data.qpos[2] <= 1.0:
            return Motion(0.0, 0.0, 0.0, 0.0, 0.0, True)
    path[-1] = env.data.qpos[:7]
    yaw = np.unwrap(yaw_of(path[:, 3:7]))
    velocity = turn(np.diff(path[:, :2], axis=0), -yaw[:-1]).mean(0) / CONTROL_PERIOD
    yaw_rate = (yaw[-1] - yaw[0]) / (steps * CONTROL_PERIOD)
    direction = float(np.arctan2(velocity[1], velocity[0]))
    return Motion(
        direction,
        float(np.hypot(*velocity)),
        float(yaw_rate),
        float(up_of(path[:, 3:7]).mean()),
        float(path[:, 2].max()),
        False,
    )
