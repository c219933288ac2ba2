"""Public names are imported when they are used, and are the same objects as in the modules that they come from."""

import subprocess
import sys

import pytest

import rrpolicy
from rrpolicy import evaluation, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent


def test_every_public_name_is_there() -> None:
    assert all(getattr(rrpolicy, name) is not None for name in rrpolicy.__all__)
    assert rrpolicy.DiffusionAgent is DiffusionAgent and set(rrpolicy.__all__) <= set(dir(rrpolicy))
    assert {name for name in dir(rrpolicy) if not name.startswith("_")} == set(rrpolicy.__all__) - {"__version__"}
    assert rrpolicy.zoo is zoo and rrpolicy.evaluate is evaluation.evaluate
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rrpolicy.nothing


def test_the_package_alone_is_light_and_knows_its_modules() -> None:
    script = """
import sys, rrpolicy
print("torch" in sys.modules, rrpolicy.zoo.__name__, "torch" in sys.modules)
action, _ = rrpolicy.zoo.load("PointMaze_UMaze-v3/base").predict([0.0] * 4)
print(len(action), "torch._dynamo" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "rrpolicy.zoo", "True", "2", "False"]  # acting needs no compiler
