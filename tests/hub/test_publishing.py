"""Publishing: one commit with everything, read back bit for bit, and each failure in a sentence of its own."""

import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from didi_gym.hub import download as hub
from didi_gym.hub.download import SkillPolicyHubError
from didi_gym.hub.upload import is_untouched, push_files, read_to_push
from didi_gym.models.card import CardError
from didi_gym.models.folder import POLICY_FILES
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.publishing import push_policy
from tests.examples import body_states, random_policy
from tests.scripts import ROOT, load_script, python_blocks

REPO, WRITE = "acme/skills", {"token": "hf_write"}
PNG = b"\x89PNG\r\n\x1a\n"
loads = functools.partial(SkillPolicy.from_pretrained, device="cpu")


@pytest.fixture
def policy():
    return random_policy(seed=3)


@pytest.fixture
def extra(tmp_path):
    """What an evaluation leaves beside a policy."""
    contents = {"results.json": b'{"coverage": 0.5}', "skill_map.png": PNG + b" map", "replay.mp4": b"a film"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


def assert_the_same(policy, loaded):
    ours, theirs = policy.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and policy.config == loaded.config
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.numpy().tobytes() == theirs[name].numpy().tobytes()
    inputs, skills = body_states(16)[:, 2:], policy.skill_space.sample(16, np.random.default_rng(0))
    np.testing.assert_array_equal(policy.plan_actions(inputs, skills), loaded.plan_actions(inputs, skills))


def posts(hub_server, ending):
    return [request for request in hub_server.requests if request.method == "POST" and ending in request.path]


@pytest.mark.parametrize(
    ("settings", "revision"),
    [
        ({}, None),
        ({}, "main"),
        ({"tag": "v1"}, "v1"),
        ({"branch": "new"}, "new"),
        ({}, "the commit"),
        ({"create_pr": True}, "refs/pr/1"),
        ({"create_pr": True}, "the commit"),
    ],
)
def test_what_was_pushed_loads_again_bit_for_bit(hub_server, policy, settings, revision):
    hub_server.commit(REPO, {"notes.txt": b"before"})
    commit = policy.push_to_hub(REPO, **settings, **WRITE)
    revision = commit.oid if revision == "the commit" else revision
    loaded = SkillPolicy.from_pretrained(REPO, revision=revision, device="cpu")
    assert_the_same(policy, loaded)
    assert loaded.commit_hash == commit.oid
    on_main = "model.safetensors" in hub_server.files(REPO)
    assert on_main == (not settings.keys() & {"branch", "create_pr"})
    assert (commit.pr_url is not None) == ("create_pr" in settings)
    assert hub_server.files(REPO, commit.oid)["notes.txt"] == b"before", "what was there stays there"


def test_a_repository_is_made_and_everything_is_one_commit(hub_server, policy, extra):
    commit = policy.push_to_hub(REPO, extra=extra, tag="v1", **WRITE)
    made, first = hub_server.history(REPO)
    assert made.sha == commit.oid and first.title == "initial commit"
    assert sorted(made.changed) == sorted(["README.md", "config.json", "model.safetensors", *extra])
    assert made.files["replay.mp4"] == b"a film"
    card = made.files["README.md"].decode()
    assert f'"{REPO}@v1"' in card and "| coverage | 50 % |" in card and "](skill_map.png)" in card


def test_the_commit_comes_first_then_the_tag_then_everything_is_fetched_at_that_commit(hub_server, policy):
    commit = policy.push_to_hub(REPO, tag="v1", **WRITE)
    lines = [f"{request.method} {request.path}" for request in hub_server.requests]
    committed, tagged = (
        lines.index(f"POST /api/models/{REPO}/commit/main"),
        lines.index(f"POST /api/models/{REPO}/tag/{commit.oid}"),
    )
    assert committed < tagged
    for file in ("config.json", "model.safetensors", "README.md"):
        assert f"HEAD /{REPO}/resolve/{commit.oid}/{file}" in lines[tagged:]


def test_pushing_the_same_again_commits_nothing_and_tags_nothing_twice(hub_server, policy, extra):
    first = policy.push_to_hub(REPO, extra=extra, tag="v1", **WRITE)
    again = push_policy(policy, REPO, check=loads, extra=extra, tag="v1", **WRITE)
    assert (again.commit.oid, again.changed) == (first.oid, ())
    assert len(hub_server.history(REPO)) == 2
    assert len(posts(hub_server, "/commit/")) == len(posts(hub_server, "/tag/")) == 1


def test_only_what_changed_is_in_the_next_commit_and_the_card_of_ours_is_renewed(hub_server, policy, extra):
    policy.push_to_hub(REPO, extra=extra, **WRITE)
    extra["results.json"].write_bytes(b'{"coverage": 0.75}')
    done = push_policy(policy, REPO, check=loads, extra=extra, **WRITE)
    assert sorted(done.changed) == ["README.md", "results.json"] and not done.kept_card
    assert "| 75 % |" in hub_server.files(REPO)["README.md"].decode()


def test_a_card_that_was_edited_by_hand_stays_unless_another_is_given(hub_server, policy, tmp_path):
    policy.push_to_hub(REPO, **WRITE)
    ours = hub_server.files(REPO)["README.md"]
    edited = ours.replace(b"## Limits", b"## Limits\n\nIt limps.")
    assert is_untouched(ours.decode()) and not is_untouched(edited.decode())
    hub_server.commit(REPO, {"README.md": edited})
    done = push_policy(random_policy(seed=4), REPO, check=loads, **WRITE)
    assert done.kept_card and sorted(done.changed) == ["config.json", "model.safetensors"]
    assert hub_server.files(REPO)["README.md"] == edited
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\nfrom a file")
    for card, expected in (("---\nlicense: mit\n---\nmine", b"mine"), (tmp_path / "card.md", b"from a file")):
        policy.push_to_hub(REPO, card=card, **WRITE)
        assert hub_server.files(REPO)["README.md"].endswith(expected)


def test_a_repository_is_private_where_that_was_asked_for(hub_server, policy):
    commit = policy.push_to_hub(REPO, private=True, **WRITE)
    assert hub_server.repos["model", REPO].private
    with pytest.raises(SkillPolicyHubError, match="private"):
        SkillPolicy.from_pretrained(REPO, device="cpu")
    assert_the_same(policy, SkillPolicy.from_pretrained(f"{REPO}@{commit.oid}", device="cpu", token="hf_write"))


def test_weights_meant_to_be_private_never_reach_a_public_repository(hub_server, policy):
    hub_server.commit(REPO, {"notes.txt": b"public"})
    with pytest.raises(SkillPolicyHubError, match=r"exists and is public, but private=True was asked for.*Nothing was"):
        policy.push_to_hub(REPO, private=True, **WRITE)
    assert "model.safetensors" not in hub_server.files(REPO) and not posts(hub_server, "/lfs/objects/batch")


def test_a_tag_of_the_same_policy_stands_where_only_the_card_changed(hub_server, policy, extra):
    first = policy.push_to_hub(REPO, tag="v1", **WRITE)
    second = policy.push_to_hub(REPO, tag="v1", extra=extra, **WRITE)
    assert second.oid != first.oid and hub_server.repos["model", REPO].tags == {"v1": first.oid}


def test_saving_and_loading_push_nothing(hub_server, policy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    policy.save_pretrained(tmp_path / "acme" / "skills")
    SkillPolicy.from_pretrained(tmp_path / "acme" / "skills", device="cpu")
    assert hub_server.requests == []


# -- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"token": "hf_read"}, "your token may not write to acme/skills: make one with write scope for acme at "),
        ({"token": "hf_stranger"}, "your token may not write to acme/skills: make one with write scope for acme at "),
        ({"token": False}, "pushing to acme/skills needs a token with write scope: log in with `hf auth login`"),
        ({"token": "hf_revoked"}, "pushing to acme/skills needs a token with write scope: log in with `hf auth login`"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_token_that_may_not_write_is_told_so_and_nothing_is_pushed(hub_server, policy, settings, sentence, there):
    if there:
        hub_server.commit(REPO, {"notes.txt": b"before"})
    with pytest.raises(SkillPolicyHubError) as caught:
        policy.push_to_hub(REPO, **settings)
    assert str(caught.value).startswith(sentence), caught.value
    assert "hf_" not in str(caught.value), "no token in a message"
    assert not there or len(hub_server.history(REPO)) == 2


def test_a_private_repository_of_somebody_else_is_refused(hub_server, policy):
    hub_server.commit("other/skills", {"notes.txt": b"x"}, private=True)
    with pytest.raises(SkillPolicyHubError, match=r"your token may not write to other/skills"):
        policy.push_to_hub("other/skills", **WRITE)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"repo_id": "skills"}, "expected a Hub id owner/name to push to, got 'skills'"),
        ({"repo_id": "./acme/skills"}, "expected a Hub id owner/name to push to, got './acme/skills'"),
        ({"repo_id": "acme/sk..ills"}, "'acme/sk..ills' is no Hub id (owner/name)"),
        ({"create_pr": True, "branch": "new"}, "a pull request goes to main, so create_pr and branch exclude each"),
        ({"create_pr": True, "tag": "v1"}, "a pull request has no tag until it is merged"),
        ({"extra": {"config.json": __file__}}, "extra: config.json is written by the push itself"),
        ({"extra": {"README.md": __file__}}, "extra: README.md is written by the push itself; see card="),
        ({"extra": {"results.json": "absent.json"}}, "results.json was not pushed: . has no absent.json"),
        ({"extra": {"map.png": __file__}}, "map.png is no picture"),
        ({"extra": {"../x": __file__}}, "'../x' is no path inside a repository"),
        ({"extra": {"/x": __file__}}, "'/x' is no path inside a repository"),
    ],
)
def test_a_push_that_makes_no_sense_is_refused_before_any_request(hub_server, policy, settings, sentence):
    with pytest.raises(SkillPolicyHubError) as caught:
        policy.push_to_hub(**{"repo_id": REPO, **WRITE, **settings})
    assert str(caught.value).startswith(sentence), caught.value
    assert hub_server.requests == []


def test_files_without_a_policy_are_refused(hub_server):
    with pytest.raises(
        SkillPolicyHubError, match=r"expected config\.json and model\.safetensors among the files; missing: mod"
    ):
        push_files({"config.json": b"{}"}, REPO, needed=POLICY_FILES, **WRITE)


@pytest.mark.parametrize("target", ["inside.json", "../outside.json", "absent.json"])
def test_a_link_is_never_pushed_wherever_it_leads(hub_server, policy, tmp_path, target):
    """Whoever packed the folder could name a file of the computer that pushes it."""
    (tmp_path / "run").mkdir()
    for file in ("run/inside.json", "outside.json"):
        (tmp_path / file).write_text('{"coverage": 0.5}')
    (tmp_path / "run" / "results.json").symlink_to(target)
    with pytest.raises(SkillPolicyHubError, match=r"results\.json.*is a link"):
        policy.push_to_hub(REPO, extra={"results.json": tmp_path / "run" / "results.json"}, **WRITE)
    assert hub_server.requests == []


def test_what_is_no_plain_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "replay.mp4")
    for name in ("replay.mp4", "."):
        with pytest.raises(SkillPolicyHubError, match="expected a file"):
            read_to_push("replay.mp4", tmp_path / name)


@pytest.mark.parametrize("path", ["skill_map.png", "plots/CURVE.PNG"])
def test_a_picture_that_is_none_is_refused_before_any_request(hub_server, path):
    with pytest.raises(SkillPolicyHubError, match=path):
        push_files({path: b"-----BEGIN PRIVATE KEY-----"}, REPO, needed=(), **WRITE)
    assert hub_server.requests == []


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"[1]", "the file"),
        (b'{"coverage": "good"}', "coverage"),
        (b'{"coverage": true}', "coverage"),
        (b'{"coverage": NaN}', "NaN"),
        (b'{"coverage": 1%s}' % (b"0" * 400), "coverage"),
        (b'{"baselines": {"vae": {"falls": {"iqm": []}}}}', r"baselines\.vae\.falls\.iqm"),
    ],
)
def test_a_push_with_odd_results_names_the_place_and_sends_nothing(hub_server, policy, extra, content, place):
    extra["results.json"].write_bytes(content)
    with pytest.raises(CardError, match=rf"^results\.json .*{place}.*") as caught:
        policy.push_to_hub(REPO, extra=extra, **WRITE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert hub_server.requests == []


def test_results_that_are_too_large_are_not_read_to_be_pushed(hub_server, policy, extra):
    with extra["results.json"].open("wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(SkillPolicyHubError, match=r"results\.json was not pushed: .* expected at most 1,048,576"):
        policy.push_to_hub(REPO, extra=extra, **WRITE)
    assert hub_server.requests == []


def test_what_came_back_is_handed_to_the_check_whose_refusal_fails_the_push(hub_server):
    seen = []

    def refuse(folder):
        seen.append((folder / "notes.txt").read_bytes())
        raise SkillPolicyHubError("it does not load")

    with pytest.raises(SkillPolicyHubError, match=r"was pushed as commit [0-9a-f]{40}.*it does not load"):
        push_files({"notes.txt": b"ours"}, REPO, needed=(), check=refuse, **WRITE)
    assert seen == [b"ours"]


def test_a_tag_that_names_another_policy_is_refused_before_anything_is_committed(hub_server, policy):
    first = policy.push_to_hub(REPO, tag="v1", **WRITE)
    with pytest.raises(
        SkillPolicyHubError, match=rf"has a tag 'v1' already, at commit {first.oid}.*choose another tag"
    ):
        random_policy(seed=4).push_to_hub(REPO, tag="v1", **WRITE)
    assert hub_server.history(REPO)[0].sha == first.oid


def test_a_commit_of_somebody_else_in_the_meantime_is_no_reason_to_overwrite_it(hub_server, policy):
    hub_server.commit(REPO, {"notes.txt": b"before"})
    hub_server.on("POST .*/commit/main", lambda _: hub_server.commit(REPO, {"README.md": b"by hand"}))
    with pytest.raises(
        SkillPolicyHubError, match="got another commit at the same time, so nothing was pushed: try agai"
    ):
        policy.push_to_hub(REPO, **WRITE)
    assert hub_server.files(REPO)["README.md"] == b"by hand" and "config.json" not in hub_server.files(REPO)
    assert push_policy(policy, REPO, check=loads, **WRITE).kept_card


def test_a_card_that_the_hub_refuses_stops_the_push_with_the_hubs_reason(hub_server, policy):
    hub_server.yaml_errors = ['"license" must be one of the known licences']
    with pytest.raises(SkillPolicyHubError, match=r"the Hub refuses the card.*\.md\. - \"license\" must be"):
        policy.push_to_hub(REPO, card="---\nlicense: none of yours\n---\n", **WRITE)
    assert len(hub_server.history(REPO)) == 1


@pytest.mark.parametrize(
    ("pattern", "status", "sentence"),
    [
        ("POST .*/commit/", 500, "try again later"),
        ("POST .*/preupload/", 403, "your token may not write to acme/skills"),
        ("POST .*/commit/", 400, "the Hub refuses the commit, so nothing was pushed: file too odd"),
        ("POST .*/objects/batch", 403, "your token may not write to acme/skills"),
    ],
)
def test_a_push_that_fails_half_way_leaves_main_as_it_was(hub_server, policy, pattern, status, sentence):
    before = hub_server.commit(REPO, {"notes.txt": b"before"})
    hub_server.fail_next(pattern, status, message="file too odd")
    with pytest.raises(SkillPolicyHubError) as caught:
        policy.push_to_hub(REPO, **WRITE)
    assert sentence in str(caught.value)
    assert hub_server.history(REPO)[0].sha == before


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_a_hub_that_does_not_answer_is_an_error_within_five_seconds(hub_server, policy, kind):
    started = time.monotonic()
    with (
        hub_server.outage(kind),
        pytest.raises(SkillPolicyHubError, match=r"could not push acme/skills.*check the netw"),
    ):
        policy.push_to_hub(REPO, **WRITE)
    assert time.monotonic() - started < 5


def test_a_hub_without_xet_storage_is_pushed_to_by_setting_what_the_message_names(hub_server):
    pytest.importorskip("hf_xet", reason="only then the client uploads through Xet")
    program = "from tests.examples import random_policy; random_policy().push_to_hub('acme/skills', token='hf_write')"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert "has no Xet storage, so nothing was pushed: set HF_HUB_DISABLE_XET=1 and push again" in done.stderr
    assert len(hub_server.history(REPO)) == 1


def test_where_the_tag_fails_the_message_says_that_the_commit_is_there(hub_server, policy):
    hub_server.fail_next("POST .*/tag/", 500)
    with pytest.raises(
        SkillPolicyHubError, match=r"was pushed as commit ([0-9a-f]{40}), but then: .*answers 500"
    ) as caught:
        policy.push_to_hub(REPO, tag="v1", **WRITE)
    assert hub_server.history(REPO)[0].sha in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_hub_that_returns_other_bytes_than_were_pushed_is_found_out(hub_server, policy, tmp_path, file):
    policy.save_pretrained(tmp_path)
    content = bytearray((tmp_path / file).read_bytes())
    content[-3] ^= 1
    hub_server.use_cdn = False
    hub_server.change(f"GET .*/resolve/.*/{file}", body=bytes(content))
    with pytest.raises(
        SkillPolicyHubError, match=rf"but then: what the Hub returns differs in {file}; do not use that"
    ):
        policy.push_to_hub(REPO, **WRITE)


def test_no_error_shows_the_clients_internals(hub_server, policy):
    with pytest.raises(SkillPolicyHubError) as caught:
        policy.push_to_hub(REPO, token="hf_read")
    words = str(caught.value)
    assert "Traceback" not in words and "httpx" not in words and "\n" not in words and "api/repos/create" not in words


# -- hub/publish.py --------------------------------------------------------------------------------------------------
POLICIES = sorted(path.parent.name for path in (ROOT / "hub").glob("*/config.json"))
MODELS = """# A comment on top.

[body]  # one on the header
repo_id = "nobody/body"
sha256 = "0000"
dataset = "bodies/plane-v0"
env_id = "Ant-v5"
license = "mit"
description = "It walks."

[other]
repo_id = "nobody/other"  # stays
sha256 = "1111"
dataset = "x/y-v0"
env_id = "Ant-v5"
license = "mit"
description = "It walks."
"""


@pytest.fixture
def publish(tmp_path, monkeypatch, policy):
    """`hub/publish.py` over a hub/ of its own, which has one policy."""
    module, root = load_script("hub/publish.py"), tmp_path / "hub"
    monkeypatch.setattr(module, "HUB", root)
    monkeypatch.setattr(hub, "_BUNDLED", (root,))
    random_policy(seed=3, dataset_id="bodies/plane-v0").save_pretrained(root / "body")
    for name, content in {"results.json": b'{"probe": 0.5}', "skill_map.png": PNG, "replay.mp4": b"film"}.items():
        (root / "body" / name).write_bytes(content)
    (root / "models.toml").write_text(MODELS)
    return module


@pytest.mark.parametrize("name", POLICIES)
def test_a_dry_run_of_a_folder_in_hub_succeeds_without_a_network(name, monkeypatch, capsys):
    publish = load_script("hub/publish.py")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    before = {path: path.read_bytes() for path in (ROOT / "hub").rglob("*") if path.is_file()}
    publish.main(publish.Publish((name,), dry_run=True))
    said = capsys.readouterr().out
    assert f"{name} -> {hub.known_models()[name].repo_id}, tag policy-" in said and "Nothing was pushed." in said
    for file in ("config.json", "model.safetensors", "README.md", "results.json"):
        assert file in said
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_dry_run_of_all_exits_with_zero_and_asks_no_hub(hub_server):
    command = [sys.executable, str(ROOT / "hub" / "publish.py"), "--all", "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_write"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"{name} -> " in done.stdout for name in POLICIES) and hub_server.requests == []


def test_publishing_is_one_commit_a_tag_and_an_entry_in_models_toml(publish, hub_server, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    publish.main(publish.Publish(("body",), repo_id="acme/body"))
    made, _ = hub_server.history("acme/body")
    names = ["README.md", "config.json", "model.safetensors", "replay.mp4", "results.json", "skill_map.png"]
    assert sorted(made.changed) == names
    ((tag, tagged),) = hub_server.repos["model", "acme/body"].tags.items()
    assert tagged == made.sha and re.fullmatch("policy-[0-9a-f]{12}", tag)
    assert f'"acme/body@{tag}"' in python_blocks(made.files["README.md"].decode())[0]
    known = hub.known_models()["body"]
    assert (known.repo_id, known.revision) == ("acme/body", made.sha)
    assert known.sha256 == hub.weights_sha256(publish.HUB / "body")
    text = (publish.HUB / "models.toml").read_text()
    assert all(
        line in text for line in MODELS.splitlines() if not line.startswith(('repo_id = "nobody/body', "sha256 ="))
    )
    assert "bit for bit" in capsys.readouterr().out
    publish.main(publish.Publish(("body",)))
    assert len(hub_server.history("acme/body")) == 2 and "nothing had changed" in capsys.readouterr().out


def test_the_entry_that_publishing_writes_protects_what_is_loaded_later(publish, hub_server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    publish.main(publish.Publish(("body",), repo_id="acme/body"))
    shutil.rmtree(publish.HUB / "body")  # as where the policy is known, and not bundled
    assert_the_same(
        random_policy(seed=3, dataset_id="bodies/plane-v0"), SkillPolicy.from_pretrained("body", device="cpu")
    )


def test_a_dry_run_tells_other_weights_from_those_that_were_published(publish, hub_server, monkeypatch, capsys):
    publish.main(publish.Publish(("body",), dry_run=True))
    assert "never published" in capsys.readouterr().out
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    publish.main(publish.Publish(("body",), repo_id="acme/body"))
    publish.main(publish.Publish(("body",), dry_run=True))
    assert "the same weights" in capsys.readouterr().out
    random_policy(seed=4, dataset_id="bodies/plane-v0").save_pretrained(publish.HUB / "body")
    publish.main(publish.Publish(("body",), dry_run=True))
    assert "OTHER weights" in capsys.readouterr().out


def test_refreshing_writes_the_card_and_the_hash_of_what_was_never_published(publish, capsys):
    publish.main(publish.Publish(all=True, refresh=True))
    assert is_untouched((publish.HUB / "body" / "README.md").read_text())
    expected = MODELS.replace("0000", hub.weights_sha256(publish.HUB / "body"))
    assert (publish.HUB / "models.toml").read_text() == expected


def test_an_entry_is_added_where_there_was_none(publish, tmp_path):
    publish.write_entry(tmp_path / "models.toml", "new-one", {"repo_id": 'a"b', "revision": "c"})
    publish.write_entry(tmp_path / "models.toml", "next", {"repo_id": "d"})
    assert (tmp_path / "models.toml").read_text() == (
        '[new-one]\nrepo_id = "a\\"b"\nrevision = "c"\n\n[next]\nrepo_id = "d"\n'
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 4, "high": (1.0, 0.25, 2.5)}, "loads as another policy: high, net."),
        ({"seed": 3, "skill_duration": 4}, "loads as another policy: configuration"),
    ],
)
def test_a_built_folder_that_loads_as_another_policy_is_found_out(publish, policy, other, words):
    publish._check_same(policy, random_policy(seed=3))
    with pytest.raises(ValueError, match=words):
        publish._check_same(policy, random_policy(**other))


def _break_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])


def _name_other_data(folder):
    (folder.parent / "recipes").mkdir()
    (folder.parent / "recipes" / "body.toml").write_text('description = "x"\n[data]\ndataset = "bodies/hill-v0"\n')


@pytest.mark.parametrize(
    ("arguments", "damage", "words"),
    [
        ({"names": ("body",)}, _break_weights, "model.safetensors"),
        (
            {"names": ("body",)},
            _name_other_data,
            "names data set bodies/hill-v0, but the policy was trained on bodies/pl",
        ),
        ({"names": ("body",)}, lambda folder: (folder / "results.json").write_text("["), "results.json is no report"),
        ({"names": ("absent",)}, None, "hub/ has no policy 'absent'; expected one of body"),
        ({"names": ("body",)}, lambda folder: (folder.parent / "models.toml").write_text(""), "has no [body]; add it"),
        ({}, None, "name policies (body), or all of them with --all"),
        ({"names": ("body", "other"), "repo_id": "acme/x"}, None, "--repo-id is for one policy"),
    ],
)
def test_what_cannot_be_published_fails_the_dry_run_with_its_reason(publish, arguments, damage, words):
    if damage is not None:
        damage(publish.HUB / "body")
    with pytest.raises(SystemExit) as stop:
        publish.main(publish.Publish(**{"names": (), "dry_run": True, **arguments}))
    assert words in str(stop.value.code)


def test_a_failed_push_leaves_models_toml_alone(publish, hub_server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(SystemExit) as stop:
        publish.main(publish.Publish(("body",), repo_id="acme/body"))
    assert "your token may not write to acme/body" in str(stop.value.code)
    assert (publish.HUB / "models.toml").read_text() == MODELS


def test_a_card_that_is_a_link_is_refused(hub_server, policy, tmp_path):
    (tmp_path / "secret").write_text("---\nlicense: mit\n---\nsecret")
    (tmp_path / "card.md").symlink_to(tmp_path / "secret")
    with pytest.raises(SkillPolicyHubError, match=r"README.md was not pushed: .*card.md is a link"):
        policy.push_to_hub(REPO, card=tmp_path / "card.md", **WRITE)
    assert hub_server.requests == []
