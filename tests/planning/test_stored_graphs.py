"""Stored SkillGraphs come back whole, and hostile files are refused before they do harm."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from didi_gym.core.files import SafeFileError
from didi_gym.models.weights import read_tensors, write_tensors
from didi_gym.planning import SkillGraph
from tests.planning.test_skill_graph import make


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    agent = SkillGraph(make(), seed=3).learn(600, progress=False)
    return agent.save(tmp_path_factory.mktemp("stored") / "agent.safetensors")


def number(name: str, value: float, index: int = 0) -> Callable[[dict, dict], Any]:
    """Writes a number into a tensor."""
    return lambda tensors, info: tensors[name].view(-1).__setitem__(index, value)


def replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict, dict], Any]:
    return lambda tensors, info: tensors.__setitem__(name, change(tensors[name]))


def say(**words: Any) -> Callable[[dict, dict], Any]:
    return lambda tensors, info: info.update(words)


HOSTILE = {
    "no length": say(size=0.0),
    "negative length": say(size=-1.0),
    "a word as length": say(size="nan"),
    "huge length": say(size="inf"),
    "steps in words": say(low_level_steps="many"),
    "negative episodes": say(episodes=-1),
    "seed with a fraction": say(seed=0.5),
    "tries of nothing": say(tries=[[0, None]]),
    "tries of three": say(tries=[[0, 1, 2]]),
    "no tries": say(tries=None),
    "paths of other goals": say(waiting=[[[0.0, 0.0, 0.0]]]),
    "empty path": say(waiting=[[]]),
    "paths in words": say(waiting=[["a", "b"]]),
    "no random state": say(random={}),
    "another generator": say(random={"bit_generator": "MT19937", "state": {}}),
    "negative random state": say(
        random={"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}, "has_uint32": 0, "uinteger": 0}
    ),
    "infinite weights": number("model.weights", torch.inf),
    "a place that is no number": number("graph.centers", torch.nan),
    "a place far beyond": number("graph.centers", 1e300),
    "a cell far beyond": number("graph.cells", -(2**63)),
    "negative visits": number("graph.visits", -3),
    "negative falls": number("graph.falls", -3.0),
    "infinite falls": number("graph.falls", torch.inf),
    "negative walks": number("graph.walked", -1e9),
    "an edge from nowhere": number("graph.edges", -1),
    "an edge to nowhere": number("graph.edges", 10**6),
    "twin edges": replace("graph.edges", lambda edges: edges[:1].repeat(len(edges), 1)),
    "one cell for all": replace("graph.cells", torch.zeros_like),
    "edges with fractions": replace("graph.edges", torch.Tensor.double),
    "places in float32": replace("graph.centers", torch.Tensor.float),
    "places of 30 numbers": replace("graph.centers", lambda centers: torch.zeros(len(centers), 30, dtype=torch.double)),
    "a single number for places": replace("graph.centers", lambda centers: centers[0, 0].clone()),
    "places in bfloat16": replace("graph.centers", torch.Tensor.bfloat16),
    "fewer visits": replace("graph.visits", lambda visits: visits[1:]),
    "no walks": lambda tensors, info: tensors.pop("graph.walked"),
    "no decisions": lambda tensors, info: tensors.pop("model.seen.2"),
    "no history": lambda tensors, info: tensors.pop("history.fell"),
    "shorter history": replace("history.fell", lambda fell: fell[1:]),
    "history in float": replace("history.places", torch.Tensor.double),
    "history in a square": replace("history.places", lambda places: places[:, None]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_a_sentence(stored, tmp_path, change):
    file = read_tensors(stored)
    change(file.tensors, file.info)
    write_tensors(tmp_path / "hostile.safetensors", {k: v.contiguous() for k, v in file.tensors.items()}, file.info)
    with pytest.raises(SafeFileError, match=r"hostile\.safetensors"):
        SkillGraph.load(tmp_path / "hostile.safetensors", make())


def test_what_is_no_file_of_tensors_is_refused(stored, tmp_path):
    file = tmp_path / "agent.safetensors"
    with pytest.raises(SafeFileError, match="has no agent"):
        SkillGraph.load(file, make())
    os.mkfifo(file)
    with pytest.raises(SafeFileError, match="pipe"):
        SkillGraph.load(file, make())
    file.unlink()
    file.symlink_to(stored)
    with pytest.raises(SafeFileError, match="link"):
        SkillGraph.load(file, make())
    file.unlink()
    file.write_bytes(pickle.dumps({"graph": 1}))
    with pytest.raises(SafeFileError, match="pickle"):
        SkillGraph.load(file, make())
    write_tensors(file, {}, None)
    with pytest.raises(SafeFileError, match="no SkillGraph"):
        SkillGraph.load(file, make())


def test_a_long_history_and_an_agent_that_knows_nothing_yet_come_back(tmp_path):
    agent = SkillGraph(make(), seed=3).learn(50, progress=False)
    assert agent.graph is None
    agent.history = agent.history[:1] * 250_000
    again = SkillGraph.load(agent.save(tmp_path / "agent.safetensors"), make())
    assert again.history == agent.history and type(again.history[0]["success"]) is bool
    again.history, agent.history = [], []
    assert again.learn(600, progress=False).history == agent.learn(600, progress=False).history
    again.save(tmp_path / "agent.safetensors")
    assert read_tensors(tmp_path / "agent.safetensors").info["waiting"] == [], "the graph has learned from those"
