"""Saved agents name their skills: what is written, what is refused, and the environment made again from the file."""

import builtins
import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleObservation
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import didi_gym.sb3
from didi_gym.models.policy import SkillPolicy
from didi_gym.sb3 import SkillPolicyMismatch, SkillPPO, load_agent, policy_sha256, save_agent
from didi_gym.sb3.agents import sidecar_path
from didi_gym.sb3.vec_env import make_vec_env
from didi_gym.version import __version__
from didi_gym.wrappers import SkillActionWrapper
from tests.agents import make_agent, make_policy, predictions, toy
from tests.doubles import ScriptedPolicy, ToyEnv, register_toys


@pytest.fixture
def folder(tmp_path):
    """A folder that holds a skill policy."""
    return make_policy().save_pretrained(tmp_path / "skills")


def test_the_file_beside_the_zip_says_what_the_skills_were(tmp_path, folder):
    agent = make_agent(toy(str(folder), skill_duration=5, replan_every=2, discount=0.9), SAC)
    assert save_agent(agent, tmp_path / "new" / "agent.zip") == tmp_path / "new" / "agent.skills.json"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"agent.zip", "agent.skills.json"}
    record = json.loads((tmp_path / "new" / "agent.skills.json").read_text())
    spec = record.pop("env_spec")
    assert record == {
        "format_version": 1,
        "didi_gym_version": __version__,
        "algorithm": "SAC",
        "policy": {"name_or_path": str(folder), "revision": None, "sha256": policy_sha256(make_policy())},
        "skill_durations": [5],
        "replan_every": 2,
        "reward": "sum",
        "discount": 0.9,
        "action_space": "Box(-1.0, 1.0, (2,), float32)",
    }
    assert spec["id"] == "Toy-v0"
    assert [wrapper["name"] for wrapper in spec["additional_wrappers"]] == ["SkillActionWrapper"]  # not SB3's Monitor


@pytest.mark.parametrize("name", ["agent", "agent.zip", "agent.v2"])
def test_a_loaded_agent_predicts_the_same_and_learns_on(tmp_path, folder, name):
    agent = make_agent(toy(folder)).learn(16)
    save_agent(agent, str(tmp_path / name))
    loaded = load_agent(PPO, tmp_path / name, toy(folder), device="cpu", n_epochs=3)
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))
    assert loaded.n_epochs == 3
    assert loaded.learn(8).num_timesteps == 8


@pytest.mark.parametrize(
    ("algorithm", "wrap"), [(SAC, lambda env: env), (SkillPPO, lambda env: VecMonitor(DummyVecEnv([lambda: env])))]
)
def test_without_an_environment_it_is_made_again_from_the_file(tmp_path, folder, algorithm, wrap):
    agent = make_agent(wrap(toy(str(folder), skill_duration=5, discount=0.9)), algorithm)
    save_agent(agent, tmp_path / "agent")
    loaded = load_agent(algorithm, tmp_path / "agent", device="cpu")
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))
    (env,) = loaded.get_env().envs
    assert env.get_wrapper_attr("skill_duration") == 5
    assert env.get_wrapper_attr("reward_rule").discount == 0.9
    assert env.spec.max_episode_steps == 15
    assert loaded.learn(8).num_timesteps == 8


def test_agents_of_many_environments_are_made_again_with_one(tmp_path, folder):
    register_toys()
    settings = {"skill_duration": 5, "discount": 0.9, "max_episode_steps": 12, "device": "cpu"}
    agent = make_agent(make_vec_env("Toy-v0", str(folder), 3, **settings))
    record = json.loads(save_agent(agent, tmp_path / "agent").read_text())
    assert (record["skill_durations"], record["replan_every"], record["discount"]) == ([5], 4, 0.9)
    loaded = load_agent(PPO, tmp_path / "agent", device="cpu")
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))
    env = loaded.get_env()
    assert (env.num_envs, env.get_attr("skill_duration"), env.get_attr("spec")[0].kwargs["discount"]) == (1, [5], 0.9)
    assert save_agent(loaded, tmp_path / "again").read_text() == (tmp_path / "agent.skills.json").read_text()
    assert loaded.learn(8).num_timesteps == 8
    other = make_policy(seed=1)
    with pytest.raises(SkillPolicyMismatch, match=r"skills \(sha256 .*, got without a name \(sha256"):
        load_agent(PPO, tmp_path / "agent", make_vec_env("Toy-v0", other, 2, **settings))


@pytest.mark.parametrize(
    "make_env",
    [
        lambda folder: toy(str(folder), skill_duration=5, discount=0.9),
        lambda folder: RescaleObservation(toy(str(folder), skill_duration=5, discount=0.9), -1, 1),
        lambda folder: make_vec_env("Toy-v0", str(folder), 3, skill_duration=5, discount=0.9, worker_timeout=60),
        lambda folder: gym.make("didi_gym/Skill-v0", env_id="Toy-v0", policy=str(folder), discount=0.9),
    ],
    ids=["wrapper", "wrapper around", "make_vec_env", "id"],
)
def test_an_environment_made_again_reports_episodes_in_low_level_steps_and_undiscounted(tmp_path, folder, make_env):
    register_toys()
    save_agent(make_agent(make_env(folder)), tmp_path / "agent")
    env = load_agent(PPO, tmp_path / "agent", device="cpu").get_env()
    env.seed(0)
    env.reset()
    longest, length, total = 0, 0, 0.0
    for _ in range(20):
        _, _, done, (info,) = env.step(np.zeros((1, 2), np.float32))
        length, total = length + info["skill_length"], total + info["skill_return"]
        if done[0]:
            assert (info["episode"]["l"], info["episode"]["r"]) == (length, pytest.approx(total, abs=1e-5))
            longest, length, total = max(longest, length), 0, 0.0
    assert longest > 5  # more than one skill


def vector_env(policy, n_envs=2, **settings):
    return DummyVecEnv([lambda: toy(policy, **settings)] * n_envs)


def as_function(rewards):
    return float(rewards.sum())


@pytest.mark.parametrize(
    "make_env",
    [
        lambda folder: toy(make_policy()),  # a live policy without a name
        lambda folder: toy(str(folder), reward=as_function),
        lambda folder: toy(str(folder), obs_fn=lambda observation: observation[:2]),
        lambda folder: VecNormalize(vector_env(str(folder))),
        lambda folder: Undescribed(toy(str(folder))),
        lambda folder: SkillActionWrapper(ToyEnv(), str(folder), device="cpu"),  # of no registered environment
    ],
    ids=["live policy", "reward function", "obs_fn", "VecNormalize", "wrapper", "no spec"],
)
def test_what_cannot_be_made_again_is_asked_for(tmp_path, folder, make_env):
    agent = make_agent(make_env(folder))
    record = json.loads(save_agent(agent, tmp_path / "agent").read_text())
    assert record["env_spec"] is None
    with pytest.raises(ValueError, match="does not say how to make the agent's environment; pass env="):
        load_agent(PPO, tmp_path / "agent")
    loaded = load_agent(PPO, tmp_path / "agent", make_env(folder), device="cpu")
    np.testing.assert_array_equal(predictions(agent), predictions(loaded))


class Undescribed(gym.Wrapper):
    """A wrapper whose settings Gymnasium does not record."""


def test_other_skills_are_refused_by_name_and_hash(tmp_path, folder):
    other = make_policy(seed=1).save_pretrained(tmp_path / "others")
    save_agent(make_agent(toy(folder)), tmp_path / "agent")
    ours, theirs = policy_sha256(make_policy()), policy_sha256(make_policy(seed=1))
    assert ours != theirs
    message = rf"expected the policy .*skills \(sha256 {ours}\), got .*others \(sha256 {theirs}\). Wrap"
    for env in (toy(other), vector_env(other)):
        with pytest.raises(SkillPolicyMismatch, match=message):
            load_agent(PPO, tmp_path / "agent", env)


def test_a_folder_whose_policy_has_changed_since_is_refused(tmp_path, folder, monkeypatch):
    save_agent(make_agent(toy(str(folder))), tmp_path / "agent")
    make_policy(seed=1).save_pretrained(folder)
    closed = []
    monkeypatch.setattr(ToyEnv, "close", lambda env: closed.append(env))
    with pytest.raises(SkillPolicyMismatch, match=r"skills is no longer .* recorded: expected sha256"):
        load_agent(PPO, tmp_path / "agent")
    assert len(closed) == 1  # the environment made for it


def test_an_agent_of_a_relative_folder_loads_elsewhere_and_its_spec_takes_no_namesake(tmp_path, folder, monkeypatch):
    (tmp_path / "here").mkdir()
    folder.rename(tmp_path / "here" / "skills")
    make_policy(seed=1).save_pretrained(tmp_path / "there" / "skills")
    monkeypatch.chdir(tmp_path / "here")
    env = toy("skills")
    save_agent(make_agent(env), "agent")
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    monkeypatch.chdir(tmp_path / "there")
    policies = [load_agent(PPO, tmp_path / "here" / "agent").get_env().get_attr("policy")[0]]
    policies += [gym.make(which).policy for which in (env.spec, spec)]
    assert {policy_sha256(policy) for policy in policies} == {policy_sha256(make_policy())}
    record = json.loads((tmp_path / "here" / "agent.skills.json").read_text())
    assert record["policy"]["name_or_path"] == str(tmp_path / "here" / "skills")


def test_another_duration_or_action_space_is_refused(tmp_path, folder):
    save_agent(make_agent(toy(folder, skill_duration=5)), tmp_path / "agent")
    with pytest.raises(SkillPolicyMismatch, match=r"expected skill_durations \[5\], got \[6\]\. Wrap"):
        load_agent(PPO, tmp_path / "agent", toy(folder, skill_duration=6))
    narrow = gym.wrappers.RescaleAction(toy(folder, skill_duration=5), np.float32(0), np.float32(0.5))
    with pytest.raises(SkillPolicyMismatch, match=r"expected action_space Box\(-1.0, 1.0, .* got Box\(0.0, 0.5"):
        load_agent(PPO, tmp_path / "agent", narrow)


class NoNetwork(ScriptedPolicy):
    """It plans, but has no weights that could be compared."""

    @property
    def state_dict(self):
        raise AttributeError("state_dict")


@pytest.mark.parametrize("env", [ToyEnv(), SkillActionWrapper(ToyEnv(), NoNetwork())], ids=["flat", "no policy"])
def test_environments_without_a_skill_policy_are_refused(tmp_path, folder, env):
    with pytest.raises(ValueError, match="expected an environment that runs skills of a SkillPolicy, got one without"):
        save_agent(make_agent(env), tmp_path / "agent")
    assert not list(tmp_path.glob("agent*"))
    save_agent(make_agent(toy(folder)), tmp_path / "agent")
    with pytest.raises(ValueError, match="expected an environment that runs skills"):
        load_agent(PPO, tmp_path / "agent", env)


def test_an_agent_without_its_environment_is_refused(tmp_path, folder):
    make_agent(toy(folder)).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"has no environment, .* call agent.set_env\(env\) first"):
        save_agent(PPO.load(tmp_path / "agent", device="cpu"), tmp_path / "again")


def test_another_class_is_refused(tmp_path, folder):
    save_agent(make_agent(toy(folder)), tmp_path / "agent")
    with pytest.raises(ValueError, match=r"holds a PPO agent, got the class SAC; call load_agent\(PPO, ...\)"):
        load_agent(SAC, tmp_path / "agent", toy(folder))


def test_a_zip_without_its_file_is_refused_with_a_way_out(tmp_path, folder):
    make_agent(toy(folder)).save(tmp_path / "agent")
    with pytest.raises(FileNotFoundError, match=r"agent.skills.json is missing: .* load the zip with algorithm.load"):
        load_agent(PPO, tmp_path / "agent", toy(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged or not a file of save_agent"),
        ("[]", "is damaged or not a file of save_agent"),
        ("{}", "'format_version'"),
        ('{"format_version": 1, "algorithm": "PPO"}', "it lacks action_space, env_spec, policy, skill_durations"),
        ('{"format_version": 2}', "format_version 2 is newer than this didi_gym reads .1.; upgrade"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content, message):
    sidecar_path(tmp_path / "agent").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_agent(PPO, tmp_path / "agent", ToyEnv())


def test_the_hash_is_of_what_a_policy_does_wherever_it_is(tmp_path, folder):
    policy = make_policy()
    assert policy_sha256(policy) == policy_sha256(SkillPolicy.from_pretrained(folder, device="cpu"))
    changed = make_policy(skill_duration=5)
    assert policy_sha256(changed) != policy_sha256(policy)
    with torch.no_grad():
        next(policy.net.parameters()).view(-1)[0].add_(1e-6)
    assert policy_sha256(policy) != policy_sha256(make_policy())
    assert len(policy_sha256(policy)) == 64


def test_the_hash_does_not_change_between_versions(folder):
    policy = make_policy()
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.zero_()
    assert policy_sha256(policy) == "a004b4eaffb1bdc22323550a3f78821e20d244d4598caeabf19963f0057f0a61"
    data = json.loads((folder / "config.json").read_text())
    data["didi_gym_version"] = "0.0.0"
    (folder / "config.json").write_text(json.dumps(data))
    assert policy_sha256(SkillPolicy.from_pretrained(folder, device="cpu")) == policy_sha256(make_policy())


def test_without_sb3_contrib_only_what_needs_it_is_missing(monkeypatch):
    real = builtins.__import__

    def without_contrib(name, *args, **kwargs):
        if name.partition(".")[0] == "sb3_contrib":
            raise ImportError("no such module")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "didi_gym.sb3.maskable", raising=False)
    monkeypatch.delattr(didi_gym.sb3, "maskable", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_contrib)
    with pytest.raises(ImportError, match=r"needs sb3-contrib; install it with: pip install 'didi-gym\[contrib\]'"):
        _ = didi_gym.sb3.SkillMaskablePPO
    with pytest.raises(AttributeError, match=r"'didi_gym\.sb3' has no attribute 'no_such_name'"):
        _ = didi_gym.sb3.no_such_name


def test_a_downloaded_agent_is_not_opened_as_a_file_of_ones_own(tmp_path):
    folder = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "agent.zip").write_bytes(b"a pickle of a stranger")
    with pytest.raises(ValueError, match=r"load_agent_from_hub\(.*trust=True"):
        load_agent(SAC, folder / "agent.zip")
