"""Earlier names, which warn and go on working."""

from __future__ import annotations

import warnings
from functools import wraps
from typing import Any

from rrpolicy.evaluation.results import Evaluation
from rrpolicy.evaluation.run import evaluate

_FORMER_ORDER = ("seed", "deterministic", "n_envs", "progress_bar", "record_observations")  # after n_eval_episodes


@wraps(evaluate, assigned=())
def evaluate_policy(*args: Any, **kwargs: Any) -> Evaluation:
    """Deprecated name of :func:`evaluate`, with its arguments in the order that they had."""
    warnings.warn(
        "evaluate_policy is deprecated, call evaluate: what follows n_eval_episodes is given by keyword",
        DeprecationWarning,
        stacklevel=2,
    )
    named = dict(zip(_FORMER_ORDER, args[3:], strict=False))
    return evaluate(*args[:3], *args[3 + len(named) :], **named, **kwargs)  # type: ignore[misc]
