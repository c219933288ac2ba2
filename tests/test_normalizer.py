"""Normalising is affine, exact on constant columns and the same in numpy and torch; a fingerprint is its identity."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.data import Affine, Normalizer, TrajectoryDataset, TrajectoryLayout

MODES = ("limits", "gaussian", "isotropic", "quantiles")


@pytest.fixture
def dataset() -> TrajectoryDataset:
    """Columns of very different ranges; column 2 and action 1 are constant at values without a short binary form."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(500, 4)) * [3.0, 0.1, 0.0, 1.0] + [10.0, -1.0, 0.1, 0.0]
    actions = rng.uniform(-1, 1, size=(500, 2)) * [1.0, 0.0] + [0.0, 1 / 3]
    return TrajectoryDataset.from_arrays(observations, actions)


def tensors_of(normalizer: Normalizer) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in normalizer.to_arrays().items()}


def test_limits_reach_plus_and_minus_one(dataset: TrajectoryDataset) -> None:
    normalizer = Normalizer.fit(dataset)
    for affine, values in ((normalizer.observations, dataset.observations), (normalizer.actions, dataset.actions)):
        x = affine.normalize(values)
        varies = values.min(0) < values.max(0)
        np.testing.assert_allclose(x.max(0), varies, atol=1e-6)
        np.testing.assert_allclose(x.min(0), -1.0 * varies, atol=1e-6)


def test_gaussian_has_mean_zero_and_deviation_one(dataset: TrajectoryDataset) -> None:
    x = Normalizer.fit(dataset, "gaussian").observations.normalize(dataset.observations.astype(np.float64))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), [1, 1, 0, 1], atol=1e-5)


def test_isotropic_has_one_scale_and_keeps_proportions(dataset: TrajectoryDataset) -> None:
    normalizer = Normalizer.fit(dataset, "isotropic")
    half = np.ptp(dataset.observations, axis=0) / 2
    np.testing.assert_allclose(normalizer.observations.scale, half.max() * np.array([1, 1, 0, 1]), rtol=1e-6)
    midpoints = (dataset.observations.max(0) + dataset.observations.min(0)) / 2
    np.testing.assert_allclose(normalizer.observations.offset, midpoints, rtol=1e-5)
    assert normalizer.actions == Normalizer.fit(dataset, "limits").actions
    assert np.abs(normalizer.observations.normalize(dataset.observations)).max() <= 1 + 1e-6


def test_quantiles_reach_plus_and_minus_one_whatever_outliers_do(dataset: TrajectoryDataset) -> None:
    observations = dataset.observations.copy()
    observations[0, 0], observations[1, 1] = 1e6, -1e6
    normalizer = Normalizer.fit(TrajectoryDataset.from_arrays(observations, dataset.actions), "quantiles")
    low, high = np.quantile(observations.astype(np.float64), [0.01, 0.99], axis=0)
    np.testing.assert_allclose(normalizer.observations.offset, (low + high) / 2, rtol=1e-5)
    np.testing.assert_allclose(normalizer.observations.scale, (high - low) / 2, rtol=1e-5)
    inside = (np.abs(normalizer.observations.normalize(observations)) <= 1 + 1e-5).mean(0)
    np.testing.assert_allclose(inside, [0.98, 0.98, 1, 0.98], atol=0.005)


def test_a_column_with_equal_quantiles_has_its_range() -> None:
    """A flag that is rarely set must not become a constant."""
    flag = np.zeros((1000, 1))
    flag[:3] = 1.0
    normalizer = Normalizer.fit(TrajectoryDataset.from_arrays(flag, flag - 3), "quantiles")
    assert (normalizer.observations.offset, normalizer.observations.scale) == (0.5, 0.5)
    assert (normalizer.actions.offset, normalizer.actions.scale) == (-2.5, 0.5)


@pytest.mark.parametrize("mode", MODES)
def test_several_datasets_are_fitted_as_one(dataset: TrajectoryDataset, mode: str) -> None:
    other = TrajectoryDataset.from_arrays(dataset.observations[:50] + 7, dataset.actions[:50] - 2)
    both = Normalizer.fit([dataset, other], mode)
    assert both == Normalizer.fit(TrajectoryDataset.concatenate([dataset, other]), mode)
    assert both != Normalizer.fit(dataset, mode) == Normalizer.fit([dataset], mode) == Normalizer.fit((dataset,), mode)


def test_what_is_no_dataset_is_refused(dataset: TrajectoryDataset) -> None:
    with pytest.raises(ValueError, match="datasets is empty"):
        Normalizer.fit([])
    with pytest.raises(ValueError, match="wanted equal ones"):
        Normalizer.fit([dataset, TrajectoryDataset.from_arrays(dataset.actions, dataset.actions)])
    for wrong in (dataset.observations, [dataset, dataset.actions], "limits"):
        with pytest.raises(TypeError, match="wanted a TrajectoryDataset or a list of them"):
            Normalizer.fit(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["limits", "gaussian", "quantiles"])
def test_a_column_that_is_constant_but_for_rounding_is_measured_in_its_own_size(mode: str) -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([np.full(500, 2.0), np.full(500, -50.0), np.zeros(500)]) + rng.uniform(-1, 1, (500, 3))
    constant = [0, 1]
    values[:, constant] = [2.0, -50.0] * (1 + 1e-6 * rng.uniform(-1, 1, (500, 2)))
    with pytest.warns(UserWarning, match=r"observation columns \[0, 1\] vary by less than 1e-05 of their size"):
        normalizer = Normalizer.fit(TrajectoryDataset.from_arrays(values, values[:, 2:]), mode)
    assert np.abs(normalizer.observations.normalize(values)[:, constant]).max() < 1e-5
    off = normalizer.observations.normalize(np.array([2.0 * 1.05, -50.0 * 0.95, 0.0]))  # 5 % off, at acting
    np.testing.assert_allclose(off[constant], 0.05, rtol=1e-3)
    np.testing.assert_allclose(normalizer.observations.denormalize(off)[constant], [2.1, -47.5], rtol=1e-5)


@pytest.mark.parametrize("column", [0, 1])
def test_an_almost_constant_action_is_measured_so_as_well(column: int) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (500, 2))
    actions[:, column] = 0.5 + 1e-6 * actions[:, column]
    with pytest.warns(UserWarning, match=rf"action columns \[{column}\]"):
        normalizer = Normalizer.fit(TrajectoryDataset.from_arrays(actions, actions), "isotropic")
    assert normalizer.actions.scale[column] == pytest.approx(0.5, rel=1e-4)
    assert normalizer.observations.scale[0] == normalizer.observations.scale[1]  # isotropic: one scale


@pytest.mark.parametrize("mode", ["limits", "gaussian", "isotropic"])
def test_ordinary_columns_are_fitted_as_ever(mode: str) -> None:
    """Heights of robots, positions in mazes, joint velocities, kelvins: no floor changes their numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 6)) * [0.05, 0.3, 8.0, 2.0, 1e-3, 0.0] + [1.25, 0.0, 0.5, 293.0, 47.3, 0.1]
    x = x.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = Normalizer.fit(TrajectoryDataset.from_arrays(x, x[:, :2]), mode).observations
    half = (x.max(0).astype(np.float64) - x.min(0)) / 2
    scale = {
        "limits": half,
        "gaussian": np.where(half > 0, x.std(0, dtype=np.float64), 0),
        "isotropic": np.where(half > 0, half.max(), 0),
    }[mode]
    offset = x.mean(0, dtype=np.float64) if mode == "gaussian" else np.stack([x.min(0), x.max(0)]).mean(0, np.float64)
    np.testing.assert_array_equal(fitted.scale, scale.astype(np.float32))
    np.testing.assert_array_equal(fitted.offset[:5], offset[:5].astype(np.float32))


@pytest.mark.parametrize("mode", MODES)
def test_there_and_back(dataset: TrajectoryDataset, mode: str) -> None:
    affine = Normalizer.fit(dataset, mode).observations
    back = affine.denormalize(affine.normalize(dataset.observations))
    np.testing.assert_allclose(back, dataset.observations, atol=1e-5)
    assert back.dtype == np.float32


@pytest.mark.parametrize("mode", MODES)
def test_constant_columns_go_to_zero_and_back_exactly(dataset: TrajectoryDataset, mode: str) -> None:
    normalizer = Normalizer.fit(dataset, mode)
    for affine, values, column in (
        (normalizer.observations, dataset.observations, 2),
        (normalizer.actions, dataset.actions, 1),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no division by zero on the way
            assert (affine.normalize(values)[:, column] == 0).all()
            assert (affine.normalize(values + 5)[:, column] == 0).all()
        noisy = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
        assert (affine.denormalize(noisy)[:, column] == values[0, column]).all()
        assert (affine.denormalize(torch.tensor(noisy))[:, column].numpy() == values[0, column]).all()


@pytest.mark.parametrize("mode", MODES)
def test_torch_equals_numpy_and_carries_gradients(dataset: TrajectoryDataset, mode: str) -> None:
    affine = Normalizer.fit(dataset, mode).observations
    values = torch.tensor(dataset.observations[:7], requires_grad=True)
    x = affine.normalize(values)
    np.testing.assert_allclose(x.detach().numpy(), affine.normalize(dataset.observations[:7]), atol=1e-6)
    np.testing.assert_allclose(affine.denormalize(x).detach().numpy(), dataset.observations[:7], atol=1e-5)
    x.sum().backward()
    assert values.grad is not None
    wanted = np.divide(1, affine.scale, out=np.zeros(4), where=affine.scale > 0)
    np.testing.assert_allclose(values.grad[0].numpy(), wanted, rtol=1e-6)
    assert affine.normalize(values.double()).dtype == torch.float64


def test_inputs_stay_as_they_were(dataset: TrajectoryDataset) -> None:
    affine = Normalizer.fit(dataset).observations
    array, tensor = np.ones((3, 4), np.float32), torch.ones(3, 4)
    for change in (affine.normalize, affine.denormalize):
        change(array)
        change(tensor)
    assert (array == 1).all() and (tensor == 1).all()


def test_bounds_of_a_known_box() -> None:
    low, high = np.array([-1.0, -3.0]), np.array([1.0, 5.0])
    boxed = Normalizer.from_bounds((low, high), (low[:1], high[:1]), "isotropic")
    np.testing.assert_array_equal(boxed.observations.offset, [0, 1])
    np.testing.assert_array_equal(boxed.observations.scale, [4, 4])
    np.testing.assert_array_equal(boxed.actions.normalize(np.array([[1.0], [-1.0]])), [[1], [-1]])


@pytest.mark.parametrize("columns", [None, (3, 0)])
@pytest.mark.parametrize("plan_actions", [True, False])
def test_packed_map_equals_packing_of_normalised(
    dataset: TrajectoryDataset, columns: tuple[int, ...] | None, plan_actions: bool
) -> None:
    normalizer = Normalizer.fit(dataset)
    layout = TrajectoryLayout(4, 2, 5, observation_columns=columns, plan_actions=plan_actions)
    windows = dataset.windows(layout, np.array([0, 30]))
    packed = normalizer.packed(layout).normalize(layout.pack(windows.observations, windows.actions))
    parts = normalizer.observations.normalize(windows.observations), normalizer.actions.normalize(windows.actions)
    np.testing.assert_array_equal(packed, layout.pack(*parts))
    assert packed.shape == (2, *layout.event_shape)


def test_packed_map_names_the_width_that_differs(dataset: TrajectoryDataset) -> None:
    with pytest.raises(ValueError, match=r"layout\.action_dim=3, wanted 2"):
        Normalizer.fit(dataset).packed(TrajectoryLayout(4, 3, 5))


@pytest.mark.parametrize("mode", MODES)
def test_survives_the_archive_with_its_fingerprint(dataset: TrajectoryDataset, tmp_path: Path, mode: str) -> None:
    normalizer = Normalizer.fit(dataset, mode)
    path = write_archive(tmp_path / "n", "normalizer", {}, {"normalizer": tensors_of(normalizer)})
    again = Normalizer.from_tensors(read_archive(path).tensors["normalizer"])
    assert again == normalizer
    assert again.mode == mode
    assert again.fingerprint() == normalizer.fingerprint()


def test_fingerprint_is_an_identity(dataset: TrajectoryDataset) -> None:
    normalizer = Normalizer.fit(dataset)
    nudged = Affine(np.nextafter(normalizer.observations.offset, np.float32(99)), normalizer.observations.scale)
    others = [
        Normalizer.fit(dataset, "gaussian"),
        replace(normalizer, observations=nudged),
        replace(normalizer, mode="isotropic"),
        Normalizer(Affine(np.zeros(2), np.ones(2)), Affine(np.zeros(1), np.ones(1))),
        Normalizer(Affine(np.zeros(1), np.ones(1)), Affine(np.zeros(2), np.ones(2))),
    ]
    marks = [normalizer.fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(marks)) == len(marks)
    assert all(other != normalizer for other in others)
    assert Normalizer.fit(dataset) == normalizer
    assert Normalizer.fit(dataset).fingerprint() == marks[0]
    assert len(marks[0]) == 16 and set(marks[0]) <= set("0123456789abcdef")


def test_negative_zero_is_zero() -> None:
    one, two = Affine(np.array([0.0]), np.array([1.0])), Affine(np.array([-0.0]), np.array([1.0]))
    assert one == two
    assert hash(one) == hash(two)
    assert Normalizer(one, one).fingerprint() == Normalizer(two, one).fingerprint()


def test_values_are_read_only_and_never_the_callers_array() -> None:
    offset = np.zeros(2, np.float32)
    affine = Affine(offset, np.ones(2, np.float32))
    offset[0] = 7
    assert affine.offset[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        affine.offset[0] = 7


def test_no_affine_equals_something_else() -> None:
    assert Affine(np.zeros(1), np.ones(1)) != "affine"


def test_wrong_values_are_named(dataset: TrajectoryDataset) -> None:
    with pytest.raises(ValueError, match="mode='minmax', wanted"):
        Normalizer.fit(dataset, "minmax")
    with pytest.raises(ValueError, match="mode='none', wanted"):
        replace(Normalizer.fit(dataset), mode="none")
    with pytest.raises(ValueError, match=r"offset=.*nan.*finite"):
        Affine(np.array([np.nan]), np.ones(1))
    with pytest.raises(ValueError, match=r"scale=.*at least 0"):
        Affine(np.zeros(1), -np.ones(1))
    with pytest.raises(ValueError, match=r"scale=.*wanted 2 values"):
        Affine(np.zeros(2), np.ones(1))
    with pytest.raises(ValueError, match="observations: bounds"):
        Normalizer.from_bounds((np.ones(1), np.zeros(1)), (np.zeros(1), np.ones(1)))
    with pytest.raises(ValueError, match="actions: bounds"):
        Normalizer.from_bounds((np.zeros(1), np.ones(1)), (np.zeros(1), np.array([np.inf])))
    with pytest.raises(ValueError, match=r"x has shape \(3, 5\), wanted \(\.\.\., 4\)"):
        Normalizer.fit(dataset).observations.normalize(np.zeros((3, 5)))


def test_wrong_tensors_are_named(dataset: TrajectoryDataset) -> None:
    tensors = tensors_of(Normalizer.fit(dataset))
    with pytest.raises(ValueError, match="'action_scale' is missing"):
        Normalizer.from_tensors({key: value for key, value in tensors.items() if key != "action_scale"})
    with pytest.raises(ValueError, match="'mode' is"):
        Normalizer.from_tensors({**tensors, "mode": torch.tensor([9])})
