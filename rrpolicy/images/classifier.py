"""A classifier of samples: a small convolutional network trained on labelled real images.

It counts what a generator makes; neither extraction nor steering uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.device import CPU
from rrpolicy.common.learner import Learner, LearningRate, MaybeCallback
from rrpolicy.common.noise import randint
from rrpolicy.common.options import LoopOptions, TrainingOptions, check_options
from rrpolicy.common.persistence import training_arguments
from rrpolicy.common.schema import native
from rrpolicy.common.typing import Array
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.data import LabelledImages

CHUNK = 1024
DEFAULTS: TrainingOptions = {"ema_decay": 0.995, "weight_decay": 1e-2}
SHIFT = 1  # pixels by which training images are moved at most


class ImageClassifier(Learner[nn.Module]):
    """
    A classifier of small images.

    Further keywords are those of `TrainingOptions`; the defaults in :data:`DEFAULTS` are its own.

    :param shape: (C, H, W) of the images
    :param class_names: the classes, in the order of their labels
    :param width: channels of the first layer; doubled at each halving of the image
    :param learning_rate: peak learning rate or SB3 schedule
    :param batch_size: images per gradient step
    :raises ValueError: for fewer than two classes or options out of range
    """

    kind: ClassVar[str] = "image-judge"

    def __init__(
        self,
        shape: Sequence[int],
        class_names: Sequence[str],
        width: int = 24,
        learning_rate: LearningRate = 4e-3,
        batch_size: int = 128,
        **training: Unpack[TrainingOptions],
    ) -> None:
        check_options("ImageClassifier", training, TrainingOptions)
        merged: TrainingOptions = {**DEFAULTS, **training}
        super().__init__(learning_rate, batch_size, **merged)
        if len(class_names) < 2:
            raise ValueError(f"class_names is {tuple(class_names)}, wanted two or more")
        if width < 8 or width % 8:
            raise ValueError(f"width is {width}, it must be a multiple of 8")
        self.codec = PixelCodec(shape)
        self.class_names = tuple(class_names)
        self.width: int = native(width)
        self._setup_model()

    def _setup_model(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            network = _network(self.codec.image_shape[0], self.width, len(self.class_names))
        self._start_from(network)

    # ------------------------------------------------------------------ learning

    def learn(
        self,
        data: LabelledImages,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        **options: Unpack[LoopOptions],
    ) -> Self:
        """
        Learn the classes; one timestep is one gradient step. Further keywords are those of `LoopOptions`.

        :param data: images and labels
        :param total_timesteps: gradient steps to take
        :param callback: SB3 callback(s)
        :return: self
        :raises TypeError: when called without ``total_timesteps``
        :raises ValueError: for images or classes that are not the classifier's
        """
        check_options("learn", options, LoopOptions)
        if total_timesteps is None:
            raise TypeError("learn() lacks total_timesteps; call it as classifier.learn(data, total_timesteps=1_000)")
        if data.class_names != self.class_names:
            raise ValueError(f"data has the classes {data.class_names}, the classifier has {self.class_names}")
        self._pixels = self.codec.encode(data.images).to(self.device)
        self._labels = torch.as_tensor(data.labels).to(self.device)
        self._learn(total_timesteps, callback, options)
        return self

    def _draw(self) -> Batch:
        index = randint(len(self._labels), (self.batch_size,), self.generator, self.device)
        down, right = (randint(2 * SHIFT + 1, (2,), self.generator, CPU) - SHIFT).tolist()
        return self._pixels[index].roll((down, right), dims=(2, 3)), self._labels[index]

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        pixels, labels = batch
        logits = self.module(pixels).float()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return nn.functional.cross_entropy(logits, labels), {"accuracy": accuracy}

    # ------------------------------------------------------------------ judging

    @torch.no_grad()
    def probabilities(self, images: Any) -> Array:
        """
        Probabilities of the classes for each image.

        :param images: as `PixelCodec.encode` takes them
        :return: (n, classes) float32, rows sum to 1
        :raises ValueError: for images of another shape
        """
        pixels = self.codec.encode(images).to(self.device)
        found = torch.cat([self.averaged(part).softmax(dim=1) for part in pixels.split(CHUNK)])
        if not bool(torch.isfinite(found).all()):
            raise ValueError("the probabilities hold NaN: the weights are beyond what can be computed with")
        return found.cpu().numpy()

    def predict(self, images: Any) -> Array:
        """The likeliest class of each image: (n,) indices of ``class_names``."""
        return self.probabilities(images).argmax(axis=1)

    def says(self, images: Any, names: Sequence[str]) -> Array:
        """
        Whether each image is classified as one of the named classes, bool (n,).

        :raises ValueError: for a name that is no class
        """
        if unknown := [name for name in names if name not in self.class_names]:
            raise ValueError(f"{unknown[0]!r} is no class, there are {', '.join(self.class_names)}")
        chosen = [self.class_names.index(name) for name in names]
        return (self.predict(images)[:, None] == chosen).any(axis=1)

    # ------------------------------------------------------------------ persistence

    def _config(self) -> dict[str, Any]:
        return {
            "shape": list(self.codec.image_shape),
            "class_names": list(self.class_names),
            "width": self.width,
            "training": self._training_config(),
        }

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> nn.Module:
        return _network(config["shape"][0], config["width"], len(config["class_names"]))

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Self:
        return cls(config["shape"], config["class_names"], config["width"], **training_arguments(config))


def _network(n_channels: int, width: int, n_classes: int) -> nn.Module:
    return nn.Sequential(
        *_convolution(n_channels, width),
        *_convolution(width, 2 * width, stride=2),
        *_convolution(2 * width, 2 * width),
        *_convolution(2 * width, 4 * width, stride=2),
        *_convolution(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(2),  # a 2 × 2 summary still distinguishes top from bottom
        nn.Flatten(),
        nn.Linear(16 * width, n_classes),
    )


def _convolution(n_in: int, n_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.GroupNorm(8, n_out), nn.SiLU()]
