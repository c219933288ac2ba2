"""Denoising and reward networks: shapes, what reaches the output, and what must not.

Nothing is trained here; the damped features are held against the expectation that they are meant to be.
"""

from typing import Any

import pytest
import torch

from rrpolicy.diffusion.embedding import FourierFeatures
from rrpolicy.diffusion.networks import NETWORKS, ResidualMLP, TemporalUnet
from rrpolicy.diffusion.process import DiffusionProcess

PROCESS = DiffusionProcess(20)
NARROW: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "n_blocks": 1, "n_fourier_features": 4},
    "unet": {"width": 8, "multipliers": (1, 2)},
    "transformer": {"width": 16, "n_blocks": 1, "n_heads": 2},
}


def pinned_row(horizon: int = 8, width: int = 3) -> torch.Tensor:
    mask = torch.zeros(horizon, width, dtype=torch.bool)
    mask[0, 1:] = True
    return mask


def build(name: str, horizon: int = 8, width: int = 3, pinned: torch.Tensor | None = None, **kwargs: Any) -> Any:
    pinned = pinned_row(horizon, width) if pinned is None else pinned
    return NETWORKS[name](PROCESS, (horizon, width), pinned, **{**NARROW[name], **kwargs})


@pytest.mark.parametrize("horizon", [1, 5, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_denoiser_s_output_has_the_event_s_shape(name: str, horizon: int) -> None:
    x_t = torch.randn(4, horizon, 3)
    assert build(name, horizon)(x_t, torch.tensor([0, 1, 10, 19])).shape == x_t.shape


@pytest.mark.parametrize("multipliers", [(1,), (2, 3), (1, 2, 4)])
def test_a_unet_takes_any_widths(multipliers: tuple[int, ...]) -> None:
    x_t = torch.randn(2, 6, 3)
    assert build("unet", 6, multipliers=multipliers)(x_t, torch.tensor([0, 19])).shape == x_t.shape


@pytest.mark.parametrize("event_shape", [(8, 3), (5,), (1, 4, 4)])
def test_an_mlp_takes_events_of_any_shape(event_shape: tuple[int, ...]) -> None:
    nothing = torch.zeros(event_shape, dtype=torch.bool)
    x_t, t = torch.randn(3, *event_shape), torch.tensor([0, 5, 19])
    assert ResidualMLP(PROCESS, event_shape, nothing, **NARROW["mlp"])(x_t, t).shape == x_t.shape
    assert ResidualMLP(PROCESS, event_shape, nothing, n_outputs=1, **NARROW["mlp"])(x_t, t).shape == (3, 1)
    raw = ResidualMLP(PROCESS, event_shape, nothing, **{**NARROW["mlp"], "n_fourier_features": 0})
    assert raw.features is None and raw(x_t, t).shape == x_t.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_events_in_a_batch_do_not_meet(name: str) -> None:
    network = build(name)
    x_t, t = torch.randn(5, 8, 3), torch.tensor([0, 3, 9, 15, 19])
    together = network(x_t, t)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], network(x_t[i : i + 1], t[i : i + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_every_entry_and_the_level_reach_the_output(name: str) -> None:
    network = build(name)
    for block in getattr(network, "blocks", []):  # blocks start as the identity, which hides the conditions
        torch.nn.init.normal_(block[1].weight)
    x_t = torch.randn(1, 8, 3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(x_t, torch.tensor([5])).square().sum(), x_t)
    assert (gradient != 0).all()
    x_t = x_t.detach()
    assert not torch.allclose(network(x_t, torch.tensor([5])), network(x_t, torch.tensor([6])), atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_pinned_entries_also_condition_through_the_embedding(name: str) -> None:
    network = build(name)
    x_t, t = torch.randn(1, 8, 3), torch.tensor([5])
    moved = x_t.clone()
    moved[:, 0, 1:] += 0.5
    assert not torch.allclose(network.embed(x_t, t), network.embed(moved, t), atol=1e-6)
    moved = x_t.clone()
    moved[:, 1:] += 0.5
    moved[:, 0, 0] += 0.5
    assert torch.equal(network.embed(x_t, t), network.embed(moved, t))


def test_without_pinned_entries_only_the_level_is_embedded() -> None:
    network = build("mlp", pinned=torch.zeros(8, 3, dtype=torch.bool))
    t = torch.tensor([5])
    assert torch.equal(network.embed(torch.randn(1, 8, 3), t), network.embed(torch.randn(1, 8, 3), t))


def test_the_bandwidth_scales_the_frequencies() -> None:
    medians = [float(FourierFeatures(3, 500, b).frequencies.norm(dim=0).median()) for b in (1.0, 4.0, 16.0)]
    assert 1.5 * medians[0] < medians[1] and 1.5 * medians[1] < medians[2] < 32


def test_damping_is_the_expectation_over_the_noise() -> None:
    features = FourierFeatures(2, 6, bandwidth=4.0)
    x = torch.randn(2)
    for noise_std in (0.1, 0.5, 2.0):
        noisy = features(x + noise_std * torch.randn(100_000, 2)).mean(0)
        damped = features(x[None], features.damping(torch.tensor([noise_std])))[0]
        torch.testing.assert_close(noisy, damped, rtol=0, atol=0.015)


def damping_of(network: Any, levels: list[int]) -> torch.Tensor:
    """What a network damps its features with at some levels (n, n_features)."""
    given: list[torch.Tensor] = []
    network.features.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1][:, 0]))
    network(torch.randn(len(levels), 8, 3), torch.tensor(levels))
    return given[0]


def test_clean_levels_are_not_damped() -> None:
    damping = damping_of(build("mlp", n_clean_levels=3), list(range(20)))
    assert (damping[:3] == 1).all() and (damping[3:] < 1).all()


def test_high_frequencies_vanish_at_the_highest_level() -> None:
    damping = damping_of(build("mlp", n_fourier_features=64), [0, 5, 19])
    assert (damping[0] > damping[1]).all() and float(damping[0].max()) > 0.9
    assert float(damping[2].max()) < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_alone_make_the_network(name: str) -> None:
    one, other = build(name), build(name)
    other.load_state_dict(one.state_dict())
    x_t, t = torch.randn(2, 8, 3), torch.tensor([0, 19])
    assert torch.equal(one(x_t, t), other(x_t, t))


@pytest.mark.parametrize("network", [ResidualMLP, TemporalUnet])
def test_an_odd_width_is_refused(network: type[torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match="width"):
        network(PROCESS, (8, 3), pinned_row(), width=30)
