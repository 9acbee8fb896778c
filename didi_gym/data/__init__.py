"""Offline data: any Minari data set as packed arrays, and generators of reward-free data sets.

- `dataset`: `TrajectoryDataset`; `episodes`: checked and packed; `windows`: numbers that describe a window;
- `columns`: what the columns of a data set look like, for who writes a layout;
- `minari`: data sets on this disk and on the Hub; `writing`: episodes to a Minari data set;
- `labels`: which behaviour was at work, for evaluation only;
- `generators`: data sets from simulators and from behaviour policies;
- `importers`: data sets of other formats (D4RL, OGBench, robomimic, LeRobot).
"""

from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.episodes import DatasetError
from didi_gym.data.generators.agents import collect_from_agents
from didi_gym.data.generators.ant import ant_layout, collect_ant_directions
from didi_gym.data.generators.behaviours import ArrayPolicy, BehaviourError
from didi_gym.data.generators.domains import DOMAINS
from didi_gym.data.generators.humanoid import collect_humanoid_gaits
from didi_gym.data.generators.pointmaze import collect_pointmaze, pointmaze_layout
from didi_gym.data.generators.push import collect_push, push_layout
from didi_gym.data.generators.swimmer import collect_swimmer, swimmer_layout
from didi_gym.data.importers.convert import import_file
from didi_gym.data.labels import Labels, check_recording, read_labels
from didi_gym.data.writing import Episode, write_dataset

__all__ = [
    "DOMAINS",
    "ArrayPolicy",
    "BehaviourError",
    "DatasetError",
    "Episode",
    "Labels",
    "TrajectoryDataset",
    "ant_layout",
    "check_recording",
    "collect_ant_directions",
    "collect_from_agents",
    "collect_humanoid_gaits",
    "collect_pointmaze",
    "collect_push",
    "collect_swimmer",
    "import_file",
    "pointmaze_layout",
    "push_layout",
    "read_labels",
    "swimmer_layout",
    "write_dataset",
]
