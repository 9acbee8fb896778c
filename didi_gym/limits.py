"""Bounds on settings and layouts, and the checks that enforce them."""

from __future__ import annotations

from typing import Any

# What a file may ask for at most: far beyond what is of use, and what no computer is brought down by.
MAX_STATE = 4_096
MAX_OBSERVATION = 10_000_000
MAX_ACTION = 4_096
MAX_SKILL = 1_024
MAX_HORIZON = 10_000
MAX_DURATION = 1_000_000
MAX_WIDTH = 8_192
MAX_DEPTH = 256
MAX_LEVELS = 8
MAX_MEMBERS = 256
MAX_DIFFUSION_STEPS = 100_000


def require_positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def require_between(config: Any, name: str, low: float, high: float) -> None:
    if not low <= getattr(config, name) <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {getattr(config, name)}")


def require_size(config: Any) -> None:
    """Check the size of a network: `width`, and `depth` where it has one."""
    require_between(config, "width", 1, MAX_WIDTH)
    if hasattr(config, "depth"):
        require_between(config, "depth", 1, MAX_DEPTH)
