"""Commands that run an agent take policies of other learners, from archives and from files of Stable-Baselines3."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from helpers.agents import shorten
from helpers.program import invoke
from stable_baselines3 import PPO, SAC

from rrpolicy import zoo
from rrpolicy.evaluation import read_results
from rrpolicy.rl.policies import save_policy

HOPPER, LIMIT = "Hopper-v5", 5


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Short episodes, an empty zoo, one policy as an archive and as files of Stable-Baselines3."""
    shorten(monkeypatch, HOPPER, LIMIT)
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    env = gym.make(HOPPER)
    model = SAC("MlpPolicy", env, buffer_size=1, policy_kwargs={"net_arch": [8]}, seed=0)
    save_policy(model, tmp_path / "kept.zip", {"environment": HOPPER})
    model.save(tmp_path / "sac-model.zip")
    PPO("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0).save(tmp_path / "nameless.zip")
    env.close()
    return tmp_path


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(arguments)
    assert result.exit_code == code, result.output
    return result


def fault(*arguments: object) -> str:
    lines = [line for line in run(*arguments, code=1).stderr.splitlines() if "rrpolicy: warning: " not in line]
    assert len(lines) == 1 and lines[0].startswith("rrpolicy: error: "), lines
    return lines[0]


def test_enjoy_runs_an_archive_and_the_file_it_came_from_alike(folder: Path) -> None:
    common = ("--n-episodes", 2, "--no-progress", "--out", folder / "out")
    run("enjoy", folder / "kept.zip", *common)  # its card names the environment
    run("enjoy", folder / "sac-model.zip", "--env", HOPPER, *common)
    run("enjoy", folder / "nameless.zip", "--env", HOPPER, "--algorithm", "ppo", *common)
    rows = {(row["agent"], row["metric"]): row["mean"] for row in read_results(folder / "out")}
    assert rows["kept", "return"] == rows["sac-model", "return"] != rows["nameless", "return"]


def test_record_video_films_a_policy(folder: Path) -> None:
    run("record-video", folder / "kept.zip", "--n-steps", 3, "--out", folder / "videos")
    assert (folder / "videos" / "kept.mp4").stat().st_size > 0


def test_what_policies_cannot_do_is_told_in_one_line(folder: Path) -> None:
    kept, file = folder / "kept.zip", folder / "sac-model.zip"
    for arguments, words in (
        (("enjoy", file), "--env is needed"),
        (("enjoy", folder / "nameless.zip", "--env", HOPPER), "the name does not tell the algorithm"),
        (("enjoy", kept, "--algorithm", "sac"), "--algorithm is for files of Stable-Baselines3"),
        (("enjoy", kept, "--n-candidates", 2), "is a policy without plans, --n-candidates needs a diffusion agent"),
        (("enjoy", kept, "--env", "Walker2d-v5"), "a policy for Hopper-v5, wanted one for Walker2d-v5"),
        (("benchmark", "latency", "--agent", kept, "--fast"), "is a policy without plans, wanted a diffusion agent"),
        (("enjoy", kept, "--fast"), "is a policy without plans, --fast needs a diffusion agent"),
    ):
        assert words in fault(*arguments)
