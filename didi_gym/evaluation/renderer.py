"""Drawing a MuJoCo scene without OpenGL, from positions and sizes alone, and captions on pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_PLANE, _SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _BOX = 0, 2, 3, 4, 5, 6  # mjtGeom
_SLIDE = 2  # mjtJoint
_VISIBLE_GROUPS = 3  # MuJoCo shows the groups 0, 1 and 2
_FIELD_OF_VIEW = np.deg2rad(36)
_LIGHT = np.array([-0.35, -0.45, 0.82])
_SKY, _LIGHT_TILE, _DARK_TILE = np.array([[247, 249, 251], [236, 239, 243], [206, 213, 221]], dtype=np.float32)
_SLATE = np.array([0.55, 0.60, 0.67])  # what does not move is drawn mostly in this colour: the body stands out
_SHADOW = (120, 130, 142)
_TRACE, _TRACE_COLOUR = 0.005, (213, 94, 0)  # half the width of a path, in camera distances; vermillion
_SUPERSAMPLING = 2
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
_FACES = (  # corners of each face in order around it, and its outward normal
    ((0, 1, 3, 2), (-1, 0, 0)),
    ((4, 6, 7, 5), (1, 0, 0)),
    ((0, 4, 5, 1), (0, -1, 0)),
    ((2, 3, 7, 6), (0, 1, 0)),
    ((0, 2, 6, 4), (0, 0, -1)),
    ((1, 5, 7, 3), (0, 0, 1)),
)


class Scene:
    """A perspective view of a MuJoCo scene: shaded solids, far ones first, over a chequered floor with soft shadows.

    The x axis points right and y away from the viewer, as in a map. A body that cannot leave the xz plane is seen from
    the side. A mesh appears as its bounding box.
    """

    def __init__(self, model: Any, data: Any, width: int, height: int, follow: bool | None) -> None:
        self.model, self.width, self.height = model, width, height
        rgba = np.where(model.geom_matid[:, None] >= 0, _material_colours(model), model.geom_rgba)
        moves = model.body_weldid[model.geom_bodyid] != 0
        rgba[~moves, :3] = 0.2 * rgba[~moves, :3] + 0.8 * _SLATE
        shown = (rgba[:, 3] > 0) & (model.geom_group < _VISIBLE_GROUPS)
        floors = np.flatnonzero((model.geom_type == _PLANE) & (model.geom_bodyid == 0))
        self.floor = float(data.geom_xpos[floors[0], 2]) if len(floors) else None
        self.geoms = [(int(i), rgba[i]) for i in np.flatnonzero(shown & (model.geom_type != _PLANE))]
        site_shown = (model.site_rgba[:, 3] > 0) & (model.site_group < _VISIBLE_GROUPS)
        self.sites = [(int(i), model.site_rgba[i]) for i in np.flatnonzero(site_shown)]

        self.moving = np.flatnonzero(moves & (model.geom_type != _PLANE))
        walls = np.flatnonzero(shown & ~moves & (model.geom_type == _BOX))
        whole = len(walls) >= 4 if follow is None else not follow  # fewer do not enclose anything
        self.body = int(model.jnt_bodyid[0]) if model.njnt and not whole else 0
        subject = np.union1d(walls, self.moving) if whole else self.moving
        self._aim(data, subject if len(subject) else np.arange(model.ngeom), walls, whole)

    def _aim(self, data: Any, subject: np.ndarray, walls: np.ndarray, whole: bool) -> None:
        """Choose direction and distance so that the subject fills the picture."""
        at_root = self.model.jnt_bodyid == self.model.jnt_bodyid[:1]
        slides = self.model.jnt_axis[at_root & (self.model.jnt_type == _SLIDE)]
        from_side = not whole and len(slides) > 0 and bool((abs(slides[:, 1]) < 0.01).all())
        elevation = np.deg2rad(-64 if whole else -12 if from_side else -50 if len(walls) else -34)
        self.forward = np.array([0.0, np.cos(elevation), np.sin(elevation)])
        self.right = np.array([1.0, 0.0, 0.0])
        self.up = np.cross(self.right, self.forward)
        self.scale = min(self.width, self.height) / 2 / np.tan(_FIELD_OF_VIEW / 2)  # pixels

        middle, half = self._bounds(data, subject)
        corners = (_CORNERS * half).reshape(-1, 3)
        across = np.stack([abs(corners @ self.right), abs(corners @ self.up)], axis=-1)
        share = 0.96 if whole else 0.5  # of the picture; a camera that follows also shows where the body goes
        room = share * np.array([self.width, self.height]) / 2 / self.scale
        self.distance = float(np.max(across / room - (corners @ self.forward)[:, None]))
        self.offset = middle - data.xpos[self.body]
        self.target_height = float(middle[2])
        self.tile = float(4.0 ** np.round(np.log2(self.distance / 9) / 2))  # 1 m, or 4, or a quarter
        self._lay_floor()

    def _bounds(self, data: Any, subject: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Middle and half lengths of the box around geoms."""
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for geom in subject:
            centre, half = self.model.geom_aabb[geom, :3], self.model.geom_aabb[geom, 3:]
            frame = data.geom_xmat[geom].reshape(3, 3)
            corners = data.geom_xpos[geom] + (centre + _CORNERS * half) @ frame.T
            low, high = np.minimum(low, corners.min(axis=0)), np.maximum(high, corners.max(axis=0))
        return (low + high) / 2, (high - low) / 2

    def _lay_floor(self) -> None:
        """What of the floor is the same in all pictures, as the camera only moves along it: rays and fading."""
        column = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.scale
        row = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2) / self.scale
        down = self.forward[2] - row * self.up[2]  # z of the rays through each row
        eye_height = self.target_height - self.distance * self.forward[2]
        drop = np.float32(0 if self.floor is None else self.floor - eye_height)
        self.floor_rows = np.flatnonzero((down < -1e-3) & (drop < 0))
        row, down = row[self.floor_rows], down[self.floor_rows]
        depth = drop / down
        self.floor_x = depth[:, None] * column  # (rows, width), from the camera
        self.floor_y = (depth * (self.forward[1] - row * self.up[1]))[:, None]
        pixel = depth / self.scale / np.maximum(-down, 0.05)  # metres of floor under one pixel
        self.sharpness = (self.tile / np.pi / pixel)[:, None]
        fade = np.exp(-((depth / (4.5 * self.distance)) ** 2)) * np.minimum(1, self.tile / pixel / 4)
        self.dark_floor = (_SKY + fade[:, None] * (_DARK_TILE - _SKY))[:, None]  # (rows, 1, 3)
        self.light_floor = (fade[:, None] * (_LIGHT_TILE - _DARK_TILE))[:, None]  # to be added on light tiles

    def draw(self, data: Any, path: np.ndarray | None = None) -> np.ndarray:
        """The scene as it is now, `(height, width, 3)` uint8, with a path `(n, 2)` on its floor."""
        image_module, draw_module, filter_module, _ = _pillow()
        target = data.xpos[self.body] + self.offset
        target[2] = self.target_height
        self.eye = target - self.distance * self.forward

        image: Image.Image = image_module.fromarray(self._background())
        geoms = self.model.geom_type, self.model.geom_size, data.geom_xpos, data.geom_xmat
        sites = self.model.site_type, self.model.site_size, data.site_xpos, data.site_xmat
        solids = [self._solid(*geoms, *g) for g in self.geoms] + [self._solid(*sites, *s) for s in self.sites]
        solids.sort(key=lambda solid: -np.linalg.norm(solid[1].mean(axis=0) - self.eye))
        if self.floor is not None:
            mask = image_module.new("L", image.size)
            pen = draw_module.Draw(mask)
            for kind, ends, radius, *_ in solids:
                if kind == _CAPSULE:
                    self._shadow(pen, ends, radius)
            image.paste(_SHADOW, mask=mask.filter(filter_module.BoxBlur(2)))
        larger = (self.width * _SUPERSAMPLING, self.height * _SUPERSAMPLING)
        image = image.resize(larger, image_module.Resampling.NEAREST)
        pen = draw_module.Draw(image)
        nearest = 0.05 * self.distance
        if path is not None and len(path) > 1:
            self._trace(pen, np.column_stack([path, np.full(len(path), self.floor or 0.0)]), nearest)
        for kind, points, radius, frame, colour in solids:
            if self._depth(points).min() > nearest:
                paint = {_CAPSULE: self._capsule, _CYLINDER: self._cylinder, _BOX: self._box}[kind]
                paint(pen, points, radius, frame, colour)
        return np.asarray(image.reduce(_SUPERSAMPLING))

    def _background(self) -> np.ndarray:
        picture = np.broadcast_to(_SKY.astype(np.uint8), (self.height, self.width, 3)).copy()
        x, y = self.floor_x + np.float32(self.eye[0]), self.floor_y + np.float32(self.eye[1])
        columns, rows = (np.clip(np.sin(np.pi / self.tile * v) * self.sharpness, -1, 1) for v in (x, y))
        light = 0.5 + 0.5 * columns * rows  # the sign of the two waves' product is the chequer
        picture[self.floor_rows] = self.dark_floor + light[..., None] * self.light_floor
        return picture

    def _solid(self, types: Any, sizes: Any, places: Any, frames: Any, index: int, rgba: np.ndarray) -> tuple[Any, ...]:
        """(kind, defining points (n, 3), radius, frame (3, 3), colour) of a geom or site."""
        kind, size, place, frame = types[index], sizes[index], places[index], frames[index].reshape(3, 3)
        colour = 255 * (rgba[:3] * rgba[3] + (1 - rgba[3]) * 0.95)  # see-through ones are paler
        if kind in (_SPHERE, _ELLIPSOID):
            radius = size[0] if kind == _SPHERE else size.mean()
            return _CAPSULE, np.stack([place, place]), radius, frame, colour
        if kind in (_CAPSULE, _CYLINDER):
            ends = place + np.outer([-1, 1], frame[:, 2] * size[1])
            return kind, ends, size[0], frame, colour
        centre, half = (np.zeros(3), size) if kind == _BOX else np.split(self.model.geom_aabb[index], 2)
        return _BOX, place + (centre + _CORNERS * half) @ frame.T, 0.0, frame, colour

    def _depth(self, points: np.ndarray) -> np.ndarray:
        return (points - self.eye) @ self.forward

    def _project(self, points: np.ndarray, factor: float = _SUPERSAMPLING) -> np.ndarray:
        """World points `(n, 3)` -> pixels `(n, 2)`."""
        seen = points - self.eye
        plane = np.stack([seen @ self.right, -(seen @ self.up)], axis=-1) / (seen @ self.forward)[:, None]
        return factor * (np.array([self.width, self.height]) / 2 + self.scale * plane)

    def _trace(self, pen: Any, points: np.ndarray, nearest: float) -> None:
        """A line on the floor from point to point, in as far as it lies before the camera."""
        seen = points[self._depth(points) > nearest]
        pixels, radii = self._project(seen), _SUPERSAMPLING * self.scale * _TRACE * self.distance / self._depth(seen)
        for i in range(len(seen) - 1):
            _strip(pen, pixels[i : i + 2], radii[i : i + 2], tuple(_TRACE_COLOUR))

    def _shadow(self, pen: ImageDraw.ImageDraw, ends: np.ndarray, radius: float) -> None:
        above = np.maximum(ends[:, 2:] - self.floor, 0)
        ground = ends - above * _LIGHT / _LIGHT[2] * [[0.6, 0.6, 1]]
        if self._depth(ground).min() > 0.05 * self.distance:
            widths = self.scale * radius / self._depth(ground)
            _strip(pen, self._project(ground, 1), widths, 150)

    def _capsule(self, pen: Any, ends: np.ndarray, radius: float, frame: np.ndarray, colour: np.ndarray) -> None:
        pixels = self._project(ends)
        widths = _SUPERSAMPLING * self.scale * radius / self._depth(ends)
        towards_light = np.array([_LIGHT @ self.right, -(_LIGHT @ self.up)])
        levels = int(np.clip(widths.max() / 3, 4, 24))
        for part in np.linspace(1, 0.1, levels):  # ever smaller and lighter, ever nearer to the light
            shift = widths[:, None] * (1 - part) * 0.55 * towards_light
            _strip(pen, pixels + shift, widths * part, _shade(colour, 0.62 + 0.52 * (1 - part)))

    def _cylinder(self, pen: Any, ends: np.ndarray, radius: float, frame: np.ndarray, colour: np.ndarray) -> None:
        angle = np.linspace(0, 2 * np.pi, 25)
        ring = radius * (np.cos(angle)[:, None] * frame[:, 0] + np.sin(angle)[:, None] * frame[:, 1])
        near, far = ends[np.argsort(self._depth(ends))]
        lower, upper = self._project(far + ring), self._project(near + ring)
        for i, normal in enumerate(ring[:-1] / radius):
            quad = [*lower[i : i + 2], *upper[i : i + 2][::-1]]
            pen.polygon([tuple(p) for p in quad], fill=_shade(colour, 0.7 + 0.25 * (normal @ _LIGHT)))
        cap = (near - far) @ _LIGHT / max(np.linalg.norm(near - far), 1e-9)
        pen.polygon([tuple(p) for p in upper], fill=_shade(colour, 0.75 + 0.3 * cap))

    def _box(self, pen: Any, corners: np.ndarray, radius: float, frame: np.ndarray, colour: np.ndarray) -> None:
        pixels = self._project(corners)
        for face, outward in _FACES:
            normal = frame @ np.array(outward)
            if (corners[face[0]] - self.eye) @ normal < 0:  # it faces the viewer
                brightness = _shade(colour, 0.72 + 0.36 * max(normal @ _LIGHT, -0.3))
                pen.polygon([tuple(pixels[i]) for i in face], fill=brightness)


def mujoco_of(env: gym.Env) -> tuple[Any, Any] | None:
    """MuJoCo's model and data, of the environment or of one it holds (mazes); None where there is no MuJoCo."""
    base = env.unwrapped
    for holder in (base, *vars(base).values()):
        holder = holder.unwrapped if isinstance(holder, gym.Env) else holder
        model, data = getattr(holder, "model", None), getattr(holder, "data", None)
        if hasattr(model, "ngeom") and hasattr(data, "geom_xpos"):
            return model, data
    return None


def with_caption(picture: np.ndarray, caption: str) -> np.ndarray:
    """A picture `(height, width, 3)` uint8 with a caption in its lower left corner."""
    image_module, draw_module, _, font_module = _pillow()
    image = image_module.fromarray(picture)
    draw = draw_module.Draw(image, "RGBA")
    font = font_module.load_default(max(12, picture.shape[0] // 24))
    corner = (picture.shape[1] // 40, picture.shape[0] - picture.shape[0] // 40)
    left, top, right, bottom = draw.multiline_textbbox(corner, caption, font=font, anchor="ld")
    pad = picture.shape[0] // 80
    draw.rounded_rectangle((left - pad, top - pad, right + pad, bottom + pad), pad, fill=(255, 255, 255, 205))
    draw.multiline_text(corner, caption, font=font, anchor="ld", fill=(30, 34, 40, 255))
    return np.asarray(image)


def _pillow() -> tuple[Any, Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFilter, ImageFont
    except ImportError as error:
        raise ImportError("drawing needs Pillow: pip install 'didi-gym[viz]'") from error
    return Image, ImageDraw, ImageFilter, ImageFont


def _material_colours(model: Any) -> np.ndarray:
    """Colour of each geom's material, `(ngeom, 4)`; meaningless for geoms without one."""
    return model.mat_rgba[np.maximum(model.geom_matid, 0)] if model.nmat else model.geom_rgba


def _shade(colour: np.ndarray, brightness: float) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(colour * brightness, 0, 255))


def _strip(pen: Any, ends: np.ndarray, radii: np.ndarray, fill: Any) -> None:
    """Two discs and what lies between them, in pixels."""
    for (x, y), r in zip(ends, radii, strict=True):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    along = ends[1] - ends[0]
    length = np.hypot(*along)
    if length > 0:
        side = np.array([-along[1], along[0]]) / length * radii[:, None]
        pen.polygon([tuple(p) for p in (*(ends + side), *(ends - side)[::-1])], fill=fill)
