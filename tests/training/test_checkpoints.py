"""Folders of a run that are damaged, exchanged or in use: one sentence that names the file, never another result."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from didi_gym.core.files import SafeFileError, locked, remove_leftovers
from didi_gym.core.layout import Layout
from didi_gym.models import weights
from didi_gym.models.config import PolicyConfig
from didi_gym.models.weights import load_tensors, read_tensors, write_tensors
from didi_gym.training import Run, TrainConfig, train, train_prior, train_skills, write_run
from didi_gym.training.config import PriorConfig
from tests.examples import point_dataset, tiny
from tests.training.test_training import _run_until, _same, _weights

SETTINGS = PriorConfig(steps=20, batch_size=8, width=8, depth=1, diffusion_steps=10)


def _prior(folder, steps=20):
    run = Run(point_dataset(), horizon=8, checkpoints=folder, progress=False)
    return train_prior(run, replace(SETTINGS, steps=steps))


@pytest.fixture
def checkpoint(tmp_path):
    """Of a finished stage, which the same call would load again."""
    _prior(tmp_path)
    return tmp_path / "prior.safetensors"


def _refused(folder):
    with pytest.raises(SafeFileError) as caught:
        _prior(folder)
    said = str(caught.value)
    assert str(folder / "prior.safetensors") in said and said.isprintable() and len(said) < 1000
    return said


@pytest.mark.parametrize("share", [0.0, 0.002, 0.02, 0.1, 0.3, 0.5, 0.8, 0.9999])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(checkpoint, share):
    content = bytearray(checkpoint.read_bytes())
    content[int(share * len(content))] ^= 4
    checkpoint.write_bytes(content)
    assert f"Delete {checkpoint}, and its stage begins anew" in _refused(checkpoint.parent)


def _without(prefix):
    return lambda tensors, info: [tensors.pop(name) for name in [*tensors] if name.startswith(prefix)]


def _with(name, value):
    return lambda tensors, info: tensors.update({name: value})


def _saying(**what):
    return lambda tensors, info: info.update(what)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, _: tensors.update({k: v.half() for k, v in tensors.items() if "weight" in k}), "float16"),
        (_without("module.denoiser.outlet.bias"), "module: 1 tensor.*denoiser.outlet.bias"),
        (_without("average."), "average: .* missing"),
        (_without("optimizer."), "optimizer.0 is missing"),
        (_without("optimizer.0."), "optimizer.0 is missing"),
        (_without("optimizer.0.exp_avg_sq"), "optimizer.0: .* missing, e.g. exp_avg_sq"),
        (_with("optimizer.1.exp_avg", torch.zeros(3)), r"optimizer.1: exp_avg must be .*, got \(3,\)"),
        (_with("optimizer.1.step", torch.zeros(1)), r"optimizer.1: step must be \(\)"),
        (_with("optimizer.99.step", torch.zeros(())), "optimizer.99 is of no weight"),
        (_with("optimizer.x.step", torch.zeros(())), "invalid literal"),
        (_with("module.denoiser.outlet.bias", torch.full((32,), torch.nan)), "holds NaN"),
        (_without("generator"), "generator must be"),
        (_with("generator", torch.zeros(5, dtype=torch.uint8)), "generator must be"),
        (_saying(step=-1), "step -1 is not in 1..20"),
        (_saying(step=21), "step 21 is not in 1..20"),
        (_saying(step=True), "step: "),
        (_saying(step="5"), "step: "),
        (lambda _, info: info.pop("step"), "step: "),
        (lambda _, info: info.pop("memory"), "memory: "),
        (_saying(memory={"weight": "x"}), "memory.weight: "),
        (_saying(history=7), "history: "),
        (_saying(odd=1), "odd: "),
        (lambda _, info: info.pop("identity"), "identity: "),
    ],
)
def test_a_checkpoint_that_lacks_something_or_has_it_in_another_form_is_refused(checkpoint, change, words):
    """With a right checksum, as a program would write it; its kernels would read past the end of some of these."""
    file = read_tensors(checkpoint)
    tensors, info = dict(file.tensors), dict(file.info)
    change(tensors, info)
    write_tensors(checkpoint, tensors, info)
    with pytest.raises(SafeFileError, match=words):
        _prior(checkpoint.parent)
    assert "Delete" in _refused(checkpoint.parent)
    checkpoint.unlink()
    _prior(checkpoint.parent)


def test_a_checkpoint_without_a_checksum_or_of_another_kind_is_refused(checkpoint):
    write_tensors(checkpoint, load_tensors(checkpoint))
    assert "has no checksum" in _refused(checkpoint.parent)
    checkpoint.unlink()
    os.mkfifo(checkpoint)
    assert "is a pipe, a socket or a device" in _refused(checkpoint.parent)


def test_a_checkpoint_is_read_from_one_open_file(checkpoint, monkeypatch):
    """Read in parts, it could be of two moments where another process writes it meanwhile."""
    opened = []
    read = weights._read
    monkeypatch.setattr(weights, "_read", lambda path, *args: opened.append(path) or read(path, *args))
    _prior(checkpoint.parent)
    assert opened == [checkpoint]


def test_what_a_stage_was_given_is_part_of_what_it_is(tmp_path):
    """A prior of another seed under the name and identity of ours, as an edited checkpoint would bring it in."""
    config = tiny(consistency="joint")

    def stages(seed):
        run = Run(point_dataset(), horizon=8, checkpoints=tmp_path, progress=False)
        prior = train_prior(Run(point_dataset(), horizon=8, seed=seed, progress=False), config.prior)
        return train_skills(run, prior, None, config.skills)

    stages(0)
    stages(0)
    with pytest.raises(SafeFileError, match=r"skills.safetensors belongs to a run .*differs in prior's weights"):
        stages(1)


def test_a_run_with_another_reuse_is_not_continued(tmp_path):
    for seed in (0, 1):
        train(point_dataset(), replace(tiny(), seed=seed), tmp_path / str(seed), progress=False)
    config = replace(tiny(), seed=2)
    for _ in range(2):
        train(point_dataset(), config, tmp_path / "new", reuse=tmp_path / "0", progress=False)
    with pytest.raises(SafeFileError, match=r"differs in dynamics' weights; prior's weights\)"):
        train(point_dataset(), config, tmp_path / "new", reuse=tmp_path / "1", progress=False)


def test_a_run_with_other_threads_bounds_or_layout_is_not_continued(tmp_path, monkeypatch):
    _prior(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert "differs in threads: 1 there, 3 here)" in _refused(tmp_path)
    monkeypatch.undo()
    for changes in ({"action_low": point_dataset().action_low * 2}, {"layout": replace(Layout.flat(2), features=(0,))}):
        run = Run(replace(point_dataset(), **changes), horizon=8, checkpoints=tmp_path, progress=False)
        with pytest.raises(SafeFileError, match="bounds" if "action_low" in changes else "layout"):
            train_prior(run, SETTINGS)


@pytest.mark.parametrize("form", [{}, {"imagine": True, "behaviours": tiny().behaviours}], ids=["ball", "gaits"])
def test_another_default_type_of_torch_trains_the_same_weights(tmp_path, form):
    from didi_gym.core.skill_space import SkillSpace

    config = tiny(**({"skill_space": SkillSpace("discrete", 4), **form} if form else {}))
    train(point_dataset(), config, tmp_path / "usual", progress=False)
    torch.set_default_dtype(torch.float64)
    try:
        train(point_dataset(), config, tmp_path / "double", progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert _same(_weights(tmp_path / "usual"), _weights(tmp_path / "double"))


_HOLD = """
import sys
from pathlib import Path
from didi_gym.core.files import locked
with locked(Path(sys.argv[1]), "is training into"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_two_runs_do_not_write_into_one_folder_and_a_killed_one_gives_it_back(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        words = rf"another process \(number {other.pid}\) is training into {tmp_path}: wait .* choose another folder"
        with pytest.raises(SafeFileError, match=words):
            train(point_dataset(), tiny(), tmp_path, progress=False)
        with pytest.raises(SafeFileError, match=words):
            write_run(tmp_path, TrainConfig(), "a/b-v0")
        assert not list(tmp_path.glob("checkpoints/*")) and not (tmp_path / "run.json").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
    with locked(tmp_path, "is training into"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    write_run(tmp_path, TrainConfig(), "a/b-v0")


def test_what_a_killed_process_left_half_written_is_deleted_and_nothing_else(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    left = [checkpoints / ".prior.safetensors.abcd_123", tmp_path / ".config.json.abcd1234"]
    others = [checkpoints / "notes.txt", tmp_path / ".results.json.abcd1234", tmp_path / ".config.json.old"]
    for file in (*left, *others):
        file.write_text("")
    train(point_dataset(), tiny(consistency="joint"), tmp_path, progress=False)
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)
    remove_leftovers(tmp_path / "absent")


def test_a_run_that_was_killed_leaves_no_temporary_file_after_it_is_continued(tmp_path):
    train(point_dataset(), tiny(), tmp_path / "whole", progress=False)
    _run_until(tmp_path / "killed", 20, signal.SIGKILL)
    (tmp_path / "killed" / "checkpoints" / ".prior.safetensors.0123abcd").write_bytes(b"half")
    assert _run_until(tmp_path / "killed", 1000, signal.SIGKILL) == 0
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b'{"dataset": "a/b', "Unterminated string"),
        (b"\xff", "can't decode"),
        (b"[" * 99, "levels deep"),
        (None, "is a pipe, a socket or a device"),
        (1 << 40, "has 1,099,511,627,776 bytes, expected at most"),
    ],
)
def test_a_run_json_that_cannot_be_read_is_named_and_nothing_hangs(tmp_path, content, words):
    path = tmp_path / "run.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(b"" if isinstance(content, int) else content)
        os.truncate(path, content if isinstance(content, int) else len(content))
    with pytest.raises(SafeFileError, match=rf"run.json does not say with which settings .*{words}.*; delete it"):
        write_run(tmp_path, TrainConfig(), "a/b-v0")
    path.unlink()
    write_run(tmp_path, TrainConfig(), "a/b-v0")
    assert json.loads(path.read_text())["dataset"] == "a/b-v0"


def test_a_changed_bit_in_training_safetensors_is_found(tmp_path):
    from didi_gym.hub import SkillPolicyHubError
    from didi_gym.models.policy import SkillPolicy

    policy = train(point_dataset(), tiny(), tmp_path, progress=False)
    assert isinstance(policy.config, PolicyConfig)
    path = tmp_path / "training.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SkillPolicyHubError, match=r"training.safetensors is damaged .*checksum"):
        SkillPolicy.from_pretrained(tmp_path, device="cpu")
