"""Planners and rewards as ONNX files, which act and score without torch; everything here needs the extra ``fast``."""

from typing import TYPE_CHECKING

from rrpolicy.common.lazy import lazy

if TYPE_CHECKING:
    from rrpolicy.export.actors import OnnxActor
    from rrpolicy.export.files import export_onnx, planner_file
    from rrpolicy.export.loading import load_onnx
    from rrpolicy.export.policy import OnnxPolicy
    from rrpolicy.export.rewards import OnnxReward

__all__ = ["OnnxActor", "OnnxPolicy", "OnnxReward", "export_onnx", "load_onnx", "planner_file"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "OnnxActor": "actors",
        "OnnxPolicy": "policy",
        "OnnxReward": "rewards",
        "export_onnx": "files",
        "load_onnx": "loading",
        "planner_file": "files",
    },
)
