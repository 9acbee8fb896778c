"""Model cards: what the Hub shows of a skill policy, made from its configuration and measurements. Offline."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from didi_gym.core.files import MEGABYTE, SafeFileError, in_short, parse_json, read_plain
from didi_gym.hub.upload import CARD_FILE, marked
from didi_gym.models import card_text
from didi_gym.models.policy_network import PolicyNetwork

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

RESULTS_FILE, MAP_FILE, REPLAY_FILE = "results.json", "skill_map.png", "replay.mp4"
SHOWN_FILES = (RESULTS_FILE, MAP_FILE, REPLAY_FILE)
TAGS = ("reinforcement-learning", "skill-discovery", "gymnasium", "didi")
_TEMPLATES = Path(__file__).parent / "templates"


class CardError(ValueError):
    """A recipe, a report or a card that cannot be used; the message says which part and why."""


@dataclass(frozen=True)
class CardWords:
    """What a person writes for a card; all else on it follows from the policy and its measurements."""

    description: str
    """What the skills are, in Markdown."""
    limits: tuple[str, ...] = ()
    """What the skills cannot do, a sentence each."""
    effort: str = ""
    """What making the policy takes, e.g. two CPU cores, about 12 minutes."""
    commands: tuple[str, ...] = ()
    """What makes the policy, one command a line."""
    env: str | None = None
    """Gymnasium id of the environment in the card's program; default: the one the data was recorded in."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of that environment."""
    dataset: str | None = None
    """Minari id; default: the one in the policy's configuration."""


def read_results(file: Path) -> dict[str, Any] | None:
    """The measurements in `results.json`; None where there is no such file.

    Raises:
        CardError: it is a link that leads elsewhere, too large, damaged, or no report of `didi-gym evaluate`.
    """
    if not os.path.lexists(file):
        return None
    try:
        return parse_results(read_plain(file, MEGABYTE), str(file))
    except SafeFileError as error:
        raise CardError(str(error)) from error


def parse_results(content: bytes, where: str = RESULTS_FILE) -> dict[str, Any]:
    """The measurements in the bytes of a `results.json`.

    Raises:
        CardError: it is damaged, or no report of `didi-gym evaluate`; the message begins with `where`.
    """
    try:
        return _checked_results(parse_json(content))
    except ValueError as error:
        raise CardError(f"{where} is no report of didi-gym evaluate: {in_short(error)}") from error


def _checked_results(results: Any) -> dict[str, Any]:
    """A report, where every value has the type that a report's have.

    Raises:
        ValueError: the first value that has not, with its place.
    """
    for metric, value in _object(results, "the file").items():
        if metric == "seeds":
            _check_summaries(value, metric)
        elif metric == "baselines":
            for method, summaries in _object(value, metric).items():
                _check_summaries(summaries, f"baselines.{method}")
        else:
            _check_number(value, metric)
    return dict(results)


def _check_summaries(summaries: Any, where: str) -> None:
    for metric, summary in _object(summaries, where).items():
        for statistic, value in _object(summary, f"{where}.{metric}").items():
            _check_number(value, f"{where}.{metric}.{statistic}")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {type(value).__name__}")
    return value


def _check_number(value: Any, where: str) -> None:
    if value is not None and not (isinstance(value, float) or card_text.is_number(value)):
        raise ValueError(f"{where} must be a number or null, got {type(value).__name__} {in_short(repr(value))[:50]}")


def make_card(
    policy: PolicyNetwork,
    name: str,
    *,
    source: str | None = None,
    words: CardWords | None = None,
    results: Mapping[str, Any] | None = None,
    license: str | None = None,
    files: Collection[str] = (),
) -> str:
    """The model card of a policy: front matter and Markdown. Touches no network.

    Args:
        name: What the card is about: its title.
        source: What the program on it loads, `owner/name@revision`; default: `name`, for bundled policies.
        words: What a person wrote for it; without it the card says less.
        results: A report, with the key `baselines` where others were measured on the same data.
        license: As the Hub names it, e.g. mit.
        files: What lies beside the card; the map and the video are shown where they are there.

    Raises:
        CardError: `results` is no report.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    try:
        results = _checked_results(results or {})
    except ValueError as error:
        raise CardError(f"the results of {name} are no report of didi-gym evaluate: {error}") from error
    source = source or name
    figures = card_text.figures(results, policy.skill_space.is_discrete)
    # no HTML is made here; words of a configuration are escaped where they are put in (`card_text.code` and `plain`),
    # and what could break a table is replaced in its cells
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda text: re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
    body = environment.get_template("card.md.jinja").render(
        name=card_text.plain(name),
        files=set(files),
        description=words.description.strip() if words else card_text.description(policy),
        usage=card_text.usage(policy, source, words.env if words else None, words.env_kwargs if words else {}),
        pinned=card_text.pinned(source),
        spaces=card_text.describe_spaces(policy),
        figures=figures,
        columns=["this policy", *card_text.compared(results, figures)],
        measured=card_text.how_measured(results, figures),
        made=card_text.how_made(policy, words.effort if words else "", bool(words and words.commands)),
        commands=words.commands if words else (),
        limits=[*(words.limits if words else ()), *card_text.limits(policy)],
    )
    front = _front_matter(policy, name, words, figures, license).to_yaml()
    return marked(f"---\n{front}\n---\n{re.sub(chr(10) + '{3,}', chr(10) * 2, body).rstrip()}\n")


def _front_matter(
    policy: PolicyNetwork,
    name: str,
    words: CardWords | None,
    figures: Collection[card_text.Figure],
    license: str | None,
) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    config = policy.config
    dataset = (words.dataset if words else None) or config.dataset_id
    env_ids = dict.fromkeys(env for env in (config.env_id, words.env if words else None) if env)
    judged = config.env_id or dataset or "unknown"
    measured = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="skill discovery",
            dataset_type=judged,
            dataset_name=judged,
            metric_type=figure.headline.key,
            metric_name=figure.label,
            metric_value=figure.value,
        )
        for figure in figures
    ]
    return ModelCardData(
        library_name="didi_gym",
        pipeline_tag="reinforcement-learning",
        license=license,
        tags=[*TAGS, *env_ids],
        datasets=[_hub_dataset(dataset)] if dataset else None,
        model_name=name if measured else None,
        eval_results=measured or None,
    )


def _hub_dataset(dataset: str) -> str:
    """The Hub repository of `hf://owner/namespace/name-v0`, which is `owner/namespace`; other ids as they are."""
    owner, _, rest = dataset.removeprefix("hf://").partition("/")
    return f"{owner}/{rest.partition('/')[0]}" if dataset.startswith("hf://") else dataset


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
