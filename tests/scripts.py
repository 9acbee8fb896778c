"""Programs of this repository that are no part of the package, as modules, and the programs on its pages."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """`hub/publish.py` as a module; each call gives a new one."""
    if (folder := str((ROOT / path).parent)) not in sys.path:
        sys.path.insert(0, folder)  # scripts import what lies beside them
    name = "_script_" + re.sub(r"\W", "_", path)
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def run_program(program: str) -> dict[str, Any]:
    """Execute a program of a page; returns its names, with its environment closed."""
    names: dict[str, Any] = {}
    exec(program, names)
    if "env" in names:
        names["env"].close()
    return names
