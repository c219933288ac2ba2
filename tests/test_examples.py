"""The scripts of ``examples/`` run, with tiny sizes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # in which dataclasses look for annotations
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_change_of_trained_policies_is_found(seed: int) -> None:
    example = script("measure_planted")
    found = example.compared(seed, 1, 3000, 2000, 400, 1024)
    assert found.null.beyond and found.features.columns[found.attribution.carriers()[0]] == "y force"
    assert found.attribution.by_column()[found.features.columns.index("y force")] > 0.8
    root = found.regions.root
    assert found.regions.names[root.feature] == "x" and root.threshold == pytest.approx(example.BORDER, abs=0.25)


@pytest.mark.slow  # what it counts and prints is tested below
def test_a_run_of_the_papers_size_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers", reason="the extra images is not installed")
    example = script("paper_on_gpus")
    with torch.random.fork_rng():
        parts = example.main(tmp_path / "quick.csv", quick=True)
    read = example.read(tmp_path / "quick.csv")
    assert example.table(read) in capsys.readouterr().out
    assert [part.units for part in read] == [10**6, 10**5, 4703 * 50, 3000]
    assert all(min(part.flops, part.operations, part.cpu_seconds, part.gpu_bytes) > 0 for part in parts)


def test_flops_of_a_layer_are_known() -> None:
    example = script("paper_on_gpus")
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3)
    counts = example.Counting()
    with counts:
        layer(x).sum().backward()
    assert counts.flops == 2 * (2 * 7 * 3 * 5)  # forward, and the gradient of the weight


def test_hours_are_arithmetic_or_launches() -> None:
    """10^3 units of 78 TFLOP take a second each at a quarter of 312 TFLOP/s."""
    example = script("paper_on_gpus")
    part = example.Part("planner", 1000, 1, 78e12, 1.0, 0.0, 0.0, 0.0, "")
    assert part.hours(1) == pytest.approx(1000 / 3600) and part.hours(8) == pytest.approx(125 / 3600)
    bound = example.Part("planner", 1000, 1, 1.0, 1e6, 0.0, 0.0, 0.0, "")
    assert bound.hours(1) == bound.hours(8) == pytest.approx(8000 / 3600)


def test_the_page_shows_the_table_of_the_file() -> None:
    example, docs = script("paper_on_gpus"), EXAMPLES.parent / "docs"
    parts = example.read(docs / "results" / "paper_on_gpus.csv")
    assert example.table(parts) in (docs / "guides" / "many_gpus.md").read_text(encoding="utf-8")
    assert {part.date for part in parts} == {"2026-11-29"}
