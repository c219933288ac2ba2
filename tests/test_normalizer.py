"""Normalising is affine, exact on constant columns and the same in numpy and torch; a fingerprint is its identity."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.data import Affine, Normalizer, TrajectoryDataset, TrajectoryLayout

MODES = ("limits", "gaussian", "isotropic")


@pytest.fixture
def dataset() -> TrajectoryDataset:
    """Columns of very different ranges; column 2 and action 1 are constant at values without a short binary form."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(500, 4)) * [3.0, 0.1, 0.0, 1.0] + [10.0, -1.0, 0.1, 0.0]
    actions = rng.uniform(-1, 1, size=(500, 2)) * [1.0, 0.0] + [0.0, 1 / 3]
    return TrajectoryDataset.from_arrays(observations, actions)


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
    path = write_archive(tmp_path / "n", "normalizer", {}, {"normalizer": normalizer.to_tensors()})
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
    tensors = Normalizer.fit(dataset).to_tensors()
    with pytest.raises(ValueError, match="'action_scale' is missing"):
        Normalizer.from_tensors({key: value for key, value in tensors.items() if key != "action_scale"})
    with pytest.raises(ValueError, match="'mode' is"):
        Normalizer.from_tensors({**tensors, "mode": torch.tensor([9])})
