"""Diffusion: the process, the networks that predict under it, samplers, and the protocol of score models."""

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.convolution import ConvEncoder
from rrpolicy.diffusion.networks import ResidualMLP
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import Solver, Step, sample, sample_model
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.diffusion.transformer import TemporalTransformer
from rrpolicy.diffusion.unet import TemporalUnet
from rrpolicy.diffusion.unet_encoder import UNetEncoder

__all__ = [
    "ConvEncoder",
    "DiffusionProcess",
    "GaussianMixtureModel",
    "ResidualMLP",
    "ScoreModel",
    "Solver",
    "Step",
    "TemporalTransformer",
    "TemporalUnet",
    "UNetEncoder",
    "sample",
    "sample_model",
]
