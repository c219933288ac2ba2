"""A search for a recipe's numbers by the held-out loss, with Optuna; several processes may share one study.

Only numbers are searched that leave the meaning of the loss as it is, and only with seeds that no experiment is
evaluated with. The result is a recipe that names the study and its digest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.files import write_text
from rrpolicy.common.learner import Learner
from rrpolicy.common.version import __version__
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.experiments.locomotion.spec import SEEDS as LOCOMOTION_SEEDS
from rrpolicy.experiments.maze2d.spec import SEEDS as MAZE_SEEDS
from rrpolicy.experiments.recipes import Recipe, section, total_timesteps
from rrpolicy.experiments.runs import fingerprint
from rrpolicy.experiments.steps import new_agent, new_extractor
from rrpolicy.experiments.store import digest
from rrpolicy.experiments.task import Task

SEARCH, TUNED = "search", "tuned"  # sections of a recipe: ranges to be searched, and what they became
PARTS = {"agent": "base", "base": "base", "extraction": "extraction"}  # what is trained to judge a section's numbers
_TRAINING = ("learning_rate", "batch_size", "ema_decay", "weight_decay", "max_grad_norm", "total_timesteps")
TUNABLE: Mapping[str, tuple[str, ...]] = {  # entries, and tables of arguments, that leave the loss what it is
    "agent": (*_TRAINING[:-1], "policy_kwargs"),
    "base": _TRAINING,
    "extraction": (*_TRAINING, "buffer_size", "n_epochs", "window_kwargs", "step_kwargs"),
}
N_MEASUREMENTS = 10  # of the held-out loss in a trial
HELD_OUT = 0.1  # of the episodes
N_UNPRUNED = 4  # trials that run to their end before any is stopped early
_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+?)\s*(:log)?\s*")


@dataclass(frozen=True)
class Range:
    """
    The values that a number may take.

    :param low: the lowest
    :param high: the highest
    :param log: whether the logarithm is searched evenly
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def parse(cls, text: str) -> Range:
        """
        Read ``low..high`` or ``low..high:log``; whole numbers where both ends are written as such.

        :raises ValueError: for anything else
        """
        found = _RANGE.fullmatch(str(text))
        wanted = f"{text!r} is no range, wanted low..high or low..high:log, such as 1e-4..1e-2:log"
        if found is None:
            raise ValueError(wanted)
        try:
            ends = [int(end) if re.fullmatch(r"-?\d+", end) else float(end) for end in found.group(1, 2)]
        except ValueError:
            raise ValueError(wanted) from None
        low, high, log = *ends, found.group(3) is not None
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
            raise ValueError(f"{text!r} must rise from a finite number to another one, of a logarithm above 0")
        return cls(low, high, log)

    def suggest(self, trial: Any, name: str) -> float:
        """A value for a trial of Optuna."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        value: float = (trial.suggest_int if whole else trial.suggest_float)(name, self.low, self.high, log=self.log)
        return value

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Search:
    """
    A search for numbers of a recipe.

    :param recipe: every other number; its section ``[search]`` gives ranges that are not given here
    :param ranges: of entries ``section.key``
    :param data: demonstrations, a tenth of whose episodes is held out
    :param task: of the agent
    :param models: base and expert of an extraction; None to train a base
    :param seed: of every trial and of the search
    :raises ValueError: for entries that cannot be searched, or a seed that an experiment is evaluated with
    """

    recipe: Recipe
    ranges: Mapping[str, Range]
    data: Sequence[TrajectoryDataset]
    task: Task
    models: tuple[DiffusionAgent, DiffusionAgent] | None = None
    seed: int = 0
    part: str = field(init=False)

    def __post_init__(self) -> None:
        check_seed(self.seed, self.task)
        object.__setattr__(self, "part", _part_of(self.ranges))
        if (self.part == "extraction") != (self.models is not None):
            what = "needs base and expert" if self.part == "extraction" else "takes no base and expert"
            raise ValueError(f"a search in section [{next(iter(self.ranges)).split('.')[0]}] {what}")
        for name in self.ranges:
            section(self.recipe, name.split(".")[0])
        if (longest := total_timesteps(self.recipe_with({}), self.part)) < 1:
            raise ValueError(f"total_timesteps is {longest} in section [{self.part}], wanted at least 1")

    @property
    def name(self) -> str:
        """Of the study."""
        return f"{self.recipe.get('name') or 'recipe'}-{self.part}-{digest(self.facts)}"

    @property
    def facts(self) -> dict[str, Any]:
        """All that the trials depend on, so that processes share a study only if they search for the same."""
        models = [] if self.models is None else [one.fingerprint() for one in self.models]
        return {
            "recipe": self.recipe_with({}),
            "ranges": {name: str(one) for name, one in sorted(self.ranges.items())},
            "data": [fingerprint(one) for one in self.data],
            "task": self.task.to_card(),
            "models": models,
            "seed": self.seed,
            "version": __version__,
        }

    def recipe_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe with other numbers, without the sections about searching."""
        changed = {name: entries for name, entries in self.recipe.items() if name not in (SEARCH, TUNED)}
        for name, value in values.items():
            *path, last = name.split(".")
            table = changed
            for part in path:
                table[part] = dict(table.get(part, {}))
                table = table[part]
            table[last] = value
        return changed

    def loss(self, values: Mapping[str, Any], report: Callable[[int, float], bool]) -> float:
        """
        The lowest held-out loss of one training.

        :param values: of the entries that are searched
        :param report: called with the step and the lowest loss so far; whether to stop
        """
        recipe = self.recipe_with(values)
        steps = total_timesteps(recipe, self.part)
        pairs = [one.split(HELD_OUT, self.seed) for one in self.data]
        data, held_out = ([pair[i] for pair in pairs] for i in (0, 1))
        learner: Any = (
            new_agent(self.task, recipe, self.seed)
            if self.models is None
            else new_extractor(*self.models, recipe, self.seed)
        )
        freq = max(steps // N_MEASUREMENTS, 1)
        learner.learn(data, steps, _Report(report), eval_dataset=held_out, eval_freq=freq, log_interval=0)
        return float(learner.best_loss)


class _Report(BaseCallback):
    """Reports each new measurement of the held-out loss, and stops learning where that is wanted."""

    def __init__(self, report: Callable[[int, float], bool]) -> None:
        super().__init__()
        self._report, self._seen = report, 0

    def _on_step(self) -> bool:
        learner: Any = self.model
        measured = isinstance(learner, Learner) and learner.best_loss is not None
        freq = self.locals["watch"].freq
        if not measured or self.num_timesteps % freq:
            return True
        return not self._report(self.num_timesteps, float(learner.best_loss or 0.0))


def _part_of(ranges: Mapping[str, Range]) -> str:
    """
    What is trained to judge some entries.

    :raises ValueError: for none, entries that cannot be searched, or entries of different trainings
    """
    if not ranges:
        raise ValueError("nothing is searched: give --set section.key=low..high, or a section [search] in the recipe")
    for name in ranges:
        first, *rest = name.split(".")
        known = TUNABLE.get(first, ())
        nested = bool(rest) and rest[0].endswith("_kwargs")
        if not rest or rest[0] not in known or len(rest) != 1 + nested:
            wanted = ", ".join(f"{one}.{key}" for one, keys in TUNABLE.items() for key in keys)
            raise ValueError(
                f"{name} cannot be searched, for it would change what the held-out loss measures: wanted {wanted}"
            )
    parts = {PARTS[name.split(".")[0]] for name in ranges}
    if len(parts) > 1:
        raise ValueError(f"{', '.join(ranges)} belong to different trainings: search for them one after the other")
    return parts.pop()


def check_seed(seed: int, task: Task) -> None:
    """
    Refuse a seed that an experiment is evaluated with.

    :raises ValueError: naming the experiment
    """
    name, seeds = ("maze2d", MAZE_SEEDS) if task.is_maze else ("locomotion", LOCOMOTION_SEEDS)
    if seed in seeds:
        raise ValueError(f"seed {seed} evaluates the experiment {name}, as do all of {seeds}: tune with another one")


# ---------------------------------------------------------------------- the study


def tune(search: Search, study_file: Path, n_trials: int, log: Callable[[str], None] = lambda text: None) -> Any:
    """
    Run trials until a study has enough of them; processes that are given the same file share it.

    :param search: what is searched for
    :param study_file: journal of the study; made where missing
    :param n_trials: of the study, those of other processes and of before included
    :param log: called with a line about each trial
    :return: the study
    :raises ValueError: without the extra ``scale``, or when no trial came to its end
    """
    optuna = _optuna()
    study_file.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(study_file)))
    study = optuna.create_study(
        storage=storage,
        study_name=search.name,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=N_UNPRUNED),
        load_if_exists=True,
    )
    while sum(one.state.is_finished() for one in study.get_trials(deepcopy=False)) < n_trials:
        trial = study.ask()
        # of the trial's own number: processes that share a study draw differently, and one draws the same again
        study.sampler = optuna.samplers.TPESampler(seed=search.seed * 2**16 + trial.number)
        values = {name: one.suggest(trial, name) for name, one in search.ranges.items()}
        state, loss = _run(optuna, search, trial, values)
        study.tell(trial, loss if state is optuna.trial.TrialState.COMPLETE else None, state)
        found = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        log(f"trial {trial.number}: {found}: {state.name.lower()}{'' if loss is None else f', loss {loss:.5g}'}")
    if not any(one.state is optuna.trial.TrialState.COMPLETE for one in study.get_trials(deepcopy=False)):
        raise ValueError(f"{study_file}: none of {n_trials} trials came to its end; narrow the ranges")
    return study


def _run(optuna: Any, search: Search, trial: Any, values: Mapping[str, Any]) -> tuple[Any, float | None]:
    pruned = False

    def report(step: int, loss: float) -> bool:
        nonlocal pruned
        trial.report(loss, step)
        pruned = bool(trial.should_prune())
        return pruned

    try:
        loss = search.loss(values, report)
    except FloatingPointError:  # a learning rate that is too high
        return optuna.trial.TrialState.FAIL, None
    return (optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE), loss


def write_tuned(study: Any, search: Search, path: Path) -> dict[str, Any]:
    """
    Write the recipe with the best trial's numbers, and with a section about the study.

    :return: that section
    """
    trials = sorted(study.get_trials(deepcopy=False), key=lambda one: one.number)
    done = [[one.number, one.state.name, one.params, one.value] for one in trials if one.state.is_finished()]
    about = {
        "study": study.study_name,
        "digest": digest(done),
        "trials": len(done),
        "best_trial": study.best_trial.number,
        "held_out_loss": study.best_value,
        "seed": search.seed,
        "version": __version__,
        "ranges": {name: str(one) for name, one in search.ranges.items()},
    }
    tables = {**search.recipe_with(study.best_params), TUNED: about}
    tables.pop("name", None)  # that of its file
    header = f"# Found by `rrpolicy tune`: study {about['study']}, digest {about['digest']}.\n"
    write_text(path, header + _toml_writer().dumps(tables))
    return about


def _optuna() -> Any:
    """:raises ValueError: without the extra ``scale``"""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"tuning needs the scale extra: pip install 'rrpolicy[scale]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _toml_writer() -> Any:
    """:raises ValueError: without the extra ``scale``"""
    try:
        import tomli_w
    except ImportError as error:
        raise ValueError(f"tuning needs the scale extra: pip install 'rrpolicy[scale]' ({error})") from error
    return tomli_w
