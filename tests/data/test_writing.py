import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from didi_gym.core.layout import Layout
from didi_gym.core.schema import from_dict
from didi_gym.data.generators.ant import ant_layout
from didi_gym.data.generators.pointmaze import pointmaze_layout
from didi_gym.data.writing import KEYS_KEY, LAYOUT_KEY, Episode, require_writable, write_dataset

minari = pytest.importorskip("minari")
ID = "didi/test-v0"


def episode(steps: int = 3, terminated: bool = False) -> Episode:
    """An episode of Pendulum's shapes that counts upwards."""
    observations = np.arange(3.0 * (steps + 1), dtype=np.float32).reshape(steps + 1, 3)
    actions, rewards = np.full((steps, 1), 0.5, dtype=np.float32), np.arange(float(steps))
    return Episode(observations, actions, rewards, terminated, 7, {"noise": 0.25}, {"target": np.ones((steps + 1, 2))})


def write(episodes: Sequence[Episode], *, layout: Layout | None = None, overwrite: bool = False) -> Any:
    return write_dataset(
        ID,
        episodes,
        env_spec=gym.spec("Pendulum-v1"),
        layout=layout or Layout.flat(3),
        keys=("observation",),
        algorithm_name="counting",
        description="Numbers in order.",
        overwrite=overwrite,
    )


@pytest.mark.filterwarnings("error")
def test_a_written_data_set_loads_with_its_steps_labels_and_environment() -> None:
    write([episode(3), episode(2, terminated=True)])
    dataset = minari.load_dataset(ID)
    assert (dataset.total_episodes, dataset.total_steps) == (2, 5)
    first, second = dataset.iterate_episodes()
    np.testing.assert_array_equal(first.observations, episode(3).observations)
    assert first.truncations.tolist() == [False, False, True] and not first.terminations.any()
    assert second.terminations.tolist() == [False, True] and not second.truncations.any()
    np.testing.assert_array_equal(first.infos["target"], np.ones((4, 2)))
    labels = list(dataset.storage.get_episode_metadata(range(2)))
    assert [label["noise"] for label in labels] == [0.25, 0.25]
    assert dataset.recover_environment().spec.id == "Pendulum-v1"
    assert list(minari.list_local_datasets()) == [ID]


@pytest.mark.parametrize("layout", [ant_layout(), pointmaze_layout(), Layout.flat(3)])
def test_the_layout_and_the_keys_survive_loading(layout: Layout) -> None:
    write([episode()], layout=layout)
    metadata = minari.load_dataset(ID).storage.metadata
    assert from_dict(Layout, json.loads(metadata[LAYOUT_KEY])) == layout
    assert json.loads(metadata[KEYS_KEY]) == ["observation"]


def test_an_existing_data_set_is_replaced_only_when_asked() -> None:
    write([episode(3)])
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write([episode(5)])
    with pytest.raises(FileExistsError, match="didi/test-v0"):
        require_writable(ID, overwrite=False)
    assert minari.load_dataset(ID).total_steps == 3
    assert write([episode(5)], overwrite=True).total_steps == 5
    assert minari.load_dataset(ID).total_steps == 5


def test_a_crash_while_writing_leaves_the_old_data_set_and_no_rest(
    datasets_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write([episode(3)])

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episode_metadata", crash)
    with pytest.raises(KeyboardInterrupt):
        write([episode(5)], overwrite=True)
    assert os.environ["MINARI_DATASETS_PATH"] == str(datasets_folder)
    assert [entry.name for entry in datasets_folder.iterdir()] == ["didi"]
    assert minari.load_dataset(ID).total_steps == 3


def test_the_head_of_an_episode_is_cut_not_ended() -> None:
    head = episode(5, terminated=True).head(2)
    assert len(head) == 2 and head.observations.shape == (3, 3) and head.infos["target"].shape == (3, 2)
    assert not head.terminated
    assert episode(5, terminated=True).head(5).terminated


def test_an_episode_with_a_missing_last_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="4 observations"):
        Episode(np.zeros((3, 3)), np.zeros((3, 1)), np.zeros(3), False, 0)
