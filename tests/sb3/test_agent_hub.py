"""Agents on the Hub: published with their skills' id, commit and hash, and not opened before all of these are right."""

import base64
import hashlib
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from didi_gym.hub import download as hub
from didi_gym.hub.download import SkillPolicyHubError
from didi_gym.models.policy import SkillPolicy
from didi_gym.sb3 import (
    SkillPolicyMismatch,
    SkillPPO,
    load_agent_from_hub,
    make_vec_env,
    policy_sha256,
    push_agent_to_hub,
)
from didi_gym.sb3.agent_hub import _make_card
from didi_gym.sb3.agents import describe_agent
from tests.agents import make_agent, make_policy, predictions, toy
from tests.doubles import ToyEnv, register_toys
from tests.scripts import python_blocks, run_program

SKILLS, AGENT, WRITE = "acme/toy-skills", "acme/toy-agent", {"token": "hf_write"}
LOAD = {"trust": True, "device": "cpu"}


def published(hub_server, folder, policy, repo_id=SKILLS):
    policy.save_pretrained(folder)
    return hub_server.commit(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.fixture
def commit(hub_server, tmp_path):
    """The commit of a skill policy on the Hub."""
    return published(hub_server, tmp_path / "skills", make_policy())


@pytest.fixture
def agent(commit):
    """An agent that has learned over these skills."""
    return make_agent(toy(f"{SKILLS}@{commit}", skill_duration=5, discount=0.9)).learn(16)


@pytest.fixture
def on_hub(agent, hub_server):
    """The commit of that agent on the Hub."""
    return push_agent_to_hub(agent, AGENT, **WRITE).oid


def changed_record(hub_server, **changes):
    record = json.loads(hub_server.files(AGENT)["env_spec.json"])
    hub_server.commit(AGENT, {"env_spec.json": json.dumps({**record, **changes}).encode()})


def test_an_agent_is_published_in_one_commit_that_names_its_skills(agent, commit, hub_server):
    hub_server.commit(AGENT, {"notes.txt": b"mine"})
    before = len(hub_server.history(AGENT))
    info = push_agent_to_hub(agent, AGENT, tag="v1", **WRITE)
    assert len(hub_server.history(AGENT)) == before + 1
    assert hub_server.repos["model", AGENT].tags == {"v1": info.oid}
    files = hub_server.files(AGENT)
    assert {"agent.zip", "env_spec.json", "README.md", "notes.txt"} <= set(files)
    record = json.loads(files["env_spec.json"])
    assert record["policy"] == {"name_or_path": SKILLS, "revision": commit, "sha256": policy_sha256(make_policy())}
    assert record["agent_sha256"] == hashlib.sha256(files["agent.zip"]).hexdigest()
    assert (record["algorithm"], record["skill_durations"], record["discount"]) == ("PPO", [5], 0.9)
    (wrapper,) = record["env_spec"]["additional_wrappers"]
    assert json.loads(json.dumps(wrapper))["kwargs"]["policy"] == f"{SKILLS}@{commit}"


@pytest.mark.parametrize("revision", [None, "main", "v1", "commit"])
def test_a_loaded_agent_predicts_the_same_with_the_skills_of_the_recorded_commit(
    agent, commit, hub_server, tmp_path, revision
):
    info = push_agent_to_hub(agent, AGENT, tag="v1", **WRITE)
    published(hub_server, tmp_path / "newer", make_policy(seed=1))  # main has moved on
    loaded = load_agent_from_hub(PPO, AGENT, revision=info.oid if revision == "commit" else revision, **LOAD)
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))
    (env,) = loaded.get_env().envs
    policy = env.get_wrapper_attr("policy")
    assert (policy.name_or_path, policy.commit_hash) == (SKILLS, commit)
    assert (env.get_wrapper_attr("skill_duration"), env.get_wrapper_attr("reward_rule").discount) == (5, 0.9)
    assert loaded.learn(8).num_timesteps == 8


def test_a_folder_with_the_name_of_a_commit_is_not_taken_for_it(agent, commit, tmp_path, monkeypatch):
    push_agent_to_hub(agent, AGENT, **WRITE)
    make_policy(seed=1).save_pretrained(tmp_path / f"{SKILLS}@{commit}")
    monkeypatch.chdir(tmp_path)
    assert SkillPolicy.from_pretrained(f"{SKILLS}@{commit}").commit_hash == commit
    (env,) = load_agent_from_hub(PPO, AGENT, **LOAD).get_env().envs
    assert env.get_wrapper_attr("policy").commit_hash == commit


@pytest.mark.parametrize("algorithm", [SAC, SkillPPO])
def test_agents_of_many_environments_load_with_one(commit, hub_server, algorithm):
    register_toys()
    env = make_vec_env("Toy-v0", f"{SKILLS}@{commit}", 3, skill_duration=5, device="cpu")
    agent = make_agent(env, algorithm)
    push_agent_to_hub(agent, AGENT, **WRITE)
    loaded = load_agent_from_hub(algorithm, AGENT, **LOAD)
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))
    assert loaded.get_env().num_envs == 1
    assert loaded.get_env().get_attr("policy")[0].commit_hash == commit


def test_a_pinned_agent_in_the_cache_costs_no_request(on_hub, hub_server):
    pinned = f"{AGENT}@{on_hub}"
    load_agent_from_hub(PPO, pinned, **LOAD)
    asked = len(hub_server.requests)
    load_agent_from_hub(PPO, pinned, **LOAD)
    load_agent_from_hub(PPO, pinned, local_files_only=True, **LOAD)
    assert len(hub_server.requests) == asked


def test_an_agent_and_its_skills_are_fetched_with_the_same_token_and_cache(commit, hub_server, tmp_path):
    hub_server.repos["model", SKILLS].private = True
    policy = SkillPolicy.from_pretrained(f"{SKILLS}@{commit}", device="cpu", token="hf_read")
    push_agent_to_hub(make_agent(toy(policy)), AGENT, private=True, **WRITE)
    with pytest.raises(SkillPolicyHubError, match="private and your token cannot see it"):
        load_agent_from_hub(PPO, AGENT, cache_dir=tmp_path / "cache", **LOAD)
    load_agent_from_hub(PPO, AGENT, cache_dir=tmp_path / "cache", token="hf_read", **LOAD)
    assert {path.name for path in (tmp_path / "cache").glob("models--*")} == {
        "models--acme--toy-skills",
        "models--acme--toy-agent",
    }


# -- trust -----------------------------------------------------------------------------------------------------------
class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def bomb(path):
    """An agent's zip that makes a folder when it is opened."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        serialized = base64.b64encode(pickle.dumps(Bomb(path))).decode()
        archive.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": serialized}}))
    return content.getvalue()


@pytest.mark.parametrize("trust", [{}, {"trust": False}])
def test_without_trust_nothing_is_fetched(on_hub, hub_server, trust):
    asked = len(hub_server.requests)
    with pytest.raises(SkillPolicyHubError, match=r"zip of pickles, which run code .* trust acme .* pass trust=True"):
        load_agent_from_hub(PPO, AGENT, **trust)
    assert len(hub_server.requests) == asked


def test_the_zip_is_opened_only_when_everything_else_is_right(on_hub, commit, hub_server, tmp_path):
    exploded = tmp_path / "exploded"
    content = bomb(exploded)
    policy = {"name_or_path": SKILLS, "revision": commit, "sha256": policy_sha256(make_policy())}
    hub_server.commit(AGENT, {"agent.zip": content})
    with pytest.raises(SkillPolicyHubError, match=r"is not the one its env_spec.json names .* was not opened"):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    changed_record(hub_server, agent_sha256=hashlib.sha256(content).hexdigest(), policy={**policy, "sha256": "0" * 64})
    with pytest.raises(
        SkillPolicyHubError, match=rf"{SKILLS}@{commit} of sha256 0+, but what is there has .* not open"
    ):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    with pytest.raises(SkillPolicyMismatch, match="was trained on other skills"):
        load_agent_from_hub(PPO, AGENT, toy(f"{SKILLS}@{commit}", skill_duration=5), **LOAD)
    assert not exploded.exists()
    changed_record(hub_server, policy=policy)
    with pytest.raises(SkillPolicyHubError, match="Stable-Baselines3 could not load the agent"):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    assert exploded.exists()  # so the bomb was a real one


# -- what is refused -------------------------------------------------------------------------------------------------
def test_skills_that_nobody_else_can_load_are_refused(hub_server, tmp_path, commit):
    policy = make_policy()
    with pytest.raises(
        SkillPolicyHubError, match="is a live object that nobody else can load: publish it with push_to"
    ):
        push_agent_to_hub(make_agent(toy(policy)), AGENT, **WRITE)
    folder = policy.save_pretrained(tmp_path / "mine")
    with pytest.raises(SkillPolicyHubError, match=r"is a folder on this disk \(.*mine\): publish it"):
        push_agent_to_hub(make_agent(toy(folder)), AGENT, **WRITE)
    changed = SkillPolicy.from_pretrained(f"{SKILLS}@{commit}", device="cpu")
    changed.high.mul_(2)
    agent = make_agent(toy(SkillPolicy.from_pretrained(f"{SKILLS}@{commit}", device="cpu")))
    agent.get_env().get_attr("policy")[0].normalizer.scale.mul_(2)
    with pytest.raises(SkillPolicyHubError, match=f"is no longer what {SKILLS}@{commit} holds: publish it"):
        push_agent_to_hub(agent, AGENT, **WRITE)
    assert ("model", AGENT) not in hub_server.repos


def test_bundled_skills_are_named_and_compared(hub_server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_BUNDLED", (tmp_path / "bundle",))
    make_policy().save_pretrained(tmp_path / "bundle" / "toys")
    agent = make_agent(toy("toys"))
    push_agent_to_hub(agent, AGENT, **WRITE)
    np.testing.assert_array_equal(predictions(agent), predictions(load_agent_from_hub(PPO, AGENT, **LOAD)))
    make_policy(seed=1).save_pretrained(tmp_path / "bundle" / "toys")  # another version of the package
    with pytest.raises(SkillPolicyHubError, match="was trained on the skill policy toys of sha256"):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    (tmp_path / "bundle" / "toys" / "config.json").unlink()
    with pytest.raises(SkillPolicyHubError, match=r"'toys', which is neither bundled .* nor a commit on the Hub"):
        load_agent_from_hub(PPO, AGENT, **LOAD)


@pytest.mark.parametrize(
    ("name", "revision"),
    [("../skills", None), ("/etc", None), (".", None), (SKILLS, None), (SKILLS, "main"), ("../skills", "a" * 40)],
)
def test_a_record_may_not_lead_to_a_folder_or_a_moving_branch(
    on_hub, hub_server, tmp_path, monkeypatch, name, revision
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where ../skills is a policy
    changed_record(
        hub_server, policy={"name_or_path": name, "revision": revision, "sha256": policy_sha256(make_policy())}
    )
    with pytest.raises(
        SkillPolicyHubError, match=r"neither bundled with didi_gym .* nor a commit|needs its skill policy"
    ):
        load_agent_from_hub(PPO, AGENT, **LOAD)


def test_another_class_other_skills_and_odd_names_are_refused(on_hub, commit, hub_server, tmp_path):
    with pytest.raises(SkillPolicyHubError, match=r"is a PPO agent, got the class SAC; call load_agent_from_hub\(PPO"):
        load_agent_from_hub(SAC, AGENT, **LOAD)
    other = make_policy(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(SkillPolicyMismatch, match=rf"expected the policy {SKILLS}@{commit} .* got .*other \(sha256"):
        load_agent_from_hub(PPO, AGENT, toy(other, skill_duration=5), **LOAD)
    with pytest.raises(SkillPolicyHubError, match="names revision 'v1', but revision='v2'"):
        load_agent_from_hub(PPO, f"{AGENT}@v1", revision="v2", **LOAD)
    for name in ("agent", "./runs/agent.zip", "/etc/passwd", ""):
        with pytest.raises(SkillPolicyHubError, match=r"expected a Hub id \(owner/name\)"):
            load_agent_from_hub(PPO, name, **LOAD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged or not a file of save_agent"),
        (b"\xff\xfe{}", "is damaged or not a file of save_agent"),
        (b"[" * 100_000, "nested more than 32 levels deep"),
        (b" " * 2_000_000, "2,000,000 bytes, expected at most"),
        (b'{"format_version": 99}', "format_version 99 is newer than this didi_gym reads"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(on_hub, hub_server, content, message):
    hub_server.commit(AGENT, {"env_spec.json": content})
    with pytest.raises(SkillPolicyHubError, match=message):
        load_agent_from_hub(PPO, AGENT, **LOAD)


@pytest.mark.parametrize(
    "changes",
    [{"policy": []}, {"policy": {}}, {"agent_sha256": None}, {"env_spec": "Toy-v0"}, {"algorithm": 3}],
    ids=str,
)
def test_a_record_of_other_types_is_refused(on_hub, hub_server, changes):
    changed_record(hub_server, **changes)
    with pytest.raises(SkillPolicyHubError, match="is damaged: it does not name agent, policy and their hashes"):
        load_agent_from_hub(PPO, AGENT, **LOAD)


@pytest.mark.parametrize("spec", [{}, {"id": "Absent-v0"}, {"entry_point": "no.such:Env"}], ids=str)
def test_an_environment_that_cannot_be_made_is_asked_for(on_hub, agent, commit, hub_server, spec):
    record = json.loads(hub_server.files(AGENT)["env_spec.json"])
    changed_record(hub_server, env_spec={**record["env_spec"], **spec} if "entry_point" in spec else spec)
    with pytest.raises(SkillPolicyHubError, match=r"was trained in could not be made .* or pass env="):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    loaded = load_agent_from_hub(PPO, AGENT, toy(f"{SKILLS}@{commit}", skill_duration=5), **LOAD)
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))


def test_no_repository_no_agent_in_it_and_no_network_are_told_apart(on_hub, hub_server):
    with pytest.raises(SkillPolicyHubError, match="there is no model acme/absent"):
        load_agent_from_hub(PPO, "acme/absent", **LOAD)
    with pytest.raises(
        SkillPolicyHubError, match=f"{SKILLS} is no agent of didi_gym: it has no agent.zip and no env_sp"
    ):
        load_agent_from_hub(PPO, SKILLS, **LOAD)
    with pytest.raises(SkillPolicyHubError, match="has no revision 'v9'"):
        load_agent_from_hub(PPO, AGENT, revision="v9", **LOAD)
    with hub_server.outage(), pytest.raises(SkillPolicyHubError, match=r"does not answer .* is not in the cache"):
        load_agent_from_hub(PPO, AGENT, **LOAD)


def test_a_token_that_may_not_write_is_told(agent, hub_server):
    with pytest.raises(SkillPolicyHubError, match="write"):
        push_agent_to_hub(agent, AGENT, token="hf_read")


def test_an_environment_made_for_an_agent_that_does_not_load_is_closed(on_hub, hub_server, monkeypatch):
    closed = []
    monkeypatch.setattr(ToyEnv, "close", lambda env: closed.append(env))
    changed_record(hub_server, skill_durations=[6])
    with pytest.raises(SkillPolicyMismatch, match=r"expected skill_durations \[6\], got \[5\]"):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    assert len(closed) == 1


# -- statistics, card ------------------------------------------------------------------------------------------------
def test_an_agent_with_statistics_is_published_with_them(commit, hub_server, tmp_path):
    def make_env():
        return DummyVecEnv([lambda: toy(f"{SKILLS}@{commit}")])

    agent = make_agent(VecNormalize(make_env()))
    with pytest.raises(SkillPolicyHubError, match=r"publish its statistics too.*normalize.pkl"):
        push_agent_to_hub(agent, AGENT, **WRITE)
    agent.get_vec_normalize_env().save(tmp_path / "normalize.pkl")
    push_agent_to_hub(agent, AGENT, extra={"normalize.pkl": tmp_path / "normalize.pkl"}, **WRITE)
    assert hub_server.files(AGENT)["normalize.pkl"] == (tmp_path / "normalize.pkl").read_bytes()
    with pytest.raises(SkillPolicyHubError, match="does not say how to make the agent's environment; pass env="):
        load_agent_from_hub(PPO, AGENT, **LOAD)
    loaded = load_agent_from_hub(PPO, AGENT, VecNormalize.load(tmp_path / "normalize.pkl", make_env()), **LOAD)
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))


@pytest.mark.parametrize("path", ["agent.zip", "../x", "/x", "absent"])
def test_odd_further_files_are_refused(agent, hub_server, tmp_path, path):
    (tmp_path / "file").write_bytes(b"x")
    source = tmp_path / ("absent" if path == "absent" else "file")
    with pytest.raises(SkillPolicyHubError, match=r"is written by the push itself|is no path inside|has no absent"):
        push_agent_to_hub(agent, AGENT, extra={path: source}, **WRITE)
    assert ("model", AGENT) not in hub_server.repos


def test_the_card_warns_and_its_usage_runs(agent, commit, on_hub, hub_server):
    from huggingface_hub import ModelCard

    text = hub_server.files(AGENT)["README.md"].decode()
    card = ModelCard(text)
    assert card.data.library_name == "didi_gym" and card.data.base_model == SKILLS
    assert "zip of pickles" in text and f"`{SKILLS}@{commit}`" in text and "in `Toy-v0`" in text
    (block,) = python_blocks(text)
    names = run_program(block)
    np.testing.assert_array_equal(predictions(names["agent"]), predictions(agent))


def test_words_of_a_specification_are_no_markup_and_no_html_on_a_card(agent):
    odd = "x`</code><img src=y onerror=z>`"
    record = describe_agent(agent)
    record["env_spec"]["kwargs"]["env_id"] = record["policy"]["name_or_path"] = odd
    shown = _make_card(agent, {**record, "algorithm": "[A](http://x)"}, AGENT, (odd,)).split("---\n", 2)[2]
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", shown, flags=re.DOTALL)
    assert not re.search(r"<(?!!--)", without_code) and r"\[A\]\(http://x\)" in without_code


def test_a_card_edited_by_hand_stays_and_others_are_renewed(agent, on_hub, commit, hub_server):
    other = make_agent(toy(f"{SKILLS}@{commit}", skill_duration=4))
    push_agent_to_hub(other, AGENT, **WRITE)
    assert "each for 4 steps" in hub_server.files(AGENT)["README.md"].decode()
    hub_server.commit(AGENT, {"README.md": b"# Mine"})
    push_agent_to_hub(agent, AGENT, **WRITE)
    assert hub_server.files(AGENT)["README.md"] == b"# Mine"
    assert json.loads(hub_server.files(AGENT)["env_spec.json"])["skill_durations"] == [5]
