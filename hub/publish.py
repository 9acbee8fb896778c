"""Publish policies of `hub/` on the Hugging Face Hub, or show what would be published.

    python hub/publish.py --all --dry-run                   # build and check every folder; no network
    python hub/publish.py --all --refresh                   # only hub/NAME/README.md, and sha256 of what is unpublished
    python hub/publish.py ant-directions --repo-id me/ant-directions

A push is one commit (weights, config, card, results.json, skill_map.png, replay.mp4), then a tag, which the card loads
(no commit can name itself). It is read back at that commit and compared bit for bit; then repo id, revision and sha256
are written to hub/models.toml. It needs a token with write access: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import tyro
from recipe import Recipe

from didi_gym import hub
from didi_gym.core.files import write_atomically
from didi_gym.data.minari import split_id
from didi_gym.hub.upload import CARD_FILE, push_files, read_to_push
from didi_gym.models.card import RESULTS_FILE, SHOWN_FILES, check_card, make_card, read_results
from didi_gym.models.folder import CONFIG_FILE, POLICY_FILES
from didi_gym.models.policy import SkillPolicy

HUB = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Publish:
    """Publish policies of hub/, or show with --dry-run what would be published."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME...")] = ()
    all: bool = False
    """Every folder of hub/."""
    dry_run: bool = False
    """Build and check everything, and push nothing. No network."""
    refresh: bool = False
    """Only renew what follows from other files: hub/NAME/README.md and, of weights that were never published, the
    sha256 in hub/models.toml. No network."""
    repo_id: str | None = None
    """Hub id owner/name; default: the one in hub/models.toml. For one NAME."""
    tag: str | None = None
    """Name of the commit; default: policy-HASH, of configuration and weights."""
    private: bool = False
    """Make the repository private where this makes it."""


@dataclass(frozen=True)
class Built:
    """What will be pushed, checked."""

    name: str
    repo_id: str
    tag: str
    files: dict[str, bytes]
    sha256: str
    """Of model.safetensors."""
    known: hub.KnownModel


def all_names() -> list[str]:
    return sorted(file.parent.name for file in HUB.glob(f"*/{CONFIG_FILE}"))


def known_model(name: str) -> hub.KnownModel:
    known = hub.known_models().get(name)
    if known is None:
        raise ValueError(
            f"hub/models.toml has no [{name}]; add it, with description, repo_id, sha256, dataset, env_id and license, "
            f"which a person has to choose"
        )
    return known


def card(name: str, policy: SkillPolicy, source: str) -> str:
    """The card of `hub/NAME`, from its recipe, its results and models.toml."""
    folder, recipe = HUB / name, HUB / "recipes" / f"{name}.toml"
    return make_card(
        policy,
        name,
        source=source,
        words=Recipe.read(recipe).words(name) if recipe.is_file() else None,
        results=read_results(folder / RESULTS_FILE),
        license=known_model(name).license,
        files=_there(folder, SHOWN_FILES),
    )


def build(name: str, repo_id: str | None, tag: str | None) -> Built:
    """Collect and check the files of `hub/NAME`. No network.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    folder = HUB / name
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"hub/ has no policy {name!r}; expected one of {', '.join(all_names())}")
    known = known_model(name)
    policy = SkillPolicy.from_pretrained(folder, device="cpu")
    _check_recipe(name, policy)
    files = {path: read_to_push(path, folder / path) for path in _there(folder, (*POLICY_FILES, *SHOWN_FILES))}
    identity = hashlib.sha256(b"".join(hashlib.sha256(files[path]).digest() for path in POLICY_FILES)).hexdigest()
    repo_id = repo_id or known.repo_id
    tag = tag or f"policy-{identity[:12]}"
    text = card(name, policy, f"{repo_id}@{tag}")
    files[CARD_FILE] = text.encode()
    with TemporaryDirectory() as built:
        for path, content in files.items():
            (Path(built) / path).write_bytes(content)
        _check_same(policy, SkillPolicy.from_pretrained(built, device="cpu"))
        check_card(text, files)
        return Built(name, repo_id, tag, files, hub.weights_sha256(Path(built)), known)


def _there(folder: Path, names: Iterable[str]) -> list[str]:
    """Those that are there, links to nothing too: `read_to_push` refuses them."""
    return [name for name in names if os.path.lexists(folder / name)]


def _check_recipe(name: str, policy: SkillPolicy) -> None:
    file = HUB / "recipes" / f"{name}.toml"
    trained_on = policy.config.dataset_id
    if file.is_file() and trained_on is not None:
        named = Recipe.read(file).data.dataset
        if split_id(named)[1] != split_id(trained_on)[1]:
            raise ValueError(f"{file.name} names data set {named}, but the policy was trained on {trained_on}")


def _check_same(ours: SkillPolicy, built: SkillPolicy) -> None:
    """Compare configuration, every bit of the weights, and plans."""
    weights, again = ours.state_dict(), built.state_dict()
    differ = [key for key in weights.keys() | again.keys() if key not in again or not _equal(weights[key], again[key])]
    if ours.config != built.config or differ:
        raise ValueError(f"the built folder loads as another policy: {', '.join(sorted(differ)) or 'configuration'}")
    inputs = torch.randn(8, len(ours.config.layout.policy_inputs), generator=torch.Generator().manual_seed(0))
    skills = ours.skill_space.sample(8, torch.Generator().manual_seed(0))
    if not ours.plan_actions(inputs, skills).equal(built.plan_actions(inputs, skills)):
        raise ValueError("the built folder plans other actions")


def _equal(ours: torch.Tensor, other: torch.Tensor) -> bool:
    return ours.dtype == other.dtype and ours.equal(other)


def show(built: Built) -> None:
    """Print what a push would do, as far as that can be told without a network."""
    print(f"{built.name} -> {built.repo_id}, tag {built.tag}")
    for path, content in built.files.items():
        print(f"  {path:20} {len(content):>12,} bytes  {hashlib.sha256(content).hexdigest()[:12]}")
    if missing := [path for path in SHOWN_FILES if path not in built.files]:
        print(f"  not there: {', '.join(missing)}")
    known = built.known
    if known.revision is None:
        print("  never published, as far as hub/models.toml knows")
    else:
        same = "the same weights" if known.sha256 == built.sha256 else "OTHER weights"
        print(f"  published at {known.revision}: {same}")


def refresh(name: str) -> None:
    policy = SkillPolicy.from_pretrained(HUB / name, device="cpu")
    write_atomically(HUB / name / CARD_FILE, card(name, policy, name).encode())
    known, sha256 = known_model(name), hub.weights_sha256(HUB / name)
    if known.revision is None and known.sha256 != sha256:
        write_entry(HUB / "models.toml", name, {"sha256": sha256})
    print(f"hub/{name}/{CARD_FILE}")


def publish(built: Built, *, private: bool) -> None:
    message = f"{built.name}: {built.tag}"
    done = push_files(
        built.files,
        built.repo_id,
        needed=POLICY_FILES,
        check=partial(SkillPolicy.from_pretrained, device="cpu"),
        tag=built.tag,
        private=True if private else None,
        message=message,
    )
    if done.kept_card:
        print("  README.md on the Hub was edited by hand, so it stayed")
    changed = ", ".join(sorted(done.changed)) or "nothing had changed"
    print(f"  {built.repo_id}@{done.commit.oid}: {changed}; read back: the same, bit for bit")
    fields = {"repo_id": built.repo_id, "revision": done.commit.oid, "sha256": built.sha256}
    write_entry(HUB / "models.toml", built.name, fields)


def write_entry(file: Path, name: str, fields: dict[str, str]) -> None:
    """Set fields of the table `[NAME]` of a TOML file, and leave everything else, comments too, as it is."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    header = re.compile(rf'\[\s*"?{re.escape(name)}"?\s*\]\s*(#.*)?')
    start = next((i for i, line in enumerate(lines) if header.fullmatch(line.strip())), None)
    if start is None:
        lines += [*([""] if lines else []), f"[{name}]"]
        start = len(lines) - 1
    end = next((i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    for key, value in fields.items():
        setting = f"{key} = {json.dumps(value)}"
        places = [i for i in range(start + 1, end) if re.match(rf"#?\s*{key}\s*=", lines[i].strip())]
        if places:
            lines[places[0]] = setting
        else:
            lines.insert(end, setting)
            end += 1
    write_atomically(file, ("\n".join(lines) + "\n").encode())


def main(args: Publish) -> None:
    names = all_names() if args.all else list(args.names)
    if not names or (args.all and args.names):
        raise SystemExit(f"name policies ({', '.join(all_names())}), or all of them with --all")
    if args.repo_id is not None and len(names) > 1:
        raise SystemExit("--repo-id is for one policy")
    try:
        if args.refresh:
            for name in names:
                refresh(name)
            return
        builds = [build(name, args.repo_id, args.tag) for name in names]  # all are checked before the first is pushed
        for built in builds:
            show(built)
            if not args.dry_run:
                publish(built, private=args.private)
    except (ValueError, OSError) as error:
        raise SystemExit(f"publish: {error}") from error
    if args.dry_run:
        print("Nothing was pushed.")


if __name__ == "__main__":
    main(tyro.cli(Publish))
