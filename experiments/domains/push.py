r"""Do the skills for FetchPush push the block, in all directions, and in the direction that they mean?

    didi-gym data push
    python experiments/domains/push.py --seeds 0 1 2

Where `--runs` has no run of a seed, it is trained by `hub/recipes/push.toml`; a run that was stopped goes on. 16 skills
are held from the same 16 resets for 50 steps, which is the environment's own limit (and for 100: `_100`).
`moved`: share of rollouts that leave the block at least 10 cm from where it was; `directions`: octants that some skill
moves it into, so far, in more than half of its rollouts; `entropy`: of the octants into which it moves by 5 cm or more,
over all rollouts and over log 8; `direction_error`: mean angle in degrees, of those rollouts, between the direction
that the skill means and that of the block; `consistency`: mean length of the mean direction of a skill's rollouts.
`real_over_planned` compares the spread of the block over skills in the simulator, in one horizon from the resets, with
the imagined one; `real_over_planned_later` does so after up to 64 steps of random skills, where the block often lies
out of reach.
"""

from __future__ import annotations

import numpy as np
from held import direction_errors, main, octants, rollouts, unit

from didi_gym import SkillPolicy, TrajectoryDataset, evaluate_skills
from didi_gym.evaluation.metrics import skill_spread
from didi_gym.evaluation.rollouts import Rollout

SKILLS, STEPS = 16, (50, 100)
FAR, AT_ALL = 0.1, 0.05  # m


def measure(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, float]:
    """What the skills of a policy do with the block, held from resets."""
    held, feature = rollouts(policy, SKILLS, max(STEPS)), list(policy.config.layout.features)
    report, _ = evaluate_skills(policy, dataset=dataset, starts=16, held_episodes=1, hold=1, progress=False)
    found = {
        "real_over_planned": skill_spread(changes(held, policy)) / skill_spread(imagined(held, policy)),
        "real_over_planned_later": report.spread_ratio,
        "fidelity": report.fidelity,
        "probe": report.probe,
    }
    for steps in STEPS:
        places = np.array([[r.states[[0, steps]][:, feature] for r in row] for row in held])
        name = "" if steps == STEPS[0] else f"_{steps}"
        found |= {f"{key}{name}": value for key, value in describe(policy, places[:, :, 1] - places[:, :, 0]).items()}
    return found


def changes(held: list[list[Rollout]], policy: SkillPolicy) -> np.ndarray:
    """How the features have changed at the end of the first horizon, `(resets, skills, features)`."""
    feature, last = list(policy.config.layout.features), policy.config.horizon - 1
    return np.array([[r.states[last, feature] - r.states[0, feature] for r in row] for row in held]).swapaxes(0, 1)


def imagined(held: list[list[Rollout]], policy: SkillPolicy) -> np.ndarray:
    """The same, as the policy's dynamics model imagines it."""
    config, grid = policy.config, policy.skill_space.grid(len(held))
    first = np.array([[r.states[0] for r in row] for row in held]).swapaxes(0, 1)  # (resets, skills, state_dim)
    plans = [
        policy.plan(states[:, list(config.layout.policy_inputs)], grid, replan_every=config.replan_every).observations
        for states in first
    ]
    return np.array([plan[:, -1] - plan[:, 0] for plan in plans if plan is not None])[..., list(config.layout.features)]


def describe(policy: SkillPolicy, moves: np.ndarray) -> dict[str, float]:
    """Figures of how far skills moved the block, `(skills, n, 2)` in m."""
    distance, octant = np.linalg.norm(moves, axis=-1), octants(moves)
    far, at_all = distance >= FAR, distance >= AT_ALL
    share = np.bincount(octant[at_all], minlength=8) / max(at_all.sum(), 1)
    found = {
        "moved": float(far.mean()),
        "moved_5cm": float(at_all.mean()),
        "median_distance": float(np.median(distance)),
        "directions": float(sum((far & (octant == o)).mean(1).max() > 0.5 for o in range(8))),
        "entropy": float(-(share * np.log(np.maximum(share, 1e-12))).sum() / np.log(8)),
        "consistency": float(
            np.mean(np.linalg.norm((unit(moves) * at_all[..., None]).sum(1), axis=-1) / np.maximum(at_all.sum(1), 1))
        ),
    }
    if not policy.skill_space.is_discrete:
        found["direction_error"] = float(direction_errors(policy.skill_space.grid(len(moves)), moves)[at_all].mean())
    return found


if __name__ == "__main__":
    main("push", "domains-push.csv", measure, __doc__)
