"""The zero of ρ: exact where samples are, whatever their numbers, and one clear error for what has none."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rrpolicy.rewards.calibration import bennett_offset


@pytest.mark.parametrize("zero", [0.0, 7.0, -1300.0])
@pytest.mark.parametrize("n_expert", [20, 60])
def test_exact_counts_give_the_exact_zero(zero: float, n_expert: int) -> None:
    base, expert = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.35, 0.05])  # how often each of three events is made
    rho = np.log(expert / base) + zero
    n_base = 20
    counts = [np.rint(n * chances).astype(int) for n, chances in ((n_base, base), (n_expert, expert))]
    assert [counts[0].sum(), counts[1].sum()] == [n_base, n_expert]
    assert bennett_offset(*(rho.repeat(count) for count in counts)) == pytest.approx(zero, abs=1e-9)


def test_events_that_the_expert_never_makes_do_not_move_it() -> None:
    stayed, removed = 100, 25  # of the base's samples; the expert has none of the latter
    rho_base = [math.log(1 + removed / stayed) + 3] * stayed
    for low in (-20.0, -80.0):
        found = bennett_offset([*rho_base, *[low] * removed], rho_base)
        assert found == pytest.approx(3, abs=1e-6)


def test_gaussians_within_their_error() -> None:
    generator = torch.Generator().manual_seed(0)
    base, expert = torch.randn(4000, generator=generator), 1 + torch.randn(2000, generator=generator)
    assert bennett_offset(base - 0.5 - 4, expert - 0.5 - 4) == pytest.approx(-4, abs=0.1)  # log N(1, 1) / N(0, 1)


@pytest.mark.parametrize(
    ("base", "expert", "named"),
    [
        ([], [0.0], "rho_base has shape \\(0,\\)"),
        ([0.0], [], "rho_expert has shape \\(0,\\)"),
        ([0.0, math.nan], [0.0], "rho_base has shape \\(2,\\) and 1 values"),
        ([0.0], [math.inf], "rho_expert"),
    ],
)
def test_it_says_what_has_no_zero(base: Sequence[float], expert: Sequence[float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        bennett_offset(base, expert)
