"""Rows and results of experiments by short names: ``("steered-base", "return")``, ``("rho", "auroc_t10")``."""

from typing import Any


def short_key(one: Any, of_metric: bool = False) -> tuple[str, str]:
    """
    Agent and metric with everything else that the number is about.

    :param one: a row or a result
    :param of_metric: the reference belongs to the metric, as a class of images does, and not to the agent
    """
    get = one.get if isinstance(one, dict) else lambda name: getattr(one, name)
    agent, metric, reference, level, step = (get(name) for name in ("agent", "metric", "reference", "level", "step"))
    metric += ("" if level is None else f"_t{level}") + ("" if step is None else f"@{step}")
    if not reference:
        return agent, metric
    return (agent, f"{metric}_{reference}") if of_metric else (f"{agent}-{reference}", metric)
