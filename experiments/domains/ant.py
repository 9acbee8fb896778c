r"""Do the ant's skills walk in the direction that they mean, as fast as their length says, without falling?

    didi-gym data ant-velocities
    python experiments/domains/ant.py --seeds 0 1 2

Where `--runs` has no run of a seed, it is trained by `hub/recipes/ant-velocities.toml`; a run that was stopped goes on.
Eight directions at five lengths are held from the same 16 resets for 300 steps (15 s), more than once around what the
data's targets last. `speed_at_L` is the mean speed over the steps after the first 60, in m/s, of skills of length L, as
the distance covered; `share_at_L` is that over the speed at length 1. `direction_error` is the largest deviation, over
the eight skills of length 1, of their mean direction from where it should be, after the one rotation or reflection that
fits all of them best was taken out, in degrees; `spread` the mean circular deviation of single rollouts from their
skill's mean. `falls` is the share of rollouts that ended before their 300 steps.
"""

from __future__ import annotations

import numpy as np
from held import direction_errors, main, unit

from didi_gym import SkillPolicy, TrajectoryDataset, evaluate_skills
from didi_gym.evaluation.rollouts import SkillSimulator, make_data_env

DIRECTIONS, LENGTHS, ROLLOUTS, STEPS, SETTLED = 8, (0.0, 0.25, 0.5, 0.75, 1.0), 16, 300, 60


def measure(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, float]:
    """Where skills of several directions and lengths lead, held from resets."""
    env = make_data_env(policy)
    simulator, seconds = SkillSimulator(policy, env), (STEPS - SETTLED) * env.unwrapped.dt  # type: ignore[attr-defined]
    starts = simulator.random_starts(ROLLOUTS, np.random.default_rng(0), burn_in=0)
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    report, _ = evaluate_skills(policy, dataset=dataset, held_episodes=1, hold=8, progress=False)
    found, falls = {}, []
    for length in LENGTHS:
        skills = circle * length if length else circle[:1] * 0
        held = [[simulator.hold(simulator.visit(start), skill, STEPS) for start in starts] for skill in skills]
        falls += [rollout.terminated for row in held for rollout in row]
        whole = [[r for r in row if len(r.actions) == STEPS] for row in held]
        moves = [np.array([r.states[STEPS, :2] - r.states[SETTLED, :2] for r in row]).reshape(-1, 2) for row in whole]
        speed = float(np.mean(np.linalg.norm(np.concatenate(moves), axis=-1)) / seconds)
        found[f"speed_at_{length:g}"] = speed
        if length == LENGTHS[-1]:
            means = np.array([unit(row).mean(0) for row in moves])
            found["direction_error"] = float(direction_errors(skills, means[:, None]).max())
            found["spread"] = float(np.degrees(np.mean(np.sqrt(-2 * np.log(np.linalg.norm(means, axis=-1))))))
    full = found[f"speed_at_{LENGTHS[-1]:g}"]
    shares = {f"share_at_{length:g}": found[f"speed_at_{length:g}"] / full for length in LENGTHS[1:-1]}
    return (
        found
        | shares
        | {
            "falls": float(np.mean(falls)),
            "real_over_planned": report.spread_ratio,
            "fidelity": report.fidelity,
            "held_information": report.held_information_bits,
        }
    )


if __name__ == "__main__":
    main("ant-velocities", "domains-ant.csv", measure, __doc__)
