"""Make every policy of `hub/recipes`: its data set, its training, its measurements and its card.

    python hub/train_all.py --agents DIR                    # all of them, one after the other
    python hub/train_all.py swimmer-directions push         # some
    python hub/train_all.py --agents DIR --seed 1 --runs runs/seed1 --no-publish   # another training seed, kept apart

What is there already is kept: a data set on this disk, a finished run, and a run that was stopped goes on. It trains on
a GPU where there is one (`--device auto`), by the same recipe on a CPU otherwise; `trained_on_gpu` in `results.json`
says which. One policy that fails does not stop the others; the exit status says whether any did.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from recipe import Recipe

from didi_gym.core.files import write_atomically
from didi_gym.data.writing import datasets_root
from didi_gym.models.card import RESULTS_FILE, read_results
from didi_gym.models.folder import POLICY_FILES, TRAINING_FILE
from didi_gym.models.policy import pick_device

HUB = Path(__file__).resolve().parent
STAMP = "measured.json"  # in a run, when all was done


@dataclass(frozen=True)
class TrainAll:
    """Make the policies of hub/recipes."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME...")] = ()
    """Default: all."""
    agents: Path | None = None
    """Folder of behaviour policies (.npz), for the data sets that are recorded from them; without it those that are not
    on this disk yet cannot be made, which is said."""
    runs: Path = Path("runs")
    """Folder of the training runs."""
    seed: int = 0
    """Of the training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    publish: bool = True
    """Put the policy, its measurements and its card into hub/NAME; otherwise the run keeps its measurements."""


class Failed(Exception):
    """A step that did not work; the message says which."""


def run(words: list[str], what: str) -> None:
    """A command of this project in a process of its own, its output shown."""
    print("  $ " + shlex.join(words), flush=True)
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code == 130:  # Ctrl-C
        raise KeyboardInterrupt
    if code:
        raise Failed(f"{what} ended with status {code}")


def make_data(recipe: Recipe, agents: Path | None) -> None:
    """Make the data set of a recipe where it is not on this disk."""
    if (datasets_root() / recipe.data.dataset).exists() or recipe.data.dataset.startswith("hf://"):
        return
    if recipe.data.command is None:
        raise Failed(f"{recipe.data.dataset} is not on this disk, and its recipe has no command that makes it")
    words = shlex.split(recipe.data.command)[1:]  # without `didi-gym`
    if "--agents" in words:
        if agents is None:
            raise Failed(f"{recipe.data.dataset} is recorded from behaviour policies: pass their folder, --agents DIR")
        words[words.index("--agents") + 1] = str(agents)
    run(["-m", "didi_gym", *words], "making the data set")


def make(name: str, args: TrainAll) -> None:
    recipe, folder = Recipe.read(HUB / "recipes" / f"{name}.toml"), args.runs / name
    if (folder / STAMP).is_file():
        print(f"  {folder} is done")
        return
    began = time.monotonic()
    make_data(recipe, args.agents)
    if not all((folder / file).is_file() for file in (*POLICY_FILES, TRAINING_FILE)):
        words = [*recipe.train_arguments(str(folder)), "--seed", str(args.seed), "--device", args.device]
        run(["-m", "didi_gym", *words, "--no-check"], "training")
    if args.publish:
        run([str(HUB / "evaluate.py"), name, "--run", str(folder)], "measuring")
        results = HUB / name / RESULTS_FILE
    else:
        run(["-m", "didi_gym", *recipe.evaluate_arguments(str(folder))], "measuring")
        results = folder / RESULTS_FILE
    report = {**(read_results(results) or {}), "trained_on_gpu": int(pick_device(args.device).type == "cuda")}
    write_atomically(results, (json.dumps(report, indent=2) + "\n").encode())
    if args.publish:
        run([str(HUB / "publish.py"), name, "--refresh"], "writing the card")
    done = {"seed": args.seed, "seconds": round(time.monotonic() - began)}
    write_atomically(folder / STAMP, json.dumps(done).encode())


def main(args: TrainAll) -> None:
    known = sorted(file.stem for file in (HUB / "recipes").glob("*.toml"))
    if unknown := [name for name in args.names if name not in known]:
        raise SystemExit(f"no recipe {unknown[0]!r} in hub/recipes; there are {', '.join(known)}")
    failed = []
    for name in args.names or known:
        print(name, flush=True)
        try:
            make(name, args)
        except Failed as error:
            failed.append(name)
            print(f"  {name}: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            raise SystemExit("\nstopped; the same command goes on") from None
    if failed:
        raise SystemExit(f"not made: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(TrainAll))
