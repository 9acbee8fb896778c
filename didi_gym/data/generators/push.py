"""A reward-free FetchPush data set: pushing the block about in eight directions, and going round it in several ways."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from didi_gym.core.layout import Layout, LayoutChoice, ObservationSource
from didi_gym.core.progress import Report
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.generators.parallel import OrderedMap, ordered_map
from didi_gym.data.generators.parts import resumable
from didi_gym.data.generators.recording import record_until, robotics_env
from didi_gym.data.writing import Episode, require_writable, write_dataset

ENV_ID = "FetchPush-v4"
OBSERVATION_KEYS = ("observation",)
EPISODE_STEPS = 100
"""Room for three or four pushes, so that the data shows how one follows another."""
DIRECTIONS = np.arange(8) * np.pi / 4
"""Of a push, in rad: 0 is +x, away from the robot, and a quarter turn is +y, to its left."""
APPROACHES = ("counterclockwise", "clockwise", "over")
"""Ways of the hand to the far side of the block."""
MAX_NOISE = 0.2
"""An episode's action noise has a standard deviation drawn between 0 and this."""
REACH = (0.06, 0.14)
"""m that a push moves the block before the next begins."""
SPEED = (0.3, 0.7)
"""Largest action of a push; 1 moves the hand 3 cm in a step."""
OFFSET, HEIGHT = 0.012, (-0.005, 0.015)
"""m by which the hand meets the block beside its middle at most, and above it."""
MISS_SHARE, MISS_OFFSET = 0.1, 0.04
"""Share of pushes that are aimed further beside the middle, up to this: they slip off, and the next makes up for it."""
SWITCH_PROBABILITY = 1 / 60
"""Chance per step that another push begins before this one is done."""
PATIENCE = 45
"""Steps after which a push is given up."""
RADIUS, BEHIND, OVER = 0.11, 0.08, 0.12
"""m: from the block's middle on the way round it, where a push begins, and above it on the way over."""
FALLEN = 0.4
"""m of height below which the block has left the table: an episode ends there."""
GAIN = 10.0
"""Action per m that the hand is from where it should be."""
AREA = ((1.15, 0.5), (1.48, 1.0))
"""Corners (x, y) between which pushes lead: the table, as far as the arm reaches, less a margin."""


@dataclass(frozen=True)
class Push:
    """One push, from wherever the hand is."""

    direction: int
    """Of `DIRECTIONS`."""
    approach: int
    """Of `APPROACHES`."""
    angle: float
    """rad, the direction with a jitter of a few degrees."""
    reach: float
    speed: float
    offset: float
    """m to the left of the block's middle, seen in the direction of the push."""
    height: float

    @staticmethod
    def draw(block: np.ndarray, rng: np.random.Generator) -> Push:
        """A random push that keeps the block in `AREA`, where one does: away from the nearest edge otherwise."""
        ends = block[:2] + REACH[1] * np.stack([np.cos(DIRECTIONS), np.sin(DIRECTIONS)], axis=1)
        outside = np.maximum(np.maximum(AREA[0] - ends, ends - AREA[1]), 0).sum(1)
        direction = int(rng.choice(np.flatnonzero(outside <= outside.min())))
        most = MISS_OFFSET if rng.random() < MISS_SHARE else OFFSET
        return Push(
            direction,
            int(rng.integers(len(APPROACHES))),
            DIRECTIONS[direction] + rng.uniform(-1, 1) * np.pi / 24,
            rng.uniform(*REACH),
            rng.uniform(*SPEED),
            rng.uniform(-most, most),
            rng.uniform(*HEIGHT),
        )


class Pusher:
    """The hand's way of doing one push: get behind the block, then push it."""

    def __init__(self, push: Push, block: np.ndarray) -> None:
        self.push, self.begin, self.steps, self.pushing, self.passed = push, block[:2].copy(), 0, False, False
        self.ahead = np.array([np.cos(push.angle), np.sin(push.angle)])
        self.left = np.array([-self.ahead[1], self.ahead[0]])

    def done(self, block: np.ndarray) -> bool:
        """Whether the block, (3,), is as far as it should be, or this has taken too long."""
        return bool((block[:2] - self.begin) @ self.ahead >= self.push.reach) or self.steps >= PATIENCE

    def act(self, hand: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Where the hand moves next, (3,) in [-1, 1], from the places (3,) of hand and block."""
        self.steps += 1
        push, away = self.push, hand[:2] - block[:2]
        low = block[2] + push.height
        start = push.offset * self.left - BEHIND * self.ahead
        aside = (away - start) @ self.left
        if not self.pushing and abs(aside) < 0.012 and away @ self.ahead < -0.05 and hand[2] < low + 0.02:
            self.pushing, self.begin = True, block[:2].copy()
        if self.pushing:
            goal = np.array([*(hand[:2] + 0.1 * self.ahead - 0.8 * aside * self.left), low])
            return np.clip(GAIN * (goal - hand), -push.speed, push.speed)
        if push.approach == APPROACHES.index("over"):
            goal = self._over(hand, block, start, low)
        else:
            goal = self._round(hand, block, start, low)
        return np.clip(GAIN * (goal - hand), -1, 1)

    def _over(self, hand: np.ndarray, block: np.ndarray, start: np.ndarray, low: float) -> np.ndarray:
        goal = block[:2] + start
        if np.linalg.norm(hand[:2] - goal) < 0.025:
            return np.array([*goal, low])
        clear = hand[2] > block[2] + 0.07 or np.linalg.norm(hand[:2] - block[:2]) > 0.15
        return np.array([*(goal if clear else hand[:2]), block[2] + OVER])

    def _round(self, hand: np.ndarray, block: np.ndarray, start: np.ndarray, low: float) -> np.ndarray:
        away = hand[:2] - block[:2]
        distance, here = float(np.linalg.norm(away)), float(np.arctan2(away[1], away[0]))
        there, sense = float(np.arctan2(start[1], start[0])), 1 if self.push.approach == 0 else -1
        left = (sense * (there - here)) % (2 * np.pi)
        if left < np.pi / 5 or left > 2 * np.pi - np.pi / 5:  # there, or just past it
            return np.array([*(block[:2] + start), low])
        ahead = here + sense * min(left, np.pi / 4)
        clear = distance > RADIUS - 0.03
        goal = block[:2] + max(RADIUS, min(distance, 0.14)) * np.array([np.cos(ahead), np.sin(ahead)])
        if not clear:  # away from it first
            goal = block[:2] + RADIUS * np.array([np.cos(here), np.sin(here)])
        return np.array([*goal, low if clear else max(hand[2], low)])


def push_layout() -> Layout:
    """What the 25 numbers of FetchPush's `observation` hold.

    Skills differ in where the block is. Places on the table count from where a trajectory begins: only where the block
    is seen from the hand matters to a push. The block's yaw is an angle.
    """
    choice = LayoutChoice(features=(3, 4), relative=(0, 1, 3, 4), angles=(13,))
    return choice.complete(ObservationSource(25, tuple(range(25)), OBSERVATION_KEYS))


def collect_push(
    dataset_id: str = "didi/push-v0",
    *,
    steps: int = 100_000,
    seed: int = 0,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Push the block of FetchPush about, and write what was seen as a Minari data set.

    One push follows another within an episode: each in a random one of eight directions, after the hand has gone round
    the block on one side, on the other, or over it. Speed, height, and how far beside its middle the block is met
    differ; some pushes slip off, and some are broken off. The infos `direction` and `approach` (T + 1,) hold the
    numbers of what is being done, and the episode's labels those of its first push; `DIRECTIONS` and `APPROACHES` say
    what they mean. The environment's `desired_goal` and rewards belong to its own goal, which the behaviour ignores.
    The same arguments give the same data, whatever the number of processes.

    Args:
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        FileExistsError: the data set exists and `overwrite` is not set.
        ImportError: gymnasium-robotics is missing.
    """
    spec = _env().spec
    require_writable(dataset_id, overwrite=overwrite)
    with progress_of("pushing", steps, progress) as report, ordered_map(processes) as run:
        episodes = push_about(seed, steps=steps, run=resumable(run, dataset_id), report=report)
    return write_dataset(
        dataset_id,
        episodes,
        env_spec=spec,
        layout=push_layout(),
        keys=OBSERVATION_KEYS,
        algorithm_name="scripted pushes in eight directions, three ways round the block",
        description=f"{ENV_ID}: pushing the block in random directions; collected without regard to rewards.",
        requirements=["gymnasium-robotics"],
        overwrite=overwrite,
    )


def push_about(
    seed: int, *, steps: int, run: OrderedMap = map, report: Report = lambda done, metrics: None
) -> list[Episode]:
    """Episodes of up to `EPISODE_STEPS` steps, `steps` in all, each from its own seed."""
    return record_until(push_episode, seed, steps=steps, longest=EPISODE_STEPS, run=run, report=report)


def push_episode(seed: int) -> Episode:
    """One episode of pushes from a reset; it ends early where the block falls off the table."""
    env, rng = _env(), np.random.default_rng(seed)
    noise = rng.uniform(0, MAX_NOISE)
    observation, _ = env.reset(seed=seed)
    recorded, actions, rewards, doing = [observation], [], [], []
    pusher: Pusher | None = None
    for _ in range(EPISODE_STEPS):
        hand, block = observation["observation"][:3], observation["observation"][3:6]
        if pusher is None or pusher.done(block) or rng.random() < SWITCH_PROBABILITY:
            pusher = Pusher(Push.draw(block, rng), block)
        move = pusher.act(hand, block) + noise * rng.standard_normal(3)
        action = np.append(np.clip(move, -1, 1), 0).astype(np.float32)  # the fingers stay closed
        observation, reward, _, _, _ = env.step(action)
        recorded.append(observation)
        actions.append(action)
        rewards.append(reward)
        doing.append((pusher.push.direction, pusher.push.approach))
        if observation["observation"][5] < FALLEN:
            break
    directions, approaches = np.array([*doing, doing[-1]]).T
    return Episode(
        {key: np.array([o[key] for o in recorded]) for key in observation},
        np.array(actions),
        np.array(rewards),
        False,
        seed,
        {"direction": int(directions[0]), "approach": int(approaches[0]), "noise": noise},
        {"direction": directions, "approach": approaches},
    )


@functools.cache
def _env() -> Any:
    return robotics_env(ENV_ID, max_episode_steps=EPISODE_STEPS)
