"""The Hugging Face Hub's client, which is imported when it is used: limited patience with it, its errors in words."""

from __future__ import annotations

import errno
import inspect
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from didi_gym.core.files import in_short, printable
from didi_gym.version import __version__

LIBRARY: dict[str, Any] = {"library_name": "didi_gym", "library_version": __version__}
_PATIENCE = 4.0  # seconds that the Hub has to answer the first question, where HF_HUB_ETAG_TIMEOUT does not say
# A download may take so many seconds (thrice HF_HUB_DOWNLOAD_TIMEOUT, where that is set), and for its bytes the time
# that they take at so many bytes per second.
_DOWNLOAD_PATIENCE, _SLOWEST = 30.0, 20_000
_SECRETS = re.compile(r"(?<=Bearer )\S+|\bhf_[A-Za-z0-9]{20,}|(?<=://)[^/@\s]+(?=@)")
# of errors and their bases, by name, since versions of the client differ in their HTTP library
_OUTAGES = ("TransportError", "ConnectionError", "TimeoutError", "Timeout")

Answer = TypeVar("Answer")


class SkillPolicyHubError(OSError):
    """A skill policy that could not be found, fetched, read or published; the message says what to do.

    It may quote files and answers of strangers, so nothing in it is a line break or something that a terminal obeys.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


def clean_token(token: Any) -> Any:
    """A token without the white space around it, as it is read from a file; None for an empty one.

    Raises:
        SkillPolicyHubError: no token, whatever it is. It is not shown: the client would show it as a whole.
    """
    if not isinstance(token, str):
        return token
    if not re.fullmatch(r"[!-~]*", token := token.strip()):
        raise SkillPolicyHubError(
            "token= holds white space or letters that no token has, so it was not sent; expected one line, hf_..."
        )
    return token or None


def without_secrets(text: str, token: Any = None) -> str:
    """A text of the client's, with stars in place of `token`, of all that looks like one, and of passwords in URLs."""
    text = _SECRETS.sub("***", text)
    return text.replace(token, "***") if isinstance(token, str) and len(token) > 3 else text


def ask_hub(ask: Callable[[], Answer], seconds: float | None = None, setting: str = "HF_HUB_ETAG_TIMEOUT") -> Answer:
    """What `ask` returns or raises, but within `seconds` (default: 4, or HF_HUB_ETAG_TIMEOUT where that is set).

    The client itself waits without a limit for most answers, always for the look-up of a name, and as long as the Hub
    asks it to (Retry-After).

    Args:
        setting: Of the environment, that may allow more.

    Raises:
        TimeoutError: no answer; `ask` goes on in its thread, so it should change nothing.
    """
    if seconds is None:
        seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _PATIENCE)
    answers: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((True, ask()))
        except Exception as error:
            answers.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answered, answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s; {setting} may allow more") from None
    if not answered:
        raise answer
    return answer


def download_files(
    repo_id: str,
    commit: str,
    sizes: Mapping[str, int],
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
) -> Path:
    """Fetch files of one commit into the client's cache, within time and size; returns the folder that holds them.

    Args:
        sizes: Path -> the most bytes it may have.

    Raises:
        TimeoutError: it took too long.
        SkillPolicyHubError: more bytes came; whatever else the client raises.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils.tqdm import tqdm

    given_up = threading.Event()

    def watched(name: str) -> type[tqdm]:
        class Watched(tqdm):
            """The client's progress bar, which is told of all bytes, ends a download that nobody waits for."""

            received = 0.0

            def update(self, n: float | None = 1) -> bool | None:
                self.received += n or 0
                if given_up.is_set():
                    raise TimeoutError("nobody waits for this download")
                if self.received > sizes[name]:
                    raise SkillPolicyHubError(
                        f"{name} of {repo_id} was not fetched: more came than the {sizes[name]:,} bytes it may have"
                    )
                return super().update(n)

        return Watched

    can_watch = "tqdm_class" in inspect.signature(hf_hub_download).parameters  # versions of the client differ
    settings: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "force_download": force_download, **LIBRARY}

    def fetch() -> Path:
        folder = Path()
        for name in sizes:
            old = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=commit)
            if force_download and isinstance(old, str) and not Path(old).is_symlink():
                Path(old).unlink()  # the client leaves it where it expects a link, whatever it is
            how = {**settings, "tqdm_class": watched(name)} if can_watch else settings
            path = Path(hf_hub_download(repo_id, name, revision=commit, **how))
            folder = path.parents[len(PurePosixPath(name).parts) - 1]
        return folder

    patience = 3 * float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or _DOWNLOAD_PATIENCE / 3)
    try:
        return ask_hub(fetch, patience + sum(sizes.values()) / _SLOWEST, "HF_HUB_DOWNLOAD_TIMEOUT")
    finally:
        given_up.set()


@contextmanager
def hub_errors(
    repo_id: str, revision: str | None = None, doing: str = "load", *, token: str | None = None
) -> Iterator[None]:
    """Turn whatever the client raises into one `SkillPolicyHubError` that says what to do.

    Args:
        doing: "load" or "push".
        token: Used to name the revisions there are, where the one asked for is not; never shown.
    """
    try:
        yield
    except SkillPolicyHubError:
        raise
    except Exception as error:  # the client's errors have no common base
        words = without_secrets(_in_words(error, repo_id, revision or "main", doing, token), token)
        shows = without_secrets(str(error), token) != str(error)
        raise SkillPolicyHubError(words) from (None if shows else error)


def _in_words(error: Exception, repo_id: str, revision: str, doing: str, token: str | None) -> str:
    from huggingface_hub import constants, errors

    error = _telling(error)
    page = f"{constants.ENDPOINT}/{repo_id}"
    status = _status(error)
    log_in = "log in with `hf auth login`, or pass token="
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: accept its terms on {page}, then {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no model {repo_id} at {constants.ENDPOINT}, or it is private and your token cannot see it: "
            f"check the name or, for a private one, {log_in}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}{_revisions(repo_id, token)}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo_id} lacks a file at revision {revision}: {_first_line(error)}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is no Hub id (owner/name): {_first_line(error)}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"could not {doing} {repo_id}: HF_HUB_OFFLINE is set; unset it, for this needs a network"
    if status == 401 and doing == "push":
        return f"pushing to {repo_id} needs a token with write scope: {log_in}"
    if status == 401:
        return (
            f"the Hub refuses your token for {repo_id}, or wants one: make one at "
            f"{constants.ENDPOINT}/settings/tokens, then {log_in}"
        )
    if status == 403 and doing == "push":
        owner = repo_id.partition("/")[0]
        return (
            f"your token may not write to {repo_id}: make one with write scope for {owner} at "
            f"{constants.ENDPOINT}/settings/tokens, then {log_in}"
        )
    if status == 403:
        return f"your token may not read {repo_id}: ask its owner for access, then {log_in}"
    if status == 412:
        return f"{repo_id} got another commit at the same time, so nothing was pushed: try again"
    if status is not None and is_outage(error):
        return f"could not {doing} {repo_id}: {outage(error)}; try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"could not {doing} {repo_id} (revision {revision}): no space left for the cache; free some, or set "
            f"cache_dir= or HF_HOME to another disk"
        )
    if isinstance(error, PermissionError):
        return (
            f"could not {doing} {repo_id} (revision {revision}): {error.filename or 'the cache'} may not be written; "
            f"set cache_dir= or HF_HOME to another folder"
        )
    if is_outage(error):
        return (
            f"could not {doing} {repo_id} (revision {revision}): {outage(error)}; check the network and HF_ENDPOINT, "
            f"and try again"
        )
    return f"could not {doing} {repo_id!r} (revision {revision}) at {constants.ENDPOINT}: {_first_line(error)}"


def _telling(error: Exception) -> Exception:
    """The error in a chain of causes that says what happened: the client wraps some in sentences of its own."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        if _status(cause) is not None or is_outage(cause) or getattr(cause, "errno", None) is not None:
            return cause
        cause = cause.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def is_outage(error: BaseException) -> bool:
    """Whether the Hub did not answer, or answered that it cannot at present."""
    if (status := _status(error)) is not None:
        return status == 429 or status >= 500
    return any(kind.__name__ in _OUTAGES for kind in type(error).__mro__)


def outage(error: BaseException) -> str:
    """Words for what `is_outage` found."""
    from huggingface_hub import constants

    if (status := _status(error)) is not None:
        problem = "limits the rate of requests" if status == 429 else "has a problem"
        return f"the Hub at {constants.ENDPOINT} {problem} (it answers {status})"
    return f"the Hub at {constants.ENDPOINT} does not answer ({_first_line(error)})"


def _revisions(repo_id: str, token: str | None) -> str:
    """Words for the branches and tags there are, or none where they cannot be had at once."""
    from huggingface_hub import HfApi

    try:
        refs = ask_hub(lambda: HfApi(token=token, **LIBRARY).list_repo_refs(repo_id), seconds=1)
    except Exception:
        return ": look at its branches and tags"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"; it has {', '.join(names[:10])}{more}, and commits by their 40 digits"


def _first_line(error: BaseException) -> str:
    """The client's messages go on over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return in_short(lines[0].rstrip(".")) if lines else type(error).__name__
