"""Pictures are judged by their pixels: read back from the file that was written."""

import sys

import numpy as np
import pytest

from didi_gym.core.skill_space import SkillSpace
from didi_gym.evaluation.plots import plot_goal_graph, plot_learning_curves, plot_skill_map, skill_colours

pytest.importorskip("matplotlib", reason="pictures need didi-gym[viz]")
from matplotlib.image import imread

CIRCLE = SkillSpace("sphere", 2)


def straight_paths(directions):
    """`(n, 2)` -> `(n, 20, 2)`: from the origin, 20 steps of one length."""
    return np.linspace(0, 1, 20)[None, :, None] * np.asarray(directions, dtype=float)[:, None, :]


def pixels_like(image, colour, tolerance=0.06):
    """How many pixels have a colour, and their mean column and row, rows counted upwards."""
    rows, columns = np.nonzero(np.abs(image[..., :3] - np.asarray(colour)).max(axis=-1) < tolerance)
    return len(rows), (columns.mean(), image.shape[0] - rows.mean()) if len(rows) else None


@pytest.fixture
def directions():
    return np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=np.float32)


def test_each_skill_of_the_circle_has_its_colour_where_its_path_went(tmp_path, directions):
    file = plot_skill_map(straight_paths(directions), directions, CIRCLE, tmp_path / "map.png")
    image = imread(file)
    colours = skill_colours(directions, CIRCLE)
    places = {}
    for name, colour in zip(("east", "north", "west", "south"), colours, strict=True):
        count, place = pixels_like(image[:, : int(image.shape[1] * 0.78)], colour)  # without the wheel to the right
        assert count > 50
        places[name] = np.array(place)
    assert places["east"][0] > places["north"][0] > places["west"][0]
    assert places["north"][1] > places["east"][1] > places["south"][1]


def test_colours_turn_with_the_angle_and_fade_towards_the_centre(directions):
    rim = skill_colours(directions, CIRCLE)
    assert min(np.abs(a - b).max() for i, a in enumerate(rim) for b in rim[:i]) > 0.2
    centre = skill_colours(np.zeros((1, 2)), SkillSpace("ball", 2))
    half = skill_colours(directions * 0.5, SkillSpace("ball", 2))
    assert np.ptp(centre) < np.ptp(half, axis=1).min() < np.ptp(rim, axis=1).min()


def test_neighbouring_angles_have_neighbouring_colours_all_the_way_round():
    skills = CIRCLE.grid(360)
    colours = skill_colours(np.concatenate([skills, skills[:1]]), CIRCLE)
    assert np.abs(np.diff(colours, axis=0)).max() < 0.05


@pytest.mark.parametrize(
    "space",
    [
        SkillSpace("box", 1),
        SkillSpace("ball", 3),
        SkillSpace("discrete", 2),
        SkillSpace("discrete", 13),
        SkillSpace("discrete", 30),
    ],
    ids=lambda space: f"{space.kind}{space.size}",
)
def test_every_kind_of_skill_space_can_be_drawn(tmp_path, space):
    skills = space.grid(min(space.size, 5) if space.is_discrete else 5)
    paths = straight_paths(np.stack([np.cos(np.arange(len(skills))), np.sin(np.arange(len(skills)))], axis=1))
    image = imread(plot_skill_map(paths, skills, space, tmp_path / "deeper" / "map.png", title="a title"))
    for colour in skill_colours(skills, space):
        assert pixels_like(image, colour)[0] > 30
    assert len(np.unique(skill_colours(space.grid(space.size), space), axis=0)) == space.size or not space.is_discrete


def test_only_the_first_two_dimensions_of_a_skill_give_its_colour():
    skills = SkillSpace("ball", 4).sample(10, np.random.default_rng(0))
    other = np.concatenate([skills[:, :2], np.zeros((10, 2))], axis=1)
    assert np.array_equal(skill_colours(skills, SkillSpace("ball", 4)), skill_colours(other, SkillSpace("ball", 4)))


def test_data_and_walls_are_drawn_behind_the_paths(tmp_path, directions):
    paths = straight_paths(directions)
    bare = imread(plot_skill_map(paths, directions, CIRCLE, tmp_path / "bare.png"))
    spread = np.random.default_rng(0).normal(size=(500, 2))
    full = imread(
        plot_skill_map(paths, directions, CIRCLE, tmp_path / "full.png", data=spread, walls=[[1.1, -1, 0.3, 2]])
    )
    assert pixels_like(bare, [0.75] * 3, 0.01)[0] < 200 < 2000 < pixels_like(full, [0.75] * 3, 0.01)[0]
    assert pixels_like(bare, [0.87] * 3, 0.01)[0] * 5 < pixels_like(full, [0.87] * 3, 0.01)[0]


def test_a_path_may_end_early(tmp_path, directions):
    paths = straight_paths(directions)
    cut = paths.copy()
    cut[:, 10:] = np.nan
    file = plot_skill_map(cut, directions, CIRCLE, tmp_path / "nan.png")
    ragged = plot_skill_map([path[:10] for path in paths], directions, CIRCLE, tmp_path / "ragged.png")
    assert file.read_bytes() == ragged.read_bytes()


@pytest.mark.parametrize(
    ("paths", "skills", "message"),
    [
        (np.zeros((4, 9, 3)), np.eye(4, 2), r"\(steps, 2\), got \(9, 3\)"),
        (np.zeros((4, 9, 2)), np.eye(3, 2), "4 paths and 3 skills"),
        (np.zeros((4, 9, 2)), np.eye(4, 3), r"\(n, 2\), got \(4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path, paths, skills, message):
    with pytest.raises(ValueError, match=message):
        plot_skill_map(paths, skills, CIRCLE, tmp_path / "map.png")


def test_learning_curves_rise_where_the_numbers_rise(tmp_path):
    steps = np.linspace(0, 200_000, 21)
    rising, low = steps / 200_000, np.zeros((3, 21)) + [[0.05], [0.1], [0.15]]
    image = imread(plot_learning_curves({"skills": (steps, rising), "raw": (steps, low)}, tmp_path / "curves.png"))
    blue, vermilion = (0, 0.447, 0.698), (0.835, 0.369, 0)
    left, right = np.array_split(image, 2, axis=1)
    assert pixels_like(right, blue)[1][1] > pixels_like(left, blue)[1][1] + 50
    assert pixels_like(image, vermilion)[0] > 300
    assert pixels_like(right, vermilion)[1][1] < pixels_like(right, blue)[1][1]


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one curve"),
        ({"a": (np.arange(3), np.arange(4))}, r"'a'.*\(3,\) and \(4,\)"),
        ({"a": (np.arange(3), np.arange(3)), "b": ([], [])}, "'b' has no points"),
        ({"a": ([1.0], [np.nan])}, "'a' has no points"),
    ],
)
def test_learning_curves_that_do_not_fit_are_named(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        plot_learning_curves(curves, tmp_path / "curves.png")


@pytest.mark.parametrize(
    "draw",
    [
        lambda file: plot_skill_map(np.zeros((1, 2, 2)), np.eye(1, 2), CIRCLE, file),
        lambda file: plot_learning_curves({"a": ([0, 1], [0, 1])}, file),
    ],
)
def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"didi-gym\[viz\]"):
        draw(tmp_path / "picture.png")


def test_a_graph_of_parts_that_do_not_go_together_is_refused(tmp_path):
    centers, costs, file = np.eye(2), np.zeros(2), tmp_path / "graph.png"
    wrong = {"edges": [[0, 1, 1]], "failures": [1.0], "falls": [1.0], "plan": [[0, 0, 0]], "goal": [0], "walls": [[0]]}
    for name, given in wrong.items():
        with pytest.raises(ValueError, match=name):
            plot_goal_graph(centers, costs, file, **{name: np.array(given)})
    with pytest.raises(ValueError, match="between 2 places, got one to number 9"):
        plot_goal_graph(centers, costs, file, edges=np.array([[0, 9]]))
    assert plot_goal_graph(centers[:0], costs[:0], file).exists()
