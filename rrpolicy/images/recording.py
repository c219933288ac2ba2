"""Recordings of two image models: their predictions, written to disk once, so that a reward is trained without them.

Both models are evaluated at their own samples, noised again, which are kept for the zero of ρ;
those with prompts at samples of the same prompts, or along the base's denoising as in Nuti et al. 2023, section 5.3.
Every shard is drawn from a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrpolicy.common.jobs import Jobs
from rrpolicy.common.messages import at
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible
from rrpolicy.images.codec import Codec, codec_from_dict
from rrpolicy.images.denoising_error import keep_errors, kept_errors
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.safety import SafetyConfig, safety_config
from rrpolicy.images.stable_diffusion import PromptedModel, SafeModel, TextToImage
from rrpolicy.images.support import Support
from rrpolicy.rewards.events import CHUNK
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.metrics import predicted_difference
from rrpolicy.rewards.recorded import MANIFEST, RecordedPairs, Shard, record
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.targets import Targets, make_targets, value_targets

Both = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, t) -> noise predicted by base and expert."""


@dataclass(frozen=True)
class PromptPair:
    """
    Two versions of a pipeline that are compared prompt by prompt.

    :param base: the pipeline whose denoising is followed
    :param expert: another checkpoint; None for the base with safety guidance
    :param safety: strength of the safety guidance, when there is no other checkpoint
    :param guidance_scale: of classifier-free guidance, of both; None: the usual one of the base's kind
    :raises ValueError: when neither or both of ``expert`` and ``safety`` are given, or the pipelines do not fit
    """

    base: TextToImage
    expert: TextToImage | None = None
    safety: str | SafetyConfig | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if (self.expert is None) == (self.safety is None):
            raise ValueError("give either an expert pipeline or a strength of safety guidance, not both")
        if self.expert is not None:
            check_compatible(self.base.prompted(""), self.expert.prompted(""))
        if self.safety is not None:
            safety_config(self.safety)

    def models(self, prompts: Sequence[str]) -> tuple[PromptedModel, PromptedModel | SafeModel, Both]:
        """Base and expert for these prompts, and both at once along one denoising run."""
        base = self.base.prompted(prompts, self.guidance_scale)
        if self.expert is None:
            safe = SafeModel(base, self.safety or "medium")
            return base, safe, safe.path().both
        expert = self.expert.prompted(prompts, self.guidance_scale)
        return base, expert, lambda x_t, t: (base.eps(x_t, t), expert.eps(x_t, t))

    def to_dict(self) -> dict[str, Any]:
        """JSON values that name the pair but for its weights."""
        safety = None if self.safety is None else vars(safety_config(self.safety))
        scale = self.base.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return {"safety": safety, "guidance_scale": scale}


def record_samples(
    base: ScoreModel,
    expert: ScoreModel,
    codec: Codec,
    folder: str | Path,
    n_samples: int = 1500,
    n_noisings: int = 11,
    n_value_draws: int = 2,
    n_sampling_steps: int = 25,
    shard_size: int = 64,
    half: bool = False,
    seed: int = 0,
    progress_bar: bool = False,
    about: dict[str, Any] | None = None,
    jobs: Jobs | None = None,
) -> RecordedPairs:
    """
    Compare two unconditional models at their own samples, noised again and again; no data are needed.

    :param base: the weak model
    :param expert: the strong model
    :param codec: images to their events, kept in the recording
    :param folder: gets the shards and, last of all, the manifest; a recording that was stopped there goes on
    :param n_samples: samples of each model
    :param n_noisings: levels to which each sample is noised
    :param n_value_draws: later noise levels per value target; 0 for gradients alone
    :param n_sampling_steps: denoising steps of a sample (DDIM)
    :param shard_size: samples per shard, half of each model: what is in memory at once, ``n_noisings`` times
    :param half: store events in half precision
    :param seed: of all samples and noises
    :param about: further JSON values to keep, such as the models' names
    :param jobs: where shards are made; None for this process
    :return: the finished recording
    :raises ValueError: for two models that do not share their space, or a folder that holds another recording
    """
    check_compatible(base, expert)
    for name, value in (("n_samples", n_samples), ("n_noisings", n_noisings), ("shard_size", shard_size // 2)):
        if value < 1:
            raise ValueError(f"{name} is {value}, it must be positive")
    n_each, models = shard_size // 2, (base, expert)

    def make(shard: int) -> Shard:
        generator = _generator(seed, shard)
        n = min(n_each, n_samples - shard * n_each)
        n_steps = min(n_sampling_steps, base.process.n_diffusion_steps)
        samples = [
            sample_model(model, n, generator=generator, n_sampling_steps=n_steps, chunk=CHUNK) for model in models
        ]
        return _noised_again(base, expert, samples, n_noisings, generator, n_value_draws)

    settings = {
        "kind": "samples",
        "codec": codec.to_dict(),
        "n_samples": n_samples,
        "n_noisings": n_noisings,
        "n_value_draws": n_value_draws,
        "n_sampling_steps": n_sampling_steps,
        "shard_size": shard_size,
        "seed": seed,
        "models": about or {},
        **_digests(base, expert),
    }
    pairs = record(folder, base, settings, -(-n_samples // n_each), make, half, progress_bar, jobs)
    keep_errors(pairs, base)
    return pairs


def record_prompts(
    pair: PromptPair,
    prompts: Sequence[str],
    folder: str | Path,
    n_sampling_steps: int = 50,
    n_noisings: int = 11,
    n_value_draws: int = 1,
    shard_size: int = 4,
    half: bool = False,
    seed: int = 0,
    progress_bar: bool = False,
    about: dict[str, Any] | None = None,
    jobs: Jobs | None = None,
) -> RecordedPairs:
    """
    Compare two versions of a pipeline at the samples that each draws for a prompt.

    :param pair: base and expert
    :param prompts: what to draw
    :param folder: as in :func:`record_samples`
    :param n_sampling_steps: denoising steps, ancestral: samples of DDIM are too smooth at the cleanest levels
    :param n_noisings: levels to which each sample is noised; 0 for pairs along the base's denoising instead, one for
        each step, and no samples: without a zero, and clean events are hardly seen
    :param n_value_draws: later noise levels per value target, 0 for gradients alone; each costs two passes of either
    :param shard_size: prompts per shard: what is in memory at once, ``2 n_noisings`` times
    :param half: store latents in half precision
    :param seed: of the initial noise
    :param about: further JSON values to keep, such as the models' names
    :param jobs: where shards are made; None for this process
    :return: the finished recording
    :raises ValueError: without prompts, or for a folder that holds another recording
    """
    prompts = list(prompts)
    if not prompts or shard_size < 1:
        raise ValueError(f"there are {len(prompts)} prompts and shard_size is {shard_size}, wanted at least 1 of each")

    def make(shard: int) -> Shard:
        some, generator = prompts[shard * shard_size : (shard + 1) * shard_size], _generator(seed, shard)
        base, expert, both = pair.models(some)
        if not n_noisings:
            return Shard(_along_denoising(base, expert, both, len(some), n_sampling_steps, n_value_draws, generator))
        samples = []
        for model in (base, expert):  # each from noise of its own, which gives twice as many places to compare them at
            options: dict[str, Any] = {"n_sampling_steps": n_sampling_steps, "solver": "ddpm"}
            denoiser = model.path() if isinstance(model, SafeModel) else model.eps
            samples.append(sample_model(model, len(some), generator=generator, denoiser=denoiser, **options))
        base, expert, _ = pair.models([one for one in some * 2 for _ in range(n_noisings)])
        return _noised_again(base, expert, samples, n_noisings, generator, n_value_draws)

    settings = {
        "kind": "prompts",
        "codec": pair.base.codec.to_dict(),
        "prompts": prompts,
        "pair": pair.to_dict(),
        "n_sampling_steps": n_sampling_steps,
        "n_noisings": n_noisings,
        "n_value_draws": n_value_draws,
        "shard_size": shard_size,
        "seed": seed,
        "models": about or {},
        **_digests(pair.base, pair.expert),
    }
    model = pair.base.prompted("", 1.0)
    pairs = record(folder, model, settings, -(-len(prompts) // shard_size), make, half, progress_bar, jobs)
    keep_errors(pairs, model)
    return pairs


def _noised_again(
    base: ScoreModel,
    expert: ScoreModel,
    samples: Sequence[Tensor],
    n_noisings: int,
    generator: torch.Generator,
    n_value_draws: int,
) -> Shard:
    """Pairs at clean events of base and expert, each noised ``n_noisings`` times."""
    events = torch.cat(list(samples)).repeat_interleave(n_noisings, dim=0)
    noised = make_targets(base, expert, events, generator, n_value_draws)
    pairs = Targets(None, noised.x_t, noised.t, noised.eps_difference, noised.value)
    return Shard(pairs, (samples[0], samples[1]))


def _along_denoising(
    base: ScoreModel,
    expert: ScoreModel,
    both: Both,
    n: int,
    n_sampling_steps: int,
    n_value_draws: int,
    generator: torch.Generator,
) -> Targets:
    """The pairs of one denoising run of ``n`` events; the sampler steps once, with the base's prediction."""
    visited = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        base_eps, expert_eps = both(x_t, t)
        visited.append((x_t, t, base_eps - expert_eps))
        return base_eps

    sample_model(base, n, generator=generator, n_sampling_steps=n_sampling_steps, denoiser=denoise)
    value = partial(value_targets, base, expert, generator=generator, n_draws=n_value_draws)
    return Targets(
        None,
        torch.cat([x_t for x_t, _, _ in visited]),
        torch.cat([t for _, t, _ in visited]),
        torch.cat([difference for _, _, difference in visited]),
        torch.cat([value(x_t, t) for x_t, t, _ in visited]) if n_value_draws else None,
    )


def explained_rows(
    reward: RelativeReward, pairs: RecordedPairs, n: int = 2048, n_bands: int = 4, seed: int = 0
) -> list[tuple[str, float]]:
    """
    How well ρ explains recorded pairs: R² of σ∇ρ for Δε over all levels and in bands of them.

    :param pairs: held out from learning
    :param n: pairs to look at
    :param n_bands: of equally many levels, cleanest first
    :param seed: of the draw
    :return: names and numbers; a band where the models do not differ is left out
    """
    last = pairs.model.process.n_diffusion_steps
    return [
        ("r2" if (low, high) == (0, last) else f"r2_t{low}-{high - 1}", share)
        for low, high, share in _explained(reward, pairs, n, (1, n_bands), seed)
    ]


def best_level(reward: RelativeReward, pairs: RecordedPairs, n: int = 2048, n_bands: int = 10, seed: int = 0) -> int:
    """
    The noise level at which ρ explains recorded pairs best: where a reward without values orders images.

    :param pairs: held out from learning
    :return: the middle of the band of levels with the largest R²
    """
    bands = _explained(reward, pairs, n, (n_bands,), seed)
    low, high, _ = max(bands, key=lambda band: band[2], default=(0, 1, 0.0))
    return (low + high - 1) // 2


def _explained(
    reward: RelativeReward, pairs: RecordedPairs, n: int, divisions: Sequence[int], seed: int
) -> list[tuple[int, int, float]]:
    """Bands of levels and R² in each: all levels divided by each number, without those where the models agree."""
    drawn = pairs.draw(n, torch.Generator().manual_seed(seed))
    process, found = pairs.model.process, []
    chunks = zip(drawn.x_t.split(256), drawn.t.split(256), strict=True)
    residual = torch.cat([predicted_difference(reward, process, x, t) for x, t in chunks]) - drawn.eps_difference
    errors, totals = ((part**2).flatten(1).sum(dim=1) for part in (residual, drawn.eps_difference))
    for n_bands in divisions:
        edges = [round(i * process.n_diffusion_steps / n_bands) for i in range(n_bands + 1)]
        for low, high in pairwise(edges):
            inside = (drawn.t >= low) & (drawn.t < high)
            if float(totals[inside].sum()) > 0:
                found.append((low, high, 1 - float(errors[inside].sum() / totals[inside].sum())))
    return found


def finished_reward(
    extractor: RewardExtractor,
    pairs: RecordedPairs,
    held_out: RecordedPairs,
    codec: Codec,
    difference: bool = True,
    explained: float | None = None,
) -> tuple[ImageReward, dict[str, Any]]:
    """
    What was extracted from a recording, as a reward of images: in nats with a zero, or an order, as the pairs allow.

    :param held_out: those of the pairs that were not learned from
    :param difference: whether any pair of predictions differs
    :param explained: R² on the held-out pairs
    :return: the reward, and facts about it for its card
    """
    learned = {name for name, _ in pairs.shards} - {name for name, _ in held_out.shards}
    facts: dict[str, Any] = {"held_out": f"{'held-out' if learned else 'the same'} {len(held_out)} pairs"}
    samples = pairs.samples()
    about: dict[str, Any] = {
        "support": _support(pairs, samples, codec),
        "difference": difference,
        "explained": explained,
    }
    if not (extractor.value_coef > 0 and pairs.about["n_value_draws"]):
        level = best_level(extractor.reward, held_out)
        return ImageReward(extractor.reward, codec, in_nats=False, level=level, **about), facts
    reward = ImageReward(extractor.reward, codec, in_nats=True, **about)
    if samples is None:
        return reward, facts
    facts["calibration"] = f"{len(samples[0])} samples of the base and {len(samples[1])} of the expert"
    return reward.calibrated_from_events(*samples), facts


def _support(pairs: RecordedPairs, samples: tuple[Tensor, Tensor] | None, codec: Codec) -> Support | None:
    found = None if samples is None else Support.of(torch.cat(samples), codec)
    return None if found is None else replace(found, errors=kept_errors(pairs.folder))


def codec_of(pairs: RecordedPairs) -> Codec:
    """
    The codec of a recording of images.

    :raises ValueError: when its manifest does not hold it and whether values were recorded, or it makes other events
    """
    for name in ("codec", "n_value_draws"):
        if pairs.about.get(name) is None:
            raise ValueError(at(pairs.folder / MANIFEST, f"lacks {name}, wanted a recording of images"))
    try:
        codec = codec_from_dict(pairs.about["codec"])
    except ValueError as error:
        raise ValueError(at(pairs.folder / MANIFEST, f"holds no codec: {error}")) from error
    if codec.event_shape != pairs.model.event_shape:
        fault = f"its codec makes events of shape {codec.event_shape}, its pairs have {pairs.model.event_shape}"
        raise ValueError(at(pairs.folder / MANIFEST, fault))
    return codec


def _digests(base: object, expert: object) -> dict[str, Any]:
    """Digests of the files of weights, for models that were read from files: others must not go on in the folder."""
    found = {
        name: digests
        for name, model in (("base", base), ("expert", expert))
        if (digests := getattr(model, "digests", None))
    }
    return {"digests": found} if found else {}


def _generator(seed: int, shard: int) -> torch.Generator:
    """The generator of one shard, so that each can be made without those before it."""
    return torch.Generator().manual_seed((seed << 32) + shard)
