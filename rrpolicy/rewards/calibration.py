"""The zero of a relative reward, from samples of the two models alone: Bennett's acceptance ratio (Bennett 1976).

Gradients leave a constant of ρ open, and values fix it only up to what their noise and the network leave. A log density
ratio has one zero only: the one with which it is also the log odds of the best classifier of the two models' samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rrpolicy.common.typing import Array

MARGIN = 50.0  # nats beyond all scores, where no odds are left: the zero lies between
N_HALVINGS = 60


def bennett_offset(rho_base: Array | Sequence[float] | Tensor, rho_expert: Array | Sequence[float] | Tensor) -> float:
    """
    The constant z with which ρ - z is a log density ratio.

        Σ_base σ(ρ - z + m) = Σ_expert σ(z - ρ - m),   m = log(n_expert / n_base):

    as many samples of the base are taken for the expert's as of the expert for the base's. The most likely z given the
    samples (Shirts et al. 2003).

    :param rho_base: ρ of the base's samples (n_base,), nats
    :param rho_expert: ρ of the expert's (n_expert,)
    :return: nats, to be subtracted
    :raises ValueError: when there are none of either, or some are not finite
    """
    base, expert = (torch.as_tensor(rho).double().flatten() for rho in (rho_base, rho_expert))
    for name, rho in (("rho_base", base), ("rho_expert", expert)):
        if not len(rho) or not rho.isfinite().all():
            raise ValueError(
                f"{name} has shape {tuple(rho.shape)} and {int((~rho.isfinite()).sum())} values that are "
                "not finite, wanted at least one score and finite ones"
            )
    margin = math.log(len(expert) / len(base))
    everything = torch.cat([base, expert])
    low, high = float(everything.min()) - MARGIN, float(everything.max()) + MARGIN
    for _ in range(N_HALVINGS):
        zero = (low + high) / 2
        surplus = torch.sigmoid(base - zero + margin).sum() - torch.sigmoid(zero - expert - margin).sum()
        low, high = (zero, high) if surplus > 0 else (low, zero)
    return (low + high) / 2
