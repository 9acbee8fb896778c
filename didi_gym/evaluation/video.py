"""Pictures and videos of environments, on any machine: no OpenGL is used.

`Camera` draws a MuJoCo scene itself, from positions and sizes alone, so that it looks the same everywhere. Of any other
environment it shows what `env.render()` shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from didi_gym.evaluation.renderer import Scene, mujoco_of, with_caption
from didi_gym.wrappers.make import make_low_level


class Camera:
    """Takes pictures of an environment.

    Args:
        env: an environment with a MuJoCo scene, or one made with `render_mode="rgb_array"`.
        width: of drawn pictures, in pixels; rendered ones have the size that the environment gives them.
        height: of drawn pictures, in pixels.
        follow: drawn pictures stay with the moving body (True) or show the whole scene (False); None shows the whole
            scene where it has walls.

    Raises:
        RuntimeError: there is neither a MuJoCo scene to draw nor a rendered picture.

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
        self._scene: Scene | None = None
        if mujoco_of(env) is None and env.render_mode != "rgb_array":
            raise RuntimeError(
                f"cannot take pictures of {env}: its render_mode is {env.render_mode!r} and it holds no MuJoCo scene "
                "to draw; make it with render_mode='rgb_array'"
            )

    def frame(self, caption: str = "", path: np.ndarray | None = None) -> np.ndarray:
        """The environment as it is now, with a caption in the lower left corner.

        Args:
            caption: some words.
            path: `(n, 2)` points of the floor, joined by a line: where an agent means to go. Drawn scenes only.

        Returns:
            `(height, width, 3)` uint8.

        Raises:
            RuntimeError: the environment rendered no picture, or a path is given and there is no scene to draw it in.
            ValueError: a path of another shape.
        """
        simulation = mujoco_of(self.env)
        if simulation is None and path is not None:
            raise RuntimeError(f"{self.env} holds no MuJoCo scene that a path could be drawn in")
        if path is not None and (np.ndim(path) != 2 or np.shape(path)[1] != 2):
            raise ValueError(f"a path must have shape (n, 2), got {np.shape(path)}")
        picture = self._rendered() if simulation is None else self._drawn(*simulation, path)
        return with_caption(picture, caption) if caption else picture

    def _rendered(self) -> np.ndarray:
        picture: Any = self.env.render()
        if not isinstance(picture, np.ndarray):
            raise RuntimeError(f"{self.env} rendered no picture, but {type(picture).__name__}")
        return np.array(picture, dtype=np.uint8)

    def _drawn(self, model: Any, data: Any, path: np.ndarray | None) -> np.ndarray:
        if self._scene is None or self._scene.model is not model:
            self._scene = Scene(model, data, *self._size, self._follow)
        return self._scene.draw(data, path)


def make_rendered_env(env_id: str | EnvSpec, **kwargs: Any) -> gym.Env:
    """Make an environment for a `Camera`: with `render_mode="rgb_array"` unless its scene is MuJoCo's.

    Args:
        env_id: anything `gymnasium.make` takes; ids of gymnasium-robotics need no import.
        **kwargs: for `gymnasium.make`.
    """
    env = make_low_level(env_id, **kwargs)
    if mujoco_of(env) is not None:
        return env
    try:
        rendered = make_low_level(env_id, render_mode="rgb_array", **kwargs)
    except Exception:  # of whatever kind an environment without that mode raises; `Camera` says what is missing
        return env
    env.close()
    return rendered


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
        output_params=["-crf", "27", "-movflags", "+faststart"],
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
