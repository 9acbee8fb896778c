import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from didi_gym.core.files import SafeFileError
from didi_gym.core.layout import Layout
from didi_gym.core.schema import to_dict
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import DatasetError, TrajectoryDataset
from didi_gym.models.discriminator import Discriminator
from didi_gym.models.normalizer import Normalizer
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.prior import DiffusionPrior
from didi_gym.models.unet import TemporalUNet
from didi_gym.models.weights import load_tensors
from didi_gym.training import (
    Run,
    TrainConfig,
    TrainingStopped,
    load_training,
    train,
    train_dynamics,
    train_prior,
    train_skills,
    write_run,
)
from didi_gym.training.batches import Batches
from didi_gym.training.checkpoints import TrainingState
from didi_gym.training.config import BehaviourConfig, DynamicsConfig, PriorConfig, SkillConfig
from didi_gym.training.losses import diversity_loss
from didi_gym.training.segmentation import decide_lengths
from tests.examples import BODY, SMALL_BEHAVIOURS, body_states, point_dataset, tiny, tiny_unets

FORMS = [
    {},
    {"skill_space": SkillSpace("discrete", 4)},
    {"skill_space": SkillSpace("sphere", 2)},
    {"skill_space": SkillSpace("box", 1), "residual_target": 0.0},
    {"consistency": "joint"},
]


def _weights(folder):
    return {name: load_tensors(folder / name) for name in ("model.safetensors", "training.safetensors")}


def _same(a, b):
    return all(torch.equal(a[f][k], b[f][k]) for f in a for k in a[f]) and [*a["model.safetensors"]] == [
        *b["model.safetensors"]
    ]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_kind_of_skill_trains_saves_and_plans(tmp_path, form):
    policy = train(point_dataset(), tiny(**form), tmp_path, progress=False)
    loaded = SkillPolicy.from_pretrained(tmp_path, device="cpu")
    skills = loaded.skill_space.sample(3, np.random.default_rng(0))
    plan = loaded.plan(np.zeros((3, 2)), skills)
    assert plan.observations.shape == (3, 8, 2) and np.abs(plan.actions).max() <= 1
    np.testing.assert_array_equal(plan.actions, policy.plan(np.zeros((3, 2)), skills).actions)
    prior, discriminator = load_training(tmp_path, loaded)
    assert prior.horizon == 8 and not any(p.requires_grad for p in discriminator.parameters())


def test_further_seeds_take_prior_and_dynamics_from_a_finished_run(tmp_path):
    dataset = point_dataset()
    train(dataset, tiny(), tmp_path / "first", progress=False)
    config = replace(tiny(), seed=1)
    train(dataset, config, tmp_path / "second", reuse=tmp_path / "first", progress=False)
    first, second = (load_tensors(tmp_path / name / "training.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[k], second[k]) == (not k.startswith("discriminator.")) for k in first if "weight" in k)
    assert not (tmp_path / "second" / "checkpoints" / "prior.safetensors").exists()
    other = replace(config, horizon=6)
    with pytest.raises(ValueError, match=r"horizon 8; this run has .* 6"):
        train(dataset, other, tmp_path / "third", reuse=tmp_path / "first", progress=False)


@pytest.mark.parametrize("form", [{"consistency": "joint"}, {}, {"skill_space": SkillSpace("discrete", 4)}], ids=str)
def test_u_nets_train_save_load_and_plan_in_every_form(tmp_path, form):
    dataset = point_dataset()
    policy = train(dataset, tiny_unets(**form), tmp_path, progress=False)
    loaded = SkillPolicy.from_pretrained(tmp_path, device="cpu")
    assert loaded.config.network == "unet" and isinstance(loaded.net, TemporalUNet)
    assert isinstance(load_training(tmp_path, loaded)[0].denoiser, TemporalUNet)
    skills = loaded.skill_space.sample(3, np.random.default_rng(0))
    plan = loaded.plan(dataset.observations[:3], skills)
    np.testing.assert_array_equal(plan.actions, policy.plan(dataset.observations[:3], skills).actions)
    assert plan.observations.shape == (3, 8, 2) and plan.actions.shape[1:] == (8, 2)
    np.testing.assert_allclose(plan.observations[:, 0], dataset.observations[:3], atol=1e-6)


def test_u_nets_stopped_in_every_stage_end_with_the_same_weights(tmp_path, monkeypatch):
    config = tiny_unets(consistency="joint")
    train(point_dataset(), config, tmp_path / "whole", progress=False)
    finish = TrainingState.finish_step

    def stopped(self):
        finish(self)
        if self.step == 25:
            self.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "finish_step", stopped)
    for _ in ("prior", "skills"):
        with pytest.raises(KeyboardInterrupt):
            train(point_dataset(), config, tmp_path / "stopped", progress=False)
    train(point_dataset(), config, tmp_path / "stopped", progress=False)
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "stopped"))


def test_a_body_with_a_heading_trains(tmp_path):
    dataset = TrajectoryDataset.from_episodes([(body_states(41, i), body_states(40, i)[:, :3]) for i in range(6)], BODY)
    for space in (SkillSpace("ball", 2), SkillSpace("discrete", 3)):
        policy = train(dataset, tiny(skill_space=space), tmp_path / space.kind, progress=False)
        assert policy.config.layout == BODY


def test_skills_of_a_point_go_their_own_ways():
    """End to end in the model's own world: held skills must move the point in even directions, and far."""
    run = Run(point_dataset(40), horizon=8, progress=False)
    prior = train_prior(run, PriorConfig(steps=600, width=64, depth=2))
    dynamics = train_dynamics(run, DynamicsConfig(steps=400, width=64, unroll=3))
    policy, _ = train_skills(run, prior, dynamics, SkillConfig(steps=600, width=64, depth=2))
    position, skills = np.zeros((8, 2)), policy.skill_space.grid(8)
    for _ in range(8):
        position = position + 0.1 * policy.act(position, skills)
    distance = np.linalg.norm(position, axis=1)
    angle = np.unwrap(np.arctan2(position[:, 1], position[:, 0]))
    assert distance.min() > 0.3, distance
    np.testing.assert_allclose(np.abs(np.diff(angle)), np.pi / 4, atol=0.5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    config = tiny()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(point_dataset(), replace(config, seed=seed), tmp_path / name, progress=False)
    a, b, c = (_weights(tmp_path / name) for name in "abc")
    assert _same(a, b) and not _same(a, c)


_SLOW = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import didi_gym.training.checkpoints as checkpoints, didi_gym.training as training
from tests.examples import point_dataset, tiny
checkpoints._SAVE_SECONDS = 0.02
finish = checkpoints.TrainingState.finish_step
def slow(self):
    finish(self)
    print(self.step, flush=True)
    time.sleep(0.005)
checkpoints.TrainingState.finish_step = slow
training.train(point_dataset(), tiny(), Path(sys.argv[1]), progress=False)
"""


def _run_until(folder, steps, number):
    """Start the slow run, send it signal `number` after `steps` of its steps, and return how it ended."""
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for _ in range(steps):
            if not process.stdout.readline():
                break
        else:
            process.send_signal(number)
        process.stdout.read()
        return process.wait()


def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path):
    train(point_dataset(), tiny(), tmp_path / "whole", progress=False)
    kills = 0
    for steps in (7, 60, 30):  # one in each stage of 40 steps
        kills += _run_until(tmp_path / "killed", steps, signal.SIGKILL) == -signal.SIGKILL
    assert kills == 3
    assert _run_until(tmp_path / "killed", 1000, signal.SIGKILL) == 0
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "killed"))


def test_ctrl_c_keeps_what_was_learned_and_the_same_call_finishes_it(tmp_path):
    train(point_dataset(), tiny(), tmp_path / "whole", progress=False)
    # the prior and the dynamics take 40 steps each: step 95 is in the skills stage
    assert _run_until(tmp_path / "stopped", 95, signal.SIGINT) not in (0, -signal.SIGINT)
    early = SkillPolicy.from_pretrained(tmp_path / "stopped", device="cpu")
    assert early.plan(np.zeros((1, 2)), np.zeros((1, 2))).actions.shape == (1, 8, 2)
    train(point_dataset(), tiny(), tmp_path / "stopped", progress=False)
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "stopped"))


def test_sigint_between_steps_raises_after_the_checkpoint(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    finish = TrainingState.finish_step

    def interrupted(self):
        finish(self)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(TrainingState, "finish_step", interrupted)
    with pytest.raises(TrainingStopped, match="prior at step 5 of 40"):
        train(point_dataset(), tiny(), tmp_path, progress=False)
    assert (tmp_path / "checkpoints" / "prior.safetensors").is_file()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(point_dataset(), tiny(), tmp_path, progress=False)
    with pytest.raises(SafeFileError, match="belongs to a run with other settings or other data"):
        train(point_dataset(), tiny(learning_rate=1e-4), tmp_path, progress=False)


def test_a_run_is_not_continued_on_other_data(tmp_path):
    train(point_dataset(), tiny(), tmp_path, progress=False)
    train(point_dataset(), tiny(), tmp_path, progress=False)
    with pytest.raises(SafeFileError, match="other settings or other data"):
        train(point_dataset(seed=1), tiny(), tmp_path, progress=False)


def test_a_folder_of_another_run_is_refused(tmp_path):
    write_run(tmp_path, TrainConfig(), "a/b-v0")
    write_run(tmp_path, TrainConfig(), "a/b-v0")
    assert json.loads((tmp_path / "run.json").read_text())["dataset"] == "a/b-v0"
    with pytest.raises(FileExistsError, match="choose another --output"):
        write_run(tmp_path, TrainConfig(seed=1), "a/b-v0")


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path):
    run = Run(point_dataset(), horizon=8, progress=False)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train_prior(run, PriorConfig(steps=100, learning_rate=1e30, width=8, depth=1))


def test_training_refuses_what_it_cannot_do():
    prior = DiffusionPrior(8, 2, 2, **tiny().prior.sizes)
    with pytest.raises(DatasetError, match="horizon"):
        Run(point_dataset(steps=6), horizon=8)
    with pytest.raises(ValueError, match="dynamics model"):
        train_skills(Run(point_dataset(), horizon=8), prior, None, tiny().skills)
    with pytest.raises(ValueError, match="windows of 8 steps, the run has windows of 9"):
        train_skills(Run(point_dataset(), horizon=9), prior, None, tiny().skills)


def test_a_policy_executes_as_many_steps_of_a_plan_as_it_was_told_and_as_a_plan_has():
    run = Run(point_dataset(), horizon=8, progress=False)
    for asked, length, executed in ((None, 8, 2), (4, 8, 4), (16, 8, 8), (4, 1, 1)):
        config = SkillConfig(replan_every=asked, plans=(4, 2), width=8, depth=1)
        assert run.new_policy(config, config.skill_space, length).config.replan_every == executed


def test_only_stages_that_something_uses_are_trained(tmp_path):
    """Behaviour skills are imitated: a prior, a dynamics model or a classifier would be trained for nobody."""
    untuned = replace(SMALL_BEHAVIOURS, tuning_steps=0)
    gaits = {"skill_space": SkillSpace("discrete", 4), "behaviours": untuned}
    trained = {
        "untuned": (gaits, {"scout", "imitation"}),
        "imagined": ({**gaits, "imagine": True}, {"scout", "imitation", "dynamics"}),
        "tuned": (
            {**gaits, "behaviours": SMALL_BEHAVIOURS},
            {"scout", "imitation", "prior", "dynamics", "classifier", "skills"},
        ),
        "joint": ({"consistency": "joint"}, {"prior", "skills"}),
        "continuous": ({}, {"prior", "dynamics", "skills"}),
    }
    for name, (settings, stages) in trained.items():
        train(point_dataset(), tiny(**settings), tmp_path / name, progress=False)
        assert {file.stem for file in (tmp_path / name / "checkpoints").iterdir()} == stages, name
    untuned_policy, imagined = (SkillPolicy.from_pretrained(tmp_path / name) for name in ("untuned", "imagined"))
    assert untuned_policy.dynamics is None and load_training(tmp_path / "untuned", untuned_policy) == (None, None)
    skill = np.eye(imagined.skill_space.size)[:1]
    assert imagined.plan(np.zeros((1, 2)), skill).observations.shape == (1, 8, 2)
    assert all(torch.equal(w, imagined.state_dict()[name]) for name, w in untuned_policy.state_dict().items())
    with pytest.raises(ValueError, match=r"nothing of .*untuned can be reused"):
        train(point_dataset(), tiny(**gaits), tmp_path / "again", reuse=tmp_path / "untuned", progress=False)
    with pytest.raises(ValueError, match="untuned has no prior"):
        train(point_dataset(), tiny(), tmp_path / "again", reuse=tmp_path / "untuned", progress=False)


def test_the_horizon_is_the_datas_or_that_of_a_rhythm():
    short, long = point_dataset(episodes=4, steps=12), point_dataset(episodes=4, steps=60)
    ball, gaits = TrainConfig(), TrainConfig(SkillConfig(skill_space=SkillSpace("discrete", 5)))

    def horizon(config, dataset):
        return decide_lengths(dataset, config).horizon

    assert horizon(ball, long) == long.suggest_horizon() != 16
    assert horizon(gaits, long) == 16
    assert horizon(replace(gaits, behaviours=BehaviourConfig(window=24)), long) == 12
    assert horizon(replace(gaits, behaviours=BehaviourConfig(steps=0)), long) == long.suggest_horizon()
    assert horizon(gaits, short) == 6  # a window is no longer than half of the episodes
    assert horizon(replace(gaits, behaviours=BehaviourConfig(window=32)), short) == short.suggest_horizon() == 8
    assert horizon(replace(gaits, horizon=10), short) == 10


@pytest.mark.parametrize("kind", ["ball", "discrete"])
def test_the_library_and_the_command_line_train_the_same_model(kind, tmp_path, monkeypatch):
    """One place decides the horizon and what is held out, whoever asks."""
    from didi_gym.cli import main as cli

    monkeypatch.setattr(TrajectoryDataset, "from_minari", lambda *_, **__: point_dataset(30))
    config = tiny(horizon=None, skill_space=SkillSpace(kind, 4 if kind == "discrete" else 2))
    train(point_dataset(30), config, tmp_path / "library", progress=False)
    command = f"train --dataset a/b-v0 --output {tmp_path / 'command'} --device cpu"
    for part in ("skills", "behaviours", "prior", "dynamics"):
        for name, value in to_dict(getattr(config, part)).items():
            if isinstance(value, (int, float)):
                command += f" --{part}.{name.replace('_', '-')} {value}"
    cli.run(
        f"{command} --skills.skill-space.kind {kind} --skills.skill-space.size {config.skills.skill_space.size}".split()
    )
    assert _same(_weights(tmp_path / "library"), _weights(tmp_path / "command"))


def test_training_leaves_torchs_global_generators_as_they_were(tmp_path, monkeypatch):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the generators of GPUs are seeded"))
    train(point_dataset(), tiny(), tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("horizon", [1, 4, 6])
def test_windows_are_drawn_evenly_from_all_episodes_that_hold_one(horizon):
    pairs = [(np.arange(10 * i, 10 * i + n)[:, None], np.zeros((n, 1))) for i, n in enumerate((5, 2, 7, 1, 4))]
    whole = TrajectoryDataset.from_episodes(pairs, action_low=[-1], action_high=[1])
    for dataset in (whole, whole.split(0.4, horizon=horizon)[0]):
        batches = Batches(dataset, Normalizer.from_limits(np.array([-64.0]), np.array([64.0])), torch.device("cpu"))
        states = 64 * batches.draw(2000, horizon, torch.Generator().manual_seed(0))[0]
        every = dataset.window_starts(np.arange(dataset.num_windows(horizon)), horizon)
        drawn, times = np.unique(states[:, 0, 0].numpy(), return_counts=True)
        np.testing.assert_array_equal(drawn, dataset.observations[every, 0])
        assert times.min() > 0.5 * 2000 / len(every)
        assert (np.diff(states[..., 0].numpy(), axis=1) == 1).all()


def test_the_averaged_weights_are_those_of_torchs_own_averaged_model():
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    ours, torchs = TrainingState(net, 0.1, 0.9, 0, {}, None), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(5):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3))
        ours.finish_step()
        torchs.update_parameters(net)
        for name, tensor in torchs.module.state_dict().items():
            assert torch.equal(ours.average.state_dict()[name], tensor), name


def _discriminator(layout):
    torch.manual_seed(0)
    return Discriminator(layout, skill_dim=2, horizon=8)


def test_the_discriminator_sees_only_how_features_change():
    discriminator = _discriminator(Layout.flat(3))
    states = torch.randn(4, 8, 3)
    shifted = states + torch.tensor([5.0, -1.0, 2.0])
    torch.testing.assert_close(discriminator.change(states), discriminator.change(shifted))
    assert discriminator.times == [2, 4, 5, 7] or discriminator.times == [2, 3, 5, 7]
    torch.testing.assert_close(discriminator.change(states)[:, -1], states[:, 7] - states[:, 0])


def test_features_are_counted_in_standard_deviations_of_the_data_and_directions_stay_directions():
    discriminator = _discriminator(BODY)
    states = torch.from_numpy(body_states(4000)).reshape(500, 8, 8)
    states[..., 0] *= 10
    discriminator.fit_scale(states)
    scale = discriminator.feature_scale
    assert torch.equal(scale[:, 0], scale[:, 1]) and 5 < scale[0, 0] < 15
    still = _discriminator(Layout.flat(2))
    still.fit_scale(torch.zeros(10, 8, 2))
    assert torch.equal(still.feature_scale, torch.ones(4, 2))


class _Oracle(Discriminator):
    """Knows z: the first feature's change at the end is z_1, the second's z_2."""

    def forward(self, states, angle, generator):
        return self.change(states, angle)[:, -1]


def test_the_diversity_loss_is_zero_where_the_world_direction_tells_the_skill():
    """With a heading, trajectory and skill turn together: an oracle of world directions is right at every angle."""
    oracle = _Oracle(BODY, skill_dim=2, horizon=8)
    skills = torch.randn(64, 2)
    states = torch.from_numpy(body_states(64 * 8)).reshape(64, 8, 8)
    states[:, 0, :2], states[:, 7, :2] = 0, skills
    loss, metrics = diversity_loss(oracle, states, skills, SkillSpace("ball", 2), torch.Generator().manual_seed(0))
    assert loss.item() < 1e-10 and metrics["diversity/explained"].item() == pytest.approx(1)
    mirrored = states.clone()
    mirrored[:, 7, 1] *= -1  # the mirror image, right at no angle but by luck
    assert diversity_loss(oracle, mirrored, skills, SkillSpace("ball", 2), torch.Generator().manual_seed(0))[0] > 0.5


def test_the_diversity_loss_of_a_guess_is_the_log_of_the_number_of_skills():
    class Guess(Discriminator):
        def forward(self, states, angle, generator):
            return torch.zeros(len(states), 4)

    space = SkillSpace("discrete", 4)
    guess = Guess(Layout.flat(2), skill_dim=4, horizon=8)
    skills = space.sample(256, torch.Generator().manual_seed(0))
    loss, _ = diversity_loss(guess, torch.zeros(256, 8, 2), skills, space, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(np.log(4))


def test_dual_ascent_raises_the_weight_of_the_prior_while_the_residual_is_above_target_and_skills_can_be_told(tmp_path):
    from didi_gym.models.weights import load_info

    def weight(**settings):
        out = tmp_path / str(settings)
        train(point_dataset(), tiny(**settings), out, progress=False)
        return load_info(out / "checkpoints" / "skills.safetensors")["memory"]["guidance_weight"]

    assert weight(residual_target=0.01, diversity_floor=-10.0) > 3.0
    assert weight(residual_target=100.0, diversity_floor=-10.0) < 1.0
    assert weight(residual_target=0.01, diversity_floor=1.0) < 3.0  # never at the price of the skills


def test_all_settings_are_recorded_beside_the_weights(tmp_path):
    from didi_gym.core.schema import from_dict
    from didi_gym.models.weights import load_info

    config = tiny(skill_space=SkillSpace("sphere", 3))
    train(point_dataset(), config, tmp_path, progress=False)
    record = load_info(tmp_path / "training.safetensors")
    assert from_dict(TrainConfig, record["config"]) == config
    assert record["parts"] == ["prior", "dynamics", "discriminator"]
    assert to_dict(config)["skills"]["skill_space"] == {"kind": "sphere", "size": 3}
