"""Planners and rewards as ONNX files, which act and score without torch; everything here needs the extra ``fast``."""

from typing import TYPE_CHECKING

from rrpolicy.common.lazy import lazy

if TYPE_CHECKING:
    from rrpolicy.export.files import export_onnx, planner_file
    from rrpolicy.export.policy import OnnxPolicy
    from rrpolicy.export.rewards import OnnxReward

__all__ = ["OnnxPolicy", "OnnxReward", "export_onnx", "planner_file"]

__getattr__, __dir__ = lazy(
    __name__, {"OnnxPolicy": "policy", "OnnxReward": "rewards", "export_onnx": "files", "planner_file": "files"}
)
