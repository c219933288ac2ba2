"""Environments that need nothing else of the library: the real PointMaze for any maze, its geometry, a waypoint
controller, a vectorised simulator that makes data, and pictures drawn without OpenGL."""

from typing import TYPE_CHECKING

from rrpolicy.common.lazy import lazy

if TYPE_CHECKING:
    from rrpolicy.envs.controller import PDController, WaypointController
    from rrpolicy.envs.maze import MazeGeometry
    from rrpolicy.envs.point_maze import make_point_maze
    from rrpolicy.envs.render import draw_maze
    from rrpolicy.envs.scene import SceneRender, SceneRenderer
    from rrpolicy.envs.simulator import PointMazeSimulator
    from rrpolicy.envs.vec_point_maze import PointMazeVecEnv

__all__ = [
    "MazeGeometry",
    "PDController",
    "PointMazeSimulator",
    "PointMazeVecEnv",
    "SceneRender",
    "SceneRenderer",
    "WaypointController",
    "draw_maze",
    "make_point_maze",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "MazeGeometry": "maze",
        "PDController": "controller",
        "PointMazeSimulator": "simulator",
        "PointMazeVecEnv": "vec_point_maze",
        "SceneRender": "scene",
        "SceneRenderer": "scene",
        "WaypointController": "controller",
        "draw_maze": "render",
        "make_point_maze": "point_maze",
    },
)
