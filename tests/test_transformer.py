"""The transformer: identity at first, attention between the steps of one event only, derivatives to the second order.

Nothing is trained here; attention is held against torch's own, second derivatives against finite differences.
"""

from typing import Any

import pytest
import torch

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.transformer import TemporalTransformer

PROCESS = DiffusionProcess(20)
T = torch.tensor([0, 3, 9, 15, 19])


def pinned_row() -> torch.Tensor:
    mask = torch.zeros(8, 3, dtype=torch.bool)
    mask[0, 1:] = True
    return mask


def build(awake: bool = True, **kwargs: Any) -> TemporalTransformer:
    """A narrow network; ``awake`` opens the gates, which start at zero."""
    torch.manual_seed(0)
    network = TemporalTransformer(PROCESS, (8, 3), pinned_row(), **{"width": 16, "n_blocks": 2, "n_heads": 2, **kwargs})
    if awake:
        for layer in (network.modulate, network.modulate_last):
            torch.nn.init.normal_(layer.weight, std=0.3)
            torch.nn.init.normal_(layer.bias, std=0.3)
    return network


def test_shapes_of_denoiser_and_reward() -> None:
    x_t = torch.randn(5, 8, 3)
    assert build()(x_t, T).shape == (5, 8, 3)
    assert build(n_outputs=1)(x_t, T).shape == (5, 1)


def test_every_block_starts_as_the_identity() -> None:
    network = build(awake=False)
    stream: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, output: stream.extend((inputs[0], output)))
    x_t = torch.randn(5, 8, 3)
    output = network(x_t, T)
    entered = network.encode(x_t) + network.places
    assert len(stream) == 4 and all(torch.equal(tokens, entered) for tokens in stream)
    assert torch.equal(output, network(x_t, T.flip(0)))  # the level modulates nothing yet
    output.square().sum().backward()
    assert network.modulate_last.weight.grad.abs().sum() > 0
    assert network.modulate.weight.grad.abs().sum() > 0  # but every gate can open


def test_events_in_a_batch_do_not_meet() -> None:
    network, x_t = build(), torch.randn(5, 8, 3)
    together = network(x_t, T)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], network(x_t[i : i + 1], T[i : i + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_outputs", [None, 1])
def test_every_entry_and_the_level_reach_every_output(n_outputs: int | None) -> None:
    network, x_t, t = build(n_outputs=n_outputs), torch.randn(1, 8, 3), torch.tensor([5])
    gradient = torch.autograd.functional.jacobian(lambda x: network(x, t), x_t)
    assert (gradient != 0).all()  # pinned entries included: as tokens, not through the embedding
    changed = network(x_t, t) - network(x_t, t + 1)
    assert (changed.abs() > 1e-6).all()


def test_steps_know_their_places() -> None:
    network, x_t, t = build(), torch.randn(1, 8, 3), torch.tensor([5])
    turned = x_t.clone()
    turned[:, 1:] = x_t[:, 1:].flip(1)  # the pinned row stays: it is embedded, too
    network.places.data.zero_()
    torch.testing.assert_close(network(turned, t)[:, 1:], network(x_t, t)[:, 1:].flip(1))
    moved = build()(turned, t)[:, 1:] - build()(x_t, t)[:, 1:].flip(1)
    assert moved.abs().max() > 1e-2


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_attention_is_torch_s(n_heads: int) -> None:
    block = build(n_heads=n_heads).blocks[0]
    h = torch.randn(5, 8, 16)
    reference = torch.nn.MultiheadAttention(16, n_heads, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": block.attend.weight,
            "in_proj_bias": block.attend.bias,
            "out_proj.weight": block.merge.weight,
            "out_proj.bias": block.merge.bias,
        }
    )
    modulation = torch.zeros(5, 1, 6 * 16)
    modulation[..., 2 * 16 : 3 * 16] = 1  # the gate of attention is open, that of the MLP is closed
    given = torch.nn.functional.layer_norm(h, (16,))
    torch.testing.assert_close(block(h, modulation) - h, reference(given, given, given)[0], rtol=1e-4, atol=1e-5)


def test_second_derivatives_match_finite_differences() -> None:
    """As a reward head is trained: a loss on ∇ρ is descended in the weights."""
    network = build(n_outputs=1).double()
    x_t = torch.randn(3, 8, 3, dtype=torch.float64)
    t, wanted = torch.tensor([0, 9, 19]), torch.randn(3, 8, 3, dtype=torch.float64)

    def loss() -> torch.Tensor:
        inputs = x_t.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(inputs, t).sum(), inputs, create_graph=True)
        return (gradient - wanted).square().sum()

    parameters = dict(network.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss(), parameters.values(), allow_unused=True), strict=True))
    assert gradients.pop("leave.bias") is None  # a constant has no gradient
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all()
        direction = torch.randn_like(gradient)
        ends = []
        for step in (1e-5, -1e-5):
            parameters[name].data += step * direction
            ends.append(float(loss().detach()))
            parameters[name].data -= step * direction
        slope = (ends[0] - ends[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(("width", "n_heads"), [(30, 4), (15, 3)])
def test_widths_that_heads_cannot_share_are_refused(width: int, n_heads: int) -> None:
    with pytest.raises(ValueError, match=f"width is {width}, it must be even and a multiple of n_heads, {n_heads}"):
        build(width=width, n_heads=n_heads)
