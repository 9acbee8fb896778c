"""The behaviours that a mixture was recorded from, as skills: what imitation of the data could reach at best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym import SkillPolicy
from didi_gym.core.frames import inputs_to_state
from didi_gym.core.observations import recover_numbers
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data import read_labels
from didi_gym.data.generators.behaviours import ArrayPolicy, read_folder
from methods.run import Run

_LEAST_ANGLE = -np.pi / 2  # behaviours read angles that wind; the HalfCheetah's that runs on its back has 3.3 there


class Behaviours(SkillPolicy):
    """Every skill is one of `agents`, with the noise that it was recorded with; arrays only."""

    agents: list[ArrayPolicy]
    noise: float
    """Standard deviation, as a share of half the action range."""
    generator: np.random.Generator

    def plan_actions(self, inputs: Any, skills: Any, steps: int | None = None) -> Any:
        source = self.config.layout.state_source
        assert source is not None
        numbers = recover_numbers(inputs_to_state(np.asarray(inputs, np.float32), self.config.layout), source)
        angles = numbers[:, list(source.angles)]
        numbers[:, list(source.angles)] = np.where(angles < _LEAST_ANGLE, angles + 2 * np.pi, angles)
        chosen = np.argmax(skills, axis=-1)
        actions = np.empty((len(numbers), 1, self.config.action_dim), np.float32)
        for row, (seen, skill) in enumerate(zip(numbers, chosen, strict=True)):
            agent = self.agents[skill]
            actions[row, 0] = agent(seen[None, -agent.inputs :], np.zeros(1))[0]  # no position, which none reads
        noise = self.generator.normal(0, self.noise, actions.shape) * (self.action_high - self.action_low) / 2
        return (actions.clip(self.action_low, self.action_high) + noise).clip(self.action_low, self.action_high)


def the_behaviours(policy: SkillPolicy, folder: Path, seed: int) -> Behaviours:
    """The behaviours of the data set that `policy` was trained on, from the folder it was recorded with.

    Raises:
        ValueError: one of them reads the time, which a skill does not know.
    """
    config = policy.config
    assert config.dataset_id is not None and config.env_id is not None, "the policy does not say what it learned from"
    agents = {agent.name: agent for agent in read_folder(folder, config.env_id)}
    labels = read_labels(config.dataset_id)
    if timed := [name for name in labels.names if agents[name].time_feature]:
        raise ValueError(f"{', '.join(timed)} read the time of the episode, which a skill does not know")
    space = SkillSpace("discrete", len(labels.names))
    behaviours = Behaviours(replace(config, skill_space=space, plan_length=1, replan_every=1))
    behaviours.normalizer.load_state_dict(policy.normalizer.state_dict())
    behaviours.low.copy_(policy.low)
    behaviours.high.copy_(policy.high)
    behaviours.agents = [agents[name] for name in labels.names]
    behaviours.noise, behaviours.generator = labels.settings["noise"], np.random.default_rng(seed)
    return behaviours.eval().requires_grad_(False)


def behaviours(run: Run) -> SkillPolicy:
    """As `the_behaviours`, of the run's policy."""
    if run.agents is None:
        raise ValueError("method behaviours needs --agents, the folder that the data set was recorded with")
    return the_behaviours(run.policy, run.agents, run.seed)
