"""The page of a package index: README.md without what leads to other files of a checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_HERE = r"\((?!https?://|#)[^)\s]+\)"  # a target beside the page


def for_an_index(text: str) -> str:
    """Markdown without pictures beside the page, with the captions below them, and with other links there as text."""
    text = re.sub(rf"^!\[[^\]]*\]{_HERE}\n+(?:\*[^*].*\*\n+)?", "", text, flags=re.MULTILINE)
    return re.sub(rf"(?<!!)\[([^\]]*)\]{_HERE}", r"\1", text)


class PackagePage(MetadataHookInterface):
    """Gives the build its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_an_index(text)}
