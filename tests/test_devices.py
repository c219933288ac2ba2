"""Every public path on a second device gives the CPU's numbers.

The device is `helpers.other_device`, CPU tensors in disguise on which mixing devices fails as on CUDA;
`tests/test_cuda.py` runs the same paths on a real one. Each path is a function of a device that returns numbers. What
needs the second device runs in a process of its own, since torch knows a device that was registered for ever.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, KINDS, Drift, make_agent
from helpers.mixtures import PATHS

from rrpolicy import DiffusionAgent, DiscriminatorReward, GuidedPlanner, RelativeReward, RewardExtractor, evaluate
from rrpolicy.agents import Rounds, refine
from rrpolicy.agents.blended_planner import BlendedPlanner
from rrpolicy.common.device import resolve
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.denoising_error import denoising_errors, levels_of
from rrpolicy.images.metrics import elbo_difference
from rrpolicy.images.recording import record_samples
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.models import check_score_model, from_module, steer
from rrpolicy.rewards.metrics import explained_by_level

N_STEPS = 6
DATA = [DATASET, EXPERT_DATASET]
NETWORK = {"width": 32, "n_blocks": 1}  # each block has operators, which the second device takes one by one
NARROW: dict[str, Any] = {
    "batch_size": 16,
    "buffer_size": 64,
    "n_epochs": 2,
    "n_value_draws": 1,
    "value_coef": 0.1,
    "window_kwargs": NETWORK,
    "step_kwargs": NETWORK,
}
SMALL_UNET = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4}
OBSERVATIONS = np.random.default_rng(0).normal(0, 0.3, (3, 4)).astype(np.float32)


def outputs(model: Any) -> np.ndarray:
    """What a model or a reward gives for some events: weights whose gradient is 0 but for rounding need not agree."""
    shape, n_levels = model.event_shape, model.process.n_diffusion_steps
    x_t = torch.randn(16, *shape, generator=torch.Generator().manual_seed(3)).to(model.device)
    t = (torch.arange(16) % n_levels).to(model.device)
    if isinstance(model, RelativeReward):
        return np.stack([model(x_t, t, head).detach().cpu().numpy() for head in model.heads])
    return model.eps(x_t, t).cpu().numpy()


def learned(device: str, kind: str = "plain", dataset: Any = DATASET) -> DiffusionAgent:
    agent = make_agent(**KINDS[kind], device=device)
    return agent.learn(dataset, total_timesteps=2, log_interval=0)


@functools.cache
def pair(device: str) -> tuple[DiffusionAgent, DiffusionAgent]:
    """Once in each process: extraction and steering leave both as they are."""
    return learned(device), learned(device, dataset=EXPERT_DATASET)


# ---------------------------------------------------------------------- agents


def learn(device: str, folder: Path, kind: str = "plain") -> Any:
    agent = make_agent(**KINDS[kind], device=device)
    agent.learn(DATASET, total_timesteps=N_STEPS, log_interval=0, eval_dataset=EXPERT_DATASET, eval_freq=3)
    return outputs(agent)


def resume(device: str, folder: Path) -> Any:
    agent = make_agent(device=device)
    agent.learn(DATASET, total_timesteps=N_STEPS // 2, log_interval=0, checkpoint_path=folder / "agent.zip")
    again = DiffusionAgent.load(folder / "agent.zip", device=device)
    again.learn(DATASET, total_timesteps=N_STEPS // 2, log_interval=0, reset_num_timesteps=False)
    return outputs(again)


def moved(device: str, folder: Path) -> Any:
    agent = learned("cpu").to(device)
    agent.learn(DATASET, total_timesteps=N_STEPS, log_interval=0, reset_num_timesteps=False)
    agent.to("cpu").learn(DATASET, total_timesteps=2, log_interval=0, reset_num_timesteps=False)
    return outputs(agent)


def act(device: str, folder: Path, kind: str = "plain") -> Any:
    agent, state = learned(device, kind), None
    actions = []
    for _ in range(4):  # plans of three actions are made anew
        action, state = agent.predict(OBSERVATIONS, state=state)
        actions.append(action)
    return [*actions, agent.predict(OBSERVATIONS, deterministic=True)[0], agent.plan(OBSERVATIONS)]


def candidates(device: str, folder: Path) -> Any:
    return pair(device)[0].with_planning(n_candidates=3).predict(OBSERVATIONS)[0]


def run_episodes(device: str, folder: Path) -> Any:
    return evaluate(pair(device)[0], Drift(), n_eval_episodes=2, seed=1).returns


def fast_noise(device: str, folder: Path) -> Any:
    """On the second device generators are the CPU's in disguise; a real one gives other numbers, see `test_cuda`."""
    agent = make_agent(device=device, fast_noise=True)
    agent.learn(DATASET, total_timesteps=N_STEPS // 2, log_interval=0, checkpoint_path=folder / "agent.zip")
    again = DiffusionAgent.load(folder / "agent.zip", device=device)
    again.learn(DATASET, total_timesteps=N_STEPS // 2, log_interval=0, reset_num_timesteps=False)
    return [outputs(again), again.predict(OBSERVATIONS)[0], again.predict(OBSERVATIONS, deterministic=True)[0]]


# ---------------------------------------------------------------------- rewards


def extract(device: str, folder: Path, n_steps: int = 3, **options: Any) -> Any:
    """A few small steps, of which the third has a new buffer: longer ones part the devices further, see ROUGH."""
    base, expert = pair(device)
    sizes = {"buffer_size": 32, "n_epochs": 1, "learning_rate": 2e-5}
    extractor = RewardExtractor(base, expert, **{**NARROW, **sizes, **options})
    extractor.learn(DATA, total_timesteps=n_steps, log_interval=0, checkpoint_path=folder / "extractor.zip")
    again = RewardExtractor.load(folder / "extractor.zip", base=base, expert=expert)
    again.learn(DATA, total_timesteps=2, log_interval=0, reset_num_timesteps=False)
    windows = torch.as_tensor(np.random.default_rng(1).normal(0, 0.5, (8, 8, 6)), dtype=torch.float32)
    explained = explained_by_level(again.reward, base, expert, windows.to(base.device), [1, 5])
    return [outputs(again.reward), np.array(list(explained.values()))]


def compare_at_own_samples(device: str, folder: Path) -> Any:
    extractor = RewardExtractor(*pair(device), heads=["window"], **NARROW)
    return outputs(extractor.learn(total_timesteps=2, log_interval=0).reward)


def discriminate(device: str, folder: Path) -> Any:
    discriminator = DiscriminatorReward(*pair(device), batch_size=16, window_kwargs=NETWORK)
    return outputs(discriminator.learn(DATA, total_timesteps=N_STEPS, log_interval=0).reward)


def score(device: str, folder: Path) -> Any:
    base, expert = pair(device)
    extractor = RewardExtractor(base, expert, **NARROW).learn(DATA, total_timesteps=2, log_interval=0)
    extractor.reward.save(folder / "reward.zip")
    reward = RelativeReward.load(folder / "reward.zip", device=device)
    windows = DATASET.observations[:16].reshape(2, 8, 4), DATASET.actions[:16].reshape(2, 8, 2)
    return [reward.predict(DATASET.observations, DATASET.actions), reward.predict(*windows)]


def steered(device: str, folder: Path) -> Any:
    base, expert = pair(device)
    extractor = RewardExtractor(base, expert, heads=["window"], **NARROW)
    extractor.learn(DATA, total_timesteps=4, log_interval=0)
    planner = GuidedPlanner(base, extractor.reward, scale=2.0, max_shift=0.5, n_candidates=2)
    planner.save(folder / "planner.zip")
    again = GuidedPlanner.load(folder / "planner.zip", device=device)
    blended = BlendedPlanner(base, expert)
    return [one.predict(OBSERVATIONS)[0] for one in (planner, again, blended)] + [np.array(planner.share_bound)]


def in_rounds(device: str, folder: Path) -> Any:
    base, expert = pair(device)
    extractor = RewardExtractor(base, expert, heads=["window"], **NARROW)
    extractor.learn(DATA, total_timesteps=2, log_interval=0)
    sizes = Rounds(n_plans=8, n_visited=16, n_envs=1)
    return outputs(refine(extractor, DATA, Drift, n_rounds=1, total_timesteps=2, rounds=sizes).reward)


# ---------------------------------------------------------------------- models of others


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        torch.nn.init.eye_(self.layer.weight)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def foreign(device: str, folder: Path, name: str = "vp") -> Any:
    torch.manual_seed(0)
    path, prediction = PATHS[name], "velocity" if name.startswith("flow") else "eps"
    models = [from_module(Linear().to(device), path, prediction, (2,)) for _ in range(2)]
    extractor = RewardExtractor(*models, **NARROW, seed=0).learn(total_timesteps=2, log_interval=0)
    changed = steer(models[0], extractor.reward, 2.0)
    x = torch.linspace(-1, 1, 8).view(4, 2).to(device)
    time = path.times[torch.tensor([0, 3, 5, 7])].to(device, torch.float32)
    events = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    try:
        found = np.array(check_score_model(models[0], events.to(device)).ratio)
    except ValueError as error:  # a linear network predicts no noise, which the check says on every device alike
        found = np.array([float(len(str(error)))])
    return [outputs(extractor.reward), changed(x, time).detach().cpu().numpy(), found]


# ---------------------------------------------------------------------- images

IMAGES = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 1)).astype(np.uint8)


def image_model(device: str, seed: int = 0) -> ImageDiffusion:
    model = ImageDiffusion(
        PixelCodec((1, 8, 8)), n_diffusion_steps=10, batch_size=8, unet_kwargs=SMALL_UNET, seed=seed, device=device
    )
    return model.learn(IMAGES, total_timesteps=3, log_interval=0)


def draw_images(device: str, folder: Path) -> Any:
    model = image_model(device)
    return [outputs(model), sample_images(model, 2, n_sampling_steps=3, solver="ddpm")]


def score_images(device: str, folder: Path) -> Any:
    models = [image_model("cpu", seed=seed) for seed in (0, 1)]
    extractor = RewardExtractor(*models, **{**NARROW, "window_kwargs": {"network": "unet-encoder"}})
    extractor.learn(models[0].codec.encode(IMAGES), total_timesteps=3, log_interval=0)
    ImageReward(extractor.reward, models[0].codec, in_nats=True).save(folder / "reward.zip")
    reward = ImageReward.load(folder / "reward.zip", device=device).calibrated(IMAGES[:12], IMAGES[12:])
    base, expert = (model.to(device) for model in models)
    events = base.codec.encode(IMAGES[:4])
    return [
        reward.predict(IMAGES),
        reward.per_level(IMAGES[:4], [0, 9], n_noisings=2),
        sample_images(base, 2, n_sampling_steps=3, reward=reward).astype(float),
        elbo_difference(base, expert, events, n_draws=1),
        denoising_errors(base, events, levels_of(base)),
    ]


def record_images(device: str, folder: Path) -> Any:
    base, expert = image_model(device), image_model(device, seed=1)
    pairs = record_samples(base, expert, base.codec, folder / "pairs", n_samples=4, n_noisings=4, n_sampling_steps=3)
    extractor = RewardExtractor(pairs.model, pairs.model, **NARROW, device=device)
    extractor.learn(pairs, total_timesteps=3, log_interval=0)
    return outputs(extractor.reward)


def classify(device: str, folder: Path) -> Any:
    data = LabelledImages(IMAGES, np.arange(24) % 2, ("a", "b"))
    classifier = ImageClassifier((1, 8, 8), ("a", "b"), width=8, batch_size=8, seed=0, device=device)
    return classifier.learn(data, total_timesteps=4, log_interval=0).probabilities(IMAGES)


CASES: dict[str, Callable[[str, Path], Any]] = {
    **{f"learn-{kind}": (lambda device, folder, kind=kind: learn(device, folder, kind)) for kind in KINDS},
    **{f"act-{kind}": (lambda device, folder, kind=kind: act(device, folder, kind)) for kind in KINDS},
    "resume": resume,
    "to": moved,
    "candidates": candidates,
    "evaluate": run_episodes,
    "extract": extract,
    "extract-value-units": lambda device, folder: extract(device, folder, heads=["window"], value_units=True),
    "extract-in-parts": lambda device, folder: extract(device, folder, 4, heads=["step"], accumulate=3),
    "extract-own-samples": compare_at_own_samples,
    "discriminator": discriminate,
    "fast-noise": fast_noise,
    "score": score,
    "steer": steered,
    "refine": in_rounds,
    **{f"foreign-{name}": (lambda device, folder, name=name: foreign(device, folder, name)) for name in PATHS},
    "images-draw": draw_images,
    "images-score": score_images,
    "images-record": record_images,
    "images-classify": classify,
}


MORE = {  # of a kind that others show as well, or nearly
    *(f"learn-{kind}" for kind in ("warm", "strided", "history", "controller")),
    *(f"act-{kind}" for kind in ("warm", "strided", "controller", "history-controller", "unet", "transformer")),
    *("resume", "candidates"),  # fast-noise resumes, too, and steer has candidates
    *("foreign-vp", "foreign-ve", "foreign-edm", "foreign-flow-back", "images-draw"),
    *("extract-own-samples", "extract-value-units", "extract-in-parts"),
}
ROUGH = ("extract-value-units", "extract-own-samples", "refine", "foreign-edm", "images-record")
"""Cases in which Adam divides gradients that are hardly more than rounding by their own size."""


@contextmanager
def at(device: str) -> Iterator[None]:
    if device != "other":
        yield
        return
    from helpers.other_device import other_device

    with other_device():
        yield


def numbers_of(case: str, device: str, folder: Path) -> list[np.ndarray]:
    folder.mkdir()
    torch.set_num_threads(1)
    with at(device):
        found = CASES[case](device, folder)
    return found if isinstance(found, list) else [found]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Calls a function of this module in another process, which may register a device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in MORE)) for case in CASES])
def test_a_second_device_gives_the_numbers_of_the_cpu(case: str, tmp_path: Path, elsewhere: Callable[..., Any]) -> None:
    expected = numbers_of(case, "cpu", tmp_path / "cpu")
    found = elsewhere(numbers_of, case, "other", tmp_path / "other")
    for mine, theirs in zip(expected, found, strict=True):
        error, size = np.asarray(theirs, dtype=float) - mine, np.sqrt(np.mean(np.square(mine)))
        assert np.sqrt(np.mean(error**2)) < (3e-5 if case in ROUGH else 1e-6) * (1 + size)  # RMS


def counts_of(fast_noise: bool) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    """
    What a training step and a plan make on the CPU, of agents, of a steered one and of an extraction; and what of them
    waits for the device.
    """
    from helpers.other_device import counted

    found = {}
    with at("other"):
        base, expert = (make_agent(device="other", fast_noise=fast_noise) for _ in range(2))
        base.learn(DATASET, total_timesteps=1, log_interval=0)
        expert.learn(EXPERT_DATASET, total_timesteps=1, log_interval=0)
        extractor = RewardExtractor(base, expert, **NARROW, fast_noise=fast_noise)
        extractor.learn(DATA, total_timesteps=1, log_interval=0)
        steered = GuidedPlanner(base, extractor.reward, max_shift=0.5, n_candidates=2)
        for planner in (base, steered):
            planner.predict(OBSERVATIONS)  # makes the tables of the noise levels
        for name, work in {
            "step": base.gradient_step,
            "extraction": extractor.gradient_step,
            "plan": lambda: base.predict(OBSERVATIONS),
            "decided": lambda: base.predict(OBSERVATIONS, deterministic=True),
            "steered": lambda: steered.predict(OBSERVATIONS),
        }.items():
            with counted() as counts:
                work()
            found[name] = dict(counts.made), dict(counts.waits)
    return found


STEPS = {"step": {}, "extraction": {}}
PLANS = {name: {"lift_fresh": 1} for name in ("plan", "decided", "steered")}  # the observations, which are numpy's


ONCE = {"_to_copy": 1}  # of a step: its loss and other values; of a plan: itself


@pytest.mark.parametrize("fast_noise", [False, True])
def test_only_noise_is_made_on_the_cpu_and_nothing_waits_twice(fast_noise: bool, elsewhere: Callable[..., Any]) -> None:
    counts = elsewhere(counts_of, fast_noise)
    made = {name: made for name, (made, _) in counts.items()}
    noise = [one.pop("noise", 0) > 0 for one in made.values()]
    assert noise == [not fast_noise] * len(counts) and made == STEPS | PLANS
    assert {name: waits for name, (_, waits) in counts.items()} == dict.fromkeys(counts, ONCE)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^device is 'cuda:7', this machine has auto, cpu"):
        make_agent(device="cuda:7")
    with pytest.raises(ValueError, match=r"^device is 'abacus', this machine has auto, cpu"):
        resolve("abacus")


def two_devices() -> list[str]:
    said = []
    with at("other"):
        base, expert = learned("cpu"), learned("other", dataset=EXPERT_DATASET)
        reward = RelativeReward.for_model(base).to("other")
        for attempt in (lambda: RewardExtractor(base, expert), lambda: GuidedPlanner(base, reward)):
            try:
                attempt()
            except ValueError as error:
                said.append(str(error))
        said.append(str(GuidedPlanner(expert, reward).to("cpu").device))
    return said


def test_models_on_two_devices_are_refused(elsewhere: Callable[..., Any]) -> None:
    models, reward, device = elsewhere(two_devices)
    assert "base is on cpu, expert on other:0; move one, such as expert.to(base.device)" in models
    assert reward.startswith("the agent is on cpu, the reward on other:0: move one")
    assert device == "cpu"
