"""The latency benchmark: what it measures, and that its ratios are those of its medians."""

import numpy as np
import pytest
import torch
from tiny import RECIPE

from rrpolicy import benchmark


def test_rows_and_ratios_agree() -> None:
    torch.set_num_threads(2)
    try:
        rows = benchmark.latency(RECIPE, n_repeats=4)
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


def test_the_settings_are_what_they_claim_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    planners = []

    def times(planner: object, observations: np.ndarray, n_repeats: int) -> np.ndarray:
        planners.append(planner)
        return np.ones(n_repeats)

    monkeypatch.setattr(benchmark, "_times", times)
    benchmark.latency(RECIPE, n_repeats=1)
    guided, reference = planners[0], planners[-1]
    assert (guided.planning.sampler, guided.planning.n_sampling_steps, guided.planning.n_action_steps) == ("ddim", 5, 8)
    assert type(reference.agent.module.network).__name__ == "TemporalUnet"
    assert reference.agent.policy_kwargs == {"width": 32}
    assert reference.process.n_diffusion_steps == reference.planning.n_sampling_steps == 20
    assert reference.planning.sampler == "ddpm" and reference.planning.n_action_steps == 1


def test_at_least_one_repeat_is_needed() -> None:
    with pytest.raises(ValueError, match="n_repeats is 0"):
        benchmark.latency(RECIPE, n_repeats=0)
