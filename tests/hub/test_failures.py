"""Downloads that are disturbed: each gives one consistent commit or a clear error, and the next one succeeds."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from huggingface_hub import constants

from didi_gym.hub import client as hub_client
from didi_gym.hub.download import SkillPolicyHubError
from didi_gym.models.policy import SkillPolicy
from tests.examples import random_policy
from tests.hub.test_download import NAME, assert_same, files_of, load

# A download in another interpreter, which waits for a line; prints the commit and the weights' hash.
PROGRAM = """
import huggingface_hub, sys
from didi_gym.hub import resolve, weights_sha256
print("ready", flush=True)
sys.stdin.readline()
folder, commit = resolve(sys.argv[1])
print(commit, weights_sha256(folder))
"""


def downloader() -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_ETAG_TIMEOUT": "60"},
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def old() -> SkillPolicy:
    return random_policy(seed=0, width=256)  # of some hundred kilobytes


@pytest.fixture
def new() -> SkillPolicy:
    return random_policy(seed=1, width=256)


@pytest.fixture
def published(hub_server, old, tmp_path) -> str:
    return hub_server.commit(NAME, files_of(old, tmp_path / "old"))


def partial_files() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


@pytest.mark.parametrize(
    "moment",
    ["GET /api/models/acme/ant$", "HEAD .*config", "HEAD .*model", "GET .*/resolve/.*config", "GET /objects/"],
)
def test_a_commit_during_a_download_gives_one_of_the_two_commits_whole(
    hub_server, old, new, published, tmp_path, moment
):
    """Weights of the one commit with the configuration of the other would load: their shapes are the same."""
    changed = files_of(random_policy(seed=1, width=256, replan_every=2), tmp_path / "new")
    hub_server.on(moment, lambda _: hub_server.commit(NAME, changed) and None)
    policy = load(NAME)
    moved = hub_server.history(NAME)[0].sha
    assert moved != published  # it did happen
    is_new = policy.commit_hash == moved
    assert is_new or policy.commit_hash == published
    assert policy.config.replan_every == (2 if is_new else 4)
    weights = (new if is_new else old).state_dict()
    assert all((weights[name] == tensor).all() for name, tensor in policy.state_dict().items())
    assert load(NAME).commit_hash == moved


def test_two_processes_that_pull_the_same_model_at_once_both_get_it(hub_server, published):
    meeting = threading.Barrier(2, timeout=60)
    hub_server.on("HEAD .*/resolve/.*/model.safetensors", lambda _: meeting.wait() and None, times=2)
    hub_server.change("GET /objects/", times=2, pause=0.01)
    with downloader() as one, downloader() as other:
        for process in (one, other):
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=120)[0].split() for process in (one, other)]
    expected = hashlib.sha256(hub_server.files(NAME)["model.safetensors"]).hexdigest()
    assert answers == [[published, expected]] * 2 and not partial_files()


def test_a_full_disk_is_a_clear_error_and_the_next_call_succeeds(hub_server, old, published):
    """A limit on the size of files stands for the disk: the weights do not fit, the configuration does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(SkillPolicyHubError) as caught:
            load(NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (
        f"could not load {NAME} (revision main): no space left for the cache; free some, or set cache_dir= or "
        f"HF_HOME to another disk"
    )
    assert isinstance(caught.value.__cause__, OSError) and not partial_files()
    assert_same(load(NAME), old)


def test_a_process_that_is_killed_half_way_leaves_nothing_that_the_next_call_falls_over(hub_server, old, published):
    hub_server.change("GET /objects/", pause=0.05, piece=4096)  # it would take some seconds
    with downloader() as process:
        process.stdin.write("\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not (hub_server.cdn_requests and partial_files()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(SkillPolicyHubError, match="is not in the cache"):
        load(NAME, local_files_only=True)
    assert_same(load(NAME), old)
    assert_same(load(NAME, local_files_only=True), old)


def test_a_download_whose_connection_breaks_is_tried_again(hub_server, old, published):
    hub_server.change("GET /objects/", cut=100_000)
    assert_same(load(NAME), old)
    assert len(hub_server.cdn_requests) == 2


def test_storage_that_refuses_is_an_error_and_the_next_call_succeeds(hub_server, old, published):
    hub_server.fail_next("GET /objects/", 500)
    start = time.monotonic()
    with pytest.raises(SkillPolicyHubError, match="has a problem \\(it answers 500\\); try again later"):
        load(NAME)
    assert time.monotonic() - start < 5
    assert_same(load(NAME), old)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_cache_that_may_not_be_written_says_so_and_the_next_call_succeeds(hub_server, old, published, tmp_path):
    place = tmp_path / "cache"
    place.mkdir(mode=0o500)
    with pytest.raises(SkillPolicyHubError, match=r"may not be written; set cache_dir= or HF_HOME to another folder"):
        load(NAME, cache_dir=place)
    place.chmod(0o700)
    assert_same(load(NAME, cache_dir=place), old)


# -- a Hub that wastes time or space ---------------------------------------------------------------------------------
@pytest.fixture
def impatient(monkeypatch):
    """The patience of tests, and an event at whose end answers that hang are given up."""
    monkeypatch.setattr(hub_client, "_DOWNLOAD_PATIENCE", 0.5)
    monkeypatch.setattr(hub_client, "_SLOWEST", 10_000_000)
    over = threading.Event()
    yield over
    over.set()


def hang(hub_server, pattern, over):
    hub_server.on(pattern, lambda _: over.wait(60) and None)


@pytest.mark.parametrize(
    "disturb",
    [
        lambda hub, over: hub.fail_next("HEAD .*/resolve/", 429, times=99, Retry_After="86400"),
        lambda hub, over: hub.fail_next("GET .*/resolve/", 429, times=99, Retry_After="86400"),
        lambda hub, over: hub.fail_next("HEAD .*/resolve/", 503, times=99, Retry_After="86400"),
        lambda hub, over: hub.fail_next("HEAD .*/resolve/", 503, times=99),
        lambda hub, over: hang(hub, "HEAD .*/resolve/", over),
        lambda hub, over: hang(hub, "GET .*/resolve/.*config", over),
        lambda hub, over: hub.change("GET .*/resolve/.*config", pause=0.2, piece=8),
        lambda hub, over: hub.change("GET /objects/", pause=0.2, piece=512),
        lambda hub, over: hub.change("GET /objects/", pause=50.0),
    ],
    ids=[
        "HEAD 429",
        "GET 429",
        "HEAD 503 and wait",
        "HEAD 503",
        "HEAD hangs",
        "GET hangs",
        "drip",
        "LFS drip",
        "stall",
    ],
)
def test_a_hub_that_wastes_time_is_an_error_in_bounded_time_and_the_next_call_succeeds(
    hub_server, old, published, impatient, disturb, tmp_path
):
    disturb(hub_server, impatient)
    start = time.monotonic()
    with pytest.raises(SkillPolicyHubError) as caught:
        load(NAME)
    assert time.monotonic() - start < 4
    said = str(caught.value)
    assert said.startswith(f"could not load {NAME}") and "try again" in said
    assert "HF_HUB_DOWNLOAD_TIMEOUT may allow more" in said or "answers 503" in said
    hub_server.reset_rules()
    assert_same(load(NAME, cache_dir=tmp_path / "another"), old)


def test_the_first_question_does_not_wait_as_long_as_the_hub_says(hub_server, published):
    hub_server.fail_next("GET /api/models", 429, times=99, Retry_After="86400")
    start = time.monotonic()
    with pytest.raises(SkillPolicyHubError, match="limits the rate of requests"):
        load(NAME)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("name", "most"), [("config.json", 1 << 20), ("model.safetensors", 1 << 28)])
def test_a_file_that_is_too_large_is_not_even_asked_for(hub_server, published, monkeypatch, name, most):
    sizes = hub_server.files(NAME) | {name: type("Huge", (bytes,), {"__len__": lambda self: most + 1})()}
    repo = hub_server.repos["model", NAME]
    repo.commits[published] = type(repo.commits[published])(published, None, "huge", sizes, ())
    with pytest.raises(SkillPolicyHubError, match=rf"its {name} has {most + 1:,} bytes, expected at most {most:,}"):
        load(NAME)
    assert [request.method for request in hub_server.requests] == ["GET"] and not hub_server.cdn_requests


@pytest.mark.parametrize(("pattern", "name"), [("GET .*config", "config.json"), ("GET /objects/", "model.safetensors")])
def test_no_more_is_read_of_a_file_than_its_listing_says(hub_server, published, pattern, name):
    hub_server.change(pattern, body=b"x" * (24 << 20))
    with pytest.raises(
        SkillPolicyHubError, match=rf"{name} of {NAME} was not fetched: more came than the [\d,]+ bytes"
    ):
        load(NAME)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/" + name))


def test_a_hub_that_names_no_commit_is_refused(hub_server, published):
    body = b'{"id": "acme/ant", "sha": "../../../x", "siblings": [{"rfilename": "%s"}, {"rfilename": "%s"}]}'
    hub_server.change("GET /api/models", body=body % (b"config.json", b"model.safetensors"))
    with pytest.raises(SkillPolicyHubError, match=r"says that acme/ant is at ../../../x, no commit"):
        load(NAME)


# -- tokens ----------------------------------------------------------------------------------------------------------
SECRET = "hf_" + "aB3dE5fG7h" * 3


def test_a_token_with_the_line_break_of_its_file_is_that_token(hub_server, old, published):
    hub_server.commit(NAME, {}, private=True)
    assert_same(load(NAME, token=" hf_read\r\n"), old)
    assert {request.token for request in hub_server.requests} == {"hf_read"}
    assert old.push_to_hub("acme/new", token="hf_write\n").oid


@pytest.mark.parametrize("token", [f"{SECRET} x", f"{SECRET}\nx", f"{SECRET}\x1b", f"{SECRET}\u00e9"])
def test_what_is_no_token_is_neither_sent_nor_shown(hub_server, old, published, token):
    for act in (lambda: load(NAME, token=token), lambda: old.push_to_hub(NAME, token=token)):
        with pytest.raises(
            SkillPolicyHubError, match=r"^token= holds white space or letters that no token has"
        ) as caught:
            act()
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert not hub_server.requests


@pytest.mark.parametrize("said", [f"Illegal header value b'Bearer {SECRET}x y'", f"bad {SECRET}", "odd secretive"])
def test_a_token_in_the_clients_words_is_not_shown(said):
    with pytest.raises(SkillPolicyHubError) as caught, hub_client.hub_errors(NAME, token="secretive"):
        raise RuntimeError(said)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown and "odd secretive" not in shown and "***" in str(caught.value)


def test_what_the_hub_says_cannot_act_on_a_terminal(hub_server, published):
    hub_server.commit("acme/odd", {"a\x1b[2Jb\u202e.pt": b"x"})
    with pytest.raises(SkillPolicyHubError, match=r"a\\x1b\[2Jb\\u202e.pt") as caught:
        load("acme/odd")
    assert str(caught.value).isprintable()
    assert str(SkillPolicyHubError("a\nb\u202e")) == r"a\nb\u202e"
