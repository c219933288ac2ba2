"""`diff`: everything about the difference of two models, in the order in which it is found.

Events of both models, how far they are apart, whether two trainings of one model are as far apart, the relative reward
and how well it fits, and where the difference lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.arguments import whole
from rrpolicy.common.device import device_of
from rrpolicy.common.stats import Measure, share
from rrpolicy.common.typing import Array
from rrpolicy.comparison.attribution import attribute, scored_input
from rrpolicy.comparison.divergence import divergence
from rrpolicy.comparison.features import Features
from rrpolicy.comparison.fit import agreement, calibration, curl_share, likelihood_ratio_bound
from rrpolicy.comparison.null import NullTest
from rrpolicy.comparison.report import Comparison
from rrpolicy.comparison.result import Fit, Steered
from rrpolicy.comparison.samples import Samples, conditions_of, draw_samples, sampled
from rrpolicy.comparison.trainings import retrained, steps_of
from rrpolicy.comparison.tree import Tree
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible, check_models, pinned_mask
from rrpolicy.rewards.algebra import RewardAlgebra, check_space
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.ensemble import Ensemble
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.metrics import check_steering, explained_by_level
from rrpolicy.rewards.protocol import check_reward_function
from rrpolicy.rewards.support import N_NEEDED, Support

N_SAMPLES = 512
N_REWARDS = 2
N_NULL = 4
TOTAL_TIMESTEPS = 1_000
EXTRACTION = {"heads": ("window",), "n_value_draws": 2, "buffer_size": 8192, "n_epochs": 8}  # cheaper than its defaults
N_POOL = 8  # events that equal trainings learn from, for each that is compared
N_FIT = 256  # events at which the fit is measured
N_CURL = 128
R2_LEVELS = (0, 0.1, 0.25, 0.5, 0.75, 1)  # of the noisiest
CLASSIFIER_STEPS = 600
SCALES = (0.0, 0.5, 1.0)  # of the counterfactual
N_COUNTERFACTUAL = 8  # plans of each
Log = Callable[[str], None]


@dataclass(frozen=True)
class _Settings:
    n_samples: int
    n_rewards: int
    n_null: int
    total_timesteps: int
    extraction: dict[str, Any]
    seed: int
    log: Log


def diff(
    base: ScoreModel,
    expert: ScoreModel,
    data: Any = None,
    *,
    reward: Any = None,
    null: Sequence[ScoreModel] | None = None,
    samples: Samples | None = None,
    feature_names: Sequence[str] | None = None,
    names: tuple[str, str] = ("base", "expert"),
    n_samples: int = N_SAMPLES,
    n_rewards: int = N_REWARDS,
    n_null: int = N_NULL,
    total_timesteps: int = TOTAL_TIMESTEPS,
    extraction: Mapping[str, Any] | None = None,
    seed: int = 0,
    log: Log | None = None,
) -> Comparison:
    """
    Compare two models: how far apart, whether by more than two trainings of one model, where, and how far to trust it.

    :param base: the first model, such as the checkpoint in use
    :param expert: the second one, in the same space
    :param data: dataset(s) from which conditions (present observations) are taken and at which ρ is extracted, or clean
        events (m, *event_shape); None for the models' own
    :param reward: ρ that is known already, the first of the ensemble; None to extract all of them
    :param null: equal trainings of the base, such as other seeds; None: ``n_null`` are made by fine-tuning the base on
        resamples of its own samples where it is a `DiffusionAgent`, otherwise there are none
    :param samples: events of both models, where they are known exactly; None: they are sampled
    :param feature_names: of all entries of an observation, then of an action
    :param names: of the two models, for people
    :param n_samples: events of each model
    :param n_rewards: rewards of the ensemble; 0 to leave out ρ and all that needs it
    :param n_null: equal trainings to make; 0 for none
    :param total_timesteps: gradient steps of each extraction
    :param extraction: further keywords of `RewardExtractor`
    :param seed: of everything random
    :param log: called with a line at every step; None for silence
    :raises ValueError: when the two models, or a reward that is given, do not share their space, naming the field, or
        an argument is out of range
    """
    check_models(base, expert)
    check_compatible(base, expert)
    settings = _Settings(
        whole("n_samples", n_samples, 16),
        whole("n_rewards", n_rewards, 0),
        whole("n_null", n_null, 0),
        whole("total_timesteps", total_timesteps, 1),
        dict(extraction or {}),
        whole("seed", seed, 0),
        log or (lambda line: None),
    )
    if reward is not None:
        _check_reward(base, reward, settings.n_rewards)
    features = Features.of(base, feature_names)
    settings.log(f"events of both models: {settings.n_samples} of each")
    drawn = draw_samples(base, expert, settings.n_samples, data, seed) if samples is None else samples
    forward = divergence(expert, base, drawn.expert, seed, drawn.groups)
    backward = divergence(base, expert, drawn.base, seed, drawn.groups)
    test, trainings = _null(base, expert, data, drawn, null, settings)
    effect = (forward.total.value + backward.total.value) / 2
    comparison = Comparison(names, features, drawn, forward, backward, NullTest(effect, *test), seed)
    if settings.n_rewards == 0 or effect == 0:
        return comparison
    rewards = _rewards(base, expert, data, drawn, reward, settings)
    settings.log("fit, attribution and examples")
    return _with_reward(comparison, base, expert, rewards, data, trainings, settings)


# ---------------------------------------------------------------------- the null


def _null(
    base: ScoreModel,
    expert: ScoreModel,
    data: Any,
    drawn: Samples,
    null: Sequence[ScoreModel] | None,
    settings: _Settings,
) -> tuple[tuple[tuple[float, ...], str], list[ScoreModel]]:
    """Divergences of equal trainings from the base and where these come from, and the trainings."""
    trainings: list[ScoreModel] = [] if null is None else list(null)
    source = f"{len(trainings)} trainings that were given"
    if null is None and settings.n_null and isinstance(base, DiffusionAgent):
        steps = steps_of(expert)
        settings.log(f"equal trainings: {settings.n_null} fine-tunes of {steps} steps")
        seeds = [settings.seed + 1 + i for i in range(settings.n_null)]
        pool = _own_events(base, data, drawn)
        trainings = [retrained(base, pool, steps, one) for one in seeds]
        source = f"{len(seeds)} fine-tunes of the base on resamples of its own samples, {steps} gradient steps each"
    found = []
    for other in trainings:  # at as many events as the expert, of the same noise, so that they differ by training alone
        check_models(base, other)
        check_compatible(base, other)
        x0 = sampled(other, len(drawn), _conditions(base, drawn.base), settings.seed)
        there, back = divergence(other, base, x0, settings.seed), divergence(base, other, drawn.base, settings.seed)
        found.append((there.total.value + back.total.value) / 2)
    return (tuple(found), source if trainings else ""), trainings


def _own_events(base: ScoreModel, data: Any, drawn: Samples) -> Tensor:
    """
    Events of the base that equal trainings learn from: many more than are compared, since with as few they would
    memorise them and differ by that.
    """
    n, seed = N_POOL * len(drawn), 10_007
    conditions, _ = conditions_of(base, base, n, data, torch.Generator().manual_seed(seed))
    return sampled(base, n, conditions, seed)


def _conditions(model: ScoreModel, x0: Tensor) -> Tensor | None:
    return x0 if bool(pinned_mask(model).any()) else None


# ---------------------------------------------------------------------- the reward


def _check_reward(base: ScoreModel, reward: Any, n_rewards: int) -> None:
    """
    Check that a reward that is known is one of the two models' space.

    :raises ValueError: naming the field that differs and both values, or when no reward is wanted
    """
    if n_rewards == 0:
        raise ValueError("reward was given and n_rewards is 0, which leaves rewards out: wanted one of the two")
    if isinstance(reward, RewardAlgebra):
        check_space(base, reward, "base")
    else:
        check_reward_function(reward, tuple(base.event_shape), base.process.n_diffusion_steps, device_of(base))


def _rewards(
    base: ScoreModel, expert: ScoreModel, data: Any, drawn: Samples, reward: Any, settings: _Settings
) -> list[Any]:
    """Extractions with different seeds, at data where there are some, else at events of both models."""
    events = data
    if data is None:
        more = (
            draw_samples(base, expert, 4 * len(drawn), None, settings.seed + 20_011) if _samples_well(base) else drawn
        )
        events = more.both
    rewards = [] if reward is None else [reward]
    options: dict[str, Any] = {**EXTRACTION, **settings.extraction}
    while len(rewards) < settings.n_rewards:
        settings.log(f"extraction {len(rewards) + 1} of {settings.n_rewards}: {settings.total_timesteps} steps")
        extractor = RewardExtractor(base, expert, seed=settings.seed + len(rewards), **options)
        rewards.append(extractor.learn(events, settings.total_timesteps, log_interval=0).reward)
    return rewards


def _samples_well(model: ScoreModel) -> bool:
    """Whether events can be drawn without data: of models without conditions, and those that can sample these."""
    return hasattr(model, "sample_pinned") or not bool(pinned_mask(model).any())


def _with_reward(
    comparison: Comparison,
    base: ScoreModel,
    expert: ScoreModel,
    rewards: list[Any],
    data: Any,
    trainings: list[ScoreModel],
    settings: _Settings,
) -> Comparison:
    """The comparison with everything that needs ρ."""
    drawn, pinned = comparison.samples, pinned_mask(base)
    rho = rewards[0] if len(rewards) == 1 else Ensemble(rewards)
    members = np.stack([scores(one, base, drawn.both) for one in rewards])
    attribution = attribute(rho, base.process, drawn.base, drawn.expert, pinned, drawn.groups)
    fit = _fit(comparison, base, expert, rho, members, trainings, settings)
    entries = comparison.entries(drawn.both)
    return comparison.with_reward(
        reward=rho,
        members=members,
        attribution=attribution,
        fit=fit,
        regions=_regions(comparison, settings.seed),
        preferences=Tree.fit(entries, members.mean(axis=0), comparison.entry_names(), seed=settings.seed),
        counterfactual=_counterfactual(comparison, base, expert, rho, settings),
    )


def _regions(comparison: Comparison, seed: int) -> Tree:
    """A tree of log(1 + KL) by what is known before anything is planned; of events without conditions, by all of it."""
    names, known = comparison.entry_names(), comparison.features.known.reshape(-1)
    forward, backward = comparison.forward.of_events, comparison.backward.of_events
    base, expert = comparison.entries(comparison.samples.base), comparison.entries(comparison.samples.expert)
    if not known.any():
        values = np.log1p(np.concatenate([backward, forward]))
        return Tree.fit(np.concatenate([base, expert]), values, names, seed=seed)
    columns = [name for name, is_known in zip(names, known, strict=True) if is_known]
    return Tree.fit(base[:, known], np.log1p((forward + backward) / 2), columns, seed=seed)


def scores(reward: Any, model: ScoreModel, x0: Tensor) -> Array:
    """ρ (N,) of clean events at the cleanest level."""
    x = scored_input(model.process, x0, pinned_mask(model))
    with torch.no_grad():
        values = reward(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    return np.asarray(values.double().cpu().numpy())


def _fit(
    comparison: Comparison,
    base: ScoreModel,
    expert: ScoreModel,
    rho: Any,
    members: Array,
    trainings: list[ScoreModel],
    settings: _Settings,
) -> Fit:
    drawn, seed = comparison.samples, settings.seed
    half = min(len(drawn), N_FIT // 2)
    x0 = torch.cat([drawn.base[:half], drawn.expert[:half]])
    last = base.process.n_diffusion_steps - 1
    levels = sorted({round(part * last) for part in R2_LEVELS})
    steering = check_steering(rho, base, expert, x0, seed, n_sampling_steps=min(10, last + 1))
    few = x0[torch.randperm(len(x0), generator=torch.Generator().manual_seed(seed))[:N_CURL].to(x0.device)]
    mean, n = members.mean(axis=0), len(drawn)
    logits = _classifier(base, expert, drawn, settings)
    return Fit(
        r2_by_level=explained_by_level(rho, base, expert, x0, levels, seed=seed),
        r2_held_out=steering.recorded,
        r2_steered=steering.steered,
        curl=curl_share(base, expert, few, seed),
        null_curl=tuple(curl_share(base, other, few, seed).value for other in trainings),
        calibration=calibration(mean[:n], mean[n:], *((None, None) if logits is None else (logits[:n], logits[n:]))),
        lower_bound=likelihood_ratio_bound(mean[:n], mean[n:]),
        agreement=agreement(members),
        unknown=_unknown(base, expert, rho, drawn, seed),
    )


def _unknown(base: ScoreModel, expert: ScoreModel, rho: Any, drawn: Samples, seed: int) -> Measure | None:
    """Share of the windows of the base steered at 1 that neither model knows."""
    if len(drawn) < N_NEEDED:
        return None
    support = Support.fit(base, expert, drawn.base, drawn.expert)
    conditions = _conditions(base, drawn.base[:N_FIT])
    steered = sampled(base, len(drawn.base[:N_FIT]), conditions, seed, guided(base.eps, rho, base.process, 1.0))
    return share(support.unknown(steered))


def _classifier(base: ScoreModel, expert: ScoreModel, drawn: Samples, settings: _Settings) -> Array | None:
    """Log odds (2N,) of a classifier that is trained on other events of the two models; None where there are none."""
    if not _samples_well(base):
        return None
    more = draw_samples(base, expert, 2 * len(drawn), None, settings.seed + 30_011)
    steps = min(CLASSIFIER_STEPS, settings.total_timesteps)
    network = settings.extraction.get("window_kwargs")
    learner = DiscriminatorReward(base, expert, window_kwargs=network, seed=settings.seed)
    learner.learn([more.base, more.expert], steps, log_interval=0)
    return scores(learner.reward, base, drawn.both)


def _counterfactual(
    comparison: Comparison, base: ScoreModel, expert: ScoreModel, rho: Any, settings: _Settings
) -> Steered:
    """Events from the one condition at which the models differ most: of the base, steered by half and whole, expert."""
    start = int(comparison.forward.of_events.argmax())
    condition = comparison.samples.expert[start : start + 1]
    repeated = condition.expand(N_COUNTERFACTUAL, *condition.shape[1:]).contiguous()
    given = _conditions(base, repeated)
    found: dict[str, Tensor] = {}
    for scale in SCALES:
        name = "steered at 1" if scale == 1 else f"steered at {scale:g}" if scale else comparison.names[0]
        denoiser = guided(base.eps, rho, base.process, scale)
        found[name] = sampled(base, N_COUNTERFACTUAL, given, settings.seed, denoiser)
    found[comparison.names[1]] = sampled(expert, N_COUNTERFACTUAL, given, settings.seed)
    return Steered(start, {name: comparison.features.windows(x0) for name, x0 in found.items()})
