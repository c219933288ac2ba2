"""A batch in parts: what is learned is what the whole batch teaches, whatever the loss, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, make_agent, same_tensors
from helpers.launched import learn, learners
from test_devices import outputs
from test_learner import Line
from torch import Tensor

from rrpolicy import DiffusionAgent
from rrpolicy.common.archive import read_archive
from rrpolicy.common.computing import parts_of
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages


class Divisible(Line):
    """Fits y = 2 x + 1 to the same numbers in every step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.x = torch.linspace(-1, 2, self.batch_size)[:, None]
        self.rows: list[int] = []

    def _draw_loss(self) -> Any:
        return self._loss_of(self._draw())

    def _draw(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def _loss_of(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        (x,) = batch
        self.rows.append(len(x))
        error = self.module(x) - (2 * x + 1)
        return (error**2).mean(), {"error": error.detach().abs().mean()}


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_gradient_and_values_are_those_of_the_mean(n: int) -> None:
    """d/dw mean((w x + b - 2 x - 1)²) = 2 mean(e x), d/db = 2 mean(e), by hand."""
    line = Divisible(accumulate=n, max_grad_norm=1e9)
    weight, bias = (float(value.detach()) for value in line.module.parameters())
    x = line.x.double().numpy()
    error = weight * x + bias - 2 * x - 1
    logged: dict[str, float] = {}
    line.learn(1, callback=lambda found, _: bool(logged.update(found["values"])) or True)
    gradients = [float(value.grad) for value in line.module.parameters()]
    np.testing.assert_allclose(gradients, [2 * np.mean(error * x), 2 * np.mean(error)], rtol=1e-6)
    wanted = [np.mean(error**2), np.mean(np.abs(error))]
    np.testing.assert_allclose([logged["loss"], logged["error"]], wanted, rtol=1e-6)
    assert sum(line.rows) == line.batch_size and max(line.rows) == -(-line.batch_size // n)


@pytest.mark.parametrize("name", ["agent", "extractor", "discriminator", "images"])
def test_every_learner_learns_what_the_whole_batch_teaches(name: str) -> None:
    found: dict[int, Any] = {}
    for n in (1, 4):
        learner = learners(accumulate=n)[name]
        first: list[Tensor] = []
        learn(name, learner, callback=lambda known, _, first=first: keep_gradients(known["self"], first))
        numbers = outputs(getattr(learner, "reward", learner))
        found[n] = torch.cat(first), torch.as_tensor(numbers, dtype=torch.float64)
    for whole, parts, most in zip(*found.values(), (1e-6, 1e-5 if name == "images" else 1e-6), strict=True):
        assert rms(whole - parts) < most * (1 + rms(whole))


def keep_gradients(learner: Any, first: list[Tensor]) -> bool:
    """Keep those of the first step."""
    if learner.num_timesteps == 1:
        first.extend(one.grad.flatten().double() for one in learner.module.parameters() if one.grad is not None)
    return True


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_so_does_a_classifier() -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    data, found = LabelledImages(images, np.arange(24) % 2, ("a", "b")), []
    for n in (1, 4):
        classifier = ImageClassifier((1, 8, 8), ("a", "b"), width=8, batch_size=8, seed=0, accumulate=n)
        found.append(classifier.learn(data, total_timesteps=6, log_interval=0).probabilities(images))
    np.testing.assert_allclose(*found, atol=1e-6)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = make_agent(accumulate=3).learn(DATASET, total_timesteps=6, log_interval=0)
    make_agent(accumulate=3).learn(DATASET, total_timesteps=6, log_interval=0, callback=stop_at(3)).save(tmp_path / "a")
    again = DiffusionAgent.load(tmp_path / "a")
    assert again.accumulate == 3
    again.learn(DATASET, total_timesteps=3, log_interval=0, reset_num_timesteps=False)
    assert same_tensors(again.get_parameters()["policy"], whole.get_parameters()["policy"])


def stop_at(step: int) -> Callable[[Any, Any], bool]:
    return lambda found, _: found["self"].num_timesteps < step


def test_an_archive_says_so_only_where_it_is_so(tmp_path: Path) -> None:
    for n, said in ((1, None), (2, 2)):
        make_agent(accumulate=n).learn(DATASET, total_timesteps=1, log_interval=0).save(tmp_path / "agent.zip")
        assert read_archive(tmp_path / "agent.zip").config["training"].get("accumulate") == said


def test_shares_are_those_of_the_rows() -> None:
    shares = [share for share, _ in parts_of((torch.zeros(7), torch.zeros(7, 2)), 3)]
    assert shares == [3 / 7, 2 / 7, 2 / 7]
    assert [len(part[0]) for _, part in parts_of((torch.zeros(2),), 5)] == [1, 1]  # no part is empty


def test_what_cannot_be_divided_is_refused() -> None:
    for wrong, said in ((0, "accumulate"), (17, "accumulate is 17, batch_size 16 cannot be divided so often")):
        with pytest.raises(ValueError, match=said):
            make_agent(batch_size=16, accumulate=wrong)
    with pytest.raises(ValueError, match="accumulate is 2, precision 'fp32': Line lacks _draw and _loss_of"):
        Line(accumulate=2)
