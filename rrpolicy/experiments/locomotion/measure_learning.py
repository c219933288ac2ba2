"""Policies trained on rewards: SAC that starts from the base's data, with ρ or the true reward, and TD3+BC, which is
trained on data with their true rewards alone. All run in the same episodes as the two diffusion agents.

Trained policies are kept with the other archives, so a unit that was stopped goes on with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.archive import read_archive
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.reference_scores import normalized_score, reference_score
from rrpolicy.evaluation import Evaluation, Row, paired_difference, result_row
from rrpolicy.experiments.locomotion.artifacts import PARTS, RobotStore
from rrpolicy.experiments.locomotion.measure_pair import SCORE, comparisons, metric_of, run
from rrpolicy.experiments.locomotion.spec import RobotUnit
from rrpolicy.experiments.recipes import build, section
from rrpolicy.experiments.report import paired_ratio
from rrpolicy.experiments.results import Log, Recorder
from rrpolicy.experiments.store import create_once
from rrpolicy.rewards.bellman import BellmanReward
from rrpolicy.rewards.centred import CentredReward
from rrpolicy.rewards.protocol import StepReward
from rrpolicy.rl.finetune import GAMMA, FinetuneSettings, SquashedReward, finetune, rho_of
from rrpolicy.rl.policies import POLICY_KINDS, MeanAction, load_policy, save_policy
from rrpolicy.rl.td3bc import OfflineSettings, train_offline

OURS, CENTRED, SPLIT, TRUE = "SAC-reward", "SAC-centred", "SAC-split", "SAC-true"
CLONE = "SAC-clone"  # what each of them starts from
N_STATES = 2_000  # at which actions are compared
_FORM = "logistic of rho, standardised over base and expert data"  # a policy trained on another form is not this one
_FORMS = {
    OURS: _FORM,
    CENTRED: f"{_FORM}, centred over the base's actions",
    SPLIT: f"{_FORM}, split by the soft Bellman equation at 1 nat",
}
_MAKES_THE_REWARD = ("agent", "base", "expert", "extraction", "rounds", "steering")  # sections of the recipe
Makers = dict[str, Callable[[], Mapping[str, Predictor]]]


def measure_finetuning(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """
    SAC from the base's data, trained on ρ, on ρ centred over the base's actions, on ρ split into rewards of steps or on
    the true reward, beside its clone of these data and the base; true scores during training included.

    The recipe's section ``[finetuning]`` may hold ``FinetuneSettings``; its extraction must give ρ a step head.
    """
    recorder = Recorder(log)
    recorder.start("extracting the reward")
    settings = build(FinetuneSettings, "finetuning", **store.recipe.get("finetuning", {}))
    makers = _pair(store, unit)
    for name in (CLONE, OURS, CENTRED, SPLIT, TRUE):
        recorder.start(f"training {name}")
        path = _finetuned(store, unit, name, settings)
        card = read_archive(path, POLICY_KINDS).card
        recorder.times(**{name: card["cpu_seconds"]})
        recorder.rows(_curve_rows(name, unit, card["curve"]), 0.0)
        makers[name] = lambda name=name, path=path: {name: MeanAction(load_policy(path))}  # type: ignore[misc]
    results = run(store, unit, makers, recorder)
    recorder.rows([*comparisons(results, "base", "expert"), *_against_clone(results), *_against_true(results)])
    recorder.rows(_action_errors(store, unit, makers))
    recorder.done()
    return recorder


def measure_offline(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """
    TD3+BC on the base's data and on those of both, beside the base.

    The recipe's section ``[offline]`` may hold ``OfflineSettings``.

    :raises ValueError: when something is to be trained and d3rlpy is not installed, saying how it can be
    """
    recorder = Recorder(log)
    settings = build(OfflineSettings, "offline", **store.recipe.get("offline", {}))
    base, expert = store.data(unit)
    makers = _pair(store, unit)
    for name, data in {"TD3+BC-of-base": [base], "TD3+BC-of-both": [base, expert]}.items():
        recorder.start(f"training {name}")
        path = _offline(store, unit, name, data, settings)
        recorder.times(**{name: read_archive(path, POLICY_KINDS).card["cpu_seconds"]})
        makers[name] = lambda name=name, path=path: {name: load_policy(path)}  # type: ignore[misc]
    recorder.rows(comparisons(run(store, unit, makers, recorder), "base", "expert"))
    recorder.done()
    return recorder


def _pair(store: RobotStore, unit: RobotUnit) -> Makers:
    """The two diffusion agents, with which others are compared."""
    return {"base": lambda: {"base": store.base(unit)[0]}, "expert": lambda: {"expert": store.expert(unit)[0]}}


def _curve_rows(name: str, unit: RobotUnit, curve: list[tuple[int, list[float]]]) -> list[Row]:
    """True scores after so many environment steps; 0 is the clone of the base's data."""
    known = reference_score(unit.env_id) is not None
    return [
        {
            **(
                result_row(name, SCORE, normalized_score(unit.env_id, np.array(returns)))
                if known
                else result_row(name, "return", np.array(returns))
            ),
            "step": steps,
        }
        for steps, returns in curve
    ]


def _against_clone(results: Mapping[str, Evaluation]) -> list[Row]:
    """What training on each reward added to the clone that it started from, in the same episodes."""
    metric = metric_of(results[CLONE])
    return [
        {
            "agent": name,
            "reference": CLONE,
            "metric": metric,
            **paired_difference(results[name], results[CLONE], metric),
        }
        for name in (OURS, CENTRED, SPLIT, TRUE)
    ]


def _against_true(results: Mapping[str, Evaluation]) -> list[Row]:
    """SAC trained on ρ compared with SAC trained on the true reward, as a difference and as a ratio."""
    ours, true = results[OURS], results[TRUE]
    names, metric = {"agent": OURS, "reference": TRUE}, metric_of(ours)
    return [
        {**names, "metric": metric, **paired_difference(ours, true, metric)},
        {
            "agent": OURS,
            "reference": TRUE,
            "metric": "score_ratio",
            **paired_ratio(ours.values(metric), true.values(metric)),
        },
    ]


def _action_errors(store: RobotStore, unit: RobotUnit, makers: Makers) -> list[Row]:
    """
    Squared distances of all agents' actions from the mean action of the demonstrator, whom the expert imitates, at
    states of the base's data and at states of the expert's. ρ can teach what the expert does no better than that.
    """
    demonstrator = store.demonstrations.demonstrator(unit, store.recipe)
    if demonstrator is None:
        return []
    rows, agents = [], {name: agent for make in makers.values() for name, agent in make().items()}
    for part, data in zip(PARTS, store.data(unit), strict=True):
        drawn = np.random.default_rng(unit.seed).choice(data.n_transitions, N_STATES)
        states = data.observations[drawn]
        right, _ = demonstrator.predict(states, deterministic=True)
        for name, agent in agents.items():
            squares = np.square(agent.predict(states)[0] - right).sum(axis=1)
            rows.append(result_row(name, f"action_error_{part}_states", squares))
    return rows


# ---------------------------------------------------------------------- archives


def _finetuned(store: RobotStore, unit: RobotUnit, name: str, settings: FinetuneSettings) -> Path:
    """The archive of a policy, whose card holds its cost and its curve."""
    if name == CLONE:
        settings = replace(settings, total_timesteps=0, n_critic_steps=0)
    rho = store.reward(unit)[0] if name in _FORMS else None
    data, made_with = store.data(unit), [asdict(settings)]
    if rho is not None:  # what the true reward makes does not depend on the pair
        made_with += [{part: store.recipe.get(part) for part in _MAKES_THE_REWARD}, {"paid": _FORMS[name]}]

    def make(path: Path) -> None:
        started, reward, transform = time.process_time(), None, None
        if rho is not None:  # the pair's data are where ρ was extracted; base data alone end where it matters
            reward = _paid(rho, name, data[0], unit, settings)
            transform = SquashedReward.fit(np.concatenate([rho_of(reward, one) for one in data]))
        trained = finetune(unit.task.make, data[0], reward, unit.seed, settings, transform=transform)
        card = {"cpu_seconds": time.process_time() - started, "curve": trained.curve}
        save_policy(trained.model, path, card)

    return _made(store, unit, name, made_with, make)


def _paid(
    rho: StepReward, name: str, base: TrajectoryDataset, unit: RobotUnit, settings: FinetuneSettings
) -> StepReward:
    """The form of ρ that an agent is trained on."""
    if name == CENTRED:
        return CentredReward.fit(rho, base, seed=unit.seed)
    if name == SPLIT:
        gamma = settings.arguments.get("gamma", GAMMA)
        return BellmanReward.fit(rho, base, gamma=gamma, time_limit=_time_limit(unit), seed=unit.seed)
    return rho


def _offline(
    store: RobotStore, unit: RobotUnit, name: str, data: list[TrajectoryDataset], settings: OfflineSettings
) -> Path:
    """The archive of a policy, whose card holds its cost."""

    def make(path: Path) -> None:
        time_limit, started = _time_limit(unit), time.process_time()
        actor = train_offline(data, time_limit, unit.seed, settings)
        save_policy(actor, path, {"cpu_seconds": time.process_time() - started}, "TD3+BC")

    return _made(store, unit, name, [asdict(settings)], make)


def _time_limit(unit: RobotUnit) -> int | None:
    """Steps after which the environment cuts episodes off."""
    env = unit.task.make()
    env.close()
    return None if env.spec is None else env.spec.max_episode_steps


def _made(store: RobotStore, unit: RobotUnit, name: str, made_with: list[Any], make: Callable[[Path], None]) -> Path:
    """An archive by what it was made with, the collection of its data included where the recipe names it."""
    data = section(store.recipe, "data").get(unit.case)
    return create_once(store.path(unit.name, name, (), *made_with, data), make)
