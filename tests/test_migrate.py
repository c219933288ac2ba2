"""Results of an earlier format are rewritten: names taken apart, numbers as they were, commits as git tells."""

import csv
import subprocess
from pathlib import Path

import pytest

from rrpolicy.experiments import locomotion, maze2d
from rrpolicy.experiments.migrate import main, migrate, taken_apart
from rrpolicy.experiments.store import code_commit

OLD = "robot,data,seed,variant,agent,metric,value,ci_low,ci_high,n,cpu_seconds,version,recipe"
RAN = {"base", "expert", "seed-base", "seed-base-steered", "SAC-reward", "SAC-true"}


@pytest.mark.parametrize(
    ("agent", "metric", "wanted"),
    [
        ("base", "return", ("base", "", "return", "", "")),
        ("expert-base", "normalized_score", ("expert", "base", "normalized_score", "", "")),
        ("expert-seed-base", "normalized_score", ("expert", "seed-base", "normalized_score", "", "")),
        ("seed-base-steered-seed-base", "return", ("seed-base-steered", "seed-base", "return", "", "")),
        ("SAC-reward-SAC-true", "normalized_score", ("SAC-reward", "SAC-true", "normalized_score", "", "")),
        ("SAC-reward/SAC-true", "score_ratio", ("SAC-reward", "SAC-true", "score_ratio", "", "")),
        ("SAC-reward", "normalized_score@10000", ("SAC-reward", "", "normalized_score", "", "10000")),
        ("reward", "r2_window_noised_t12", ("reward", "", "r2_window_noised", "12", "")),
        ("rho", "auroc", ("rho", "", "auroc", "", "")),
        ("rho", "auroc_t40_trouser+sneaker", ("rho", "trouser+sneaker", "auroc", "40", "")),
        ("rho", "auroc_elbo_subset_bag+ankle boot", ("rho", "bag+ankle boot", "auroc_elbo_subset", "", "")),
        ("rho", "auroc_lookalikes_ankle boot", ("rho", "ankle boot", "auroc_lookalikes", "", "")),
        ("brightness", "auroc_reversed", ("brightness", "", "auroc_reversed", "", "")),
        ("base", "harmful_share_sandal+bag", ("base", "sandal+bag", "harmful_share", "", "")),
        ("rho", "mean_t-shirt", ("rho", "t-shirt", "mean", "", "")),
        ("elbo", "mean_stayed", ("elbo", "", "mean_stayed", "", "")),
    ],
)  # fmt: skip
def test_names_are_taken_apart(agent: str, metric: str, wanted: tuple[str, ...]) -> None:
    assert tuple(taken_apart(agent, metric, RAN).values()) == wanted


def test_a_file_is_rewritten_once_and_its_numbers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    unit = "hopper,noisy,1,rows-alike"
    lines = [
        OLD,
        f"{unit},base,return,1000.5,900,1100,64,1.5,0.1.0,abc",
        f"{unit},expert,return,2e3,1,2,64,1,0.1.0,abc",
    ]
    lines += [
        f"{unit},expert-base,normalized_score,30.7,29,31,64,1,0.1.0,abc",
        f"{unit},unit,cpu_seconds,9,9,9,1,9,0.1.0,abc",
    ]
    path.write_text("\n".join([*lines, "hopper,noi"]))  # a run was killed in the middle of a line
    with pytest.raises(ValueError, match=r"earlier version: python -m rrpolicy\.experiments\.migrate"):
        locomotion.read_results(path)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    with open(path, "a") as file:
        file.write("\n")
    (tmp_path / "r" / "maps").mkdir(parents=True)
    (tmp_path / "r" / "maps" / "rows-alike_a.npz").touch()
    assert migrate(path) == 4 and migrate(path) == 0
    assert [one.name for one in (tmp_path / "r" / "maps").iterdir()] == ["no-row-weighting_a.npz"]
    rows = locomotion.read_results(path)
    assert [(one.agent, one.reference, one.value) for one in rows[:3]] == [
        ("base", "", 1000.5),
        ("expert", "", 2000.0),
        ("expert", "base", 30.7),
    ]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {one.commit for one in rows} == {head.stdout[:12]} and {one.variant for one in rows} == {"no-row-weighting"}
    with open(path, newline="") as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["1000.5", "2e3", "30.7", "9"]


def test_lines_without_a_commit_have_none_and_other_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "r.csv", tmp_path / "other.csv"
    path.write_text(OLD.replace("robot,data", "maze,goal") + "\nopen,,1,,unit,cpu_seconds,9,9,9,1,9,0.1.0,abc\n")
    other.write_text("a,b\n1,2\n")
    assert main([str(path)]) == 0 and "1 rows rewritten" in capsys.readouterr().out
    assert [one.commit for one in maze2d.read_results(path)] == [""]
    assert main([str(other)]) == 1 and "is no results file of an experiment" in capsys.readouterr().err
    assert main([]) == 2


def test_the_commit_may_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_commit()
    monkeypatch.setenv("RRPOLICY_COMMIT", "abc")
    assert code_commit() == "abc"
