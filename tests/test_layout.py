"""The packed order is [action, observation] and nothing but the layout knows it; numbers are checked by hand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rrpolicy.data import TrajectoryLayout

OBSERVATIONS = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
ACTIONS = -np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)


def test_packed_order_is_action_then_observation() -> None:
    layout = TrajectoryLayout(4, 2, 3)
    x = layout.pack(OBSERVATIONS, ACTIONS)
    assert x.shape == (2, *layout.event_shape) == (2, 3, 6)
    np.testing.assert_array_equal(x[1, 2], [-10, -11, 20, 21, 22, 23])
    np.testing.assert_array_equal(layout.actions_of(x), ACTIONS)
    np.testing.assert_array_equal(layout.observations_of(x), OBSERVATIONS)
    assert (layout.action_slice, layout.observation_slice) == (slice(0, 2), slice(2, 6))


def test_positions_only() -> None:
    layout = TrajectoryLayout(4, 2, 3, stride=8, observation_columns=(0, 1), plan_actions=False)
    assert (layout.columns, layout.width, layout.event_shape, layout.span) == ((0, 1), 2, (3, 2), 17)
    x = layout.pack(OBSERVATIONS)
    np.testing.assert_array_equal(x, OBSERVATIONS[..., :2])
    np.testing.assert_array_equal(layout.pack(OBSERVATIONS, ACTIONS), x)
    np.testing.assert_array_equal(layout.observations_of(x), x)
    with pytest.raises(ValueError, match="plan_actions=False"):
        layout.actions_of(x)


def test_columns_keep_the_order_given() -> None:
    layout = TrajectoryLayout(4, 2, 3, observation_columns=(3, 0))
    np.testing.assert_array_equal(layout.pack(OBSERVATIONS, ACTIONS)[0, 1], [-2, -3, 7, 4])


@pytest.mark.parametrize("columns", [None, (0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("plan_actions", [True, False])
def test_torch_and_numpy_agree_and_torch_keeps_gradients(columns: tuple[int, ...] | None, plan_actions: bool) -> None:
    layout = TrajectoryLayout(4, 2, 3, observation_columns=columns, plan_actions=plan_actions)
    observations = torch.tensor(OBSERVATIONS, requires_grad=True)
    packed = layout.pack(observations, torch.tensor(ACTIONS))
    assert isinstance(packed, torch.Tensor) and packed.dtype == torch.float32
    np.testing.assert_array_equal(packed.detach().numpy(), layout.pack(OBSERVATIONS, ACTIONS))
    layout.observations_of(packed).sum().backward()
    wanted = np.zeros(4)
    wanted[list(layout.columns)] = 1
    assert observations.grad is not None
    np.testing.assert_array_equal(observations.grad[0, 0].numpy(), wanted)


def test_packing_does_not_touch_its_inputs() -> None:
    before = OBSERVATIONS.copy(), ACTIONS.copy()
    x = TrajectoryLayout(4, 2, 3).pack(OBSERVATIONS, ACTIONS)
    x += 1
    np.testing.assert_array_equal(OBSERVATIONS, before[0])
    np.testing.assert_array_equal(ACTIONS, before[1])


def test_pinned_is_the_current_observation_and_never_its_action() -> None:
    pinned = TrajectoryLayout(4, 2, 3, observation_columns=(0, 1, 3)).pinned
    np.testing.assert_array_equal(pinned, [[False, False, True, True, True], [False] * 5, [False] * 5])
    assert pinned.dtype == bool
    with pytest.raises(ValueError):
        pinned[0, 0] = True


@pytest.mark.parametrize(("horizon", "stride", "span"), [(1, 5, 1), (4, 1, 4), (16, 8, 121)])
def test_span_counts_first_and_last_step(horizon: int, stride: int, span: int) -> None:
    assert TrajectoryLayout(4, 2, horizon, stride).span == span


@pytest.mark.parametrize("columns", [None, (2, 0)])
def test_survives_json(columns: tuple[int, ...] | None) -> None:
    layout = TrajectoryLayout(4, 2, 16, 8, columns, False)
    again = TrajectoryLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert hash(again) == hash(layout)


def test_layouts_differ_in_every_field() -> None:
    layout = TrajectoryLayout(4, 2, 16)
    changes: list[dict[str, Any]] = [
        *({"observation_dim": 5}, {"action_dim": 3}, {"horizon": 8}),
        *({"stride": 2}, {"observation_columns": (0, 1)}, {"plan_actions": False}),
    ]
    assert all(replace(layout, **change) != layout for change in changes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"observation_dim": 0}, "observation_dim=0"),
        ({"action_dim": -1}, "action_dim=-1"),
        ({"horizon": 2.5}, "horizon=2.5"),
        ({"stride": True}, "stride=True"),
        ({"observation_columns": ()}, r"observation_columns=\(\)"),
        ({"observation_columns": (0, 4)}, "from 0 to 3"),
        ({"observation_columns": (-1,)}, "from 0 to 3"),
        ({"observation_columns": (1, 1)}, "distinct"),
    ],
)
def test_wrong_fields_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrajectoryLayout(**{"observation_dim": 4, "action_dim": 2, "horizon": 8, **values})


def test_from_dict_names_unknown_and_missing_fields() -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['gamma'\], missing fields \['horizon'\]"):
        TrajectoryLayout.from_dict({"observation_dim": 4, "action_dim": 2, "gamma": 1})


def test_wrong_widths_and_missing_actions_are_named() -> None:
    layout = TrajectoryLayout(4, 2, 3)
    with pytest.raises(ValueError, match=r"observations has shape \(2, 3, 2\), wanted \(\.\.\., 4\)"):
        layout.pack(ACTIONS, ACTIONS)
    with pytest.raises(ValueError, match=r"actions has shape \(2, 3, 4\), wanted \(\.\.\., 2\)"):
        layout.pack(OBSERVATIONS, OBSERVATIONS)
    with pytest.raises(ValueError, match="actions=None"):
        layout.pack(OBSERVATIONS)
    for read in (layout.actions_of, layout.observations_of):
        with pytest.raises(ValueError, match=r"x has shape \(2, 3, 4\), wanted \(\.\.\., 6\)"):
            read(OBSERVATIONS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"horizon": 10**8}, "horizon=100000000, wanted at most 16384"),
        ({"stride": 10**8}, "stride=100000000, wanted at most 10000"),
        ({"observation_dim": 2**17}, "observation_dim=131072, wanted at most"),
        ({"horizon": 2**14, "action_dim": 2**9}, "makes windows of .* numbers, wanted at most"),
    ],
)
def test_sizes_are_bounded(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrajectoryLayout(**{"observation_dim": 4, "action_dim": 2, "horizon": 8, **arguments})
