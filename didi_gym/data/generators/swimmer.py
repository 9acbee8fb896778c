"""A reward-free Swimmer data set: waves along the body that swim straight or in curves, forwards or backwards."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from didi_gym.core.layout import Layout, LayoutChoice, ObservationSource
from didi_gym.core.progress import Report
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.generators.parallel import OrderedMap, ordered_map
from didi_gym.data.generators.parts import resumable
from didi_gym.data.writing import Episode, require_writable, write_dataset

ENV_ID = "Swimmer-v5"
ENV_KWARGS = {"exclude_current_positions_from_observation": False}
JOINTS, JOINT_VELOCITIES = slice(3, 5), slice(8, 10)
"""Where an observation holds the angles of the two joints, in rad, and their velocities."""
EPISODE_STEPS = 500
PERIOD = (28, 40)
"""Steps of a stroke, a bit more than a second."""
AMPLITUDE = (0.7, 1.0)
"""rad by which both joints swing, a quarter of a stroke apart."""
MAX_BEND = 1.2
"""rad about which they swing at most: the body then turns by up to 17 degrees a second."""
STRAIGHT_SHARE = 0.3
"""Share of stretches without a bend."""
STIFFNESS, DAMPING = 2.0, 0.2
"""PD gains of the joints: action per rad, and per rad a second."""
MAX_NOISE = 0.2
"""An episode's action noise has a standard deviation drawn between 0 and this."""
SWITCH_PROBABILITY = 1 / 40
"""Chance per step that another way of swimming begins."""


@dataclass(frozen=True)
class Stroke:
    """A way of swimming."""

    way: int
    """1: the wave runs to the tail, and the body goes forwards; -1: to the head, backwards."""
    bend: float
    amplitude: float
    period: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Stroke:
        bend = 0.0 if rng.random() < STRAIGHT_SHARE else float(rng.uniform(-MAX_BEND, MAX_BEND))
        return Stroke(int(rng.choice([-1, 1])), bend, rng.uniform(*AMPLITUDE), rng.uniform(*PERIOD))

    def torque(self, phase: float, joints: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Torques (2,) in [-1, 1] from the joints' angles and angular velocities, (2,) each."""
        swing = np.array([np.sin(phase), np.sin(phase - self.way * np.pi / 2)])
        return np.clip(STIFFNESS * (self.amplitude * swing + self.bend - joints) - DAMPING * velocities, -1, 1)


def swimmer_layout() -> Layout:
    """What the ten numbers of a Swimmer's state hold: position, angles of body and joints, and their velocities.

    Position and velocity turn with the body's angle: skills are directions in the world. The policy also reads the
    eight numbers that `Swimmer-v5` shows by default.
    """
    choice = LayoutChoice(features=(0, 1), relative=(0, 1), heading_angle=(2,), heading_vectors=((0, 1), (5, 6)))
    layout = choice.complete(ObservationSource(10, tuple(range(10))))
    without_position = ObservationSource(8, tuple(range(8)), angles=(0,))
    return replace(layout, sources=(*layout.sources, without_position))


def collect_swimmer(
    dataset_id: str = "didi/swimmer-directions-v0",
    *,
    steps: int = 100_000,
    seed: int = 0,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Swim about in waves, and write what was seen as a Minari data set.

    A wave runs along the body towards the tail or towards the head, with a bend to one side or none, and both change at
    random. Observations are (10,), the position included. The infos `way` (T + 1,), 1 forwards and -1 backwards, and
    `bend` (T + 1,) hold what is being done, and the episode's labels what it began with.
    The same arguments give the same data, whatever the number of processes.

    Args:
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        FileExistsError: the data set exists and `overwrite` is not set.
    """
    require_writable(dataset_id, overwrite=overwrite)
    with progress_of("swimming", steps, progress) as report, ordered_map(processes) as run:
        episodes = swim(seed, steps=steps, run=resumable(run, dataset_id), report=report)
    return write_dataset(
        dataset_id,
        episodes,
        env_spec=_env().spec,
        layout=swimmer_layout(),
        algorithm_name="waves along the body, straight and bent, forwards and backwards",
        description=f"{ENV_ID}: swimming straight and in curves; collected without regard to rewards.",
        requirements=["mujoco"],
        overwrite=overwrite,
    )


def swim(seed: int, *, steps: int, run: OrderedMap = map, report: Report = lambda done, metrics: None) -> list[Episode]:
    """Episodes of `EPISODE_STEPS` steps, `steps` in all, each from its own seed."""
    count = -(-steps // EPISODE_STEPS)
    seeds = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(count)]
    episodes, total = [], 0
    for episode in run(swim_episode, seeds):
        episodes.append(episode.head(steps - total))
        total += len(episodes[-1])
        report(total, {})
    return episodes


def swim_episode(seed: int) -> Episode:
    """One episode of swimming, from a reset."""
    env, rng = _env(), np.random.default_rng(seed)
    noise, phase = rng.uniform(0, MAX_NOISE), rng.uniform(0, 2 * np.pi)
    stroke = Stroke.draw(rng)
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, doing = [observation], [], [], []
    for _ in range(EPISODE_STEPS):
        if rng.random() < SWITCH_PROBABILITY:
            stroke = Stroke.draw(rng)
        torque = stroke.torque(phase, observation[JOINTS], observation[JOINT_VELOCITIES])
        action = np.clip(torque + noise * rng.standard_normal(2), -1, 1).astype(np.float32)
        observation, reward, _, _, _ = env.step(action)
        phase += 2 * np.pi / stroke.period
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        doing.append((stroke.way, stroke.bend))
    ways, bends = np.array([*doing, doing[-1]]).T
    labels = {"way": int(ways[0]), "bend": float(bends[0]), "noise": noise}
    infos = {"way": ways.astype(np.int64), "bend": bends}
    return Episode(np.array(observations), np.array(actions), np.array(rewards), False, seed, labels, infos)


@functools.cache
def _env() -> Any:
    import gymnasium as gym

    return gym.make(ENV_ID, **ENV_KWARGS)
