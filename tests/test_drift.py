"""The toy environment keeps gymnasium's contract, and its best return is the one that its description names."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rrpolicy.testing import DriftEnv


def test_it_keeps_gymnasiums_contract() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unbounded observations
        check_env(DriftEnv(render_mode="rgb_array"), skip_render_check=False)


def test_the_best_return_is_a_tenth_of_the_steps() -> None:
    env = DriftEnv(n_steps=7)
    start, _ = env.reset(seed=0)
    steps = [env.step(np.array([1.0, 0.5])) for _ in range(7)]
    assert sum(step[1] for step in steps) == pytest.approx(0.7)
    assert [step[3] for step in steps] == [False] * 6 + [True]
    np.testing.assert_allclose(steps[-1][0], [start[0] + 0.7, start[1] + 0.35, 0.1, 3.0])
