"""Libraries of other people's models: their own losses, steps and samplers agree with the score models made of them.

They need packages for training on pictures, which are not installed: those are replaced while they are imported.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from helpers.mixtures import ExactNetwork
from test_bridges import BASE, EXPERT, Difference, steered
from torch import nn

from rrpolicy import RewardExtractor
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.models import (
    ForeignModel,
    NoisePath,
    affine,
    check_pair,
    check_score_model,
    from_denoising_diffusion_pytorch,
    from_flow_matching,
    from_k_diffusion,
    load_lerobot,
    policy_events,
    steer,
    ve,
    vp,
)

pytestmark = pytest.mark.peers

PICTURES = (
    "accelerate",
    "clip",
    "cleanfid",
    "cleanfid.inception_torchscript",
    "dctorch",
    "jsonmerge",
    "kornia",
    "ot",
    "pytorch_fid",
    "pytorch_fid.fid_score",
    "pytorch_fid.inception",
    "skimage",
    "torchdyn",
    "torchdyn.core",
    "torchdyn.datasets",
    "torchsde",
    "torchvision",
    "torchvision.transforms",
)
ROBOTS = (
    "accelerate",
    "accelerate.utils",
    "av",
    "cv2",
    "datasets",
    "datasets.features",
    "datasets.features.features",
    "datasets.table",
    "datasets.utils",
    "datasets.utils.file_utils",
    "datasets.utils.logging",
    "deepdiff",
    "jsonlines",
    "num2words",
    "pandas",
    "pyarrow",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "serial",
    "termcolor",
    "torchcodec",
    "torchcodec.decoders",
    "torchvision",
    "torchvision.io",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)
MEANS = torch.tensor([[[0.5, 0.3]], [[-0.4, -0.5]]])  # (K, channels, length), within ±1, to which some samplers clip
N = 2000


def imported(name: str, packages: tuple[str, ...] = PICTURES) -> Any:
    """A module of a library whose packages for pictures, or for robots, may be missing."""
    missing = [package for package in packages if package not in sys.modules and not _found(package)]
    specs = {package: importlib.machinery.ModuleSpec(package, None) for package in missing}
    sys.modules.update({package: MagicMock(__spec__=spec, __version__="2.2.0") for package, spec in specs.items()})
    try:
        return importlib.import_module(name)
    finally:
        for package in missing:
            del sys.modules[package]


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def exact(path: NoisePath, prediction: str, weights: torch.Tensor) -> ExactNetwork:
    network = ExactNetwork(path, prediction, MEANS, weights, 0.01)
    network.channels, network.self_condition = 1, False
    return network


def noised(model: ForeignModel, n: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Events, noise, both mixed in the path's own units, and levels."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(len(model.path), (n,), generator=generator)
    x0 = GaussianMixtureModel(MEANS, 0.01, BASE).sample(n, generator)
    noise = torch.randn(x0.shape, generator=generator)
    a, b = (table[t].float().view(-1, 1, 1) for table in (model.path.a, model.path.b))
    return x0, noise, a * x0 + b * noise, t


def share(samples: torch.Tensor) -> float:
    """Of samples at the second component; all must be close to one of the two."""
    distance = (samples[:, None] - MEANS).flatten(2).norm(dim=2)
    assert float(distance.min(dim=1).values.mean()) < 0.2
    return float((distance.argmin(dim=1) == 1).float().mean())


def is_expert(samples: torch.Tensor) -> bool:
    """Three standard errors of 2 000 samples, and what a sampler's steps add."""
    return abs(share(samples) - 0.75) < 0.05


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("objective", "prediction"), [("pred_noise", "eps"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_denoising_diffusion_pytorch(objective: str, prediction: str) -> None:
    library = imported("denoising_diffusion_pytorch")

    def made(weights: torch.Tensor) -> Any:
        diffusion = library.GaussianDiffusion1D(
            exact(vp([0.9, 0.5]), "eps", weights), seq_length=2, timesteps=50, objective=objective, auto_normalize=False
        )
        diffusion.model = exact(vp(diffusion.alphas_cumprod), prediction, weights)
        return diffusion

    theirs = made(BASE)
    base, expert = from_denoising_diffusion_pytorch(theirs), from_denoising_diffusion_pytorch(made(EXPERT))
    x0, noise, x, t = noised(base)
    torch.testing.assert_close(theirs.q_sample(x0, t, noise), x)
    torch.testing.assert_close(theirs.model_predictions(x, t).pred_noise, base.eps(x, t), rtol=2e-3, atol=2e-3)
    theirs.model = steered(base, expert)
    assert is_expert(theirs.sample(N))


def test_denoising_diffusion_pytorch_trains_pictures_of_our_shape() -> None:
    library = imported("denoising_diffusion_pytorch")
    unet = library.Unet(dim=8, dim_mults=(1, 2), channels=1, flash_attn=False)
    theirs = library.GaussianDiffusion(unet, image_size=8, timesteps=20, objective="pred_v")
    model = from_denoising_diffusion_pytorch(theirs)
    assert model.event_shape == (1, 8, 8) and "auto_normalize" in model.fingerprint()
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 10, 19])
    with torch.no_grad():
        wanted = theirs.model_predictions(x, t).pred_noise
    torch.testing.assert_close(model.eps(x, t), wanted, rtol=2e-3, atol=2e-3)


class Inner(nn.Module):
    """What must stand within a preconditioner of k-diffusion for its D to be exact."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.outer = exact(ve(), "denoiser", weights), []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        skip, out, into = (scale.view(-1, 1, 1) for scale in self.outer[0].get_scalings(sigma))
        x = x / into
        return (self.inner(x, sigma) - skip * x) / out


def test_k_diffusion() -> None:
    layers, sampling = imported("k_diffusion.layers"), imported("k_diffusion.sampling")

    def made(weights: torch.Tensor) -> Any:
        denoiser = layers.SimpleLossDenoiser(Inner(weights), sigma_data=0.5)
        denoiser.inner_model.outer.append(denoiser)
        return denoiser

    theirs = made(BASE)
    base, expert = from_k_diffusion(theirs, (1, 2)), from_k_diffusion(made(EXPERT), (1, 2))
    x0, noise, x, t = noised(base)
    ours = (base.eps(x / base.path.c[t].float().view(-1, 1, 1), t) - noise).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(theirs.loss(x0, noise, base.path.b[t].float()), ours, rtol=1e-2, atol=1e-2)
    sigmas = sampling.get_sigmas_karras(30, float(base.path.b[0]), float(base.path.b[-1]))
    start = torch.randn(N, 1, 2) * sigmas[0]
    for sampler in (sampling.sample_heun, sampling.sample_euler_ancestral):
        assert is_expert(sampler(steered(base, expert), start, sigmas, disable=True))


def test_k_diffusion_wraps_networks_of_a_table() -> None:
    external = imported("k_diffusion.external")
    path = vp(torch.cos(torch.linspace(0.1, 1.4, 30)) ** 2)
    theirs = external.DiscreteEpsDDPMDenoiser(exact(path, "eps", BASE), (path.a**2).float(), quantize=True)
    model = from_k_diffusion(theirs, (1, 2), theirs.sigmas)
    _, _, x, t = noised(model)
    x = x / model.path.c[t].float().view(-1, 1, 1)
    wanted = GaussianMixtureModel(MEANS, 0.01, BASE, model.process).eps(x, t)
    torch.testing.assert_close(model.eps(x, t), wanted, rtol=2e-3, atol=2e-3)


class Velocity(nn.Module):
    """flow_matching's solver gives x and t by name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inner(x, t.expand(len(x)))


@pytest.mark.parametrize("name", ["CondOT", "Cosine", "LinearVP", "VP"])
def test_flow_matching(name: str) -> None:
    paths, solvers = imported("flow_matching.path"), imported("flow_matching.solver")
    scheduler = getattr(imported("flow_matching.path.scheduler"), f"{name}Scheduler")()
    path = affine(scheduler)
    base, expert = (
        from_flow_matching(Velocity(exact(path, "velocity", weights)), (1, 2), scheduler=scheduler)
        for weights in (BASE, EXPERT)
    )
    x0, noise, x, t = noised(base)
    theirs = paths.AffineProbPath(scheduler=scheduler).sample(x_0=noise, x_1=x0, t=path.times[t].float())
    torch.testing.assert_close(theirs.x_t, x, rtol=1e-3, atol=1e-3)
    assert path.da is not None and path.db is not None
    rate = path.da[t].view(-1, 1, 1) * x0 + path.db[t].view(-1, 1, 1) * noise
    torch.testing.assert_close(theirs.dx_t, rate.float(), rtol=1e-2, atol=1e-2)
    solver = solvers.ODESolver(velocity_model=steered(base, expert))
    ends = torch.stack([path.times.min(), path.times.max()]).float()
    samples = solver.sample(x_init=torch.randn(N, 1, 2), method="midpoint", step_size=0.02, time_grid=ends)
    assert is_expert(samples)


def test_torchcfm_with_networks_that_it_trained() -> None:
    """Base and expert of torchcfm's own MLP and loss; the reward is extracted, and steers its Euler steps."""
    matching = imported("torchcfm.conditional_flow_matching").ConditionalFlowMatcher(sigma=0.0)
    mlp = imported("torchcfm.models.models").MLP
    goals = torch.tensor([[1.5, 1.0], [-1.5, -1.0]])

    def data(weights: torch.Tensor, n: int) -> torch.Tensor:
        return goals[torch.multinomial(weights, n, replacement=True)] + 0.3 * torch.randn(n, 2)

    def trained(weights: torch.Tensor) -> nn.Module:
        network = mlp(dim=2, time_varying=True)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(1500):
            t, x, velocity = matching.sample_location_and_conditional_flow(torch.randn(256, 2), data(weights, 256))
            loss = (network(torch.cat([x, t[:, None]], dim=-1)) - velocity).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network

    base, expert = (from_flow_matching(trained(weights), (2,), "cat") for weights in (BASE, EXPERT))
    check_pair(base, expert, data(BASE, 512), data(EXPERT, 512))
    with pytest.raises(ValueError, match="time running the other way"):
        check_score_model(from_flow_matching(base.module, (2,), "cat", noise_at=1, negate=True), data(BASE, 512))
    t, x, velocity = matching.sample_location_and_conditional_flow(torch.randn(N, 2), data(BASE, N), t=torch.rand(N))
    predicted = base.module(torch.cat([x, t[:, None]], dim=-1)).detach()
    assert abs(float(((velocity - predicted) * predicted).mean())) < 0.1 * float(predicted.square().mean())

    def sampled(network: nn.Module) -> float:
        samples, steps = torch.randn(N, 2), 50
        for i in range(steps):
            with torch.no_grad():
                samples = samples + network(torch.cat([samples, torch.full((N, 1), i / steps)], dim=-1)) / steps
        return float((samples[:, 0] < 0).float().mean())

    extractor = RewardExtractor(base, expert, seed=0).learn(data(BASE, 4000), 1000, log_interval=0)
    shares = [sampled(network) for network in (base.module, steer(base, extractor.reward), expert.module)]
    assert abs(shares[0] - 0.25) < 0.05 and abs(shares[2] - 0.75) < 0.05
    assert (shares[1] - shares[0]) / (shares[2] - shares[0]) >= 0.9
    assert float(Difference(base, expert).gradient(torch.zeros(1, 2), torch.tensor([10]))[0, 0]) < 0


def lerobot_policy(folder: Path, **changes: Any) -> Any:
    """A policy of LeRobot with random weights and statistics, saved by its own code."""
    if not _found("lerobot"):
        pytest.skip("LeRobot is not installed")
    diffusion = "lerobot.policies.diffusion"
    modeling = imported(f"{diffusion}.modeling_diffusion", ROBOTS)
    types = imported("lerobot.configs.types", ROBOTS)
    widths = {"observation.state": 3, "observation.environment_state": 2, "action": 2}
    kinds = dict(zip(widths, (types.FeatureType.STATE, types.FeatureType.ENV, types.FeatureType.ACTION), strict=True))
    features = {key: types.PolicyFeature(kinds[key], (width,)) for key, width in widths.items()}
    config = imported(f"{diffusion}.configuration_diffusion", ROBOTS).DiffusionConfig(
        horizon=8,
        n_action_steps=4,
        input_features={key: features[key] for key in widths if key != "action"},
        output_features={"action": features["action"]},
        down_dims=(16, 32),
        kernel_size=3,
        diffusion_step_embed_dim=16,
        num_train_timesteps=20,
        device="cpu",
        **changes,
    )
    stats = {
        key: {
            "mean": torch.randn(width),
            "std": torch.rand(width) + 0.5,
            "min": -torch.rand(width) - 1,
            "max": torch.rand(width) + 1,
        }
        for key, width in widths.items()
    }
    if _found(f"{diffusion}.processor_diffusion"):  # of September 2025 and later
        policy = modeling.DiffusionPolicy(config)
        make = imported(f"{diffusion}.processor_diffusion", ROBOTS).make_diffusion_pre_post_processors
        policy.normalized = make(config, stats)[0]
        for processor in make(config, stats):
            processor.save_pretrained(folder)
    else:
        policy = modeling.DiffusionPolicy(config, dataset_stats=stats)
        policy.normalized = lambda batch: policy.normalize_targets(policy.normalize_inputs(batch))
    policy.save_pretrained(folder)
    return policy.eval()


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_policy_that_lerobot_saved_is_read_and_steered(prediction: str, tmp_path: Path) -> None:
    changes = {"prediction_type": prediction, "use_film_scale_modulation": prediction == "epsilon"}
    theirs, model = lerobot_policy(tmp_path, **changes), load_lerobot(tmp_path)
    state, environment, actions = torch.randn(5, 2, 3), torch.randn(5, 2, 2), torch.randn(5, 8, 2)
    batch = {"observation.state": state, "observation.environment_state": environment, "action": actions}
    normalised = theirs.normalized(dict(batch))
    features = theirs.diffusion._prepare_global_conditioning(normalised)
    events = policy_events(model, torch.cat([state, environment], dim=2), actions)
    torch.testing.assert_close(events, torch.cat([normalised["action"].flatten(1), features], dim=1))
    t = torch.tensor([0, 4, 9, 13, 19])
    with torch.no_grad():
        output = theirs.diffusion.unet(normalised["action"], t, global_cond=features)
        torch.testing.assert_close(model.module(normalised["action"], t, global_cond=features), output)
        step = [
            theirs.diffusion.noise_scheduler.step(output[i : i + 1], t[i], normalised["action"][i : i + 1])
            for i in range(5)
        ]
    alpha, sigma = model.process.levels(actions, t)
    x0 = (normalised["action"] - sigma * model.eps(events, t)[:, :16].view(-1, 8, 2)) / alpha
    wanted = torch.cat([one.pred_original_sample for one in step])
    torch.testing.assert_close(x0.clamp(-1, 1), wanted, rtol=1e-3, atol=1e-3)

    expert = lerobot_policy(tmp_path / "other", **changes)
    plain, wanted = (
        policy.diffusion.conditional_sample(5, features, torch.Generator().manual_seed(0))
        for policy in (theirs, expert)
    )
    theirs.diffusion.unet = steered(model, load_lerobot(tmp_path / "other"))
    got = theirs.diffusion.conditional_sample(5, features, torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    assert float((plain - wanted).detach().abs().max()) > 0.1
