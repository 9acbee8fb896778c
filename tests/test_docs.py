"""The pages that people read: links that lead somewhere, names and settings that exist, plain words, a short README."""

import ast
import re
import runpy
import sys
import types
from dataclasses import fields, is_dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from didi_gym.training import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOUSE_PHRASES = (
    r"or here",
    r"kin",
    r"becomes one again",
    r"told at once",
    r"goes with what follows",
    r"column but one",
    r"accidents act alike",
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_heading_is_linked_as_github_links_it():
    text = "## `batch_invariant`, row by row\n```\n# no heading\n```\n# Opened with `trust=True`\n"
    assert anchors(text) == {"batch_invariant-row-by-row", "opened-with-trusttrue"}


@every_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file() and file.is_relative_to(ROOT), f"{target} leads nowhere"
        assert not heading or heading in anchors(file.read_text()), f"{target} leads to no heading"


def test_the_page_of_a_package_index_leads_to_nothing_that_only_a_checkout_has(monkeypatch):
    hook = types.ModuleType("hatchling.metadata.plugin.interface")
    hook.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, hook.__name__, hook)
    page = runpy.run_path(str(ROOT / "hatch_build.py"))["for_an_index"]
    given = "a\n\n![P](hub/p.png)\n\n*The caption.*\n\n[Web](https://x.y) and [Results](docs/r.md#rows) [b](#c)\n"
    assert page(given) == "a\n\n[Web](https://x.y) and Results [b](#c)\n"
    readme = page((ROOT / "README.md").read_text())
    assert "## A first program" in readme and "](https://minari" in readme
    assert not [target for target in re.findall(r"\]\(([^)\s]+)\)", without_code(readme)) if "://" not in target]
    assert 'dynamic = ["version", "readme"]' in (ROOT / "pyproject.toml").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    others = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents]
    assert [name for name in others if name != "README.md" and f"]({name})" not in index] == []


@every_page
def test_no_page_speaks_house_dialect(page):
    text = " ".join(page.read_text().split())
    assert [phrase for phrase in HOUSE_PHRASES if re.search(rf"\b{phrase}\b", text)] == []


@every_page
def test_programs_parse_and_import_names_that_exist(page):
    for program in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "didi_gym":
                module = import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@every_page
def test_settings_of_training_that_a_page_names_exist(page):
    for flag in re.findall(r"--((?:skills|behaviours|prior|dynamics)\.[\w.-]+\w)", page.read_text()):
        reduce(setting, flag.replace("-", "_").split("."), TrainConfig())


def setting(config: object, name: str) -> object:
    assert is_dataclass(config) and name in {field.name for field in fields(config)}, f"there is no setting {name}"
    return getattr(config, name)
