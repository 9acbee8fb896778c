"""Publishing a skill policy on the Hugging Face Hub: its folder, a card made from it, and what an evaluation left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from didi_gym.core.files import MEGABYTE
from didi_gym.hub.client import SkillPolicyHubError
from didi_gym.hub.upload import CARD_FILE, Push, push_files, read_to_push
from didi_gym.models.card import RESULTS_FILE, make_card, parse_results
from didi_gym.models.folder import POLICY_FILES, write_policy
from didi_gym.models.policy_network import PolicyNetwork
from didi_gym.version import __version__


def push_policy(
    policy: PolicyNetwork,
    repo_id: str,
    *,
    check: Callable[[Path], object],
    card: str | Path | None = None,
    extra: Mapping[str, str | Path] | None = None,
    license: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> Push:
    """What `SkillPolicy.push_to_hub` does; see there.

    Args:
        check: Loads the folder that came back strictly, and raises SkillPolicyHubError where that fails.
        license: For the card that is made where `card` is None, as the Hub names it, e.g. mit.
    """
    files = {path: _read_extra(path, file) for path, file in (extra or {}).items()}
    with TemporaryDirectory() as folder:
        write_policy(policy, folder)
        files |= {name: (Path(folder) / name).read_bytes() for name in POLICY_FILES}
    results = parse_results(files[RESULTS_FILE]) if RESULTS_FILE in files else None
    text = read_to_push(CARD_FILE, card).decode() if isinstance(card, Path) else card
    if text is None:
        pin = tag or branch
        source = f"{repo_id}@{pin}" if pin else repo_id
        name = repo_id.rpartition("/")[2]
        text = make_card(policy, name, source=source, results=results, license=license, files=files)
    return push_files(
        {**files, CARD_FILE: text.encode()},
        repo_id,
        needed=POLICY_FILES,
        check=check,
        keep_card=card is None,
        tag=tag,
        private=private,
        token=token,
        branch=branch,
        create_pr=create_pr,
        message=f"Skill policy, written by didi_gym {__version__}",
    )


def _read_extra(path: str, file: str | Path) -> bytes:
    if path in (*POLICY_FILES, CARD_FILE):
        raise SkillPolicyHubError(
            f"extra: {path} is written by the push itself" + ("; see card=" * (path == CARD_FILE))
        )
    return read_to_push(path, file, MEGABYTE) if path == RESULTS_FILE else read_to_push(path, file)
