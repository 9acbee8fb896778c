"""Skills from your own data: learn a policy from any Minari data set, look at it in the simulator, wrap an environment.

Run `didi-gym data pointmaze-medium` first, or name another data set:
`python examples/train_your_own.py --dataset YOUR/DATASET-v0`. The defaults take about ten minutes on two cores.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from didi_gym import SkillConfig, SkillPolicy, SkillSpace, TrainConfig, TrajectoryDataset, evaluate_skills, train


@dataclass
class Args:
    dataset: str = "didi/pointmaze-medium-v0"
    output: Path = Path("runs/my-skills")
    kind: str = "ball"
    """ball, sphere or box (continuous skills), or discrete."""
    size: int = 2
    """Dimensions of a continuous skill, or the number of discrete ones."""


def main(args: Args) -> None:
    dataset = TrajectoryDataset.from_minari(args.dataset)
    config = TrainConfig(skills=SkillConfig(skill_space=SkillSpace(args.kind, args.size)))
    train(
        dataset, config, args.output
    )  # a tenth of the episodes is held out; stopped half-way, the same call continues

    policy = SkillPolicy.from_pretrained(args.output)
    report, _ = evaluate_skills(policy, dataset=dataset)
    for name, value in asdict(report).items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main(tyro.cli(Args))
