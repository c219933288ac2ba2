"""What is told of a dataset before training: shares and counts that are known beforehand, and one line for each fault,
in Python, by ``rrpolicy check-data`` and by ``rrpolicy train``."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from helpers.program import invoke
from helpers.recipes import ENV_ID, toml

from rrpolicy import TrajectoryDataset
from rrpolicy.data import save_minari
from rrpolicy.data.report import actions_outside, report
from rrpolicy.evaluation import read_results

N = 1000
EVEN = np.linspace(-1, 1, N)


def made(*columns: Any, actions: Any = EVEN, **fields: Any) -> TrajectoryDataset:
    """A dataset of such observations, each an array or what all rows hold."""
    observations = np.stack([np.broadcast_to(column, N) for column in columns or (EVEN,)], axis=1).astype(np.float32)
    return TrajectoryDataset.from_arrays(observations, np.asarray(actions, np.float32).reshape(N, -1), **fields)


def box(low: float, high: float, width: int = 1) -> spaces.Box:
    return spaces.Box(low, high, (width,), np.float32)


def faults(dataset: TrajectoryDataset, *about: Any, **more: Any) -> list[str]:
    return report(dataset, *about, **more).faults


# ---------------------------------------------------------------------- shares and counts


def test_actions_outside_the_space_are_counted_by_row() -> None:
    actions = np.zeros((N, 2))
    actions[:30], actions[20:50, 1] = 1.5, -3.0
    data = made(actions=actions)
    assert actions_outside(data, box(-1, 1, 2)) == pytest.approx(0.05)
    assert actions_outside(data, spaces.Box(np.float32([-1, -3]), np.float32([1, 1.5]))) == pytest.approx(0.03)
    assert actions_outside(data, box(-np.inf, np.inf, 2)) == 0
    with pytest.raises(ValueError, match=r"action_space has shape \(1,\), wanted \(2,\)"):
        actions_outside(data, box(-1, 1))


@pytest.mark.parametrize("bound", [0.1, 0.4, 1000.1])
def test_float32_puts_nothing_outside(bound: float) -> None:
    edge = np.resize([bound, -bound], N)
    assert actions_outside(made(actions=edge), spaces.Box(-bound, bound, (1,), np.float64)) == 0
    assert actions_outside(made(actions=1.0001 * edge), spaces.Box(-bound, bound, (1,), np.float64)) == 1


def test_shares_beyond_clip_are_those_of_the_distribution() -> None:
    normal = np.random.default_rng(0).normal(3.0, 2.0, N)
    found = report(made(normal, actions=normal)).beyond_clip
    assert found["limits"] == (0, 0) and found["isotropic"] == (0, 0)
    assert found["gaussian"] == pytest.approx((0.134, 0.134), abs=0.02)  # of a Gaussian beyond 1.5 σ
    assert report(made(normal), clip=0.5).beyond_clip["limits"][0] == pytest.approx(0.37, abs=0.1)
    rare = np.where(np.arange(N) % 10 == 0, 2.0, 0.0)
    assert report(made(EVEN, actions=rare)).beyond_clip["gaussian"] == pytest.approx((0.05 + 0.067, 0.134), abs=0.02)


def test_ends_and_returns() -> None:
    over, cut = np.arange(N) == 199, np.arange(N) == 499
    data = made(rewards=np.ones(N), terminals=over, timeouts=cut)
    found = report(data, env_id="Hopper-v5")
    assert found.ends == {"terminated": 1, "truncated": 1, "unfinished": 1} and found.n_inferred is None
    assert found.returns is not None and found.returns.tolist() == [200, 300]  # the last one is not known
    assert found.scores is not None and found.scores[0] == pytest.approx(100 * (200 + 20.272305) / (3234.3 + 20.272305))
    text = "\n".join(found.lines())
    assert "1000 rows in 3 episodes of 200 to 500 (mean 333.3) rows" in text
    assert "ends: 1 terminated, 1 truncated, 1 unfinished" in text and "return: 200 to 300, mean 250, n 2" in text
    untold = made(rewards=np.ones(N), episode_lengths=[200, 800])
    found = report(untold, time_limit=500)
    assert found.ends is None and found.n_inferred == 1 and found.scores is None
    assert "ends: not told, 1 count as terminated by their lengths" in "\n".join(found.lines())
    assert report(untold.with_rewards(None), time_limit=500).returns is None


# ---------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (0.5 + 1e-6 * EVEN, "observations 1 is almost constant .* of which float32 has 52 values: subtract an offset"),
        (1.7e9 + 500 * EVEN, "observations 1 is almost constant .* of which float32 has 9 values"),
        (-100 + 0.04 * EVEN, r"observations 1 is almost constant \(-100\.04\d* to -99\.9\d*\)"),
        (np.where(np.arange(N) == 7, 1e4, EVEN), "observations 1 has outliers: 98 % of its values take 0.02% of"),
    ],
)
def test_columns_that_spoil_training_are_named(column: Any, words: str) -> None:
    (fault,) = faults(made(EVEN, column))
    assert re.match(words, fault), fault


def test_columns_that_are_only_odd_are_told() -> None:
    rare = (np.arange(N) % 200 == 0).astype(float)  # a contact now and then
    heavy = np.where(np.arange(N) % 50 == 0, 20 * EVEN, EVEN)
    found = report(made(3.0, rare, heavy, 100 + EVEN))
    assert found.faults == []
    notes = [line.split("  ")[-1] for line in found.lines() if line.startswith("observations")]
    assert notes[0] == "constant" and notes[2].endswith("% outliers") and "0.99" not in notes[1]
    assert faults(made(actions=np.full(N, 0.5))) == ["actions never change"]
    assert found.columns[0][:5] == ("observations 0", 3, 3, 3, 0)
    assert report(made(0.0)).columns[0].steps == 1 and report(made(EVEN)).columns[0].steps > 2e9


def test_what_does_not_fit_the_environment_is_named() -> None:
    data = made(EVEN, 5 * EVEN, actions=2 * EVEN)
    assert faults(data, box(-5, 5, 2), box(-2, 2)) == []
    assert faults(data, box(-5, 5, 3), box(-2, 2, 2)) == [
        "observations have 2 columns, the environment's have 3",
        "actions have 1 columns, the environment's have 2",
    ]
    first, second = faults(data, box(-4, 4, 2), box(-1, 1))
    assert first == (
        "observations: 20.00% of the rows lie outside the environment's space, most in column 1, which has -5 to 5"
    )
    assert second.startswith("actions: 50.00% of the rows lie outside") and second.endswith("which has -2 to 2")


# ---------------------------------------------------------------------- the command line


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(arguments)
    assert result.exit_code == code, result.output
    return result


def pendulum(actions: Any = 2 * EVEN, **fields: Any) -> TrajectoryDataset:
    return made(np.cos(EVEN), np.sin(EVEN), 8 * EVEN, actions=actions, rewards=-np.ones(N), **fields)


def test_the_command_reports_and_writes_rows(tmp_path: Path) -> None:
    data = pendulum(timeouts=np.arange(N) % 200 == 199)
    folder = save_minari(data, tmp_path / "set", env_spec="Pendulum-v1")
    result = run("check-data", folder, "--out", tmp_path / "out")
    assert result.stderr == "" and "0 terminated, 5 truncated, 0 unfinished" in result.stdout
    assert "environment: Pendulum-v1" in result.stdout and "nothing that would spoil training" in result.stdout
    rows = {(row["agent"], row["metric"]): row for row in read_results(tmp_path / "out")}
    assert rows["dataset", "n_truncated"]["mean"] == 5 and rows["dataset", "n_faults"]["mean"] == 0
    assert (rows["dataset", "return"]["mean"], rows["dataset", "return"]["n"]) == (-200, 5)
    assert rows["dataset", "actions_outside"]["mean"] == 0 and rows["observations 2", "max"]["mean"] == 8
    assert rows["dataset", "beyond_clip_limits"]["mean"] == 0


def test_each_fault_is_a_line_and_the_exit_code_says_so(tmp_path: Path) -> None:
    folder = save_minari(pendulum(3 * EVEN, episode_lengths=[100, 900]), tmp_path / "set", env_spec="Pendulum-v1")
    result = run("check-data", folder, code=1)
    assert result.stderr.splitlines() == [
        "rrpolicy: error: actions: 33.40% of the rows lie outside the environment's space, most in column 0, "
        "which has -3 to 3"
    ]
    assert "ends: not told, 1 count as terminated" in result.stdout
    lines = run("check-data", folder, "--env", "MountainCarContinuous-v0", code=1).stderr.splitlines()
    assert len(lines) == 2 and "observations have 3 columns, the environment's have 2" in lines[0]
    unnamed = save_minari(pendulum(3 * EVEN), tmp_path / "unnamed")
    assert "environment: not known, --env compares with one" in run("check-data", unnamed).stdout
    assert "33.40%" in run("check-data", unnamed, "--env", "Pendulum-v1", code=1).stderr


def test_what_cannot_be_read_or_made_is_one_line(tmp_path: Path) -> None:
    folder = save_minari(pendulum(), tmp_path / "set")
    for arguments, words in (((tmp_path / "none.hdf5",), "neither a file"), ((folder, "--env", "None-v0"), "None-v0")):
        (line,) = run("check-data", *arguments, code=1).stderr.splitlines()
        assert line.startswith("rrpolicy: error: ") and words in line


def test_training_warns_and_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (N, 4))
    observations[:, 3] = 7 + 1e-4 * observations[:, 3]
    data = TrajectoryDataset.from_arrays(observations, rng.uniform(-2, 2, (N, 2)), episode_lengths=[N])
    (tmp_path / "recipe.toml").write_text(toml())
    arguments = [
        "--dataset",
        save_minari(data, tmp_path / "set"),
        "--env",
        ENV_ID,
        "--total-timesteps",
        1,
        "--recipe",
        tmp_path / "recipe.toml",
        "--no-progress",
        "--out",
        tmp_path / "run",
    ]
    lines = run("train", *arguments).stderr.splitlines()
    assert [line.split(":")[1] for line in lines] == [" warning"] * 2
    assert "observations 3 is almost constant" in lines[0] and "of the rows lie outside" in lines[1]
    assert (tmp_path / "run" / "agent.zip").exists()
