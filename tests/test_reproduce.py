"""The maze experiment with a tiny recipe: stopped anywhere it goes on, and all that is shown comes from the CSV."""

import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import small_pictures
from helpers.program import invoke
from helpers.recipes import RECIPE, toml
from helpers.rows import short_key

from rrpolicy.common.locks import file_lock
from rrpolicy.envs import MazeGeometry
from rrpolicy.envs.simulator import PointMazeSimulator
from rrpolicy.experiments import maze2d
from rrpolicy.experiments.maze2d import (
    MAIN,
    MAZES,
    VARIANTS,
    MazeExperiment,
    MazeStore,
    MazeUnit,
    draw,
    measure,
    read_results,
    select,
    summary,
    variant_named,
)
from rrpolicy.experiments.maze2d.artifacts import ShuffledExtractor, map_path, read_map
from rrpolicy.experiments.maze2d.measure_reward import distance_rows, recovery_rows
from rrpolicy.experiments.maze2d.report import DARD, PEARSON
from rrpolicy.experiments.recipes import recipe_of
from rrpolicy.experiments.results import Result, append_unit, columns, finished_units
from rrpolicy.experiments.runner import Reproduction, shared_pieces
from rrpolicy.experiments.scoring import Scoring
from rrpolicy.rewards.epic import Coverage
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.maze_metrics import dense_reward

NAMES = MazeExperiment.names
BASE, CORNER, INSIDE = MazeUnit("umaze", 0), MazeUnit("umaze", 0, (3.0, 1.0)), MazeUnit("umaze", 0, (1.3, 2.7))
UNITS = [BASE, CORNER, INSIDE]


def reproduction(folder: Path, units: list[MazeUnit] = UNITS, **arguments: Any) -> Reproduction[MazeUnit]:
    return maze2d.reproduction(units, RECIPE, folder / "maze2d.csv", folder / "work", **arguments)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Small pictures."""
    with pytest.MonkeyPatch.context() as patch:
        small_pictures(patch)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one base and two pairs."""
    folder = tmp_path_factory.mktemp("done")
    reproduction(folder).run()
    return folder


def numbers(results: list[Result]) -> dict[tuple[Any, ...], float]:
    """Everything but times."""
    return {(*one.unit, one.variant, *short_key(one)): one.value for one in results if one.metric != "cpu_seconds"}


# ---------------------------------------------------------------------- units


def test_the_experiment_has_32_goals_all_of_them_free() -> None:
    assert [len(setting.goals) for setting in MAZES.values()] == [8, 8, 8, 8]
    for name, setting in MAZES.items():
        maze = MazeUnit(name, 0).task.maze
        assert len({maze.free_cell(goal) + goal for goal in setting.goals}) == 8
    units = select()
    assert len(units) == len(set(units)) == 3 * 4 * (1 + 8)
    for i, unit in enumerate(units):
        assert MazeUnit(unit.maze, unit.seed) in units[: i + 1]  # bases come before their pairs


def test_units_are_selected() -> None:
    assert len(select(quick=True)) == 4 * (1 + 2)
    assert select(["open", "large"], seeds=[2], indices=()) == [
        MazeUnit("open", 2),
        MazeUnit("large", 2),
    ]  # bases alone
    assert select(["umaze"], [(3.0, 1.0), (1.3, 2.7)], [4]) == [
        MazeUnit("umaze", 4),
        MazeUnit("umaze", 4, (1.3, 2.7)),
        MazeUnit("umaze", 4, (3.0, 1.0)),
    ]
    assert select(goals=[(7.0, 10.0)], seeds=[0]) == [MazeUnit("large", 0), MazeUnit("large", 0, (7.0, 10.0))]
    assert select(["open"], quick=True, indices=()) == [MazeUnit("open", 1)]  # a quick run adds no goals to bases alone
    with pytest.raises(ValueError, match="goal 1-1 is given, but this is about bases alone"):
        select(["open"], [(1.0, 1.0)], indices=())
    assert str(MazeUnit("large", 0, (7.0, 10.0))) == "large goal 7-10 seed 0"
    with pytest.raises(ValueError, match="maze must be one of open, umaze, medium, large, got 'huge'"):
        select(["huge"])
    with pytest.raises(ValueError, match="goal 9-9 is not one of the experiment, which has 1,1; 1,2"):
        select(["umaze"], [(9.0, 9.0)])


def test_variants_change_what_they_say() -> None:
    assert variant_named(None) is MAIN and MAIN.applied(RECIPE) == RECIPE
    before = copy.deepcopy(RECIPE)
    small = VARIANTS["data-10k"].applied(RECIPE)
    assert small["data"]["base_transitions"] == 10_000 and small["agent"] == RECIPE["agent"] and before == RECIPE
    for maze in MAZES:  # the number of steps of the real recipe, which tiny ones below do not have
        real = recipe_of(MazeUnit(maze, 0).task.env_id)
        steps = VARIANTS["long-base"].applied(real)["base"]["total_timesteps"]
        assert steps == 4 * real["base"]["total_timesteps"]
    with pytest.raises(ValueError, match="variant must be one of data-10k, step-head"):
        variant_named("none")


# ---------------------------------------------------------------------- the CSV


def result(metric: str = "x", value: float = 1.0, goal: str = "1-1", agent: str = "reward") -> Result:
    return Result("umaze", goal, 0, "", agent, metric, value, value, value, 1, 0.5, "0", "abc")


def unit_rows(goal: str, value: float) -> list[Result]:
    return [result("x", value, goal), result("cpu_seconds", 9.0, goal, "unit")]


def test_only_whole_units_count_and_the_last_of_equal_ones(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.csv"
    assert read_results(path) == []
    append_unit(path, unit_rows("1-1", 1.0), NAMES)
    append_unit(path, unit_rows("1-1", 2.0)[:1], NAMES)  # killed after this row, and then done again
    append_unit(path, unit_rows("1-1", 3.0), NAMES)
    whole = path.read_bytes()
    append_unit(path, unit_rows("2-2", 4.0), NAMES)
    assert [one.value for one in read_results(path) if one.metric == "x"] == [3.0, 4.0]
    tail = path.read_bytes()[len(whole) :]
    for cut in range(len(tail)):  # killed anywhere: the unit is not there, and the file goes on to be good
        path.write_bytes(whole + tail[:cut])
        expected = {("umaze", "1-1", 0, "abc")} | ({("umaze", "2-2", 0, "abc")} if cut == len(tail) - 1 else set())
        assert {unit for unit in finished_units(read_results(path), "") if unit[-1] == "abc"} == expected
        append_unit(path, unit_rows("3-3", 5.0), NAMES)
        finished = {unit for unit in finished_units(read_results(path), "") if unit[-1] == "abc"}
        assert finished == expected | {("umaze", "3-3", 0, "abc")}
    assert finished_units(read_results(path), "identical") == set()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: is no results file: its columns are \['a', 'b'\]"):
        read_results(path)


def test_locks_are_held_by_one(tmp_path: Path) -> None:
    with file_lock(tmp_path / "locks" / "a") as first, file_lock(tmp_path / "locks" / "a", wait=False) as second:
        assert first and not second
        with file_lock(tmp_path / "locks" / "b", wait=False) as other:
            assert other
    with file_lock(tmp_path / "locks" / "a", wait=False) as again:
        assert again


# ---------------------------------------------------------------------- the run


def test_every_unit_has_its_rows(done: Path) -> None:
    results = read_results(done / "maze2d.csv")
    with open(done / "maze2d.csv", newline="") as file:
        assert next(csv.reader(file)) == list(columns(NAMES))
    assert finished_units(results, "") == {(*unit.key, results[0].recipe) for unit in UNITS}
    names = {short_key(one) for one in results if one.case == "3-1"}
    assert names >= {
        ("reward", "goal_error_cells"),
        ("reward", "goal_own_cell"),
        ("reward", "goal_within_one_cell"),
        ("reward", "spearman_path"),
        ("euclidean", "spearman_path"),
        ("occupancy", "spearman_path"),
        *((agent, "pearson_path") for agent in ("reward", "reward-far", "euclidean", "occupancy")),
        ("reward", "topology_pairs_rate"),
        ("occupancy", "detour_pairs_rate"),
        ("reward-far", "detour_pairs_rate"),
        ("reward", "epic_distance"),
        ("reward", "epic_distance_bounded"),
        ("reward", "dard_distance"),
        ("reward", "dard_distance_bounded"),
        ("reward", "r2_window_noised_t0"),
        ("reward", "r2_step_noised_t9"),
        ("reward", "r2_guided_t9"),
        ("expert", "cpu_seconds"),
        ("reward", "cpu_seconds"),
        ("discriminator", "cpu_seconds"),
        ("steered-expert", "success_rate"),
        ("steered-discriminator", "return"),
        ("steered-base", "return"),
        *(
            (agent, metric)
            for agent in ("base", "discriminator", "steered", "expert")
            for metric in ("success_rate", "return")
        ),
    }
    base = {one.metric: one for one in results if one.case == ""}
    assert base["plans_through_walls_rate"].n == 1000 and 0 < base["plans_through_walls_rate"].value <= 1
    for one in results:
        assert one.ci_low <= one.value <= one.ci_high and one.cpu_seconds >= 0 and one.version
    values = numbers(results)
    steered, expert, difference = (
        values["umaze", "3-1", 0, "", agent, "return"] for agent in ("steered", "expert", "steered-expert")
    )
    assert difference == pytest.approx(steered - expert, abs=2e-3)  # the CSV keeps six digits
    # what needs no training is right even here: counting beats the straight line on a maze that folds back
    for kind in ("spearman_path", "topology_pairs_rate"):
        assert values["umaze", "3-1", 0, "", "occupancy", kind] >= values["umaze", "3-1", 0, "", "euclidean", kind]


def test_columns_of_the_summary_are_what_was_measured(done: Path) -> None:
    results = read_results(done / "maze2d.csv")
    assert {PEARSON, DARD} <= set(_heading(summary(results)))
    earlier = [one for one in results if not one.metric.startswith(("pearson", "dard"))]
    assert not {PEARSON, DARD} & set(_heading(summary(earlier)))
    assert "EPIC, bounded" in _heading(summary(earlier))


def _heading(summary: str) -> list[str]:
    return summary.splitlines()[0].strip("| ").split(" | ")


def test_the_true_reward_has_no_distance_to_itself_and_another_goal_s_has() -> None:
    maze, coverage = CORNER.task.maze, _walks(CORNER.task.maze)
    other = MazeUnit("umaze", 0, (1.0, 1.0))
    rewards = {
        "": lambda states: 3 * dense_reward(maze, CORNER.goal, states) - 1,
        "_other": lambda states: dense_reward(maze, other.goal, states),
    }
    rows = {row["metric"]: row["mean"] for row in distance_rows("ours", rewards, CORNER, coverage, Scoring())}
    assert rows["epic_distance"] < 1e-6 and rows["dard_distance"] < 1e-6
    assert rows["epic_distance_other"] > 0.3 and rows["dard_distance_other"] > 0.3


def _walks(maze: MazeGeometry) -> Coverage:
    rng = np.random.default_rng(0)
    cells = maze.free_cells[rng.integers(len(maze.free_cells), size=200)]
    states = np.concatenate([maze.cell_to_xy(cells), rng.normal(size=(200, 2))], axis=1)
    actions = rng.uniform(-1, 1, size=(200, 2))
    return Coverage(states, actions, PointMazeSimulator(maze).step(states, actions))


def test_maps_are_kept_beside_the_csv(done: Path) -> None:
    drawn = read_map(map_path(done / "maze2d.csv", CORNER), CORNER)
    errors = {one.case: one.value for one in read_results(done / "maze2d.csv") if one.metric == "goal_error_cells"}
    assert drawn.goal_error_cells(CORNER.goal) == pytest.approx(errors["3-1"], rel=1e-5)
    assert drawn.grid.shape == (20, 20) and np.nanmax(drawn.grid) < 0.5
    broken = done / "maze2d" / "broken.npz"
    broken.write_bytes(map_path(done / "maze2d.csv", CORNER).read_bytes()[:100])
    for path in (broken, done / "nothing.npz"):
        with pytest.raises(ValueError, match="is no map"):
            read_map(path, CORNER)
    np.savez_compressed(broken, grid=np.zeros((2**12, 2**13), dtype=np.float16), maximum=np.zeros(2))  # 70 KB
    with pytest.raises(ValueError, match="is no map: it unpacks to"):
        read_map(broken, CORNER)


def test_a_finished_run_does_nothing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_pair", pytest.fail)
    monkeypatch.setattr(measure, "measure_base", pytest.fail)
    before = (done / "maze2d.csv").read_bytes()
    reproduction(done).run()
    assert (done / "maze2d.csv").read_bytes() == before


@pytest.mark.parametrize("step", ["training the expert", pytest.param("episodes of steered", marks=pytest.mark.slow)])
def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path, done: Path, step: str) -> None:
    class Killed(BaseException):
        pass

    def show(bar: Any, text: str) -> None:
        if text == f"{CORNER}: {step}":
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqdm.auto.tqdm.set_postfix_str", show)
        with pytest.raises(Killed):
            reproduction(tmp_path, [BASE, CORNER]).run()
    assert {one.unit for one in read_results(tmp_path / "maze2d.csv")} == {BASE.key}
    bases = list((tmp_path / "work").glob("umaze_seed-0/base-*.zip"))
    stamp = bases[0].stat().st_mtime_ns
    results = reproduction(tmp_path, [BASE, CORNER], progress_bar=True).run()
    assert bases[0].stat().st_mtime_ns == stamp  # made once
    whole = [one for one in read_results(done / "maze2d.csv") if one.unit != INSIDE.key and not one.variant]
    assert numbers(results) == numbers(whole)


def test_bases_are_what_units_share(tmp_path: Path) -> None:
    job = reproduction(tmp_path)
    assert shared_pieces(job.experiment, [BASE]) == []
    assert [str(one) for one in shared_pieces(job.experiment, UNITS)] == ["umaze base seed 0"]
    two = reproduction(tmp_path, [CORNER, INSIDE], variant=VARIANTS["unseen-base"]).experiment
    assert [str(one) for one in shared_pieces(two, [CORNER, INSIDE])] == ["umaze base seed 0", "umaze base seed 1"]
    peers = reproduction(tmp_path, [CORNER, INSIDE], variant=VARIANTS["peers"]).experiment
    assert shared_pieces(peers, [CORNER, INSIDE]) == []


# ---------------------------------------------------------------------- ablations and controls


MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("step-head", "data-10k")]


@pytest.mark.parametrize("name", ["unseen-base", "identical", *MORE])
def test_variants_go_through_the_same_code(done: Path, name: str) -> None:
    results = reproduction(done, [CORNER], variant=VARIANTS[name]).run()
    own = [one for one in results if one.variant == name]
    agents = {one.agent for one in own if one.metric == "success_rate" and not one.reference}
    assert agents == set(VARIANTS[name].agents)
    assert map_path(done / "maze2d.csv", CORNER, name).exists()
    values = numbers(own)
    if name == "identical":
        assert values["umaze", "3-1", 0, name, "steered-base", "return"] == 0
        assert ("umaze", "3-1", 0, name, "reward", "spearman_path") not in values  # of a constant there is none
    if name == "step-head":
        assert not [key for key in values if "window" in key[-1]]


def test_bases_plan_in_other_ways(done: Path) -> None:
    results = reproduction(done, [BASE], variant=VARIANTS["plans"]).run()
    rates = {
        key[4]: value
        for key, value in numbers(results).items()
        if key[3] == "plans" and key[5] == "plans_through_walls_rate"
    }
    assert set(rates) == {"base", "base-steps-10", "base-ancestral", "base-best-of-4", "base-steps-10-best-of-4"}
    assert rates["base"] == numbers(results)[("umaze", "", 0, "", "base", "plans_through_walls_rate")]
    assert f"| umaze | base-best-of-4 | 1 | {rates['base-best-of-4']:.3f} |" in summary(results)


def reward_of(done: Path, name: str | None, unit: MazeUnit) -> torch.Tensor:
    variant = variant_named(name)
    reward = MazeStore(done / "work", variant.applied(RECIPE), variant).reward(unit)[0]
    return torch.cat([value.flatten() for value in reward.parameters()])


def test_a_reward_that_a_variant_shares_is_the_same(done: Path) -> None:
    assert torch.equal(reward_of(done, "unseen-base", CORNER), reward_of(done, None, CORNER))  # another base is steered
    corner, inside = (reward_of(done, "second-base", unit) for unit in (CORNER, INSIDE))
    assert torch.equal(corner, inside)  # no goal in it


SAME = {"unseen-base", "step-head", "data-10k", "ddim"}  # that of the experiment, or of other shape, or slow to collect
OTHERS = sorted({name for name, one in VARIANTS.items() if one.part == "pair" and one.goals != ()} - SAME)
FEW = ("expert-from-scratch", "shuffled")  # another expert, another extraction


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one not in FEW)) for one in OTHERS])
def test_the_variants_reward_is_made_for_the_variants_pair(done: Path, name: str) -> None:
    assert not torch.equal(reward_of(done, name, CORNER), reward_of(done, None, CORNER))


def test_shuffled_targets_stay_at_their_noise_level(done: Path) -> None:
    store = MazeStore(done / "work", RECIPE, MAIN)
    pair = store.base(CORNER)[0], store.expert(CORNER)[0]
    arguments = {key: value for key, value in RECIPE["extraction"].items() if key != "total_timesteps"}
    targets = []
    for cls in (ShuffledExtractor, ShuffledExtractor.__base__):
        extractor = cls(*pair, **arguments, seed=0)
        extractor.learn(store.data(BASE)[0], 1, log_interval=0)
        targets.append(extractor._targets)
    mixed, plain = targets
    assert torch.equal(mixed.t, plain.t) and torch.equal(mixed.x_t, plain.x_t)
    assert not torch.equal(mixed.value, plain.value)
    for level in plain.t.unique():
        rows = plain.t == level
        for name in ("eps_difference", "value"):
            ours, theirs = (
                getattr(one, name)[rows].flatten(1) if name != "value" else one.value[rows][:, None] for one in targets
            )
            assert torch.equal(ours[:, 0].sort().values, theirs[:, 0].sort().values)


# ---------------------------------------------------------------------- what is shown


def test_a_constant_has_found_no_goal() -> None:
    maze = MazeGeometry.parse(["#####", "#...#", "#####"])
    first = maze.free_cells[0]  # where the highest of equal values would lie
    xy = np.stack([maze.cell_to_xy(cell) for cell in maze.free_cells])
    flat, peaked = np.zeros(len(xy)), -np.linalg.norm(xy - maze.cell_to_xy(first), axis=1)
    for values, wanted in ((flat, (np.inf, 0.0, 0.0)), (peaked, (0.0, 1.0, 1.0))):
        drawn = RewardMap(maze, xy, values, values[None])
        assert tuple(row["mean"] for row in recovery_rows("reward", drawn, first)) == wanted


def test_figures_and_tables_come_from_the_csv(done: Path, tmp_path: Path) -> None:
    results = read_results(done / "maze2d.csv")
    out = tmp_path / "maze2d.csv"
    (tmp_path / "maze2d").mkdir()
    (done / "maze2d" / "maps").rename(tmp_path / "maze2d" / "maps")
    names = [path.name for path in draw(results, out)]
    (tmp_path / "maze2d" / "maps").rename(done / "maze2d" / "maps")
    assert names == ["heat_maps.png", "steering.png", "order.png"]
    assert draw([], out) == [] and summary([]) == ""
    lines = summary(results).splitlines()
    main = [one for one in results if not one.variant and one.metric == "goal_own_cell"]
    assert lines[2].startswith(f"| umaze | {sum(one.value for one in main):.0f}/2 |") and lines[3].startswith("| all |")
    with pytest.raises(ValueError, match="is no map"):
        draw(results, tmp_path / "elsewhere.csv")


def test_the_summary_counts_by_seed_and_compares_variants_on_their_units() -> None:
    def found(seed: int, value: float, variant: str = "", goal: str = "1-1") -> Result:
        return Result("open", goal, seed, variant, "reward", "goal_own_cell", value, value, value, 1, 1.0, "0", "abc")

    text = summary([found(1, 1), found(2, 0), found(2, 1, goal="2-3"), found(1, 0, "data-10k")])
    assert "| open | 2/3 (1, 1 by seed) |" in text
    assert "| data-10k | 0/1 |" in text and "| the same units, unchanged | 1/1 |" in text


def test_the_command(done: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(toml())
    arguments = [
        "reproduce",
        "maze2d",
        "--out",
        str(tmp_path / "r.csv"),
        "--work",
        str(done / "work"),
        "--recipe",
        str(tmp_path / "tiny.toml"),
        "--no-progress",
    ]
    one = [*arguments, "--maze", "umaze", "--goal", "3,1", "--seed", "0"]
    result = invoke(one)
    assert result.exit_code == 0, result.output
    assert "0 of 2 units done before" in result.output and "| umaze |" in result.output
    assert "2 of 2 units done before" in invoke(one).output
    (tmp_path / "r" / "steering.png").unlink()
    result = invoke([*arguments, "--figures-only"])
    assert result.exit_code == 0 and (tmp_path / "r" / "steering.png").exists()
    result = invoke([*arguments, "--variant", "nothing"])
    assert result.exit_code == 1 and "variant must be one of" in result.stderr
