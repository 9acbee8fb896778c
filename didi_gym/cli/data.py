"""The commands `didi-gym data ...`: their settings, and what each runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from didi_gym.core.files import printable
from didi_gym.data.generators.domains import DOMAINS, Domain


def _settings_of(domain: Domain) -> type:
    """The settings of a domain's command, whose help is the domain's own words."""
    replace = Annotated[bool, tyro.conf.arg(help="Replace a data set of that id.")]
    fields: list[Any] = [
        ("dataset", str, field(default=domain.dataset)),
        ("steps", int, field(default=domain.steps)),
        ("seed", int, field(default=0)),
        ("overwrite", replace, field(default=False)),
    ]
    if domain.agents:
        folder = Annotated[Path | None, tyro.conf.arg(help=f"Folder of .npz policies, needed: {domain.agents}.")]
        fields.insert(0, ("agents", folder, field(default=None)))
    settings = make_dataclass("Domain", fields, frozen=True)
    settings.__doc__ = f"Make `{domain.dataset}`: {domain.summary}."
    return settings


def _collect(domain: Domain, args: Any) -> None:
    given = {"steps": args.steps, "seed": args.seed, "overwrite": args.overwrite}
    if domain.agents:
        if args.agents is None:
            raise ValueError(
                f"{domain.dataset} is recorded from policies of others, which are not part of this package; pass the "
                f"folder of their .npz files, --agents DIR: {domain.agents}"
            )
        given["agents"] = args.agents
    domain.collect(dataset_id=args.dataset, **given)


@dataclass(frozen=True)
class FromAgents:
    """Make a data set from behaviour policies, mixed evenly; which one acted is stored for evaluation only.

    The policies are plain arrays, one .npz file each: n_layers, W0 (in, out), b0, W1, ..., activation (tanh, relu or
    lrelu; hidden layers), squash (tanh on the output), time_feature (append 1 - step / 1000), env (e.g. HalfCheetah),
    and, if wanted, source, obs_mean, obs_std, obs_clip, log_std (not used). Pickles in them are refused.
    """

    env: str
    """Gymnasium id, e.g. HalfCheetah-v5."""
    agents: Path | None = None
    """Folder of .npz policies; those whose `env` is another body are left out."""
    sb3: tuple[str, ...] = ()
    """Stable-Baselines3 policies: Hugging Face Hub ids (sb3/sac-HalfCheetah-v3; needs a network) or zip files.

    Needs --trust."""
    trust: bool = False
    """Read the pickles that Stable-Baselines3 files hold, which run code of their authors."""
    only: tuple[str, ...] = ()
    """Behaviours to use, by file name without .npz; default: all."""
    output: Annotated[str | None, tyro.conf.arg(aliases=("--dataset",))] = None
    """Data set id; default: didi/BODY-gaits-v0, with switches didi/BODY-gaits-switching-v0."""
    steps: int = 200_000
    switch_every: float | None = None
    """Mean steps between switches, each to a random other behaviour; default: one behaviour in each episode."""
    final: tuple[str, ...] = ()
    """Behaviours after which no other recovers, e.g. one on its back: an episode ends where one would be left."""
    healthy: tuple[int, float, float] | None = None
    """Index, least and greatest value of a number that policies read, e.g. 1 -2 2 for the pitch of a HalfCheetah in
    rad: an episode ends where it leaves that range, unless a final behaviour is at work."""
    angles: tuple[int, ...] = ()
    """Indices of numbers that policies read and that are angles in rad, e.g. 1 for the pitch of a HalfCheetah: skills
    see cosine and sine."""
    lead_in: int = 0
    """Before recording, another behaviour runs for 0 to this many steps: starts are its states, not only resets."""
    noise: float = 0.05
    """Standard deviation of the Gaussian noise on actions, as a share of half their range."""
    episode_steps: int | None = None
    """Longest episode; default: the environment's time limit."""
    env_kwargs: str = "{}"
    """Settings of the environment, as JSON. MuJoCo bodies record their position, which no policy reads, unless
    exclude_current_positions_from_observation says otherwise here."""
    zero_padding: bool = False
    """Fill with zeros what policies read beyond the observation (Ant: contact forces of old versions)."""
    seed: int = 0
    processes: int = 2
    overwrite: bool = False
    """Replace a data set of that id."""


@dataclass(frozen=True)
class Import:
    """Turn a file of another format into a data set: D4RL, OGBench, robomimic or LeRobot.

    d4rl: an HDF5 file with observations, actions, terminals and timeouts end to end.

    ogbench: an NPZ file with observations, actions and terminals end to end.

    robomimic: an HDF5 file with data/demo_0/obs, data/demo_0/actions, ...

    lerobot: a parquet file with observation.state and action in each frame, or the folder of such a data set; it needs
    pyarrow (pip install 'didi-gym[lerobot]').

    Images and videos are not read. An action after which the file holds no observation is left out. Numbers are kept as
    they are stored. Nothing in a file is unpickled, imported or followed. For example:

    didi-gym data import halfcheetah_medium-v2.hdf5 --env HalfCheetah-v5

    didi-gym data import low_dim.hdf5 --keys object robot0_eef_pos --mask train

    didi-gym train --dataset imported/low_dim-v0 --output DIR
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file, or the folder of a LeRobot data set."""
    format: Literal["d4rl", "ogbench", "robomimic", "lerobot"] | None = None
    """Default: what the file's name and content look like, which is said."""
    env: str | None = None
    """Environment that the data was recorded in, as Name-v0 or module:Name-v0, whose spaces the data must fit. Without
    it the spaces are made from the data, and `didi-gym evaluate` needs --env."""
    dataset: str | None = None
    """Data set id; default: imported/NAME-v0, after the file; a version in its name is kept."""
    keys: tuple[str, ...] = ()
    """What makes the state, in this order: names in obs of robomimic, where all but images are the default, or columns
    of LeRobot, where observation.state is."""
    env_keys: tuple[str, ...] = ()
    """Keys of the environment's Dict observation whose numbers the file holds side by side, in this order; for the ant
    of a maze: achieved_goal observation."""
    mask: str | None = None
    """robomimic: read only the demonstrations that this filter key lists, e.g. train."""
    episode_steps: int | None = None
    """d4rl: the time limit that the data was recorded with, where the file has no timeouts."""
    env_kwargs: str = "{}"
    """Settings of the environment, as JSON."""
    overwrite: bool = False
    """Replace a data set of that id."""


@dataclass(frozen=True)
class Upload:
    """Store a data set of this disk on the Hugging Face Hub, through Minari.

    `didi-gym train --dataset hf://OWNER/DATASET --download` fetches it. It needs a token with write access:
    `hf auth login`, or HF_TOKEN.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Local id, e.g. didi/ant-directions-v0."""
    remote: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="hf://OWNER")]
    """Whose it will be, e.g. hf://me."""


def collect_agents(args: FromAgents) -> None:
    from didi_gym.data.generators.agents import collect_from_agents
    from didi_gym.data.labels import read_labels, table

    ours = ("env", "agents", "output", "sb3", "trust")
    settings = {key: value for key, value in vars(args).items() if key not in ours}
    if args.sb3:
        from didi_gym.sb3.recorded import find_policies

        settings["further"] = find_policies(args.sb3, args.trust)
    settings["env_kwargs"] = _json_object(args.env_kwargs)
    dataset = collect_from_agents(args.env, args.agents, dataset_id=args.output, **settings)
    name = dataset.spec.dataset_id
    print(f"{table(read_labels(name).behaviours)}\nData set {name}. Next: didi-gym train --dataset {name} --output DIR")


def _json_object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected --env-kwargs as a JSON object, got {text!r}: {error}") from error


def import_data(args: Import) -> None:
    from didi_gym.data.importers.convert import IMPORT_KEY, import_file

    env, env_kwargs = None, _json_object(args.env_kwargs)
    if args.env is not None:
        from didi_gym.evaluation.rollouts import make_named_env

        env = make_named_env(args.env, **env_kwargs)
    elif env_kwargs:
        raise ValueError("--env-kwargs are settings of an environment; name it with --env")
    dataset = import_file(
        args.file,
        args.format,
        env,
        args.dataset,
        keys=args.keys,
        env_keys=args.env_keys,
        mask=args.mask,
        episode_steps=args.episode_steps,
        overwrite=args.overwrite,
    )
    for note in json.loads(dataset.storage.metadata[IMPORT_KEY])["notes"]:
        print(printable(note))
    name = dataset.spec.dataset_id
    print(
        f"{dataset.total_episodes:,} episodes with {dataset.total_steps:,} steps.\n"
        f"Data set {name}. Next: didi-gym train --dataset {name} --output DIR"
    )


def upload(args: Upload) -> None:
    from didi_gym.data.minari import upload_dataset

    name = upload_dataset(args.dataset, args.remote)
    print(f"Data set {name}. Next, anywhere: didi-gym train --dataset {name} --download --output DIR")


DATA: dict[str, tuple[type, Callable[[Any], None]]] = {
    **{name: (_settings_of(domain), partial(_collect, domain)) for name, domain in DOMAINS.items()},
    "from-agents": (FromAgents, collect_agents),
    "import": (Import, import_data),
    "upload": (Upload, upload),
}
