"""The method in one file: its parts, and that it learns skills which the simulator confirms."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.scripts import ROOT, load_script

PATH = "examples/didi_in_one_file.py"
pytest.importorskip("gymnasium_robotics", reason="the maze needs didi-gym[envs]")
pytest.importorskip("matplotlib", reason="the picture needs didi-gym[viz]")


@pytest.fixture(scope="module")
def didi():
    return load_script(PATH)


@pytest.fixture
def short(didi, tmp_path):
    """Settings that learn skills in seconds, as measured over five seeds."""
    steps = {"prior_steps": 600, "dynamics_steps": 600, "skill_steps": 400}
    return didi.Args(**steps, episodes=50, width=128, picture=str(tmp_path / "skills.png"))


@pytest.fixture
def tiny(short):
    return replace(short, prior_steps=2, dynamics_steps=2, skill_steps=2, episodes=10, width=16)


def test_it_is_read_in_one_sitting():
    assert len((ROOT / PATH).read_text().splitlines()) <= 250


def test_noise_is_undone_by_the_formula_that_adds_it(didi, short):
    prior = didi.Prior(short)
    tau, epsilon, t = torch.randn(3, 24, 6), torch.randn(3, 24, 6), torch.tensor([0, 40, 90])
    abar = prior.abar[t][:, None, None]
    assert (prior.abar.diff() < 0).all() and 0.99 < prior.abar[0] < 1 and 0 <= prior.abar[-1] < 1e-3
    torch.testing.assert_close((prior.noise(tau, t, epsilon) - (1 - abar).sqrt() * epsilon) / abar.sqrt(), tau)


def test_the_prior_is_given_the_first_state_and_does_not_see_its_noise(didi, short):
    prior = didi.Prior(short)
    tau_t, s_0, t = torch.randn(2, 24, 6), torch.randn(2, 4), torch.tensor([10, 90])
    estimate = prior.denoise(tau_t, t, s_0)
    assert torch.equal(estimate[:, 0, :4], s_0)
    tau_t[:, 0, :4] += 1
    assert torch.equal(prior.denoise(tau_t, t, s_0), estimate)


def test_the_same_seed_gives_the_same_figures(didi, tiny):
    figures = didi.main(tiny)
    assert didi.main(tiny) == figures != didi.main(replace(tiny, seed=1))


def test_recorded_data_take_the_place_of_collected_data(didi, tiny, monkeypatch):
    rng = np.random.default_rng(0)
    episodes = [
        SimpleNamespace(observations={"observation": rng.uniform(-1, 1, (41, 4))}, actions=rng.uniform(-1, 1, (40, 2)))
        for _ in range(11)
    ]
    monkeypatch.setattr(didi.minari, "load_dataset", lambda name: episodes)
    monkeypatch.setattr(didi, "collect", lambda *_: pytest.fail("no data should be collected"))
    data, held_out, _ = didi.load(None, replace(tiny, dataset="recorded"))
    assert data.shape == (9 * 17, 24, 6) and held_out.shape == (2 * 17, 24, 6) and data.abs().max() <= 1
    assert didi.main(replace(tiny, dataset="recorded"))["real spread"] > 0


def test_skills_are_learned_and_the_simulator_confirms_them(didi, short):
    # Seeds 0 to 4 gave a probe of 0.43 to 0.67, a ratio of 0.97 to 0.99 and a spread of 0.22 to 0.23;
    # untrained policies a probe of 0.00 and a spread of up to 0.02.
    untrained = didi.main(replace(short, prior_steps=0, skill_steps=0))
    learned = didi.main(short)
    assert learned["probe R^2"] > 0.3 > 0.1 > untrained["probe R^2"]
    assert learned["real spread"] > 4 * untrained["real spread"]
    assert 0.85 < learned["ratio"] < 1.15
    with open(short.picture, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
