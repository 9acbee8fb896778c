"""Pictures: simulator rollouts coloured by skill, success over environment steps, the graph that an agent plans on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from didi_gym.core.skill_space import SkillSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHTNESS, _CHROMA = 0.70, 0.13  # a vivid circle of one lightness that nearly fits into sRGB
_MOST_CATEGORIES = 20  # that a legend can list and an eye can tell apart
# Okabe and Ito's palette: colour-blind people tell these apart.
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def plot_skill_map(
    paths: Sequence[np.ndarray] | np.ndarray,
    skills: np.ndarray,
    skill_space: SkillSpace,
    file: str | Path,
    *,
    title: str = "",
    data: np.ndarray | None = None,
    axis_labels: tuple[str, str] = ("x", "y"),
    equal_axes: bool = True,
    walls: np.ndarray | None = None,
) -> Path:
    """Draw where each skill went, coloured by skill.

    A skill of two or more dimensions is coloured by its first two: the angle is the hue, the length the strength of the
    colour, as the wheel beside the picture shows. One dimension gets a colour bar, discrete skills a legend.

    Args:
        paths: `(n, steps, 2)` positions of simulator rollouts (not plans). Those that end early are filled up with NaN,
            or all are given as a list of arrays.
        skills: `(n, skill_dim)`, the skill held on each path.
        skill_space: the space that the skills are from.
        file: where to write; the ending chooses the format (png, pdf, svg).
        title: of the picture.
        data: `(m, 2)` positions of the data set, drawn light grey behind the paths.
        axis_labels: what the two coordinates are.
        equal_axes: a unit is as long on either axis, as on a map.
        walls: `(w, 4)` rectangles (left, bottom, width, height), drawn grey.

    Returns:
        The file written.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes that do not fit together.
    """
    figure, axes = _figure(5.4, 5.0)
    from matplotlib.patches import Rectangle

    lines = [np.asarray(path, dtype=float) for path in paths]
    wrong = next((line.shape for line in lines if line.ndim != 2 or line.shape[1] != 2), None)
    if wrong is not None:
        raise ValueError(f"a path must have shape (steps, 2), got {wrong}")
    colours = skill_colours(skills, skill_space)
    if len(colours) != len(lines):
        raise ValueError(f"each path needs one skill, got {len(lines)} paths and {len(colours)} skills")

    if data is not None:
        axes.plot(*np.asarray(data, dtype=float).T, ".", color="0.87", markersize=2, zorder=0, rasterized=True)
    for left, bottom, width, height in () if walls is None else np.asarray(walls, dtype=float):
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor="0.75", edgecolor="0.75", zorder=1))
    opacity = float(np.clip(40 / max(len(lines), 1), 0.35, 0.95))
    for line, colour in zip(lines, colours, strict=True):
        line = line[np.isfinite(line).all(axis=1)]
        axes.plot(*line.T, color=colour, linewidth=1.4, alpha=opacity, solid_capstyle="round", zorder=2)
        axes.plot(*line[-1:].T, "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.5, zorder=3)
        axes.plot(*line[:1].T, "o", color="black", markersize=2.5, zorder=4)

    axes.set(title=title, xlabel=axis_labels[0], ylabel=axis_labels[1])
    if equal_axes:
        axes.set_aspect("equal", adjustable="datalim" if walls is None else "box")
    if skill_space.is_discrete and skill_space.size <= _MOST_CATEGORIES:
        _category_legend(axes, skill_space)
    elif skill_space.is_discrete or skill_space.size == 1:
        _colour_bar(axes, skill_space)
    else:
        _colour_wheel(axes, skill_space)
    return _save(figure, file)


def plot_learning_curves(
    curves: Mapping[str, tuple[Any, Any]],
    file: str | Path,
    *,
    x_label: str = "low-level environment steps",
    y_label: str = "success rate",
    title: str = "",
) -> Path:
    """Draw one line for each agent; values that all lie in [0, 1] get that whole axis, so that pictures compare.

    Args:
        curves: name -> (x `(n,)`, y `(n,)` or `(seeds, n)`). Seeds become their mean, with a band from the smallest to
            the largest.
        file: where to write; the ending chooses the format (png, pdf, svg).
        x_label: what x counts.
        y_label: what y is.
        title: of the picture.

    Returns:
        The file written.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no curve, one without points, or shapes that do not fit together.
    """
    figure, axes = _figure(6.0, 3.8)
    from matplotlib.ticker import EngFormatter

    if not curves:
        raise ValueError("expected at least one curve, got none")
    low, high = np.inf, -np.inf
    for index, (name, (x, y)) in enumerate(curves.items()):
        steps, values = np.asarray(x, dtype=float), np.atleast_2d(np.asarray(y, dtype=float))
        if values.ndim != 2 or steps.shape != values.shape[1:]:
            raise ValueError(
                f"curve {name!r}: x must be (n,) and y (n,) or (seeds, n), got {steps.shape} and {np.shape(y)}"
            )
        if not np.isfinite(values).any():
            raise ValueError(f"curve {name!r} has no points to draw; leave it out")
        colour = _LINES[index % len(_LINES)]
        axes.plot(steps, values.mean(axis=0), color=colour, linewidth=2, label=name, zorder=3)
        if len(values) > 1:
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        low, high = min(low, np.nanmin(values)), max(high, np.nanmax(values))
    if low >= 0 and high <= 1:
        axes.set_ylim(-0.03, 1.03)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.margins(x=0.02)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return _save(figure, file)


def plot_goal_graph(
    centers: np.ndarray,
    costs: np.ndarray,
    file: str | Path,
    *,
    size: float = 0.0,
    edges: np.ndarray | None = None,
    failures: np.ndarray | None = None,
    falls: np.ndarray | None = None,
    plan: np.ndarray | None = None,
    goal: np.ndarray | None = None,
    title: str = "",
    walls: np.ndarray | None = None,
) -> Path:
    """Draw what an agent that plans on a graph believes: places coloured by the cost of the way to the goal.

    Args:
        centers: `(n, 2)` places that were reached.
        costs: `(n,)` of the way from each place to the goal; places without a way (inf) are drawn grey.
        file: where to write; the ending chooses the format (png, pdf, svg).
        size: length of a place's square, in the units of the goal; 0 draws dots.
        edges: `(m, 2)` from which place to which a body moved, drawn as thin lines.
        failures: `(m,)` share of the moves along each edge that failed, drawn red, the stronger the more.
        falls: `(n,)` share of the visits of each place that ended in a fall, drawn as crosses, the larger the more.
        plan: `(p, 2)` the way from here, drawn as a line that begins with a dot.
        goal: `(2,)`, drawn as a star.
        title: of the picture.
        walls: `(w, 4)` rectangles (left, bottom, width, height), drawn grey.

    Returns:
        The file written.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes that do not fit together.
    """
    centers, costs = np.asarray(centers, float), np.asarray(costs, float)
    if centers.ndim != 2 or centers.shape[1] != 2 or costs.shape != (len(centers),):
        raise ValueError(f"expected centers (n, 2) and costs (n,), got {centers.shape} and {costs.shape}")
    m, p, w = (0 if rows is None else len(rows) for rows in (edges, plan, walls))
    shapes = {"edges": (m, 2), "failures": (m,), "falls": costs.shape, "plan": (p, 2), "goal": (2,), "walls": (w, 4)}
    for given, (name, shape) in zip((edges, failures, falls, plan, goal, walls), shapes.items(), strict=True):
        if given is not None and np.shape(given) != shape:
            raise ValueError(f"expected {name} {shape}, got {np.shape(given)}")
    if m and not 0 <= np.min(edges) <= np.max(edges) < len(centers):  # type: ignore[arg-type]
        raise ValueError(f"expected edges between {len(centers)} places, got one to number {np.max(edges)}")  # type: ignore[arg-type]
    figure, axes = _figure(6.2, 5.0)
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    for left, bottom, width, height in () if walls is None else np.asarray(walls, dtype=float):
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor="0.75", edgecolor="0.75", zorder=0))
    known = np.isfinite(costs)
    side = size or 0.02 * float(np.ptp(centers, axis=0).max() if len(centers) else 1.0)
    for shown, colour in ((~known, "0.88"), (known, None)):
        squares = [Rectangle((x - side / 2, y - side / 2), side, side) for x, y in centers[shown]]
        patches = PatchCollection(squares, facecolor=colour, edgecolor="none", zorder=1, cmap=_colour_map("viridis_r"))
        if colour is None:
            patches.set_array(costs[shown])
        axes.add_collection(patches)
        if colour is None and shown.any():
            figure.colorbar(patches, ax=axes, shrink=0.8, label="cost of the way to the goal")
    if edges is not None and len(edges):
        lines = centers[np.asarray(edges)]
        share = np.zeros(len(lines)) if failures is None else np.clip(np.asarray(failures, float), 0, 1)
        colours = np.concatenate([np.outer(share, [0.85, 0.1, 0.1]), (0.12 + 0.8 * share)[:, None]], axis=1)
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.5 + 1.2 * share, zorder=2))
    if falls is not None:
        fallen = np.flatnonzero(np.asarray(falls) > 0)
        strength = 90 * np.sqrt(np.asarray(falls, float)[fallen])
        x, y = centers[fallen].T
        axes.scatter(x, y, s=strength, c="black", marker="x", linewidths=1, zorder=3, label="falls")
    if plan is not None and len(plan):
        axes.plot(*np.asarray(plan, float).T, color=_LINES[1], linewidth=2.4, zorder=4, label="plan")
        axes.plot(*np.asarray(plan, float)[:1].T, "o", color=_LINES[1], markeredgecolor="white", markersize=8, zorder=5)
    if goal is not None:
        axes.plot(*np.asarray(goal, float), "*", color=_LINES[4], markeredgecolor="black", markersize=15, zorder=5)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)
    return _save(figure, file)


def skill_colours(skills: np.ndarray, skill_space: SkillSpace) -> np.ndarray:
    """The colours that pictures give to skills.

    Args:
        skills: `(n, skill_dim)`.
        skill_space: the space that the skills are from.

    Returns:
        Red, green and blue in [0, 1], `(n, 3)`.
    """
    skills = np.asarray(skills, dtype=float)
    if skills.ndim != 2 or skills.shape[1] != skill_space.skill_dim:
        raise ValueError(f"skills must have shape (n, {skill_space.skill_dim}), got {skills.shape}")
    if skill_space.is_discrete:
        return _category_colours(skill_space.size)[skills.argmax(axis=1)]
    if skill_space.size == 1:
        return _colour_map("viridis")((skills[:, 0] + 1) / 2)[:, :3]
    return _wheel_colours(skills[:, :2])


def _wheel_colours(vectors: np.ndarray) -> np.ndarray:
    """Hue by angle, strength by length, all equally light: the colour space Oklch (Ottosson 2020).

    Vectors `(..., 2)` -> red, green and blue `(..., 3)`.
    """
    strength = _CHROMA * (0.2 + 0.8 * np.minimum(np.linalg.norm(vectors, axis=-1), 1.0))  # the zero skill: nearly grey
    angle = np.arctan2(vectors[..., 1], vectors[..., 0]) + np.deg2rad(25)  # the first axis points to red
    a, b = strength * np.cos(angle), strength * np.sin(angle)
    cones = _LIGHTNESS + np.stack([a, b], axis=-1) @ np.array(
        [[0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cones**3 @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _category_colours(n: int) -> np.ndarray:
    """`(n, 3)`."""
    if n <= _MOST_CATEGORIES:
        return np.array(_colour_map("tab10" if n <= 10 else "tab20").colors)[:n]
    return _colour_map("turbo")(np.linspace(0.03, 0.97, n))[:, :3]


def _category_legend(axes: Axes, skill_space: SkillSpace) -> None:
    from matplotlib.lines import Line2D

    colours = _category_colours(skill_space.size)
    handles = [Line2D([], [], color=colour, linewidth=3, label=str(skill)) for skill, colour in enumerate(colours)]
    legend = axes.legend(handles=handles, title="skill", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    legend.set_in_layout(True)


def _colour_bar(axes: Axes, skill_space: SkillSpace) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    if skill_space.is_discrete:
        colours, limits = ListedColormap(_category_colours(skill_space.size)), (-0.5, skill_space.size - 0.5)
    else:
        colours, limits = _colour_map("viridis"), (-1.0, 1.0)
    scale = ScalarMappable(Normalize(*limits), colours)
    bar = axes.figure.colorbar(scale, ax=axes, shrink=0.6, aspect=18, pad=0.03, label="skill $z$")
    bar.outline.set_visible(False)


def _colour_wheel(axes: Axes, skill_space: SkillSpace) -> None:
    """A disc of all colours to the right of the picture: the skill itself seen from above."""
    wheel = axes.inset_axes((1.03, 0.74, 0.22, 0.22))
    side = np.linspace(-1.08, 1.08, 240)
    points = np.stack(np.meshgrid(side, side), axis=-1)  # (240, 240, 2)
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    hole = 0.72 if skill_space.kind == "sphere" and skill_space.size == 2 else -1.0  # its skills lie on the rim only
    edge = 60.0  # one over the width of the soft edge
    opacity = np.clip((1 - radius) * edge, 0, 1) * np.clip((radius - hole) * edge, 0, 1)
    extent = (side[0], side[-1], side[0], side[-1])
    wheel.imshow(np.concatenate([_wheel_colours(points), opacity], axis=-1), origin="lower", extent=extent)
    wheel.set_axis_off()
    wheel.set_title("skill $z$" if skill_space.size == 2 else "skill $(z_1, z_2)$", fontsize=9, pad=3)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure outside pyplot: no window, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'didi-gym[viz]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colour_map(name: str) -> Any:
    from matplotlib import colormaps

    return colormaps[name]


def _save(figure: Figure, file: str | Path) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")
    return path
