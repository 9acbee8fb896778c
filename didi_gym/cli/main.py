"""The command line: `didi-gym data | train | evaluate | hub`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import tyro

from didi_gym.cli.data import DATA
from didi_gym.cli.hub import HUB, List, list_policies
from didi_gym.core.files import printable
from didi_gym.version import __version__

_USAGE = """didi-gym: pretrained skills for reinforcement learning

  didi-gym data ant-directions|kitchen|...        make a reward-free data set (Minari)
  didi-gym data from-agents --env ID --agents DIR the same, from a folder of behaviour policies
  didi-gym data import FILE [--env ID]            the same, from a D4RL, OGBench, robomimic or LeRobot file
  didi-gym train --dataset ID --output DIR        learn a skill policy from any Minari data set
  didi-gym evaluate POLICY                        roll skills out in the simulator: metrics, picture, video
  didi-gym hub list                               skill policies that come with this installation (or: didi-gym list)
  didi-gym hub info NAME                          what a policy reads, does and scores; NAME may be a Hub id
  didi-gym hub pull OWNER/NAME [--pin]            fetch it into the cache; --pin prints OWNER/NAME@COMMIT to paste
  didi-gym hub push FOLDER OWNER/NAME             publish a policy folder in one commit, and read it back
  didi-gym data upload DATASET hf://OWNER         publish a data set; train --dataset hf://... --download fetches it

Add --help to any of them; didi-gym --version says which version this is."""


def run(arguments: Sequence[str]) -> None:
    """Run one command; errors a user can mend are raised as exceptions with a sentence."""
    command, rest = (arguments[0] if arguments else "--help"), list(arguments[1:])
    asks_help = rest[:1] in (["--help"], ["-h"])
    groups: dict[str, dict[str, tuple[type, Callable[[Any], None]]]] = {"data": DATA, "hub": HUB}
    if command == "train":
        from didi_gym.cli.train import Train, train  # with pydantic, for which the other commands need not wait

        train(tyro.cli(Train, args=rest, prog="didi-gym train"))
    elif command == "evaluate":
        from didi_gym.cli.evaluate import Evaluate, evaluate

        evaluate(tyro.cli(Evaluate, args=rest, prog="didi-gym evaluate"))
    elif command == "list" and not rest:
        list_policies(List())
    elif command in groups and rest and rest[0] in groups[command]:
        settings, function = groups[command][rest[0]]
        function(tyro.cli(settings, args=rest[1:], prog=f"didi-gym {command} {rest[0]}"))
    elif command == "--version" and not rest:
        print(f"didi-gym {__version__}")
    elif command in groups and asks_help:
        for name, (settings, _) in groups[command].items():
            print(f"didi-gym {command} {name:18} {str(settings.__doc__).splitlines()[0]}")
        print("\nAdd --help to any of them.")
    elif command in ("--help", "-h") or (command == "list" and asks_help):
        print(_USAGE)
    else:
        raise SystemExit(f"didi-gym: no command {' '.join(arguments[:2])!r}\n\n{_USAGE}")


def main() -> None:
    """Entry point of `didi-gym`: exit code 1 and one sentence for errors a user can mend, 130 after Ctrl-C.

    Where the reader of the output has gone, as in `didi-gym hub list | head -1`, it ends without a word.
    """
    try:
        try:
            _run_or_explain()
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends
        raise SystemExit(1) from error


def _run_or_explain() -> None:
    try:
        run(sys.argv[1:])
    except BrokenPipeError as error:
        print(flush=True)  # fails too where the broken pipe is the output's own, which needs no explanation
        raise SystemExit(f"didi-gym: {printable(str(error))}") from error
    except (ValueError, OSError, ImportError, FloatingPointError, gym.error.Error) as error:
        # whatever a library's message quotes of a stranger's file, nothing in it acts on the terminal
        raise SystemExit(f"didi-gym: {printable(str(error))}") from error
    except KeyboardInterrupt as stop:
        lost = f" {stop} Nothing is lost: the same command continues." if sys.argv[1:2] == ["train"] else ""
        print(f"\ndidi-gym: stopped.{lost}", file=sys.stderr)
        raise SystemExit(130) from stop
