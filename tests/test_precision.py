"""bfloat16 in learning: networks are called in it, what is kept stays float32, and learning goes as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, KINDS, make_agent, same_tensors
from helpers.launched import learn, learners
from helpers.recipes import ENV_ID
from test_cli import built, fault, run, tiny_zoo  # noqa: F401  a zoo for every test
from test_learner import Line
from torch import nn

from rrpolicy import RewardExtractor
from rrpolicy.common.archive import read_archive
from rrpolicy.common.computing import autocast

BF16: dict[str, Any] = {"precision": "bf16"}
NAMES = ["agent", "extractor", "discriminator", "images"]


@contextmanager
def dtypes_of(network: nn.Module) -> Iterator[set[torch.dtype]]:
    """What the outputs of a network's linear layers and convolutions are made of, in a block."""
    seen: set[torch.dtype] = set()
    layers = [one for one in network.modules() if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d)]
    handles = [one.register_forward_hook(lambda *call: seen.add(call[2].dtype)) for one in layers]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_networks_compute_in_it_and_what_is_kept_does_not(name: str, tmp_path: Path) -> None:
    learner = learners(**BF16)[name]
    with dtypes_of(learner.module) as seen, dtypes_of(learner.averaged) as judged:
        learn(name, learner, checkpoint_path=tmp_path / "learner.zip")
    assert seen == {torch.bfloat16}
    assert judged <= {torch.float32}  # of the held-out loss
    kept = read_archive(tmp_path / "learner.zip").tensors
    numbers = [one for group in ("weights", "averaged", "optimizer") for one in kept[group].values()]
    assert {one.dtype for one in numbers if one.is_floating_point()} == {torch.float32}
    assert all(bool(torch.isfinite(one).all()) for one in numbers)


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(one, marks=pytest.mark.slow) for one in ("unet", "transformer"))]
)
def test_the_loss_falls_as_in_float32(kind: str) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        losses: list[float] = []
        agent = make_agent(**KINDS[kind], precision=precision)
        agent.learn(DATASET, 40, callback=lambda known, _, to=losses: to.append(known["values"]["loss"]) or True)
        found[precision] = np.mean(losses[:10]), np.mean(losses[-20:]), losses
    (first, last, losses), (_, expected, exact) = found["bf16"], found["fp32"]
    assert last < 0.8 * first and abs(last - expected) < 0.1 * (first - expected)
    assert losses != exact
    assert any(float(torch.tensor(loss).bfloat16()) != loss for loss in losses)  # they are sums in float32


def test_the_two_models_are_compared_in_float32() -> None:
    base, expert = make_agent(), make_agent(seed=1)
    extractor = RewardExtractor(base, expert, batch_size=16, buffer_size=32, n_epochs=1, **BF16)
    with dtypes_of(base.averaged) as seen, dtypes_of(expert.averaged) as others:
        extractor.learn([DATASET, EXPERT_DATASET], total_timesteps=4, log_interval=0)
    assert seen == others == {torch.float32}


def test_the_second_derivative_is_that_of_float32_up_to_rounding() -> None:
    """Of the loss of ∇ρ with respect to weights, relative to the size of the gradient."""
    found = []
    for precision in ("fp32", "bf16"):
        extractor = learners(precision=precision)["extractor"]
        extractor.learn([DATASET, EXPERT_DATASET], 1, log_interval=0)
        gradients = [one.grad.flatten() for one in extractor.module.parameters() if one.grad is not None]
        found.append(torch.cat(gradients).double())
    exact, rounded = found
    cosine = float(exact @ rounded / (exact.norm() * rounded.norm()))
    assert cosine > 0.99 and not torch.equal(exact, rounded)


@pytest.mark.parametrize("name", ["agent", pytest.param("images", marks=pytest.mark.slow)])
def test_stopped_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole, part = (learners(**BF16)[name] for _ in range(2))
    learn(name, whole)
    total = whole.num_timesteps
    learn(name, part, callback=lambda known, _: known["self"].num_timesteps < 3)
    part.save(tmp_path / "part.zip")
    again = type(part).load(tmp_path / "part.zip")
    assert again.precision == "bf16" and 0 < again.num_timesteps < total
    if name == "agent":
        again.learn(
            [DATASET, EXPERT_DATASET],
            total - again.num_timesteps,
            eval_dataset=[EXPERT_DATASET, DATASET],
            eval_freq=5,
            patience=3,
            reset_num_timesteps=False,
        )
    else:
        from helpers import idx

        again.learn(idx.images(32, size=8)[0], total - again.num_timesteps, reset_num_timesteps=False)
    assert same_tensors(again.get_parameters()["policy"], whole.get_parameters()["policy"])


def test_an_archive_says_so_only_where_it_is_so(tmp_path: Path) -> None:
    for precision, said in (("fp32", None), ("bf16", "bf16")):
        agent = make_agent(precision=precision).learn(DATASET, total_timesteps=1, log_interval=0)
        agent.save(tmp_path / "agent.zip", resumable=False)
        assert read_archive(tmp_path / "agent.zip").config["training"].get("precision") == said


def test_it_acts_in_float32() -> None:
    agent = make_agent(**BF16).learn(DATASET, total_timesteps=1, log_interval=0)
    with dtypes_of(agent.averaged) as seen:
        agent.predict(DATASET.observations[:2])
    assert seen == {torch.float32}


def test_an_unknown_precision_is_refused() -> None:
    for wrong in ("fp16", "bfloat16", None):
        with pytest.raises(ValueError, match=r"precision is .*, it must be one of \('fp32', 'bf16'\)"):
            make_agent(precision=wrong)
    with pytest.raises(ValueError, match="precision is 'bf16', which privateuseone:0 lacks"):
        autocast("bf16", torch.device("privateuseone:0"))
    with pytest.raises(ValueError, match="Line lacks _draw and _loss_of"):
        Line(**BF16)


# ---------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "base"
    run("collect", "--env", ENV_ID, "--n-transitions", 1000, "--out", folder)
    return folder


def training_of(path: Path) -> dict[str, Any]:
    return {name: read_archive(path).config["training"].get(name) for name in ("precision", "accumulate", "fast_noise")}


def test_commands_take_it(data: Path, tmp_path: Path) -> None:
    how = ("--precision", "bf16", "--accumulate", 2, "--fast-noise", "--no-progress")
    base, expert = tmp_path / "base", tmp_path / "expert"
    train = ("train", "--dataset", data, "--total-timesteps", 2)
    run(*train, "--out", base, *how)
    run(*train, "--out", expert, "--init-from", base, "--no-progress")
    wanted = {"precision": "bf16", "accumulate": 2, "fast_noise": True}
    assert (
        training_of(base / "agent.zip") == training_of(expert / "agent.zip") == wanted
    )  # fine-tuned as it was trained
    plain = ("--precision", "fp32", "--accumulate", 1, "--same-noise", "--no-progress")
    run(*train, "--out", tmp_path / "plain", "--init-from", base, *plain)
    assert training_of(tmp_path / "plain" / "agent.zip") == dict.fromkeys(wanted)
    pair = ("--base", base / "agent.zip", "--expert", expert / "agent.zip", "--dataset", data)
    learned = []
    for options in (how, plain):
        run("extract", *pair, "--total-timesteps", 3, "--out", tmp_path / "reward", *options)
        learned.append(read_archive(tmp_path / "reward" / "reward.zip").tensors["weights"])
    assert not same_tensors(*learned)


def test_what_began_otherwise_is_not_resumed(data: Path, tmp_path: Path) -> None:
    train = ("train", "--dataset", data, "--out", tmp_path / "run", "--no-progress", "--total-timesteps")
    run(*train, 2, "--precision", "bf16")
    said = fault(*train, 3, "--resume", "--precision", "fp32")
    assert said.endswith(f"cannot resume {tmp_path / 'run'}: it began with precision 'bf16', now it is 'fp32'")
    run(*train, 3, "--resume")
    assert training_of(tmp_path / "run" / "agent.zip")["precision"] == "bf16"


def test_a_precision_that_there_is_not_is_wrong_usage() -> None:
    for command in (("train",), ("extract",), ("images", "extract")):
        assert "fp16" in run(*command, "--precision", "fp16", code=2).stderr
