"""`check_agent`: SB3's ``predict`` contract in every clause, units of plans, one normaliser, a safe archive."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common.spaces import flat_for
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.testing.contracts import (
    TOLERANCE,
    check_archive,
    check_normalizer,
    check_refusal,
    demand,
    leaves_no_trace,
)

N_ENVS = 4
MAX_STEPS = 64


def check_agent(agent: Predictor, env: gym.Env[Any, Any], seed: int = 0) -> list[str]:
    """
    Hold an agent against its contracts.

    An agent that only predicts is held against *predict*; one that plans, against *units*; one with a ``normalizer``,
    against *one normaliser*; one with ``save`` and ``load``, against *archive*, but for a `GuidedPlanner` with a reward
    of the user's own, which no archive holds.

    :param agent: anything with ``predict``
    :param env: an environment that it was made for; it is reset and stepped
    :param seed: of the environment and of the random actions that lead to the observations
    :return: names of the contracts that were checked
    :raises ContractError: naming the first contract that is broken
    :raises ValueError: when the environment's actions are not a Box
    """
    trial = _Trial.of(agent, env, seed)
    for clause in _CLAUSES:
        clause(trial)
    checked = ["predict"]
    if hasattr(agent, "plan") and hasattr(agent, "layout"):
        _plan_units(trial)
        _guidance_units(agent)
        checked.append("units")
    if hasattr(agent, "normalizer") and hasattr(agent, "layout"):
        check_normalizer(agent.normalizer, agent.layout)
        _shared_normalizer(agent)
        checked.append("one normaliser")
    if hasattr(agent, "save") and hasattr(agent, "load") and not _steered_by_own_reward(agent):
        check_archive(agent, lambda one: one.predict(trial.first, deterministic=True)[0])
        checked.append("archive")
    return checked


@dataclass(frozen=True)
class _Trial:
    """An agent and what it is shown."""

    agent: Any
    action_space: gym.spaces.Box
    observations: Array  # (n_steps, N_ENVS, obs_dim)

    @classmethod
    def of(cls, agent: Any, env: gym.Env[Any, Any], seed: int) -> _Trial:
        env = flat_for(agent, env)
        space = env.action_space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"the environment's action space is {space}, wanted a Box")
        executed = getattr(getattr(agent, "planning", None), "n_action_steps", 8)
        n_steps = min(executed + 3, MAX_STEPS)
        streams = [_observations(env, space, n_steps, seed + i) for i in range(N_ENVS)]
        return cls(agent, space, np.stack(streams, axis=1))

    @property
    def first(self) -> Array:
        return self.observations[0]

    @property
    def starts(self) -> Array:
        """Episodes that begin at different times, one of them just when the others plan anew."""
        starts = np.zeros(self.observations.shape[:2], bool)
        starts[0] = True
        starts[-3, 0] = starts[2, 1] = True
        return starts

    def run(self, rows: slice, between: Callable[[], object] = lambda: None) -> list[Array]:
        """Deterministic actions of some environments over all steps; ``between`` is called before every step."""
        actions, state = [], None
        for observations, begins in zip(self.observations[:, rows], self.starts[:, rows], strict=True):
            between()
            action, state = self.agent.predict(observations, state, begins, deterministic=True)
            actions.append(action)
        return actions

    def call(self, observation: Array, state: State | None = None, **kwargs: Any) -> tuple[Array, State | None]:
        answer = self.agent.predict(observation, state, **kwargs)
        pair = isinstance(answer, tuple) and len(answer) == 2
        demand("predict", pair, f"predict returned a {type(answer).__name__}, wanted (actions, state)")
        return answer

    def close(self, one: Array, other: Array) -> bool:
        extent = self.action_space.high - self.action_space.low
        allowed = TOLERANCE * np.where(np.isfinite(extent), extent, 1 + np.abs(other))
        return one.shape == other.shape and bool((np.abs(one - other) <= allowed).all())


def _observations(env: gym.Env[Any, Any], space: gym.spaces.Box, n_steps: int, seed: int) -> Array:
    """One stream (n_steps, obs_dim) under uniform random actions; episodes follow each other."""
    rng = np.random.default_rng(seed)
    low, high = np.maximum(space.low, -1e3), np.minimum(space.high, 1e3)
    stream = [env.reset(seed=seed)[0]]
    while len(stream) < n_steps:
        observation, _, terminated, truncated, _ = env.step(rng.uniform(low, high).astype(space.dtype))
        stream.append(env.reset()[0] if terminated or truncated else observation)
    return np.array(stream)


# ---------------------------------------------------------------------- the clauses of predict


def _no_trace(trial: _Trial) -> None:
    """The first calls of all, so that what they change once is seen too; networks in training mode and then not."""
    observations, starts = trial.first.copy(), np.zeros(N_ENVS, bool)
    modules = _modules(trial.agent)
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    for training in (True, False):
        for part in parts:
            part.training = training
        with leaves_no_trace("predict", modules):
            _, state = trial.call(observations)
            kept = copy.deepcopy(state)
            trial.call(observations, state, episode_start=starts)
        same = np.array_equal(observations, trial.first) and not starts.any() and _same_state(state, kept)
        demand("predict", same, "predict changed its arguments")
    for part, mode in zip(parts, modes, strict=True):
        part.training = mode


def _shapes(trial: _Trial) -> None:
    shape = trial.action_space.shape
    for observation, wanted, n_envs in ((trial.first, (N_ENVS, *shape), N_ENVS), (trial.first[0], shape, 1)):
        actions, state = trial.call(observation, state=None, episode_start=np.ones(n_envs, bool), deterministic=True)
        fits = isinstance(actions, np.ndarray) and actions.shape == wanted
        seen = f"actions for observations {observation.shape} have shape {np.shape(actions)}, wanted {wanted}"
        demand("predict", fits, seen)
        arrays = isinstance(state, tuple) and all(isinstance(one, np.ndarray) and len(one) == n_envs for one in state)
        seen = f"state is {_outline(state)}, wanted None or a tuple of arrays with {n_envs} rows"
        demand("predict", state is None or arrays, seen)


def _outline(state: Any) -> str:
    if isinstance(state, tuple):
        return f"({', '.join(f'{type(one).__name__} {np.shape(one)}' for one in state)})"
    return f"a {type(state).__name__}"


def _bounds(trial: _Trial) -> None:
    for scale in (1.0, 100.0):
        for deterministic in (True, False):
            actions, _ = trial.agent.predict(scale * trial.first, deterministic=deterministic)
            inside = all(trial.action_space.contains(action) for action in actions)
            seen = f"actions from {actions.min()} to {actions.max()} ({actions.dtype}) leave {trial.action_space}"
            demand("predict", inside, seen)


def _function(trial: _Trial) -> None:
    first, state = trial.agent.predict(trial.first, deterministic=True)
    trial.agent.predict(trial.first, deterministic=False)
    again, state_again = trial.agent.predict(trial.first, deterministic=True)
    same = np.array_equal(first, again) and _same_state(state, state_again)
    demand("predict", same, "deterministic=True gave two answers to one observation")


def _memory(trial: _Trial) -> None:
    everyone, others = slice(None), trial.observations[-1, :2]
    undisturbed = trial.run(everyone)
    disturbed = trial.run(everyone, between=lambda: trial.agent.predict(others))
    same = all(np.array_equal(one, other) for one, other in zip(undisturbed, disturbed, strict=True))
    demand("predict", same, "calls for other environments changed the actions: memory must live in state alone")


def _episode_start(trial: _Trial) -> None:
    nobody, everybody, some = np.zeros(N_ENVS, bool), np.ones(N_ENVS, bool), np.arange(N_ENVS) < N_ENVS // 2
    _, state = trial.agent.predict(trial.first, None, everybody, deterministic=True)
    moved = trial.observations[1, ::-1].copy()  # what another environment saw: the plan of before does not fit it

    def act(memory: State | None, starts: Array | None) -> Array:
        return trial.agent.predict(moved, memory, starts, deterministic=True)[0]

    fresh, kept, mixed = act(None, everybody), act(state, nobody), act(state, some)
    demand("predict", trial.close(mixed[some], fresh[some]), "episode_start=True did not forget the last episode")
    demand("predict", trial.close(mixed[~some], kept[~some]), "an episode_start reached another environment's memory")
    demand("predict", trial.close(act(state, None), kept), "episode_start=None is not the same as all False")


def _alone(trial: _Trial) -> None:
    together = trial.run(slice(None))
    for i in range(N_ENVS):
        for step, (one, other) in enumerate(zip(trial.run(slice(i, i + 1)), together, strict=True)):
            seen = f"environment {i} acts {other[i]} in a batch and {one[0]} alone, at step {step}"
            demand("predict", trial.close(one, other[i : i + 1]), seen)


def _one_call(trial: _Trial) -> None:
    networks = {part for module in _modules(trial.agent) for part in module.modules()}
    calls: list[nn.Module] = []
    hooks = [network.register_forward_hook(lambda network, *_: calls.append(network)) for network in networks]
    counts = []
    for n_envs in (1, N_ENVS):
        calls.clear()
        trial.agent.predict(trial.first[:n_envs])
        counts.append(len(calls))
    for hook in hooks:
        hook.remove()
    seen = f"networks were called {counts[0]} times for 1 environment and {counts[1]} times for {N_ENVS}: use one batch"
    demand("predict", counts[0] == counts[1], seen)


def _refusals(trial: _Trial) -> None:
    width = trial.first.shape[-1]
    for shape in ((width + 1,), (N_ENVS, width + 1)):
        check_refusal("predict", partial(trial.agent.predict, np.zeros(shape)), (shape, width), f"shape {shape}")
    for value in (np.nan, np.inf):
        spoilt = np.full((N_ENVS, width), value)
        check_refusal("predict", partial(trial.agent.predict, spoilt), (spoilt.shape, width), f"{value}")


def _imitation(trial: _Trial) -> None:
    demand("predict", callable(trial.agent), "imitation wants agent(observations, states, episode_starts) to be a call")
    actions, _ = trial.agent(trial.first, None, np.ones(N_ENVS, bool))
    wanted = (N_ENVS, *trial.action_space.shape)
    demand("predict", np.shape(actions) == wanted, f"__call__ gave shape {np.shape(actions)}, wanted {wanted}")


_CLAUSES: tuple[Callable[[_Trial], None], ...] = (
    _no_trace,
    _shapes,
    _bounds,
    _function,
    _memory,
    _episode_start,
    _alone,
    _one_call,
    _refusals,
    _imitation,
)


# ---------------------------------------------------------------------- units, one normaliser


def _plan_units(trial: _Trial) -> None:
    layout: TrajectoryLayout = trial.agent.layout
    plans = trial.agent.plan(trial.first)
    wanted = (N_ENVS, layout.horizon, len(layout.columns))
    demand("units", np.shape(plans) == wanted, f"plans have shape {np.shape(plans)}, wanted {wanted}")
    columns = list(layout.columns)
    here = trial.first[:, columns]
    seen = f"a plan begins at {plans[0, 0]}, the observation is {here[0]} in environment units"
    varies = slice(None)
    if hasattr(trial.agent, "normalizer"):
        varies = trial.agent.normalizer.observations.scale[columns] > 0
    demand("units", np.allclose(plans[:, 0, varies], here[:, varies], rtol=1e-4, atol=1e-4), seen)


def _guidance_units(agent: Any) -> None:
    """ε ← ε_base - scale · σ_t · ∇ρ, each entry bounded by ``max_shift``, or its form at the clean estimate."""
    if not isinstance(agent, GuidedPlanner):
        return
    x_t = torch.randn(4, *agent.layout.event_shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, agent.process.n_diffusion_steps - 1, 4).long()
    with torch.no_grad():
        base, pinned = agent.agent._denoiser(), torch.tensor(agent.layout.pinned)
        options = {"pinned": pinned, "gradient_at": agent.gradient_at}
        wanted = guided(base, agent.reward, agent.process, agent.scale, agent.max_shift, **options)(x_t, t)  # type: ignore[arg-type]
        seen = agent._denoiser()(x_t, t)
    demand("units", torch.allclose(seen, wanted, rtol=1e-3, atol=1e-4), "guidance is not ε - scale·σ·∇ρ")


def _shared_normalizer(agent: Any) -> None:
    if isinstance(agent, GuidedPlanner):
        shared = agent.normalizer == agent.agent.normalizer
        if isinstance(agent.reward, RelativeReward):
            shared = shared and agent.normalizer == agent.reward.normalizer
        demand("one normaliser", shared, "base, reward and planner do not share one normaliser")
    elif hasattr(agent, "fingerprint"):
        held = agent.normalizer.fingerprint() in agent.fingerprint()
        demand("one normaliser", held, f"the fingerprint {agent.fingerprint()!r} does not hold the normaliser's")


# ---------------------------------------------------------------------- helpers


def _steered_by_own_reward(agent: Any) -> bool:
    return isinstance(agent, GuidedPlanner) and not isinstance(agent.reward, RelativeReward)


def _same_state(one: State | None, other: State | None) -> bool:
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return type(one) is type(other)  # None, or a kind that another clause refuses
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _modules(agent: Any, depth: int = 2) -> list[nn.Module]:
    """Networks that an agent holds, also through the agents that it holds."""
    found: list[nn.Module] = []
    for value in getattr(agent, "__dict__", {}).values():
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth and hasattr(value, "predict") and hasattr(value, "__dict__"):
            found.extend(_modules(value, depth - 1))
    return found
