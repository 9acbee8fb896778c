"""Data-set generators: reward-free Minari data sets made on the spot, from nothing but a simulator."""

from didi_gym.collect.ant import ant_layout, collect_ant_directions
from didi_gym.collect.minari_io import Episode, write_dataset
from didi_gym.collect.pointmaze import collect_pointmaze, pointmaze_layout

__all__ = [
    "Episode",
    "ant_layout",
    "collect_ant_directions",
    "collect_pointmaze",
    "pointmaze_layout",
    "write_dataset",
]
