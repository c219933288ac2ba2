"""Schedulers of ``diffusers`` as noise levels: which of them name a table of betas, and why the others are refused.

What a network was trained with is its table and what it predicts; how a scheduler steps does not matter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rrpolicy.common.messages import printable
from rrpolicy.diffusion.process import DiffusionProcess, Prediction
from rrpolicy.diffusion.unet_encoder import import_diffusers

DISTILLED = "is distilled to denoise in a few steps, so what it says is no score"
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_TABLE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_USUAL = {"beta_start": 1e-4, "beta_end": 0.02}  # where a configuration leaves them out
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}

SUPPORTED: dict[str, dict[str, float]] = {
    "DDPMScheduler": _USUAL,
    "DDPMParallelScheduler": _USUAL,
    "DDIMScheduler": _USUAL,
    "DDIMParallelScheduler": _USUAL,
    "DDIMInverseScheduler": _USUAL,
    "PNDMScheduler": _USUAL,
    "LMSDiscreteScheduler": _USUAL,
    "EulerDiscreteScheduler": _USUAL,
    "EulerAncestralDiscreteScheduler": _USUAL,
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "DPMSolverMultistepScheduler": _USUAL,
    "DPMSolverMultistepInverseScheduler": _USUAL,
    "DPMSolverSinglestepScheduler": _USUAL,
    "DPMSolverSDEScheduler": _LATENT,
    "UniPCMultistepScheduler": _USUAL,
    "DEISMultistepScheduler": _USUAL,
    "SASolverScheduler": _USUAL,
}
"""Schedulers whose configuration names a table of betas, each with its class's defaults."""

FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_FLOW = "has the levels of a flow, which no U-Net here is trained with"
_VARIANCE = "has levels of growing variance, not a table of betas"
_OTHER = "has noise levels of its own, not a table of betas"
_TOKENS = "masks tokens, which have no score"
REFUSED: dict[str, str] = {
    **dict.fromkeys(FLOW_SCHEDULERS, _FLOW),
    "FlowMatchLCMScheduler": DISTILLED,
    "CMStochasticIterativeScheduler": DISTILLED,
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
    "SCMScheduler": DISTILLED,
    "EDMEulerScheduler": _VARIANCE,
    "EDMDPMSolverMultistepScheduler": _VARIANCE,
    "CosineDPMSolverMultistepScheduler": _VARIANCE,
    "KarrasVeScheduler": _VARIANCE,
    "ScoreSdeVeScheduler": _VARIANCE,
    "ScoreSdeVpScheduler": _OTHER,
    "DDPMWuerstchenScheduler": _OTHER,
    "IPNDMScheduler": _OTHER,
    "UnCLIPScheduler": _OTHER,
    "CogVideoXDDIMScheduler": _OTHER,
    "CogVideoXDPMScheduler": _OTHER,
    "RePaintScheduler": "paints under a mask: give the scheduler that the model was trained with",
    "AmusedScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
}
"""Schedulers that are refused, and why; a class in neither table is refused as unknown."""


def process_of(scheduler: Any) -> DiffusionProcess:
    """
    The process of a ``diffusers`` scheduler.

    :raises ValueError: as :func:`process_of_config`
    """
    return process_of_config({**scheduler.config, "_class_name": type(scheduler).__name__})


def process_of_config(config: Mapping[str, Any]) -> DiffusionProcess:
    """
    The process of a scheduler's configuration: a named one where the levels agree, else its table.

    A level without any signal, the last one of a table with ``rescale_betas_zero_snr``, is left out.

    :raises ValueError: for a scheduler or a prediction that is not supported, or levels that do not fall
    """
    usual = _checked(config)
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        fault = f"prediction_type is {printable(kind, 60)!r}, it must be one of {sorted(PREDICTIONS)}"
        raise ValueError(f"the scheduler's {fault}")
    values = {**usual, **{name: config[name] for name in _TABLE if config.get(name) is not None}}
    try:
        table = import_diffusers().DDPMScheduler(**values).alphas_cumprod.double()
    except Exception as error:  # a schedule that the library does not know, or numbers that are none
        raise ValueError(f"the scheduler names no noise levels: {printable(error)}") from error
    if table.ndim != 1 or not len(table):
        raise ValueError(f"the scheduler names no noise levels: its table has the shape {tuple(table.shape)}")
    if config.get("rescale_betas_zero_snr"):
        table = table[:-1]
    named = {"squaredcos_cap_v2": "cosine", "linear": "linear"}.get(str(config.get("beta_schedule", "linear")))
    if named is not None and (named == "cosine" or len(table) > 20):
        process = DiffusionProcess(len(table), named, PREDICTIONS[kind])
        alphas_cumprod = process.alpha(torch.arange(len(table))).double() ** 2
        if torch.allclose(alphas_cumprod, table, rtol=1e-4, atol=1e-6):
            return process
    return DiffusionProcess.from_alphas_cumprod(table.tolist(), PREDICTIONS[kind])


def _checked(config: Mapping[str, Any]) -> dict[str, float]:
    """The defaults of a supported scheduler."""
    kind = config.get("_class_name")
    if kind is None:
        raise ValueError("lacks _class_name, wanted the name of a scheduler of diffusers, such as DDPMScheduler")
    if not isinstance(kind, str) or kind not in SUPPORTED:
        reason = REFUSED.get(kind) if isinstance(kind, str) else None
        raise ValueError(f"{printable(kind, 60)} {reason or 'is not known here to have a table of betas'}")
    if config.get("use_flow_sigmas"):
        raise ValueError(f"a {kind} with use_flow_sigmas {_FLOW}")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"a {kind} with timestep_type {printable(config['timestep_type'], 40)} {_VARIANCE}")
    few = kind.startswith("Euler") and config.get("timestep_spacing") == "trailing"
    if few and config.get("prediction_type", "epsilon") == "epsilon" and not config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "timestep_spacing is trailing, as Turbo and Lightning have it (of another model set it to "
            f"leading): such a model {DISTILLED}"
        )
    return SUPPORTED[kind]
