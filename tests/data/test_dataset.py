import tracemalloc
from dataclasses import replace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

import didi_gym.data.minari
from didi_gym.core.layout import Layout
from didi_gym.data import read_labels
from didi_gym.data.dataset import DatasetError, TrajectoryDataset
from didi_gym.data.episodes import Packer
from didi_gym.data.minari import RemoteDataError, read_episodes, upload_dataset
from didi_gym.data.writing import Episode, require_writable, write_dataset
from tests.examples import BODY, point_dataset


def _episodes(lengths, width=3, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n + 1, width)), rng.uniform(-1, 1, (n, 2))) for n in lengths]


def test_windows_lie_within_one_episode_and_every_one_is_counted_once():
    dataset = TrajectoryDataset.from_episodes(_episodes([5, 2, 9, 4]))
    horizon = 4
    starts = dataset.window_starts(np.arange(dataset.num_windows(horizon)), horizon)
    assert starts.tolist() == [0, 1, *range(7, 13), 16]  # episodes start at 0, 5, 7, 16; the second is too short
    states, actions = dataset.windows(starts, horizon)
    assert states.shape == (9, 4, 3) and actions.shape == (9, 4, 2)
    np.testing.assert_array_equal(states[8], dataset.observations[16:20])


def test_packing_keeps_every_number_and_drops_the_last_observation():
    episodes = _episodes([5, 2])
    dataset = TrajectoryDataset.from_episodes(episodes)
    np.testing.assert_allclose(dataset.observations[5:7], episodes[1][0][:2], rtol=1e-6)
    np.testing.assert_allclose(dataset.actions[:5], episodes[0][1], rtol=1e-6)
    assert dataset.observations.dtype == dataset.actions.dtype == np.float32
    np.testing.assert_allclose(dataset.action_low, dataset.actions.min(0))


def test_a_split_keeps_episodes_whole_shares_memory_and_repeats():
    dataset = TrajectoryDataset.from_episodes(_episodes([6] * 20))
    train, test = dataset.split()
    assert len(train.lengths) == 18 and len(test.lengths) == 2
    assert not set(train.starts) & set(test.starts) and np.shares_memory(train.observations, dataset.observations)
    np.testing.assert_array_equal(dataset.split()[1].starts, test.starts)
    alone = TrajectoryDataset.from_episodes(_episodes([6]))
    assert all(len(part.lengths) == 1 for part in alone.split())


def test_a_split_for_a_horizon_leaves_out_episodes_without_a_window_so_that_both_parts_have_some():
    dataset = TrajectoryDataset.from_episodes(_episodes([3] * 18 + [9, 9]))
    train, test = dataset.split(horizon=8)
    assert train.num_windows(8) == test.num_windows(8) == 2 and train.starts[0] != test.starts[0]
    for part in TrajectoryDataset.from_episodes(_episodes([3, 9, 3])).split(horizon=8):
        assert part.lengths.tolist() == [9]
    with pytest.raises(DatasetError, match="longest of 20 episodes has 9 steps, the horizon is 10"):
        dataset.split(horizon=10)


def test_data_in_which_nothing_differs_is_refused():
    states, actions = _episodes([6])[0]
    with pytest.raises(DatasetError, match="no action differs"):
        TrajectoryDataset.from_episodes([(states, np.ones((6, 2)))]).require_change()
    with pytest.raises(DatasetError, match="no feature changes in any episode"):
        TrajectoryDataset.from_episodes([(np.full((7, 3), i), actions) for i in range(2)]).require_change()
    TrajectoryDataset.from_episodes([(states * [1, 0, 0], actions * [0, 1])]).require_change()


def test_bounds_that_are_none_become_the_datas_extremes():
    episodes = _episodes([6])
    dataset = TrajectoryDataset.from_episodes(
        episodes, action_low=[-np.inf, -np.finfo(np.float32).max], action_high=[np.inf, 2.0]
    )
    np.testing.assert_allclose(dataset.action_low, episodes[0][1].min(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.action_high, [episodes[0][1][:, 0].max(), 2.0], rtol=1e-6)


def test_memory_is_the_datas_own_size_and_windows_cost_nothing():
    def stream():
        for i in range(200):
            yield i, np.full((1001, 20), i, np.float32), np.zeros((1000, 4), np.float32)

    tracemalloc.start()
    packer = Packer(200 * 1000)
    for episode in stream():
        packer.add(*episode)
    dataset = TrajectoryDataset(**packer.finish())
    dataset.num_windows(16)
    dataset.window_starts(np.arange(128), 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * 200 * 1000 * 24 * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o, a: (o.__setitem__((2, 1), np.nan) or o, a), r"episode 1: observations\[2, 1\] is nan"),
        (lambda o, a: (o, a.__setitem__((0, 1), np.inf) or a), r"episode 1: actions\[0, 1\] is inf"),
        (lambda o, a: (o[:, :2], a), "episode 1: observations have 2 numbers, those of earlier episodes 3"),
        (lambda o, a: (o[:3], a), "3 observations do not go with 6 actions"),
        (lambda o, a: (o[:, 0], a), r"observations must be rows of numbers, got \(7,\)"),
        (lambda o, a: (o.astype(object), a), "rows of numbers"),
    ],
)
def test_a_bad_episode_is_named_with_its_field(change, words):
    episodes = _episodes([6, 6])
    episodes[1] = change(*episodes[1])
    with pytest.raises(DatasetError, match=words):
        TrajectoryDataset.from_episodes(episodes)


def test_no_episode_as_long_as_the_horizon_is_said_with_the_longest():
    with pytest.raises(DatasetError, match="longest of 2 episodes has 6 steps, the horizon is 16"):
        TrajectoryDataset.from_episodes(_episodes([6, 5])).require_horizon(16)


def test_an_empty_data_set_and_a_wrong_layout_are_refused():
    with pytest.raises(DatasetError, match="no episodes"):
        TrajectoryDataset.from_episodes([])
    with pytest.raises(DatasetError, match=r"must have shape \(steps, 8\)"):
        TrajectoryDataset.from_episodes(_episodes([6]), BODY)


def test_a_spike_does_not_decide_the_horizon():
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(40):  # velocities that are known for a while, as those of a body
        actions = np.repeat(rng.uniform(-1, 1, (6, 2)), 20, axis=0)
        velocity = np.array([rng.normal(0, 1, 2)] * 121)
        for t in range(120):
            velocity[t + 1] = velocity[t] + 0.05 * actions[t]
        episodes.append((np.c_[np.cumsum(0.1 * velocity, axis=0), velocity], actions))
    clean = TrajectoryDataset.from_episodes(episodes, Layout(4, (2, 3), (0, 1), relative=(0, 1)))
    spiked = replace(clean, observations=clean.observations.copy())
    spiked.observations[500, 2] = 1e6
    assert spiked.suggest_horizon() == clean.suggest_horizon() > 8


def test_a_range_of_actions_of_another_shape_is_refused():
    with pytest.raises(DatasetError, match=r"action_range must have shape \(2, 2\), got \(2,\)"):
        replace(point_dataset(), action_range=np.array([0.0, 1.0]))


def _wide(bound, seed=0, rows=4000):
    """A data set of actions of standard deviation 0.4 in bounds of +-`bound`."""
    rng = np.random.default_rng(seed)
    pair = rng.normal(size=(rows + 1, 2)), rng.normal(0, 0.4, (rows, 2)).clip(-1, 1)
    return [pair], {"action_low": [-bound] * 2, "action_high": [bound] * 2}


@pytest.mark.parametrize("bound", [3.0, 100.0, 1e6])
def test_actions_that_use_little_of_their_bounds_are_scaled_by_their_own_range(bound):
    episodes, bounds = _wide(bound)
    dataset = TrajectoryDataset.from_episodes(episodes, **bounds)
    assert dataset.action_low.tolist() == [-bound] * 2 and dataset.action_range.tolist() == [[-1, -1], [1, 1]]
    assert dataset.split()[0].action_range is dataset.action_range


def test_actions_that_fill_half_of_their_bounds_or_have_none_are_scaled_by_the_bounds():
    for bound in (1.0, 2.0, np.inf):
        episodes, bounds = _wide(bound)
        assert TrajectoryDataset.from_episodes(episodes, **bounds).action_range is None
    rare = np.zeros((1000, 1))
    rare[::200] = 1  # a gripper that closes now and then
    episodes = [(np.zeros((1000, 1)), rare)]
    assert TrajectoryDataset.from_episodes(episodes, action_low=[-1], action_high=[1]).action_range is None
    one_hot = [(np.zeros((4, 1)), np.zeros(4, int))]
    assert TrajectoryDataset.from_episodes(one_hot, action_space=spaces.Discrete(3)).action_range is None


@pytest.mark.parametrize("bound", [100.0, np.inf])
def test_a_few_far_actions_do_not_make_the_range_and_are_named(bound):
    episodes, bounds = _wide(bound)
    episodes[0][1][[7, 9], 1] = 90, -90
    with pytest.warns(UserWarning, match=r"actions\[:, 1\]: 2 of 4000 rows.*e.g. 90 in row 7"):
        dataset = TrajectoryDataset.from_episodes(episodes, **bounds)
    assert 0.9 < dataset.action_range[1, 1] < 3 and dataset.actions[7, 1] == 90


def test_actions_outside_the_space_are_clipped_with_a_warning_and_refused_where_they_are_many():
    space = spaces.Box(-1, 1, (2,))
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(1000, 3)), rng.uniform(-1, 1, (1000, 2))
    actions[:60, 1] = 3
    with pytest.warns(UserWarning, match=r"3.00% of the actions' numbers lie outside.*actions\[:, 1\]"):
        dataset = TrajectoryDataset.from_episodes([(states, actions)], action_space=space)
    assert dataset.actions.max() == 1 and dataset.action_range is None
    with pytest.raises(DatasetError, match=r"66.\d+% of the actions' numbers lie outside.*at most 10%"):
        TrajectoryDataset.from_episodes([(states, 3 * rng.uniform(-1, 1, (1000, 2)))], action_space=space)
    TrajectoryDataset.from_episodes([(states, actions.clip(-1, 1) * (1 + 1e-6))], action_space=space)  # rounding


def _far(offset, column):
    """Five episodes of 100 steps of 0.05 each in two columns, one of them `offset` away from zero, float64."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(5):
        states = np.cumsum(rng.choice([-0.05, 0.05], (101, 2)), axis=0)
        states[:, column] += offset
        episodes.append((states, rng.uniform(-1, 1, (100, 2))))
    return episodes


@pytest.mark.parametrize("offset", [5e6, 1.7e9])
def test_what_float32_cannot_hold_is_refused_unless_only_its_changes_count(offset):
    episodes = _far(offset, 1)
    with pytest.raises(DatasetError, match=r"observations\[:, 1\] reaches .* changes by 0.05 a step"):
        TrajectoryDataset.from_episodes(episodes)
    interrupted = _far(offset, 1)
    interrupted[0][0][50:, 1] += 1e4  # a pause of the recording must not hide it
    with pytest.raises(DatasetError, match=r"observations\[:, 1\] reaches"):
        TrajectoryDataset.from_episodes(interrupted)
    relative = Layout(2, (0,), (0, 1), relative=(1,))
    dataset = TrajectoryDataset.from_episodes(episodes, relative)
    for (states, _), start in zip(episodes, dataset.starts, strict=True):
        change = dataset.observations[start : start + 100, 1] - dataset.observations[start, 1]
        np.testing.assert_allclose(change, states[:100, 1] - states[0, 1], atol=1e-6)


def test_what_float32_can_hold_stays_as_it_was_to_the_bit():
    relative = Layout(2, (0,), (0, 1), relative=(1,))
    for offset in (0.0, 50.0, 3000.0):
        episodes = _far(offset, 1)
        dataset = TrajectoryDataset.from_episodes(episodes, relative)
        np.testing.assert_array_equal(dataset.observations[:100], episodes[0][0][:100].astype(np.float32))
    whole = [(np.arange(10_000_000, 10_000_101)[:, None], np.zeros((100, 1)))]
    assert TrajectoryDataset.from_episodes(whole).observations[99, 0] == 10_000_099
    still = _far(1.7e9, 1)
    for states, _ in still:
        states[:, 1] = 1.7e9 + 0.3  # constant: nothing is lost
    TrajectoryDataset.from_episodes(still)


@pytest.mark.parametrize("value", [1e39, -1e30, 1.7e18])
def test_numbers_that_no_sensor_gives_are_named(value):
    episodes = _episodes([6, 6])
    episodes[1][0][2, 1] = value
    with pytest.raises(DatasetError, match=r"episode 1: observations\[2, 1\] is .*expected at most 1e\+15"):
        TrajectoryDataset.from_episodes(episodes)


def _store(dataset_id, observation_space, action_space, steps=9, episodes=3, **buffer):
    rng = np.random.default_rng(0)

    def observation():
        if isinstance(observation_space, spaces.Dict):
            return {k: rng.normal(size=(steps + 1, *s.shape)).astype(s.dtype) for k, s in observation_space.items()}
        return rng.normal(size=(steps + 1, *observation_space.shape)).astype(observation_space.dtype)

    discrete = isinstance(action_space, spaces.Discrete)
    actions = (
        rng.integers(2, size=steps) if discrete else rng.uniform(-1, 1, (steps, *action_space.shape)).astype(np.float32)
    )
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=observation(),
            actions=actions,
            rewards=np.zeros(steps),
            terminations=np.zeros(steps, bool),
            truncations=buffer.get("truncations", np.arange(steps) == steps - 1),
            infos={"energy": np.zeros(steps + 1)},
        )
        for i in range(episodes)
    ]
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        observation_space=observation_space,
        action_space=action_space,
        algorithm_name="none",
        author="didi_gym",
        author_email="none@example.org",
        code_permalink="none",
        description="x",
    )


BOX = spaces.Box(-np.inf, np.inf, (4,), np.float64)
ACTION = spaces.Box(-2.0, 1.0, (2,), np.float32)


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.usefixtures("local")
class TestMinari:
    def test_a_box_data_set_loads_with_its_bounds_and_source(self):
        _store("test/box-v0", BOX, ACTION)
        dataset = TrajectoryDataset.from_minari("test/box-v0")
        assert dataset.observations.shape == (27, 4) and dataset.starts.tolist() == [0, 9, 18]
        assert dataset.action_low.tolist() == [-2, -2] and dataset.action_high.tolist() == [1, 1]
        assert dataset.layout.sources[0].size == 4 and dataset.dataset_id == "test/box-v0"

    def test_an_episode_is_split_where_ends_are_flagged_inside_it(self):
        _store("test/ends-v0", BOX, ACTION, steps=9, episodes=2, truncations=np.arange(9) % 4 == 3)
        dataset = TrajectoryDataset.from_minari("test/ends-v0")
        assert dataset.starts.tolist() == [0, 4, 8, 9, 13, 17] and dataset.lengths.tolist() == [4, 4, 1] * 2

    def test_a_path_an_object_and_its_selected_episodes_load_as_their_id_does(self, tmp_path):
        stored = _store("test/box-v0", BOX, ACTION)
        expected = TrajectoryDataset.from_minari("test/box-v0")
        for given in (stored, tmp_path / "test" / "box-v0", tmp_path / "test" / "box-v0" / "data"):
            dataset = TrajectoryDataset.from_minari(given)
            assert dataset.fingerprint() == expected.fingerprint() and dataset.dataset_id == "test/box-v0"
        some = TrajectoryDataset.from_minari(stored.filter_episodes(lambda episode: episode.id != 1))
        np.testing.assert_array_equal(some.observations, np.delete(expected.observations, slice(9, 18), axis=0))
        with pytest.raises(DatasetError, match="nowhere"):
            TrajectoryDataset.from_minari(tmp_path / "nowhere")
        with pytest.raises(TypeError, match="got 7"):
            TrajectoryDataset.from_minari(7)

    def test_the_quick_reader_reads_what_minari_reads(self):
        space = spaces.Dict({"a": spaces.Box(-9, 9, (1,)), "b": BOX})
        for name, observed, acted in (
            ("test/box-v0", BOX, ACTION),
            ("test/dict-v0", space, ACTION),
            ("test/discrete-v0", BOX, spaces.Discrete(3)),
        ):
            stored = _store(name, observed, acted)
            keys = ("b", "a") if observed is space else ()
            for quick, episode in zip(read_episodes(stored, keys), stored.iterate_episodes(), strict=True):
                assert quick[0] == episode.id and quick[2].dtype == episode.actions.dtype
                np.testing.assert_array_equal(quick[2], episode.actions)
                np.testing.assert_array_equal(quick[3], episode.truncations)
                for key in keys:
                    np.testing.assert_array_equal(quick[1][key], episode.observations[key])

    def test_loading_that_takes_long_says_how_far_it_is(self, monkeypatch, capsys):
        stored = _store("test/box-v0", BOX, ACTION)
        TrajectoryDataset.from_minari(stored)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(didi_gym.data.minari, "_PATIENCE", 0.0)
        TrajectoryDataset.from_minari(stored, progress=False)
        assert capsys.readouterr().err == ""
        TrajectoryDataset.from_minari(stored)
        assert "loading episodes: 3/3" in capsys.readouterr().err

    def test_metadata_that_announces_too_few_steps_is_named(self):
        stored = _store("test/box-v0", BOX, ACTION)
        stored.storage.update_metadata({"total_steps": 20})
        with pytest.raises(DatasetError, match=r"episode 2: .* 20 steps \(total_steps"):
            TrajectoryDataset.from_minari("test/box-v0")

    def test_an_episode_that_cannot_be_read_is_named(self):
        stored = _store("test/box-v0", BOX, ACTION)
        with h5py.File(stored.storage.data_path / "main_data.hdf5", "a") as file:
            del file["episode_1/actions"]
        with pytest.raises(DatasetError, match="episode 1: actions cannot be read"):
            TrajectoryDataset.from_minari("test/box-v0")

    def test_ids_that_would_leave_minaris_folder_are_refused(self, tmp_path, monkeypatch):
        _store("test/box-v0", BOX, ACTION)
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "inner" / "folder"))
        for wrong in ("../../test/box-v0", str(tmp_path / "test" / "box-v0"), "hf://acme/../../test/box-v0"):
            with pytest.raises(DatasetError, match="expected a data set id such as"):
                TrajectoryDataset.from_minari(wrong)
            with pytest.raises(ValueError, match="expected a data set id such as"):
                read_labels(wrong)
            with pytest.raises(RemoteDataError, match="expected"):
                upload_dataset(wrong, "hf://acme")
            with pytest.raises(ValueError, match="expected a data set id such as"):
                require_writable(wrong, overwrite=True)

    @pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
    def test_the_environment_is_kept_with_its_wrappers(self):
        env = gym.wrappers.RescaleObservation(gym.make("Pendulum-v1", g=9.0, render_mode="rgb_array"), -1.0, 1.0)
        rows, spec = [env.reset(seed=0)[0]], env.spec
        actions = np.linspace(-2, 2, 200, dtype=np.float32)[:, None]
        rows += [env.step(action)[0] for action in actions]
        episode = Episode(np.array(rows), actions, np.zeros(200), False, seed=0)
        write_dataset(
            "test/wrapped-v0", [episode], env_spec=spec, layout=Layout.flat(3), algorithm_name="x", description="x"
        )
        dataset = TrajectoryDataset.from_minari("test/wrapped-v0")
        again = gym.make(EnvSpec.from_json(dataset.env_spec))
        assert "RescaleObservation" in str(again) and again.render_mode is None and again.unwrapped.g == 9.0
        assert dataset.env_kwargs == {"g": 9.0}
        np.testing.assert_allclose(again.reset(seed=0)[0], dataset.observations[0], atol=1e-6)

    def test_chosen_indices_become_the_state_and_are_recorded(self):
        stored = _store("test/box-v0", BOX, ACTION)
        dataset = TrajectoryDataset.from_minari("test/box-v0", indices=(3, 1))
        first = next(iter(stored.iterate_episodes())).observations
        np.testing.assert_allclose(dataset.observations[:9], first[:9][:, [3, 1]], rtol=1e-6)
        assert dataset.layout.state_source.indices == (3, 1)

    def test_dict_observations_are_joined_in_the_order_asked_for(self):
        space = spaces.Dict({"a": spaces.Box(-9, 9, (1,)), "observation": BOX, "goal": spaces.Box(-9, 9, (2,))})
        stored = _store("test/dict-v0", space, ACTION)
        first = next(iter(stored.iterate_episodes())).observations
        assert TrajectoryDataset.from_minari("test/dict-v0").observations.shape[1] == 4  # `observation` by default
        dataset = TrajectoryDataset.from_minari("test/dict-v0", keys=("goal", "a"))
        np.testing.assert_allclose(dataset.observations[:9], np.hstack([first["goal"], first["a"]])[:9], rtol=1e-6)
        assert dataset.layout.sources[0].keys == ("goal", "a")

    def test_what_cannot_be_used_is_refused_with_the_reason(self):
        _store("test/whole-v0", BOX, spaces.Box(0, 5, (2,), np.int64))
        with pytest.raises(DatasetError, match="actions must be real numbers"):
            TrajectoryDataset.from_minari("test/whole-v0")
        _store("test/few-v0", BOX, ACTION)
        with pytest.raises(ValueError, match=r"indices \(9,\) must lie in 0..3"):
            TrajectoryDataset.from_minari("test/few-v0", indices=(9,))
        _store("test/image-v0", spaces.Box(0, 255, (4, 4), np.uint8), ACTION)
        with pytest.raises(DatasetError, match="observations must be a flat Box"):
            TrajectoryDataset.from_minari("test/image-v0")
        _store("test/dict-v0", spaces.Dict({"a": BOX, "image": spaces.Box(0, 255, (2, 2), np.uint8)}), ACTION)
        with pytest.raises(DatasetError, match="'image' must be a flat Box"):
            TrajectoryDataset.from_minari("test/dict-v0", keys=("image",))
        with pytest.raises(DatasetError, match="observation key 'b' must be a flat Box, got None"):
            TrajectoryDataset.from_minari("test/dict-v0", keys=("b",))
        _store("test/box-v0", BOX, ACTION)
        with pytest.raises(DatasetError, match="the observation is no Dict"):
            TrajectoryDataset.from_minari("test/box-v0", keys=("a",))
        with pytest.raises(DatasetError, match="make it with `didi-gym data`, or fetch it"):
            TrajectoryDataset.from_minari("test/absent-v0")
