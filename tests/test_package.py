"""The package as a whole: its rooms, what importing it loads, and its public names."""

import ast
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import didi_gym

PACKAGE = Path(didi_gym.__file__).parent
ROOMS = {  # each room, and the rooms that it may use; everyone may use itself and `version`
    "core": "",
    "hub": "core",
    "data": "core hub",
    "models": "core hub",
    "wrappers": "core models",
    "planning": "core data models wrappers evaluation",
    "training": "core data models",
    "sb3": "core hub data models wrappers evaluation",
    "evaluation": "core data models wrappers",
    "cli": "core hub data models wrappers planning training sb3 evaluation",
}
FRONT = {
    "": " ".join(ROOMS),
    "__main__": "cli",
    "version": "",
}  # the first is the map of all rooms
NEVER = {"core": "torch huggingface_hub", "wrappers": "torch"}  # not even in a function, but for type checkers
ONLY_IN = {"stable_baselines3": "sb3", "sb3_contrib": "sb3"}
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, in functions and for type checkers too; names of a package count as its own.

    Of this package without its name: `models.policy` for `from didi_gym.models.policy import SkillPolicy`, and for
    `from didi_gym.models import policy`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides the rooms; write the full name"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name.removeprefix("didi_gym.") in SOURCES else str(node.module) for name in modules]
        else:
            continue
        yield from (re.sub(r"^didi_gym\.?", "", name) if name.split(".")[0] == "didi_gym" else name for name in found)


def own(names: Iterable[str]) -> set[str]:
    return {name for name in names if name in SOURCES}


def faults(module: str, source: str) -> list[str]:
    """What a module imports against the rules of the rooms."""
    room = module.split(".")[0]
    if room not in ROOMS and module not in FRONT:
        return [f"{module} lies in no room"]
    allowed = {room, "version", *(FRONT[module] if module in FRONT else ROOMS[room]).split()}
    never = set(NEVER.get(room, "").split())

    def is_wrong(name: str) -> bool:
        top = name.split(".")[0]
        if name in SOURCES:
            return top not in allowed
        return ONLY_IN.get(top, room) != room or (top in never and not is_for_type_checkers(source, name))

    return [f"{module} -> {name or 'didi_gym'}" for name in sorted(set(imports(source))) if is_wrong(name)]


def is_for_type_checkers(source: str, name: str) -> bool:
    """Whether every import of `name` stands under `if TYPE_CHECKING:`."""
    tree = ast.parse(source)
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    under = [n for block in guarded for n in imports(ast.unparse(ast.Module(block.body, [])))]
    return list(imports(source)).count(name) == under.count(name)


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files that reach each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for target in graph[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    reach = {name: reached(name) for name in graph}
    found = {frozenset({name} | {t for t in reach[name] if name in reach[t]}) for name in graph if name in reach[name]}
    return [set(circle) for circle in found]


@pytest.mark.parametrize("module", SOURCES)
def test_a_room_uses_only_the_rooms_below_it(module):
    assert not faults(module, SOURCES[module].read_text())


def test_no_files_import_each_other_in_a_circle():
    files = {name: path for name, path in SOURCES.items() if path.name != "__init__.py"}
    assert circles({name: own(imports(path.read_text())) & files.keys() for name, path in files.items()}) == []


def test_only_the_front_door_lies_flat():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "version.py"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_docstring_names_every_file_in_it(room):
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    files = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
    assert {name for name in files if f"`{name}`" not in said} == set()
    assert f"{room}" in didi_gym.__doc__


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("core.files", "from didi_gym.models.policy import SkillPolicy", "core.files -> models.policy"),
        ("core.files", "def late():\n    import torch", "core.files -> torch"),
        ("models.card", "def late():\n    from didi_gym import training", "models.card -> training"),
        ("models.card", "if TYPE_CHECKING:\n    import didi_gym.cli.main", "models.card -> cli.main"),
        ("wrappers.make", "from didi_gym import SkillPolicy", "wrappers.make -> didi_gym"),
        ("data.dataset", "from stable_baselines3 import SAC", "data.dataset -> stable_baselines3"),
        ("surprise", "", "surprise lies in no room"),
    ],
)
def test_the_rule_of_the_rooms_names_the_offending_import(module, source, fault):
    assert faults(module, source) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models.policy", "from didi_gym.core.layout import Layout"),
        ("data.dataset", "from didi_gym.data.episodes import Packer"),
        ("core.skill_space", "if TYPE_CHECKING:\n    import torch"),
        ("cli.main", "from didi_gym.sb3 import recorded"),
    ],
)
def test_the_rule_of_the_rooms_allows_lower_rooms_and_the_own_one(module, source):
    assert not faults(module, source)


def test_a_circle_is_found_wherever_it_begins():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert circles({"a": {"a"}, "b": set()}) == [{"a"}]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a statement has run in a fresh interpreter."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True, check=True, timeout=120
    )
    lines = re.findall(r"^import time:.*\|\s*([\w.]+)$", process.stderr, flags=re.MULTILINE)
    assert "didi_gym" in lines
    return {name.split(".")[0] for name in lines}


HEAVY = {"torch", "minari", "stable_baselines3", "matplotlib", "gymnasium_robotics", "mujoco", "huggingface_hub"}


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_by("import didi_gym")
    assert "gymnasium" in loaded  # which gets our ids
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "module",
    ["wrappers.make", "wrappers.executor", "core.skill_space", "core.layout", "evaluation.plots", "evaluation.video"],
)
def test_a_module_for_worker_processes_or_pictures_loads_nothing_heavy(module):
    loaded = loaded_by(f"import didi_gym.{module}")
    assert not loaded & HEAVY
    assert "pydantic" not in loaded


@pytest.mark.parametrize("name", didi_gym.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value = getattr(didi_gym, name)
    assert name in dir(didi_gym)
    if callable(value):
        assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
        assert not (inspect.isclass(value) and value.__doc__.startswith(f"{name}(")), f"{name} has no docstring"


def test_the_public_names_are_those_with_a_home():
    assert set(didi_gym.__all__) == {"__version__", *didi_gym._HOMES}


@pytest.mark.parametrize("room", ["wrappers", "sb3", "data", "training", "planning", "evaluation"])
def test_every_public_name_of_a_room_resolves(room):
    module = importlib.import_module(f"didi_gym.{room}")
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "didi_gym", "--help"]
    assert "train" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", ["didi_gym", "didi_gym.wrappers", "didi_gym.evaluation"])
def test_an_unknown_public_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = importlib.import_module(module).no_such_name


def test_the_version_is_the_one_of_the_installation():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", didi_gym.__version__)
    try:
        installed = importlib.metadata.version("didi-gym")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert didi_gym.__version__ == installed
