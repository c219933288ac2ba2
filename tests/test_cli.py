"""The program: the main job command by command, help, exit codes, and one line for every fault."""

import itertools
import json
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import few_own_samples
from helpers.program import invoke
from helpers.recipes import ENV_ID, NETWORK, RECIPE, build_zoo, quick_training, recipe, toml
from stable_baselines3 import PPO

from rrpolicy import DiffusionAgent, Normalizer, RelativeReward, zoo
from rrpolicy.cli import collect_commands, commands, main
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.version import __version__
from rrpolicy.evaluation import read_results
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.rl.on_reward import Settings

UNITS = Normalizer.from_bounds((-np.ones(3), np.ones(3)), (-np.ones(1), np.ones(1)))
COMMANDS = [
    ["demo"],
    ["collect"],
    ["train"],
    ["extract"],
    ["enjoy"],
    ["record-video"],
    ["plot", "heat-map"],
    ["plot", "plans"],
    ["plot", "learning-curve"],
    ["benchmark", "latency"],
    ["zoo", "list"],
    ["zoo", "info"],
    ["zoo", "table"],
    ["zoo", "build"],
    ["reproduce", "maze2d"],
    ["reproduce", "locomotion"],
    ["reproduce", "images"],
    ["train-on-reward"],
    ["images", "record"],
    ["images", "extract"],
    ["images", "score"],
    ["images", "sample"],
    ["images", "audit"],
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(tmp_path_factory.mktemp("built") / "zoo")


@pytest.fixture(autouse=True)
def tiny_zoo(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(built))
    monkeypatch.setenv(RECIPES_VARIABLE, str(built / "recipes"))


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(arguments)
    assert result.exit_code == code, result.output
    return result


def fault(*arguments: object) -> str:
    """What the program says about bad input: one line on stderr, nothing like a traceback."""
    result = run(*arguments, code=1)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rrpolicy: error: "), result.stderr
    assert "Traceback" not in result.output
    return lines[0]


# ---------------------------------------------------------------------- the main job, step by step


def test_the_main_job_step_by_step(tmp_path: Path) -> None:
    base_data, expert_data, base, expert, reward, pictures = (
        tmp_path / name for name in ("base-data", "expert-data", "base", "expert", "reward", "pictures")
    )
    for _ in range(2):  # a second run over the first
        run("collect", "--env", ENV_ID, "--n-transitions", 1000, "--out", base_data)
    run("collect", "--goal", "3,1", "--n-transitions", 1000, "--out", expert_data)
    assert {row["metric"]: row["mean"] for row in read_results(base_data)}["n_transitions"] == 1000
    run("train", "--dataset", base_data, "--out", base, "--checkpoint-freq", 5, "--no-progress")
    run("train", "--dataset", base_data, "--out", base, "--resume", "--no-progress")
    run(
        "train", "--dataset", expert_data, "--init-from", base, "--out", expert, "--no-progress", "--total-timesteps", 4
    )
    names = {"agent.zip", "checkpoint.zip", "progress.csv", "run.json", "results.json"}
    assert {path.name for path in base.iterdir()} == {path.name for path in expert.iterdir()} == names
    assert zoo.load_agent(expert).num_timesteps == 4
    pair = ("--base", base / "agent.zip", "--expert", expert)
    result = run("extract", *pair, "--dataset", base_data, "--dataset", expert_data, "--out", reward, "--no-progress")
    assert "r2_guided_t9" in result.output and "that were held out" in result.output
    wanted = {"r2_window_noised_t0", "goal_error_cells", "range_window", "range_step", "value_targets_clipped"}
    assert {row["metric"] for row in read_results(reward)} >= wanted
    assert zoo.load_reward(reward).fit is not None
    shown = run("zoo", "info", reward / "reward.zip").output
    assert "range of ρ, step head" in shown and "goal: [3.0, 1.0]" in shown
    assert zoo.card(reward)["goal"] == [3.0, 1.0]  # known from the expert's data

    result = run(
        "enjoy",
        base,
        "--reward",
        reward,
        "--scale",
        2,
        "--n-candidates",
        2,
        "--n-episodes",
        2,
        "--out",
        tmp_path / "enjoyed",
        "--no-progress",
    )
    rows = read_results(tmp_path / "enjoyed")
    assert [(row["agent"], row["metric"], row["n"]) for row in rows] == [
        ("base-steered", "success_rate", 2),
        ("base-steered", "return", 2),
    ]
    assert "base-steered" in result.output and "95 % interval" in result.output

    run("enjoy", base, "--n-candidates", 2, "--n-episodes", 2, "--out", tmp_path / "doubting", "--no-progress")
    assert {row["agent"] for row in read_results(tmp_path / "doubting")} == {"base"}

    video = run("record-video", expert, "--n-steps", 4, "--out", pictures)
    assert "5 pictures, drawn by maze drawing" in video.output
    run("plot", "heat-map", reward, "--out", pictures)
    run("plot", "plans", expert, "--n-plans", 3, "--out", pictures)
    run("plot", "learning-curve", base, expert / "progress.csv", "--out", pictures)
    assert {path.name for path in pictures.iterdir()} == {
        "expert.mp4",
        "heat_map.png",
        "plans-expert.png",
        "learning_curve.png",
        "results.json",
    }


def test_extraction_without_data_uses_the_samples_of_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_own_samples(monkeypatch)
    asked: list[object] = []
    extracted = commands.experiments.extract

    def noted(*arguments: Any, **how: Any) -> Any:
        asked.append(arguments[3]["extraction"])
        return extracted(*arguments, **how)

    monkeypatch.setattr(commands.experiments, "extract", noted)
    run(
        "extract",
        "--base",
        f"{ENV_ID}/base",
        "--expert",
        f"{ENV_ID}/expert-3-1",
        "--out",
        tmp_path,
        "--total-timesteps",
        3,
        "--no-progress",
    )
    assert {path.name for path in tmp_path.iterdir()} == {"reward.zip", "results.json"}
    assert [section["total_timesteps"] for section in asked] == [3]


def test_an_agent_collects_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths, too
    result = run("collect", "--agent", f"{ENV_ID}/base", "--n-transitions", 50, "--out", "rollouts")
    assert "50 transitions in 1 episodes" in result.output
    assert "spans 57 environment steps" in fault("train", "--dataset", "rollouts", "--out", "run")


def test_a_maze_of_ones_own(tmp_path: Path) -> None:
    maze = tmp_path / "maze.txt"
    maze.write_text("######\n#....#\n######\n")
    data, agent = tmp_path / "data", tmp_path / "agent"
    run("collect", "--maze-map", maze, "--goal", "1,4", "--n-transitions", 1000, "--out", data)
    run("train", "--dataset", data, "--out", agent, "--no-progress")  # the maze is known from the data
    assert zoo.card(agent)["maze"] == ["######", "#....#", "######"]
    run("enjoy", agent, "--n-episodes", 1, "--no-progress")  # and then from the agent
    error = fault("train", "--dataset", data, "--maze-map", _file(tmp_path, "#####\n#...#\n#####"), "--out", agent)
    assert "was collected in the maze" in error


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(commands.Demo, "run", lambda self: seen.append(self))
    run("demo", "--goal", "3,1", "--seed", 4, "--n-episodes", 3, "--jobs", 1, "--out", tmp_path, "--no-progress")
    assert seen[0].jobs == Jobs(1) and seen[0].task.goal == (3.0, 1.0) and seen[0].seed == 4 and seen[0].n_episodes == 3
    assert seen[0].recipe == RECIPE and not seen[0].from_scratch and seen[0].out == tmp_path


def test_another_environment_gets_plain_defaults(tmp_path: Path) -> None:
    assert "--agent is needed" in fault("collect", "--env", "Pendulum-v1", "--out", tmp_path)
    assert "made for the observation space" in fault("enjoy", f"{ENV_ID}/base", "--env", "Pendulum-v1")


# ---------------------------------------------------------------------- zoo and benchmark


def test_zoo_commands(built: Path, tmp_path: Path) -> None:
    listed = run("zoo", "list", "--out", tmp_path / "listed").output
    assert [line.split()[:2] for line in listed.splitlines()] == [
        [f"{ENV_ID}/base", "agent"],
        [f"{ENV_ID}/expert-3-1", "agent"],
        [f"{ENV_ID}/reward-3-1", "reward"],
    ]
    assert json.loads((tmp_path / "listed" / "entries.json").read_text()) == zoo.entries()
    shown = run("zoo", "info", f"{ENV_ID}/expert-3-1").output
    assert "goal: [3.0, 1.0]" in shown and "success_rate" in shown
    assert run("zoo", "table").output == zoo.table()
    (built / "README.md").write_text("old")
    run("zoo", "table", "--write")
    assert (built / "README.md").read_text() == zoo.table()
    built_again = run("zoo", "build", ENV_ID, "--goals", "3,1", "--date", "2026-01-02", "--no-progress").output
    assert built_again.count("there already") == 3


def test_training_on_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Settings(PPO, 4, 8, {"n_steps": 2, "batch_size": 8, "n_epochs": 1})
    quick_training(monkeypatch, {"PPO": quick}, 500)
    for _ in range(2):  # a second run over the first
        run(
            "train-on-reward",
            "--reward",
            f"{ENV_ID}/reward-3-1",
            "--true-reward",
            "--algorithm",
            "ppo",
            "--total-timesteps",
            16,
            "--n-episodes",
            2,
            "--out",
            tmp_path,
            "--no-progress",
        )
    rows = read_results(tmp_path)
    metrics = ["success_rate", "return", "decisions", "cpu_seconds"]
    agents = ["PPO-reward-3-1", "PPO-true-reward"]
    wanted = [(agent, metric) for agent in agents for metric in metrics]
    assert [(row["agent"], row["metric"]) for row in rows] == [*wanted, (agents[0], "return_over_true")]
    assert all(row["mean"] == 16 for row in rows if row["metric"] == "decisions")
    for agent in agents:
        names = [path.name for path in (tmp_path / agent).iterdir()]
        assert sorted(name.split(".")[0] for name in names) == ["events", "policy", "progress"]
    assert "success_rate" in run("enjoy", tmp_path / agents[0], "--n-episodes", 1, "--no-progress").output


def test_an_empty_zoo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(RECIPES_VARIABLE, str(tmp_path / "recipes"))
    assert "is empty" in run("zoo", "list").output


def test_benchmark_latency(tmp_path: Path) -> None:
    output = run("benchmark", "latency", "--n-repeats", 2, "--out", tmp_path).output
    assert "step_ratio" in output
    assert {row["agent"] for row in read_results(tmp_path)} == {"guided", "reference"}


# ---------------------------------------------------------------------- faults


def _file(folder: Path, text: str, name: str = "file.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _truncated(folder: Path) -> Path:
    content = zoo.find(f"{ENV_ID}/base").read_bytes()
    (folder / "short.zip").write_bytes(content[:5000])
    return folder / "short.zip"


FAULTS: list[tuple[str, Callable[[Path], list[object]], str]] = [
    ("no such archive", lambda p: ["enjoy", p / "gone.zip"], "no such archive"),
    ("not in the zoo", lambda p: ["enjoy", f"{ENV_ID}/expert-3-3"], "neither a file nor a name in the zoo; it has"),
    ("truncated archive", lambda p: ["enjoy", _truncated(p)], "truncated"),
    ("not an archive", lambda p: ["enjoy", _file(p, "x", "a.zip")], "not a zip file"),
    ("a reward acts", lambda p: ["enjoy", f"{ENV_ID}/reward-3-1"], "is a reward, wanted an agent"),
    ("an agent rewards", lambda p: ["plot", "heat-map", f"{ENV_ID}/base", "--out", p], "wanted 'reward'"),
    ("scale without reward", lambda p: ["enjoy", f"{ENV_ID}/base", "--scale", 1], "needs --reward"),
    ("wrong environment", lambda p: ["demo", "--env", "PointMaze_X-v3", "--out", p], "env_id must be one of"),
    ("goal in a wall", lambda p: ["demo", "--goal", "2,2", "--out", p], "lies in a wall"),
    ("goal outside", lambda p: ["collect", "--goal", "7,2", "--out", p], "lies outside the maze"),
    ("goal without an expert", lambda p: ["demo", "--goal", "1,1", "--out", p], "it has 3,1"),
    ("ragged maze", lambda p: ["demo", "--maze-map", _file(p, "####\n#..#\n###\n"), "--out", p], "row 2 has 3 columns"),
    ("open maze", lambda p: ["collect", "--maze-map", _file(p, "###\n#..\n###\n"), "--out", p], "open border"),
    ("no maze", lambda p: ["demo", "--env", "Pendulum-v1", "--out", p], "the demo needs a PointMaze"),
    ("no maze file", lambda p: ["demo", "--maze-map", p / "gone.txt", "--out", p], "could not read"),
    ("no dataset", lambda p: ["train", "--dataset", p / "gone", "--out", p], "neither a file, nor a folder"),
    ("empty dataset", lambda p: ["train", "--dataset", p, "--out", p], "holds no Minari dataset"),
    ("no recipe", lambda p: ["demo", "--recipe", p / "gone.toml", "--out", p], "no such recipe"),
    ("no log", lambda p: ["plot", "learning-curve", p / "gone.csv", "--out", p], "gone.csv"),
    ("out is a file", lambda p: ["collect", "--n-transitions", 9, "--out", _file(p, "")], "is a file"),
    ("nothing to train on", lambda p: ["train-on-reward", "--out", p], "give --reward, --true-reward or both"),
    ("no goal to train for", lambda p: ["train-on-reward", "--true-reward", "--out", p], "--goal is needed"),
    (
        "training without a maze",
        lambda p: ["train-on-reward", "--true-reward", "--env", "Pendulum-v1", "--out", p],
        "is not a PointMaze",
    ),
    ("no such card", lambda p: ["zoo", "info", "../base"], "is not in the zoo"),
]


@pytest.mark.parametrize(("arguments", "said"), [entry[1:] for entry in FAULTS], ids=[entry[0] for entry in FAULTS])
def test_bad_input_is_one_line(arguments: Callable[[Path], list[object]], said: str, tmp_path: Path) -> None:
    assert said in fault(*arguments(tmp_path))


def test_an_agent_that_does_not_say_where_it_belongs(tmp_path: Path) -> None:
    zoo.load_agent(f"{ENV_ID}/base").save(tmp_path / "bare.zip")
    assert "--env is needed" in fault("enjoy", tmp_path / "bare.zip")
    run("enjoy", tmp_path / "bare.zip", "--env", ENV_ID, "--goal", "3,1", "--n-episodes", 1, "--no-progress")


def test_a_sum_of_rewards_is_not_exported_alone_and_carries_no_card(tmp_path: Path) -> None:
    (2 * zoo.load_reward(f"{ENV_ID}/reward-3-1")).save(tmp_path / "sum.zip")
    assert "is a sum or an ensemble of rewards" in fault("export", tmp_path / "sum.zip", "--out", tmp_path / "sum.onnx")
    assert run("zoo", "info", tmp_path / "sum.zip").stdout == f"{tmp_path / 'sum.zip'} carries no card\n"


def test_another_maze_is_warned_about_by_both_names(tmp_path: Path) -> None:
    walls = _file(tmp_path, "#######\n#.....#\n#######\n")
    reward, base = f"{ENV_ID}/reward-3-1", f"{ENV_ID}/base"
    drawn = run("plot", "heat-map", reward, "--env", "PointMaze_Large-v3", "--out", tmp_path)
    assert f"{reward} was made for {ENV_ID} and is used in PointMaze_Large-v3" in drawn.stderr
    assert "of the maze lies beyond what the reward was made for: x, y within" in drawn.stderr
    ran = run("enjoy", base, "--maze-map", walls, "--n-episodes", 1, "--no-progress")
    assert f"{base} was made for {ENV_ID} and is used in {ENV_ID} with the maze ####### #.....# #######" in ran.stderr
    filmed = run("record-video", base, "--env", "PointMaze_Medium-v3", "--n-steps", 1, "--out", tmp_path)
    assert f"{base} was made for {ENV_ID} and is used in PointMaze_Medium-v3" in filmed.stderr
    home = _file(tmp_path, "#####\n#...#\n###.#\n#...#\n#####\n")
    for same in ((), ("--env", "PointMaze_UMazeDense-v3"), ("--maze-map", home)):
        assert "was made for" not in run("plot", "heat-map", reward, *same, "--out", tmp_path).stderr


def test_an_environment_of_other_widths_is_an_error(tmp_path: Path) -> None:
    said = fault("plot", "heat-map", _of_a_pendulum(tmp_path), "--env", ENV_ID, "--out", tmp_path)
    assert "the reward was made for observations of width 3, the environment has" in said


def _of_a_pendulum(folder: Path) -> Path:
    agent = DiffusionAgent("MlpPolicy", "Pendulum-v1", horizon=2, normalizer=UNITS, policy_kwargs=NETWORK)
    RelativeReward.for_model(agent, window_kwargs=NETWORK, step_kwargs=NETWORK).save(folder / "pendulum.zip")
    return folder / "pendulum.zip"


def test_an_agent_steered_already_is_not_steered_again(tmp_path: Path) -> None:
    pipe = zoo.load(f"{ENV_ID}/base"), zoo.load(f"{ENV_ID}/reward-3-1")
    commands.experiments.steer(*pipe, RECIPE).save(tmp_path / "planner.zip")
    arguments = ["enjoy", tmp_path / "planner.zip", "--env", ENV_ID, "--n-episodes", 1, "--no-progress"]
    run(*arguments)
    assert "is steered already" in fault(*arguments, "--reward", f"{ENV_ID}/reward-3-1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--goal", "1"],
        ["demo", "--goal", "a,b"],
        ["demo", "--goal", "inf,1"],
        ["demo", "--seed", "-1"],
        ["enjoy"],
        ["dance"],
        ["enjoy", "x", "--scale", "-1"],
        ["collect", "--n-transitions", "0", "--out", "x"],
        ["zoo", "build", ENV_ID],
        ["zoo", "build", "x", "--goals", "1;2"],
        ["demo", "--nonsense"],
        ["enjoy", "x", "--seed", str(2**70)],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments, code=2)
    assert "Traceback" not in result.output and "Usage:" in result.stderr


@pytest.mark.parametrize(("raised", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_give_exit_codes(raised: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **more: Any) -> None:
        signal.raise_signal(raised)

    monkeypatch.setattr(collect_commands, "collect_point_maze", stop)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["collect", "--out", str(tmp_path / "data")])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == code
    assert not (tmp_path / "data").exists()


def test_training_that_is_stopped_keeps_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("collect", "--n-transitions", 1000, "--out", tmp_path / "data")
    clip, calls = torch.nn.utils.clip_grad_norm_, itertools.count()

    def clipped(*arguments: Any) -> Any:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return clip(*arguments)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", clipped)
    arguments = ["train", "--dataset", tmp_path / "data", "--out", tmp_path / "run", "--no-progress"]
    result = run(*arguments, code=143)
    assert result.stderr == "rrpolicy: stopped by SIGTERM; what was finished is kept\n"
    assert DiffusionAgent.load(tmp_path / "run" / "checkpoint.zip").num_timesteps == 4
    monkeypatch.undo()


def test_a_loss_that_is_not_finite_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("collect", "--n-transitions", 1000, "--out", tmp_path / "data")
    wild = _file(tmp_path, toml(recipe(base={"learning_rate": 1e30})), "wild.toml")
    error = fault("train", "--dataset", tmp_path / "data", "--recipe", wild, "--out", tmp_path, "--no-progress")
    assert "at step" in error or "non-finite" in error


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    text = run(*command, "--help").output
    assert "Example" in text and f"rrpolicy {' '.join(command)}" in text


def test_help_lists_the_commands() -> None:
    text = run("-h").output
    assert all(command[0] in text for command in COMMANDS)
    assert run("--version").output == f"rrpolicy {__version__}\n"


def test_the_module_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["rrpolicy", "zoo", "info", "nothing"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # signals are still needed here
    monkeypatch.setattr("threading.excepthook", threading.excepthook)
    with pytest.raises(SystemExit) as left:
        runpy.run_module("rrpolicy", run_name="__main__")
    said = capsys.readouterr()
    assert left.value.code == 1 and said.out == ""
    assert said.err.startswith("rrpolicy: error: 'nothing' is not in the zoo") and said.err.count("\n") == 1
