"""Everything that the image experiment trains, made once and kept: bases, experts, samples, rewards, a classifier.

Models and classifier are trained on real images and their classes, a reward on the two models and their samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.experiments import Recipe, section, store, total_timesteps
from rrpolicy.experiments.images.spec import FINE_TUNED, SCRATCH, Unit
from rrpolicy.experiments.recipes import build, without_steps
from rrpolicy.experiments.store import Kept, load_or_create
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.data import SIZE, LabelledImages, Split, load_images
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_events
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.on_policy import Visit, on_policy_targets
from rrpolicy.rewards.targets import Targets

Part = Literal["base", "expert"]
PARTS: tuple[Part, ...] = ("base", "expert")
EXPERT_SEED = 1000  # is added to the unit's, so that an expert from scratch begins with other weights than the base
ROUND_SEED = 3000  # likewise, so that a round has samples of its own
JUDGE_SEED = 0
_SECTIONS: dict[str, tuple[str, ...]] = {  # of the recipe, by which archives are distinguished
    "judge": ("data", "judge"),
    "base": ("data", "model", "base"),
    "fine-tuned": ("data", "model", "base", "fine_tuned"),
    "scratch": ("data", "model", "scratch"),
}
_CHANGES: dict[str, tuple[str, ...]] = {FINE_TUNED: (), SCRATCH: ("scratch_extraction",)}  # of the section [extraction]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model as an archive, so that they can be kept as models are."""

    events: Tensor  # (n, *event_shape), clean

    kind: ClassVar[str] = "image-samples"

    def save(self, path: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
        """Write one archive (no pickle)."""
        write_archive(path, self.kind, {}, {"samples": {"events": self.events}}, card)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """
        Read an archive that :meth:`save` wrote.

        :raises FileNotFoundError: when there is no such file
        :raises ValueError: when the archive is damaged or of another kind
        """
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            return cls(archive.tensors["samples"]["events"])


@dataclass
class ArtifactStore(store.ArtifactStore):
    """
    What is trained, drawn and extracted for the units; see `store.ArtifactStore`, beside that:

    :param data: folder of images, see `images.data.load_images`; None for Fashion-MNIST where Debian puts it
    """

    data: Path | None = None
    _images: dict[Split, LabelledImages] = field(default_factory=dict, repr=False)
    _at_hand: dict[Path, Any] = field(default_factory=dict, repr=False)  # what was loaded, with its CPU-seconds

    # ------------------------------------------------------------------ images

    def train_images(self) -> LabelledImages:
        """Training images of models and classifier; raises as `load_images`."""
        return self._load("train")

    def test_images(self) -> LabelledImages:
        """Held-out images; raises as `load_images`."""
        return self._load("test")

    @property
    def codec(self) -> PixelCodec:
        """Images to events."""
        data, model = section(self.recipe, "data"), section(self.recipe, "model")
        size = int(data.get("size", SIZE))
        return PixelCodec((int(data.get("channels", 1)), size, size), int(model.get("unshuffle", 1)))

    @property
    def sampling(self) -> dict[str, Any]:
        """Keyword arguments of sampling, the same for every model, steered or not."""
        return {name: value for name, value in section(self.recipe, "samples").items() if name != "n"}

    # ------------------------------------------------------------------ models

    def base(self, seed: int) -> tuple[ImageDiffusion, float]:
        """The base, which has seen all classes, and its CPU-seconds."""

        def make() -> ImageDiffusion:
            return self._trained(self._new_model("base", seed), "base", self.train_images())

        return self._load_or_create(self._base_path(seed), make, ImageDiffusion.load)

    def expert(self, unit: Unit) -> tuple[ImageDiffusion, float]:
        """The expert, which was trained without the unit's classes, and its CPU-seconds."""
        start = self.base(unit.seed)[0] if unit.case == FINE_TUNED else None
        name, seed = ("scratch" if start is None else "fine_tuned"), unit.seed + EXPERT_SEED

        def make() -> ImageDiffusion:
            images = self.train_images().without(unit.held_out)
            if start is None:
                return self._trained(self._new_model(name, seed), name, images)
            changes = without_steps(section(self.recipe, name))
            return self._trained(build(start.fine_tuned, name, seed=seed, **changes), name, images)

        return self._load_or_create(self._path(unit.name, "expert", _SECTIONS[unit.case]), make, ImageDiffusion.load)

    def classifier(self) -> tuple[ImageClassifier, float]:
        """The one classifier that counts what samples show, and its CPU-seconds."""

        def make() -> ImageClassifier:
            images = self.train_images()
            values = without_steps(section(self.recipe, "judge"))
            classifier = build(
                ImageClassifier,
                "judge",
                shape=self.codec.image_shape,
                class_names=images.class_names,
                seed=JUDGE_SEED,
                **values,
            )
            return classifier.learn(images, total_timesteps(self.recipe, "judge"), log_interval=0)

        return self._load_or_create(self._path("judge", "judge", _SECTIONS["judge"]), make, ImageClassifier.load)

    # ------------------------------------------------------------------ samples and rewards

    def samples(self, unit: Unit, part: Part) -> tuple[Tensor, float]:
        """
        Clean events (n, *event_shape) of the base or the expert, and the CPU-seconds of sampling.

        A base's are shared by all units of its seed; the expert's come from other noise.
        """
        of_base = part == "base"
        model = self.base(unit.seed)[0] if of_base else self.expert(unit)[0]
        path = self._path(
            f"base_seed-{unit.seed}" if of_base else unit.name,
            f"{part}-samples",
            (*_SECTIONS["base" if of_base else unit.case], "samples"),
        )

        def make() -> Samples:
            seed = unit.seed + (0 if of_base else EXPERT_SEED)
            return Samples(build(sample_events, "samples", model=model, seed=seed, **section(self.recipe, "samples")))

        made, seconds = self._load_or_create(path, make, Samples.load)
        return made.events, seconds

    def reward(self, unit: Unit) -> tuple[ImageReward, float]:
        """
        The extracted reward, on policy where the recipe has rounds, and the CPU-seconds of the extraction alone.

        Its zero lies between the samples of the two models, where values were matched.
        """
        events = torch.cat([self.samples(unit, part)[0] for part in PARTS])

        def make() -> ImageReward:
            extractor = self._extractor(unit)
            extractor.learn(events, total_timesteps(self._recipe_of(unit), "extraction"), log_interval=0)
            if "rounds" in self.recipe:
                pairs = self._on_policy_targets(unit, extractor)
                steps = total_timesteps(self.recipe, "rounds")
                extractor.buffer_size = int(section(self.recipe, "rounds").get("buffer_size", extractor.buffer_size))
                extractor.learn(events, steps, log_interval=0, reset_num_timesteps=False, pairs=pairs)
            return ImageReward(extractor.reward, self.codec, in_nats=extractor.value_coef > 0)

        # an expert from scratch does not depend on the base's section, its reward does
        parts = (*dict.fromkeys((*_SECTIONS["base"], *_SECTIONS[unit.case])), "samples", "extraction")
        parts += tuple(name for name in ("rounds", *_CHANGES[unit.case]) if name in self.recipe)
        reward, seconds = self._load_or_create(self._path(unit.name, "reward", parts), make, ImageReward.load)
        if reward.in_nats:
            reward = reward.calibrated(*(self.codec.decode(self.samples(unit, part)[0]) for part in PARTS))
        return reward, seconds

    def untrained(self, unit: Unit) -> ImageReward:
        """The reward before its extraction."""
        return ImageReward(self._extractor(unit).reward, self.codec)

    def _extractor(self, unit: Unit) -> RewardExtractor:
        base, expert = self.base(unit.seed)[0], self.expert(unit)[0]
        values = without_steps(section(self._recipe_of(unit), "extraction"))
        return build(RewardExtractor, "extraction", base=base, expert=expert, seed=unit.seed, **values)

    def _recipe_of(self, unit: Unit) -> Recipe:
        """The recipe, whose extraction may be another one for experts from scratch."""
        changes = {key: value for name in _CHANGES[unit.case] for key, value in self.recipe.get(name, {}).items()}
        return {**self.recipe, "extraction": {**section(self.recipe, "extraction"), **changes}}

    def _on_policy_targets(self, unit: Unit, extractor: RewardExtractor) -> Targets | None:
        n = int(section(self.recipe, "rounds")["n"])
        if n == 0:
            return None
        base, reward = self.base(unit.seed)[0], ImageReward(extractor.reward, self.codec)
        n_value_draws = extractor.n_value_draws if extractor.value_coef > 0 else 0
        seed = unit.seed + ROUND_SEED

        def sample(visit: Visit) -> Tensor:
            return sample_events(base, n, reward=reward, seed=seed, visit=visit, **self.sampling)

        generator = torch.Generator().manual_seed(seed + 1)
        return on_policy_targets(base, self.expert(unit)[0], sample, generator, n_value_draws)

    # ------------------------------------------------------------------ making and keeping

    def _load(self, split: Split) -> LabelledImages:
        if split not in self._images:
            values = section(self.recipe, "data")
            self._images[split] = build(load_images, "data", folder=self.data, split=split, **values)
        return self._images[split]

    def _new_model(self, name: str, seed: int) -> ImageDiffusion:
        model = {**section(self.recipe, "model"), **without_steps(section(self.recipe, name))}
        model.pop("unshuffle", None)
        return build(ImageDiffusion, name, codec=self.codec, seed=seed, **model)

    def _trained(self, model: ImageDiffusion, name: str, images: LabelledImages) -> ImageDiffusion:
        return model.learn(images.images, total_timesteps(self.recipe, name), log_interval=0)

    def _load_or_create(self, path: Path, make: Callable[[], Kept], load: Callable[[Path], Kept]) -> tuple[Kept, float]:
        if path not in self._at_hand:
            self._at_hand[path] = load_or_create(path, make, load)
        found: tuple[Kept, float] = self._at_hand[path]
        return found

    def _base_path(self, seed: int) -> Path:
        return self._path(f"base_seed-{seed}", "base", _SECTIONS["base"])

    def _path(self, folder: str, name: str, sections: tuple[str, ...]) -> Path:
        """The path of an archive by what it was made with, a folder of the user's own images included."""
        return self.path(folder, name, sections, None if self.data is None else str(self.data.resolve()))
