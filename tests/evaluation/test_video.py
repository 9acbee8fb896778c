"""Drawn pictures and videos; what rendering itself shows is the environments' own matter."""

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from didi_gym.evaluation.video import Camera, make_rendered_env, write_video

pytest.importorskip("PIL", reason="drawing needs didi-gym[viz]")
pytest.importorskip("mujoco", reason="the scenes are MuJoCo's")


@pytest.fixture
def make_env():
    """Makes environments for a camera, started from one seed, and closes them."""
    made = []

    def make(env_id):
        made.append(make_rendered_env(env_id))
        made[-1].reset(seed=0)
        return made[-1]

    yield make
    for env in made:
        env.close()


class Coloured(gym.Env):
    """Renders one colour that counts the steps; no MuJoCo inside."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode, self.steps = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self):
        return np.full((40, 60, 3), self.steps, np.uint8)


def body_pixels(picture):
    """Rows and columns `(n, 2)` of what is not grey: the bodies, as floor, walls and shadows have almost no colour."""
    return np.argwhere(np.ptp(picture.astype(int), axis=-1) > 45)


def test_an_ant_is_drawn_and_moves(make_env):
    env = make_env("Ant-v5")
    camera = Camera(env, width=160, height=160)
    before, again = camera.frame(), camera.frame()
    for _ in range(10):
        env.step(env.action_space.high)
    after = camera.frame()
    assert before.shape == (160, 160, 3) and before.dtype == np.uint8
    assert np.array_equal(before, again)
    assert 300 < len(body_pixels(before)) < 8000
    assert (np.abs(before.astype(int) - after).max(axis=-1) > 40).mean() > 0.01


def test_the_camera_follows_a_body_that_walks_away(make_env):
    env = make_env("Ant-v5")
    camera = Camera(env, width=120, height=120)
    before = camera.frame()
    qpos = env.unwrapped.data.qpos.copy()
    qpos[:2] += 20.25, -7.5  # whole periods of the chequered floor and a part of one
    env.unwrapped.set_state(qpos, env.unwrapped.data.qvel)
    after = camera.frame()
    assert np.abs(body_pixels(before).mean(axis=0) - body_pixels(after).mean(axis=0)).max() < 2
    assert not np.array_equal(before, after)  # the floor went by


def test_a_maze_is_shown_whole_with_the_ball_where_it_is(make_env):
    pytest.importorskip("gymnasium_robotics", reason="the mazes are its")
    env = make_env("PointMaze_UMaze-v3")
    camera = Camera(env, width=160, height=160)
    point = env.unwrapped.point_env

    def green(x, y):
        point.set_state(np.array([x, y]), np.zeros(2))
        env.unwrapped.update_target_site_pos()
        colours = camera.frame().astype(int)
        return np.argwhere(colours[..., 1] - colours[..., [0, 2]].max(axis=-1) > 25).mean(axis=0)

    left, right, far = green(-1, 1), green(1, 1), green(1, -1)
    assert right[1] - left[1] > 30 and abs(right[0] - left[0]) < 4  # x points right
    assert far[0] - right[0] > 20  # y points up the picture: smaller rows


def test_an_ant_in_a_maze_can_be_shown_near_and_far(make_env):
    pytest.importorskip("gymnasium_robotics", reason="the mazes are its")
    env = make_env("AntMaze_UMaze-v5")
    far, near = (Camera(env, width=200, height=200, follow=follow).frame() for follow in (False, True))
    assert len(body_pixels(near)) > 2 * len(body_pixels(far)) > 0
    assert np.array_equal(far, Camera(env, width=200, height=200).frame())


def test_a_path_is_drawn_on_the_floor_where_it_leads(make_env):
    pytest.importorskip("gymnasium_robotics", reason="the mazes are its")
    env = make_env("PointMaze_Medium-v3")
    camera = Camera(env, width=200, height=200)

    plain = camera.frame().astype(int)

    def changed(*path):
        return np.argwhere(np.abs(camera.frame(path=np.array(path, float)) - plain).max(axis=-1) > 60)

    assert len(changed((0, 0))) == 0
    right = changed((-1, -1), (1, -1))
    assert np.ptp(right[:, 1]) > 4 * np.ptp(right[:, 0])
    assert np.ptp(changed((-1, -1), (-1, 1), (1, 1))[:, 0]) > 15
    with pytest.raises(RuntimeError, match="path"):
        Camera(gym.make("Pendulum-v1", render_mode="rgb_array")).frame(path=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(n, 2\), got \(2, 3\)"):
        camera.frame(path=np.zeros((2, 3)))


def test_a_planar_runner_is_seen_from_the_side(make_env):
    env = make_env("HalfCheetah-v5")
    camera = Camera(env, width=160, height=160)
    lengths = []
    for pitch in (0, np.pi / 2):  # flat, then upright
        env.unwrapped.set_state(np.array([0, 1, pitch, 0, 0, 0, 0, 0, 0]), np.zeros(9))
        lengths.append(np.ptp(body_pixels(camera.frame()), axis=0))
    (flat_height, flat_width), (upright_height, upright_width) = lengths
    assert flat_width > 1.2 * flat_height
    assert upright_height > 1.2 * upright_width


@pytest.mark.parametrize("env_id", ["Reacher-v5", "Humanoid-v5", "Pusher-v5", "Swimmer-v5"])
def test_scenes_with_every_kind_of_solid_are_drawn(make_env, env_id):
    picture = Camera(make_env(env_id), width=120, height=120).frame()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_a_caption_is_written_into_the_lower_left_corner_only(make_env):
    camera = Camera(make_env("Ant-v5"), width=200, height=200)
    changed = np.argwhere((camera.frame() != camera.frame(caption="skill 3")).any(axis=-1))
    assert len(changed) > 100
    assert changed[:, 0].min() > 150 and changed[:, 1].max() < 100


def test_rendered_pictures_are_used_where_the_environment_renders():
    env = Coloured(render_mode="rgb_array")
    camera = Camera(gym.wrappers.TimeLimit(env, 10))
    env.step(None)
    assert (camera.frame() == 1).all()
    assert camera.frame(caption="x").shape == (40, 60, 3)


def test_a_mujoco_scene_is_drawn_and_never_rendered(monkeypatch):
    env = gym.make("Ant-v5", render_mode="rgb_array")
    env.reset(seed=0)
    monkeypatch.setattr(env.unwrapped, "render", lambda: pytest.fail("it was rendered"))
    assert Camera(env, width=80, height=80).frame().shape == (80, 80, 3)
    env.close()


def test_an_environment_without_any_picture_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match="render_mode='rgb_array'"):
        Camera(Coloured())


@pytest.mark.parametrize(("env_id", "mode"), [("HalfCheetah-v5", None), ("Coloured-v0", "rgb_array")])
def test_environments_are_made_with_rendering_where_there_is_nothing_to_draw(monkeypatch, env_id, mode):
    monkeypatch.setitem(gym.registry, "Coloured-v0", gym.envs.registration.EnvSpec("Coloured-v0", Coloured))
    env = make_rendered_env(env_id, max_episode_steps=7)
    assert env.render_mode == mode and env.spec.max_episode_steps == 7
    env.close()


def test_an_environment_that_cannot_render_is_made_and_refused_by_the_camera():
    class Blind(Coloured):
        def __init__(self):
            super().__init__()

    with pytest.raises(RuntimeError, match="render_mode='rgb_array'"):
        Camera(make_rendered_env(Blind))


def test_an_environment_that_renders_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(Coloured, "render", lambda self: None)
    with pytest.raises(RuntimeError, match="rendered no picture, but NoneType"):
        Camera(Coloured(render_mode="rgb_array")).frame()


def test_an_unknown_environment_stays_an_error():
    with pytest.raises(gym.error.UnregisteredEnv):
        make_rendered_env("NoSuchEnvironment-v0")


def test_a_program_without_opengl_that_never_closes_its_environment_ends_silently():
    script = (
        "from didi_gym.evaluation.video import Camera, make_rendered_env\n"
        "env = make_rendered_env('HalfCheetah-v5'); env.reset(seed=0)\n"
        "camera = Camera(env); print(camera.frame().shape[2])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MUJOCO_GL": "disabled"}
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert (process.stdout, process.stderr) == ("3\n", "")


def decoded(file):
    """All frames of a video, `(n, height, width, 3)`."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="videos need didi-gym[viz]")
    reader = imageio_ffmpeg.read_frames(str(file))
    about = next(reader)
    frames = [np.frombuffer(raw, np.uint8).reshape(about["size"][1], about["size"][0], 3) for raw in reader]
    return np.stack(frames), about


@pytest.mark.parametrize(("size", "stored"), [((48, 64), (48, 64)), ((47, 63), (48, 64))])
def test_a_video_decodes_to_the_frames_that_were_written(tmp_path, size, stored):
    levels = np.arange(0, 240, 20, dtype=np.uint8)
    written = [np.full((*size, 3), level, np.uint8) for level in levels]
    file = write_video(iter(written), tmp_path / "deeper" / "video.mp4", fps=10)
    frames, about = decoded(file)
    assert frames.shape == (12, *stored, 3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - levels).max() < 6
    assert about["fps"] == pytest.approx(10)
    assert about["pix_fmt"].startswith("yuv420p") and about["codec"] == "h264"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame"),
        ([np.zeros((8, 8), np.uint8)], "frame 0"),
        ([np.zeros((8, 8, 3), np.float32)], "float32"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], "frame 1"),
    ],
)
def test_frames_that_do_not_fit_are_named_and_leave_no_file(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(frames, tmp_path / "video.mp4", fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "act"),
    [
        ("imageio_ffmpeg", lambda file: write_video([np.zeros((8, 8, 3), np.uint8)], file, fps=1)),
        ("PIL", lambda file: Camera(Coloured(render_mode="rgb_array")).frame(caption="x")),
    ],
)
def test_without_the_viz_extra_the_error_names_it(tmp_path, monkeypatch, module, act):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"didi-gym\[viz\]"):
        act(tmp_path / "video.mp4")
