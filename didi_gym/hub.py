"""Where a skill policy's folder is: bundled with the package, on this disk, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = (_PACKAGE / "_hub", _PACKAGE.parent / "hub")  # in a wheel; in a source checkout
_FILES = ["config.json", "model.safetensors"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class SkillPolicyHubError(OSError):
    """A skill policy that could not be found, fetched or read; the message says what to do."""


def list_pretrained() -> list[str]:
    """Names of the skill policies that come with this installation."""
    return sorted({path.parent.name for root in _BUNDLED for path in root.glob("*/config.json")})


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

    Only a Hub id (`owner/name`, with an optional `@revision`) touches the network.

    Raises:
        SkillPolicyHubError: no such folder, bundled name or Hub model.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    if name and path.is_dir():  # Path("") would be the present folder
        return path, None
    if name in list_pretrained():
        return next(root / name for root in _BUNDLED if (root / name / "config.json").is_file()), None
    repo_id, _, pinned = name.partition("@")
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(repo_id) or name.startswith((".", "/", "~")):
        raise SkillPolicyHubError(
            f"{name!r} is neither a folder, nor a bundled policy ({', '.join(list_pretrained()) or 'none here'}), "
            f"nor a Hub id (owner/name)"
        )
    if revision and pinned and revision != pinned:
        raise SkillPolicyHubError(f"{name!r} names revision {pinned!r}, but revision={revision!r} was asked for")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision or pinned or None,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=_FILES,
                library_name="didi_gym",
            )
        )
    except Exception as error:  # the client's errors have no common base; each becomes one sentence
        raise SkillPolicyHubError(
            f"could not fetch {repo_id!r} (revision {revision or pinned or 'main'}) from the Hugging Face Hub: {error}"
        ) from error
    return folder, folder.name
