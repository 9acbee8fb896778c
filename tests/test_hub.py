"""Where policies are found: bundled with the package, in folders, on the Hub; only the last touches the network."""

from pathlib import Path

import huggingface_hub
import pytest

from didi_gym import hub
from didi_gym.hub import SkillPolicyHubError, list_pretrained, resolve
from didi_gym.policy import SkillPolicy
from tests.examples import random_policy


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """Two roots: a wheel's and a source checkout's."""
    roots = (tmp_path / "wheel", tmp_path / "checkout")
    monkeypatch.setattr(hub, "_BUNDLED", roots)
    for root, names in zip(roots, [["ant"], ["ant", "point"]], strict=True):
        for name in names:
            random_policy().save_pretrained(root / name)
    (roots[1] / "recipes").mkdir()
    return roots


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """`snapshot_download` as a list of what was asked of it; answers with a folder named by a commit."""
    asked = []

    def download(repo_id, **settings):
        asked.append((repo_id, settings))
        return str(random_policy().save_pretrained(tmp_path / "cache" / "0a1b2c"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))


def test_bundled_names_are_those_of_policy_folders_each_once(bundled):
    assert list_pretrained() == ["ant", "point"]


@pytest.mark.usefixtures("no_network")
def test_a_bundled_name_is_found_offline_the_wheels_first(bundled, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("ant") == (bundled[0] / "ant", None) and resolve("point") == (bundled[1] / "point", None)
    policy = SkillPolicy.from_pretrained("point", device="cpu")
    assert (policy.name_or_path, policy.revision) == ("point", None)


@pytest.mark.usefixtures("no_network")
def test_a_folder_goes_before_a_bundled_name_and_a_hub_id(bundled, monkeypatch, tmp_path):
    for name in ("ant", "owner/name"):
        random_policy().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert resolve("ant") == (Path("ant"), None) and resolve("owner/name") == (Path("owner/name"), None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/ant") == (tmp_path / "ant", None)


def test_a_hub_id_is_fetched_with_every_setting_passed_on(downloads, tmp_path):
    folder, commit = resolve(
        "owner/name", revision="v1", token="t", cache_dir=tmp_path, local_files_only=True, force_download=True
    )
    assert (folder.name, commit) == ("0a1b2c", "0a1b2c")
    assert downloads == [
        (
            "owner/name",
            {
                "revision": "v1",
                "token": "t",
                "cache_dir": tmp_path,
                "local_files_only": True,
                "force_download": True,
                "allow_patterns": ["config.json", "model.safetensors"],
                "library_name": "didi_gym",
            },
        )
    ]


def test_a_revision_may_stand_behind_the_id_and_the_commit_is_remembered(downloads):
    policy = SkillPolicy.from_pretrained("owner/name@v2", device="cpu")
    assert (policy.name_or_path, policy.revision) == ("owner/name", "0a1b2c")
    assert downloads[0][0] == "owner/name" and downloads[0][1]["revision"] == "v2"
    resolve("owner/name@v2", revision="v2")
    resolve("owner/name")
    assert [settings["revision"] for _, settings in downloads] == ["v2", "v2", None]


@pytest.mark.usefixtures("no_network")
def test_two_revisions_that_differ_are_refused():
    with pytest.raises(SkillPolicyHubError, match="names revision 'v2', but revision='v3' was asked for"):
        resolve("owner/name@v2", revision="v3")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["absent", "./owner/name", "/absent/folder", "~/absent", "a/b/c", "", Path("owner/x")])
def test_what_is_no_hub_id_never_asks_the_network(bundled, name):
    with pytest.raises(
        SkillPolicyHubError, match=r"neither a folder, nor a bundled policy \(ant, point\), nor a Hub id"
    ):
        resolve(name)


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("odd repository"), KeyError("etag")])
def test_whatever_the_client_raises_becomes_one_sentence_that_names_the_policy(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(SkillPolicyHubError, match=r"could not fetch 'owner/name' \(revision v1\).*Hub: ") as caught:
        resolve("owner/name@v1")
    assert caught.value.__cause__ is error and str(error) in str(caught.value)


def test_a_policy_that_was_never_fetched_says_so_offline(tmp_path):
    with pytest.raises(SkillPolicyHubError, match=r"could not fetch 'owner/absent' \(revision main\)"):
        resolve("owner/absent", cache_dir=tmp_path, local_files_only=True)
