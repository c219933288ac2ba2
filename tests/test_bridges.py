"""Classes of other libraries become score models and get their networks back; exact networks stand inside."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from helpers.libraries import (
    Concatenated,
    CosineFlow,
    DenoisingDiffusion,
    DenoisingDiffusion2D,
    JannerDiffusion,
    PolicyNetwork,
    TimeFirst,
    WithSample,
    dataset_normalizer,
)
from helpers.mixtures import COSINE, ExactNetwork
from torch import nn

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.models import (
    ForeignModel,
    NoisePath,
    SteeredModule,
    affine,
    check_pair,
    check_score_model,
    classifier_free_pair,
    diffuser_normalizer,
    flow,
    from_denoising_diffusion_pytorch,
    from_diffuser,
    from_diffusers,
    from_diffusion_policy,
    from_flow_matching,
    from_k_diffusion,
    load_diffuser,
    steer,
    ve,
    vp,
)
from rrpolicy.models.diffusers import path_of_scheduler

BASE, EXPERT = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])
TABLE = vp(COSINE)
SCHEDULER = diffusers.DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", clip_sample=False)
V = diffusers.DDIMScheduler(num_train_timesteps=50, beta_start=0.001, beta_end=0.2, prediction_type="v_prediction")
STRAIGHT = diffusers.FlowMatchEulerDiscreteScheduler()


def means(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(len(shape)))


def network(path: NoisePath, prediction: str, shape: tuple[int, ...], weights: torch.Tensor, **options: Any) -> Any:
    return ExactNetwork(path, prediction, means(*shape), weights, **options)


@dataclass(frozen=True)
class Family:
    """How a library's object is built around exact networks, made a score model, and called."""

    shape: tuple[int, ...]
    bridge: Callable[[torch.Tensor], ForeignModel]
    call: Callable[..., Any] = lambda module, x, time: module(x, time)


def _wrapped(bridge: Any, path: NoisePath, prediction: str, shape: tuple[int, ...]) -> Any:
    return lambda weights: bridge(network(path, prediction, shape, weights))


def _concatenated_call(module: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return module(torch.cat([x, time[:, None]], dim=1))


def _diffusers_call(module: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return torch.cat([module(x[i : i + 1], t).sample for i, t in enumerate(time)])


V_PATH, STRAIGHT_PATH, CURVED = path_of_scheduler(V)[0], path_of_scheduler(STRAIGHT)[0], affine(CosineFlow())
BACK = flow(noise_at=0)
FAMILIES = {
    "denoising-diffusion-1d": Family(
        (3, 4),
        _wrapped(lambda net: from_denoising_diffusion_pytorch(DenoisingDiffusion(net)), TABLE, "eps", (3, 4)),
    ),
    "denoising-diffusion-1d-x0": Family(
        (4, 3),
        _wrapped(
            lambda net: from_denoising_diffusion_pytorch(DenoisingDiffusion(net, "pred_x0", channel_first=False)),
            TABLE,
            "x0",
            (4, 3),
        ),
    ),
    "denoising-diffusion-2d": Family(
        (1, 2, 2),
        _wrapped(lambda net: from_denoising_diffusion_pytorch(DenoisingDiffusion2D(net)), TABLE, "v", (1, 2, 2)),
    ),
    "k-diffusion": Family((2,), _wrapped(lambda net: from_k_diffusion(net, (2,)), ve(), "denoiser", (2,))),
    "torchcfm-mlp": Family(
        (2,),
        _wrapped(lambda net: from_flow_matching(Concatenated(net), (2,), "cat"), BACK, "velocity", (2,)),
        _concatenated_call,
    ),
    "torchcfm-unet": Family(
        (1, 2),
        _wrapped(lambda net: from_flow_matching(TimeFirst(net), (1, 2), "t, x"), BACK, "velocity", (1, 2)),
        lambda module, x, time: module(t=time, x=x),
    ),
    "flow-matching": Family(
        (2,),
        _wrapped(lambda net: from_flow_matching(net, (2,), scheduler=CosineFlow()), CURVED, "velocity", (2,)),
    ),
    "noise-at-1": Family(
        (2,), _wrapped(lambda net: from_flow_matching(net, (2,), noise_at=1), flow(), "velocity", (2,))
    ),
    "diffusers-v": Family(
        (2, 4),
        _wrapped(lambda net: from_diffusers(WithSample(net), V, (2, 4)), V_PATH, "v", (2, 4)),
        _diffusers_call,
    ),
    "diffusers-flow": Family(
        (2, 4),
        _wrapped(lambda net: from_diffusers(WithSample(net), STRAIGHT, (2, 4)), STRAIGHT_PATH, "velocity", (2, 4)),
        _diffusers_call,
    ),
}


class Difference:
    """σ∇ρ of two models, as far as steering needs it."""

    def __init__(self, base: Any, expert: Any) -> None:
        self.base, self.expert, self.event_shape, self.process = base, expert, base.event_shape, base.process

    def gradient(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (self.base.eps(x_t, t) - self.expert.eps(x_t, t)) / self.process.levels(x_t, t)[1]


def steered(base: ForeignModel, expert: ForeignModel, scale: float = 1.0) -> SteeredModule:
    return steer(base, Difference(base, expert), scale)  # type: ignore[arg-type, return-value]


def noised(model: ForeignModel, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(len(model.path), (n,), generator=generator)
    x_t = torch.randn(n, *model.event_shape, generator=generator)
    return x_t, t


@pytest.mark.parametrize("name", FAMILIES)
def test_the_noise_is_that_of_the_mixture(name: str) -> None:
    family = FAMILIES[name]
    model = family.bridge(BASE)
    assert model.event_shape == family.shape
    x_t, t = noised(model)
    oracle = GaussianMixtureModel(means(*family.shape), 0.1, BASE, model.process)
    torch.testing.assert_close(model.eps(x_t, t), oracle.eps(x_t, t), rtol=2e-3, atol=2e-3)
    events = oracle.sample(256, torch.Generator().manual_seed(0))
    check_score_model(model, events)
    check_pair(model, family.bridge(EXPERT), events, events)


@pytest.mark.parametrize("name", FAMILIES)
def test_steered_the_network_answers_its_library_as_the_expert_does(name: str) -> None:
    family = FAMILIES[name]
    base, expert = family.bridge(BASE), family.bridge(EXPERT)
    module = steered(base, expert)
    x_t, t = noised(base)
    x, time = x_t * base.path.c[t].float().view(-1, *(1,) * len(family.shape)), base.path.times[t]
    time = time.float() if time.is_floating_point() else time
    got, wanted = (family.call(network, x, time) for network in (module, expert.module))
    torch.testing.assert_close(got, wanted, rtol=3e-3, atol=3e-3)
    assert not torch.allclose(got, family.call(base.module, x, time), rtol=3e-2, atol=3e-2)


def test_k_diffusion_levels_lie_within_the_range_of_the_denoiser() -> None:
    inner = network(ve(), "denoiser", (2,), BASE)
    inner.sigma_min, inner.sigma_max = torch.tensor(0.1), torch.tensor(10.0)
    model = from_k_diffusion(inner, (2,))
    assert 0.1 <= float(model.path.b[0]) < 0.2 and 5 < float(model.path.b[-1]) <= 10
    assert from_k_diffusion(inner, (2,), [0.5, 1.0]).path.b.tolist() == [0.5, 1.0]
    inner.sigma_max = torch.tensor(0.1001)
    with pytest.raises(ValueError, match=r"knows σ from 0\.1 to 0\.1001 only"):
        from_k_diffusion(inner, (2,))


def test_what_denoising_diffusion_pytorch_cannot_mean_is_named() -> None:
    plain, doubled = (
        from_denoising_diffusion_pytorch(kind(network(TABLE, "eps", (1, 2, 2), BASE)), "toy")
        for kind in (DenoisingDiffusion2D, DenoisingDiffusion)
    )
    assert plain.fingerprint().startswith("name=toy;") and doubled.fingerprint().startswith("name=toy auto_normalize;")
    assert plain.clip == 1.0
    diffusion = DenoisingDiffusion(nn.Identity())
    diffusion.self_condition = True
    with pytest.raises(ValueError, match="self_condition is on"):
        from_denoising_diffusion_pytorch(diffusion)
    with pytest.raises(ValueError, match="objective is 'pred_score', wanted one of pred_noise, pred_x0, pred_v"):
        from_denoising_diffusion_pytorch(DenoisingDiffusion(nn.Identity(), "pred_score"))
    with pytest.raises(ValueError, match="Linear has no alphas_cumprod, wanted denoising-diffusion-pytorch's"):
        from_denoising_diffusion_pytorch(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="order is 't x'"):
        from_flow_matching(nn.Identity(), (2,), "t x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="function has no snr_inverse, wanted flow_matching's scheduler"):
        from_flow_matching(nn.Identity(), (2,), scheduler=lambda t: t)


# ---------------------------------------------------------------------- Diffuser


@pytest.mark.parametrize("conditioned", [(0,), (0, -1)])
@pytest.mark.parametrize("predict_epsilon", [True, False])
def test_diffuser_plans_around_given_states(conditioned: tuple[int, ...], predict_epsilon: bool) -> None:
    pinned = torch.zeros(4, 3, dtype=torch.bool)
    pinned[list(conditioned), 1:] = True

    def bridged(weights: torch.Tensor) -> ForeignModel:
        inner = network(TABLE, "eps" if predict_epsilon else "x0", (4, 3), weights, pinned=pinned)
        return from_diffuser(JannerDiffusion(inner, predict_epsilon), conditioned=conditioned)

    model, expert = bridged(BASE), bridged(EXPERT)
    assert torch.equal(model.pinned, pinned) and model.event_shape == (4, 3)
    assert (model.layout is None) == (conditioned != (0,))
    if model.layout is not None:
        assert torch.equal(torch.tensor(model.layout.pinned), pinned)
    x_t, t = noised(model)
    alpha, sigma = model.process.levels(x_t, t)
    scale, variance = torch.where(pinned, 1.0, alpha), torch.where(pinned, 0.1, alpha**2 * 0.1 + sigma**2)
    x = x_t.clone().requires_grad_(True)
    squares = ((x[:, None] - scale[:, None] * means(4, 3)) ** 2 / variance[:, None]).flatten(2).sum(dim=2)
    (score,) = torch.autograd.grad(torch.logsumexp(BASE.log() - squares / 2, dim=1).sum(), x)
    wanted = torch.where(pinned, 0.0, -sigma * score)
    torch.testing.assert_close(model.eps(x_t, t), wanted, rtol=2e-3, atol=2e-3)
    cond = {row % 4: x_t[:, row, 1:] for row in conditioned}
    got, theirs = (module(x_t, cond, t) for module in (steered(model, expert), expert.module))
    torch.testing.assert_close(got[:, ~pinned], theirs[:, ~pinned], rtol=2e-3, atol=2e-3)


def test_normalisers_of_diffuser_are_ours_where_they_are_affine() -> None:
    rng = np.random.default_rng(0)
    data, low, high = rng.normal(size=(5, 2)), np.array([-1.0, 0.0]), np.array([3.0, 4.0])
    limits = diffuser_normalizer(dataset_normalizer("LimitsNormalizer", mins=low, maxs=high))
    np.testing.assert_allclose(limits.observations.normalize(data), 2 * (data - low) / (high - low) - 1, atol=1e-6)
    gaussian = diffuser_normalizer(dataset_normalizer("GaussianNormalizer", mins=low, means=low, stds=high))
    np.testing.assert_allclose(gaussian.actions.normalize(data), (data - low) / high, atol=1e-6)
    assert (limits.mode, gaussian.mode) == ("limits", "gaussian")
    plain = diffuser_normalizer(dataset_normalizer("DebugNormalizer", mins=low, maxs=high))
    np.testing.assert_allclose(plain.actions.normalize(data), data)
    with pytest.raises(ValueError, match="observations have a CDFNormalizer, which is not affine"):
        diffuser_normalizer(dataset_normalizer("CDFNormalizer", mins=low, maxs=high))
    with pytest.raises(ValueError, match="has no normalizers"):
        diffuser_normalizer(nn.Identity())
    one, other = (from_diffuser(JannerDiffusion(nn.Identity()), known) for known in (None, limits))
    assert other.normalizer is limits and one.fingerprint() != other.fingerprint()


def test_diffuser_checkpoints_are_read_as_data(tmp_path: Path) -> None:
    def fresh(seed: int) -> JannerDiffusion:
        torch.manual_seed(seed)
        return JannerDiffusion(nn.Linear(3, 3))

    saved, averaged = fresh(0), fresh(1)
    for step, diffusion in ((0, fresh(2)), (10_000, averaged)):
        state = {"step": step, "model": saved.state_dict(), "ema": diffusion.state_dict()}
        torch.save(state, tmp_path / f"state_{step}.pt")
    loaded = load_diffuser(fresh(3), tmp_path)
    assert torch.equal(loaded.model.inner.weight, averaged.model.inner.weight)
    plain = load_diffuser(fresh(3), tmp_path / "state_10000.pt", ema=False)
    assert torch.equal(plain.model.inner.weight, saved.model.inner.weight)
    for name, value, fault in (
        ("whole.pt", saved, "what helpers.libraries JannerDiffusion would build, wanted named tensors"),
        ("code.pt", {"ema": {"w": nn.Linear(1, 1)}}, "w would be built by torch.nn.modules.linear Linear"),
        ("other.pt", {"weights": {}}, "has no 'ema', its keys are .*weights"),
        ("small.pt", {"ema": {"w": torch.zeros(1)}}, "small.pt: .*Missing key"),
        ("model_config.pkl", {}, "model_config.pkl: is a pickled configuration, which is code"),
    ):
        torch.save(value, tmp_path / name)
        with pytest.raises(ValueError, match=fault):
            load_diffuser(fresh(3), tmp_path / name)
    for missing, fault in ((tmp_path / "state_1.pt", "No such file"), (tmp_path / "empty", "holds no state_<step>.pt")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=fault):
            load_diffuser(fresh(3), missing)


def test_other_objects_are_not_taken_for_diffusers() -> None:
    with pytest.raises(ValueError, match="Linear has no alphas_cumprod, wanted Diffuser's GaussianDiffusion"):
        from_diffuser(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"conditioned is \(4,\), wanted rows of the horizon, 4"):
        from_diffuser(JannerDiffusion(nn.Identity()), conditioned=(4,))
    value = JannerDiffusion(nn.Identity())
    value.model.final_block = nn.Identity()
    with pytest.raises(ValueError, match="predicts returns"):
        from_diffuser(value)


# ---------------------------------------------------------------------- conditions


def test_diffusion_policy_is_steered_given_its_observations() -> None:
    path = path_of_scheduler(SCHEDULER)[0]

    def bridged(weights: torch.Tensor) -> ForeignModel:
        return from_diffusion_policy(PolicyNetwork(network(path, "eps", (4, 2), weights)), SCHEDULER, 4, 2, 3)

    model, expert = bridged(BASE), bridged(EXPERT)
    assert model.event_shape == (11,) and model.pinned.sum() == 3 and model.clip is None
    x_t, t = noised(model)
    actions, features = x_t[:, :8].view(-1, 4, 2), x_t[:, 8:]
    alpha = model.process.levels(actions, t)[0]
    oracle = GaussianMixtureModel(means(4, 2), 0.1, BASE, model.process)
    wanted = oracle.eps(actions - alpha * features.mean(dim=1).view(-1, 1, 1), t)
    torch.testing.assert_close(model.eps(x_t, t)[:, :8], wanted.flatten(1), rtol=2e-3, atol=2e-3)
    got, theirs = (module(actions, t, global_cond=features) for module in (steered(model, expert), expert.module))
    torch.testing.assert_close(got, theirs, rtol=2e-3, atol=2e-3)
    one, same = (module(actions[:5], 7, global_cond=features[:5]) for module in (steered(model, expert), expert.module))
    torch.testing.assert_close(one, same, rtol=2e-3, atol=2e-3)


def test_cross_attention_takes_the_condition_as_a_sequence() -> None:
    path = path_of_scheduler(V)[0]
    model = from_diffusers(WithSample(network(path, "v", (2, 4), BASE)), V, (2, 4), n_condition=6)
    x_t, t = noised(model)
    shift = x_t[:, 8:].mean(dim=1).view(-1, 1, 1)
    plain = from_diffusers(WithSample(network(path, "v", (2, 4), BASE)), V, (2, 4))
    x = x_t[:, :8].view(-1, 2, 4)
    moved = plain.module(x - shift, t).sample
    torch.testing.assert_close(model.eps(x_t, t)[:, :8].view_as(x), plain.eps_from_output(x, t, moved))


def test_schedulers_without_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="LCMScheduler is distilled"):
        from_diffusers(nn.Identity(), diffusers.LCMScheduler(), (2, 4))
    with pytest.raises(ValueError, match="EDMEulerScheduler has levels of growing variance"):
        from_diffusers(nn.Identity(), diffusers.EDMEulerScheduler(), (2, 4))
    with pytest.raises(ValueError, match="Linear has no config, wanted a scheduler of diffusers"):
        from_diffusers(nn.Identity(), nn.Linear(1, 1), (2, 4))
    with pytest.raises(ValueError, match="invert_sigmas is true"):
        from_diffusers(nn.Identity(), diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), (2, 4))


class Guided(nn.Module):
    """Exact for one component given its number, for the mixture without."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        both = network(TABLE, "eps", (2,), BASE)(x, time)
        if condition is None:
            return both
        ones = [ExactNetwork(TABLE, "eps", means(2)[k : k + 1], torch.ones(1))(x, time) for k in (0, 1)]
        return torch.where(condition[:, :1] > 0.5, ones[1], ones[0])


def test_one_network_is_a_pair_with_and_without_its_condition() -> None:
    base, expert = classifier_free_pair(Guided(), TABLE, "eps", (2,), condition=torch.ones(1))
    x_t, t = noised(base)
    for model, weights, chosen in ((base, BASE, slice(None)), (expert, torch.ones(1), slice(1, 2))):
        oracle = GaussianMixtureModel(means(2)[chosen], 0.1, weights, model.process)
        torch.testing.assert_close(model.eps(x_t, t), oracle.eps(x_t, t), rtol=2e-3, atol=2e-3)
    twice = steered(base, expert, scale=2.0)(x_t, t)  # as classifier-free guidance of scale 2
    plain, given = Guided()(x_t, t, None), Guided()(x_t, t, torch.ones(len(t), 1))
    torch.testing.assert_close(twice, plain + 2 * (given - plain), rtol=2e-3, atol=2e-3)


def test_a_pair_of_any_condition_has_it_as_a_pinned_entry() -> None:
    base, expert = classifier_free_pair(Guided(), TABLE, "eps", (2,), n_condition=1)
    x_t, t = noised(base)
    given = (x_t[:, 2:] > 0).float()
    x = torch.cat([x_t[:, :2], given], dim=1)
    torch.testing.assert_close(base.eps(x, t)[:, :2], Guided()(x[:, :2], t, None))
    torch.testing.assert_close(expert.eps(x, t)[:, :2], Guided()(x[:, :2], t, given))
    got = steered(base, expert)(x[:, :2], t, given)
    torch.testing.assert_close(got, Guided()(x[:, :2], t, given), rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="either one condition"):
        classifier_free_pair(Guided(), TABLE, "eps", (2,))


# ---------------------------------------------------------------------- diffusers itself


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", ["DDPM", "DDIM", "EulerDiscrete"])
def test_schedulers_of_diffusers_see_the_same_event(kind: str, prediction: str) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(
        num_train_timesteps=50, beta_start=0.001, beta_end=0.2, prediction_type=prediction
    )
    if kind != "EulerDiscrete":
        scheduler.register_to_config(clip_sample=False)
    torch.manual_seed(0)
    unet = diffusers.UNet1DModel(
        sample_size=32,
        in_channels=2,
        out_channels=2,
        time_embedding_type="positional",
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1D", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1D"),
    )
    model = from_diffusers(unet, scheduler, (2, 32))
    scheduler.set_timesteps(50)
    timestep = scheduler.timesteps[20]
    level = int(timestep)
    x_t, t = torch.randn(3, 2, 32), torch.full((3,), level)
    alpha, sigma = model.process.levels(x_t, t)
    given = x_t / alpha if kind == "EulerDiscrete" else x_t
    inputs = scheduler.scale_model_input(given, timestep)
    with torch.no_grad():
        step = scheduler.step(unet(inputs, timestep).sample, timestep, given)
    wanted = (x_t - sigma * model.eps(x_t, t)) / alpha
    torch.testing.assert_close(step.pred_original_sample, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["DDIM", "DPMSolverMultistep", "EulerDiscrete"])
def test_a_steered_network_reaches_the_expert_in_a_sampler_of_diffusers(kind: str) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(num_train_timesteps=100, beta_start=0.001, beta_end=0.15)
    if kind == "DDIM":
        scheduler.register_to_config(clip_sample=False)
    path = path_of_scheduler(scheduler)[0]
    base, expert = (
        from_diffusers(WithSample(network(path, "eps", (2, 4), weights)), scheduler, (2, 4))
        for weights in (BASE, EXPERT)
    )
    module = steered(base, expert)
    scheduler.set_timesteps(30)
    x = torch.randn(1500, 2, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(module(scheduler.scale_model_input(x, timestep), timestep).sample, timestep, x).prev_sample
    distance = (x[:, None] - means(2, 4)).flatten(2).norm(dim=2)
    assert abs(float((distance.argmin(dim=1) == 1).float().mean()) - 0.75) < 0.05
    torch.testing.assert_close(x.mean(dim=0), (EXPERT.view(2, 1, 1) * means(2, 4)).sum(dim=0), rtol=0, atol=0.12)
