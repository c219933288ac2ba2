"""Relative rewards between image diffusion models: log density ratios of images in nats."""

from rrpolicy.images.codec import LatentCodec, PixelCodec
from rrpolicy.images.flow_models import Flux, StableDiffusion3
from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.recording import PromptPair, record_prompts, record_samples
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.safety import SafetyConfig
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion
from rrpolicy.images.stable_diffusion_xl import StableDiffusionXL
from rrpolicy.images.steering import steer
from rrpolicy.images.unet import UNetScoreModel

__all__ = [
    "Flux",
    "ImageReward",
    "LatentCodec",
    "PixelCodec",
    "PromptPair",
    "SafeModel",
    "SafetyConfig",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "UNetScoreModel",
    "load_pipeline",
    "record_prompts",
    "record_samples",
    "sample_images",
    "steer",
]
