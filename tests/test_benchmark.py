"""The latency benchmark: what it measures, and that its ratios are those of its medians."""

import numpy as np
import pytest
import torch
from helpers.recipes import RECIPE

from rrpolicy import experiments
from rrpolicy.agents.planning import Planner
from rrpolicy.evaluation import benchmark
from rrpolicy.experiments import Task
from rrpolicy.experiments.scoring import latency, latency_planners


def test_rows_and_ratios_agree() -> None:
    torch.set_num_threads(2)
    try:
        rows = latency(RECIPE, n_repeats=4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    values = {(row["agent"], row["metric"]): row["mean"] for row in rows}
    assert len(values) == len(rows) == 8 and min(values.values()) > 0
    guided, reference = values["guided", "plan_ms_median"], values["reference", "plan_ms_median"]
    assert values["guided", "step_ms_median"] == pytest.approx(guided / 8)
    assert values["guided", "step_ratio"] == pytest.approx(reference / (guided / 8))
    assert values["guided", "batch_64_ratio"] == pytest.approx(values["guided", "plan_ms_median_batch_64"] / guided)
    assert values["guided", "plan_ms_p90"] >= guided
    assert reference > guided  # 20 steps of a wide U-Net against 5 of a tiny MLP
    assert all(row["ci_low"] <= row["mean"] <= row["ci_high"] for row in rows)


def test_the_settings_are_what_they_claim_to_be() -> None:
    guided, reference = latency_planners(RECIPE)
    assert (guided.planning.sampler, guided.planning.n_sampling_steps, guided.planning.n_action_steps) == ("ddim", 5, 8)
    assert type(reference.agent.module.network).__name__ == "TemporalUnet"
    assert reference.agent.policy_kwargs == {"width": 32}
    assert reference.process.n_diffusion_steps == reference.planning.n_sampling_steps == 20
    assert reference.planning.sampler == "ddpm" and reference.planning.n_action_steps == 1


def test_at_least_one_repeat_is_needed() -> None:
    with pytest.raises(ValueError, match="n_repeats is 0"):
        latency(RECIPE, n_repeats=0)
    agent = experiments.new_agent(Task.create(), RECIPE, 0)
    with pytest.raises(ValueError, match="n_repeats is 0"):
        benchmark.decisions(agent, Task.create().make, "base", n_repeats=0)


def test_decisions_that_follow_a_plan_count_as_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is what 64 environments decide in the time of one plan and of all steps that follow it."""
    calls: list[tuple[int, bool]] = []
    predict = Planner.predict

    def counted(self: Planner, observation: np.ndarray, state: object = None, **more: object) -> object:
        calls.append((len(observation), state is None))
        return predict(self, observation, state, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Planner, "predict", counted)
    agent = experiments.new_agent(Task.create(), RECIPE, 0)
    rows = {row["metric"]: row for row in benchmark.decisions(agent, Task.create().make, "base", n_repeats=10)}
    warm_up, chunk = 3, agent.planning.n_action_steps
    assert calls.count((1, True)) == 2 * (warm_up + 10) and (1, False) not in calls
    assert calls.count((64, True)) == warm_up + 1
    assert calls.count((64, False)) == (warm_up + 1) * (chunk - 1)
    assert rows["decision_ms_median"]["mean"] <= rows["decision_ms_p90"]["mean"]
    assert {row["agent"] for row in rows.values()} == {"base"} and len(rows) == 4
    assert rows["decisions_per_second_batch_64"]["mean"] > 1e3 / rows["decision_cpu_ms_median"]["mean"]
