r"""Which behaviours of a mixture do the skills show in the simulator, at what speed, and do they stay up as long?

    didi-gym data walker2d-gaits --agents DIR
    python experiments/domains/gaits.py walker2d-gaits --agents DIR --seeds 0 1 2
    python experiments/domains/gaits.py hopper-gaits --agents DIR --seeds 0 1 2

Where `--runs` has no run of a seed, it is trained by `hub/recipes/NAME.toml`; a run that was stopped goes on. Every
skill is held for 300 steps from the same 16 resets, and so is every behaviour that the data was recorded from, with the
noise of the recording. A skill shows the behaviour that fills more than half of its windows, as a classifier of
labelled windows says. `recovered` counts the behaviours that some skill shows and goes on with for 300 steps at least
.75 times as often as the behaviour itself, at its speed within 25 %; `survival` is the share of those rollouts, over
the recovered behaviours, and `survival_of_own` that over what the behaviours reach themselves, at most 1 each.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from held import main as run

from didi_gym import SkillPolicy, TrajectoryDataset, evaluate_skills
from didi_gym.data import read_labels
from didi_gym.data.generators.behaviours import ArrayPolicy, read_folder
from didi_gym.evaluation.rollouts import Rollout, SkillSimulator, Start, make_data_env

STEPS, SETTLED, ROLLOUTS = 300, 100, 16  # speed counts after the second
MUCH, NEAR = 0.75, 0.25  # of a behaviour's own survival and from its speed, for it to be recovered
LEAST = SETTLED + 50  # steps of a rollout that says what a skill shows


def measure(policy: SkillPolicy, dataset: TrajectoryDataset, agents: Path) -> dict[str, float]:
    """What the skills of a policy do beside the behaviours that the data set was recorded from."""
    report, _ = evaluate_skills(policy, dataset=dataset, starts=16, held_episodes=1, hold=2, progress=False)
    information = report.held_information_bits / report.mutual_information_ceiling
    found = recovery(policy, dataset, agents)
    return {**found, "held_information_share": information, "fidelity": report.fidelity}


def recovery(policy: SkillPolicy, dataset: TrajectoryDataset, agents: Path) -> dict[str, float]:
    """Behaviours recovered, and how well their skills stay up."""
    from gait_recovery import Judge

    labels = read_labels(str(dataset.dataset_id))
    judge = Judge(dataset, labels.steps)
    known = {agent.name: agent for agent in read_folder(agents, str(dataset.env_id))}
    simulator, noise = SkillSimulator(policy, make_data_env(policy)), np.random.default_rng(0)
    starts = simulator.random_starts(ROLLOUTS, np.random.default_rng(0), burn_in=0)
    seconds = (STEPS - SETTLED) * simulator.env.unwrapped.dt  # type: ignore[attr-defined]

    def survival_and_speed(held: list[Rollout]) -> tuple[float, float]:
        whole = [r for r in held if len(r.actions) == STEPS and not r.terminated]
        speeds = [(r.states[STEPS, 0] - r.states[SETTLED, 0]) / seconds for r in whole]
        return len(whole) / len(held), float(np.mean(speeds)) if speeds else math.nan

    def behave(agent: ArrayPolicy, start: Start) -> Rollout:
        states, actions, terminated = [simulator.visit(start)], [], False
        space: Any = simulator.env.action_space
        while len(actions) < STEPS and not terminated:
            action = agent(states[-1][None, -agent.inputs :], np.array([len(actions)]))[0].clip(space.low, space.high)
            action += labels.settings["noise"] * noise.normal(size=action.shape) * (space.high - space.low) / 2
            observation, _, terminated, _, _ = simulator.env.step(action.clip(space.low, space.high).astype(np.float32))
            states.append(np.asarray(observation, np.float32))
            actions.append(action)
        return Rollout(np.stack(states), np.stack(actions), bool(terminated), np.nan)

    own = [survival_and_speed([behave(known[name], start) for start in starts]) for name in labels.names]
    recovered: dict[int, float] = {}
    for skill in range(policy.skill_space.size):
        z = np.eye(policy.skill_space.size, dtype=np.float32)[skill]
        held = [simulator.hold(simulator.visit(start), z, STEPS) for start in starts]
        windows = [judge(r) for r in held if len(r.actions) >= LEAST]
        counts = np.bincount(np.concatenate(windows), minlength=len(own)) if windows else np.zeros(len(own), int)
        shown, (survival, speed) = int(counts.argmax()), survival_and_speed(held)
        mostly = counts[shown] > 0.5 * counts.sum() > 0
        found = mostly and survival >= MUCH * own[shown][0] and abs(speed / own[shown][1] - 1) < NEAR
        print(
            f"  skill {skill:2}: {labels.names[shown]:32} {counts[shown] / max(counts.sum(), 1):.2f} of windows, "
            f"survival {survival:.2f} ({own[shown][0]:.2f}), {speed:.2f} m/s ({own[shown][1]:.2f}) "
            + ("*" if found else ""),
            flush=True,
        )
        if found:
            recovered[shown] = max(recovered.get(shown, 0.0), survival)
    shares = [min(survival / own[shown][0], 1.0) for shown, survival in recovered.items()]
    return {
        "behaviours": len(own),
        "recovered": len(recovered),
        "survival": float(np.mean(list(recovered.values()) or [0.0])),
        "survival_of_own": float(np.mean(shares or [0.0])),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("name", choices=("walker2d-gaits", "hopper-gaits"))
    parser.add_argument("--agents", type=Path, required=True)
    known_arguments, rest = parser.parse_known_args()
    run(
        known_arguments.name,
        "domains-gaits.csv",
        partial(measure, agents=known_arguments.agents),
        __doc__,
        rest,
        agents=known_arguments.agents,
    )
