"""One environment or many, as rows whose episodes their caller begins, whatever the environment resets by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate


@dataclass(frozen=True)
class Step:
    """What one environment answered to one action."""

    observation: Any
    """Where the action led; after an episode's end its last observation, never that of the next one's start."""
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


class EnvRows:
    """The sub-environments of a vector environment, in every autoreset mode, or one single environment.

    A row acts from `begin` until its episode ends or is begun anew. All others rest.

    Args:
        env: Either of the two; it keeps its wrappers.

    Attributes:
        observations: The newest observation of each row, None before its first episode.
        running: Whether each row's episode goes on, bool `(n,)`.

    Raises:
        TypeError: neither of the two, such as a vector environment of Stable-Baselines3 or one that is a single
            simulator, all of whose rows begin together.
    """

    def __init__(self, env: gym.Env | VectorEnv) -> None:
        if not isinstance(env, (gym.Env, VectorEnv)):
            raise TypeError(
                f"expected a gymnasium.Env or a gymnasium.vector.VectorEnv, got {type(env).__name__}; didi_gym.make "
                "and make_vec make them (vector environments of Stable-Baselines3 are for its own agents)"
            )
        if isinstance(env, VectorEnv) and not isinstance(env.unwrapped, (SyncVectorEnv, AsyncVectorEnv)):
            raise TypeError(
                "expected sub-environments that can be seeded and reset one by one, got "
                f"{type(env.unwrapped).__name__}; make it with vectorization_mode='sync' or 'async'"
            )
        self.env = env
        self.is_vector = isinstance(env, VectorEnv)
        self.single_observation_space = env.single_observation_space if self.is_vector else env.observation_space  # type: ignore[union-attr]
        self.single_action_space = env.single_action_space if self.is_vector else env.action_space  # type: ignore[union-attr]
        self.observations: list[Any] = [None] * len(self)
        self.running = np.zeros(len(self), bool)
        self._over = np.zeros(len(self), bool)  # rows whose environment waits for a reset
        self._fresh = True

    def __len__(self) -> int:
        return self.env.num_envs if isinstance(self.env, VectorEnv) else 1

    def begin(self, seeds: Mapping[int, int | None]) -> None:
        """Begin an episode in each of these rows."""
        if not isinstance(self.env, VectorEnv):
            self.observations[0] = self.env.reset(seed=seeds[0])[0]
        elif self._fresh:
            answer = self.env.reset(seed=[seeds.get(row) for row in range(len(self))])[0]  # type: ignore[arg-type]
            self._take(answer, range(len(self)))
        else:
            self._reset(seeds)
        self._fresh = False
        self.running[list(seeds)] = True

    def _reset(self, seeds: Mapping[int, int | None]) -> None:
        mask = np.zeros(len(self), bool)
        mask[list(seeds)] = True
        answer = self.env.reset(seed=[seeds.get(i) for i in range(len(self))], options={"reset_mask": mask.copy()})[0]  # type: ignore[arg-type]
        self._over &= ~mask
        self._take(answer, list(seeds))

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """Let each running row act.

        Args:
            actions: One for each running row.
        """
        if not isinstance(self.env, VectorEnv):
            return {0: self._note(0, Step(*self.env.step(actions[0])))}  # type: ignore[arg-type]
        if self.env.metadata.get("autoreset_mode") == AutoresetMode.DISABLED and self._over.any():
            self._reset(dict.fromkeys(np.flatnonzero(self._over).tolist()))  # a row that rests is stepped all the same
        some = next(iter(actions.values()))
        batch = [actions.get(row, some) for row in range(len(self))]
        answer, rewards, terminated, truncated, infos = self.env.step(_stacked(self.single_action_space, batch))
        if not isinstance(infos, dict):
            raise TypeError(
                f"expected infos as one dict of arrays, got a {type(infos).__name__}: leave DictInfoToList out"
            )
        observations = list(iterate(self.env.observation_space, answer))
        self._over = terminated | truncated
        steps = {}
        for row in actions:
            info, last = info_of(infos, row), observations[row]
            if "final_obs" in info:  # the environment has begun another episode in the same step
                last, info = info["final_obs"], info.get("final_info", {})
            step = Step(last, float(rewards[row]), bool(terminated[row]), bool(truncated[row]), info)
            steps[row] = self._note(row, step)
        return steps

    def batch(self) -> Any:
        """The observations as agents' `predict` takes them: stacked for a vector environment, else the only one."""
        if not self.is_vector:
            return self.observations[0]
        return _stacked(self.single_observation_space, self.observations)

    def _note(self, row: int, step: Step) -> Step:
        self.observations[row] = step.observation
        self.running[row] = not step.ended
        return step

    def _take(self, answer: Any, rows: Any) -> None:
        observations = list(iterate(self.env.observation_space, answer))
        for row in rows:
            self.observations[row] = observations[row]


def _stacked(space: gym.Space, items: list[Any]) -> Any:
    return concatenate(space, items, create_empty_array(space, len(items)))  # type: ignore[arg-type]


def info_of(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """What one sub-environment said, out of a vector environment's infos."""
    own = {}
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is not None and mask[row]:
            value = info_of(values, row) if isinstance(values, dict) else values[row]
            own[key] = bool(value) if isinstance(value, np.bool_) else value  # the kind that vectors of infos know
    return own
