"""Where a skill policy's folder is: bundled with the package, on this disk, or on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from didi_gym.core.files import MEGABYTE, in_short, write_atomically
from didi_gym.hub.client import LIBRARY, ask_hub, clean_token, download_files, is_outage, outage
from didi_gym.hub.client import SkillPolicyHubError as SkillPolicyHubError
from didi_gym.hub.client import hub_errors as hub_errors
from didi_gym.version import __version__

_PACKAGE = Path(__file__).resolve().parents[1]
_BUNDLED = (_PACKAGE / "_hub", _PACKAGE.parent / "hub")  # in a wheel; in a source checkout
_FILES = ("config.json", "model.safetensors")
_WEIGHTS = _FILES[1]
_LARGEST = {".json": MEGABYTE, ".safetensors": 1 << 28}  # bytes of a file; what is larger is not even fetched
_LARGEST_OTHER = 1 << 30
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".zip")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*")  # part of a path in the client's cache
_COMMIT = re.compile(r"[0-9a-f]{40}")
_AT_COMMIT = re.compile(rf"{_HUB_ID.pattern}@{_COMMIT.pattern}")


@dataclass(frozen=True)
class KnownModel:
    """A published skill policy that this version of the package knows, from `models.toml`."""

    name: str
    repo_id: str
    revision: str | None
    """The commit it was published at; None where it is not published yet."""
    sha256: str
    """Of the bytes of its weights, `model.safetensors`."""
    dataset: str
    env_id: str
    license: str
    """As the Hub names it, e.g. mit."""
    description: str
    """What its skills are, in one line."""


def list_pretrained() -> list[str]:
    """Names of the skill policies that come with this installation."""
    return sorted({path.parent.name for root in _BUNDLED for path in root.glob("*/config.json")})


def known_models() -> dict[str, KnownModel]:
    """Published skill policies by name; those that are not bundled are fetched from the Hub at their commit."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    table = next((root / "models.toml" for root in _BUNDLED if (root / "models.toml").is_file()), None)
    entries = tomllib.loads(table.read_text(encoding="utf-8")) if table else {}
    return {name: KnownModel(name, **{"revision": None, **entry}) for name, entry in entries.items()}


def weights_sha256(folder: str | Path) -> str:
    """The sha256 of a policy folder's `model.safetensors`, as 64 hex digits."""
    return _digest(Path(folder) / _WEIGHTS, hashlib.sha256())


def resolve(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str | None]:
    """The folder of a skill policy, and the commit it was fetched at (None for local folders).

    Only a Hub id (`owner/name`, with an optional `@revision`) touches the network, or the name of a known model that is
    not bundled, or not in the revision asked for. A commit that is in the cache costs no request. Where the Hub does
    not answer, the commit that a branch or tag was last seen at is taken from the cache.

    Raises:
        SkillPolicyHubError: no such folder, bundled name or Hub model, or it could not be fetched whole and sound.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    at_commit = isinstance(name_or_path, str) and _AT_COMMIT.fullmatch(name)  # only the Hub has commits
    if name and path.is_dir() and not at_commit:  # Path("") would be the present folder
        return path, None
    if name in list_pretrained() and (revision is None or name not in known_models()):
        return next(root / name for root in _BUNDLED if (root / name / "config.json").is_file()), None
    base, at, pinned = name.partition("@")
    model = known_models().get(base)
    repo_id = model.repo_id if model else base
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(repo_id) or name.startswith((".", "/", "~")):
        near = _near(path) or difflib.get_close_matches(name, list_pretrained(), 1)
        raise SkillPolicyHubError(
            f"{name!r} is neither a folder, nor a bundled policy ({', '.join(list_pretrained()) or 'none here'}), "
            f"nor a Hub id (owner/name){f'; did you mean {near[0]}?' if near else ''}"
        )
    if not model and not at and not revision and (near := _near(path)):
        raise SkillPolicyHubError(
            f"there is no folder {name}; did you mean {near[0]}? Where a model of that name on the Hub is meant, give "
            f"its revision: {name}@main"
        )
    if model and model.revision is None and not at and not revision:
        raise SkillPolicyHubError(
            f"{base} is not on the Hub yet and does not come with this installation (which has "
            f"{', '.join(list_pretrained()) or 'none'}): it is the folder hub/{base} of didi_gym's source, whose path "
            f"can be given instead of the name"
        )
    if revision and pinned and revision != pinned:
        raise SkillPolicyHubError(f"{name!r} names revision {pinned!r}, but revision={revision!r} was asked for")
    asked = revision or (pinned if at else model.revision if model else None)
    settings: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
    try:
        folder = fetch(repo_id, asked, local_files_only=local_files_only, **settings)
    except SkillPolicyHubError as error:
        if model or not path.parent.is_dir():
            raise
        raise SkillPolicyHubError(
            f"there is no folder {name}, and as the name of a model on the Hub: {error}"
        ) from error
    _check_known(folder, repo_id, asked)
    return folder, folder.name


def _near(path: Path) -> list[str]:
    """The policy folder beside a path that is not there whose name is most like its own, if there is one."""
    if path.is_absolute() or len(path.parts) > 1:
        try:
            there = [folder.name for folder in path.parent.iterdir() if (folder / _FILES[0]).is_file()]
        except OSError:
            return []
        return [str(path.parent / name) for name in difflib.get_close_matches(path.name, there, 1)]
    return []


def fetch(
    repo_id: str,
    revision: str | None = None,
    *,
    files: tuple[str, ...] = _FILES,
    what: str = "skill policy",
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder in the client's cache that holds `files` of a repository, all of one commit, whose name it has.

    Args:
        what: What they make up, for messages.

    Raises:
        SkillPolicyHubError: they could not be fetched whole and sound.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise SkillPolicyHubError(
            f"{revision!r} cannot be a revision of {repo_id}: expected a branch, a tag, a commit's 40 digits or "
            f"refs/pr/1"
        )
    token = clean_token(token)
    settings: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
    with hub_errors(repo_id, revision, token=token):
        folder = _fetch(repo_id, revision, files, what, local_files_only=local_files_only, **settings)
    _check_files(folder, repo_id, files, cache_dir)
    return folder


def _fetch(
    repo_id: str,
    revision: str | None,
    files: tuple[str, ...],
    what: str,
    *,
    token: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    """The snapshot's folder in the client's cache: one commit for all files; what fails is the client's error."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def cached() -> Path | None:
        try:
            snapshot = snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True)
            folder = Path(snapshot)
        except LocalEntryNotFoundError:
            return None
        return folder if all((folder / name).is_file() for name in files) else None

    offline = local_files_only or constants.HF_HUB_OFFLINE
    where = f"the cache ({cache_dir or constants.HF_HUB_CACHE})"
    if offline and force_download:
        raise SkillPolicyHubError(f"{repo_id} cannot be downloaded anew offline: leave out force_download=True")
    is_commit = _COMMIT.fullmatch(revision or "") is not None
    if (offline or is_commit) and not force_download and (folder := cached()):
        return folder
    if offline:
        switch = "local_files_only=True was asked for" if local_files_only else "HF_HUB_OFFLINE is set"
        raise SkillPolicyHubError(
            f"{repo_id} (revision {revision or 'main'}) is not in {where} as a whole, and {switch}: "
            f"load it once with a network"
        )
    try:
        # Asked first because the client waits for this without a limit, or repeats the question for 23 seconds.
        api = HfApi(token=token, **LIBRARY)
        info = ask_hub(lambda: api.model_info(repo_id, revision=revision, timeout=60, files_metadata=True))
    except Exception as error:
        if not is_outage(error):
            raise
        if not force_download and (folder := cached()):
            return folder
        raise SkillPolicyHubError(
            f"{outage(error)}, and {repo_id} (revision {revision or 'main'}) is not in {where}: "
            f"check the network and HF_ENDPOINT, or try again later"
        ) from error
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    _check_listing(repo_id, sizes, files, what)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit) or (is_commit and commit != revision):  # it becomes part of a path
        raise SkillPolicyHubError(
            f"the Hub at {constants.ENDPOINT} says that {repo_id} is at {in_short(commit)}, no commit"
        )
    most = {name: sizes[name] or _largest(name) for name in files}
    folder = download_files(repo_id, commit, most, token=token, cache_dir=cache_dir, force_download=force_download)
    if not is_commit:  # where the client looks for the last commit of a branch or tag when it is offline
        reference = folder.parents[1] / "refs" / (revision or "main")
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, commit.encode())
    return folder


# -- what was fetched ----------------------------------------------------------------------------------------------
def _largest(name: str) -> int:
    return _LARGEST.get(Path(name).suffix, _LARGEST_OTHER)


def _check_listing(repo_id: str, found: Mapping[str, int | None], files: tuple[str, ...], what: str) -> None:
    for name in files:
        if (size := found.get(name)) is not None and size > _largest(name):
            raise SkillPolicyHubError(
                f"{repo_id} is no {what} of didi_gym: its {name} has {size:,} bytes, expected at most "
                f"{_largest(name):,}, so it was not fetched"
            )
    if missing := [name for name in files if name not in found]:
        pickles = sorted(name for name in found if name.endswith(_PICKLES) and name not in files)
        beside = f"; it has {in_short(', '.join(pickles[:5]))}, but pickles are never read" if pickles else ""
        raise SkillPolicyHubError(f"{repo_id} is no {what} of didi_gym: it has no {' and no '.join(missing)}{beside}")


def _check_files(folder: Path, repo_id: str, files: tuple[str, ...], cache_dir: str | Path | None) -> None:
    """Compare a snapshot with what the Hub calls its files: the client's cache names contents by their hash."""
    repo_folder = folder.parent.parent
    inside = (repo_folder.resolve(), repo_folder.parent.resolve() / "blobs")  # the second is shared by repositories
    for path in (folder / name for name in files):
        if not any(root in path.resolve().parents for root in inside):
            raise SkillPolicyHubError(f"{path} leads out of the cache, to {path.resolve()}: delete {repo_folder}")
        names = {path.readlink().name} if path.is_symlink() else _copied(repo_folder, cache_dir)
        lengths = set() if names is None else {len(name) for name in names}
        if names is None or (path.is_symlink() and not lengths <= {40, 64}):
            continue  # its hash is not known
        git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        hashes = {_digest(path, digest) for digest in (hashlib.sha256(), git) if 2 * digest.digest_size in lengths}
        if not hashes & names:
            raise SkillPolicyHubError(
                f"{path.name} of {repo_id} is corrupt in the cache ({path}): load it once with force_download=True"
            )


def _copied(repo_folder: Path, cache_dir: str | Path | None) -> set[str] | None:
    """The hashes of which a file in place of a link must have one, as the copy of what the link led to.

    None where links are not supported: there the client keeps nothing but such files.
    """
    from huggingface_hub.file_download import are_symlinks_supported

    try:
        if not are_symlinks_supported(cache_dir):
            return None
    except OSError:  # a cache that may not be written
        pass
    return {blob.name for blob in (repo_folder / "blobs").glob("*")}


def _check_known(folder: Path, repo_id: str, asked: str | None) -> None:
    """Known models are checked at the commit they were published at, and where no other revision was asked for."""
    for model in known_models().values():
        if model.repo_id != repo_id or (asked is not None and folder.name != model.revision):
            continue
        if (found := weights_sha256(folder)) != model.sha256:
            raise SkillPolicyHubError(
                f"the weights of {repo_id} at commit {folder.name} are not those that didi_gym {__version__} knows "
                f"(sha256 {found}, expected {model.sha256}): upgrade didi_gym or, where you trust that commit, ask for "
                f"it by name: {repo_id}@{folder.name}"
            )


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
