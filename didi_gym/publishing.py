"""Publishing skill policies on the Hugging Face Hub: one commit with everything, read back and compared bit for bit."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from didi_gym.cards import CARD_FILE, MAP_FILE, REPLAY_FILE, RESULTS_FILE, is_untouched, make_card, read_results
from didi_gym.hub_client import SkillPolicyHubError, ask_hub, hub_errors
from didi_gym.policy import SkillPolicy
from didi_gym.policy_folder import CONFIG_FILE, WEIGHTS_FILE
from didi_gym.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

POLICY_FILES = (CONFIG_FILE, WEIGHTS_FILE)
SHOWN_FILES = (RESULTS_FILE, MAP_FILE, REPLAY_FILE)


@dataclass(frozen=True)
class Push:
    """What a push did."""

    commit: CommitInfo
    """Of the push, or the one that was there already where nothing had changed."""
    changed: tuple[str, ...]
    """Files that the commit added or replaced; empty where there was nothing to do."""
    kept_card: bool
    """The card on the Hub was edited by hand, so it stayed."""


def push_policy(
    policy: SkillPolicy,
    repo_id: str,
    *,
    card: str | Path | None = None,
    extra: Mapping[str, str | Path] | None = None,
    licence: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> Push:
    """What `SkillPolicy.push_to_hub` does; see there.

    Args:
        licence: For the card that is made where `card` is None, as the Hub names it, e.g. mit.
    """
    files = {path: _read_extra(path, file) for path, file in (extra or {}).items()}
    with TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        files |= {name: (Path(folder) / name).read_bytes() for name in POLICY_FILES}
        results = None
        if RESULTS_FILE in files:
            (Path(folder) / RESULTS_FILE).write_bytes(files[RESULTS_FILE])
            results = read_results(Path(folder) / RESULTS_FILE)
    pin = tag or branch
    text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
    if text is None:
        source = f"{repo_id}@{pin}" if pin else repo_id
        text = make_card(
            policy, repo_id.rpartition("/")[2], source=source, results=results, licence=licence, files=files
        )
    return push_files(
        {**files, CARD_FILE: text.encode()},
        repo_id,
        keep_card=card is None,
        tag=tag,
        private=private,
        token=token,
        branch=branch,
        create_pr=create_pr,
    )


def push_files(
    files: Mapping[str, bytes],
    repo_id: str,
    *,
    keep_card: bool = True,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    needed: Collection[str] = POLICY_FILES,
) -> Push:
    """Push a policy's files in one commit, tag it, and read it back.

    Where every file is on the Hub already, nothing is committed. Nothing on the Hub is deleted. A commit of somebody
    else in the meantime is an error, not a conflict to guess about.

    Args:
        files: Path in the repository -> content; `config.json` and `model.safetensors` among them.
        keep_card: Leave a `README.md` on the Hub that was edited by hand.
        message: Of the commit.
        needed: What must be among the files, and what a tag stands for; other things than policies have other files.

    Raises:
        SkillPolicyHubError: nothing was committed, unless the message says so.
    """
    _check_request(files, repo_id, tag, branch, create_pr, needed)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="didi_gym", library_version=__version__)
    target = branch or "main"
    with hub_errors(repo_id, target, doing="push", token=token):
        head = _prepare(api, repo_id, target, private)
        there = _hashes(api, repo_id, head)
        kept_card = keep_card and CARD_FILE in there and not is_untouched(_card_on_hub(api, repo_id, head))
        wanted = {path: content for path, content in files.items() if not (kept_card and path == CARD_FILE)}
        changed = tuple(path for path, content in wanted.items() if not _is_there(content, there.get(path)))
        must_tag = tag is not None and not _is_tagged(api, repo_id, tag, {name: files[name] for name in needed})
        if changed:
            try:
                commit = api.create_commit(
                    repo_id,
                    [CommitOperationAdd(path, wanted[path]) for path in changed],
                    commit_message=message or f"Skill policy, written by didi_gym {__version__}",
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
        _read_back(repo_id, commit.oid, wanted, token)
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
        info = api.model_info(repo_id)
    if private is not None and bool(info.private) != private:
        is_now, wanted = ("private", "public") if info.private else ("public", "private")
        raise SkillPolicyHubError(
            f"{repo_id} exists and is {is_now}, but private={private} was asked for; make it {wanted} in its settings "
            f"on the Hub, or leave private out. Nothing was pushed"
        )
    if branch == "main":
        return str(info.sha)
    try:
        return str(api.model_info(repo_id, revision=branch).sha)
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


def _read_extra(path: str, file: str | Path) -> bytes:
    if path in (*POLICY_FILES, CARD_FILE):
        raise SkillPolicyHubError(
            f"extra: {path} is written by the push itself" + ("; see card=" * (path == CARD_FILE))
        )
    if not Path(file).is_file():
        raise SkillPolicyHubError(f"extra: {path} should come from {file}, which is no file")
    return Path(file).read_bytes()


def _check_request(
    files: Mapping[str, bytes], repo_id: str, tag: str | None, branch: str | None, pr: bool, needed: Collection[str]
) -> None:
    for path in files:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or path != str(pure) or path in ("", "."):
            raise SkillPolicyHubError(f"{path!r} is no path inside a repository; expected one such as plots/curve.png")
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

    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
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


def _card_on_hub(api: HfApi, repo_id: str, revision: str) -> str:
    with TemporaryDirectory() as cache:
        folder = api.snapshot_download(repo_id, revision=revision, allow_patterns=CARD_FILE, cache_dir=cache)
        return (Path(folder) / CARD_FILE).read_bytes().decode("utf-8", errors="replace")


def _is_tagged(api: HfApi, repo_id: str, tag: str, files: Mapping[str, bytes]) -> bool:
    """Whether the tag is there; it may stay only where it names this very policy."""
    at = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}.get(tag)
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


def _read_back(repo_id: str, commit: str, files: Mapping[str, bytes], token: str | None) -> None:
    """Fetch the commit as a user would, past the cache, and compare it with what was pushed.

    Raises:
        SkillPolicyHubError: it cannot be fetched, a file differs, or it does not load.
    """
    from huggingface_hub import snapshot_download

    with TemporaryDirectory() as cache:
        with hub_errors(repo_id, commit, token=token):
            folder = Path(
                snapshot_download(
                    repo_id,
                    revision=commit,
                    allow_patterns=[glob.escape(path) for path in files],
                    cache_dir=cache,
                    token=token,
                    library_name="didi_gym",
                    library_version=__version__,
                )
            )
        differ = [path for path, content in files.items() if _read(folder / path) != content]
        if differ:
            raise SkillPolicyHubError(
                f"what the Hub returns differs in {', '.join(sorted(differ))}; do not use that commit, and push again"
            )
        if WEIGHTS_FILE in files:
            SkillPolicy.from_pretrained(repo_id, revision=commit, device="cpu", token=token, cache_dir=cache)


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
