"""What columns hold is told from their numbers, and horizons are judged on places rather than on velocities."""

import numpy as np

from didi_gym.core.layout import Layout
from didi_gym.data.columns import describe_columns
from didi_gym.data.dataset import TrajectoryDataset

STEPS, EPISODES = 240, 12


def body(seed: int) -> np.ndarray:
    """A body that goes its way and turns: x, its velocity, its angle within +-pi, cosine and sine of that, the angle's
    velocity, a contact, a constant, a quaternion, and a joint that only swings."""
    rng = np.random.default_rng(seed)
    speed, turning = rng.normal(1, 0.3, (2, STEPS)) * rng.choice([-1, 1], (2, 1))
    x, angle = np.cumsum(speed) * 0.05, rng.uniform(-3, 3) + np.cumsum(turning) * 0.05
    half = angle / 2
    none = np.zeros(STEPS)
    columns = [x, np.roll(speed, -1), (angle + np.pi) % (2 * np.pi) - np.pi, np.cos(angle), np.sin(angle)]
    columns += [np.roll(turning, -1), (rng.random(STEPS) < 0.3) * 1.0, none + 4.2]
    columns += [np.cos(half), none, none, np.sin(half), np.sin(0.7 * np.arange(STEPS) + rng.uniform(0, 6))]
    return np.stack(columns, axis=1)


def test_positions_velocities_angles_contacts_and_constants_are_told_apart():
    states = np.concatenate([body(seed) for seed in range(EPISODES)]).astype(np.float32)
    starts = np.arange(EPISODES) * STEPS
    found = describe_columns(states, starts, np.full(EPISODES, STEPS))
    assert found.constant == (7, 9, 10) and found.binary == (6,)
    assert found.velocities == {1: 0, 5: 2}
    assert 0 in found.drifting and not {1, 5, 6, 7, 12} & set(found.drifting)
    assert found.angles == (2,) and (3, 4) in found.directions
    assert found.quaternions == ((8, 9, 10, 11),)
    said = "\n".join(found.lines())
    assert "constant: 7, 9, 10" in said and "1 of 0" in said


def test_episodes_of_one_step_and_columns_without_change_are_described_too():
    found = describe_columns(np.ones((3, 2), np.float32), np.arange(3), np.ones(3, np.int64))
    assert found.constant == (0, 1) and not found.velocities
    assert describe_columns(np.eye(3, dtype=np.float32), np.arange(3), np.ones(3, np.int64)).velocities == {}


def _walk(layout: Layout | None = None, seed: int = 0) -> TrajectoryDataset:
    """A place that moves with a slowly changing speed, which is seen with noise that is new at each step."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(30):
        drift = np.convolve(rng.normal(size=260), np.ones(60) / 8, "valid")[:200]
        speed = drift + rng.normal(0, 3, 200)
        place = np.cumsum(drift) + np.cumsum(rng.normal(0, 0.02, 200))
        episodes.append((np.stack([place, drift, speed], axis=1), np.clip(drift[:, None], -1, 1)))
    return TrajectoryDataset.from_episodes(episodes, layout, action_low=[-1], action_high=[1])


def test_velocities_that_nobody_can_foresee_do_not_shorten_the_horizon():
    everything = tuple(range(3))
    place = Layout(3, everything, (0,))
    expected = _walk(place).suggest_horizon()
    assert _walk(Layout(3, everything, (2,))).suggest_horizon() == 8 < expected
    assert _walk(Layout(3, (1, 2), everything, relative=(0,))).suggest_horizon() >= expected


def test_without_relative_features_those_that_are_not_velocities_are_judged():
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(30):
        noise = rng.normal(0, 1, 200)
        drift = np.convolve(rng.normal(size=260), np.ones(60) / 8, "valid")[:200]
        speed = drift + noise
        place = np.concatenate([[0], np.cumsum(speed)[:-1]])
        episodes.append((np.stack([place, speed, drift], axis=1), np.clip(drift[:, None], -1, 1)))
    data = TrajectoryDataset.from_episodes(episodes, Layout(3, (0, 1, 2), (0, 1)), action_low=[-1], action_high=[1])
    alone = TrajectoryDataset.from_episodes(episodes, Layout(3, (0, 1, 2), (0,)), action_low=[-1], action_high=[1])
    assert data.suggest_horizon() == alone.suggest_horizon()


def test_contacts_that_nobody_can_foresee_do_not_shorten_the_horizon():
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(30):
        speed = np.convolve(rng.normal(size=260), np.ones(60) / 8, "valid")[:200]
        place, touch = np.concatenate([[0], np.cumsum(speed)[:-1]]), rng.integers(0, 2, 200).astype(float)
        episodes.append((np.stack([place, speed, touch, np.ones(200)], axis=1), np.clip(speed[:, None], -1, 1)))

    def horizon(*features):
        layout = Layout(4, (0, 1, 2, 3), features)
        return TrajectoryDataset.from_episodes(episodes, layout, action_low=[-1], action_high=[1]).suggest_horizon()

    assert 8 < horizon(0) == horizon(0, 2) == horizon(0, 1, 2, 3)


def test_a_horizon_is_long_enough_for_the_features_to_change_in_most_windows():
    """A block that rests until it is reached, after 12 to 20 steps of 50, and is then pushed for 10."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(200):
        direction, begin = rng.normal(size=2), rng.integers(12, 20)
        block = np.clip(np.arange(51) - begin, 0, 10)[:, None] * direction
        hand = rng.normal(size=(51, 1))
        episodes.append((np.concatenate([block, hand], axis=1), np.tanh(direction) * np.ones((50, 2))))
    data = TrajectoryDataset.from_episodes(
        episodes, Layout(3, (0, 1, 2), (0, 1)), action_low=[-1, -1], action_high=[1, 1]
    )
    assert data.suggest_horizon() == 24
