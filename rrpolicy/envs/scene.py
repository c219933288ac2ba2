"""Pictures of any MuJoCo simulation without OpenGL: ``MjvScene`` lists the geoms and the camera, PIL draws them.
Geoms are convex, so each is the convex hull of its projected surface points, painted from far to near."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2
SKY_TOP, SKY_BOTTOM = (150, 182, 214), (236, 241, 244)
LIGHT = np.array([0.35, -0.5, 0.8]) / np.linalg.norm([0.35, -0.5, 0.8])
SHADOW = (30, 34, 44, 70)
DARK_SQUARE = np.array([40, 52, 72])
GROUND_RADIUS = 14  # squares of the checkered floor around the point looked at
_NEAR = 0.05
_BOX_FACES = (  # corners, axis and sign of the outward normal
    ((0, 1, 3, 2), 0, -1),
    ((4, 5, 7, 6), 0, 1),
    ((0, 1, 5, 4), 1, -1),
    ((2, 3, 7, 6), 1, 1),
    ((0, 2, 6, 4), 2, -1),
    ((1, 3, 7, 5), 2, 1),
)
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_HULL_DIRECTIONS = np.stack([np.cos(np.arange(40) * np.pi / 20), np.sin(np.arange(40) * np.pi / 20)])
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_Type = mujoco.mjtGeom
_Colour = tuple[int, ...]


class SceneRenderer:
    """
    Draws the state of a simulation.

    :param model: MuJoCo's model
    :param size: width and height of a picture in pixels, even numbers
    :param camera: ``trackbodyid``, ``distance``, ``lookat``, ``azimuth``, ``elevation``, as in gymnasium's
        ``default_camera_config``; a tracked body stays in the middle, at the height where it began
    :raises ValueError: if a side is odd or below 32 pixels, or the camera has unknown keys
    """

    def __init__(
        self, model: mujoco.MjModel, size: tuple[int, int] = (480, 480), camera: Mapping[str, Any] | None = None
    ) -> None:
        if min(size) < 32 or any(side % 2 for side in size):
            raise ValueError(f"size must be two even numbers of at least 32 pixels, got {size!r}")
        camera = dict(camera or {})
        known = {"type", "trackbodyid", "distance", "lookat", "azimuth", "elevation"}
        if set(camera) - known:
            raise ValueError(f"camera must hold only {sorted(known)}, got also {sorted(set(camera) - known)}")
        self._model = model
        self._size = size
        self._scene = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom + 200))
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.distance = camera.get("distance", 1.5 * model.stat.extent)
        self._camera.azimuth = camera.get("azimuth", 90.0)
        self._camera.elevation = camera.get("elevation", -20.0)
        self._tracked = int(camera.get("trackbodyid", _tracked_body(model)))
        start = mujoco.MjData(model)
        mujoco.mj_forward(model, start)
        middle = start.subtree_com[self._tracked] if self._tracked >= 0 else model.stat.center
        self._camera.lookat[:] = middle if self._tracked >= 0 else camera.get("lookat", middle)
        self._view = _View(size)

    @classmethod
    def from_env(cls, env: gym.Env, size: tuple[int, int] = (480, 480)) -> SceneRenderer:
        """
        A renderer of an environment's MuJoCo model.

        :param env: a gymnasium MuJoCo environment, wrapped or not
        :param size: width and height in pixels
        :return: a renderer with the environment's own camera
        :raises ValueError: if the environment has no MuJoCo model
        """
        base = _mujoco_base(env)
        renderer = getattr(base, "mujoco_renderer", None)
        return cls(base.model, size, getattr(renderer, "default_cam_config", None))

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """
        A picture of a state.

        :param data: the state to draw; only read
        :return: picture ``(height, width, 3)`` uint8
        """
        if self._tracked >= 0:
            self._camera.lookat[:2] = data.subtree_com[self._tracked][:2]  # not the height: the ground shall not bob
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
        self._view.begin(self._scene.camera[0])
        geoms = [geom for geom in self._scene.geoms[: self._scene.ngeom] if geom.rgba[3] > 0.02]
        planes = [geom for geom in geoms if geom.type == _Type.mjGEOM_PLANE]
        solids = [geom for geom in geoms if geom.type != _Type.mjGEOM_PLANE]
        for plane in planes:
            _draw_plane(self._view, plane, np.asarray(self._camera.lookat))
        solids.sort(key=lambda geom: -self._view.depth(geom.pos))
        if planes:
            self._draw_shadows(solids, float(planes[0].pos[2]))
        for geom in solids:
            self._draw_solid(geom)
        return np.asarray(self._view.image.resize(self._size, Image.Resampling.BOX))

    def _draw_shadows(self, solids: list[Any], ground: float) -> None:
        """What moves throws a shadow straight down, which shows how high it is."""
        for geom in solids:
            if geom.category != mujoco.mjtCatBit.mjCAT_DYNAMIC.value or geom.pos[2] < ground:
                continue
            points = self._surface(geom, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
            points[:, 2] = ground
            self._view.polygon(points, SHADOW, hull=True)

    def _draw_solid(self, geom: Any) -> None:
        """One geom with a little light on it."""
        view = self._view
        if geom.type == _Type.mjGEOM_HFIELD:
            for points, normal in _field_patches(self._model, geom, view):
                view.polygon(points, _shade(geom.rgba, normal))
            return
        if geom.type == _Type.mjGEOM_BOX:
            corners = _surface_to_world(geom, _CORNERS * geom.size)
            for indices, axis, sign in _BOX_FACES:
                normal = geom.mat[:, axis] * sign
                if normal @ (view.position - corners[indices[0]]) > 0:
                    view.polygon(corners[list(indices)], _shade(geom.rgba, normal))
            return
        points = self._surface(geom, view.right, view.up)
        view.polygon(points, _shade(geom.rgba, None, 0.62), hull=True)
        middle = points.mean(axis=0)
        shift = 0.12 * np.abs(points - middle).max() * (view.up - 0.4 * view.right)
        inner = middle + 0.94 * (points - middle), middle + 0.72 * (points - middle) + 0.7 * shift
        view.polygon(inner[0], _shade(geom.rgba, None, 0.9), hull=True)
        if geom.rgba[3] > 0.99:
            view.polygon(inner[1], _shade(geom.rgba, None, 1.03), hull=True)

    def _surface(self, geom: Any, right: np.ndarray, up: np.ndarray) -> np.ndarray:
        """Points ``(n, 3)`` whose hull is the geom's outline when seen along right x up."""
        kind, size = geom.type, geom.size
        axis = np.asarray(geom.mat)[:, 2]
        disc = _CIRCLE @ np.stack([right, up])
        if kind == _Type.mjGEOM_SPHERE:
            return geom.pos + size[0] * disc
        if kind == _Type.mjGEOM_CAPSULE:
            return np.concatenate([geom.pos + sign * size[2] * axis + size[0] * disc for sign in (-1.0, 1.0)])
        if kind in (_Type.mjGEOM_ARROW, _Type.mjGEOM_ARROW1, _Type.mjGEOM_ARROW2, _Type.mjGEOM_LINE):
            reach = geom.pos + size[2] * axis
            return np.concatenate([geom.pos + 0.5 * size[0] * disc, reach[None]])
        if kind in (_Type.mjGEOM_MESH, _Type.mjGEOM_SDF) and geom.dataid >= 0:
            mesh = geom.dataid // 2  # even: the mesh, odd: its convex hull
            first, count = self._model.mesh_vertadr[mesh], self._model.mesh_vertnum[mesh]
            return _surface_to_world(geom, self._model.mesh_vert[first : first + count])
        if kind == _Type.mjGEOM_ELLIPSOID:
            return _ellipsoid(geom, right, up)
        if kind == _Type.mjGEOM_CYLINDER:
            rim = np.concatenate([np.hstack([_CIRCLE, np.full((24, 1), sign)]) for sign in (-1.0, 1.0)])
            return _surface_to_world(geom, rim * (size[0], size[1], size[2]))
        return _surface_to_world(geom, _CORNERS * size)


class SceneRender(gym.Wrapper):
    """
    Gives any gymnasium MuJoCo environment ``rgb_array`` pictures without OpenGL.

    :param env: an environment made with ``render_mode=None``
    :param size: width and height in pixels
    :raises ValueError: if the environment has no MuJoCo model
    """

    def __init__(self, env: gym.Env, size: tuple[int, int] = (480, 480)) -> None:
        super().__init__(env)
        self._base = _mujoco_base(env)
        self._renderer = SceneRenderer.from_env(env, size)

    @property
    def render_mode(self) -> str | None:  # type: ignore[override]
        """Always ``"rgb_array"``."""
        return "rgb_array"

    def render(self) -> np.ndarray:
        """The current state, ``(height, width, 3)`` uint8."""
        return self._renderer.render(self._base.data)


class _View:
    """A pinhole camera and the picture it paints."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.canvas = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self._sky = _sky(self.canvas)
        self.position = self.forward = self.right = self.up = np.zeros(3)
        self._focal = 1.0

    def begin(self, camera: Any) -> None:
        """An empty picture seen by MuJoCo's camera."""
        self.image = self._sky.copy()
        self._opaque = ImageDraw.Draw(self.image)  # twice as fast as the one that blends
        self._blended = ImageDraw.Draw(self.image, "RGBA")
        axes = camera.pos, camera.forward, camera.up
        self.position, self.forward, self.up = (np.array(axis, dtype=np.float64) for axis in axes)
        self.right = np.cross(self.forward, self.up)
        self._focal = self.canvas[1] / 2 * camera.frustum_near / camera.frustum_top

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Distance along the viewing direction."""
        return (points - self.position) @ self.forward

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Canvas pixels ``(..., 2)`` of points ``(..., 3)`` in front of the camera."""
        offset = points - self.position
        scale = self._focal / np.maximum(offset @ self.forward, _NEAR)
        x = self.canvas[0] / 2 + scale * (offset @ self.right)
        return np.stack([x, self.canvas[1] / 2 - scale * (offset @ self.up)], axis=-1)

    def paint(self, pixels: np.ndarray, colour: _Colour) -> None:
        """Fill a polygon of canvas pixels ``(n, 2)`` with red, green, blue, alpha."""
        draw = self._opaque if colour[3] == 255 else self._blended
        draw.polygon(pixels.ravel().tolist(), fill=colour if colour[3] < 255 else colour[:3])

    def polygon(self, points: np.ndarray, colour: _Colour, hull: bool = False) -> None:
        """Fill points ``(n, 3)`` in their order or as their hull; nothing when they reach behind the camera."""
        if self.depth(points).min() < _NEAR:
            return
        pixels = self.pixels(points)
        if hull:  # the extreme points of 40 directions: exact to a fraction of a pixel, and no loop
            extreme = (pixels @ _HULL_DIRECTIONS).argmax(axis=0)
            pixels = pixels[extreme[np.append(True, extreme[1:] != extreme[:-1])]]
        if len(pixels) > 2:
            self.paint(pixels, colour)


def _mujoco_base(env: gym.Env) -> Any:
    """The object that holds model and data."""
    base: Any = env.unwrapped
    base = getattr(base, "point_env", base)
    if not isinstance(getattr(base, "model", None), mujoco.MjModel):
        raise ValueError(f"env must be a MuJoCo environment with a model, got {env!r}")
    return base


def _tracked_body(model: mujoco.MjModel) -> int:
    """The first body if the model has a camera called "track" (gymnasium's locomotion), else none."""
    return 1 if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0 else -1


def _sky(canvas: tuple[int, int]) -> Image.Image:
    """A vertical gradient."""
    level = np.linspace(0.0, 1.0, canvas[1])[:, None, None]
    rows = np.array(SKY_TOP) * (1 - level) + np.array(SKY_BOTTOM) * level
    return Image.fromarray(np.broadcast_to(rows, (canvas[1], canvas[0], 3)).round().astype(np.uint8))


def _shade(rgba: np.ndarray, normal: np.ndarray | None, brightness: float = 1.0) -> _Colour:
    """Colour of a surface, by Lambert's law when its normal is known."""
    if normal is not None:
        brightness = 0.55 + 0.5 * max(0.0, float(normal @ LIGHT))
    return (*(int(min(255.0, 255.0 * float(value) * brightness)) for value in rgba[:3]), int(255 * float(rgba[3])))


def _surface_to_world(geom: Any, points: np.ndarray) -> np.ndarray:
    """Local to world coordinates."""
    return points @ np.asarray(geom.mat, dtype=np.float64).T + geom.pos


def _ellipsoid(geom: Any, right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Its outline is an ellipse: the directions' support points."""
    directions = (_CIRCLE @ np.stack([right, up])) @ np.asarray(geom.mat, dtype=np.float64)
    support = directions * geom.size**2
    return _surface_to_world(geom, support / np.linalg.norm(directions * geom.size, axis=1, keepdims=True))


def _field_patches(model: mujoco.MjModel, geom: Any, view: _View) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Quadrilaterals of a coarse height field, far ones first, with their normals."""
    field = geom.dataid
    rows, columns = int(model.hfield_nrow[field]), int(model.hfield_ncol[field])
    first = int(model.hfield_adr[field])
    size = model.hfield_size[field]
    r, c = (np.unique(np.linspace(0, n - 1, min(n, 25)).round().astype(np.int64)) for n in (rows, columns))
    height = model.hfield_data[first : first + rows * columns].reshape(rows, columns)[np.ix_(r, c)] * size[2]
    x, y = np.meshgrid((2 * c / (columns - 1) - 1) * size[0], (2 * r / (rows - 1) - 1) * size[1])
    grid = _surface_to_world(geom, np.stack([x, y, height], axis=-1))
    patches = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2).reshape(-1, 4, 3)
    normals = np.cross(patches[:, 1] - patches[:, 0], patches[:, 3] - patches[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    for index in np.argsort(-view.depth(patches.mean(axis=1))):
        yield patches[index], normals[index]


def _draw_plane(view: _View, plane: Any, lookat: np.ndarray) -> None:
    """A checkered floor near the point looked at, of one colour further off."""
    mat, position = np.asarray(plane.mat, dtype=np.float64), np.asarray(plane.pos, dtype=np.float64)
    if mat[:, 2] @ (view.position - position) <= 0:
        return  # seen from below it is invisible, as in MuJoCo
    size = np.where(np.asarray(plane.size[:2]) > 0, plane.size[:2], 100.0)
    square = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]) * np.append(size, 0.0)
    outline = _clip_near(square @ mat.T + position, view)
    colour = _shade(plane.rgba, mat[:, 2], 1.0)
    if len(outline) > 2:
        view.paint(view.pixels(outline), colour)
    middle = np.round((lookat - position) @ mat)[:2]
    span = np.arange(-GROUND_RADIUS, GROUND_RADIUS)
    x, y = (grid.ravel() for grid in np.meshgrid(span + middle[0], span + middle[1]))
    keep = ((x + y) % 2 == 0) & (x >= -size[0]) & (x + 1 <= size[0]) & (y >= -size[1]) & (y + 1 <= size[1])
    corner = np.stack([x[keep], y[keep], np.zeros(keep.sum())], axis=1)
    patches = (corner[:, None] + np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])) @ mat.T + position
    patches = patches[(view.depth(patches) > _NEAR).all(axis=1)]
    distance = np.linalg.norm((patches.mean(axis=1) - lookat)[:, :2], axis=1)
    weight = np.clip(0.24 * (1 - distance / GROUND_RADIUS), 0, None)[:, None]  # fades with the distance
    colours = ((1 - weight) * colour[:3] + weight * DARK_SQUARE).astype(np.int64)
    for pixels, shade in zip(view.pixels(patches)[weight[:, 0] > 0], colours[weight[:, 0] > 0].tolist(), strict=True):
        view.paint(pixels, (*shade, colour[3]))


def _clip_near(polygon: np.ndarray, view: _View) -> np.ndarray:
    """The part of a polygon ``(n, 3)`` in front of the camera (Sutherland-Hodgman)."""
    depths = view.depth(polygon) - 2 * _NEAR
    kept: list[np.ndarray] = []
    for index in range(len(polygon)):
        here, following = depths[index - 1], depths[index]
        if (here > 0) != (following > 0):
            kept.append(polygon[index - 1] + (polygon[index] - polygon[index - 1]) * here / (here - following))
        if following > 0:
            kept.append(polygon[index])
    return np.array(kept).reshape(-1, 3)
