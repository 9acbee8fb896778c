"""The package as a whole: its layers, what importing it loads, and its public names."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import didi_gym

PACKAGE = Path(didi_gym.__file__).parent
ROWS = [  # a module imports only from the rows above its own; a subpackage also from itself
    ["version", "skills", "rewards", "files", "progress", "ids"],
    ["layout", "tensors", "hub_client", "decoding"],
    ["config"],
    ["frames", "networks", "unet", "hub", "checkpoints", "remote", "packing", "publishing"],
    ["normalization", "diffusion", "dynamics", "discriminator", "data", "engines"],
    ["policy_network"],
    ["policy_folder", "card_text"],
    ["cards"],
    ["policy_publishing", "recipes"],
    ["policy", "losses", "execution", "assignment"],
    ["matching", "loops"],
    ["planner", "anchor"],
    ["training", "wrappers"],
    ["registration", "plots", "collect", "metrics", "drawing"],
    ["simulation", "video", "sb3"],
    ["evaluation", "hub_commands", "train_command"],
    ["cli"],
    ["__main__"],
]
ROW_OF = {name: number for number, names in enumerate(ROWS) for name in names}
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_when_imported(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements that importing a module runs: inside if, try and class, but not inside functions."""
    for node in body:
        if is_for_type_checkers(node) or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from run_when_imported(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from run_when_imported(handler.body)


def own_imports(module: str, source: str) -> set[str]:
    """Modules of the package that importing `module` imports at once, as dotted names below the package's.

    A name imported from the package itself that is no module stands for the package: "didi_gym".
    """
    found = set()
    for node in run_when_imported(ast.parse(source).body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import hides the layers; write the full name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("didi_gym.") in SOURCES else str(node.module) for name in whole]
        else:
            continue
        found |= {name.removeprefix("didi_gym.") for name in names if name.split(".")[0] == "didi_gym"}
    return found


def layer_faults(module: str, source: str) -> list[str]:
    family = module.split(".")[0]
    if family not in ROW_OF:
        return [f"{module} is in no row: add it to ROWS"]
    faults = []
    for target in sorted(own_imports(module, source)):
        target_family = target.split(".")[0]
        inside_subpackage = target_family == family and "." in module + target
        if not inside_subpackage and ROW_OF.get(target_family, len(ROWS)) >= ROW_OF[family]:
            faults.append(f"{module} -> {target}")
    return faults


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_from_the_rows_above_its_own(module):
    assert not layer_faults(module, SOURCES[module].read_text())


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("config", "from didi_gym.policy import SkillPolicy", "config -> policy"),
        ("config", "try:\n    import didi_gym.cli\nexcept ImportError:\n    pass", "config -> cli"),
        ("policy", "from didi_gym import training", "policy -> training"),
        ("policy", "from didi_gym.losses import prior_loss", "policy -> losses"),
        ("cli", "from didi_gym import SkillPolicy", "cli -> didi_gym"),
        ("surprise", "", "surprise is in no row: add it to ROWS"),
    ],
)
def test_the_layer_rule_names_the_offending_import(module, source, fault):
    assert layer_faults(module, source) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("policy", "from didi_gym.layout import Layout"),
        ("collect.ant", "from didi_gym.collect.gaits import Gait"),
        ("config", "def late():\n    from didi_gym.policy import SkillPolicy"),
        ("config", "if TYPE_CHECKING:\n    from didi_gym.policy import SkillPolicy"),
    ],
)
def test_the_layer_rule_allows_lower_rows_the_own_subpackage_and_lazy_imports(module, source):
    assert not layer_faults(module, source)


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


@pytest.mark.parametrize("module", ["execution", "plots", "drawing", "video", "skills", "config"])
def test_a_module_for_worker_processes_or_pictures_loads_nothing_heavy(module):
    assert not loaded_by(f"import didi_gym.{module}") & HEAVY


@pytest.mark.parametrize("name", didi_gym.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value = getattr(didi_gym, name)
    assert name in dir(didi_gym)
    if callable(value):
        assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
        assert not (inspect.isclass(value) and value.__doc__.startswith(f"{name}(")), f"{name} has no docstring"


def test_the_public_names_are_those_with_a_home():
    assert set(didi_gym.__all__) == {"__version__", *didi_gym._HOMES}


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "didi_gym", "--help"]
    assert "train" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = didi_gym.no_such_name


def test_the_version_is_the_one_of_the_installation():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", didi_gym.__version__)
    try:
        installed = importlib.metadata.version("didi-gym")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert didi_gym.__version__ == installed
