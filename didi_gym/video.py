"""Pictures and videos of environments, on machines with OpenGL and on those without.

`Camera` shows what `env.render()` shows where that works. Where it does not (MuJoCo without OpenGL, an environment made
without a render mode) it draws the MuJoCo scene itself, from positions and sizes alone.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from didi_gym.drawing import Scene, mujoco_of, with_caption
from didi_gym.registration import make_low_level

_PROBE_SECONDS = 60
_PROBE = """
import os
import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
picture = OffScreenViewer(model, data, 64, 64).render("rgb_array")
os._exit(0 if picture.any() else 1)  # at once: OpenGL contexts complain when the interpreter takes them down
"""


class Camera:
    """Takes pictures of an environment.

    Args:
        env: any environment; made with `render_mode="rgb_array"` its own pictures are used where rendering works.
        width: of drawn pictures, in pixels; rendered ones have the size that the environment gives them.
        height: of drawn pictures, in pixels.
        follow: drawn pictures stay with the moving body (True) or show the whole scene (False); None shows the whole
            scene where it has walls.

    Raises:
        RuntimeError: there is neither a rendered picture nor a MuJoCo scene to draw.

    Example:
        >>> env = make_rendered_env("Ant-v5")
        >>> camera, frames = Camera(env), []
        >>> env.reset(seed=0)
        >>> for _ in range(100):
        ...     env.step(env.action_space.sample())
        ...     frames.append(camera.frame(caption="random actions"))
        >>> write_video(frames, "ant.mp4", fps=20)
    """

    def __init__(self, env: gym.Env, *, width: int = 480, height: int = 480, follow: bool | None = None) -> None:
        self.env = env
        self._size, self._follow = (width, height), follow
        simulation = mujoco_of(env)
        self._renders = env.render_mode == "rgb_array"
        if self._renders and simulation is not None:
            self._renders = opengl_backend() is not None
        self._closes_at_exit = False
        self._scene: Scene | None = None
        if not self._renders and simulation is None:
            raise RuntimeError(
                f"cannot take pictures of {env}: its render_mode is {env.render_mode!r} and it holds no MuJoCo scene "
                "to draw; make it with render_mode='rgb_array'"
            )

    @property
    def is_drawing(self) -> bool:
        """Whether the pictures are drawn here, not rendered by the environment."""
        return not self._renders

    def frame(self, caption: str = "") -> np.ndarray:
        """The environment as it is now, with a caption in the lower left corner.

        Returns:
            `(height, width, 3)` uint8.
        """
        picture = self._rendered() if self._renders else None
        if picture is None:
            picture = self._drawn()
        return with_caption(picture, caption) if caption else picture

    def _rendered(self) -> np.ndarray | None:
        try:
            picture = self.env.render()
        except Exception:
            if mujoco_of(self.env) is None:
                raise
            picture = None
        self._renders = isinstance(picture, np.ndarray)
        if self._renders and not self._closes_at_exit:
            # An OpenGL context that outlives MuJoCo's own exit handler, which the first picture registers, complains.
            self._closes_at_exit = True
            atexit.register(_close, weakref.ref(self.env))
        return np.array(picture, dtype=np.uint8) if self._renders else None

    def _drawn(self) -> np.ndarray:
        simulation = mujoco_of(self.env)
        if simulation is None:
            raise RuntimeError(f"{self.env} rendered no picture and holds no MuJoCo scene to draw")
        if self._scene is None or self._scene.model is not simulation[0]:
            self._scene = Scene(*simulation, *self._size, self._follow)
        return self._scene.draw(simulation[1])


def make_rendered_env(env_id: str, *, opengl: bool = True, **kwargs: Any) -> gym.Env:
    """Make an environment for a `Camera`: with `render_mode="rgb_array"` where that works here, else without.

    Args:
        env_id: anything `gymnasium.make` takes; ids of gymnasium-robotics need no import.
        opengl: Whether MuJoCo may render; drawn scenes follow the body and look the same on every machine.
        **kwargs: for `gymnasium.make`.
    """
    try:
        env = make_low_level(env_id, render_mode="rgb_array", **kwargs)
    except gym.error.NameNotFound:
        raise
    except Exception:
        return make_low_level(env_id, **kwargs)
    if mujoco_of(env) is not None and not (opengl and opengl_backend() is not None):
        env.close()
        return make_low_level(env_id, **kwargs)
    return env


@functools.lru_cache(maxsize=1)
def opengl_backend() -> str | None:
    """The way MuJoCo can render on this machine, found by trying; None where there is none.

    Each try is a process of its own: a failing one may print, hang or crash. A backend chosen by the environment
    variable MUJOCO_GL is the only one tried; otherwise the one found is put there, for all that render after.

    Returns:
        "default", or the value of MUJOCO_GL that works ("egl", "osmesa").
    """
    chosen = os.environ.get("MUJOCO_GL")
    for backend in (chosen,) if chosen else ("default", "egl", "osmesa"):
        environment = os.environ | ({} if backend == "default" else {"MUJOCO_GL": backend})
        with contextlib.suppress(subprocess.TimeoutExpired):
            command = [sys.executable, "-c", _PROBE]
            probe = subprocess.run(command, env=environment, capture_output=True, timeout=_PROBE_SECONDS, check=False)
            if probe.returncode == 0:
                if backend != "default":
                    os.environ["MUJOCO_GL"] = backend
                return backend
    return None


def write_video(frames: Iterable[np.ndarray], file: str | Path, fps: float) -> Path:
    """Write an H.264 mp4 that every browser plays (yuv420p; a side of odd length grows by one pixel).

    Args:
        frames: pictures `(height, width, 3)` uint8, all of one size; an iterator is never held in memory whole.
        file: where to write.
        fps: frames per second.

    Returns:
        The file written.

    Raises:
        ImportError: imageio-ffmpeg is not installed.
        ValueError: no frame, or frames of another shape or type.
    """
    try:
        from imageio_ffmpeg import write_frames
    except ImportError as error:
        raise ImportError("videos need imageio with ffmpeg: pip install 'didi-gym[viz]'") from error
    pictures = _even_frames(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("a video needs at least one frame, got none")
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        quality=None,
        output_params=["-crf", "20", "-movflags", "+faststart"],
    )
    try:
        writer.send(None)
        writer.send(first.tobytes())
        for picture in pictures:
            writer.send(picture.tobytes())
    except BaseException:
        writer.close()
        path.unlink(missing_ok=True)
        raise
    writer.close()
    return path


def _even_frames(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for index, picture in enumerate(frames):
        picture = np.asarray(picture)
        shape = shape or picture.shape
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.shape != shape:
            raise ValueError(
                f"frame {index}: expected (height, width, 3) uint8 of one size, here {shape}, got {picture.shape} "
                f"{picture.dtype}"
            )
        yield np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")


def _close(env: weakref.ref[gym.Env]) -> None:
    alive = env()
    if alive is not None:
        alive.close()
