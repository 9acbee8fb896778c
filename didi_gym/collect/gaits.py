"""Walking gaits for the Gymnasium Ant in every direction: a seeded quality-diversity search, sped up by symmetry.

A gait is open loop: each joint follows a sine, and a PD controller turns the tracking error into torque. Nothing is
rewarded but what the archive asks for, steady upright motion in *some* direction of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def measure(gait: np.ndarray, seed: int, *, steps: int, warmup: int, noise: float, env: Any = None) -> Motion:
    """Run a gait from rest in the simulator, with Gaussian action noise, and describe its motion."""
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
        action = pd_action(gait, 2 * np.pi * gait[-1] * i * CONTROL_PERIOD, qpos, qvel)
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


@dataclass(frozen=True)
class Elite:
    """A gait of the archive with every trial it went through."""

    gait: np.ndarray
    trials: tuple[Motion, ...]

    @property
    def score(self) -> float:
        """Mean over trials of the speed, less turning and tilting; a fall costs more than any speed is worth."""
        return float(np.mean([trial_score(trial) for trial in self.trials]))

    @property
    def direction(self) -> float:
        """Mean direction of motion in the body's frame, in rad."""
        return float(np.angle(sum(t.speed * np.exp(1j * t.direction) for t in self.trials)))

    @property
    def speed(self) -> float:
        """Mean speed in m/s of the trials without a fall."""
        return float(np.mean([t.speed for t in self.trials if not t.fell] or [0.0]))


FALL_SCORE, YAW_COST, TILT_COST, LEAP_COST, LEAP_HEIGHT = -1.0, 0.5, 1.0, 3.0, 0.85


def trial_score(trial: Motion) -> float:
    if trial.fell:
        return FALL_SCORE
    return trial.speed - YAW_COST * abs(trial.yaw_rate) - TILT_COST * (1 - trial.upright) - LEAP_COST * max(0.0, trial.peak - LEAP_HEIGHT)


def folded(gait: np.ndarray, direction: float) -> tuple[np.ndarray, float]:
    """Of the eight symmetric images of a gait, the one that moves between 0 and 45 degrees, and its direction."""
    quarters = int(np.floor(direction / (np.pi / 2)))
    gait, direction = turned(gait, -quarters), direction - quarters * np.pi / 2
    return (gait, direction) if direction <= np.pi / 4 else (turned(mirrored(gait), 1), np.pi / 2 - direction)


MUTATION = np.append(np.tile([0.25, 0.5, 0.2, 0.25, 0.5, 0.2], LEGS), 0.25)
"""Standard deviation of each parameter's change: half ranges, rad, Hz."""


def random_gait(rng: np.random.Generator) -> np.ndarray:
    legs = np.empty((LEGS, LEG_PARAMETERS))
    legs[:, [HIP_AMPLITUDE, ANKLE_AMPLITUDE]] = rng.uniform(0, 1.3, (LEGS, 2))
    legs[:, [HIP_PHASE, ANKLE_PHASE]] = rng.uniform(0, 2 * np.pi, (LEGS, 2))
    legs[:, [HIP_OFFSET, ANKLE_OFFSET]] = rng.normal(0, 0.4, (LEGS, 2))
    return np.append(legs.ravel(), rng.uniform(1.0, 3.5))


def offspring(rng: np.random.Generator, parent: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A mutated gait, half the time also moved along the line to or from another."""
    gait = parent + (rng.random() < 0.5) * 0.3 * rng.normal() * (other - parent)
    gait = gait + (rng.random(GAIT_SIZE) < 0.4) * rng.choice([0.3, 1.0]) * MUTATION * rng.normal(size=GAIT_SIZE)
    legs = gait[:-1].reshape(LEGS, LEG_PARAMETERS)
    legs[:, [HIP_AMPLITUDE, ANKLE_AMPLITUDE]] = np.clip(legs[:, [HIP_AMPLITUDE, ANKLE_AMPLITUDE]], -1.5, 1.5)
    legs[:, [HIP_OFFSET, ANKLE_OFFSET]] = np.clip(legs[:, [HIP_OFFSET, ANKLE_OFFSET]], -1, 1)
    return np.append(legs.ravel(), np.clip(gait[-1], 0.8, 3.5))


Trial = tuple[np.ndarray, int, int, int, float]
"""Arguments of one `measure`: gait, seed, steps, warmup, noise."""
QUICK, THOROUGH = (70, 30, 0.1), (120, 30, 0.12)
"""Steps, warm-up and action noise of a first trial and of those that decide."""


def search_gaits(
    run_trials: Callable[[list[Trial]], Iterable[Motion]],
    seed: int,
    *,
    search_steps: int,
    sectors: int = 3,
    elites: int = 6,
    batch: int = 96,
    random_batches: int = 4,
    report: Callable[[int], None] = lambda steps: None,
) -> list[list[Elite]]:
    """A MAP-Elites archive over the direction of motion, for directions from 0 to 45 degrees.

    The other 315 degrees follow by symmetry. Trials are noisy and gaits fragile, so a gait that looks good is tried
    thrice more before it may enter, and elites are tried again now and then: a lucky one does not stay.

    Args:
        run_trials: maps trials to their outcome, in order; where they run does not matter.
        search_steps: environment steps to spend, approximately.
        sectors: equal slices of the 45 degrees, with up to `elites` gaits each.
        report: called with the number of steps spent so far.
    """
    rng = np.random.default_rng(seed)
    archive: list[list[Elite]] = [[] for _ in range(sectors)]
    spent = batches = 0

    def run(gaits: list[np.ndarray], settings: tuple[int, int, float]) -> list[Motion]:
        nonlocal spent
        spent += len(gaits) * (settings[0] + settings[1])
        return list(run_trials([(gait, int(rng.integers(2**31)), *settings) for gait in gaits]))

    def retried(candidates: list[Elite], repeats: int) -> list[Elite]:
        motions = run([c.gait for c in candidates for _ in range(repeats)], THOROUGH)
        return [
            Elite(c.gait, (*c.trials, *motions[i * repeats : (i + 1) * repeats])) for i, c in enumerate(candidates)
        ]

    def file(candidates: list[Elite]) -> None:
        for candidate in candidates:
            archive[sector(candidate.direction)].append(candidate)
        for i, members in enumerate(archive):
            archive[i] = sorted(members, key=lambda e: -e.score)[:elites]

    def sector(direction: float) -> int:
        return int(np.clip(direction / (np.pi / 4) * sectors, 0, sectors - 1))

    def promising(motion: Motion, direction: float) -> bool:
        members = archive[sector(direction)]
        return trial_score(motion) > (members[-1].score if len(members) == elites else 0.0)

    while spent < search_steps:
        parents = [elite.gait for members in archive for elite in members]
        if batches < random_batches or not parents:
            gaits = [random_gait(rng) for _ in range(batch)]
        else:
            gaits = [offspring(rng, *(parents[i] for i in rng.integers(len(parents), size=2))) for _ in range(batch)]
        candidates = []
        for gait, motion in zip(gaits, run(gaits, QUICK), strict=True):
            gait, direction = folded(gait, motion.direction)
            if promising(motion, direction):
                candidates.append(Elite(gait, ()))  # the first trial was of another image: only later ones count
        again = [elite for members in archive for elite in members] if batches % 4 == 3 else []
        if again:
            archive = [[] for _ in range(sectors)]
        file(retried(candidates, 3))
        file(retried(again, 1))
        batches += 1
        report(spent)
    return [retried(members, 4) for members in archive]
