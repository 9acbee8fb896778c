"""The policies that come with the package, loaded by name and executed in the simulator."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import didi_gym
from didi_gym import SkillActionWrapper, SkillPolicy, hub
from didi_gym.evaluation.rollouts import hold_skills
from tests.scripts import load_script

ROOT = Path(__file__).parents[1]
NAMES = didi_gym.list_pretrained()

gymnasium_robotics = pytest.importorskip("gymnasium_robotics", reason="the mazes need didi-gym[envs]")


def test_policies_are_listed_and_load_without_a_network():
    assert {"ant-directions", "pointmaze-medium"} <= set(NAMES)
    for name in NAMES:
        policy = SkillPolicy.from_pretrained(name, device="cpu")
        assert policy.name_or_path == name and policy.revision is None
        folder, _ = hub.resolve(name)
        assert not list(folder.glob("training*")), "training state is not shipped"


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_acts_in_its_environment_alone_and_in_many(name):
    usage = load_script("hub/recipe.py").Recipe.read(ROOT / "hub" / "recipes" / f"{name}.toml").usage
    assert usage is not None
    env = didi_gym.make(usage.env, name, device="cpu", env_kwargs=usage.kwargs)
    many = didi_gym.make_vec(
        usage.env, name, num_envs=2, vectorization_mode="sync", device="cpu", env_kwargs=usage.kwargs
    )
    env.reset(seed=0)
    many.reset(seed=[0, 1])
    skill = env.action_space.sample()
    step, steps = env.step(skill), many.step(np.stack([skill, skill]))
    assert step[4]["skill_length"] == steps[4]["skill_length"][0] > 0
    assert step[1] == pytest.approx(steps[1][0], rel=1e-4, abs=1e-6)
    env.close()
    many.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_is_small_and_comes_with_the_wheel(name):
    folder, listed = ROOT / "hub" / name, (ROOT / "pyproject.toml").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5_000_000
    for file in ("config.json", "model.safetensors", "README.md", "results.json"):
        assert (folder / file).is_file() and f'"hub/{name}/{file}" = "didi_gym/_hub/{name}/{file}"' in listed


def test_ant_skills_walk_in_eight_directions_of_the_world():
    policy = SkillPolicy.from_pretrained("ant-directions", device="cpu")
    held = hold_skills(policy, skills=8, episodes=2, steps=96, progress=False)
    moved = (held.paths[:, -1] - held.paths[:, 0]).reshape(2, 8, 2)
    assert np.linalg.norm(moved, axis=-1).mean() > 5 and held.terminated.mean() <= 0.125
    angles = np.unwrap(np.arctan2(*moved.mean(0).T[::-1]))
    np.testing.assert_allclose(np.diff(angles), np.pi / 4, atol=np.deg2rad(30))


def test_point_skills_go_apart():
    policy = SkillPolicy.from_pretrained("pointmaze-medium", device="cpu")
    held = hold_skills(policy, skills=4, episodes=4, steps=24, progress=False)
    ends = (held.paths[:, -1] - held.paths[:, 0]).reshape(4, 4, 2)
    assert ends.std(axis=1).mean() > 0.1


def test_humanoid_gaits_stand_and_move_from_a_reset():
    policy = SkillPolicy.from_pretrained("humanoid-gaits", device="cpu")
    held = hold_skills(policy, skills=15, episodes=1, steps=100, progress=False)
    assert held.paths.shape == (15, 101, 47) and held.terminated.mean() < 0.2
    assert (held.paths[:, -1, :2] - held.paths[:, 0, :2])[:, 0].max() > 3  # a run


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # AntMaze v4 has other observations than v5
@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("Ant-v5", "ant-directions"),
        ("AntMaze_Open-v5", "ant-directions"),
        ("AntMaze_UMaze-v4", "ant-directions"),
        ("PointMaze_Medium-v3", "pointmaze-medium"),
        ("didi_gym/LightHumanoid-v0", "humanoid-gaits"),
    ],
)
def test_the_environments_of_the_cards_run_on_the_skills(env_id, name):
    env = didi_gym.make(env_id, name, device="cpu")
    env.action_space.seed(0)
    first, _ = env.reset(seed=0)
    second, _ = env.reset(seed=0)
    np.testing.assert_equal(first, second)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert info["skill_length"] == env.skill_duration
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.get_wrapper_attr("policy").name_or_path == name
    env.close()
    again.close()


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")  # said of every wrapper
@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # the Ant's own bounds are infinite
def test_gymnasiums_checker_passes_on_real_skills():
    check_env(didi_gym.make("Ant-v5", "ant-directions", device="cpu"), skip_render_check=True)


def test_skills_refuse_another_body():
    with pytest.raises(ValueError, match="expected"):
        didi_gym.make("HalfCheetah-v5", "ant-directions", device="cpu")


@pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3")  # it advises a Monitor; five lines have none
@pytest.mark.parametrize("page", ["README.md", *(f"hub/{name}/README.md" for name in NAMES)])
def test_the_programs_on_our_pages_run(page):
    programs = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert programs
    for program in programs:
        shortened = program.replace(".learn(2_000)", ".learn(120)")  # the same program, for a few decisions
        assert shortened != program or ".learn(" not in program
        names: dict = {}
        exec(shortened, names)
        assert isinstance(names["env"], SkillActionWrapper)
        names["env"].reset(seed=0)
        assert names["env"].step(names["env"].action_space.sample())[4]["skill_length"] > 0
        names["env"].close()
