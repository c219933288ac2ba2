"""The locomotion experiment with tiny recipes and short episodes: units, data, agents, tables and figures."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import robots
from helpers.program import invoke
from helpers.recipes import NETWORK, toml
from helpers.robots import RECIPE, untrained_agents
from helpers.rows import short_key
from helpers.stand_in_d3rlpy import stand_in

from rrpolicy.agents import DiffusionAgent
from rrpolicy.agents.blended_planner import BlendedPlanner
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.evaluation import Evaluation
from rrpolicy.experiments.locomotion import (
    CASES,
    PAPER,
    Demonstrations,
    LocomotionExperiment,
    RobotStore,
    RobotUnit,
    draw,
    read_results,
    reproduction,
    select,
    summary,
    variant_named,
)
from rrpolicy.experiments.locomotion.artifacts import returns
from rrpolicy.experiments.locomotion.measure_learning import measure_finetuning
from rrpolicy.experiments.locomotion.measure_pair import comparisons
from rrpolicy.experiments.locomotion.measure_reward import correlations
from rrpolicy.experiments.locomotion.report import AGENTS, scores
from rrpolicy.experiments.locomotion.spec import of_case
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.experiments.report import values_of
from rrpolicy.experiments.results import UNIT_DONE, Result
from rrpolicy.rewards.bellman import BellmanReward
from rrpolicy.rewards.centred import CentredReward

NOISY, MIXTURE = RobotUnit("hopper", "noisy", 1), RobotUnit("hopper", "mixture", 1)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with robots.small():
        yield


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of pretrained agents that holds one, untrained."""
    return untrained_agents(tmp_path_factory.mktemp("agents"))


def run(folder: Path, agents: Path | None, units: list[RobotUnit], variant: str | None = None, **more: Any) -> Any:
    return reproduction(
        units,
        {"hopper": RECIPE},
        folder / "r.csv",
        folder / "work",
        Demonstrations(folder / "data", agents),
        variant_named(variant),
        **more,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, agents: Path) -> Path:
    """A finished run of one pair."""
    folder = tmp_path_factory.mktemp("done")
    run(folder, agents, [NOISY]).run()
    return folder


def values(folder: Path, variant: str = "") -> dict[tuple[str, str], float]:
    return {short_key(one): one.value for one in read_results(folder / "r.csv") if one.variant == variant}


def test_units_are_chosen() -> None:
    assert len(select()) == 27 and [unit.seed for unit in select()[::9]] == [1, 2, 3]
    assert [str(unit) for unit in select(quick=True)] == [
        f"{name} noisy seed 1" for name in ("hopper", "halfcheetah", "walker2d")
    ]
    assert select(["walker2d"], ["mixture"], [7, 7], quick=True) == [RobotUnit("walker2d", "mixture", 7)]
    with pytest.raises(ValueError, match="robot must be one of hopper, halfcheetah, walker2d, got 'ant'"):
        select(["ant"])
    with pytest.raises(ValueError, match="case must be one of noisy, replay, mixture, got 'x'"):
        select(cases=["x"])
    with pytest.raises(ValueError, match=r"variant must be one of sweep, .*, got 'x'"):
        variant_named("x")


def test_a_kind_of_data_may_have_numbers_of_its_own(tmp_path: Path) -> None:
    given = {**RECIPE, "case": {"replay": {"steering": {"scale": 0.5}}}}
    recipe = of_case(given, "replay")
    assert recipe["steering"] == {**RECIPE["steering"], "scale": 0.5} and "case" not in recipe
    assert of_case(given, "noisy") == RECIPE == of_case(RECIPE, "replay")
    with_case, without = (
        LocomotionExperiment({"hopper": one}, tmp_path, Demonstrations(tmp_path)) for one in (given, RECIPE)
    )
    assert with_case.digest(NOISY) == without.digest(NOISY)  # units of other data stay finished
    replay = RobotUnit("hopper", "replay", 1)
    assert with_case.digest(replay) != without.digest(replay)
    with pytest.raises(ValueError, match=r"recipe section \[case\] must be one of noisy, replay, mixture, got 'x'"):
        of_case({**RECIPE, "case": {"x": {}}}, "noisy")


def test_a_pair_is_measured_and_kept(done: Path, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = values(done)
    ran = {agent for agent, metric in rows if metric == "return"}
    assert ran == {*AGENTS, "base-data", "expert-data"}
    for agent in ("base", "discriminator", "offline", "steered", "expert"):
        assert rows[agent, "cpu_seconds"] > 0
    assert rows["steered-base", "normalized_score"] == pytest.approx(
        rows["steered", "normalized_score"] - rows["base", "normalized_score"], abs=1e-4
    )
    # at scale 1 the exact difference makes the base the expert: the same plans from the same noise
    assert rows["exact-1", "return"] == pytest.approx(rows["expert", "return"], rel=0.05)
    monkeypatch.setattr("rrpolicy.experiments.locomotion.measure.measure_pair", pytest.fail)
    run(done, agents, [NOISY]).run()  # a second run has nothing to do


def test_data_are_those_of_the_recipe_and_collected_once(done: Path) -> None:
    demonstrations = Demonstrations(done / "data")  # no agents are needed any more
    base, expert = (demonstrations.load(NOISY, part, RECIPE) for part in ("base", "expert"))
    assert base.n_transitions == 400 and base.metadata["action_noise"] == 0.5 and expert.metadata["action_noise"] == 0
    assert values(done)["base-data", "return"] == pytest.approx(returns(base).mean(), rel=1e-4)
    assert base.metadata["agents"][0]["name"] == "sb3/sac-Hopper-v3"


def test_the_pair_shares_one_normaliser_of_both_data_sets(done: Path, agents: Path) -> None:
    store = RobotStore(done / "work", RECIPE, Demonstrations(done / "data", agents))
    base, expert = store.base(NOISY)[0], store.expert(NOISY)[0]
    assert base.fingerprint() == expert.fingerprint()
    everything = np.concatenate([one.observations for one in store.data(NOISY)])
    normalised = base.normalizer.observations.normalize(everything)
    np.testing.assert_allclose(normalised.mean(axis=0), 0, atol=1e-3)


def test_rounds_take_states_that_were_visited(done: Path, agents: Path) -> None:
    store = RobotStore(done / "work", RECIPE, Demonstrations(done / "data", agents))
    x_t, t = torch.randn(4, 4, 14), torch.arange(4)
    offline, steered = store.reward(NOISY, 0)[0], store.reward(NOISY)[0]
    assert not torch.equal(offline(x_t, t), steered(x_t, t))


def test_the_exact_difference_at_scale_0_is_the_base(done: Path, agents: Path) -> None:
    store = RobotStore(done / "work", RECIPE, Demonstrations(done / "data", agents))
    base, expert = store.base(NOISY)[0], store.expert(NOISY)[0]
    observations = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    for scale, same in ((0.0, base), (1.0, expert)):
        planner = BlendedPlanner(base, expert, scale)
        np.testing.assert_allclose(
            planner.predict(observations, deterministic=True)[0],
            same.predict(observations, deterministic=True)[0],
            atol=1e-5,
        )
    for start, weak, same in ((expert, expert, expert), (base, expert, base)):  # the pair's difference is zero
        planner = BlendedPlanner(start, expert, weak=weak)
        np.testing.assert_allclose(
            planner.predict(observations, deterministic=True)[0],
            same.predict(observations, deterministic=True)[0],
            atol=1e-5,
        )
    led, beyond = BlendedPlanner(expert, expert, 0.5, weak=base), BlendedPlanner(base, expert, 1.5)
    np.testing.assert_allclose(  # 1.5 of the expert less 0.5 of the base, either way
        *(planner.predict(observations, deterministic=True)[0] for planner in (led, beyond)), atol=1e-5
    )
    other = DiffusionAgent("MlpPolicy", "Hopper-v5", horizon=8, normalizer=base.normalizer, policy_kwargs=NETWORK)
    with pytest.raises(ValueError, match="event_shape"):
        BlendedPlanner(base, other)


def test_the_gap_closed_is_a_share_of_the_way() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(1000, 50, 64)

    def evaluation(returns: Any) -> Evaluation:
        return Evaluation(returns, None, np.ones(64, int), np.arange(64), None, "Hopper-v5")

    half, expert = base + rng.normal(500, 10, 64), base + 1000.0
    results = {"base": evaluation(base), "half": evaluation(half), "expert": evaluation(expert)}
    rows = comparisons(results, "base", "expert")
    by_key = {short_key(row): row for row in rows}
    share = by_key["half", "gap_closed"]
    assert share["mean"] == pytest.approx(0.5, abs=0.01) and share["ci_low"] < 0.5 < share["ci_high"] < 0.51
    assert by_key["expert-base", "normalized_score"]["mean"] == pytest.approx(1000 / (3234.3 + 20.27) * 100, rel=1e-3)
    upside_down = comparisons(results, "expert", "base")
    assert all(np.isnan(row["mean"]) for row in upside_down if row["metric"] == "gap_closed")  # not entered in a CSV


def test_steered_is_compared_with_offline_and_the_discriminator_episode_by_episode() -> None:
    """One row more for each of the two, and none of the others changes."""
    rng = np.random.default_rng(1)
    returns = {name: rng.normal(1000, 50, 64) for name in ("base", "discriminator", "offline", "expert")}
    returns["steered"] = returns["offline"] + 32.5457  # one hundredth of Hopper's scale, in every episode
    results = {
        name: Evaluation(values, None, np.ones(64, int), np.arange(64), None, "Hopper-v5")
        for name, values in returns.items()
    }
    rows = comparisons(results, "base", "expert")
    added = [row for row in rows if row.get("reference") not in (None, "base")]
    assert [(row["agent"], row["reference"]) for row in added] == [("steered", "offline"), ("steered", "discriminator")]
    assert {key: added[0][key] for key in ("mean", "ci_low", "ci_high")} == pytest.approx(
        {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0}, abs=1e-4
    )
    assert added[1]["ci_low"] < added[1]["mean"] < added[1]["ci_high"] and added[1]["n"] == 64
    few = {name: results[name] for name in ("base", "discriminator", "expert")}
    assert comparisons(few, "base", "expert") == [
        row for row in rows if row["agent"] in few and row.get("reference", "base") == "base"
    ]


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        ("sweep", {("scale-0.5", "return"), ("best-of-8", "return"), ("chunk-4-base", "normalized_score")}),
        (
            "transfer",
            {
                ("data-base-steered", "return"),
                ("early-base-steered", "return"),
                ("seed-base-exact", "return"),
                ("seed-base-steered-seed-base", "normalized_score"),
            },
        ),
        ("use", {("reward", "spearman_window_reward"), ("discriminator", "spearman_window_reward")}),
        ("discriminators", {("discriminator-4", "return"), ("discriminator-2-unbounded-base", "normalized_score")}),
        ("clean-gradients", {("clean-0.1", "return"), ("clean-0.03-base", "normalized_score"), ("steered", "return")}),
        ("few", {("offline-base", "normalized_score"), ("steered-base", "normalized_score")}),
        pytest.param(  # as the others; the controller is tested in test_inverse_dynamics
            "inverse-dynamics", {("exact-0.25", "return"), ("steered", "return")}, marks=pytest.mark.slow
        ),
    ],
)
def test_variants(done: Path, agents: Path, variant: str, wanted: set[tuple[str, str]]) -> None:
    run(done, agents, [NOISY], variant).run()
    rows = values(done, variant)
    assert wanted <= set(rows)
    if variant == "few":  # the experiment's own pair and reward, in its episodes, without what is compared
        assert {agent for agent, metric in rows if metric == "return"} == {
            *("base", "offline", "steered", "expert"),
            *("base-data", "expert-data"),
        }
        assert rows["steered", "return"] == values(done)["steered", "return"]
    if variant == "sweep":  # scale 1 is the experiment's own steering; a bare best-of-8 begins from the base's plans
        assert rows["scale-1", "return"] == pytest.approx(values(done)["steered", "return"], rel=1e-4)


def test_students(done: Path, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"visits": {"n_envs": 2, "first_steps": 6, "round_steps": 4}, "fast": False}
    monkeypatch.setitem(RECIPE, "distillation", {"total_timesteps": 4, "n_rounds": 1, **small})
    run(done, agents, [NOISY], "distilled").run()
    rows = values(done, "distilled")
    students = {"student", "student-of-data", "expert-student", "plans-1", "plans-2"}  # the planner takes two steps
    assert {agent for agent, metric in rows if metric == "return"} == {
        *("base", "steered", "expert", "cloning"),
        *students,
    }
    for name in students:
        assert rows[name, "cpu_seconds"] > 0 and (f"{name}-steered", "score_ratio") in rows
    for name in ("base", "steered", "expert"):  # the experiment's own, in its episodes
        assert rows[name, "return"] == pytest.approx(values(done)[name, "return"], rel=1e-4)


def test_learners_from_rewards(done: Path, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 16}
    monkeypatch.setitem(
        RECIPE,
        "finetuning",
        {
            "total_timesteps": 6,
            "n_cloning_steps": 4,
            "n_critic_steps": 2,
            "eval_freq": 4,
            "n_eval_episodes": 2,
            "arguments": small,
        },
    )
    for form in (CentredReward, BellmanReward):  # else thousands of gradient steps
        monkeypatch.setattr(form, "fit", partial(form.fit, total_timesteps=10, batch_size=16, width=8))
    stand_in(monkeypatch, 4)
    for variant, names in (
        ("finetune", {"SAC-clone", "SAC-reward", "SAC-centred", "SAC-split", "SAC-true"}),
        ("offline-rl", {"TD3+BC-of-base", "TD3+BC-of-both"}),
    ):
        run(done, agents, [NOISY], variant).run()
        rows = values(done, variant)
        assert {agent for agent, metric in rows if metric == "return"} == {"base", "expert", *names}
        assert rows["base", "return"] == pytest.approx(values(done)["base", "return"], rel=1e-4)  # the same episodes
        for name in names:
            took_time = rows[name, "cpu_seconds"] > 0 or variant == "offline-rl"  # whose stand-in may take none
            assert took_time and (f"{name}-base", "normalized_score") in rows
    for metric in ("action_error_base_states", "action_error_expert_states"):
        errors = {agent: value for (agent, one), value in values(done, "finetune").items() if one == metric}
        assert set(errors) == {"base", "expert", "SAC-clone", "SAC-reward", "SAC-centred", "SAC-split", "SAC-true"}
        assert min(errors.values()) > 0
    looks = {metric for agent, metric in values(done, "finetune") if agent == "SAC-reward" and "@" in metric}
    assert looks == {f"normalized_score@{steps}" for steps in (0, 4, 6)}
    kept = done / "work" / NOISY.name
    assert [len(list(kept.glob(f"{name}*.zip"))) for name in ("SAC-", "TD3+BC-")] == [5, 2]
    of_the_clone = {agent for agent, _ in values(done, "finetune") if agent.endswith("-SAC-clone")}
    assert of_the_clone == {f"SAC-{paid}-SAC-clone" for paid in ("reward", "centred", "split", "true")}
    # a unit that is measured again, as by a run that was stopped, trains nothing
    for name in ("finetune", "train_offline"):
        monkeypatch.setattr(f"rrpolicy.experiments.locomotion.measure_learning.{name}", pytest.fail)
    store = RobotStore(done / "work", variant_named("finetune").applied(RECIPE), Demonstrations(done / "data", agents))
    again = {(row["agent"], row["metric"]): row["mean"] for row, _ in measure_finetuning(store, NOISY).entries}
    assert again["SAC-reward", "return"] == pytest.approx(values(done, "finetune")["SAC-reward", "return"], rel=1e-4)
    assert "| finetune | hopper | noisy | SAC-reward |" in summary(read_results(done / "r.csv"))


class Ratio:
    """ρ of two Gaussian policies, N(0.5 s, 1) and N(-0.5 s, 1): s a of a step, the sum over a window."""

    layout = TrajectoryLayout(observation_dim=1, action_dim=1, horizon=3)

    def __init__(self, *heads: str) -> None:
        self.heads = heads

    def predict(self, observations: Any, actions: Any) -> Any:
        ratio = (observations * actions)[..., 0]
        return ratio if ratio.ndim == 1 else ratio.sum(axis=1)


def paid_by_ratio(sign: float = 1.0) -> TrajectoryDataset:
    """Episodes that are paid ρ or its contrary; the last one was under way, and what it was paid says nothing."""
    rng = np.random.default_rng(0)
    lengths = [12] * 10 + [40]
    observations, actions = rng.normal(size=(2, sum(lengths), 1))
    rewards = sign * (observations * actions)[:, 0]
    rewards[-40:] = 9.0  # the highest return by far, though ρ finds nothing in it
    returns = [float(part.sum()) for part in np.split(np.float32(rewards).astype(float)[:-40], 10)]
    return TrajectoryDataset.from_arrays(
        observations, actions, rewards, episode_lengths=lengths, metadata={"returns": returns}
    )


def test_rho_goes_with_the_true_reward_of_steps_windows_and_episodes() -> None:
    for sign in (1.0, -1.0):
        whole = paid_by_ratio(sign)
        data = whole.subset(range(10))
        rows = {row["metric"]: row for row in correlations("rho", Ratio("window", "step"), [data], 0)}  # type: ignore[arg-type]
        assert rows["spearman_step_reward"]["mean"] == pytest.approx(sign)
        assert rows["spearman_window_reward"]["mean"] == pytest.approx(sign)
        assert rows["spearman_episode_return_of_steps"]["mean"] == pytest.approx(sign)
        assert sign * rows["spearman_episode_return"]["mean"] > 0.7  # steps near the ends lie in fewer windows
        assert (rows["spearman_step_reward"]["n"], rows["spearman_window_reward"]["n"]) == (120, 100)
        # an episode that is not over has no return yet
        twice = correlations("rho", Ratio("step"), [whole, data], 0)  # type: ignore[arg-type]
        assert [row["metric"] for row in twice] == ["spearman_step_reward", "spearman_episode_return_of_steps"]
        assert twice[0]["n"] == 280 and twice[1]["n"] == 20 and twice[1]["mean"] == pytest.approx(sign)


def test_rewards_of_data_without_rewards_cannot_be_judged() -> None:
    for head in ("window", "step"):
        with pytest.raises(ValueError, match="has no rewards"):
            correlations("rho", Ratio(head), [paid_by_ratio().with_rewards(None)], 0)  # type: ignore[arg-type]
        blind = Ratio(head)
        blind.layout = None  # type: ignore[assignment]
        with pytest.raises(ValueError, match="cannot be compared"):
            correlations("rho", blind, [paid_by_ratio()], 0)  # type: ignore[arg-type]


def test_the_use_of_rho_is_measured_of_steps_too(done: Path, agents: Path) -> None:
    run(done, agents, [NOISY], "use").run()
    rows = values(done, "use")
    wanted = {("reward", f"spearman_{what}") for what in ("step_reward", "window_reward", "episode_return_of_steps")}
    assert wanted | {("reward-in-base", "spearman_step_reward")} <= set(rows)
    assert ("discriminator", "spearman_step_reward") not in rows  # which scores windows alone


def test_tables_and_figures_come_from_the_csv(done: Path) -> None:
    results = read_results(done / "r.csv")
    text = summary(results)
    assert "| hopper | noisy | steered |" in text and "| hopper | noisy | base-data |" in text
    units = values_of([one for one in results if one.case == "noisy" and not one.variant], UNIT_DONE)
    assert units and f" {sum(units) / len(units):.0f} |\n" in text  # the last column of the costs
    assert {path.name for path in draw(results, done / "r.csv")} == {"scores.png", "sweep.png"}
    assert summary([]) == "" and draw([], done / "r.csv") == []


def test_panels_stand_three_in_a_row_by_kind_of_data() -> None:
    panels = [(robot, case) for robot in PAPER for case in CASES if (robot, case) != ("hopper", "replay")]
    rows = [
        Result(robot, case, 1, "", "base", metric, 20.0, 10.0, 30.0, 8, 1.0, "0", "r")
        for robot, case in panels
        for metric in ("return", "normalized_score")
    ]
    axes = scores(rows).axes
    assert [one.get_title() for one in axes] == [
        f"{robot}, {case} data" for case in CASES for robot in PAPER if (robot, case) in panels
    ]
    rows_and_columns = [(one.get_subplotspec().rowspan.start, one.get_subplotspec().colspan.start) for one in axes]
    assert rows_and_columns == [divmod(index, 3) for index in range(8)]
    named = [any(label.get_text() for label in one.get_yticklabels()) for one in axes]
    assert named == [index % 3 == 0 for index in range(8)]


def test_units_without_data_are_left_out(tmp_path: Path, agents: Path) -> None:
    said: list[str] = []
    replay = RobotUnit("hopper", "replay", 1)
    assert run(tmp_path, agents, [replay], log=said.append).run() == []
    assert said[0] == f"hopper replay seed 1: no data in {tmp_path / 'data'}, left out"
    with pytest.raises(ValueError, match=r"no data in .*hopper-replay-base, and recipe 'hopper' does not say how"):
        Demonstrations(tmp_path / "data").load(replay, "base", RECIPE)


def test_the_command(done: Path, agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "zoo" / "recipes"
    folder.mkdir(parents=True)
    monkeypatch.setenv("RRPOLICY_ZOO", str(folder.parent))
    monkeypatch.setenv(RECIPES_VARIABLE, str(folder.parent / "recipes"))
    for name in ("Hopper", "HalfCheetah", "Walker2d"):
        recipe = {**RECIPE, "name": name.lower(), "environments": [f"{name}-*"]}
        (folder / f"{name.lower()}.toml").write_text(toml(recipe))
    given = ["reproduce", "locomotion", "--out", str(done / "r.csv"), "--work", str(done / "work")]
    given += ["--data", str(done / "data"), "--agents", str(agents), "--robot", "hopper", "--no-progress"]
    result = invoke([*given, "--figures-only"])
    assert result.exit_code == 0 and "| hopper | noisy | steered |" in result.output, result.output
    assert (done / "r" / "summary.md").read_text() in result.output
    fresh = invoke([*given[:2], "--out", str(tmp_path / "q.csv"), *given[4:], "--quick"])
    assert fresh.exit_code == 0 and "0 of 1 units done before" in fresh.output, fresh.output
    assert {one.n for one in read_results(tmp_path / "q.csv") if (one.agent, one.metric) == ("base", "return")} == {16}
