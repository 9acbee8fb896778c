"""Model cards: what the Hub shows of a skill policy, made from its configuration, measurements and recipe. Offline."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from didi_gym.layout import ObservationSource
from didi_gym.policy import SkillPolicy
from didi_gym.recipes import CardError, Recipe

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD_FILE, RESULTS_FILE, MAP_FILE, REPLAY_FILE = "README.md", "results.json", "skill_map.png", "replay.mp4"
TAGS = ("reinforcement-learning", "skill-discovery", "gymnasium", "didi")
_TEMPLATES = Path(__file__).parent / "templates"
_MARK = "<!-- made by didi_gym, and kept by it when edited by hand: "

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


def read_results(file: Path) -> dict[str, Any] | None:
    """The measurements in `results.json`; None where there is no such file.

    Raises:
        CardError: it is damaged, or no JSON object.
    """
    if not file.is_file():
        return None
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(results, dict):
            raise ValueError(f"expected an object, got {type(results).__name__}")
    except (ValueError, RecursionError) as error:
        raise CardError(f"{file} is no report of didi-gym evaluate: {error}") from error
    return results


def make_card(
    policy: SkillPolicy,
    name: str,
    *,
    source: str | None = None,
    recipe: Recipe | None = None,
    results: Mapping[str, Any] | None = None,
    licence: str | None = None,
    files: Collection[str] = (),
) -> str:
    """The model card of a policy: front matter and Markdown. Touches no network.

    Args:
        name: What the card is about: its title.
        source: What the program on it loads, `owner/name@revision`; default: `name`, for bundled policies.
        recipe: Free text, environment of the program, and commands; without one the card says less.
        results: A report, with the keys `seeds` and `baselines` where several seeds were run.
        licence: As the Hub names it, e.g. mit.
        files: What lies beside the card; the map and the video are shown where they are there.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results, source = results or {}, source or name
    columns, rows = _results_table(results, policy.skill_space.is_discrete)
    # no HTML is made here, and what could break a table is replaced in its cells
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda text: re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
    body = environment.get_template("card.md.jinja").render(
        name=name,
        files=set(files),
        description=recipe.description.strip() if recipe else _description(policy),
        usage=_usage(policy, source, recipe),
        pinned=_pinned(source),
        spaces=describe_spaces(policy),
        columns=columns,
        rows=rows,
        measured=_measured(results),
        explained="Spreads and distances are in units of the policy's normaliser; `docs/metrics.md` of didi_gym "
        "explains each number, and `results.json` has all digits.",
        made=_made(policy, recipe),
        commands=recipe.commands(name.rpartition("/")[2]) if recipe else [],
        limits=[*(recipe.limits if recipe else ()), *_limits(policy)],
    )
    front = _front_matter(policy, name, recipe, results, licence).to_yaml()
    return marked(f"---\n{front}\n---\n{re.sub(chr(10) + '{3,}', chr(10) * 2, body).rstrip()}\n")


def _front_matter(
    policy: SkillPolicy, name: str, recipe: Recipe | None, results: Mapping[str, Any], licence: str | None
) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    config = policy.config
    dataset = recipe.data.dataset if recipe else config.dataset_id
    env_ids = dict.fromkeys(
        env for env in (config.env_id, recipe.usage.env if recipe and recipe.usage else None) if env
    )
    judged = config.env_id or dataset or "unknown"
    seeds = results.get("seeds") or {}
    measured = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="skill discovery",
            dataset_type=judged,
            dataset_name=judged,
            metric_type=key,
            metric_name=_label(key, results, policy.skill_space.is_discrete),
            metric_value=value,
            metric_args={"seeds": seeds[key]} if _is_interval(seeds.get(key)) else None,
        )
        for key, value in _numbers(results).items()
    ]
    return ModelCardData(
        library_name="didi_gym",
        pipeline_tag="reinforcement-learning",
        license=licence,
        tags=[*TAGS, *env_ids],
        datasets=[_hub_dataset(dataset)] if dataset else None,
        model_name=name if measured else None,
        eval_results=measured or None,
    )


def _hub_dataset(dataset: str) -> str:
    """The Hub repository of `hf://owner/namespace/name-v0`, which is `owner/namespace`; other ids as they are."""
    owner, _, rest = dataset.removeprefix("hf://").partition("/")
    return f"{owner}/{rest.partition('/')[0]}" if dataset.startswith("hf://") else dataset


def _usage(policy: SkillPolicy, source: str, recipe: Recipe | None) -> str:
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


def _pinned(source: str) -> str:
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


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """What was measured: finite numbers, without settings."""
    return {key: float(value) for key, value in results.items() if key not in SETTINGS and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_interval(entry: Any) -> bool:
    """Whether there is a mean over seeds; of one seed it has no interval."""
    return isinstance(entry, Mapping) and _is_number(entry.get("iqm")) and _is_number(entry.get("n"))


def _label(key: str, results: Mapping[str, Any], discrete: bool) -> str:
    label, unit = METRICS.get(key, (key, ""))
    if key == "probe":
        return f"{label}, {'accuracy' if discrete else 'R^2'}"
    if key in _CEILINGS and _is_number(ceiling := results.get(_CEILINGS[key])):
        return f"{label}, of {ceiling:.3g}{f' {unit}' if unit else ''}"
    if key == "held_distance" and _is_number(steps := results.get("held_steps")):
        return f"{label} for {steps:g} steps"
    return label if unit in ("", "%") else f"{label}, {unit}"


def _text(key: str, value: float) -> str:
    if METRICS.get(key, ("", ""))[1] == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _results_table(results: Mapping[str, Any], discrete: bool) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; seeds and baselines have columns where they are there, and a dash where they lack a number."""
    numbers, seeds, baselines = _numbers(results), results.get("seeds") or {}, results.get("baselines") or {}
    groups = {"seeds": seeds, **baselines}
    groups = {title: group for title, group in groups.items() if any(map(_is_interval, group.values()))}
    known = [*METRICS, *sorted({key for group in (numbers, *groups.values()) for key in group} - {*METRICS})]
    rows = []
    for key in known:
        cells = [_text(key, numbers[key]) if key in numbers else "-"]
        for group in groups.values():
            entry = group.get(key)
            cells.append(_interval_text(key, entry) if _is_interval(entry) else "-")
        if any(cell != "-" for cell in cells):
            rows.append([_label(key, results, discrete), *cells])
    titles = ["our seeds" if title == "seeds" else title for title in groups]
    return ["on rollouts in the simulator", "this policy", *titles], rows


def _interval_text(key: str, entry: Mapping[str, Any]) -> str:
    ends: list[Any] = [entry.get("low"), entry.get("high")]
    interval = " [{}, {}]".format(*(_text(key, end) for end in ends)) if all(map(_is_number, ends)) else ""
    return f"{_text(key, entry['iqm'])}{interval}, n={entry['n']:g}"


def _every(steps: float) -> str:
    return "at every step" if steps == 1 else f"every {steps:g} steps"


def _measured(results: Mapping[str, Any]) -> str:
    """How the numbers came about."""
    said = "Measured on rollouts in the simulator, never on plans"
    if all(_is_number(results.get(key)) for key in ("starts", "skills", "replan_every")):
        said += (
            f": {results['skills']:g} skills from each of {results['starts']:g} start states, with a new plan "
            f"{_every(results['replan_every'])}"
        )
        if _is_number(results.get("held_steps")):
            said += f"; held skills from resets, for {results['held_steps']:g} steps"
    if results.get("seeds") or results.get("baselines"):
        said += ". Where several seeds were trained: interquartile mean [95 % bootstrap interval], n seeds"
    return said + "."


def _description(policy: SkillPolicy) -> str:
    learned = f" from `{policy.config.dataset_id}`" if policy.config.dataset_id else ""
    return (
        f"A skill policy for didi_gym: an agent picks skills, and each runs for many steps. Learned without "
        f"rewards{learned}."
    )


def _made(policy: SkillPolicy, recipe: Recipe | None) -> str:
    version = f" with didi_gym {policy.config.didi_gym_version}" if policy.config.didi_gym_version else ""
    if recipe is not None:
        return f"Made{version}{f' ({recipe.effort})' if recipe.effort else ''} by:"
    dataset = policy.config.dataset_id or "ID"
    return f"Made{version} by `didi-gym train --dataset {dataset}`; `config.json` has the details."


def _limits(policy: SkillPolicy) -> list[str]:
    """What holds for every policy."""
    return [
        "Skills are as good as the coverage of their data, and mean nothing for another body: an environment with "
        "other observations or action bounds is refused.",
        f"A step of the agent lasts up to {policy.config.skill_duration} steps of the environment: discount by "
        "`gamma ** info['skill_length']` (`help(didi_gym.sb3)`).",
    ]


def marked(text: str) -> str:
    """A card with a last line that tells whether a hand has edited it since."""
    return f"{text}\n{_MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_untouched(card: str) -> bool:
    """Whether a card is as `make_card` wrote it, of whatever version and numbers: no hand has edited it since."""
    text, found, _ = card.partition(f"\n{_MARK}")
    return bool(found) and marked(text) == card


def check_card(card: str, files: Collection[str], *, complete: bool = True) -> None:
    """Check a card offline: `ModelCard.validate` of the client would ask the Hub.

    Args:
        card: Front matter and Markdown.
        files: What lies beside it; relative links must lead there.
        complete: Also ask for what published policies have: a licence and a data set.

    Raises:
        CardError: all that is wrong with it, in one message.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if not REGEX_YAML_BLOCK.search(card):
        raise CardError(f"{CARD_FILE} has no front matter: expected `---`, YAML and `---` at its top")
    try:
        parsed = ModelCard(card)
    except Exception as error:  # the client's and YAML's have no common base
        raise CardError(f"{CARD_FILE}: its front matter cannot be read: {error}") from error
    data: Any = parsed.data
    faults = []
    for key, expected in (("library_name", "didi_gym"), ("pipeline_tag", "reinforcement-learning")):
        if data.get(key) != expected:
            faults.append(f"{key} must be {expected}, got {data.get(key)!r}")
    if complete:
        faults += [f"{key} is missing" for key in ("license", "datasets") if not data.get(key)]
    if not data.get("tags"):
        faults.append("tags are missing")
    for result in data.eval_results or []:
        if not _is_number(result.metric_value):
            faults.append(f"model-index: {result.metric_type} must be a number, got {result.metric_value!r}")
    programs = re.findall(r"^```python\n(.*?)^```", parsed.text, re.DOTALL | re.MULTILINE)
    if not programs:
        faults.append("it has no Python block that shows how to use the policy")
    for program in programs:
        try:
            compile(program, CARD_FILE, "exec")
        except SyntaxError as error:
            faults.append(f"a Python block is no Python: {error}")
    links = re.findall(r"\]\(([^)\s]+)\)", parsed.text)
    faults += [f"{link} is linked but not there" for link in links if "://" not in link and link not in files]
    if faults:
        raise CardError(f"{CARD_FILE}: {'; '.join(faults)}")
