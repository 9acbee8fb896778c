"""Measure a published policy: results.json, skill_map.png and replay.mp4 of `hub/NAME`, with seeds and baselines.

    python hub/evaluate.py ant-directions --run runs/ant-directions     # a training folder: its weights are copied too
    python hub/evaluate.py ant-directions --no-rollouts                 # only the table of seeds and baselines again

Seeds and baselines come from a table with the columns dataset, method, seed and the fields of a report; method `didi`
is ours. Then `python hub/publish.py NAME --refresh` renders the card.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from recipe import Recipe

from didi_gym.cli import main as cli
from didi_gym.core.files import write_atomically
from didi_gym.data.minari import split_id
from didi_gym.evaluation.statistics import interquartile_mean, stratified_bootstrap
from didi_gym.models.card import RESULTS_FILE, read_results
from didi_gym.models.card_text import SETTINGS
from didi_gym.models.policy import SkillPolicy

HUB = Path(__file__).resolve().parent
TABLE = HUB.parent / "experiments" / "results" / "skills.csv"
OURS = "didi"


@dataclass(frozen=True)
class Evaluate:
    """Measure the policy in hub/NAME."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    run: Path | None = None
    """Folder of its training, with the dynamics model that planned spread and plan error need; config.json and
    model.safetensors are copied from there. Without it these two are left out, as the model is not published."""
    rollouts: bool = True
    """Roll skills out; otherwise only seeds and baselines are renewed."""
    table: Path = TABLE
    """Scores of several seeds and of baselines; left out where it is not there."""


def scores(table: Path, dataset: str, replan_every: float | None) -> dict[str, dict[str, list[float]]]:
    """Method -> metric -> finite scores of its seeds.

    Args:
        replan_every: Of several rows of one seed, those with this setting count.

    Raises:
        ValueError: two rows of one method and seed that this does not tell apart.
    """
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(line for line in file if not line.startswith("#")) if row]
    by_run: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        if split_id(row["dataset"])[1] == split_id(dataset)[1]:
            by_run[row["method"], row["seed"]].append(row)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (method, seed), candidates in by_run.items():
        if len(candidates) > 1:
            candidates = [row for row in candidates if _number(row.get("replan_every")) == replan_every]
        if len(candidates) > 1:
            raise ValueError(f"{table}: {dataset}, {method}, seed {seed} has {len(candidates)} rows; expected one")
        for metric, text in (item for row in candidates for item in row.items()):
            value = _number(text)
            if metric not in SETTINGS and metric not in ("dataset", "method", "seed") and value is not None:
                found[method][metric].append(value)
    return {method: dict(metrics) for method, metrics in found.items()}


def _number(text: Any) -> float | None:
    """A finite number; None for anything else, such as an empty cell or nan."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Interquartile mean and 95 % bootstrap interval over seeds; no interval of one seed."""
    runs = np.asarray(values, dtype=float)[:, None]
    low, high = stratified_bootstrap(runs, interquartile_mean) if len(runs) > 1 else (None, None)
    return {"iqm": interquartile_mean(runs), "low": low, "high": high, "n": len(runs)}


def with_seeds(results: Mapping[str, Any], table: Path, dataset: str) -> dict[str, Any]:
    """A report with `seeds` and `baselines` from a table, as far as it has them."""
    report = {key: value for key, value in results.items() if key not in ("seeds", "baselines")}
    if not table.is_file():
        return report
    methods = {
        method: {metric: summary(values) for metric, values in metrics.items()}
        for method, metrics in scores(table, dataset, _number(results.get("replan_every"))).items()
        if metrics
    }
    if ours := methods.pop(OURS, None):
        report["seeds"] = ours
    if methods:
        report["baselines"] = methods
    return report


def main(args: Evaluate) -> None:
    folder, file = HUB / args.name, HUB / "recipes" / f"{args.name}.toml"
    recipe = Recipe.read(file) if file.is_file() else None
    if args.run is not None:
        policy = SkillPolicy.from_pretrained(args.run, device="cpu")  # before anything is replaced
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(args.run / name, folder / name)
    else:
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
    dataset = recipe.data.dataset if recipe else policy.config.dataset_id
    if args.rollouts:
        words = recipe.evaluate_arguments(str(args.run or folder)) if recipe else ["evaluate", str(args.run or folder)]
        cli.run([*words, "--output", str(folder)])
    results = read_results(folder / RESULTS_FILE)
    if results is None:
        raise FileNotFoundError(f"{folder} has no {RESULTS_FILE} yet; run this without --no-rollouts")
    report = with_seeds(results, args.table, dataset) if dataset else dict(results)
    write_atomically(folder / RESULTS_FILE, (json.dumps(report, indent=2) + "\n").encode())
    print(f"Next: python hub/publish.py {args.name} --refresh")


if __name__ == "__main__":
    main(tyro.cli(Evaluate))
