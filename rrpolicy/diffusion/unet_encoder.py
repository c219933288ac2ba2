"""The contracting half of a ``diffusers`` U-Net with a vector head, for rewards that start from a model's weights.

The reward of Stable Diffusion's latents has this shape in Nuti, Franzmeyer and Henriques (2023, section 5.3). Here it
may also begin with the base's weights: a network that can denoise has features worth starting from.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel

BLOCKS = ("DownBlock2D", "AttnDownBlock2D")


class UNetEncoder(nn.Module):
    """
    First convolution, contracting blocks and middle block of a UNet2DModel; the coarsest map, flattened, is read out.

    :param process: noise levels
    :param event_shape: (C, H, W)
    :param pinned: bool ``event_shape``; such a network takes no pinned entries
    :param n_outputs: output width (reward: 1)
    :param unet_config: of the UNet2DModel, as :func:`config_of_model` gives it
    :raises ValueError: without the extra ``images``, for pinned entries, or a network of another kind
    """

    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: tuple[int, ...],
        pinned: Tensor,
        n_outputs: int = 1,
        unet_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if unet_config is None:
            raise ValueError("the network 'unet-encoder' needs unet_config, or a model whose U-Net it can start from")
        if bool(pinned.any()):
            raise ValueError("the network 'unet-encoder' cannot be told of pinned entries, use 'conv'")
        if unknown := sorted(set(unet_config["down_block_types"]) - set(BLOCKS)):
            raise ValueError(f"the network 'unet-encoder' knows the blocks {BLOCKS}, the U-Net has {unknown}")
        unet = import_diffusers().UNet2DModel.from_config(dict(unet_config))
        if unet.config.in_channels != event_shape[0]:
            raise ValueError(f"unet_config has {unet.config.in_channels} channels, events have {event_shape[0]}")
        self.time = nn.ModuleList([unet.time_proj, unet.time_embedding])
        self.enter = unet.conv_in
        self.blocks = unet.down_blocks
        self.middle = unet.mid_block
        _use_differentiable_attention(self)
        self.norm = nn.GroupNorm(unet.conv_norm_out.num_groups, unet.config.block_out_channels[-1])
        self.leave = nn.Linear(_n_features(json.dumps(dict(unet_config)), tuple(event_shape)), n_outputs)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, n_outputs)."""
        return self.leave(self._features(x_t, t))

    def start_from(self, model: ScoreModel) -> None:
        """Take over the weights of a model's U-Net, whose config this network was made with."""
        unet = _unet_of(model)
        for mine, theirs in (
            (self.time[1], unet.time_embedding),
            (self.enter, unet.conv_in),
            (self.blocks, unet.down_blocks),
            (self.middle, unet.mid_block),
        ):
            mine.load_state_dict(theirs.state_dict())

    def _features(self, x_t: Tensor, t: Tensor) -> Tensor:
        embedding = self.time[1](self.time[0](t).to(x_t))
        h = self.enter(x_t)
        for block in self.blocks:
            h, _ = block(h, embedding)
        h = self.middle(h, embedding)
        return nn.functional.silu(self.norm(h)).flatten(1)


@functools.lru_cache(maxsize=64)
def _n_features(unet_config: str, event_shape: tuple[int, ...]) -> int:
    """
    Size of the coarsest map, found on torch's meta device, where nothing is computed however large the event is.

    :param unet_config: as JSON, so that the size is found once of each
    """
    with torch.device("meta"):
        unet = import_diffusers().UNet2DModel.from_config(json.loads(unet_config))
        level = torch.zeros(1, unet.time_embedding.linear_1.in_features)
        embedding, h = unet.time_embedding(level), unet.conv_in(torch.zeros(1, *event_shape))
        for block in unet.down_blocks:
            h, _ = block(h, embedding)
        return int(unet.mid_block(h, embedding).numel())


def config_of_model(model: ScoreModel) -> dict[str, Any]:
    """
    The config of a model's UNet2DModel, as an archive may keep it.

    :raises ValueError: for a model that has none
    """
    config = _unet_of(model).config
    return {name: value for name, value in config.items() if not name.startswith("_")}


def import_diffusers() -> Any:
    """
    The module ``diffusers``, of the extra ``images``.

    :raises ValueError: when the extra ``images`` is not installed
    """
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"image models need the images extra: pip install 'rrpolicy[images]' ({error})") from error
    return diffusers


def _unet_of(model: ScoreModel) -> Any:
    unet = getattr(model, "unet", None)
    if not isinstance(unet, import_diffusers().UNet2DModel):
        raise ValueError(f"the network 'unet-encoder' starts from a UNet2DModel, which {type(model).__name__} has not")
    return unet


def _use_differentiable_attention(network: nn.Module) -> None:
    """Fused attention has no second derivative on a CPU, which a loss on gradients needs."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
