from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

HUB = Path(__file__).resolve().parents[2] / "hub"


@pytest.fixture
def train_all(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(HUB))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    module = importlib.import_module("train_all")
    monkeypatch.setattr(module, "HUB", tmp_path / "hub")
    (tmp_path / "hub" / "recipes").mkdir(parents=True)
    for name, command in (("a", "didi-gym data a"), ("b", "didi-gym data from-agents --env X-v0 --agents DIR")):
        text = (
            f'description = "{name}"\n[data]\ndataset = "didi/{name}-v0"\ncommand = "{command}"\n[train]\nhorizon = 8\n'
        )
        (tmp_path / "hub" / "recipes" / f"{name}.toml").write_text(text)
    return module


@pytest.fixture
def asked(train_all, monkeypatch, tmp_path):
    commands = []

    def run(words, what):
        commands.append(words)
        if "train" in words:
            folder = Path(words[words.index("--output") + 1])
            folder.mkdir(parents=True)
            for file in ("config.json", "model.safetensors", "training.safetensors"):
                (folder / file).touch()
        for place in (tmp_path / "hub" / "a", tmp_path / "runs" / "a"):
            if what == "measuring" and (place.parent.name == "hub") == (words[1] == "a"):
                place.mkdir(parents=True, exist_ok=True)
                (place / "results.json").write_text('{"falls": 0.5}')

    monkeypatch.setattr(train_all, "run", run)
    return commands


def test_a_policy_is_made_in_four_commands_and_not_again(train_all, asked, tmp_path):
    args = train_all.TrainAll(names=("a",), runs=tmp_path / "runs", device="cpu", seed=3)
    train_all.main(args)
    data, trained, measured, card = asked
    assert data == ["-m", "didi_gym", "data", "a"]
    assert trained[:3] == ["-m", "didi_gym", "train"] and trained[-5:] == [
        "--seed",
        "3",
        "--device",
        "cpu",
        "--no-check",
    ]
    assert trained[trained.index("--horizon") :][:2] == ["--horizon", "8"]
    assert measured[1:] == ["a", "--run", str(tmp_path / "runs" / "a")] and card[1:] == ["a", "--refresh"]
    report = json.loads((tmp_path / "hub" / "a" / "results.json").read_text())
    assert report == {"falls": 0.5, "trained_on_gpu": 0}
    train_all.main(args)
    assert len(asked) == 4


def test_a_run_that_was_trained_is_only_measured(train_all, asked, tmp_path):
    (tmp_path / "data" / "didi" / "a-v0").mkdir(parents=True)
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "training.safetensors"):
        (folder / file).touch()
    train_all.main(train_all.TrainAll(names=("a",), runs=tmp_path / "runs", publish=False))
    assert [words[2] for words in asked] == ["evaluate"]
    assert not (tmp_path / "hub" / "a").exists() and "trained_on_gpu" in (folder / "results.json").read_text()


def test_a_policy_that_cannot_be_made_does_not_stop_the_others(train_all, asked, tmp_path, capsys):
    with pytest.raises(SystemExit, match="not made: b"):
        train_all.main(train_all.TrainAll(names=("b", "a"), runs=tmp_path / "runs"))
    assert (
        "b: didi/b-v0 is recorded from behaviour policies: pass their folder, --agents DIR" in capsys.readouterr().err
    )
    assert len(asked) == 4


def test_the_folder_of_the_policies_takes_the_place_of_the_recipes_word(train_all, asked, tmp_path):
    recipe = train_all.Recipe.read(tmp_path / "hub" / "recipes" / "b.toml")
    train_all.make_data(recipe, tmp_path)
    assert asked == [["-m", "didi_gym", "data", "from-agents", "--env", "X-v0", "--agents", str(tmp_path)]]


def test_a_name_without_a_recipe_is_refused(train_all):
    with pytest.raises(SystemExit, match="no recipe 'c' in hub/recipes; there are a, b"):
        train_all.main(train_all.TrainAll(names=("c",)))


def test_a_command_that_fails_is_named(train_all):
    with pytest.raises(train_all.Failed, match="counting ended with status 3"):
        train_all.run(["-c", "raise SystemExit(3)"], "counting")
