"""`check_reward`: one number per event with exact gradients, the same in environment units, and a safe archive."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.relative_reward import Head, RelativeReward
from rrpolicy.testing.contracts import (
    TOLERANCE,
    check_archive,
    check_normalizer,
    check_refusal,
    demand,
    leaves_no_trace,
)

N_EVENTS = 6


def check_reward(reward: RelativeReward, seed: int = 0) -> list[str]:
    """
    Hold a reward against its contracts: *units*, *one normaliser* (for rewards of windows) and *archive*.

    :param reward: relative reward, learned or not
    :param seed: of the events that it is evaluated at
    :return: names of the contracts that were checked
    :raises ContractError: naming the first contract that is broken
    """
    x_t = torch.randn(N_EVENTS, *reward.event_shape, generator=torch.Generator().manual_seed(seed)).to(reward.device)
    t = torch.linspace(0, reward.process.n_diffusion_steps - 1, N_EVENTS).long().to(reward.device)
    for head in reward.heads:
        _values(reward, x_t, t, head)
        _gradient(reward, x_t, t, head)
    _no_trace(reward, x_t, t)
    _guidance(reward, x_t, t)
    _refusals(reward, x_t, t)
    checked = ["units"]
    if reward.layout is not None and reward.normalizer is not None:
        _environment_units(reward, reward.layout, reward.normalizer)
        check_normalizer(reward.normalizer, reward.layout)
        checked.append("one normaliser")
    check_archive(reward, lambda one: one(x_t.to(one.device), t.to(one.device)).detach().cpu().numpy())
    return [*checked, "archive"]


def _values(reward: RelativeReward, x_t: Tensor, t: Tensor, head: Head) -> None:
    rho = reward(x_t, t, head).detach()
    fits = rho.shape == t.shape and bool(torch.isfinite(rho).all())
    demand("units", fits, f"ρ ({head}) of {len(t)} events is {rho}, wanted {len(t)} finite numbers")
    alone = torch.cat([reward(x_t[i : i + 1], t[i : i + 1], head) for i in range(len(t))]).detach()
    allowed = TOLERANCE * (1 + rho.abs().max())
    demand("units", bool(((alone - rho).abs() <= allowed).all()), f"ρ ({head}) of an event depends on its batch")


def _gradient(reward: RelativeReward, x_t: Tensor, t: Tensor, head: Head) -> None:
    """∇ρ against central differences in double precision."""
    exact, x, h = copy.deepcopy(reward).double(), x_t.double(), 1e-5
    gradient = exact.gradient(x, t, head)
    still = (gradient[:, exact.pinned] == 0).all()
    demand("units", bool(still), f"∇ρ ({head}) is not zero at pinned entries")
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction[:, exact.pinned] = 0
    with torch.no_grad():
        slope = (exact(x + h * direction, t, head) - exact(x - h * direction, t, head)) / (2 * h)
    along = (gradient * direction).flatten(1).sum(dim=1)
    worst = int((along - slope).abs().argmax())
    same = (along - slope).abs().max() <= TOLERANCE * (slope.abs().max() + 1e-6)
    seen = f"∇ρ ({head}) along a direction is {along[worst]:.4g}, ρ changes by {slope[worst]:.4g}"
    demand("units", bool(same), seen)


def _no_trace(reward: RelativeReward, x_t: Tensor, t: Tensor) -> None:
    given = x_t.clone()
    with leaves_no_trace("units", [reward]):
        reward.gradient(x_t, t)
        with torch.no_grad():
            reward(x_t, t)
    clean = torch.equal(given, x_t) and not x_t.requires_grad and x_t.grad is None
    demand("units", clean, "asking for ρ or ∇ρ changed x_t")


def _guidance(reward: RelativeReward, x_t: Tensor, t: Tensor) -> None:
    sigma = reward.process.levels(x_t, t)[1]
    for scale in (0.0, 1.0, 2.0):
        eps = guided(lambda x, _: torch.ones_like(x), reward, reward.process, scale)(x_t, t)
        same = torch.allclose(eps, 1 - scale * sigma * reward.gradient(x_t, t), rtol=1e-4, atol=1e-5)
        demand("units", same, f"guidance at scale {scale} is not ε - scale·σ·∇ρ")


def _refusals(reward: RelativeReward, x_t: Tensor, t: Tensor) -> None:
    length = reward.event_shape[0] + 1
    wrong = torch.zeros(len(t), length, *reward.event_shape[1:], device=t.device)
    check_refusal("units", lambda: reward(wrong, t), (tuple(wrong.shape), reward.event_shape[0]), "a wrong event shape")
    check_refusal("units", lambda: reward(x_t, t[:-1]), (tuple(t[:-1].shape), len(t)), "a wrong number of levels")


def _environment_units(reward: RelativeReward, layout: TrajectoryLayout, normalizer: Normalizer) -> None:
    rng = np.random.default_rng(0)
    observations, actions = (
        affine.denormalize(rng.uniform(-1, 1, (N_EVENTS, layout.horizon, affine.width)).astype(np.float32))
        for affine in (normalizer.observations, normalizer.actions)
    )
    rows = layout.pack(normalizer.observations.normalize(observations), normalizer.actions.normalize(actions))
    x0, t = torch.as_tensor(rows).to(reward.device), torch.zeros(N_EVENTS, dtype=torch.int64, device=reward.device)
    head: Head = "window" if "window" in reward.heads else "step"
    with torch.no_grad():
        wanted = reward(torch.where(reward.pinned, x0, reward.process.alpha(0) * x0), t, head).cpu().numpy()
    seen = reward.predict(observations, actions, levels=[0])
    allowed = TOLERANCE * (1 + np.abs(wanted).max())
    same = np.shape(seen) == wanted.shape and bool((np.abs(seen - wanted) <= allowed).all())
    demand("units", same, f"predict in environment units is {seen}, ρ of the normalised windows is {wanted}")
    wrong = np.zeros((2, layout.observation_dim + 1))
    names = (wrong.shape, layout.observation_dim)
    check_refusal("units", lambda: reward.predict(wrong, actions[:2, 0]), names, "a wrong shape")
    spoilt = np.full_like(observations, np.nan)
    check_refusal("units", lambda: reward.predict(spoilt, actions), ("NaN",), "NaN")
