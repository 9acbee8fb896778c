"""The command line, from a data set on disk to a picture of the skills, and what it says when something is wrong."""

import contextlib
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

import didi_gym
from didi_gym.cli import evaluate as evaluate_command
from didi_gym.cli import hub as hub_commands
from didi_gym.cli import main as cli
from didi_gym.cli import train as train_command
from didi_gym.core.layout import Layout
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data import DOMAINS
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.evaluation.report import SkillReport
from didi_gym.models.config import PolicyConfig
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.weights import load_tensors
from didi_gym.training import BehaviourConfig, DynamicsConfig, PriorConfig, SkillConfig, TrainConfig
from didi_gym.training.checkpoints import TrainingState
from tests.scripts import ROOT

ENV, DATASET = "InvertedPendulum-v5", "cli/pendulum-v0"
SMALL = {  # a run of a second
    **{f"{stage}.steps": 20 for stage in ("prior", "dynamics", "skills")},
    **{f"{stage}.width": 16 for stage in ("prior", "dynamics", "skills")},
    "horizon": 8,
    "device": "cpu",
}
TINY = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
QUICK = ["--starts", "4", "--skills", "4", "--held-steps", "8"]


def _record(dataset_id, episodes=6, steps=20, env_spec=True, **settings):
    """Store episodes of a pendulum that a spring keeps upright, pushed at random."""
    env, rng, buffers = gym.make(ENV, **settings), np.random.default_rng(0), []
    for i in range(episodes):
        observations, actions = [env.reset(seed=i)[0]], []
        for _ in range(steps):
            push = 3 * observations[-1][1] + 0.5 * observations[-1][3] + rng.normal(0, 0.2)
            actions.append(np.clip([push], -3, 3).astype(np.float32))
            observations.append(env.step(actions[-1])[0])
        none, last = np.zeros(steps, bool), np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=np.stack(observations),
                actions=np.stack(actions),
                rewards=np.zeros(steps),
                terminations=none,
                truncations=last,
            )
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*env")  # no environment may be named, and none for evaluation alone
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env.spec if env_spec else None,
            observation_space=env.observation_space,
            action_space=env.action_space,
            algorithm_name="spring",
            author="didi_gym",
            author_email="none@example.org",
            code_permalink="none",
            description="x",
        )


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        _record(DATASET)
        yield folder


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """A policy folder made by the command line; tests that write work on folders of their own."""
    folder = tmp_path_factory.mktemp("trained") / "policy"
    cli.run(_train(folder))
    return folder


def _train(folder, *more, dataset=DATASET):
    return ["train", "--dataset", dataset, "--output", str(folder), *TINY, "--no-check", *more]


def _main(monkeypatch, *arguments):
    """Run the console script's function; returns its exit message or code."""
    monkeypatch.setattr(sys, "argv", ["didi-gym", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_train_writes_a_policy_folder_that_tells_its_data_set_and_environment(trained):
    assert {p.name for p in trained.iterdir()} >= {"config.json", "model.safetensors", "training.safetensors"}
    config = json.loads((trained / "config.json").read_text())
    assert (config["dataset_id"], config["env_id"], config["horizon"]) == (DATASET, ENV, 8)


def test_the_same_command_again_repeats_no_work_and_keeps_the_weights(trained, monkeypatch, capfd):
    before = {name: load_tensors(trained / name) for name in ("model.safetensors", "training.safetensors")}
    monkeypatch.setattr(TrainingState, "finish_step", lambda self: pytest.fail("a step was taken again"))
    cli.run(_train(trained))
    for name, tensors in before.items():
        after = load_tensors(trained / name)
        assert after.keys() == tensors.keys() and all(after[key].equal(tensors[key]) for key in after)
    assert "Next: didi-gym evaluate" in capfd.readouterr().out


@pytest.mark.parametrize("other", ["--skills.steps 21", "--seed 1", "--indices 0 1", "--prior.learning-rate 0.01"])
def test_a_folder_of_a_run_with_other_settings_is_refused(trained, monkeypatch, other):
    message = _main(monkeypatch, *_train(trained, *other.split()))
    assert str(trained) in message and "choose another --output" in message and "\n" not in message


def test_a_run_that_could_not_begin_does_not_occupy_its_folder(datasets, tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    message = _main(monkeypatch, *_train(folder, "--horizon", "99"))
    assert message.endswith("the longest of 6 episodes has 20 steps, the horizon is 99; choose a horizon of at most 20")
    assert not folder.exists()
    cli.run(_train(folder, "--horizon", "12"))


def test_evaluate_writes_numbers_a_picture_and_a_video_of_the_real_environment(trained, tmp_path, capfd):
    pytest.importorskip("imageio_ffmpeg", reason="videos need didi-gym[viz]")
    pytest.importorskip("matplotlib", reason="pictures need didi-gym[viz]")
    cli.run(["evaluate", str(trained), "--output", str(tmp_path), *QUICK])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["starts"] == results["skills"] == 4 and results["held_steps"] == 8
    assert all(results[name] is not None for name in ("real_spread", "planned_spread", "probe", "fidelity", "falls"))
    assert (tmp_path / "skill_map.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "replay.mp4").read_bytes()[4:8] == b"ftyp"
    assert "mutual_information_bits" in capfd.readouterr().out


def test_without_video_and_data_the_numbers_are_written_all_the_same(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "empty"))
    cli.run(["evaluate", str(trained), "--output", str(tmp_path / "out"), *QUICK, "--no-video"])
    assert json.loads((tmp_path / "out" / "results.json").read_text())["fidelity"] is None
    assert "Fidelity, Vendi score and coverage are left out: no Minari data set" in capfd.readouterr().err
    assert not (tmp_path / "out" / "replay.mp4").exists()


def test_what_pictures_need_may_be_missing(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    cli.run(["evaluate", str(trained), "--output", str(tmp_path), *QUICK])
    said = capfd.readouterr().err
    assert "No skill_map.png: " in said and "No replay.mp4: " in said and said.count("didi-gym[viz]") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_policy_of_chosen_indices_is_measured_against_the_same_of_its_data(datasets, tmp_path):
    cli.run(_train(tmp_path, "--indices", "3", "1"))
    cli.run(["evaluate", str(tmp_path), *QUICK, "--no-video"])
    assert json.loads((tmp_path / "results.json").read_text())["fidelity"] is not None


def test_columns_are_described_by_options_or_by_a_file_and_end_in_the_config(datasets, tmp_path, monkeypatch, capfd):
    cli.run(_train(tmp_path / "plain"))
    said = capfd.readouterr().err
    assert "does not say what its 4 columns hold" in said and "velocities" in said
    cli.run(_train(tmp_path / "options", "--features", "0", "--relative", "1"))
    assert "columns hold" not in capfd.readouterr().err
    (tmp_path / "layout.toml").write_text("features = [0]\nrelative = [1]\n")
    cli.run(_train(tmp_path / "file", "--layout", str(tmp_path / "layout.toml")))
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("options", "file"))
    assert one == other and one["layout"]["features"] == [0] and one["layout"]["policy_inputs"] == [0, 2, 3]
    assert "other settings" in _main(monkeypatch, *_train(tmp_path / "file", "--features", "2"))
    cli.run(["evaluate", str(tmp_path / "file"), *QUICK, "--no-video"])
    assert json.loads((tmp_path / "file" / "results.json").read_text())["fidelity"] is not None


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("featuress = [0]", "", "layout.toml: featuress"),
        ("features = [0.5]", "", r"layout.toml: features\[0\]"),
        ("features = [0", "", "layout.toml: "),
        ("features = [9]", "", "column 9, .* 0 to 3"),
        ("features = [0]", "--relative 1", "one of the two"),
        ("heading_angle = [0]", "", "heading_vectors"),
    ],
)
def test_a_layout_that_cannot_be_used_is_refused_in_words(datasets, tmp_path, monkeypatch, text, options, words):
    (tmp_path / "layout.toml").write_text(text)
    arguments = ["--layout", str(tmp_path / "layout.toml"), *options.split()]
    assert re.search(words, _main(monkeypatch, *_train(tmp_path / "p", *arguments)))


def test_a_data_set_that_names_no_environment_trains_and_is_evaluated_in_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    _record("cli/nameless-v0", env_spec=False)
    cli.run(_train(tmp_path / "p", dataset="cli/nameless-v0"))
    assert "names no environment; pass env= (--env)" in _main(monkeypatch, "evaluate", tmp_path / "p", *QUICK)
    assert "not those the policy was trained on" in _main(
        monkeypatch, "evaluate", tmp_path / "p", "--env", "Pendulum-v1", *QUICK
    )
    cli.run(["evaluate", str(tmp_path / "p"), "--env", ENV, *QUICK, "--no-video"])
    assert (tmp_path / "p" / "results.json").is_file()


def test_a_data_set_recorded_with_a_window_open_does_not_open_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    _record("cli/filmed-v0", render_mode="rgb_array", reset_noise_scale=0.02)
    dataset = TrajectoryDataset.from_minari("cli/filmed-v0")
    assert (dataset.env_id, dataset.env_kwargs) == (ENV, {"reset_noise_scale": 0.02})


def test_evaluate_prints_a_table_to_read(trained, tmp_path, capfd):
    cli.run(["evaluate", str(trained), "--output", str(tmp_path), *QUICK, "--no-video"])
    said = capfd.readouterr().out
    assert re.search(r"information in one horizon, of 2 bits +[\d.]+ bits \(95 %: .*close to the ceiling", said)
    assert re.search(r"executed / planned spread .* between 0.8 and 1.2", said)
    assert re.search(r"falls +[\d.]+ % +0 %", said) and "held for 8 steps (0.32 s of simulated time)" in said


def test_wrappers_can_be_named_by_a_file_and_an_environment_is_named_once(trained, tmp_path, monkeypatch):
    spec = gym.wrappers.ClipReward(gym.make(ENV), -1.0, 1.0).spec
    (tmp_path / "env.json").write_text(spec.to_json())
    asked = ["evaluate", str(trained), "--output", str(tmp_path), *QUICK, "--no-video"]
    made = []
    monkeypatch.setattr(
        "didi_gym.evaluation.report.SkillSimulator.__init__",
        lambda self, policy, env, *_: made.append(str(env)) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        cli.run([*asked, "--env-spec", str(tmp_path / "env.json")])
    assert "ClipReward" in made[0]
    assert "leave one out" in _main(monkeypatch, *asked, "--env-spec", tmp_path / "env.json", "--env", ENV)
    (tmp_path / "env.json").write_text("{")
    assert "env.json is no JSON" in _main(monkeypatch, *asked, "--env-spec", tmp_path / "env.json")
    assert "has no absent.json" in _main(monkeypatch, *asked, "--env-spec", tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env_id": "evilmodule:Env-v0"}, "'evilmodule'.*--trust"),
        ({"env_id": "didi_gym/Ant-v0", "env_kwargs": {"policy": "evil/repo"}}, "'evil/repo'.*--trust"),
        ({"env_kwargs": {"env_id": ENV}}, "InvertedPendulum-v5.*--trust"),
        ({"env_kwargs": {"max_episode_steps": "x"}}, "max_episode_steps"),
        ({"env_kwargs": {"reset_noise_scale": "x"}}, "reset_noise_scale"),
        ({"env_id": "..x:Y-v0"}, r"'\.\.x:Y-v0'"),
        ({"env_id": "Nowhere-v0"}, "--env module:Nowhere-v0"),
    ],
)
def test_the_environment_of_a_policys_config_is_made_or_refused_in_one_sentence(
    changes, words, trained, tmp_path, monkeypatch
):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config = {**config, "env_spec": None, "dataset_id": None, **changes}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (tmp_path / "evilmodule.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = _main(monkeypatch, "evaluate", tmp_path, *QUICK, "--no-video")
    assert re.match(f"didi-gym: .*{words}", message) and "\n" not in message
    if "evilmodule" in words:
        assert _main(monkeypatch, "evaluate", tmp_path, *QUICK, "--no-video", "--trust") == "imported"


def test_list_names_the_policies_that_come_with_the_installation(monkeypatch, capsys):
    monkeypatch.setattr(hub_commands, "list_pretrained", lambda: ["ant", "point"])
    cli.run(["list"])
    assert capsys.readouterr().out.splitlines()[1:] == ["ant", "point"]


def test_the_command_tells_its_version(capsys):
    cli.run(["--version"])
    assert capsys.readouterr().out == f"didi-gym {didi_gym.__version__}\n"


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["hub list", "--version", "train --help", "hub info ant-directions"])
def test_output_that_nobody_reads_ends_the_command_in_silence(arguments, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "didi_gym", *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_broken_pipe_that_is_not_the_outputs_is_an_error(monkeypatch):
    def fail(_):
        raise BrokenPipeError("a worker has gone")

    monkeypatch.setattr(cli, "list_policies", fail)
    assert _main(monkeypatch, "list") == "didi-gym: a worker has gone"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["data", "train --dataset ID --output DIR", "evaluate POLICY", "list"]),
        ("data", ["ant-directions     Make `didi/ant-directions-v0`", "from-agents        Make a data set", "upload "]),
        ("list", ["skill policies that come with this installation"]),
        ("train", ["--dataset", "--output", "--horizon", "--prior.steps", "--dynamics.members", "--download"]),
        ("evaluate", ["POLICY", "--env", "--starts", "--held-steps", "--contact-geoms", "--no-video"]),
        ("data ant-directions", ["--steps", "--overwrite", "Replace a data set of that id"]),
        ("data pointmaze-medium", ["--dataset", "waypoints"]),
        ("data kitchen", ["--dataset", "scripted experts"]),
    ],
)
def test_help_teaches_every_command(command, words, capsys):
    with contextlib.suppress(SystemExit):
        cli.run([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in words), said


_PARTS = {"skills": SkillConfig, "behaviours": BehaviourConfig, "prior": PriorConfig, "dynamics": DynamicsConfig}


def test_help_of_train_says_what_every_setting_means(capsys):
    with pytest.raises(SystemExit):
        cli.run(["train", "--help"])
    said = capsys.readouterr().out
    for prefix, config in _PARTS.items():
        for name in config.__dataclass_fields__:
            assert f"--{prefix}.{name.replace('_', '-')}" in said
    assert "environment steps" in said and "default: 128" in said


@pytest.mark.parametrize("arguments", [["fly"], ["data"], ["data", "moon"], ["list", "all"], ["--version", "all"]])
def test_an_unknown_command_shows_the_known_ones(arguments, monkeypatch):
    message = _main(monkeypatch, *arguments)
    assert f"no command {' '.join(arguments)!r}" in message and "didi-gym train" in message


def test_an_unknown_option_is_named(monkeypatch, capsys):
    assert _main(monkeypatch, "train", "--dataset", "x/y-v0", "--output", "z", "--skills.stepz", "3") == 2
    assert "--skills.stepz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --dataset cli/absent-v0 --output {0}/x", "no Minari data set 'cli/absent-v0' on this disk"),
        ("train --dataset nonsense --output {0}/x", "no Minari data set 'nonsense'"),
        ("train --dataset odd/\x1b[31m-v0 --output {0}/x", "Malformed dataset ID: odd/\\x1b[31m-v0"),  # Minari's words
        ("train --dataset cli/pendulum-v0 --output {0}/x --indices 7", "indices (7,) must lie in 0..3"),
        ("train --dataset cli/pendulum-v0 --output {0}/x --keys a", "the observation is no Dict"),
        ("train --dataset cli/pendulum-v0 --output {0}/file/x --horizon 8", "Not a directory"),
        ("evaluate {0}/absent", "is neither a folder, nor a bundled policy"),
        ("evaluate {0}", "is no skill policy: it has no config.json"),
        ("evaluate {1} --env Nowhere-v0", "--env module:Nowhere-v0"),
        ("evaluate {1} --env ..x:Y-v0", "'..x:Y-v0'"),
        ("evaluate {1} --env nomodule:Y-v0", "nomodule"),
        ("evaluate {1} --dataset cli/absent-v0", "no Minari data set 'cli/absent-v0'"),
        ("evaluate {1} --starts 1", "at least 2 skills from 2 starts"),
        ("evaluate {1} --contact-geoms moon", "no geom of the environment matches 'moon'"),
    ],
)
def test_an_error_a_user_can_mend_is_one_sentence(arguments, words, trained, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    message = _main(monkeypatch, *arguments.format(tmp_path, trained).split())
    assert message.startswith("didi-gym: ") and words in message and "Traceback" not in message
    assert message.isprintable()  # nothing in it acts on the terminal


def test_a_loss_that_is_no_number_ends_with_advice(datasets, tmp_path, monkeypatch):
    message = _main(monkeypatch, *_train(tmp_path, "--prior.learning-rate", "1e30"))
    assert message.startswith("didi-gym: prior: ") and message.endswith("lower learning_rate")


def test_ctrl_c_in_training_ends_with_130_and_says_that_nothing_is_lost(datasets, tmp_path, monkeypatch, capsys):
    finish = TrainingState.finish_step

    def interrupted(self):
        finish(self)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingState, "finish_step", interrupted)
    assert _main(monkeypatch, *_train(tmp_path)) == 130
    assert "stopped. prior at step 5 of 20. Nothing is lost: the same command continues." in capsys.readouterr().err


def test_ctrl_c_elsewhere_promises_nothing(trained, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt  # what Ctrl-C is in Python; the signal itself may be ignored where tests run

    monkeypatch.setattr("didi_gym.evaluation.report.evaluate_skills", stop)
    assert _main(monkeypatch, "evaluate", trained, "--output", tmp_path) == 130
    assert capsys.readouterr().err.endswith("didi-gym: stopped.\n")


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domains_command_passes_its_options_to_the_generator(name, monkeypatch, capsys):
    asked, domain = [], DOMAINS[name]
    module, _, function = domain.generator.partition(":")
    assert callable(domain.collect)
    parameters = inspect.signature(domain.collect).parameters
    assert {"dataset_id", "steps", "seed", "overwrite", *domain.settings} <= set(parameters)
    monkeypatch.setattr(f"didi_gym.data.generators.{module}.{function}", lambda **kwargs: asked.append(kwargs))
    given = ["--agents", "some/folder"] if domain.agents else []
    cli.run(["data", name, "--dataset", "a/b-v0", "--steps", "7", "--overwrite", *given])
    agents = {"agents": Path("some/folder")} if domain.agents else {}
    expected = {"dataset_id": "a/b-v0", "steps": 7, "seed": 0, "overwrite": True}
    assert asked == [{**expected, **domain.settings, **agents}]
    with pytest.raises(SystemExit):
        cli.run(["data", name, "--help"])
    assert domain.dataset in capsys.readouterr().out


def test_the_console_script_works_in_a_process_of_its_own(datasets, tmp_path):
    script = "from didi_gym.cli.main import main; main()"
    command = [sys.executable, "-c", script]
    done = subprocess.run([*command, *_train(tmp_path / "p")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "skills: 20/20" in done.stderr, done.stderr
    assert (tmp_path / "p" / "model.safetensors").is_file()
    failed = subprocess.run([*command, "evaluate", "nothing here"], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1 and failed.stderr.startswith("didi-gym: ")


def test_training_says_how_many_skills_were_found(datasets, tmp_path, capfd):
    kind = "--skills.skill-space.kind discrete --skills.skill-space.size 4"
    steps = "--behaviours.scout-steps 20 --behaviours.steps 20 --behaviours.batch-size 32"
    cli.run(_train(tmp_path, *kind.split(), *steps.split()))
    found = SkillPolicy.from_pretrained(tmp_path).skill_space.size
    assert f"{found} skills were found, starting from 4 clusters" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "size", "silhouette", "said"),
    [
        ("ball", 2, None, r"falls into clear groups.* with (\d+) groups.*kind discrete --skills.skill-space.size \d"),
        ("discrete", 12, None, None),
        ("discrete", 2, None, "more groups than 2"),
        ("ball", 2, 0.35, r"unclear.*0.35.*try both.*costs 18,500 gradient steps.* 17,000"),
        ("discrete", 12, 0.35, "unclear.*0.35.*try both"),
        ("discrete", 12, 0.1, "varies continuously.*kind ball"),
        ("ball", 2, 0.1, None),
    ],
)
def test_training_suggests_the_kind_of_skills_that_the_data_looks_like(
    kind, size, silhouette, said, capsys, monkeypatch
):
    from tests.examples import gait_dataset

    if silhouette is not None:
        monkeypatch.setattr("didi_gym.training.segmentation.separation", lambda *_: silhouette)
    skills = SkillConfig(skill_space=SkillSpace(kind, size))
    train_command._suggest_skills(gait_dataset()[0], TrainConfig(skills))
    shown = capsys.readouterr().err
    assert re.search(said, shown) if said else shown == ""


def _report(**values):
    fields = dict.fromkeys(SkillReport.__dataclass_fields__, 0.0)
    return SkillReport(**{**fields, "held_steps": 96, "held_seconds": math.nan, "spread_ratio": math.nan, **values})


@pytest.mark.parametrize(
    ("values", "discrete", "said"),
    [
        (
            {"probe": 0.8, "spread_ratio": 1.1},
            False,
            r"real probe 0.80, falls 0% within 96 steps, real/planned 1.10: .*are real",
        ),
        ({"probe": 0.8, "held_seconds": 4.8}, False, r"within 4.8 s: the skills are real\.$"),
        ({"probe": -0.1, "spread_ratio": 1.0}, False, "not real yet.*--skills.steps"),
        ({"probe": math.nan}, False, "not real yet"),
        ({"probe": 0.4}, True, "not real yet.*--behaviours.steps"),
        ({"probe": 0.9, "spread_ratio": 3.68}, False, r"3.68: the skills are not real yet.*--dynamics.steps"),
        ({"probe": 0.9, "spread_ratio": 0.5}, False, "not real yet.*--dynamics.steps"),
        ({"probe": 0.9, "falls": 0.58}, False, "falls 58%.*not real yet.*--prior.steps"),
    ],
)
def test_training_says_whether_skills_are_real(values, discrete, said):
    words = train_command.verdict(_report(**values), discrete)
    assert re.search(said, words) and "\n" not in words


def test_after_training_skills_are_tried_in_the_simulator_and_its_time_step_is_recorded(datasets, tmp_path, capfd):
    cli.run([word for word in _train(tmp_path / "p") if word != "--no-check"])
    said = capfd.readouterr().err
    assert re.search(r"In the simulator: real probe -?\d.*falls \d+% within 4.8 s, real/planned", said)
    seconds = json.loads((tmp_path / "p" / "config.json").read_text())["step_seconds"]
    assert seconds == pytest.approx(0.04)
    assert SkillPolicy.from_pretrained(tmp_path / "p").config.step_seconds == seconds


def test_a_simulator_that_cannot_be_had_never_fails_a_training(datasets, tmp_path, monkeypatch, capfd):
    def broken(*_, **__):
        raise RuntimeError("no display")

    monkeypatch.setattr("didi_gym.evaluation.report.evaluate_skills", broken)
    cli.run([word for word in _train(tmp_path / "p") if word != "--no-check"])
    said = capfd.readouterr()
    assert "not tried in the simulator: no display" in said.err and "Skill policy written to" in said.out
    assert (tmp_path / "p" / "model.safetensors").is_file()


def test_a_body_that_moves_along_a_line_is_drawn_over_time():
    layout = Layout(3, policy_inputs=(1, 2), features=(2, 0), relative=(0,))
    policy = SkillPolicy(PolicyConfig(8, 1, layout, SkillSpace("discrete", 2), 8, 1, width=8, depth=1))
    paths = np.arange(2 * 5 * 2, dtype=float).reshape(2, 5, 2)
    drawn, how = evaluate_command._picture(policy, paths)
    assert drawn[:, :, 0].tolist() == [[0, 1, 2, 3, 4]] * 2 and (drawn[:, :, 1] == paths[:, :, 1]).all()
    assert how["equal_axes"] is False
