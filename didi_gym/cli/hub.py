"""The commands `didi-gym hub ...`: their settings, and what each runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from didi_gym.core.files import printable
from didi_gym.hub.download import known_models, list_pretrained


@dataclass(frozen=True)
class List:
    """Skill policies that come with this installation, and where each is on the Hub."""


@dataclass(frozen=True)
class Info:
    """What a skill policy reads, does and scores, and which weights these are.

    Where NAME is a Hub id, the policy is fetched into the cache, unless it is there.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Bundled name, folder, or Hub id owner/name[@revision]."""


@dataclass(frozen=True)
class Pull:
    """Fetch a skill policy from the Hub into the cache, so that it loads offline; prints its folder.

    Only config.json and model.safetensors are fetched. A private or gated policy needs a token: `hf auth login`, or
    HF_TOKEN.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Hub id owner/name[@revision], where a revision is a branch, a tag or a commit."""
    pin: bool = False
    """Print owner/name@commit instead, to paste into a program: it means the same weights for ever."""
    force: bool = False
    """Fetch it again even where the cache has it, e.g. a damaged file."""


@dataclass(frozen=True)
class Push:
    """Publish a policy folder: weights, config, card, results, picture and video in one commit, then read it back.

    A README.md on the Hub that was edited by hand stays. Where nothing has changed, nothing is committed. It needs a
    token with write access: `hf auth login`, or HF_TOKEN.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Written by didi-gym train and didi-gym evaluate."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """Hub id owner/name; made where it is not there."""
    tag: str | None = None
    """Name the commit, e.g. v1; the card then loads owner/name@v1."""
    private: bool = False
    """Make the repository private where this makes it; one that is there and public is refused."""
    pr: bool = False
    """Open a pull request instead of committing to main."""
    license: str | None = None
    """Of the weights, for the card, e.g. mit."""


def list_policies(args: List) -> None:
    known = known_models()
    rows = []
    for name in list_pretrained():
        if model := known.get(name):
            where = f"{model.repo_id}@{model.revision}" if model.revision else "not published yet"
            rows.append((name, model.description, model.env_id, model.license, where))
        else:
            rows.append((name, "", "", "", ""))
    _print_table(("policy", "what its skills do", "environment", "license", "on the Hub"), rows)


def info(args: Info) -> None:
    from didi_gym import hub
    from didi_gym.models.card import RESULTS_FILE, read_results
    from didi_gym.models.card_text import describe_spaces, figures
    from didi_gym.models.policy import SkillPolicy

    policy = SkillPolicy.from_pretrained(args.name, device="cpu")
    folder, commit = hub.resolve(policy.name_or_path or args.name, revision=policy.revision, local_files_only=True)
    sha256 = hub.weights_sha256(folder)
    rows = [("what its skills do", model.description) for model in known_models().values() if model.sha256 == sha256]
    rows += [(label, text.replace("`", "")) for label, text in describe_spaces(policy)]
    rows += [("weights sha256", sha256), ("folder", str(folder))]
    if commit is not None:
        rows.append(("commit", commit))
    _print_table(("property", "value"), rows)
    if measured := figures(read_results(folder / RESULTS_FILE) or {}, policy.skill_space.is_discrete):
        print()
        _print_table(
            ("measured in the simulator", "value", "good is", "what it means"),
            [(each.label, each.text, each.headline.good, each.headline.meaning) for each in measured],
        )


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: wrapped in a terminal; elsewhere a row a line, whole and without colours.

    Cells may quote files of strangers, so they are text and no markup, and nothing in them is a line break or something
    that a terminal obeys.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in cells[0]:
        table.add_column(Text(title), overflow="fold")
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    Console().print(table)


def pull(args: Pull) -> None:
    from didi_gym import hub
    from didi_gym.models.policy import SkillPolicy

    policy = SkillPolicy.from_pretrained(args.name, device="cpu", force_download=args.force)
    if policy.revision is None or policy.name_or_path is None:
        raise hub.SkillPolicyHubError(
            f"{args.name!r} is on this disk already, so there is nothing to fetch; expected a Hub id owner/name"
        )
    folder, _ = hub.resolve(policy.name_or_path, revision=policy.revision, local_files_only=True)
    known = known_models().get(policy.name_or_path)
    pinned = f"{known.repo_id if known else policy.name_or_path}@{policy.revision}"
    print(pinned if args.pin else folder)
    if not args.pin:
        print(f"Next: didi_gym.make(ENV, {pinned!r})", file=sys.stderr)


def push(args: Push) -> None:
    from didi_gym.models.card import SHOWN_FILES
    from didi_gym.models.policy import SkillPolicy
    from didi_gym.models.publishing import push_policy

    policy = SkillPolicy.from_pretrained(args.folder, device="cpu")
    done = push_policy(
        policy,
        args.repo,
        check=partial(SkillPolicy.from_pretrained, device="cpu"),
        extra={name: args.folder / name for name in SHOWN_FILES if os.path.lexists(args.folder / name)},
        license=args.license,
        tag=args.tag,
        private=True if args.private else None,
        create_pr=args.pr,
    )
    if done.kept_card:
        print("README.md on the Hub was edited by hand, so it stayed as it is.", file=sys.stderr)
    if done.changed:
        where = done.commit.pr_url or done.commit.commit_url
        print(f"Pushed {', '.join(sorted(done.changed))} to {where}, and read it back: the same, bit for bit.")
    else:
        print(f"{args.repo} has all of this already.")
    print(f"{args.repo}@{done.commit.oid}")


HUB: dict[str, tuple[type, Callable[[Any], None]]] = {
    "list": (List, list_policies),
    "info": (Info, info),
    "pull": (Pull, pull),
    "push": (Push, push),
}
