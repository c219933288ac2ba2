"""The measurements of one unit of the locomotion experiment: all agents in the same episodes, compared with the base.

The share of the gap that is closed is (agent - base) / (expert - base), episode by episode, in normalised scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rrpolicy import experiments
from rrpolicy.agents.blended_planner import BlendedPlanner
from rrpolicy.common.typing import Predictor
from rrpolicy.data.reference_scores import normalized_score, reference_score
from rrpolicy.evaluation import Evaluation, Row, evaluate, paired_difference, result_row
from rrpolicy.experiments.locomotion.artifacts import PARTS, RobotStore, returns
from rrpolicy.experiments.locomotion.spec import RobotUnit
from rrpolicy.experiments.report import paired_ratio
from rrpolicy.experiments.results import Log, Recorder
from rrpolicy.experiments.scoring import environments, n_episodes
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rl.cloning import clone_behaviour

SCORE = "normalized_score"
MAX_ENVS = 64
ACTS_WITH_MEAN = ("cloning",)  # it has one spread for all states, with which it would fall; the others draw
UNBOUNDED = 10.0  # spreads of the data: a bound of guidance that is as good as none
BLENDS = (0.25, 0.5, 1.0)  # parts of the exact score difference; 1 is the ceiling
PAIRED = (("steered", "offline"), ("steered", "discriminator"))  # what rounds add, and what ρ adds to a classifier


def measure_pair(store: RobotStore, unit: RobotUnit, wanted: tuple[str, ...], log: Log = lambda text: None) -> Recorder:
    """
    Data, training and episodes of a pair.

    :param wanted: names of the agents that run, of ``variants.AGENTS``
    """
    recorder = Recorder(log)
    recorder.start("data")
    for part, data in zip(PARTS, store.data(unit), strict=True):
        recorder.rows(data_rows(f"{part}-data", unit, returns(data)))
    makers = agent_makers(store, unit, recorder)
    results = run(store, unit, {name: makers[name] for name in wanted}, recorder)
    recorder.rows(comparisons(results, "base", "expert"))
    recorder.start("R²")
    base, expert = store.base(unit)[0], store.expert(unit)[0]
    held_out = store.sources(unit)[1]
    recorder.rows(experiments.explained_rows(store.reward(unit)[0], base, expert, held_out, store.recipe, unit.seed))
    recorder.done()
    return recorder


def data_rows(name: str, unit: RobotUnit, episode_returns: Any) -> list[Row]:
    """Return and score of data, where their episodes are known."""
    if not len(episode_returns):
        return []
    rows = [result_row(name, "return", episode_returns)]
    if reference_score(unit.env_id) is not None:
        rows.append(result_row(name, SCORE, normalized_score(unit.env_id, episode_returns)))
    return rows


def agent_makers(
    store: RobotStore, unit: RobotUnit, recorder: Recorder
) -> dict[str, Callable[[], Mapping[str, Predictor]]]:
    """Functions that make the agents, called only for those wanted: each gives names and agents."""

    def trained(name: str, made: tuple[Any, float]) -> Any:
        recorder.times(**{name: made[1]})
        return made[0]

    def steered(name: str, made: tuple[Any, float]) -> Mapping[str, Predictor]:
        return {name: experiments.steer(base(), trained(name, made), store.recipe)}

    def base() -> Any:
        return store.base(unit)[0]

    def exact() -> Mapping[str, Predictor]:
        expert = store.expert(unit)[0]
        return {f"exact-{scale:g}": BlendedPlanner(base(), expert, scale) for scale in BLENDS}

    def demonstrator() -> Mapping[str, Predictor]:
        found = store.demonstrations.demonstrator(unit, store.recipe)
        return {} if found is None else {"demonstrator": found}

    cloning = store.recipe.get("cloning", {})
    return {
        "base": lambda: {"base": trained("base", store.base(unit))},
        "discriminator": lambda: steered("discriminator", store.discriminator(unit)),
        "offline": lambda: steered("offline", store.reward(unit, 0)),
        "steered": lambda: steered("steered", store.reward(unit)),
        "exact": exact,
        "expert": lambda: {"expert": trained("expert", store.expert(unit))},
        "cloning": lambda: {
            "cloning": clone_behaviour(
                store.data(unit)[1], seed=unit.seed, **{"action_space": base().action_space, **cloning}
            )
        },
        "demonstrator": demonstrator,
    }


def run(
    store: RobotStore, unit: RobotUnit, makers: Mapping[str, Callable[[], Mapping[str, Predictor]]], recorder: Recorder
) -> dict[str, Evaluation]:
    """Evaluate all agents in the same episodes of the real environment; their rows go into the recorder."""
    count, results = n_episodes(store.recipe), {}
    with environments(unit.task, min(count, MAX_ENVS)) as envs:
        for what, make in makers.items():
            recorder.start(f"making {what}")
            for name, agent in make().items():
                recorder.start(f"episodes of {name}")
                mean = name in ACTS_WITH_MEAN
                results[name] = evaluate(agent, envs, count, seed=unit.seed * 1000, deterministic=mean)
                recorder.rows(results[name].rows(name))
    return results


def comparisons(results: Mapping[str, Evaluation], low: str, high: str) -> list[Row]:
    """
    Every agent compared with the agent ``low``, its share of the gap between ``low`` and ``high``, and the differences
    :data:`PAIRED` of agents that both ran.

    In normalised scores, or in returns where the environment has none.
    """
    rows: list[Row] = []
    if low not in results:
        return rows
    metric = metric_of(results[low])
    for name, result in results.items():
        if name != low:
            number = paired_difference(result, results[low], metric)
            rows.append({"agent": name, "reference": low, "metric": metric, **number})
        if high in results and name not in (low, high):
            gains = (one.values(metric) - results[low].values(metric) for one in (result, results[high]))
            rows.append({"agent": name, "metric": "gap_closed", **paired_ratio(*gains)})
    for name, reference in PAIRED:
        if {name, reference} <= set(results):
            number = paired_difference(results[name], results[reference], metric)
            rows.append({"agent": name, "reference": reference, "metric": metric, **number})
    return rows


def metric_of(result: Evaluation) -> str:
    """The normalised score, or the return where the environment has none."""
    return "return" if result.normalized_scores is None else SCORE


# ---------------------------------------------------------------------- other options of steering, other bases


def measure_sweep(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """The same base and ρ with one option of steering changed at a time."""
    options: dict[str, dict[str, Any]] = {
        **{f"scale-{scale:g}": {"scale": scale} for scale in (0.25, 0.5, 1.0, 1.5, 2.0)},
        **{f"steps-{steps}": {"n_sampling_steps": steps} for steps in (10, 20)},
        **{f"chunk-{chunk}": {"n_action_steps": chunk} for chunk in (1, 2, 4)},
        "best-of-8": {"scale": 0.0, "n_candidates": 8},
        "gradient-and-best-of-4": {"n_candidates": 4},
    }
    return _steered_with(store, unit, store.reward(unit)[0], options, Recorder(log))


def measure_discriminators(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """The base steered by the discriminator at several scales, within the recipe's bound of a step and without one."""
    options: dict[str, dict[str, Any]] = {f"discriminator-{scale:g}": {"scale": scale} for scale in (1.0, 2.0, 4.0)}
    free = {f"{name}-unbounded": {**given, "max_shift": UNBOUNDED} for name, given in options.items()}
    return _steered_with(store, unit, store.discriminator(unit)[0], {**options, **free}, Recorder(log))


def measure_clean_gradients(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """The base steered by ∇ρ at its clean estimate, as Q-Guided Flow takes it, at several scales, beside the usual."""
    options: dict[str, dict[str, Any]] = {
        f"clean-{scale:g}": {"scale": scale, "gradient_at": "clean"} for scale in (0.01, 0.03, 0.1)
    }
    return _steered_with(store, unit, store.reward(unit)[0], {**options, "steered": {}}, Recorder(log))


def _steered_with(
    store: RobotStore,
    unit: RobotUnit,
    reward: RelativeReward,
    options: Mapping[str, Mapping[str, Any]],
    recorder: Recorder,
) -> Recorder:
    """The base steered with each of several options, beside base and expert."""
    base = store.base(unit)[0]
    makers: dict[str, Callable[[], Mapping[str, Predictor]]] = {
        name: lambda name=name, given=given: {name: experiments.steer(base, reward, store.recipe, **given)}  # type: ignore[misc]
        for name, given in options.items()
    }
    makers |= {"base": lambda: {"base": base}, "expert": lambda: {"expert": store.expert(unit)[0]}}
    recorder.rows(comparisons(run(store, unit, makers, recorder), "base", "expert"))
    recorder.done()
    return recorder


def measure_transfer(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """
    Steer bases that ρ was not extracted from; their gain is reported beside that of the pair's own base.

    Rows ``-exact`` follow the exact score difference of the pair at scale 1, which ρ approaches.
    """
    recorder = Recorder(log)
    recorder.start("training other bases")
    reward, own, expert = store.reward(unit)[0], store.base(unit)[0], store.expert(unit)[0]
    bases = {"base": own, **store.other_bases(unit)}
    makers: dict[str, Callable[[], Mapping[str, Predictor]]] = {"expert": lambda: {"expert": expert}}
    for name, base in bases.items():
        makers[name] = lambda name=name, base=base: {  # type: ignore[misc]
            name: base,
            f"{name}-steered": experiments.steer(base, reward, store.recipe),
            **({} if base is own else {f"{name}-exact": BlendedPlanner(base, expert, weak=own)}),
        }
    results = run(store, unit, makers, recorder)
    metric = metric_of(results["base"])
    own_gain = results["base-steered"].values(metric) - results["base"].values(metric)
    for name, base in bases.items():
        led = [one for one in (f"{name}-steered", f"{name}-exact") if one in results]
        recorder.rows(comparisons({one: results[one] for one in (name, *led, "expert")}, name, "expert"))
        for one in led if base is not own else ():
            gain = results[one].values(metric) - results[name].values(metric)
            recorder.rows([{"agent": one, "metric": "gain_kept", **paired_ratio(gain, own_gain)}])
    recorder.done()
    return recorder
