"""Minari data sets on the Hub: Minari stores and fetches them, the command line names them by `hf://owner/...`."""

import os
import time

import pytest

from didi_gym.cli import main as cli
from didi_gym.data.dataset import DatasetError, TrajectoryDataset
from didi_gym.data.minari import RemoteDataError, split_id, upload_dataset
from tests.cli.test_cli import DATASET, TINY, _main, _record

REMOTE = f"hf://acme/{DATASET}"


@pytest.fixture
def local(tmp_path, monkeypatch, hub_server):
    """A data set on this disk, and a token that may write."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    _record(DATASET)
    return TrajectoryDataset.from_minari(DATASET)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine: a function that forgets the data sets of this disk."""

    def go():
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
        monkeypatch.delenv("HF_TOKEN")

    return go


def test_ids_with_an_owner_are_told_from_others():
    assert split_id("didi/ant-v0") == (None, "didi/ant-v0")
    assert split_id("hf://acme/didi/ant-v0") == ("hf://acme", "didi/ant-v0")
    for wrong in ("hf://acme", "hf://", "hf:///ant-v0"):
        with pytest.raises(RemoteDataError, match="expected a data set such as hf://owner/namespace/name-v0"):
            split_id(wrong)


def test_a_data_set_goes_to_the_hub_and_comes_back_the_same(local, elsewhere, hub_server):
    assert upload_dataset(DATASET, "hf://acme") == REMOTE
    assert ("dataset", "acme/cli") in hub_server.repos
    elsewhere()
    again = TrajectoryDataset.from_minari(REMOTE, download=True)
    assert again.fingerprint() == local.fingerprint() and again.dataset_id == REMOTE
    asked = len(hub_server.requests)
    TrajectoryDataset.from_minari(REMOTE)
    TrajectoryDataset.from_minari(DATASET, download=True)
    assert len(hub_server.requests) == asked, "what is on this disk is not fetched"


def test_the_command_line_uploads_a_data_set_and_trains_on_it_elsewhere(local, elsewhere, tmp_path, capsys):
    cli.run(["data", "upload", DATASET, "hf://acme"])
    assert f"didi-gym train --dataset {REMOTE} --download" in capsys.readouterr().out
    elsewhere()
    cli.run(["train", "--dataset", REMOTE, "--download", "--output", str(tmp_path / "policy"), *TINY])
    assert f'"dataset_id": "{REMOTE}"' in (tmp_path / "policy" / "config.json").read_text()


def test_nothing_is_fetched_without_download(local, elsewhere, hub_server):
    upload_dataset(DATASET, "hf://acme")
    elsewhere()
    asked = len(hub_server.requests)
    with pytest.raises(DatasetError, match=r"no Minari data set 'hf://acme/cli/pendulum-v0' on this disk.*--download"):
        TrajectoryDataset.from_minari(REMOTE)
    assert len(hub_server.requests) == asked


def test_what_is_on_the_hub_already_stays(local, hub_server):
    upload_dataset(DATASET, "hf://acme")
    before = hub_server.history("acme/cli", repo_type="dataset")[0].sha
    with pytest.raises(
        RemoteDataError, match="has a data set cli/pendulum-v0 already, which stays; upload under another"
    ):
        upload_dataset(DATASET, "hf://acme")
    assert hub_server.history("acme/cli", repo_type="dataset")[0].sha == before


@pytest.mark.parametrize(
    ("dataset", "remote", "words"),
    [
        ("cli/absent-v0", "hf://acme", "no data set 'cli/absent-v0' on this disk to upload"),
        (DATASET, "acme", "expected where to store the data set as hf://owner, got 'acme'"),
        (DATASET, "hf://acme/cli", "expected where to store the data set as hf://owner, got 'hf://acme/cli'"),
        (DATASET, "hf://other", "could not upload cli/pendulum-v0 to hf://other: "),
    ],
)
def test_what_cannot_be_uploaded_is_refused_with_its_reason(local, monkeypatch, dataset, remote, words):
    message = _main(monkeypatch, "data", "upload", dataset, remote)
    assert message.startswith(f"didi-gym: {words}") and "\n" not in message


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("hf://acme/cli/absent-v0", "Couldn't find any version"),
        ("hf://nobody/cli/pendulum-v0", "there is no nobody/cli on the Hub, or your token cannot see it"),
    ],
)
def test_a_data_set_that_is_not_on_the_hub_is_named(local, elsewhere, dataset, reason):
    upload_dataset(DATASET, "hf://acme")
    elsewhere()
    with pytest.raises(DatasetError, match=f"could not fetch data set {dataset}: {reason}"):
        TrajectoryDataset.from_minari(dataset, download=True)


def test_a_hub_that_does_not_answer_is_an_error_within_five_seconds(local, elsewhere, hub_server):
    started = time.monotonic()
    with hub_server.outage(), pytest.raises(RemoteDataError, match=f"could not upload {DATASET} to hf://acme: "):
        upload_dataset(DATASET, "hf://acme")
    elsewhere()
    for dataset in (REMOTE, DATASET):
        with hub_server.outage(), pytest.raises(DatasetError, match=f"could not fetch data set {dataset}: "):
            TrajectoryDataset.from_minari(dataset, download=True)
    assert time.monotonic() - started < 5


def test_minaris_own_remote_is_left_as_it_was(local, monkeypatch):
    for before in (None, "hf://farama-minari"):
        if before:
            monkeypatch.setenv("MINARI_REMOTE", before)
        with pytest.raises(DatasetError):
            TrajectoryDataset.from_minari("hf://acme/cli/absent-v0", download=True)
        assert os.environ.get("MINARI_REMOTE") == before
