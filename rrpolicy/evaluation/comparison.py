"""Several agents in the same episodes: equal seeds, hence equal starts, so that results are compared one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

from rrpolicy.common.arguments import whole
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation.results import Evaluation
from rrpolicy.evaluation.run import MAX_ENVS, EnvSource, environments, evaluate


def compare(
    agents: Mapping[str, Predictor],
    env: EnvSource,
    n_episodes: int = 48,
    seed: int = 0,
    *,
    deterministic: bool | Mapping[str, bool] = True,
    n_envs: int | None = None,
    before: Callable[[str], object] | None = None,
    after: Callable[[str, Evaluation], object] | None = None,
    **options: Any,
) -> dict[str, Evaluation]:
    """
    Evaluate several agents in the same episodes. Environments that are made from an id or a function are made once and
    shared by the agents, and closed at the end.

    >>> results = compare({"base": base, "steered": steered}, env, n_episodes=48)
    >>> paired_difference(results["steered"], results["base"], "return")

    :param agents: by name
    :param env: as in :func:`evaluate`
    :param n_episodes: for each agent
    :param seed: of the first episode of each agent
    :param deterministic: passed to ``predict``, for all agents or by name
    :param n_envs: copies to make, at most one per episode; default up to 64
    :param before: called with the name of each agent before its episodes
    :param after: called with the name and the results of each agent after its episodes
    :param options: further keywords of :func:`evaluate`
    :return: the results by name, in the order of the agents
    :raises ValueError: as :func:`evaluate`, when there are no agents, or ``deterministic`` does not name each of them
    """
    if not agents:
        raise ValueError("agents is empty, wanted at least one by name")
    modes = deterministic if isinstance(deterministic, Mapping) else dict.fromkeys(agents, deterministic)
    if missing := [name for name in agents if name not in modes]:
        raise ValueError(f"deterministic does not name {missing[0]!r}")
    whole("n_episodes", n_episodes, 1)
    if n_envs is not None:
        whole("n_envs", n_envs, 1)
    results: dict[str, Evaluation] = {}
    with ExitStack() as stack:
        shared = env
        if isinstance(env, str) or callable(env):
            shared, made = environments(env, min(n_episodes, n_envs or MAX_ENVS))
            for one in made:
                stack.enter_context(closing(one))
        for name, agent in agents.items():
            if before is not None:
                before(name)
            results[name] = evaluate(agent, shared, n_episodes, seed=seed, deterministic=modes[name], **options)
            if after is not None:
                after(name, results[name])
    return results
