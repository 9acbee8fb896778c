"""The demonstration of `make demo`: what it does without the training that takes its minutes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from didi_gym.evaluation import rollouts
from tests.scripts import load_script


@pytest.mark.parametrize("episodes", [0, 3, 9, 12])
def test_pictures_are_drawn_after_however_few_training_episodes(episodes, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures need didi-gym[viz]")
    demo = load_script("examples/demo.py")
    hold = rollouts.hold_skills
    monkeypatch.setattr(rollouts, "hold_skills", lambda policy, **_: hold(policy, skills=2, episodes=1, steps=2))
    curve = [(100 * i, bool(i % 2)) for i in range(episodes)]
    results = {name: {"curve": curve} for name in ("graph", "skills", "flat")}
    demo.draw_pictures(demo.Demo(output=tmp_path, video=False), results)
    drawn = {"skill_map.png", *(["learning_curves.png"] if episodes > 9 else [])}
    assert {path.name for path in Path(tmp_path).iterdir()} == drawn


def test_the_graphs_agent_is_shown(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need didi-gym[viz]")
    demo = load_script("examples/demo.py")
    settings = demo.Demo(output=tmp_path, steps=1_500, episodes=1)
    result = demo.run_graph(settings)
    assert (
        json.dumps(result)
        and result["episodes"] == 1
        and 0 <= result["success"] <= 1
        and result["curve"][-1][0] >= 1_500
    )
    demo.show_graph(settings, episodes=1)
    assert {path.name for path in tmp_path.iterdir()} == {"skill_graph.safetensors", "skill_graph.png", "agent.mp4"}


@pytest.mark.parametrize("over_skills", [True, False])
def test_agents_are_trained_measured_and_written(over_skills, tmp_path, monkeypatch):
    demo = load_script("examples/demo.py")
    monkeypatch.setattr(demo, "ENVIRONMENTS", 2)
    settings = replace(demo.Demo(output=tmp_path, episodes=1, steps=300), env_id="AntMaze_UMaze-v5")
    result = json.loads(json.dumps(demo.run_sac(settings, over_skills)))
    assert result["episodes"] == 1 and result["training_seconds"] > 0
