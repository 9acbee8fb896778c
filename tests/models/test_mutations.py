"""Two thousand damaged or hostile policy folders: each is refused in words, or loads as exactly what its files say."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import KINDS, MAY_LOAD, MUST_LOAD

COUNT, SEED = 2_000, 0
MEGABYTE = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the mutants need links and pipes")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What loading each of them did, in a process of its own: one that crashes or hangs fails here."""
    command = [sys.executable, "-m", "tests.mutants", str(tmp_path_factory.mktemp("mutants")), str(COUNT), str(SEED)]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def test_each_is_refused_or_loads_what_its_files_say(report):
    assert len(report["results"]) == COUNT
    assert not [result for result in report["results"] if result["outcome"] == "wrong"]


def test_only_what_says_something_legitimate_loads(report):
    outcomes = collections.defaultdict(set)
    for result in report["results"]:
        kind = result["kind"]
        outcomes[f"{kind}, hashed" if kind == "bits_of_the_data" and result["hashed"] else kind].add(result["outcome"])
    assert len(outcomes) == len(KINDS) + 1
    assert outcomes.pop("bits_of_the_data, hashed") == {"refused"}
    for kind, found in outcomes.items():
        if kind in MUST_LOAD:
            assert found == {"equal"}, kind
        elif kind not in MAY_LOAD:
            assert found == {"refused"}, kind
    assert "other values" in outcomes["bits_of_the_data"]  # which nothing but a hash can tell


def test_each_refusal_is_a_sentence_that_names_the_file(report):
    messages = [result["words"] for result in report["results"] if result["outcome"] == "refused"]
    assert len(messages) > COUNT / 2
    for message in messages:
        assert ".safetensors" in message or "config.json" in message
        assert len(message.split()) >= 4 and len(message) < 1_000
        assert message.isprintable(), repr(message)


def test_no_code_runs_and_nothing_outside_the_folder_is_touched(report):
    assert report["events"] == []
    assert report["untouched"]


def test_memory_stays_small(report):
    assert report["growth"] < 150 * MEGABYTE
    assert report["memory"] < 600 * MEGABYTE  # most of it is torch
