"""What is distilled from the steered planner, and from the expert in the same way: policies without planning, and
agents that plan without a reward in as many or fewer steps. All run in the same episodes as the pair and its teacher.

What was distilled is kept with the other archives, so a unit that was stopped goes on with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.planning import Planner
from rrpolicy.common.archive import read_archive
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.experiments.locomotion.artifacts import RobotStore
from rrpolicy.experiments.locomotion.measure_pair import agent_makers, comparisons, metric_of, run
from rrpolicy.experiments.locomotion.spec import RobotUnit
from rrpolicy.experiments.recipes import build
from rrpolicy.experiments.report import paired_ratio
from rrpolicy.experiments.results import Log, Recorder
from rrpolicy.experiments.store import create_once
from rrpolicy.rl.dagger import Dagger, Visits
from rrpolicy.rl.distill import Distillation
from rrpolicy.rl.distill_plans import PlanDistillation
from rrpolicy.rl.policies import POLICY_KINDS, load_policy, save_policy

COMPARED = ("base", "steered", "expert", "cloning")
_SECTIONS = ("agent", "base", "expert", "extraction", "rounds", "steering")  # of the recipe, which make the teachers
PLAN_STEPS = (1, 2, 3, 5)  # denoising steps of students that plan; the recipes' planners take five


@dataclass(frozen=True)
class DistillationSettings:
    """
    How students are distilled; a recipe's section ``[distillation]`` may hold these.

    :param total_timesteps: gradient steps of each fit
    :param n_rounds: of DAgger, for students that act
    :param n_plan_rounds: the same for students that plan
    :param visits: sizes of collections, arguments of `Visits`
    :param fast: teachers plan by ONNX Runtime (extra ``fast``)
    """

    total_timesteps: int = 6_000
    n_rounds: int = 3
    n_plan_rounds: int = 1
    visits: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = True

    def learned(self, learner: Dagger[Any], source: Any, n_rounds: int) -> Any:
        """The student that a learner has after these steps."""
        visits = build(Visits, "distillation", **self.visits)
        return learner.learn(source, self.total_timesteps, n_rounds=n_rounds, visits=visits, log_interval=0).student


def measure_distilled(store: RobotStore, unit: RobotUnit, log: Log = lambda text: None) -> Recorder:
    """
    Students of the steered planner and of the expert beside these, and a clone of the expert's data.

    ``student`` follows DAgger, ``student-of-data`` has labels of recorded states alone, ``expert-student`` is the
    expert distilled as ``student`` is. ``plans-K`` are agents that plan in K steps without the reward.

    :raises ValueError: without the extra ``fast``, unless the recipe says that it is not used
    """
    recorder = Recorder(log)
    settings = build(DistillationSettings, "distillation", store.recipe, **store.recipe.get("distillation", {}))
    known = agent_makers(store, unit, recorder)
    makers: dict[str, Callable[[], Mapping[str, Predictor]]] = {name: known[name] for name in COMPARED}
    steered = experiments.steer(store.base(unit)[0], store.reward(unit)[0], store.recipe)
    recorded = TrajectoryDataset.concatenate(store.data(unit))
    teachers: dict[str, tuple[Planner, Any]] = {
        "student": (steered, unit.task.make),
        "student-of-data": (steered, recorded),
        "expert-student": (store.expert(unit)[0], unit.task.make),
    }
    for name, (teacher, source) in teachers.items():
        recorder.start(f"distilling {name}")
        path = _student(store, unit, name, teacher, source, settings)
        recorder.times(**{name: read_archive(path, POLICY_KINDS).card["cpu_seconds"]})
        makers[name] = lambda name=name, path=path: {name: load_policy(path)}  # type: ignore[misc]
    for n_steps in (one for one in PLAN_STEPS if one <= steered.planning.n_sampling_steps):
        name = f"plans-{n_steps}"
        recorder.start(f"distilling {name}")
        path = _planning_student(store, unit, name, steered, n_steps, settings)
        recorder.times(**{name: read_archive(path, DiffusionAgent.kind).card["cpu_seconds"]})
        makers[name] = lambda name=name, path=path: {name: DiffusionAgent.load(path)}  # type: ignore[misc]
    results = run(store, unit, makers, recorder)
    recorder.rows(comparisons(results, "base", "expert"))
    metric = metric_of(results["steered"])
    for name in [name for name in results if name not in COMPARED]:
        ratio = paired_ratio(results[name].values(metric), results["steered"].values(metric))
        recorder.rows([{"agent": name, "reference": "steered", "metric": "score_ratio", **ratio}])
    recorder.done()
    return recorder


def _student(
    store: RobotStore, unit: RobotUnit, name: str, teacher: Planner, source: Any, settings: DistillationSettings
) -> Path:
    """The archive of a policy without planning, whose card holds its cost."""

    def make(path: Path) -> None:
        started = time.process_time()
        learner = Distillation(teacher.compile() if settings.fast else teacher, seed=unit.seed)
        student = settings.learned(learner, source, settings.n_rounds)
        save_policy(student, path, {"cpu_seconds": time.process_time() - started})

    return create_once(store.path(unit.name, name, _SECTIONS, asdict(settings)), make)


def _planning_student(
    store: RobotStore, unit: RobotUnit, name: str, teacher: Planner, n_steps: int, settings: DistillationSettings
) -> Path:
    """The archive of an agent that plans without the reward, whose card holds its cost."""

    def make(path: Path) -> None:
        started = time.process_time()
        learner = PlanDistillation(teacher.compile() if settings.fast else teacher, n_steps, seed=unit.seed)
        student = settings.learned(learner, unit.task.make, settings.n_plan_rounds)
        card = {"cpu_seconds": time.process_time() - started}
        student.save(path, resumable=False, card=card)

    return create_once(store.path(unit.name, name, _SECTIONS, asdict(settings)), make)
