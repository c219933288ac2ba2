"""Two processes of `accelerate launch` on the loopback interface: what they learn is what one process learns."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import launched
from helpers.agents import make_agent, same_tensors
from helpers.commands import commands, prepare, run
from helpers.threads import run_together

from rrpolicy import DiffusionAgent
from rrpolicy.cli import main as program
from rrpolicy.common.archive import read_archive
from rrpolicy.common.processes import Processes, current, join, networks_of
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.recorded import RecordedPairs

TESTS = Path(__file__).parent
TOLERANCE = 1e-6
LAUNCH = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
"""Of the page, and what accelerate would warn about where it was never configured."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process and what two processes leave."""
    pytest.importorskip("accelerate", reason="the extra scale is not installed")
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    lines = commands("guides/many_gpus.md", "accelerate launch --multi_gpu --num_processes 2 -m rrpolicy")
    assert len(lines) == 5
    launched.learn_all(one)
    for folder in (one, two):
        prepare(folder)
    run(one, lines)
    (two / "commands").write_text("\n".join(lines))
    script = str(TESTS / "helpers" / "launched.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, script, str(two), str(two / "commands")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = subprocess.run(launch, cwd=two, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (two / "rank-0-of-2").exists() and (two / "rank-1-of-2").exists()
    return one, two


def differences(one: Path, two: Path) -> dict[str, float]:
    """Largest difference of each group of tensors in two archives, whose other values are equal."""
    mine, other = read_archive(one), read_archive(two)
    assert mine.tensors.keys() == other.tensors.keys()
    found = {}
    for group, tensors in mine.tensors.items():
        assert tensors.keys() == other.tensors[group].keys()
        pairs = [(value.double(), other.tensors[group][name].double()) for name, value in tensors.items()]
        found[group] = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agent", "extractor", "discriminator"])
def test_two_processes_learn_what_one_learns(folders: tuple[Path, Path], name: str) -> None:
    one, two = (folder / f"{name}.zip" for folder in folders)
    assert {group: value for group, value in differences(one, two).items() if value > TOLERANCE} == {}
    mine, other = (read_archive(path).config for path in (one, two))
    assert mine["num_timesteps"] == other["num_timesteps"] and mine["best_step"] == other["best_step"] > 0
    assert mine["best_loss"] == pytest.approx(other["best_loss"], abs=TOLERANCE)


@pytest.mark.slow
def test_a_network_with_attention_predicts_the_same(folders: tuple[Path, Path]) -> None:
    """Ten times as far as the others: Adam makes whole steps of gradients that are little more than rounding."""
    one, two = (ImageDiffusion.load(folder / "images.zip") for folder in folders)
    before = launched.learners()["images"]
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(16, *one.event_shape, generator=generator)
    t = torch.randint(one.process.n_diffusion_steps, (16,), generator=generator)
    predicted = [model.eps(x_t, t) for model in (before, one, two)]
    far, learned = ((predicted[1] - other).abs().max() for other in (predicted[2], predicted[0]))
    assert far <= 10 * TOLERANCE < 1e-3 < learned


@pytest.mark.slow
def test_all_processes_have_the_same_weights(folders: tuple[Path, Path]) -> None:
    first, second = (read_archive(folders[1] / f"{name}.zip").tensors for name in ("images", "second"))
    assert same_tensors(first, second)


@pytest.mark.slow
def test_one_process_goes_on_with_the_checkpoint_of_two(folders: tuple[Path, Path], tmp_path: Path) -> None:
    agent = DiffusionAgent.load(folders[1] / "stopped.zip")
    assert agent.num_timesteps == launched.STOPPED
    rest = launched.STEPS - launched.STOPPED
    agent._total_timesteps = launched.STEPS
    launched.learn("agent", agent, rest, reset_num_timesteps=False, checkpoint_path=tmp_path / "rest.zip")
    assert max(differences(folders[0] / "agent.zip", tmp_path / "rest.zip").values()) <= TOLERANCE


@pytest.mark.slow
def test_commands_leave_what_one_process_leaves(folders: tuple[Path, Path]) -> None:
    one, two = folders
    files = {path.relative_to(one) for path in one.glob("runs/**/*") if path.is_file()}
    assert files == {path.relative_to(two) for path in two.glob("runs/**/*") if path.is_file()}
    archives = [path for path in files if path.suffix == ".zip"]
    images = [path for path in archives if path.parent.name == "image-reward"]
    assert len(archives) == 7 and len(images) == 2
    pictures = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    scores = [ImageReward.load(folder / "runs" / "image-reward" / "reward.zip").predict(pictures) for folder in folders]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5, abs=1e-5) and scores[0].std() > 1e-2
    for path in set(archives) - set(images):  # whose weights differ where they do nothing, as in any deep network
        far = differences(one / path, two / path)  # Adam makes steps of a gradient that is rounding: 4e-6 was found
        assert {group: value for group, value in far.items() if value > 10 * TOLERANCE} == {}, path
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert shards and all((one / path).read_bytes() == (two / path).read_bytes() for path in shards)
    logs = [(folder / "runs" / "base" / "progress.csv").read_text().splitlines() for folder in folders]
    assert len(logs[0]) == len(logs[1]) > 2
    assert len(RecordedPairs.open(two / "runs" / "pairs")) == 32


# ---------------------------------------------------------------------- two threads
# Exact and cheap: what accelerate exchanges between processes goes through memory.


FEW = ("agent", "extractor")  # of two networks, and of one that is differentiated twice
SLICED = [pytest.param(name, 3, marks=[pytest.mark.slow] * (name not in FEW)) for name in launched.learners()]
TWO = [pytest.param(name, 2, marks=pytest.mark.slow) for name in launched.learners()]


@pytest.mark.parametrize(("name", "n"), [*SLICED, *TWO])
def test_slices_give_what_the_batch_gives(name: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = launched.learn(name, launched.learners()[name])
    several = [launched.learners()[name] for _ in range(n)]

    def learn(rank: int) -> Any:
        return launched.learn(name, several[rank], checkpoint_path=tmp_path / f"{rank}.zip")

    run_together(learn, monkeypatch, n)
    assert [path.name for path in tmp_path.glob("*.zip")] == ["0.zip"]  # the first one writes
    mine = [tensors(learner) for learner in (alone, *several)]
    assert all(same_tensors(mine[1], other) for other in mine[2:])
    far = {key: float((value - mine[1][key]).abs().max()) for key, value in mine[0].items()}
    idle = ("to_k.bias", "conv1.weight") if name == "images" else ()  # gradients that are little more than rounding
    assert {key: value for key, value in far.items() if value > TOLERANCE and not key.endswith(idle)} == {}
    assert alone.best_step == several[0].best_step and alone.best_loss == pytest.approx(several[0].best_loss, abs=1e-6)


def tensors(learner: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in learner.module.state_dict().items() if value.is_floating_point()}


def test_all_stop_when_one_wants_to(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = [make_agent(batch_size=4) for _ in range(2)]

    def learn(rank: int) -> Any:
        return launched.learn("agent", agents[rank], callback=lambda *_: rank == 0 or agents[1].num_timesteps < 3)

    assert [agent.num_timesteps for agent in run_together(learn, monkeypatch)] == [3, 3]


def test_different_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = [make_agent(seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="the processes begin with different weights"):
        run_together(lambda rank: launched.learn("agent", agents[rank]), monkeypatch)


# ---------------------------------------------------------------------- one process


def test_one_process_shares_nothing() -> None:
    join()  # nothing was launched
    alone = current()
    assert (alone.rank, alone.n, alone.is_main) == (0, 1, True) and alone == Processes()
    tensor = torch.ones(2)
    assert alone.total(tensor) is tensor and alone.stop(True, 15) == (True, 15) and alone.stop(False) == (False, 0)
    network = torch.nn.Linear(1, 1)
    with alone.sharing(network):
        assert not network._forward_hooks and not network._forward_pre_hooks


def test_a_launch_that_starts_one_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="`accelerate launch --cpu` starts one process"):
        join()


def test_networks_of_a_learner_are_found_and_those_of_its_models() -> None:
    extractor = launched.learners()["extractor"]
    agents = [extractor.base, extractor.expert]
    wanted = [
        extractor.module,
        extractor.averaged,
        *(one for agent in agents for one in (agent.module, agent.averaged)),
    ]
    assert {id(one) for one in networks_of(extractor)} == {id(one) for one in wanted}


class Pretended(Processes):
    """One of two processes whose sibling has the same rows."""

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, rows])

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


def test_a_loss_without_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="the loss calls no network"), Pretended(0, 2).sharing(make_agent()):
        pass


def test_hooks_are_gone_after_a_fault_inside() -> None:
    agent, seen = make_agent(), []
    rows = torch.randn(4, 8, 6)
    together = Pretended(0, 2)
    with pytest.raises(KeyError), together.sharing(agent):
        agent.module.network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        output = agent.module.network(rows, torch.zeros(4, dtype=torch.int64))
        raise KeyError
    assert len(output) == 4 and seen == [2]  # called on a slice
    assert all(not module._forward_hooks for module in agent.module.modules())


def test_other_commands_run_in_one_process(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("rrpolicy.common.processes.current", lambda: Processes(0, 2))
    with pytest.raises(SystemExit) as left:
        program(["benchmark", "latency", "nothing"])
    assert left.value.code == 1
    assert "benchmark latency runs in one process; several share train, extract" in capsys.readouterr().err
