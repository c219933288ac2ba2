"""`rrpolicy collect` with agents of Stable-Baselines3, mixtures and SAC runs: what it leaves, one line for faults."""

import signal
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers.agents import make_agent, shorten
from helpers.program import invoke
from stable_baselines3 import SAC

from rrpolicy import zoo
from rrpolicy.cli import agents, collect_commands
from rrpolicy.common.archive import read_archive
from rrpolicy.data.readers import load_dataset
from rrpolicy.evaluation import read_results
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.rl.policies import load_policy
from rrpolicy.rl.replay import KIND, ReplayTraining

HOPPER = "Hopper-v5"
LIMIT = 5


def short_hopper(self: Any, render_mode: str | None = None, **more: Any) -> gym.Env:
    return gym.make(HOPPER, render_mode=render_mode)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Short episodes, an empty zoo, and a folder with an agent of Stable-Baselines3."""
    shorten(monkeypatch, HOPPER, LIMIT)
    monkeypatch.setattr("rrpolicy.experiments.task.Task.make", short_hopper)
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(RECIPES_VARIABLE, str(tmp_path / "recipes"))
    SAC("MlpPolicy", HOPPER, buffer_size=1, policy_kwargs={"net_arch": [8]}).save(tmp_path / "sac" / "Hopper-v3.zip")
    return tmp_path


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(["collect", *arguments])
    assert result.exit_code == code, result.output
    return result


def fault(*arguments: object) -> str:
    lines = [line for line in run(*arguments, code=1).stderr.splitlines() if "rrpolicy: warning: " not in line]
    assert len(lines) == 1 and lines[0].startswith("rrpolicy: error: "), lines
    return lines[0]


# ---------------------------------------------------------------------- agents


def test_a_mixture_of_agents(hopper: Path) -> None:
    sac, out = hopper / "sac" / "Hopper-v3.zip", hopper / "data"
    (hopper / "tqc").mkdir()
    (hopper / "tqc" / "tqc-Hopper-v3.zip").write_bytes(sac.read_bytes())
    arguments = [
        "--env",
        HOPPER,
        "--agent",
        f"{sac}:3",
        "--agent",
        hopper / "tqc" / "tqc-Hopper-v3.zip",
        "--seed",
        4,
        "--n-transitions",
        40,
        "--n-envs",
        2,
        "--action-noise",
        0.1,
        "--epsilon",
        0.2,
        "--out",
    ]
    for _ in range(2):  # a second run over the first
        output = run(*arguments, out).output
    assert "40 transitions in 8 episodes" in output and "normalized_score" in output
    rows = {(row["agent"], row["metric"]): row for row in read_results(out)}
    assert {agent for agent, _ in rows} == {"dataset", "sac-Hopper-v3", "tqc-Hopper-v3"}
    assert rows["sac-Hopper-v3", "return"]["n"] == 6 and rows["tqc-Hopper-v3", "normalized_score"]["n"] == 2
    data = load_dataset(out)
    first, second = data.metadata["agents"]
    assert first["algorithm"] == "sac" and first["share"] == 0.75 and first["source"] == str(sac)
    assert second["n_transitions"] == 10 and not second["normalised_observations"]
    assert rows["sac-Hopper-v3", "normalized_score"]["mean"] == pytest.approx(first["normalized_score"])
    facts = {"env_id": HOPPER, "seed": 4, "action_noise": 0.1, "epsilon": 0.2, "n_envs": 2, "deterministic": False}
    assert facts.items() <= data.metadata.items()
    run(*arguments, hopper / "again")
    assert np.array_equal(load_dataset(hopper / "again").actions, data.actions)


def test_few_rows_are_not_spread_over_many_environments(hopper: Path) -> None:
    run(
        "--env",
        HOPPER,
        "--agent",
        hopper / "sac" / "Hopper-v3.zip",
        "--n-transitions",
        4,
        "--deterministic",
        "--out",
        hopper / "data",
    )
    data = load_dataset(hopper / "data")
    assert data.metadata["n_envs"] == data.n_episodes == 1 and data.metadata["deterministic"]
    assert [row["agent"] for row in read_results(hopper / "data")] == ["dataset"] * 2  # no episode was finished


def test_the_name_may_leave_the_algorithm_to_the_caller(hopper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    load = agents.load_sb3_agent
    monkeypatch.setattr(agents, "load_sb3_agent", lambda *given: seen.append(given[-1]) or load(*given))
    run(
        "--env",
        HOPPER,
        "--agent",
        hopper / "sac" / "Hopper-v3.zip",
        "--algorithm",
        "tqc",
        "--n-transitions",
        5,
        "--out",
        hopper / "data",
    )
    assert seen == ["TQC"] and load_dataset(hopper / "data").metadata["agents"][0]["name"] == "tqc-Hopper-v3"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a/b.zip", ("a/b.zip", 1.0)),
        ("a/b.zip:0.5", ("a/b.zip", 0.5)),
        ("hub:sb3/x", ("hub:sb3/x", 1.0)),
        ("hub:sb3/x:2", ("hub:sb3/x", 2.0)),
    ],
)
def test_names_and_shares(text: str, wanted: tuple[str, float]) -> None:
    assert collect_commands.name_and_share(text) == wanted


# ---------------------------------------------------------------------- training


def test_a_run_gives_weak_data_and_an_expert_of_its_lineage(hopper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, policy = hopper / "replay", hopper / "kept" / "expert.zip"
    training = ["--from-training", "--env", HOPPER, "--algorithm", "SAC", "--no-progress", "--out", out]
    output = run(*training, "--total-timesteps", 40, "--stop-return", 1e6).output
    assert "a mean return of 1e+06 was not reached: the data are all 40 steps" in output
    assert "40 transitions in 8 episodes" in output and "SAC-training" in output
    output = run(*training, "--total-timesteps", 70, "--resume", "--stop-return", -1e6, "--policy-out", policy).output
    assert "50 transitions in 10 episodes" in output and "policy after 70 steps" in output
    data = load_dataset(out)
    assert data.metadata["reached"] and data.metadata["total_timesteps"] == 50 and data.metadata["env_id"] == HOPPER
    rows = {row["metric"]: row for row in read_results(out) if row["agent"] == "SAC-training"}
    assert rows["return"]["n"] == rows["normalized_score"]["n"] == 10
    assert len(read_archive(out / "checkpoint.zip", KIND).tensors["replay"]["rewards"]) == 70
    assert load_policy(policy).action_space.shape == (3,)
    run("--env", HOPPER, "--agent", policy, "--n-transitions", 10, "--out", hopper / "expert")
    (agent,) = load_dataset(hopper / "expert").metadata["agents"]
    assert agent["name"] == "expert" and agent["card"]["total_timesteps"] == 70 and agent["kind"] == "policy"


def test_a_run_that_begins_anew_leaves_nothing_of_the_old_one(hopper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--from-training",
        "--env",
        HOPPER,
        "--total-timesteps",
        10,
        "--train-freq",
        2,
        "--no-progress",
        "--out",
        hopper / "data",
    ]
    run(*arguments)
    learn = SAC.learn

    def interrupted(*given: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return learn(*given, **more)

    monkeypatch.setattr(SAC, "learn", interrupted)
    assert "stopped by SIGINT" in run(*arguments, code=130).stderr
    assert [path.name for path in (hopper / "data").iterdir() if path.suffix != ".hdf5"] == ["checkpoint.zip"]
    env = gym.make(HOPPER)
    assert ReplayTraining.load(hopper / "data" / "checkpoint.zip", env, train_freq=2).num_timesteps == 10


# ---------------------------------------------------------------------- faults


def test_bad_input_is_one_line_and_leaves_nothing(hopper: Path) -> None:
    sac, out = hopper / "sac" / "Hopper-v3.zip", hopper / "data"
    other = hopper / "sac" / "Walker2d-v3.zip"
    other.write_bytes(sac.read_bytes())
    doctored = hopper / "sac" / "doctored.zip"
    with zipfile.ZipFile(doctored, "w") as file:
        file.writestr("data", "{}")
        file.writestr("policy.pth", b"cos\nsystem\n(S'touch " + str(hopper / "victim").encode() + b"'\ntR.")
    make_agent().save(hopper / "diffusion.zip")
    common = ["--env", HOPPER, "--n-transitions", 10, "--out", out]
    for arguments, words in (
        (["--agent", other], "by its name an agent of Walker2d, wanted one of Hopper-v5"),
        (["--agent", doctored], "policy.pth is refused"),
        (["--agent", hopper / "gone.zip"], "no such archive"),
        (["--agent", "sb3/agents"], "neither a file nor a name in the zoo"),
        (["--agent", f"{sac}:0"], "the share is 0, wanted a number above 0"),
        (["--agent", f"{sac}:nan"], "the share is nan"),
        (["--agent", f"{sac}:1000", "--agent", sac], "no transition"),
        (["--agent", hopper / "diffusion.zip"], "made for the observation space"),
        (["--algorithm", "ppo", "--agent", sac], "not an agent of ppo"),
        (["--from-training", "--agent", sac], "--agent and other algorithms cannot be given with it"),
        (["--from-training", "--algorithm", "PPO"], "--from-training trains SAC"),
        (["--resume"], "need --from-training"),
        (["--epsilon", 0.1], "--n-envs need --agent"),
        ([], "--agent is needed to collect there, or --from-training"),
    ):
        assert words in fault(*common, *arguments)
    assert not out.exists() and not (hopper / "victim").exists()
    out.write_text("")
    assert "is a file, wanted a folder" in fault(*common, "--agent", sac)


def test_policies_act_only_where_they_belong(hopper: Path) -> None:
    run(
        "--from-training",
        "--env",
        HOPPER,
        "--total-timesteps",
        5,
        "--policy-out",
        hopper / "policy.zip",
        "--no-progress",
        "--out",
        hopper / "data",
    )
    assert "a policy for Hopper-v5, wanted one for Walker2d-v5" in fault(
        "--env", "Walker2d-v5", "--agent", hopper / "policy.zip", "--out", hopper / "other"
    )


def test_training_needs_an_environment_without_a_maze(tmp_path: Path) -> None:
    assert "is a maze, where train-on-reward trains" in fault("--from-training", "--out", tmp_path)


def test_policies_of_a_training_keep_their_bounds_and_tell_where_they_belong(tmp_path: Path) -> None:
    policy = tmp_path / "p.zip"
    run(
        "--from-training",
        "--env",
        "Pendulum-v1",
        "--total-timesteps",
        205,
        "--policy-out",
        policy,
        "--no-progress",
        "--out",
        tmp_path / "a",
    )
    assert load_policy(policy).action_space.high.tolist() == [2.0]
    run("--agent", policy, "--n-transitions", 205, "--out", tmp_path / "b")  # where it belongs is in its card
    data = load_dataset(tmp_path / "b")
    assert data.metadata["env_id"] == "Pendulum-v1" and data.n_transitions == 205
