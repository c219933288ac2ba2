"""The reward of images: a relative reward together with the codec that turns images into its events.

``predict`` scores clean images by one forward pass at the cleanest level, t = 0; ``per_level`` scores at any levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.arguments import flag, whole
from rrpolicy.common.device import device_of, resolve
from rrpolicy.common.typing import Array
from rrpolicy.common.weights import stored_weights
from rrpolicy.images.codec import Codec, as_pixels, check_codec, codec_from_dict, in_chunks
from rrpolicy.images.noise import digests_of_events, noise_of
from rrpolicy.images.support import Support
from rrpolicy.rewards.calibration import bennett_offset
from rrpolicy.rewards.fit_report import fit_fact
from rrpolicy.rewards.relative_reward import RelativeReward

NO_DIFFERENCE = "the two models do not differ"
NOTHING_FOUND = "nothing was found: ρ explains none of the difference between the two models"
CHUNK = 256  # images per call of the network


class ImageReward:
    """
    ρ of images, in nats: how much likelier the expert makes an image than the base does.

    Without values ρ is no such number but an order of images, at one noise level: it has no unit, no zero and no sign.

    :param reward: ρ of the codec's events
    :param codec: images to events; that of latents needs its pipeline's autoencoder
    :param zero: nats that are subtracted from every score, as :meth:`calibrated` finds them
    :param in_nats: whether values were matched; None: the reward's own ``value_units``
    :param level: noise level at which clean images are scored
    :param support: ranges that detect images which neither model would make; None: unknown
    :param difference: whether the two models differ at any pair that ρ was learned from
    :param explained: R² of ρ for the score differences of held-out pairs; None: unknown
    :raises ValueError: when they do not fit
    """

    kind: ClassVar[str] = "image-reward"

    def __init__(
        self,
        reward: RelativeReward,
        codec: Codec,
        zero: float = 0.0,
        in_nats: bool | None = None,
        level: int = 0,
        support: Support | None = None,
        difference: bool = True,
        explained: float | None = None,
    ) -> None:
        shape = tuple(codec.event_shape)
        if shape != reward.event_shape:
            raise ValueError(f"the codec's events have shape {shape}, the reward's {reward.event_shape}")
        self.reward = reward
        self.codec = codec
        self.zero = zero
        self.in_nats = reward.value_units if in_nats is None else flag("in_nats", in_nats)
        n_levels = reward.process.n_diffusion_steps
        if not 0 <= whole("level", level) < n_levels:
            raise ValueError(f"level is {level}, wanted one of 0..{n_levels - 1}")
        if zero and not self.in_nats:
            raise ValueError(f"zero is {zero}, wanted 0 for a reward without values, which has none")
        self.level = int(level)
        if support is not None:
            support.unlike(torch.zeros(1, *shape), codec)
        self.support = support
        self.difference = flag("difference", difference)
        self.explained = explained

    @property
    def device(self) -> torch.device:
        """Where the reward computes; the CPU for one that is no network."""
        return device_of(self.reward)

    def to(self, device: torch.device | str) -> Self:
        """Move the reward's network to a device."""
        self.reward = self.reward.to(resolve(device))
        return self

    @property
    def nothing(self) -> str:
        """Why scores have no meaning: the two models do not differ, or ρ explains none of it; empty otherwise."""
        if not self.difference:
            return f"{NO_DIFFERENCE}: their scores mean nothing"
        if self.explained is not None and self.explained <= 0:
            return f"{NOTHING_FOUND} (R² {self.explained:.3f} on held-out pairs)"
        return ""

    @property
    def unit(self) -> str:
        """What scores are given in, for tables: ``"nats"``, or that they are an order alone, or nothing."""
        if not self.difference:
            return f"no unit, {NO_DIFFERENCE}"
        return "nats" if self.in_nats else f"order at noise level {self.level}, no unit"

    def calibrated(self, base_images: Any, expert_images: Any) -> ImageReward:
        """
        The same ρ with 0 where the two models make an image equally often, see `rewards.calibration`.

        Order and steering stay as they are. The zero is that of clean images, t = 0; it is subtracted at every level.

        :param base_images: samples of the base, any images that :meth:`predict` takes
        :param expert_images: samples of the expert
        :raises ValueError: as :meth:`predict`, without samples of both, and for a reward without values
        """
        return self._with_zero(*(self.predict(images) for images in (base_images, expert_images)))

    def calibrated_from_events(self, base_events: Tensor, expert_events: Tensor) -> ImageReward:
        """As :meth:`calibrated`, for clean events (n, *event_shape)."""
        return self._with_zero(*(self.of_events(events, [self.level])[0] for events in (base_events, expert_events)))

    def _with_zero(self, rho_base: Array, rho_expert: Array) -> ImageReward:
        if not self.in_nats:
            raise ValueError("the reward was learned without values: it orders images, and has no zero")
        zero = self.zero + bennett_offset(rho_base, rho_expert)
        return ImageReward(
            self.reward, self.codec, zero, self.in_nats, self.level, self.support, self.difference, self.explained
        )

    def predict(self, images: Any, levels: Sequence[int] | None = None) -> Array:
        """
        Score clean images.

        :param images: PIL images, numpy arrays or tensors, see `images.codec.as_pixels`
        :param levels: noise levels to average over, without noise; None for the reward's own, which is the cleanest one
            where it has values, t = 0, and else the one that explains the two models best
        :return: (n,) float32 in nats, or an order alone, see :attr:`unit`
        :raises ValueError: for images of another size or range, or levels that there are not
        """
        return self.per_level(images, [self.level] if levels is None else levels).mean(axis=0)

    def per_level(self, images: Any, levels: Sequence[int], n_noisings: int = 0, seed: int = 0) -> Array:
        """
        Score images at each of some noise levels.

        :param images: as in :meth:`predict`
        :param levels: noise levels (k,)
        :param n_noisings: noised copies of each image to average over; 0 for their mean, α x0
        :param seed: of the noise, which depends on it, the image and the level alone: not on other images or levels
        :return: (k, n) float32 in nats
        :raises ValueError: as :meth:`predict`
        """
        parts = []
        for part in in_chunks(images, self.codec.image_shape):
            events, digests = self.encode(part)
            parts.append(self.of_events(events, levels, n_noisings, seed, digests))
        return np.concatenate(parts, axis=1)

    def encode(self, images: Any) -> tuple[Tensor, list[bytes]]:
        """Clean events of images, and a digest of each one's pixels, for :meth:`of_events`."""
        pixels = as_pixels(images, self.codec.image_shape)
        return self.codec.encode(pixels), digests_of_events((255 * pixels).round().to(torch.uint8))

    @torch.no_grad()
    def of_events(
        self,
        x0: Tensor,
        levels: Sequence[int],
        n_noisings: int = 0,
        seed: int = 0,
        digests: Sequence[bytes] | None = None,
    ) -> Array:
        """
        As :meth:`per_level`, for clean events (n, *event_shape).

        :param digests: (n,) of what the events were made from, on which their noise depends; None: of the events, which
            an autoencoder rounds differently in batches of another size
        """
        process, n_levels, x0 = self.reward.process, self.reward.process.n_diffusion_steps, x0.to(self.device)
        if not len(levels) or not all(0 <= level < n_levels for level in levels):
            raise ValueError(f"levels is {list(levels)}, wanted some of 0..{n_levels - 1}")
        digests = digests_of_events(x0) if n_noisings and digests is None else digests or []
        scores = torch.zeros(len(levels), len(x0), device=x0.device)
        for row, level in enumerate(levels):
            for start in range(0, len(x0), CHUNK):
                rows = slice(start, start + CHUNK)
                mean = process.alpha(level) * x0[rows]
                t = torch.full((len(mean),), level, dtype=torch.int64, device=mean.device)
                noised = [
                    mean + process.sigma(level) * noise_of(digests[rows], f"{seed} {level} {copy}", mean)
                    for copy in range(n_noisings)
                ] or [mean]
                scores[row, rows] = torch.stack([self.reward(x_t, t) for x_t in noised]).mean(dim=0)
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("the scores hold NaN or infinite numbers: weights are beyond what can be computed with")
        return np.asarray((scores - self.zero).cpu().numpy())

    # ------------------------------------------------------------------ persistence

    def save(self, path: str | Path, *, half: bool = False, card: Mapping[str, Any] | None = None) -> None:
        """
        Write one archive (no pickle); an autoencoder stays with its pipeline.

        :param path: file; ``.zip`` is added when missing
        :param half: store weights in half precision
        :param card: facts about the reward, to which its fit report is added
        """
        config: dict[str, Any] = {
            "reward": self.reward.to_config(),
            "codec": self.codec.to_dict(),
            "zero": self.zero,
            "in_nats": self.in_nats,
            "level": self.level,
            "support": None if self.support is None else self.support.to_dict(),
            "difference": self.difference,
            "explained": self.explained,
        }
        facts = {**fit_fact(config["reward"]), **(card or {})}
        write_archive(path, self.kind, config, {"weights": stored_weights(self.reward, half)}, facts)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: None = None,
        device: torch.device | str = "auto",
        *,
        codec: Codec | None = None,
        network: type[nn.Module] | None = None,
    ) -> Self:
        """
        Read what :meth:`save` wrote.

        :param path: file, with or without ``.zip``
        :param env: None: images have no environment
        :param device: where the network computes, see `common.device.resolve`
        :param codec: that of the pipeline, for a reward of latents (``pipeline.codec``); None for the archive's own,
            which scores latents but no images
        :param network: class of the reward's network, where that is not one of the library's
        :raises FileNotFoundError: when there is no such file
        :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, or the codec not its own,
            and for an environment
        """
        if env is not None:
            raise ValueError("env was given, and an ImageReward knows no environment: leave it out")
        place = resolve(device)
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            kept = codec_from_dict(archive.config["codec"])
            if codec is not None:
                check_codec(codec, kept)
            weights = archive.tensors["weights"]
            reward = RelativeReward.from_archive(archive.config["reward"], archive.tensors, weights, network)
            about = {name: archive.config[name] for name in ("zero", "in_nats", "level") if name in archive.config}
            support = archive.config.get("support")
            ranges = None if support is None else Support.from_dict(support)
            differ = archive.config.get("difference", True) and archive.card.get("difference") is not False
            explained = archive.config.get("explained")
            loaded = cls(reward, codec or kept, **about, support=ranges, difference=differ, explained=explained)
            return loaded.to(place)
