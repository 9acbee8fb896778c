"""Where policies are found: bundled with the package, in folders, on the Hub (the real client, a loopback Hub)."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from didi_gym.hub import client as hub_client
from didi_gym.hub import download as hub
from didi_gym.hub.download import (
    SkillPolicyHubError,
    hub_errors,
    known_models,
    list_pretrained,
    resolve,
    weights_sha256,
)
from didi_gym.models.policy import SkillPolicy
from tests.examples import random_policy

NAME = "acme/ant"
ABSENT = "0" * 40


def files_of(policy: SkillPolicy, folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in policy.save_pretrained(folder).iterdir()}


@pytest.fixture
def policies() -> list[SkillPolicy]:
    return [random_policy(seed=seed) for seed in range(5)]


@pytest.fixture
def published(hub_server, policies, tmp_path) -> str:
    """The first policy on `main` of a model on the Hub; the name of its commit."""
    return hub_server.commit(NAME, files_of(policies[0], tmp_path / "published"))


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


def load(name: str, **settings) -> SkillPolicy:
    return SkillPolicy.from_pretrained(name, device="cpu", **settings)


def assert_same(got: SkillPolicy, expected: SkillPolicy) -> None:
    """The same weights bit for bit, and the same plans."""
    assert got.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert tensor.numpy().tobytes() == got.state_dict()[name].numpy().tobytes(), name
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, len(got.config.layout.policy_inputs))).astype(np.float32)
    skills = rng.uniform(-0.5, 0.5, size=(6, got.skill_space.skill_dim)).astype(np.float32)
    np.testing.assert_array_equal(got.plan_actions(inputs, skills), expected.plan_actions(inputs, skills))


def failure(name: str, **settings) -> str:
    """What loading says; a single line, and no word of the client's."""
    with pytest.raises(SkillPolicyHubError) as caught:
        load(name, **settings)
    said = str(caught.value)
    assert "\n" not in said and not re.search(r"Request ID|Traceback|httpx|for url", said), said
    return said


def cached_file(name: str, commit: str, cache: str | Path = constants.HF_HUB_CACHE) -> Path:
    return Path(cache) / f"models--{NAME.replace('/', '--')}" / "snapshots" / commit / name


# -- names ---------------------------------------------------------------------------------------------------------
def test_bundled_names_are_those_of_policy_folders_each_once(bundled):
    assert list_pretrained() == ["ant", "point"]


def test_a_bundled_name_is_found_without_a_request_the_wheels_first(bundled, hub_server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("ant") == (bundled[0] / "ant", None) and resolve("point") == (bundled[1] / "point", None)
    policy = load("point")
    assert (policy.name_or_path, policy.revision, policy.commit_hash) == ("point", None, None)
    assert not hub_server.requests


def test_a_folder_goes_before_a_bundled_name_and_a_hub_id(bundled, hub_server, monkeypatch, tmp_path):
    for name in ("ant", "owner/name"):
        random_policy().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert resolve("ant") == (Path("ant"), None) and resolve("owner/name") == (Path("owner/name"), None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/ant") == (tmp_path / "ant", None)
    assert not hub_server.requests


@pytest.mark.parametrize("name", ["absent", "./owner/name", "/absent/folder", "~/absent", "a/b/c", "", Path("owner/x")])
def test_what_is_no_hub_id_never_asks_the_network(bundled, hub_server, name):
    expected = r"neither a folder, nor a bundled policy \(ant, point\), nor a Hub id \(owner/name\)"
    assert re.search(expected, failure(name)) and not hub_server.requests


@pytest.mark.parametrize("name", ["acme/an--t", "acme/ant.git", "acme/..", "-acme/ant", "äcme/ant", "a/" + "b" * 99])
def test_a_name_that_the_hub_does_not_allow_is_refused_without_a_request(hub_server, name):
    assert re.search(r"is no Hub id \(owner/name\): ", failure(name)) and not hub_server.requests


@pytest.mark.parametrize("revision", ["../../secrets", "/etc/passwd", "main/..", "a b", "a\\b", "-x", "v1\0"])
def test_a_revision_that_could_be_a_path_elsewhere_is_refused_without_a_request(hub_server, revision):
    expected = "cannot be a revision of acme/ant: expected a branch, a tag, a commit's 40 digits or refs/pr/1"
    for settings in ({}, {"local_files_only": True}):
        assert expected in failure(NAME, revision=revision, **settings)
        assert expected in failure(f"{NAME}@{revision}", **settings)
    assert expected in failure(f"{NAME}@") and not hub_server.requests


def test_two_revisions_that_differ_are_refused(hub_server):
    assert "names revision 'v2', but revision='v3' was asked for" in failure(f"{NAME}@v2", revision="v3")


def test_a_mistyped_folder_is_told_what_is_near_without_a_request(bundled, hub_server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    random_policy().save_pretrained("runs/base")
    (tmp_path / "runs" / "bass").mkdir()  # no policy
    for name in ("runs/bsae", "runs/Base", "runs/base-1"):
        assert f"there is no folder {name}; did you mean runs/base? Where a model of that name on the Hub" in failure(
            name
        )
    for name, near in (
        ("./runs/bsae", "runs/base"),
        ("anrt", "ant"),
        (tmp_path / "runs" / "bsae", tmp_path / "runs/base"),
    ):
        assert f"; did you mean {near}?" in failure(name)
    assert not hub_server.requests


def test_a_name_in_a_folder_that_is_there_is_said_to_be_no_folder(
    hub_server, policies, published, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    random_policy().save_pretrained("acme/base")
    assert_same(load(NAME), policies[0])  # nothing near: a folder may have the name of an owner
    assert failure("acme/xyz").startswith(
        "there is no folder acme/xyz, and as the name of a model on the Hub: there is no"
    )
    with hub_server.outage():
        assert failure("acme/xyz").startswith("there is no folder acme/xyz, and")
    hub_server.commit("acme/bsae", files_of(policies[0], tmp_path / "f"))
    assert_same(load("acme/bsae@main"), policies[0])


# -- revisions -----------------------------------------------------------------------------------------------------
def test_main_a_tag_a_branch_a_commit_and_a_pull_request_load_bit_for_bit(hub_server, policies, published, tmp_path):
    hub_server.tag(NAME, "v1.0")
    moved = hub_server.commit(NAME, files_of(policies[1], tmp_path / "b"))
    branch = hub_server.commit(NAME, files_of(policies[2], tmp_path / "c"), branch="dev/faster")
    repo = hub_server.repos["model", NAME]
    repo.pulls[1] = hub_server.commit(NAME, files_of(policies[3], tmp_path / "d"), branch="scratch")
    del repo.branches["scratch"]
    expected = {
        None: (policies[1], moved),
        "main": (policies[1], moved),
        "v1.0": (policies[0], published),
        "dev/faster": (policies[2], branch),
        published: (policies[0], published),
        "refs/pr/1": (policies[3], repo.pulls[1]),
    }
    for revision, (policy, commit) in expected.items():
        got = load(NAME, revision=revision)
        assert_same(got, policy)
        assert got.commit_hash == got.revision == commit and got.name_or_path == NAME
        if revision is not None:
            assert load(f"{NAME}@{revision}").commit_hash == commit
            assert load(f"{NAME}@{revision}", revision=revision).commit_hash == commit


def test_a_commit_that_is_in_the_cache_costs_no_request(hub_server, policies, published):
    load(NAME, revision=published)
    del hub_server.requests[:], hub_server.cdn_requests[:]
    assert_same(load(f"{NAME}@{published}"), policies[0])
    assert not hub_server.requests and not hub_server.cdn_requests


def test_a_commit_that_main_led_to_costs_no_request_either(hub_server, published):
    commit = load(NAME).commit_hash
    del hub_server.requests[:]
    assert load(NAME, revision=commit).commit_hash == published and not hub_server.requests


def test_only_what_a_policy_needs_is_downloaded_and_the_hub_learns_who_asks(hub_server, published):
    hub_server.commit(NAME, {"replay.mp4": b"0" * 9999, "training.safetensors": b"1" * 9999, "README.md": b"# ant"})
    folder, commit = resolve(NAME)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert commit == folder.name
    assert all("didi_gym/" in request.headers["user-agent"] for request in hub_server.requests)


def test_a_cache_folder_of_ones_own_is_used(hub_server, published, tmp_path):
    assert load(NAME, cache_dir=tmp_path / "mine").commit_hash == published
    assert cached_file("model.safetensors", published, tmp_path / "mine").is_file()
    assert not Path(constants.HF_HUB_CACHE).exists()


# -- access --------------------------------------------------------------------------------------------------------
def test_a_private_model_loads_with_a_token_which_is_not_shown_to_the_storage(hub_server, policies, tmp_path):
    hub_server.commit(NAME, files_of(policies[0], tmp_path / "a"), private=True)
    assert_same(load(NAME, token="hf_read"), policies[0])
    assert {request.token for request in hub_server.requests} == {"hf_read"}
    stored = [request for request in hub_server.cdn_requests if request.method == "GET"]
    assert stored and all("authorization" not in request.headers for request in stored)
    assert hub_server.cdn.rpartition(":")[0] == hub_server.endpoint.rpartition(":")[0]  # another port is enough


@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_a_missing_or_private_model_says_that_it_may_be_either(hub_server, policies, tmp_path, token):
    hub_server.commit(NAME, files_of(policies[0], tmp_path / "a"), private=True)
    for name in (NAME, "acme/absent"):
        said = failure(name, token=token)
        assert f"there is no model {name} at {hub_server.endpoint}, or it is private" in said
        assert "check the name or, for a private one, log in with `hf auth login`, or pass token=" in said


@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_a_gated_model_says_where_its_terms_are_accepted(hub_server, policies, tmp_path, token):
    hub_server.commit(NAME, files_of(policies[0], tmp_path / "a"), gated=True)
    expected = f"{NAME} is gated: accept its terms on {hub_server.endpoint}/{NAME}, then log in with"
    assert expected in failure(NAME, token=token)
    assert expected in failure(NAME, token=token, force_download=True)  # where the client wraps it in another error
    hub_server.repos["model", NAME].accepted.add("hf_stranger")
    assert_same(load(NAME, token="hf_stranger"), policies[0])


def test_a_token_that_the_hub_does_not_know_is_said_to_be_refused(hub_server, published):
    expected = f"the Hub refuses your token for {NAME}, or wants one: make one at {hub_server.endpoint}/settings/tokens"
    assert expected in failure(NAME, token="hf_expired")


def test_a_model_that_the_token_may_not_read_says_whom_to_ask(hub_server, published):
    hub_server.fail_next("GET /api/models", 403, message="Forbidden")
    assert f"your token may not read {NAME}: ask its owner for access" in failure(NAME, token="hf_read")


# -- what is there -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("revision", ["v9", "refs/pr/7", ABSENT])
def test_a_revision_that_is_not_there_says_which_are(hub_server, published, revision):
    hub_server.tag(NAME, "v1.0")
    expected = f"{NAME} has no revision '{revision}'; it has main, v1.0, and commits by their 40 digits"
    assert expected in failure(NAME, revision=revision)


def test_a_revision_that_is_not_there_is_an_error_where_the_others_cannot_be_listed_too(hub_server, published):
    hub_server.fail_next("GET .*/refs", 503)
    assert failure(f"{NAME}@v9") == f"{NAME} has no revision 'v9': look at its branches and tags"


def test_a_model_of_another_kind_is_not_downloaded(hub_server):
    hub_server.commit(NAME, {"config.json": b'{"model_type": "bert"}', "tokenizer.json": b"{}"})
    assert failure(NAME) == f"{NAME} is no skill policy of didi_gym: it has no model.safetensors"
    assert not any("/resolve/" in request.path for request in hub_server.requests)


def test_a_configuration_of_another_kind_is_no_skill_policy(hub_server):
    hub_server.commit(NAME, {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    assert 'is no skill policy configuration: it does not say "model_type": "didi"' in failure(NAME)


def test_pickles_are_named_and_not_read(hub_server):
    hub_server.commit(NAME, {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04.", "agent.zip": b"PK"})
    said = failure(NAME)
    assert "it has no model.safetensors; it has agent.zip, pytorch_model.bin, but pickles are never read" in said
    assert not any("/resolve/" in request.path for request in hub_server.requests)


def test_a_pickle_that_is_called_safetensors_is_not_read(hub_server, published, tmp_path):
    pickled = f"\x80\x04cos\nsystem\n(S'touch {tmp_path}/owned'\ntR.".encode("latin-1")
    hub_server.commit(NAME, {"model.safetensors": pickled})
    assert "pickle, which is never read" in failure(NAME)
    assert not (tmp_path / "owned").exists()


def test_a_damaged_file_on_the_hub_says_that_it_is_damaged(hub_server, published):
    weights = hub_server.files(NAME)["model.safetensors"]
    hub_server.commit(NAME, {"model.safetensors": weights[:-100]})
    assert "model.safetensors is damaged or no safetensors file" in failure(NAME)


def test_a_newer_format_says_to_upgrade(hub_server, published):
    config = json.loads(hub_server.files(NAME)["config.json"])
    hub_server.commit(NAME, {"config.json": json.dumps({**config, "format_version": 99, "novelty": 1}).encode()})
    assert re.search(r"format_version 99 is newer than .*; upgrade with: pip install -U didi-gym", failure(NAME))


# -- the cache -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_was_changed_in_the_cache_is_an_error_that_a_forced_download_repairs(
    hub_server, policies, published, name
):
    load(NAME)
    blob = cached_file(name, published).resolve()
    content = bytearray(blob.read_bytes())
    content[-20] ^= 1  # it still is a readable file, and of the same size
    blob.write_bytes(content)
    for settings in ({}, {"revision": published}, {"local_files_only": True}):
        said = failure(NAME, **settings)
        assert f"{name} of {NAME} is corrupt in the cache" in said and "load it once with force_download=True" in said
    assert_same(load(NAME, force_download=True), policies[0])
    assert_same(load(NAME, revision=published), policies[0])


def test_a_file_that_was_changed_on_the_way_is_an_error(hub_server, policies, published):
    weights = bytearray(hub_server.files(NAME)["model.safetensors"])
    weights[-20] ^= 1
    hub_server.change("GET /objects/", body=bytes(weights))
    assert "model.safetensors of acme/ant is corrupt in the cache" in failure(NAME)
    assert_same(load(NAME, force_download=True), policies[0])


def test_a_link_in_the_cache_that_leads_elsewhere_is_refused(hub_server, published, tmp_path):
    load(NAME)
    link = cached_file("model.safetensors", published)
    shutil.copy(link, tmp_path / "elsewhere.safetensors")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere.safetensors")
    assert re.search(r"model.safetensors leads out of the cache, to .*: delete .*models--acme--ant", failure(NAME))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_another_file_in_place_of_a_link_of_the_cache_is_refused_and_a_copy_is_read(
    hub_server, policies, published, name, tmp_path
):
    load(NAME)
    place = cached_file(name, published)
    content = place.read_bytes()
    place.unlink()
    place.write_bytes(content)  # as a copy of a cache without links has it
    assert_same(load(NAME, revision=published), policies[0])
    place.write_bytes(files_of(random_policy(seed=7, replan_every=3), tmp_path / "other")[name])
    for settings in ({}, {"revision": published}, {"local_files_only": True}):
        assert f"{name} of {NAME} is corrupt in the cache" in failure(NAME, **settings)
    assert_same(load(NAME, force_download=True), policies[0])


def test_files_that_repositories_share_in_the_cache_are_read(hub_server, policies, published):
    load(NAME)
    blob = cached_file("model.safetensors", published).resolve()
    shared = Path(constants.HF_HUB_CACHE) / "blobs" / "ab" / ("ab" * 32)  # named by another hash: see the client
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert_same(load(NAME, revision=published), policies[0])


# -- without a network -----------------------------------------------------------------------------------------------
def test_what_was_never_fetched_says_so_offline(hub_server, published, tmp_path):
    said = failure(NAME, cache_dir=tmp_path, local_files_only=True)
    assert f"{NAME} (revision main) is not in the cache ({tmp_path}) as a whole, and local_files_only=True" in said
    assert "load it once with a network" in said and not hub_server.requests


def test_what_was_fetched_loads_from_the_cache_without_a_request(hub_server, policies, published):
    hub_server.tag(NAME, "v1")
    for revision in (None, "v1"):
        load(NAME, revision=revision)
    hub_server.commit(NAME, {"config.json": b"{}"})
    del hub_server.requests[:]
    for revision in (None, "v1", published):
        policy = load(NAME, revision=revision, local_files_only=True)
        assert_same(policy, policies[0])
        assert policy.commit_hash == published
    assert not hub_server.requests


def test_a_half_cached_policy_is_not_there_offline_and_completed_online(hub_server, policies, published):
    load(NAME)
    cached_file("model.safetensors", published).unlink()
    assert "is not in the cache" in failure(NAME, local_files_only=True)
    assert "is not in the cache" in failure(NAME, revision=published, local_files_only=True)
    assert_same(load(NAME, revision=published), policies[0])


def test_a_cache_that_another_program_began_is_completed(hub_server, policies, published):
    from huggingface_hub import hf_hub_download

    hf_hub_download(NAME, "config.json", revision=published)
    assert "is not in the cache" in failure(NAME, revision=published, local_files_only=True)
    assert_same(load(NAME, revision=published), policies[0])


def test_nothing_is_downloaded_anew_offline(hub_server, published):
    load(NAME)
    assert "cannot be downloaded anew offline: leave out force_download=True" in failure(
        NAME, local_files_only=True, force_download=True
    )


def test_offline_mode_loads_what_is_cached_and_names_what_is_not(hub_server, published):
    load(NAME)
    del hub_server.requests[:]
    program = (  # in a fresh interpreter: the client reads its settings once, when it is imported
        "from didi_gym.hub import SkillPolicyHubError, resolve\n"
        f"print(resolve({NAME!r})[1])\n"
        "try:\n    resolve('acme/absent')\n"
        "except SkillPolicyHubError as error:\n    print('said:', error)\n"
    )
    settings = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=120)
    commit, said = ran.stdout.splitlines()
    assert commit == published
    assert f"said: acme/absent (revision main) is not in the cache ({constants.HF_HUB_CACHE}) as a whole" in said
    assert "HF_HUB_OFFLINE is set: load it once with a network" in said and not hub_server.requests


# -- models that the package knows -----------------------------------------------------------------------------------
@pytest.fixture
def known(bundled, policies, tmp_path):
    """A table that knows acme/ant as "walker", by the first policy's weights; a function to write it anew."""

    def write(revision: str | None) -> None:
        sha256 = weights_sha256(policies[0].save_pretrained(tmp_path / "known"))
        commit = f'revision = "{revision}"\n' if revision else ""
        facts = 'dataset = "didi/ant-v0"\nenv_id = "Ant-v5"\nlicense = "mit"\ndescription = "It walks."\n'
        (bundled[1] / "models.toml").write_text(f'[walker]\nrepo_id = "{NAME}"\nsha256 = "{sha256}"\n{commit}{facts}')

    write(None)
    return write


def test_the_table_of_known_models_is_read(known):
    known(ABSENT)
    model = known_models()["walker"]
    assert (model.name, model.repo_id, model.revision) == ("walker", NAME, ABSENT)
    assert (model.dataset, model.env_id, model.license) == ("didi/ant-v0", "Ant-v5", "mit")
    assert model.description == "It walks."


def test_a_known_name_that_is_not_bundled_is_fetched_at_its_commit(hub_server, known, policies, published, tmp_path):
    known(published)
    hub_server.commit(NAME, files_of(policies[1], tmp_path / "b"))
    policy = load("walker")
    assert_same(policy, policies[0])
    assert policy.commit_hash == published
    assert load(f"walker@{published}").commit_hash == published


def test_a_bundled_name_in_another_revision_is_fetched_where_it_is_known(hub_server, known, policies, published):
    random_policy(seed=9).save_pretrained(hub._BUNDLED[1] / "walker")
    hub_server.tag(NAME, "v0")
    assert_same(load("walker", revision="v0"), policies[0])
    assert load("walker").commit_hash is None


def test_a_known_name_that_is_nowhere_yet_says_so_without_a_request(hub_server, known):
    assert failure("walker") == (
        "walker is not on the Hub yet and does not come with this installation (which has ant, point): it is the "
        "folder hub/walker of didi_gym's source, whose path can be given instead of the name"
    )
    assert not hub_server.requests


def test_other_weights_of_a_known_model_are_refused_unless_asked_for(hub_server, known, policies, published, tmp_path):
    known(published)
    moved = hub_server.commit(NAME, files_of(policies[1], tmp_path / "b"))
    said = failure(NAME)
    assert f"the weights of {NAME} at commit {moved} are not those that didi_gym" in said
    assert f"upgrade didi_gym or, where you trust that commit, ask for it by name: {NAME}@{moved}" in said
    assert_same(load(f"{NAME}@{moved}"), policies[1])


def test_a_known_commit_with_other_weights_is_refused(hub_server, known, policies, published, tmp_path):
    other = hub_server.commit("acme/other", files_of(policies[1], tmp_path / "b"))
    known(other)
    repo = hub_server.repos["model", NAME]  # a Hub that gives other contents for the same commit
    repo.commits[other] = hub_server.repos["model", "acme/other"].commits[other]
    assert f"the weights of {NAME} at commit {other} are not those" in failure(f"{NAME}@{other}")


def test_a_known_model_that_is_not_published_yet_is_checked_at_any_commit(hub_server, known, policies, published):
    assert_same(load(NAME), policies[0])
    hub_server.commit(NAME, {"model.safetensors": hub_server.files(NAME)["model.safetensors"] + b" "})
    assert "are not those that didi_gym" in failure(NAME)


def test_the_packages_table_has_the_hash_of_every_bundled_policy():
    assert set(list_pretrained()) <= set(known_models())
    for name, model in known_models().items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repo_id) and re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        if name in list_pretrained():
            assert weights_sha256(resolve(name)[0]) == model.sha256, (
                f"hub/models.toml has the hash of other weights of {name}"
            )


# -- the client's other errors -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "doing", "expected"),
    [
        (401, "push", "pushing to acme/ant needs a token with write scope: log in with"),
        (403, "push", "your token may not write to acme/ant: make one with write scope for acme at http"),
        (412, "push", "acme/ant got another commit at the same time, so nothing was pushed: try again"),
        (429, "push", "could not push acme/ant: the Hub at http"),
        (500, "push", "could not push acme/ant: the Hub at http"),
        (418, "load", "could not load 'acme/ant' (revision v1) at http"),
    ],
)
def test_an_answer_of_the_hub_becomes_a_sentence(hub_server, published, status, doing, expected):
    from huggingface_hub import HfApi

    hub_server.fail_next("GET /api/models", status)
    with pytest.raises(SkillPolicyHubError) as caught, hub_errors(NAME, "v1", doing):
        HfApi().model_info(NAME)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_token_without_write_scope_may_load_and_not_push(hub_server, published):
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token="hf_read")
    assert load(NAME, token="hf_read").commit_hash == published
    with (
        pytest.raises(SkillPolicyHubError, match="your token may not write to acme/ant"),
        hub_errors(NAME, None, "push"),
    ):
        api.create_commit(NAME, [CommitOperationAdd("a.txt", b"a")], commit_message="a")
    assert hub_server.history(NAME)[0].sha == published


def test_a_cache_that_may_not_be_written_names_the_folder(hub_server, published, tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    assert re.search(r"could not load '?acme/ant'? \(revision main\).*file", failure(NAME, cache_dir=place))


def test_an_error_of_ours_passes_as_it_is():
    with pytest.raises(SkillPolicyHubError, match="ours"), hub_errors(NAME):
        raise SkillPolicyHubError("ours")


# -- outages -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "revision"), [("refused", None), ("refused", ABSENT), ("silent", None)])
def test_a_hub_that_does_not_answer_is_an_error_within_five_seconds(hub_server, published, kind, revision):
    with hub_server.outage(kind):
        start = time.monotonic()
        said = failure(NAME, revision=revision)
        assert time.monotonic() - start < 5
    assert f"the Hub at {hub_server.endpoint} does not answer (" in said
    assert f"is not in the cache ({constants.HF_HUB_CACHE}): check the network and HF_ENDPOINT" in said


def test_more_patience_with_the_hub_is_the_clients_own_setting(hub_server, published, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
    hub_server.on("GET /api/models", lambda _: time.sleep(0.5), times=2)
    assert "no answer within 0.2 s; HF_HUB_ETAG_TIMEOUT may allow more" in failure(NAME)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5")
    assert load(NAME).commit_hash == published


@pytest.mark.parametrize(
    ("status", "problem"),
    [(503, "has a problem (it answers 503)"), (429, "limits the rate of requests (it answers 429)")],
)
def test_a_hub_that_has_a_problem_is_an_error_at_once(hub_server, published, status, problem):
    hub_server.fail_next("GET /api/models", status, times=9)
    start = time.monotonic()
    said = failure(NAME)
    assert f"the Hub at {hub_server.endpoint} {problem}" in said and "try again later" in said
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_what_is_cached_loads_while_the_hub_does_not_answer(hub_server, policies, published, kind, monkeypatch):
    load(NAME)
    monkeypatch.setattr(hub_client, "_PATIENCE", 0.3)
    with hub_server.outage(kind):
        policy = load(NAME)
        assert_same(policy, policies[0])
        assert policy.commit_hash == published
    monkeypatch.undo()
    assert load(NAME).commit_hash == published


def test_a_forced_download_does_not_take_the_cache_for_the_hub(hub_server, published):
    load(NAME)
    with hub_server.outage():
        assert "does not answer" in failure(NAME, force_download=True)
