"""What a model card says of a policy: its spaces, its figures and what they mean, how to use it, its limits."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from didi_gym.core.environments import asks_for_trust
from didi_gym.core.files import printable
from didi_gym.core.layout import ObservationSource
from didi_gym.models.policy_network import PolicyNetwork

SETTINGS = {  # of a report: said in a sentence, or as the ceiling of a figure
    "starts",
    "skills",
    "replan_every",
    "held_steps",
    "held_seconds",
    "step_seconds",
    "mutual_information_ceiling",
    "mutual_information_low",
    "mutual_information_high",
    "held_information_low",
    "held_information_high",
    "vendi_ceiling",
}
_SPACES = {"ball": "the unit ball of R^{n}", "sphere": "the unit sphere in R^{n}", "box": "[-1, 1]^{n}"}
_METHODS = {  # of the baselines in a report: what they do differently; the first two that are there are shown
    "bc-anchor": "imitation instead of the prior",
    "no-prior": "without the prior",
    "unmerged": "without merging skills that are alike",
    "contrastive": "with a contrastive objective",
    "metra": "with the objective of METRA",
    "vae": "with a variational autoencoder",
}


@dataclass(frozen=True)
class Headline:
    """One of the figures by which a reader judges skills."""

    key: str
    """The field of a report."""
    label: str
    meaning: str
    """What it measures, one sentence."""
    good: str
    """What a good value is."""
    unit: str = ""
    ceiling: str | None = None
    """The field of a report that holds the highest value possible."""

    def text(self, value: float) -> str:
        """A value to read: three significant digits and its unit."""
        if self.unit == "%":
            return f"{100 * value:.3g} %"
        number = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return f"{number} {self.unit}".strip()


@dataclass(frozen=True)
class Figure:
    """A headline as it was measured."""

    headline: Headline
    value: float
    """Three significant digits."""
    ceiling: float | None
    compared: tuple[str, ...]
    """What the methods of `compared` have, to read; a dash where they were not measured."""

    @property
    def label(self) -> str:
        unit = f" {self.headline.unit}" if self.headline.unit else ""
        return self.headline.label + (f", of {self.ceiling:.3g}{unit}" if self.ceiling is not None else "")

    @property
    def text(self) -> str:
        return self.headline.text(self.value)

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of a card's table."""
        return (self.label, self.text, *self.compared)


_INFORMATION = Headline(
    "mutual_information_bits",
    "information in one horizon",
    "How many bits the movement of one horizon tells about the skill; n bits tell about 2^n skills apart.",
    "close to the ceiling, where every skill can be told from all others",
    "bits",
    "mutual_information_ceiling",
)
_HELD_INFORMATION = Headline(
    "held_information_bits",
    "information when held",
    "The same after a skill was kept for eight horizons; a wall or a fall on the way hides a skill.",
    "close to the ceiling",
    "bits",
    "mutual_information_ceiling",
)
_FIDELITY = Headline(
    "fidelity",
    "rollouts like the data",
    "Share of rollouts of one horizon that are as close to the data as 99 % of held-out data is.",
    "close to 99 %",
    "%",
)
_HELD_FIDELITY = Headline(
    "held_fidelity",
    "held rollouts like the data",
    "The same of the last horizon after a skill was kept for eight.",
    "close to 99 %",
    "%",
)
_SPREAD = Headline(
    "spread_ratio",
    "executed / planned spread",
    "How far apart skills lead in the simulator, relative to what the policy planned.",
    "between 0.8 and 1.2: plans are carried out as planned",
)
_FALLS = Headline(
    "falls",
    "falls",
    "Share of held rollouts that the environment ended, as after a fall; 0 % says nothing where it never ends one.",
    "0 %",
    "%",
)
_COVERAGE = Headline(
    "coverage",
    "coverage",
    "Share of the cells of a grid, counted from the start, that the data reaches and held skills reach too.",
    "close to 100 %",
    "%",
)
_DIRECTION = Headline(
    "direction_error_degrees",
    "direction error",
    "Evenly spaced skills should lead in evenly spaced directions: the largest deviation. Walls bend directions.",
    "a few degrees",
    "degrees",
)
_DISTANCE = Headline(
    "held_distance",
    "distance held",
    "How far a held skill goes, in the environment's units (metres, where skills are about positions).",
    "as far as the data goes in that time; more is not always better",
)
_RECOGNISED = Headline(
    "probe",
    "skill recognised",
    "How often a classifier names the right skill from the movement of one horizon.",
    "close to 100 %; guessing gives one in the number of skills",
    "%",
)
CONTINUOUS = (_INFORMATION, _HELD_INFORMATION, _FIDELITY, _SPREAD, _FALLS, _DIRECTION, _DISTANCE, _COVERAGE)
DISCRETE = (_INFORMATION, _HELD_INFORMATION, _FIDELITY, _HELD_FIDELITY, _RECOGNISED, _SPREAD, _FALLS, _COVERAGE)


def figures(results: Mapping[str, Any], discrete: bool) -> list[Figure]:
    """The headlines that a report has a number for, at most eight."""
    shown = [headline for headline in (DISCRETE if discrete else CONTINUOUS) if is_number(results.get(headline.key))]
    methods = _methods(results, shown)
    return [
        Figure(
            headline,
            float(f"{results[headline.key]:.3g}"),
            results[headline.ceiling] if headline.ceiling and is_number(results.get(headline.ceiling)) else None,
            tuple(_mean_text(headline, group.get(headline.key)) for group in methods.values()),
        )
        for headline in shown
    ]


def compared(results: Mapping[str, Any], figures: Collection[Figure]) -> list[str]:
    """What the columns beside this policy's are: the data's own behaviours, and two other methods."""
    return list(_methods(results, [figure.headline for figure in figures]))


def _methods(results: Mapping[str, Any], headlines: Collection[Headline]) -> dict[str, Mapping[str, Any]]:
    measured = {
        method: group
        for method, group in (results.get("baselines") or {}).items()
        if any(is_mean(group.get(headline.key)) for headline in headlines)
    }
    rivals = [method for method in _METHODS if method in measured][:2]
    own = {"the data's own behaviours": measured["behaviours"]} if "behaviours" in measured else {}
    return {
        f"{name} ({_runs(group, headlines)})": group
        for name, group in (own | {_METHODS[method]: measured[method] for method in rivals}).items()
    }


def _runs(group: Mapping[str, Any], headlines: Collection[Headline]) -> str:
    """How many runs a method's means are of."""
    most = max(entry["n"] for entry in (group.get(each.key) for each in headlines) if is_mean(entry))
    return f"{most:g} {'run' if most == 1 else 'runs'}"


def _mean_text(headline: Headline, entry: Any) -> str:
    return headline.text(entry["iqm"]) if is_mean(entry) else "-"


def is_mean(entry: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether an entry of a report has a mean over seeds."""
    return isinstance(entry, Mapping) and is_number(entry.get("iqm")) and is_number(entry.get("n"))


def is_number(value: Any) -> bool:
    """Whether a value of a report is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def code(text: Any) -> str:
    """A word of a configuration, which may come from anywhere, as code in Markdown: nothing in it is obeyed."""
    return f"`{printable(str(text)).replace('`', chr(39))}`"


def plain(text: Any) -> str:
    """A text of a configuration or a file as Markdown that shows it as it is: no markup, no HTML, no line break."""
    return re.sub(r"[\\`*_{}\[\]()#!|<>&~]", r"\\\g<0>", printable(str(text)))


def usage(policy: PolicyNetwork, source: str, env: str | None, env_kwargs: Mapping[str, Any]) -> str:
    """A program of at most four lines that runs, and makes `env` where the policy has an environment.

    Where making the environment of the policy's config asks for trust, as one in a module that the config names does,
    the program plans without it.

    Args:
        env: Id of the environment to show; default: the one of the policy's data.
        env_kwargs: Its own arguments.
    """
    steps = [
        "observation, info = env.reset(seed=0)",
        "observation, reward, terminated, truncated, info = env.step(env.action_space.sample())",
    ]
    if env is not None:
        settings = ", ".join(f"{json.dumps(key)}: {value!r}" for key, value in env_kwargs.items())
        more = f", env_kwargs={{{settings}}}" if settings else ""
        make = f"env = didi_gym.make({json.dumps(env)}, {json.dumps(source)}{more})"
        return "\n".join(["import didi_gym", "", make, *steps])
    load = f"policy = didi_gym.SkillPolicy.from_pretrained({json.dumps(source)})"
    if policy.config.env_id is not None and _follows(policy):
        more = ", env_kwargs=policy.config.env_kwargs" if policy.config.env_kwargs else ""
        make = f"env = didi_gym.make(policy.config.env_id, policy{more})"
        return "\n".join(["import didi_gym", "", load, make, *steps])
    inputs = len(policy.config.layout.policy_inputs)
    draw = "skills = policy.skill_space.sample(1, np.random.default_rng(0))"
    plan = f"actions = policy.plan_actions(np.zeros((1, {inputs}), np.float32), skills)  # (1, steps, action_dim)"
    return "\n".join(["import didi_gym", "import numpy as np", "", load, draw, plan])


def _follows(policy: PolicyNetwork) -> bool:
    """Whether a program may make the environment that the policy's config names without trusting who wrote that."""
    try:
        return asks_for_trust(policy.config.env_id or "", policy.config.env_kwargs) is None
    except ValueError:  # no id at all
        return False


def pinned(source: str) -> str:
    """Says which revision the program pins, or how to pin one."""
    repo_id, _, revision = source.partition("@")
    if revision:
        return f"`@{revision}` names one version of this repository, so the skills stay the same when it changes."
    if "/" in repo_id:
        return (
            f"To keep the skills the same when this repository changes, write `{repo_id}@COMMIT` instead; "
            f"`didi-gym hub pull {repo_id} --pin` prints the present commit."
        )
    return "The policies that `didi-gym hub list` shows come with the package: loading them downloads nothing."


def describe_spaces(policy: PolicyNetwork) -> list[tuple[str, str]]:
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
        f"discrete: one of {space.size}"
        if space.is_discrete
        else f"continuous: `z` in {_SPACES[space.kind].format(n=space.size)}"
    )
    agent = f"`Discrete({space.size})`" if space.is_discrete else f"`Box(-1, 1, ({space.size},))`"
    observations = "; or ".join(dict.fromkeys(_source_text(source) for source in config.layout.sources))
    if "of which" in observations:
        observations += "; numbers are counted from 0"
    rows = [
        (
            "observation of the environment",
            observations or f"{len(config.layout.policy_inputs)} numbers",
        ),
        ("action of the environment", actions),
        ("skills", kind),
        ("action of the agent", agent),
        ("a skill lasts", f"{config.skill_duration} steps by default, with a new plan {_every(config.replan_every)}"),
        ("a plan", f"{config.actions_per_plan} {'action' if config.actions_per_plan == 1 else 'actions'}"),
    ]
    if config.env_id is not None:
        recorded = f"recorded in {code(config.env_id)}"
        rows.append(("data", f"{code(config.dataset_id)}, {recorded}" if config.dataset_id else recorded))
    return rows


def _source_text(source: ObservationSource) -> str:
    keys = " + ".join(map(code, source.keys))
    where = f"{keys} of {source.size} numbers" if keys else f"{source.size} numbers"
    if source.indices != tuple(range(source.size)):
        where += f", of which it reads {_ranges(source.indices)}"
    angles = f"{len(source.angles)} of them {'an angle' if len(source.angles) == 1 else 'angles'}"
    return f"{where}, {angles}" if source.angles else where


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


def _every(steps: float) -> str:
    return "at every step" if steps == 1 else f"every {steps:g} steps"


def how_measured(results: Mapping[str, Any], figures: Collection[Figure]) -> str:
    """How the figures came about."""
    said = "All figures are measured on rollouts in the simulator, not on plans"
    if all(is_number(results.get(key)) for key in ("starts", "skills", "replan_every")):
        said += (
            f": {results['skills']:g} skills from each of {results['starts']:g} start states, with a new plan "
            f"{_every(results['replan_every'])}"
        )
        if is_number(results.get("held_steps")):
            seconds = f" ({results['held_seconds']:g} s)" if is_number(results.get("held_seconds")) else ""
            said += f"; falls, directions, distances and coverage with skills held for {results['held_steps']:g} steps"
            said += f"{seconds} from a reset"
    if compared(results, figures):
        said += (
            ". The columns beside this policy's are interquartile means over runs on the same data; "
            "`docs/results.md` of didi_gym compares more methods"
        )
    return said + "."


def description(policy: PolicyNetwork) -> str:
    """The first words of a card, where nobody wrote any."""
    learned = f" from {code(policy.config.dataset_id)}" if policy.config.dataset_id else ""
    return (
        f"A skill policy for didi_gym: a reinforcement-learning agent picks a skill, and the policy carries it out for "
        f"many steps of the environment. The skills were learned without rewards{learned}."
    )


def how_made(policy: PolicyNetwork, effort: str, has_commands: bool) -> str:
    """How the policy came about; its commands follow where it has some."""
    version = f" with didi_gym {plain(policy.config.didi_gym_version)}" if policy.config.didi_gym_version else ""
    if has_commands:
        return f"These commands make the policy{version}{f' ({effort})' if effort else ''}:"
    dataset = (policy.config.dataset_id or "ID").replace("`", "?")  # what `code` would replace by a shell's quote
    command = code(f"didi-gym train --dataset {shlex.quote(dataset)}")
    return f"It was made{version} by {command}; `config.json` has the settings."


def limits(policy: PolicyNetwork) -> list[str]:
    """What holds for every policy."""
    return [
        "Skills can do what their data shows, and nothing else. An environment with other observations or other action "
        "bounds is refused.",
        f"One action of the agent lasts up to {policy.config.skill_duration} steps of the environment, so what follows "
        "has to be discounted by `gamma ** info['skill_length']`; `help(didi_gym.sb3)` shows how.",
    ]
