"""Downloads that are disturbed: each gives one consistent commit or a clear error, and the next one succeeds."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

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
    ["GET /api/models/acme/ant$", "GET .*/tree/", "HEAD .*/resolve/", "GET .*/resolve/.*config", "GET /objects/"],
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
