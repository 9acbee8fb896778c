"""Recording behaviours: one in each episode, or taking turns within it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from didi_gym.core.progress import Report
from didi_gym.data.generators.behaviours import Behaviour
from didi_gym.data.generators.parallel import OrderedMap
from didi_gym.data.labels import LABEL, padded
from didi_gym.data.writing import Episode


@dataclass(frozen=True)
class Recorder:
    """How episodes are recorded; everything but the first behaviour and the seed."""

    env_id: str
    env_kwargs: str
    """JSON."""
    behaviours: tuple[Behaviour, ...]
    hidden: int
    """Numbers that an observation begins with and behaviours do not read: the body's position."""
    episode_steps: int
    """Longest episode, the lead-in included."""
    switch_every: float | None = None
    """Mean steps between switches of behaviour; None for one behaviour in each episode."""
    lead_in: int = 0
    """Longest time, in steps, for which another behaviour runs before recording begins."""
    final: frozenset[int] = frozenset()
    """Behaviours after which no other recovers: where one of them would be left, the episode ends instead."""
    healthy: tuple[int, float, float] | None = None
    """Index, least and greatest value of a number of the observation, counted after the hidden ones: an episode ends
    where it leaves that range, unless a final behaviour is at work."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise on actions, as a share of half their range."""
    reads: Callable[[Any], np.ndarray] | None = None
    """What behaviours read `(inputs,)` of the environment, where that is not the observation after its hidden numbers;
    a function of a module, since processes are sent it."""

    def act(self, behaviour: int, observation: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
        """The action `(action_dim,)` of one behaviour, with noise, within the environment's bounds."""
        space, policy = self.env().action_space, self.behaviours[behaviour]
        seen = padded(self.seen(observation)[None], policy.inputs)
        action = np.clip(policy(seen, np.array([step]))[0], space.low, space.high)
        if self.noise:
            disturbance = self.noise * (space.high - space.low) / 2 * rng.standard_normal(action.shape)
            action = np.clip(action + disturbance, space.low, space.high)
        return action.astype(space.dtype)

    def seen(self, observation: np.ndarray) -> np.ndarray:
        """What behaviours read where the environment has just given `observation`."""
        return observation[self.hidden :] if self.reads is None else self.reads(self.env())

    def fallen(self, behaviour: int, observation: np.ndarray) -> bool:
        """Whether an observation is out of the healthy range, and `behaviour` is none that may be."""
        if self.healthy is None or behaviour in self.final:
            return False
        index, low, high = self.healthy
        return not low <= observation[self.hidden + index] <= high

    def another(self, behaviour: int, rng: np.random.Generator, among: Sequence[int]) -> int:
        """A random behaviour that is not `behaviour`."""
        return int(rng.choice([i for i in among if i != behaviour]))

    def env(self) -> Any:
        return shared_env(self.env_id, self.env_kwargs)


def record_episode(how: Recorder, task: tuple[int, int]) -> Episode:
    """One episode; `task` is the behaviour that begins it, and the seed of everything random in it."""
    behaviour, seed = task
    env, rng = how.env(), np.random.default_rng(seed)
    everyone = range(len(how.behaviours))
    observation, _ = env.reset(seed=seed)
    lead_in = int(rng.integers(how.lead_in + 1))
    if lead_in:
        other = how.another(behaviour, rng, [i for i in everyone if i not in how.final])
        for step in range(lead_in):
            observation, _, terminated, truncated, _ = env.step(how.act(other, observation, step, rng))
            if terminated or truncated or how.fallen(other, observation):  # begin from a reset
                observation, _ = env.reset(seed=seed)
                lead_in = 0
                break
    observations, terminated = [observation], False
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    labels: list[int] = []
    for step in range(lead_in, how.episode_steps):
        if how.switch_every is not None and actions and rng.random() < 1 / how.switch_every:
            if behaviour in how.final:
                break
            behaviour = how.another(behaviour, rng, everyone)
        action = how.act(behaviour, observation, step, rng)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        labels.append(behaviour)
        if terminated or truncated or how.fallen(behaviour, observation):
            break
    infos = {LABEL: np.array([*labels, labels[-1]], dtype=np.int16)}
    about: dict[str, str | int] = {"first_behaviour": how.behaviours[labels[0]].name, "lead_in": lead_in}
    return Episode(np.array(observations), np.array(actions), np.array(rewards), bool(terminated), seed, about, infos)


def record(
    how: Recorder, seed: int, *, steps: int, run: OrderedMap = map, report: Report = lambda done, metrics: None
) -> list[Episode]:
    """Episodes of `steps` steps in all, in random order, each from its own seed.

    Without switches every behaviour gets as many steps as any other (or one more); with them, as many first turns.
    """
    k = len(how.behaviours)
    quota = [steps // k + (i < steps % k) for i in range(k)] if how.switch_every is None else [steps]
    recorded = [0] * len(quota)
    root, rng = np.random.SeedSequence(seed), np.random.default_rng(seed)
    firsts, episodes = _turns(k, rng), []
    while recorded != quota:
        needed = [-(-(most - done) // how.episode_steps) for most, done in zip(quota, recorded, strict=True)]
        if how.switch_every is None:
            first = rng.permutation(np.repeat(np.arange(k), needed)).tolist()
        else:
            first = [next(firsts) for _ in range(needed[0])]
        seeds = [int(child.generate_state(1)[0]) for child in root.spawn(len(first))]
        for begun, episode in zip(
            first, run(functools.partial(record_episode, how), list(zip(first, seeds, strict=True))), strict=True
        ):
            account = begun if how.switch_every is None else 0
            if recorded[account] < quota[account]:
                kept = episode.head(quota[account] - recorded[account])
                fell = kept.terminated or how.fallen(int(kept.infos[LABEL][-1]), kept.observations[-1])
                episodes.append(replace(kept, labels={**kept.labels, "fell": fell}))
                recorded[account] += len(kept)
                report(sum(recorded), {})
    return episodes


def _turns(k: int, rng: np.random.Generator) -> Iterator[int]:
    """Random permutations of 0..k-1, one after the other, without end."""
    while True:
        yield from rng.permutation(k).tolist()


@functools.cache
def shared_env(env_id: str, env_kwargs: str) -> Any:
    """The environment of this process, made once; `env_kwargs` is JSON."""
    import gymnasium as gym

    try:
        return gym.make(env_id, **json.loads(env_kwargs))
    except TypeError as error:
        raise ValueError(f"{env_id} does not take the settings --env-kwargs {env_kwargs}: {error}") from error


def record_until(
    record_one: Callable[[int], Episode],
    seed: int,
    *,
    steps: int,
    longest: int,
    run: OrderedMap = map,
    report: Report = lambda done, metrics: None,
) -> list[Episode]:
    """Episodes of `steps` steps in all, which may end early, each from its own seed.

    Args:
        record_one: makes the episode of a seed.
        longest: steps of an episode at most.
    """
    episodes: list[Episode] = []
    root, total = np.random.SeedSequence(seed), 0
    while total < steps:
        missing = -(-(steps - total) // longest)
        seeds = [int(child.generate_state(1)[0]) for child in root.spawn(missing)]
        for episode in run(record_one, seeds):
            if total < steps:
                episodes.append(episode.head(steps - total))
                total += len(episodes[-1])
                report(total, {})
    return episodes


def robotics_env(env_id: str, **settings: Any) -> Any:
    """An environment of gymnasium-robotics.

    Raises:
        ImportError: that package is missing; the message says how to install it.
    """
    import gymnasium as gym

    try:
        import gymnasium_robotics
    except ImportError as error:
        raise ImportError(
            f"{env_id} needs gymnasium-robotics, which is missing; install it with: pip install 'didi-gym[envs]'"
        ) from error
    gym.register_envs(gymnasium_robotics)
    return gym.make(env_id, **settings)
