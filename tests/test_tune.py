"""A search for a recipe's numbers: what may be searched, with which seeds, and a study that processes share."""

import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import ENV_ID, RECIPE, toml
from typer.testing import CliRunner

from rrpolicy.cli import app
from rrpolicy.experiments import Task, collect_base, new_agent
from rrpolicy.experiments.recipes import read_recipe
from rrpolicy.experiments.runs import write_dataset
from rrpolicy.experiments.tuning import Range, Search, tune, write_tuned

optuna = pytest.importorskip("optuna", reason="the extra scale is not installed")

TASK = Task(ENV_ID)
DATA = [collect_base(TASK, RECIPE, 0)]
RATES = {"base.learning_rate": Range.parse("1e-4..1e-2:log")}


def search(ranges: dict[str, Range] = RATES, **changes: Any) -> Search:
    return Search(**{"recipe": RECIPE, "ranges": ranges, "data": DATA, "task": TASK, "seed": 0, **changes})


# ---------------------------------------------------------------------- what is searched


def test_ranges_are_read() -> None:
    assert Range.parse("1e-4..1e-2:log") == Range(1e-4, 1e-2, True)
    whole = Range.parse(" 16 .. 64")
    assert whole == Range(16, 64) and isinstance(whole.low, int) and str(whole) == "16..64"
    assert str(Range.parse("0.5..1")) == "0.5..1"
    for text, fault in (
        ("1e-4", "no range, wanted low..high"),
        ("a..b", "no range"),
        ("2..1", "must rise from a finite number"),
        ("0..nan", "must rise"),
        ("0..1:log", "of a logarithm above 0"),
        ("1..2:lin", "no range"),
    ):
        with pytest.raises(ValueError, match=fault):
            Range.parse(text)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("agent.horizon", "agent.horizon cannot be searched, for it would change what the held-out loss measures"),
        ("extraction.value_coef", "cannot be searched"),
        ("agent.policy_kwargs", "cannot be searched"),
        ("base.learning_rate.more", "cannot be searched"),
        ("base", "cannot be searched"),
        ("steering.scale", "cannot be searched"),
    ],
)
def test_numbers_that_change_the_loss_are_refused(name: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        search({name: Range(1, 2)})


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing is searched"):
        search({})
    with pytest.raises(ValueError, match="belong to different trainings"):
        search({"base.batch_size": Range(1, 2), "extraction.batch_size": Range(1, 2)})
    with pytest.raises(ValueError, match=r"a search in section \[extraction\] needs base and expert"):
        search({"extraction.batch_size": Range(1, 2)})
    with pytest.raises(ValueError, match=r"a search in section \[base\] takes no base and expert"):
        search(models=(new_agent(TASK, RECIPE, 0),) * 2)


@pytest.mark.parametrize(("env_id", "name"), [(ENV_ID, "maze2d"), ("Hopper-v5", "locomotion")])
def test_seeds_of_experiments_are_refused_by_name(env_id: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"seed 2 evaluates the experiment {name}, as do all of \(1, 2, 3\)"):
        search(task=Task(env_id), seed=2)


def test_values_go_where_they_belong() -> None:
    found = search({"agent.policy_kwargs.width": Range(8, 16)}).recipe_with({"agent.policy_kwargs.width": 8})
    assert found["agent"]["policy_kwargs"] == {**RECIPE["agent"]["policy_kwargs"], "width": 8}
    assert RECIPE["agent"]["policy_kwargs"]["width"] == 16 and found["base"] == RECIPE["base"]
    assert "search" not in search(recipe={**RECIPE, "search": {}, "tuned": {}}).recipe_with({})


def test_the_loss_is_that_of_held_out_episodes_and_is_reported() -> None:
    seen: list[tuple[int, float]] = []

    def report(step: int, loss: float) -> bool:
        seen.append((step, loss))
        return step == 4

    values = {"base.learning_rate": 1e-3}
    whole = search().loss(values, lambda step, loss: False)
    assert search().loss(values, report) == seen[-1][1] >= whole > 0
    assert [step for step, _ in seen] == [1, 2, 3, 4] and sorted(seen, key=lambda one: -one[1]) == seen


# ---------------------------------------------------------------------- the study


def parabola(self: Search, values: dict[str, float], report: Callable[[int, float], bool]) -> float:
    """A loss that is smallest at a learning rate of 1e-3."""
    loss = (math.log10(values["base.learning_rate"]) + 3) ** 2
    for step in (1, 2):
        if report(step, loss):
            break
    return loss


def test_processes_share_a_study_and_a_search_is_repeated_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "loss", parabola)
    lines: list[str] = []
    study = tune(search(), tmp_path / "a" / "study.log", 12, lines.append)
    again = tune(search(), tmp_path / "b.log", 12)
    facts = [[(one.params, one.value, one.state.name) for one in done.trials] for done in (study, again)]
    assert facts[0] == facts[1] and len(lines) == 12
    assert "PRUNED" in {state for _, _, state in facts[0]} and study.best_value < 0.05
    assert len(tune(search(), tmp_path / "a" / "study.log", 12, lines.append).trials) == 12 == len(lines)  # has enough
    more = tune(search(), tmp_path / "a" / "study.log", 13)
    assert [one.params for one in more.trials[:12]] == [params for params, _, _ in facts[0]]
    both = [threading.Thread(target=tune, args=(search(), tmp_path / "c.log", 8)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    shared = tune(search(), tmp_path / "c.log", 1).trials
    assert 8 <= len(shared) <= 9 and [one.number for one in shared] == list(range(len(shared)))
    assert len({one.params["base.learning_rate"] for one in shared}) == len(shared)


def test_other_searches_are_other_studies_in_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "loss", parabola)
    for one in (search(), search(seed=4), search({"base.learning_rate": Range(1e-4, 2e-2)})):
        assert len(tune(one, tmp_path / "study.log", 2).trials) == 2


def test_trials_that_diverge_fail_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(self: Search, values: dict[str, float], report: Any) -> float:
        if values["base.learning_rate"] > 1e-3:
            raise FloatingPointError
        return 1.0

    monkeypatch.setattr(Search, "loss", diverging)
    states = [one.state.name for one in tune(search(), tmp_path / "study.log", 8).trials]
    assert set(states) == {"FAIL", "COMPLETE"} and len(states) == 8
    high = search({"base.learning_rate": Range(0.1, 1.0)})
    with pytest.raises(ValueError, match="none of 2 trials came to its end"):
        tune(high, tmp_path / "study.log", 2)


def test_the_recipe_names_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "loss", parabola)
    study = tune(search(), tmp_path / "study.log", 5)
    about = write_tuned(study, search(), tmp_path / "found.toml")
    found = read_recipe(tmp_path / "found.toml")
    assert found["tuned"] == about and found["name"] == "found"
    assert found["base"] == {**RECIPE["base"], **{"learning_rate": study.best_params["base.learning_rate"]}}
    assert {**found, "base": 0, "name": 0, "tuned": 0} == {**RECIPE, "base": 0, "name": 0, "tuned": 0}
    assert about["study"] == search().name and about["digest"] in (tmp_path / "found.toml").read_text().splitlines()[0]
    tune(search(), tmp_path / "study.log", 6)
    assert (
        write_tuned(tune(search(), tmp_path / "study.log", 6), search(), tmp_path / "more.toml")["digest"]
        != (about["digest"])
    )


# ---------------------------------------------------------------------- the command


def test_the_command_finds_numbers_that_train_can_use(tmp_path: Path) -> None:
    write_dataset(DATA[0], tmp_path / "data", TASK)
    (tmp_path / "mine.toml").write_text(toml() + '[search]\n"base.learning_rate" = "1e-3..1e-2:log"\n')
    arguments = ["tune", tmp_path / "mine.toml", "--dataset", tmp_path / "data", "--study", tmp_path / "study.log"]
    arguments += ["--trials", 2, "--out", tmp_path / "found.toml"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "trial 1: base.learning_rate=" in result.output and "best of 2 trials, held-out loss" in result.output
    found = read_recipe(tmp_path / "found.toml")
    assert 1e-3 <= found["base"]["learning_rate"] <= 1e-2 and "search" not in found
    assert new_agent(TASK, found, 0).learning_rate == found["base"]["learning_rate"]
    for extra, fault in (
        (["--set", "base.learning_rate=5"], "base.learning_rate: '5' is no range"),
        (["--seed", "3"], "seed 3 evaluates the experiment maze2d"),
        (["--base", "x"], "--base and --expert are given together"),
    ):
        refused = CliRunner().invoke(app, [*map(str, arguments), *extra])
        assert refused.exit_code == 1 and fault in refused.output


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"tuning needs the scale extra: pip install 'rrpolicy\[scale\]'"):
        tune(search(), tmp_path / "study.log", 1)
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    with pytest.raises(ValueError, match=r"pip install 'rrpolicy\[scale\]'"):
        write_tuned(study, search(), tmp_path / "found.toml")
