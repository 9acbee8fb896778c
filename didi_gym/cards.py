"""Model cards: what the Hub shows of a skill policy, made from its configuration, measurements and recipe. Offline."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from didi_gym import card_text
from didi_gym.policy import SkillPolicy
from didi_gym.recipes import CardError, Recipe

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD_FILE, RESULTS_FILE, MAP_FILE, REPLAY_FILE = "README.md", "results.json", "skill_map.png", "replay.mp4"
TAGS = ("reinforcement-learning", "skill-discovery", "gymnasium", "didi")
_TEMPLATES = Path(__file__).parent / "templates"
_MARK = "<!-- made by didi_gym, and kept by it when edited by hand: "


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
    columns, rows = card_text.results_table(results, policy.skill_space.is_discrete)
    # no HTML is made here, and what could break a table is replaced in its cells
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda text: re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
    body = environment.get_template("card.md.jinja").render(
        name=name,
        files=set(files),
        description=recipe.description.strip() if recipe else card_text.description(policy),
        usage=card_text.usage(policy, source, recipe),
        pinned=card_text.pinned(source),
        spaces=card_text.describe_spaces(policy),
        columns=columns,
        rows=rows,
        measured=card_text.how_measured(results),
        explained="Spreads and distances are in units of the policy's normaliser; `docs/metrics.md` of didi_gym "
        "explains each number, and `results.json` has all digits.",
        made=card_text.how_made(policy, recipe),
        commands=recipe.commands(name.rpartition("/")[2]) if recipe else [],
        limits=[*(recipe.limits if recipe else ()), *card_text.limits(policy)],
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
            metric_name=card_text.metric_label(key, results, policy.skill_space.is_discrete),
            metric_value=value,
            metric_args={"seeds": seeds[key]} if card_text.is_interval(seeds.get(key)) else None,
        )
        for key, value in card_text.measured_numbers(results).items()
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
        if not card_text.is_number(result.metric_value):
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
