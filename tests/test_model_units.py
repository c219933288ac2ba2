"""Two models with different normalisers: exact where their scales differ by one factor, else refused."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.mixtures import BASE_MEANS, BASE_WEIGHTS, COSINE, EXPERT_WEIGHTS, PATHS, ExactNetwork

from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.score_model import check_compatible
from rrpolicy.models import ForeignModel, NoisePath, at_ratios, check_pair, from_module, in_units_of, steer, vp

WANTED = Affine(np.array([0.5, -1.0]), np.array([1.0, 4.0]))
SHIFT = np.array([0.3, -0.6])  # of the other normaliser, in its own units
PREDICTIONS = {"vp": "eps", "ve": "denoiser", "edm": "score", "flow": "velocity", "flow-back": "velocity"}


def other_units(factor: float) -> Affine:
    scale = factor * WANTED.scale
    return Affine(WANTED.offset - SHIFT * scale, scale)


def in_other_units(path: NoisePath, prediction: Any, factor: float, weights: torch.Tensor, **kw: Any) -> ForeignModel:
    """The mixture of the wanted units, as a network sees it that was trained in the other ones."""
    means = BASE_MEANS / factor + torch.tensor(SHIFT, dtype=torch.float32)
    network = ExactNetwork(path, prediction, means, weights, 0.1 / factor**2)
    return from_module(network, path, prediction, (2,), **kw)


def noised(model: ForeignModel) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(len(model.levels), (64,), generator=generator)
    return torch.randn(64, 2, generator=generator), t


def oracle(model: ForeignModel, weights: torch.Tensor) -> GaussianMixtureModel:
    return GaussianMixtureModel(BASE_MEANS, 0.1, weights, model.process)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3, 3.0])
@pytest.mark.parametrize("name", ["ve", "edm", "flow", "flow-back"])
def test_one_factor_is_another_level(name: str, factor: float) -> None:
    wide = PATHS[name]
    model = in_other_units(wide, PREDICTIONS[name], factor, EXPERT_WEIGHTS)
    like = from_module(ExactNetwork(wide, PREDICTIONS[name]), wide, PREDICTIONS[name], (2,))  # type: ignore[arg-type]
    like = like.with_conventions(wide.between(0.15, 5))  # within which the exact network knows what it is asked
    converted = in_units_of(model, other_units(factor), WANTED, like)
    x_t, t = noised(converted)
    torch.testing.assert_close(converted.eps(x_t, t), oracle(like, EXPERT_WEIGHTS).eps(x_t, t), rtol=0, atol=5e-3)
    check_compatible(like, converted)
    with pytest.raises(ValueError, match="steer the pair's other one"):
        steer(converted, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3])
def test_a_table_is_asked_between_its_times(factor: float) -> None:
    table = PATHS["vp"]
    model, like = (in_other_units(table, "eps", number, EXPERT_WEIGHTS) for number in (factor, 1.0))
    like = like.with_conventions(table.between(0.1, 5))
    converted = in_units_of(model, other_units(factor), WANTED, like)
    x_t, t = noised(converted)
    error = converted.eps(x_t, t) - oracle(like, EXPERT_WEIGHTS).eps(x_t, t)
    assert float(error.square().mean().sqrt()) < 0.01
    times = at_ratios(table, table.b / table.a).times
    torch.testing.assert_close(times, torch.arange(len(table), dtype=torch.float64))


def test_pairs_of_two_families_and_normalisers_agree_with_the_data() -> None:
    """A base of a table and an expert of a flow, in units that are 1.3 times as large."""
    table = vp(COSINE).between(0.05, 10)
    base = from_module(ExactNetwork(vp(COSINE), "eps"), table, "eps", (2,), name="toy")
    expert = in_units_of(
        in_other_units(PATHS["flow"], "velocity", 1.3, EXPERT_WEIGHTS), other_units(1.3), WANTED, like=base
    )
    events = [oracle(base, w).sample(512, torch.Generator().manual_seed(0)) for w in (BASE_WEIGHTS, EXPERT_WEIGHTS)]
    check_pair(base, expert, *events)
    with pytest.raises(ValueError, match=r"^expert: the model predicts noise"):
        check_pair(base, expert, events[0], (events[1] - 3) / 3)


def test_first_states_are_converted_without_noise() -> None:
    pinned = torch.tensor([True, False])
    path = PATHS["flow"]

    def model(factor: float) -> ForeignModel:
        means = BASE_MEANS / factor + torch.tensor(SHIFT, dtype=torch.float32) * (factor != 1)
        network = ExactNetwork(path, "velocity", means, variance=0.1 / factor**2, pinned=pinned)
        return from_module(network, path, "velocity", (2,), pinned=pinned)

    like = model(1.0).with_conventions(path.between(0.1, 5))
    converted = in_units_of(model(2.0), other_units(2.0), WANTED, like)
    x_t, t = noised(like)
    torch.testing.assert_close(converted.eps(x_t, t), like.eps(x_t, t), rtol=0, atol=5e-3)


def test_what_is_not_exact_is_refused_with_the_remedy() -> None:
    model = in_other_units(PATHS["flow"], "velocity", 1.0, BASE_WEIGHTS)
    skew = Affine(WANTED.offset, WANTED.scale * np.array([1, 2]))
    with pytest.raises(ValueError, match=r"factors from 0\.5 to 1: .*train one of them for a few hundred steps"):
        in_units_of(model, WANTED, skew)
    with pytest.raises(ValueError, match="3 and 2 columns, the model's events 2"):
        in_units_of(model, Affine(np.zeros(3), np.ones(3)), WANTED)
    with pytest.raises(ValueError, match="constant for one normaliser alone"):
        in_units_of(model, WANTED, Affine(np.zeros(2), np.array([1.0, 0.0])))
    with pytest.raises(ValueError, match="with different values"):
        in_units_of(model, Affine(np.zeros(2), np.array([1.0, 0.0])), Affine(np.ones(2), np.array([1.0, 0.0])))
    with pytest.raises(ValueError, match="the model is a GaussianMixtureModel"):
        in_units_of(oracle(model, BASE_WEIGHTS), WANTED, WANTED)  # type: ignore[arg-type]
    table = in_other_units(PATHS["vp"], "eps", 2.0, BASE_WEIGHTS)
    with pytest.raises(ValueError, match=r"the model knows ratios .* leave out .*other\.path\.between"):
        in_units_of(table, other_units(2.0), WANTED)
    with pytest.raises(ValueError, match="at least two levels"):
        PATHS["vp"].between(1.0, 1.0)


def test_normalisers_of_actions_and_observations_are_those_of_a_row() -> None:
    path = PATHS["flow"]
    units = Normalizer(Affine(np.array([1.0]), np.array([2.0])), Affine(np.array([0.0]), np.array([1.0])))
    double = Normalizer(Affine(np.array([1.0]), np.array([4.0])), Affine(np.array([0.0]), np.array([2.0])))
    model = from_module(ExactNetwork(path, "velocity", BASE_MEANS[:, None]), path, "velocity", (1, 2))
    converted = in_units_of(model, units, double)
    assert converted.normalizer is double and "normalizer=" in converted.fingerprint()
    assert in_units_of(model, units, units).fingerprint() != converted.fingerprint()
