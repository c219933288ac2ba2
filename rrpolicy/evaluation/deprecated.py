"""Earlier names, which warn and go on working."""

from __future__ import annotations

import warnings

from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation.results import Evaluation
from rrpolicy.evaluation.run import EnvSource, evaluate


def evaluate_policy(
    agent: Predictor,
    env: EnvSource,
    n_eval_episodes: int = 48,
    seed: int = 0,
    deterministic: bool = True,
    n_envs: int | None = None,
    progress_bar: bool = False,
    record_observations: bool = False,
    *,
    max_episode_steps: int | None = None,
) -> Evaluation:
    """Deprecated name of :func:`evaluate`, with its arguments in the order that they had."""
    warnings.warn(
        "evaluate_policy is deprecated, call evaluate: what follows n_eval_episodes is given by keyword",
        DeprecationWarning,
        stacklevel=2,
    )
    return evaluate(
        agent,
        env,
        n_eval_episodes,
        seed=seed,
        deterministic=deterministic,
        n_envs=n_envs,
        progress_bar=progress_bar,
        record_observations=record_observations,
        max_episode_steps=max_episode_steps,
    )
