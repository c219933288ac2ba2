"""The tuning log: reporting seeds are measured with frozen recipes alone, and what is frozen cannot be unsaid."""

import datetime
from pathlib import Path

import pytest
from helpers.program import invoke
from helpers.recipes import toml
from helpers.robots import RECIPE

from rrpolicy.experiments import images, locomotion, maze2d
from rrpolicy.experiments.freeze import DIGESTS, main
from rrpolicy.experiments.locomotion import RobotUnit
from rrpolicy.experiments.recipes import FOLDER_VARIABLE, is_packaged, packaged_recipe
from rrpolicy.experiments.tuning_log import Frozen, Tuning, check_frozen, freeze, read_log

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
READERS = {"maze2d": maze2d.read_results, "locomotion": locomotion.read_results, "images": images.read_results}
DAY = datetime.date(2026, 11, 29)
LOG = "[robots]\ntuning = [0]\nseen = [1, 2]\nreporting = [4, 5]\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.toml"
    path.write_text(LOG)
    return path


def unit(seed: int, case: str = "noisy") -> RobotUnit:
    return RobotUnit("hopper", case, seed)


def check(log: Path, *units: RobotUnit, digest: str = "aaaa0000") -> None:
    check_frozen("robots", units, lambda unit: digest, read_log(log))


# ---------------------------------------------------------------------- checking


def test_reporting_seeds_wait_for_the_freeze_and_others_do_not(log: Path) -> None:
    check(log, unit(0), unit(1), unit(9))
    with pytest.raises(ValueError, match=r"hopper noisy seed 4: .* not frozen yet: python -m .*\.freeze robots"):
        check(log, unit(0), unit(4))
    check_frozen("own", [unit(4)], lambda unit: "", read_log(log))  # an experiment that is not in the log


def test_reporting_seeds_are_measured_with_the_frozen_digest_alone(log: Path) -> None:
    freeze("robots", {"hopper noisy": "aaaa0000"}, [], DAY, log)
    check(log, unit(4), unit(5))
    check(log, unit(0), unit(1), unit(4, "mixture"), digest="bbbb1111")  # neither of a reporting seed nor frozen
    with pytest.raises(ValueError, match=r"frozen on 2026-11-29, digest aaaa0000, .* has digest bbbb1111; .* --seed N"):
        check(log, unit(5), digest="bbbb1111")


def test_a_star_stands_for_all_units() -> None:
    tuning = Tuning(frozen=(Frozen(DAY, (4,), {"*": "aaaa0000"}),))
    with pytest.raises(ValueError, match="digest aaaa0000, and this recipe has digest bbbb1111"):
        check_frozen("x", [unit(4, "mixture")], lambda unit: "bbbb1111", {"x": tuning})


# ---------------------------------------------------------------------- freezing


def test_other_recipes_need_other_seeds_and_earlier_ones_keep_their_digest(log: Path) -> None:
    first = freeze("robots", {"*": "aaaa0000"}, [], DAY, log)
    assert first == Frozen(DAY, (4, 5), {"*": "aaaa0000"}) == read_log(log)["robots"].frozen[-1]
    text = log.read_text()
    assert freeze("robots", {"*": "aaaa0000"}, [], DAY + datetime.timedelta(1), log) == first
    assert log.read_text() == text and text.startswith(LOG)
    for seeds in ([], [5, 6], [2], [0]):
        with pytest.raises(ValueError, match=r"seed \d of robots may have been seen before: .* --seed N"):
            freeze("robots", {"*": "bbbb1111"}, seeds, DAY, log)
    freeze("robots", {"*": "bbbb1111"}, [6, 7], DAY, log)
    robots = read_log(log)["robots"]
    assert robots.headline == (6, 7) and [robots.role(seed) for seed in (0, 2, 4, 6, 9)] == [
        "tuning",
        "seen",
        "seen",
        "reporting",
        "",
    ]
    check(log, unit(4))
    check(log, unit(6), digest="bbbb1111")
    with pytest.raises(ValueError, match="digest aaaa0000"):
        check(log, unit(4), digest="bbbb1111")


def test_what_is_no_log_is_named(tmp_path: Path, log: Path) -> None:
    with pytest.raises(ValueError, match="experiment must be one of robots, got 'x'"):
        freeze("x", {}, [], DAY, log)
    log.write_text("[robots]\ntuning = 'no'\n")
    with pytest.raises(ValueError, match=r"log\.toml: is no tuning log"):
        read_log(log)
    with pytest.raises(ValueError, match=r"none\.toml: is no tuning log"):
        read_log(tmp_path / "none.toml")


def test_the_command_freezes_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "log.toml"
    path.write_text(LOG.replace("robots", "locomotion"))
    monkeypatch.setattr("rrpolicy.experiments.tuning_log.freeze.__defaults__", (path,))
    assert main(["locomotion"]) == 0
    assert read_log(path)["locomotion"].frozen[-1].digests == DIGESTS["locomotion"]()
    assert "seeds 4, 5\n  hopper noisy " in capsys.readouterr().out
    assert main(["maze2d"]) == 1 and "must be one of locomotion" in capsys.readouterr().err


# ---------------------------------------------------------------------- the package's own


def test_rows_of_reporting_seeds_have_the_frozen_digests() -> None:
    """And the recipes of the package are those that were frozen last."""
    for name, tuning in read_log().items():
        assert not set(tuning.headline) & {*tuning.tuning, *tuning.seen}
        for one in READERS[name](RESULTS / f"{name}.csv"):
            frozen = tuning.freeze_of(one.seed)
            if frozen is not None and not one.variant:
                assert frozen.digest_of(one.task, one.case) in (None, one.recipe), one
        if tuning.frozen:
            assert tuning.frozen[-1].digests == DIGESTS[name]()


def test_recipes_of_users_are_their_own() -> None:
    assert is_packaged(packaged_recipe("hopper"))
    assert not is_packaged({**packaged_recipe("hopper"), "base": {}}) and not is_packaged(RECIPE)


@pytest.mark.parametrize("command", [["maze2d"], ["locomotion", "--quick"], ["images", "--variant", "no-round"]])
def test_reproduce_refuses_reporting_seeds_before_any_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = {command[0]: Tuning(frozen=(Frozen(DAY, (4,), {"*": "aaaa0000"}),))}
    monkeypatch.setattr("rrpolicy.cli.reproduce.read_log", lambda: log)
    given = ["reproduce", *command, "--seed", "4", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "r.csv")]
    result = invoke(given)
    assert result.exit_code == 1 and "digest aaaa0000" in result.output, result.output
    assert not (tmp_path / "r.csv").exists()
    if command[0] == "locomotion":  # a recipe in the user's folder is free, and here has no data to go on with
        (tmp_path / "hopper.toml").write_text(toml({**RECIPE, "environments": ["Hopper-*"]}))
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
        own = invoke([*given, "--robot", "hopper", "--case", "replay"])
        assert own.exit_code == 0 and "no data in" in own.output, own.output
