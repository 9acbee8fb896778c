"""Data-set generators: reward-free Minari data sets from a simulator alone or from behaviour policies."""

from didi_gym.collect.ant import ant_layout, collect_ant_directions
from didi_gym.collect.behaviours import ArrayPolicy, BehaviourError
from didi_gym.collect.from_agents import collect_from_agents
from didi_gym.collect.labels import Labels, check_recording, read_labels
from didi_gym.collect.minari_io import Episode, write_dataset
from didi_gym.collect.pointmaze import collect_pointmaze, pointmaze_layout

__all__ = [
    "ArrayPolicy",
    "BehaviourError",
    "Episode",
    "Labels",
    "ant_layout",
    "check_recording",
    "collect_ant_directions",
    "collect_from_agents",
    "collect_pointmaze",
    "pointmaze_layout",
    "read_labels",
    "write_dataset",
]
