"""What a model card says of a policy: its spaces, its measurements with their labels, how to use it, its limits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from didi_gym.layout import ObservationSource
from didi_gym.recipes import Recipe

if TYPE_CHECKING:
    from didi_gym.policy import SkillPolicy

METRICS: dict[str, tuple[str, str]] = {  # of a report: what it is called in a card, and its unit
    "real_spread": ("spread of executed skills", ""),
    "planned_spread": ("spread of planned skills", ""),
    "spread_ratio": ("executed / planned spread", ""),
    "open_loop_spread": ("spread without replanning", ""),
    "plan_error": ("error of plans without replanning", ""),
    "probe": ("z read from rollouts", ""),
    "mutual_information_bits": ("mutual information of z and rollout", "bits"),
    "held_information_bits": ("mutual information, skill held for 8 horizons", "bits"),
    "fidelity": ("rollouts within the held-out data's 99th percentile", "%"),
    "held_fidelity": ("within that percentile, skill held for 8 horizons", "%"),
    "held_distance": ("change of the features, skill held", ""),
    "direction_error_degrees": ("worst direction off even spacing", "degrees"),
    "falls": ("falls, skill held", "%"),
    "contact": ("steps in contact", "%"),
    "vendi": ("different held skills (Vendi score)", ""),
    "coverage": ("cells of the data that held skills reach", "%"),
    "smoothness": ("change between actions", ""),
}
_CEILINGS = {
    "mutual_information_bits": "mutual_information_ceiling",
    "held_information_bits": "mutual_information_ceiling",
    "vendi": "vendi_ceiling",
}
SETTINGS = {"starts", "skills", "replan_every", "held_steps", *_CEILINGS.values()}  # said in a sentence
_SPACES = {"ball": "the unit ball of R^{n}", "sphere": "the unit sphere in R^{n}", "box": "[-1, 1]^{n}"}


def usage(policy: SkillPolicy, source: str, recipe: Recipe | None) -> str:
    """A program of five lines that runs, and makes `env` where the policy has an environment."""
    steps = [
        "observation, info = env.reset(seed=0)",
        "observation, reward, terminated, truncated, info = env.step(env.action_space.sample())",
    ]
    if recipe is not None and recipe.usage is not None:
        more = "".join(f", {key}={value!r}" for key, value in recipe.usage.kwargs.items())
        make = f"env = didi_gym.make({json.dumps(recipe.usage.env)}, {json.dumps(source)}{more})"
        return "\n".join(["import didi_gym", "", make, *steps])
    load = f"policy = didi_gym.SkillPolicy.from_pretrained({json.dumps(source)})"
    if policy.config.env_id is not None:
        make = "env = didi_gym.make(policy.config.env_id, policy, **policy.config.env_kwargs)"
        return "\n".join(["import didi_gym", "", load, make, *steps])
    inputs = len(policy.config.layout.policy_inputs)
    draw = "skills = policy.skill_space.sample(1, np.random.default_rng(0))"
    plan = f"actions = policy.plan_actions(np.zeros((1, {inputs}), np.float32), skills)  # (1, steps, action_dim)"
    return "\n".join(["import didi_gym", "import numpy as np", "", load, draw, plan])


def pinned(source: str) -> str:
    """Says which revision the program pins, or how to pin one."""
    repo_id, _, revision = source.partition("@")
    if revision:
        return f"`@{revision}` pins the revision: the skills stay what they are when this repository goes on."
    if "/" in repo_id:
        return (
            f"To pin the skills, write `{repo_id}@COMMIT`; `didi-gym hub pull {repo_id} --pin` prints the present "
            "commit. `policy.commit_hash` says which was loaded."
        )
    return "What `didi-gym hub list` names is on this disk already: nothing is downloaded."


def describe_spaces(policy: SkillPolicy) -> list[tuple[str, str]]:
    """What a policy reads and emits, and what its skills are: labels and values, in Markdown."""
    config, space = policy.config, policy.skill_space
    if config.discrete_actions:
        actions = f"`Discrete({config.action_dim})`"
    else:
        low, high = policy.action_low, policy.action_high
        alike = len({*low.tolist()}) == len({*high.tolist()}) == 1
        bounds = f"[{low[0]:g}, {high[0]:g}]" if alike else f"{_numbers_text(low)} to {_numbers_text(high)}"
        actions = f"{config.action_dim} numbers in {bounds}"
    kind = (
        f"one of {space.size}"
        if space.is_discrete
        else f"{space.kind}: `z` in {_SPACES[space.kind].format(n=space.size)}"
    )
    agent = f"`Discrete({space.size})`" if space.is_discrete else f"`Box(-1, 1, ({space.size},))`"
    observations = "; or ".join(dict.fromkeys(_source_text(source) for source in config.layout.sources))
    rows = [
        ("observations it reads", observations or f"{len(config.layout.policy_inputs)} numbers"),
        ("actions it takes", actions),
        ("skills", kind),
        ("action space of the agent", agent),
        ("a skill lasts", f"{config.skill_duration} steps by default, planned anew {_every(config.replan_every)}"),
        ("horizon of a plan", f"{config.horizon} steps"),
    ]
    if config.env_id is not None:
        rows.append(
            ("learned from", f"data of `{config.env_id}`" + (f", `{config.dataset_id}`" * bool(config.dataset_id)))
        )
    return rows


def _source_text(source: ObservationSource) -> str:
    keys = " + ".join(f"`{key}`" for key in source.keys)
    where = f"{keys} of {source.size} numbers" if keys else f"{source.size} numbers"
    if source.indices != tuple(range(source.size)):
        where += f", of these {_ranges(source.indices)}"
    return where + (f" ({len(source.angles)} as angles)" if source.angles else "")


def _ranges(indices: tuple[int, ...]) -> str:
    """(2, 3, 4, 7) as `2-4, 7`."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _numbers_text(values: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values.tolist()) + ")"


def measured_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """What was measured: finite numbers, without settings."""
    return {key: float(value) for key, value in results.items() if key not in SETTINGS and is_number(value)}


def is_number(value: Any) -> bool:
    """Whether a value of a report is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_interval(entry: Any) -> bool:
    """Whether there is a mean over seeds; of one seed it has no interval."""
    return isinstance(entry, Mapping) and is_number(entry.get("iqm")) and is_number(entry.get("n"))


def metric_label(key: str, results: Mapping[str, Any], discrete: bool) -> str:
    """What a metric is called in a card, with its ceiling and unit."""
    label, unit = METRICS.get(key, (key, ""))
    if key == "probe":
        return f"{label}, {'accuracy' if discrete else 'R^2'}"
    if key in _CEILINGS and is_number(ceiling := results.get(_CEILINGS[key])):
        return f"{label}, of {ceiling:.3g}{f' {unit}' if unit else ''}"
    if key == "held_distance" and is_number(steps := results.get("held_steps")):
        return f"{label} for {steps:g} steps"
    return label if unit in ("", "%") else f"{label}, {unit}"


def _text(key: str, value: float) -> str:
    if METRICS.get(key, ("", ""))[1] == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def results_table(results: Mapping[str, Any], discrete: bool) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; seeds and baselines have columns where they are there, and a dash where they lack a number."""
    numbers, seeds, baselines = measured_numbers(results), results.get("seeds") or {}, results.get("baselines") or {}
    groups = {"seeds": seeds, **baselines}
    groups = {title: group for title, group in groups.items() if any(map(is_interval, group.values()))}
    known = [*METRICS, *sorted({key for group in (numbers, *groups.values()) for key in group} - {*METRICS})]
    rows = []
    for key in known:
        cells = [_text(key, numbers[key]) if key in numbers else "-"]
        for group in groups.values():
            entry = group.get(key)
            cells.append(_interval_text(key, entry) if is_interval(entry) else "-")
        if any(cell != "-" for cell in cells):
            rows.append([metric_label(key, results, discrete), *cells])
    titles = ["our seeds" if title == "seeds" else title for title in groups]
    return ["on rollouts in the simulator", "this policy", *titles], rows


def _interval_text(key: str, entry: Mapping[str, Any]) -> str:
    ends: list[Any] = [entry.get("low"), entry.get("high")]
    interval = " [{}, {}]".format(*(_text(key, end) for end in ends)) if all(map(is_number, ends)) else ""
    return f"{_text(key, entry['iqm'])}{interval}, n={entry['n']:g}"


def _every(steps: float) -> str:
    return "at every step" if steps == 1 else f"every {steps:g} steps"


def how_measured(results: Mapping[str, Any]) -> str:
    """How the numbers came about."""
    said = "Measured on rollouts in the simulator, never on plans"
    if all(is_number(results.get(key)) for key in ("starts", "skills", "replan_every")):
        said += (
            f": {results['skills']:g} skills from each of {results['starts']:g} start states, with a new plan "
            f"{_every(results['replan_every'])}"
        )
        if is_number(results.get("held_steps")):
            said += f"; held skills from resets, for {results['held_steps']:g} steps"
    if results.get("seeds") or results.get("baselines"):
        said += ". Where several seeds were trained: interquartile mean [95 % bootstrap interval], n seeds"
    return said + "."


def description(policy: SkillPolicy) -> str:
    """The first words of a card, where a recipe has none."""
    learned = f" from `{policy.config.dataset_id}`" if policy.config.dataset_id else ""
    return (
        f"A skill policy for didi_gym: an agent picks skills, and each runs for many steps. Learned without "
        f"rewards{learned}."
    )


def how_made(policy: SkillPolicy, recipe: Recipe | None) -> str:
    """How the policy came about; the recipe's commands follow."""
    version = f" with didi_gym {policy.config.didi_gym_version}" if policy.config.didi_gym_version else ""
    if recipe is not None:
        return f"Made{version}{f' ({recipe.effort})' if recipe.effort else ''} by:"
    dataset = policy.config.dataset_id or "ID"
    return f"Made{version} by `didi-gym train --dataset {dataset}`; `config.json` has the details."


def limits(policy: SkillPolicy) -> list[str]:
    """What holds for every policy."""
    return [
        "Skills are as good as the coverage of their data, and mean nothing for another body: an environment with "
        "other observations or action bounds is refused.",
        f"A step of the agent lasts up to {policy.config.skill_duration} steps of the environment: discount by "
        "`gamma ** info['skill_length']` (`help(didi_gym.sb3)`).",
    ]
