"""Networks whose answers are exact: a Gaussian mixture seen along any noise path, giving any prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.models import NoisePath, edm, flow, ve, vp

COSINE = [float(DiffusionProcess(50).alpha(t)) ** 2 for t in range(50)]
PATHS: dict[str, NoisePath] = {
    "vp": vp(COSINE),
    "ve": ve(),
    "edm": edm(40, 0.02),
    "flow": flow(),
    "flow-back": flow(noise_at=0),
}
BASE_MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
BASE_WEIGHTS, EXPERT_WEIGHTS = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])


class ExactNetwork(nn.Module):
    """
    What a perfect network would give for a mixture of isotropic Gaussians.

    :param path: x = a·x0 + b·ε at the times of this path
    :param prediction: as `from_module` names them
    :param means: of the components (k, *event_shape)
    :param weights: of the components (k,)
    :param variance: of a component, or of each of its entries
    :param negate: give the prediction with the other sign
    :param pinned: entries of an event that arrive without noise
    """

    def __init__(
        self,
        path: NoisePath,
        prediction: str,
        means: Tensor = BASE_MEANS,
        weights: Tensor = BASE_WEIGHTS,
        variance: float | Tensor = 0.1,
        negate: bool = False,
        pinned: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.path, self.prediction, self.negate = path, prediction, negate
        self.means, self.weights, self.variance = means, weights, variance
        self.pinned = torch.zeros(means.shape[1:], dtype=torch.bool) if pinned is None else pinned

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        level, share = self.path.at(time)

        def at(table: Tensor) -> Tensor:
            value = table[level] + share * (table[level + 1] - table[level])
            return value.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))

        a, b = at(self.path.a), at(self.path.b)
        own_a, own_b = torch.where(self.pinned, 1.0, a), torch.where(self.pinned, 0.0, b)
        variance = own_a**2 * self.variance + own_b**2
        means = self.means.to(x.dtype)
        difference = (x[:, None] - own_a[:, None] * means[None]) ** 2 / variance[:, None]
        logits = -0.5 * difference.flatten(2).sum(dim=2) + self.weights.log().to(x.dtype)
        mean = own_a * (torch.softmax(logits, dim=1) @ means.flatten(1)).view_as(x)
        eps = b * (x - mean) / variance
        x0 = (x - b * eps) / a
        output = {"eps": eps, "x0": x0, "denoiser": x0, "score": -eps / b, "v": (eps - b * x) / a}.get(self.prediction)
        if output is None:
            assert self.path.da is not None and self.path.db is not None
            output = at(self.path.da) * x0 + at(self.path.db) * eps
        return -output if self.negate else output


def exact(path: NoisePath, weights: Tensor = BASE_WEIGHTS) -> GaussianMixtureModel:
    """The same mixture as a score model of the path's process."""
    return GaussianMixtureModel(BASE_MEANS, 0.1, weights, path.process)
