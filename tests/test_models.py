"""Other people's networks become score models along every path, and get their reward back in their own units."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.mixtures import BASE_MEANS, BASE_WEIGHTS, EXPERT_WEIGHTS, PATHS, ExactNetwork, exact

from rrpolicy import RewardExtractor
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible
from rrpolicy.models import (
    ForeignModel,
    NoisePath,
    check_pair,
    check_score_model,
    flow,
    from_flow_matching,
    from_module,
    steer,
    ve,
    vp,
)
from rrpolicy.rewards.targets import make_targets

CASES = [
    ("vp", "eps"),
    ("vp", "x0"),
    ("vp", "v"),
    ("ve", "score"),
    ("ve", "denoiser"),
    ("edm", "denoiser"),
    ("edm", "velocity"),
    ("flow", "velocity"),
    ("flow", "x0"),
    ("flow-back", "velocity"),
    ("flow-back", "eps"),
]
EVENTS = exact(PATHS["vp"]).sample(1024, torch.Generator().manual_seed(0))


def model_of(path: str, prediction: Any, **options: Any) -> ForeignModel:
    return from_module(ExactNetwork(PATHS[path], prediction, **options), PATHS[path], prediction, (2,))


def noised(path: NoisePath, n: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(len(path), (n,), generator=generator)
    return path.process.q_sample(EVENTS[:n], t, torch.randn(n, 2, generator=generator)), t


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_the_noise_is_that_of_the_variance_preserving_mixture(path: str, prediction: str) -> None:
    model = model_of(path, prediction)
    x_t, t = noised(PATHS[path])
    assert isinstance(model, ScoreModel)
    torch.testing.assert_close(model.eps(x_t, t), exact(PATHS[path]).eps(x_t, t), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_outputs_change_with_the_noise_as_the_prediction_says(path: str, prediction: str) -> None:
    model = model_of(path, prediction, negate=True)
    model.negate = True
    x, t = noised(PATHS[path])
    output, change = torch.randn(64, 2), torch.randn(64, 2)
    moved = model.eps_from_output(x, t, output + model.output_change(t, change))
    torch.testing.assert_close(moved, model.eps_from_output(x, t, output) + change, rtol=1e-3, atol=1e-3)


class ExactReward:
    """ρ of two mixtures, as far as steering needs it."""

    event_shape = (2,)

    def __init__(self, path: NoisePath) -> None:
        self.process = path.process
        self._base, self._expert = exact(path), exact(path, EXPERT_WEIGHTS)

    def gradient(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = self.process.levels(x_t, t)[1]
        return (self._base.eps(x_t, t) - self._expert.eps(x_t, t)) / sigma


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_steered_by_the_exact_reward_a_network_gives_what_its_expert_gives(path: str, prediction: Any) -> None:
    noise_path = PATHS[path]
    expert = ExactNetwork(noise_path, prediction, weights=EXPERT_WEIGHTS)
    steered = steer(model_of(path, prediction), ExactReward(noise_path))  # type: ignore[arg-type]
    x_t, t = noised(noise_path)
    x, time = x_t * noise_path.c[t].float()[:, None], noise_path.times[t]
    torch.testing.assert_close(steered(x, time), expert(x, time), rtol=2e-3, atol=2e-3)
    between = time[:1].double() + 0.37 * (noise_path.times[1] - noise_path.times[0]).double()
    error = (steered(x, between) - expert(x, between)).abs().max()
    assert error < 0.1 * (ExactNetwork(noise_path, prediction)(x, between) - expert(x, between)).abs().max() + 1e-3


def test_a_steered_network_is_called_and_answers_as_before() -> None:
    class Output(tuple):
        pass

    network = ExactNetwork(PATHS["flow"], "velocity")
    network.width = 7
    model = from_module(lambda x, time: network(x, time), PATHS["flow"], "velocity", (2,))
    reward = ExactReward(PATHS["flow"])
    x, time = torch.randn(3, 2), torch.tensor(0.5)
    steered = steer(model, reward, inputs=lambda *, time, x: (x, time))  # type: ignore[arg-type]
    assert torch.equal(steered(x=x, time=time.expand(3)), steered(time=time.expand(3), x=x))
    off = steer(model_of("flow", "velocity"), reward, 0.0)  # type: ignore[arg-type]
    assert torch.equal(off(x, time.expand(3)), network(x, time.expand(3)))
    assert steer(from_module(network, PATHS["flow"], "velocity", (2,)), reward).width == 7  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale is nan"):
        steer(model, reward, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise levels"):
        steer(model_of("vp", "eps"), reward)  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "prediction"), CASES)
def test_right_conventions_pass_the_check(path: str, prediction: str) -> None:
    found = check_score_model(model_of(path, prediction), EVENTS)
    assert found.fits and found.ratio <= 1.05


def random_toy(seed: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means and weights of three components, and 512 events around them with standard deviation .3."""
    generator = torch.Generator().manual_seed(seed)
    means, weights = torch.randn(3, *shape, generator=generator), torch.rand(3, generator=generator) + 0.2
    weights = weights / weights.sum()
    events = means[torch.multinomial(weights, 512, replacement=True, generator=generator)]
    return means, weights, events + 0.3 * torch.randn(512, *shape, generator=generator)


TOYS = [(0, (2,)), (0, (8, 3))]
MORE_TOYS = [(seed, shape) for shape in ((2,), (8, 3), (32, 6)) for seed in range(10)]
ALL_TOYS = TOYS + [pytest.param(*toy, marks=pytest.mark.slow) for toy in MORE_TOYS if toy not in TOYS]


@pytest.mark.parametrize(("seed", "shape"), ALL_TOYS)
def test_wrong_conventions_are_named(seed: int, shape: tuple[int, ...]) -> None:
    means, weights, events = random_toy(seed, shape)

    def network(path: NoisePath, prediction: str, **options: Any) -> ExactNetwork:
        return ExactNetwork(path, prediction, means, weights, 0.09, **options)

    forward, backward, table = flow(), flow(noise_at=0), PATHS["vp"]
    wrong = {
        "the opposite sign": from_module(network(forward, "velocity", negate=True), forward, "velocity", shape),
        "time running the other way": from_module(
            network(backward, "velocity"), forward, "velocity", shape, negate=True
        ),
        "prediction='x0'": from_module(network(table, "x0"), table, "eps", shape),
        "prediction='eps'": from_module(network(table, "eps"), table, "x0", shape),
    }
    for name, model in wrong.items():
        with pytest.raises(ValueError, match=f"{name}.* fits best"):
            check_score_model(model, events)
    right = from_module(network(table, "eps"), table, "eps", shape)
    with pytest.raises(ValueError, match="times as badly as a linear predictor"):
        check_score_model(right, 3 + 5 * events)
    check_pair(right, right, events, events)


def test_reversed_time_is_found_in_many_dimensions() -> None:
    """Of 192 entries 512 events tell a covariance only when it is shrunk."""
    means, weights, events = random_toy(0, (32, 6))
    network = ExactNetwork(flow(noise_at=0), "velocity", means, weights, 0.09)
    right, wrong = from_flow_matching(network, (32, 6)), from_flow_matching(network, (32, 6), noise_at=1, negate=True)
    assert 0.8 < check_score_model(right, events).ratio < 1.05
    with pytest.raises(ValueError, match="times as badly as a linear predictor"):
        check_score_model(wrong, events)


@pytest.mark.parametrize("mode", ["gaussian", "limits"])
@pytest.mark.parametrize(("seed", "shape"), ALL_TOYS)
def test_forgotten_normalisers_are_named(seed: int, shape: tuple[int, ...], mode: str) -> None:
    """A model of columns in the units of a normaliser, and events in other units."""
    means, weights, events = random_toy(seed, shape)
    generator = torch.Generator().manual_seed(seed)
    units = 10 ** (2 * torch.rand(shape[-1], generator=generator) - 1)
    raw = events * units + 3 * torch.randn(shape[-1], generator=generator)
    rows = events.reshape(-1, shape[-1])
    if mode == "gaussian":
        offset, scale = rows.mean(dim=0), rows.std(dim=0)
    else:
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        offset, scale = (low + high) / 2, (high - low) / 2
    network = ExactNetwork(PATHS["vp"], "eps", (means - offset) / scale, weights, (0.09 / scale**2).expand(shape))
    model = from_module(network, PATHS["vp"], "eps", shape)
    normalised = (events - offset) / scale
    assert check_score_model(model, normalised).ratio <= 1.05
    with pytest.raises(ValueError, match=r"\(a normaliser was forgotten\) fits best"):
        check_score_model(model, raw)
    with pytest.raises(ValueError, match=r"^expert: .*\(a normaliser was forgotten\) fits best"):
        check_pair(model, model, normalised, raw)


def test_two_models_of_different_units_are_no_pair() -> None:
    """Each fits in its own units; with the other's normaliser the expert is named."""
    means, weights, events = random_toy(1, (8, 3))
    wide = from_module(ExactNetwork(PATHS["vp"], "eps", means, weights, 0.09), PATHS["vp"], "eps", (8, 3))
    narrow = ExactNetwork(PATHS["vp"], "eps", means / 6, weights, 0.09 / 36)
    other = from_module(narrow, PATHS["vp"], "eps", (8, 3))
    check_pair(wide, wide, events, events)
    check_score_model(other, events / 6)
    with pytest.raises(ValueError, match=r"^expert: the model predicts noise"):
        check_pair(wide, other, events, events)
    with pytest.raises(ValueError, match=r"^base: the model predicts noise"):
        check_pair(wide, other, events / 6, events / 6)


def test_conditions_are_pinned_entries() -> None:
    path = flow()

    def call(module: Any, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return module(x - condition.view(-1, 1, 2), time)

    network = ExactNetwork(path, "x0", BASE_MEANS.view(2, 1, 2))
    model = from_module(network, path, "x0", (1, 2), call=call, n_condition=2)
    assert model.event_shape == (4,) and model.pinned.tolist() == [False, False, True, True]
    x_t, t = torch.randn(5, 4), torch.arange(5)
    eps = model.eps(x_t, t)
    assert eps.shape == (5, 4) and bool((eps[:, 2:] == 0).all())
    other = model.eps(torch.cat([x_t[:, :2], x_t[:, 2:] + 1], dim=1), t)
    assert not torch.allclose(eps[:, :2], other[:, :2])
    check_compatible(model, from_module(network, path, "x0", (1, 2), call=call, n_condition=2))


def test_bad_adapters_are_refused_by_name() -> None:
    path = flow()
    with pytest.raises(ValueError, match="prediction is 'noise'"):
        from_module(ExactNetwork(path, "eps"), path, "noise", (2,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a velocity is that of a path"):
        from_module(ExactNetwork(path, "eps"), PATHS["vp"], "velocity", (2,))
    broadcast = from_module(lambda x, time: x[:, :1], path, "eps", (2,))
    with pytest.raises(ValueError, match=r"shape \(3, 1\) for events of shape \(3, 2\)"):
        broadcast.eps(torch.randn(3, 2), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="gave NaN"):
        from_module(lambda x, time: x * torch.nan, path, "eps", (2,)).eps(torch.randn(1, 2), torch.tensor([1]))
    with pytest.raises(ValueError, match="gave a dict"):
        from_module(lambda x, time: {}, path, "eps", (2,)).eps(torch.randn(1, 2), torch.tensor([1]))
    with pytest.raises(ValueError, match="b / a must grow"):
        ve([2.0, 1.0])
    with pytest.raises(ValueError, match="at least two"):
        vp([0.5])
    with pytest.raises(ValueError, match=r"within \(0, 1\)"):
        flow([0.0, 0.5])
    with pytest.raises(ValueError, match="pinned has shape"):
        from_module(ExactNetwork(path, "eps"), path, "eps", (2,), pinned=torch.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["vp", "ve", "edm", "flow", "flow-back"])
def test_the_reward_is_the_log_ratio_through_every_path(path: str) -> None:
    """Default settings, 3 000 steps; `edm` has 40 levels of EDM's own spread."""
    noise_path, prediction = PATHS[path], "eps"
    base, expert = (
        from_module(ExactNetwork(noise_path, prediction, weights=weights), noise_path, prediction, (2,))
        for weights in (BASE_WEIGHTS, EXPERT_WEIGHTS)
    )
    reward = RewardExtractor(base, expert, seed=0).learn(None, 3000, log_interval=0).reward
    x = torch.cat(
        [exact(noise_path, w).sample(500, torch.Generator().manual_seed(1)) for w in (BASE_WEIGHTS, EXPERT_WEIGHTS)]
    )
    t = torch.zeros(len(x), dtype=torch.int64)
    truth = exact(noise_path, EXPERT_WEIGHTS).log_prob(x, t) - exact(noise_path).log_prob(x, t)
    with torch.no_grad():
        rho = reward(x, t)
    slope, _ = np.polyfit(truth, rho, 1)
    assert np.corrcoef(truth, rho)[0, 1] >= 0.99 and 0.95 <= slope <= 1.05


def test_one_pair_through_two_paths_is_one_pair() -> None:
    """Flow and score networks of the same mixtures, at the same ratios of noise to signal, give the same targets."""
    targets, bases = [], []
    for name, prediction in (("ve", "score"), ("flow", "velocity"), ("flow-back", "velocity")):
        pair = [
            from_module(ExactNetwork(PATHS[name], prediction, weights=weights), PATHS[name], prediction, (2,))
            for weights in (BASE_WEIGHTS, EXPERT_WEIGHTS)
        ]
        targets.append(make_targets(*pair, EVENTS, torch.Generator().manual_seed(0), n_value_draws=2))
        bases.append(pair[0])
    check_compatible(bases[0], bases[1])
    for other in targets[1:]:
        torch.testing.assert_close(other.eps_difference, targets[0].eps_difference, rtol=0, atol=2e-3)
        assert targets[0].value is not None and other.value is not None
        assert float((other.value - targets[0].value).square().mean().sqrt()) < 0.02
