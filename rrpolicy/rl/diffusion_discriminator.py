"""A discriminator by the errors of one conditional denoiser: the score-based reward of DIFO (Huang et al. 2024).

The denoiser is told whether a transition is the expert's or the agent's. The transition is the expert's as far as that
label lets it be denoised better: log odds are the difference of the two errors (Lai et al. 2024, equation 5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.networks import ResidualMLP
from rrpolicy.diffusion.process import DiffusionProcess

AGENT, EXPERT = -1.0, 1.0  # labels
N_DIFFUSION_STEPS = 20


class DiffusionDiscriminator(nn.Module):
    """
    Log odds that transitions are the expert's.

    :param n_inputs: entries of a transition; they should be of the size of 1
    :param scale: log odds per unit of the difference of mean squared errors
    :param n_draws: noise levels, and noises, of each transition while it learns
    :param n_judging: the same when it is asked, then at fixed levels and noises
    :param network: arguments of `ResidualMLP`
    """

    levels: Tensor
    noises: Tensor

    def __init__(
        self, n_inputs: int, scale: float = 10.0, n_draws: int = 2, n_judging: int = 8, **network: int
    ) -> None:
        super().__init__()
        self.n_inputs, self.scale, self.n_draws = n_inputs, scale, n_draws
        self.process = DiffusionProcess(N_DIFFUSION_STEPS)
        label = torch.arange(n_inputs + 1) == n_inputs
        given = {"width": 64, "n_blocks": 2, "n_fourier_features": 0, **network}
        self.network = ResidualMLP(self.process, (1, n_inputs + 1), label[None], **given)
        steps = (torch.arange(n_judging) + 0.5) / n_judging * N_DIFFUSION_STEPS
        self.register_buffer("levels", steps.long())
        self.register_buffer("noises", torch.randn(n_judging, n_inputs))

    def forward(self, transitions: Tensor) -> Tensor:
        """Transitions (B, n_inputs) -> log odds (B,)."""
        if self.training:
            levels = torch.randint(N_DIFFUSION_STEPS, (self.n_draws, len(transitions)))
            noises = torch.randn(self.n_draws, *transitions.shape)
        else:
            levels = self.levels[:, None].expand(-1, len(transitions))
            noises = self.noises[:, None].expand(-1, *transitions.shape)
        errors = [self._errors(transitions, label, levels, noises) for label in (AGENT, EXPERT)]
        return self.scale * (errors[0] - errors[1])

    def denoising_loss(self, transitions: Tensor) -> Tensor:
        """Mean squared error of the expert's transitions (B, n_inputs) under their label, which keeps it a denoiser."""
        levels = torch.randint(N_DIFFUSION_STEPS, (1, len(transitions)))
        return self._errors(transitions, EXPERT, levels, torch.randn(1, *transitions.shape)).mean()

    def _errors(self, transitions: Tensor, label: float, levels: Tensor, noises: Tensor) -> Tensor:
        """Mean squared errors (B,) of the noise, over draws (n, B) and entries."""
        clean = transitions.expand_as(noises).flatten(0, 1)
        noise, t = noises.flatten(0, 1), levels.flatten()
        labels = torch.full_like(clean[:, :1], label)
        x_t = torch.cat([self.process.q_sample(clean, t, noise), labels], dim=1)[:, None]
        predicted = self.network(x_t, t)[:, 0, : self.n_inputs]
        return (predicted - noise).square().mean(dim=1).view(len(noises), -1).mean(dim=0)
