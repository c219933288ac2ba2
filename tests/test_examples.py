"""The scripts of ``examples/`` run, with tiny sizes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pair_of_diffuser_is_trained_then_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = script("diffuser_pair")
    with torch.random.fork_rng():
        measured = example.main(tmp_path, quick=True)
        again = example.main(tmp_path, quick=True)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "expert", "reward.zip"}
    assert [path.name for path in (tmp_path / "expert").iterdir()] == ["state_3.pt"]
    assert measured == again  # of the checkpoints that were written
    printed = capsys.readouterr().out
    assert len(measured) == 10 and all(f"{name}: {value:.3f}" in printed for name, value in measured.items())


def test_the_energy_distance_of_the_script() -> None:
    example = script("diffuser_pair")
    one, same, far = torch.randn(3, 2000, 2, generator=torch.Generator().manual_seed(0))
    assert abs(example.energy_distance(one, same)) < 0.01
    # far apart 2 ‖d‖ less the two inner distances, E‖X - X'‖ = √π of two unit Gaussians in the plane
    assert example.energy_distance(one, far + 100) == pytest.approx(2 * 100 * 2**0.5 - 2 * torch.pi**0.5, rel=0.01)
