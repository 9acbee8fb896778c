"""Publishing files on the Hugging Face Hub: one commit with everything, read back and compared bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from didi_gym.core.files import SafeFileError, read_plain
from didi_gym.hub.client import SkillPolicyHubError, ask_hub, clean_token, download_files, hub_errors
from didi_gym.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

CARD_FILE = "README.md"
_MARK = "<!-- made by didi_gym, and kept by it when edited by hand: "
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 1 << 30
_LARGEST_CARD = 1 << 24
_PATIENCE = 60.0  # seconds for each question of a push; what it writes waits as long as the client does


@dataclass(frozen=True)
class Push:
    """What a push did."""

    commit: CommitInfo
    """Of the push, or the one that was there already where nothing had changed."""
    changed: tuple[str, ...]
    """Files that the commit added or replaced; empty where there was nothing to do."""
    kept_card: bool
    """The card on the Hub was edited by hand, so it stayed."""


def marked(card: str) -> str:
    """A card with a last line that tells whether a hand has edited it since."""
    return f"{card}\n{_MARK}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def is_untouched(card: str) -> bool:
    """Whether a card is as `marked` left it, of whatever version and numbers: no hand has edited it since."""
    text, found, _ = card.partition(f"\n{_MARK}")
    return bool(found) and marked(text) == card


def read_to_push(path: str, file: str | Path, most: int = _LARGEST) -> bytes:
    """The content of a file that is to become `path` of a repository.

    A link is refused wherever it leads: in a folder that somebody else packed, it could publish a file of this
    computer that nobody meant to show.

    Raises:
        SkillPolicyHubError: no such file, no plain one, a link, or one of more than `most` bytes, a gigabyte.
    """
    file = Path(file)
    if file.is_symlink():
        raise SkillPolicyHubError(f"{path} was not pushed: {file} is a link; put the file itself there")
    try:
        return read_plain(file, most)
    except SafeFileError as error:
        raise SkillPolicyHubError(f"{path} was not pushed: {error}") from error


def push_files(
    files: Mapping[str, bytes],
    repo_id: str,
    *,
    needed: Collection[str],
    check: Callable[[Path], object] | None = None,
    keep_card: bool = True,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> Push:
    """Push files in one commit, tag it, and read it back.

    Where every file is on the Hub already, nothing is committed. Nothing on the Hub is deleted. A commit of somebody
    else in the meantime is an error, not a conflict to guess about.

    Args:
        files: Path in the repository -> content.
        needed: What must be among the files, and what a tag stands for: of a policy, its configuration and weights.
        check: Is given the folder of what came back, to load it as a user would; what it raises fails the push.
        keep_card: Leave a `README.md` on the Hub that was edited by hand.
        message: Of the commit.

    Raises:
        SkillPolicyHubError: nothing was committed, unless the message says so.
    """
    _check_request(files, repo_id, tag, branch, create_pr, needed)
    from huggingface_hub import CommitOperationAdd, HfApi

    token = clean_token(token)
    api = HfApi(token=token, library_name="didi_gym", library_version=__version__)
    target = branch or "main"
    with hub_errors(repo_id, target, doing="push", token=token):
        head = _prepare(api, repo_id, target, private)
        there = _hashes(api, repo_id, head)
        kept_card = keep_card and CARD_FILE in there and not is_untouched(_card_on_hub(repo_id, head, token))
        wanted = {path: content for path, content in files.items() if not (kept_card and path == CARD_FILE)}
        changed = tuple(path for path, content in wanted.items() if not _is_there(content, there.get(path)))
        must_tag = tag is not None and not _is_tagged(api, repo_id, tag, {name: files[name] for name in needed})
        if changed:
            try:
                commit = api.create_commit(
                    repo_id,
                    [CommitOperationAdd(path, wanted[path]) for path in changed],
                    commit_message=message or f"Written by didi_gym {__version__}",
                    revision=target,
                    create_pr=create_pr,
                    parent_commit=head,
                )
            except Exception as error:
                if refusal := _refusal(error, api.endpoint):
                    raise refusal from error
                raise
        else:
            commit = _standing_commit(api, repo_id, head)
    try:
        with hub_errors(repo_id, commit.oid, doing="push", token=token):
            if must_tag and tag is not None:
                api.create_tag(repo_id, tag=tag, revision=commit.oid)
        _read_back(repo_id, commit.oid, wanted, token, check)
    except SkillPolicyHubError as error:
        raise SkillPolicyHubError(f"{repo_id} was pushed as commit {commit.oid}, but then: {error}") from error
    return Push(commit, changed, kept_card)


def _prepare(api: HfApi, repo_id: str, branch: str, private: bool | None) -> str:
    """Make repository and branch where they are not there; returns the branch's commit."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:  # a question that gives up in time: what the client does to push waits without a limit
        info = ask_hub(lambda: api.model_info(repo_id, timeout=60))
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError):
            raise
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = ask_hub(lambda: api.model_info(repo_id, timeout=60), _PATIENCE)
    if private is not None and bool(info.private) != private:
        is_now, wanted = ("private", "public") if info.private else ("public", "private")
        raise SkillPolicyHubError(
            f"{repo_id} exists and is {is_now}, but private={private} was asked for; make it {wanted} in its settings "
            f"on the Hub, or leave private out. Nothing was pushed"
        )
    if branch == "main":
        return str(info.sha)
    try:
        return str(ask_hub(lambda: api.model_info(repo_id, revision=branch, timeout=60), _PATIENCE).sha)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch)
        return str(info.sha)


def _refusal(error: Exception, endpoint: str) -> SkillPolicyHubError | None:
    """Failures of a commit whose cause stands far down in the client's words; None for all others."""
    said = " ".join(str(error).split())
    if isinstance(error, ValueError) and "Invalid metadata" in said:  # it asks the Hub about the card before it commits
        return SkillPolicyHubError(f"the Hub refuses the card, so nothing was pushed: {said}")
    if "xet-write-token" in said and "404" in said:  # hf_xet does not fall back
        return SkillPolicyHubError(
            f"the Hub at {endpoint} has no Xet storage, so nothing was pushed: set HF_HUB_DISABLE_XET=1 and push again"
        )
    reason = getattr(error, "server_message", None)
    if reason and getattr(getattr(error, "response", None), "status_code", None) == 400:
        return SkillPolicyHubError(f"the Hub refuses the commit, so nothing was pushed: {' '.join(reason.split())}")
    return None


def _check_request(
    files: Mapping[str, bytes], repo_id: str, tag: str | None, branch: str | None, pr: bool, needed: Collection[str]
) -> None:
    for path, content in files.items():
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or path != str(pure) or path in ("", "."):
            raise SkillPolicyHubError(f"{path!r} is no path inside a repository; expected one such as plots/curve.png")
        if pure.suffix.lower() == ".png" and not content.startswith(_PNG):
            raise SkillPolicyHubError(f"{path} is no picture: it does not begin as every PNG file does")
    if missing := [name for name in needed if name not in files]:
        raise SkillPolicyHubError(f"expected {' and '.join(needed)} among the files; missing: {', '.join(missing)}")
    if repo_id.count("/") != 1 or repo_id.startswith((".", "~", "/")):
        raise SkillPolicyHubError(f"expected a Hub id owner/name to push to, got {repo_id!r}")
    if pr and branch is not None:
        raise SkillPolicyHubError("a pull request goes to main, so create_pr and branch exclude each other")
    if pr and tag is not None:
        raise SkillPolicyHubError(
            "a pull request has no tag until it is merged: leave tag out, and tag main afterwards"
        )


def _hashes(api: HfApi, repo_id: str, revision: str) -> dict[str, str]:
    """Path -> sha256 of LFS files, git's sha1 of others."""
    from huggingface_hub.hf_api import RepoFile

    tree = ask_hub(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision)), _PATIENCE)
    return {
        file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id
        for file in tree
        if isinstance(file, RepoFile)
    }


def _is_there(content: bytes, oid: str | None) -> bool:
    if oid is None:
        return False
    if len(oid) == 64:
        return hashlib.sha256(content).hexdigest() == oid
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == oid


def _card_on_hub(repo_id: str, commit: str, token: str | None) -> str:
    with TemporaryDirectory() as cache:
        folder = download_files(repo_id, commit, {CARD_FILE: _LARGEST_CARD}, token=token, cache_dir=cache)
        return (folder / CARD_FILE).read_bytes().decode("utf-8", errors="replace")


def _is_tagged(api: HfApi, repo_id: str, tag: str, files: Mapping[str, bytes]) -> bool:
    """Whether the tag is there; it may stay only where it names this very policy."""
    refs = ask_hub(lambda: api.list_repo_refs(repo_id), _PATIENCE)
    at = {ref.name: ref.target_commit for ref in refs.tags}.get(tag)
    if at is None:
        return False
    tagged = _hashes(api, repo_id, at)
    if any(not _is_there(content, tagged.get(name)) for name, content in files.items()):
        raise SkillPolicyHubError(
            f"{repo_id} has a tag {tag!r} already, at commit {at}, which holds another policy; choose another tag. "
            f"Nothing was pushed"
        )
    return True


def _standing_commit(api: HfApi, repo_id: str, sha: str) -> CommitInfo:
    """What is on the Hub already, as `create_commit` would have returned it."""
    from huggingface_hub import CommitInfo

    return CommitInfo(
        commit_url=f"{api.endpoint}/{repo_id}/commit/{sha}", commit_message="", commit_description="", oid=sha
    )


def _read_back(
    repo_id: str,
    commit: str,
    files: Mapping[str, bytes],
    token: str | None,
    check: Callable[[Path], object] | None,
) -> None:
    """Fetch the commit as a user would, past the cache, and compare it with what was pushed.

    Raises:
        SkillPolicyHubError: it cannot be fetched, a file differs, or `check` refuses it.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # a download that was given up may still write
        with hub_errors(repo_id, commit, token=token):
            sizes = {path: len(content) for path, content in files.items()}
            folder = download_files(repo_id, commit, sizes, token=token, cache_dir=cache)
        differ = [path for path, content in files.items() if _read(folder / path) != content]
        if differ:
            raise SkillPolicyHubError(
                f"what the Hub returns differs in {', '.join(sorted(differ))}; do not use that commit, and push again"
            )
        if check is not None:
            check(folder)


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
