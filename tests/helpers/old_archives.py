"""One archive of each kind, kept under ``tests/data/archives`` and loaded for ever, and what each of them answers.

In ``tests``, ``python -m helpers.old_archives FOLDER`` writes them as the code of today does. A file that is committed
is never written again: a new layout of a kind adds a file with another name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3

from helpers.agents import KINDS, Drift, make_agent
from rrpolicy import DiffusionAgent, DiscriminatorReward, GuidedPlanner, RelativeReward, RewardExtractor
from rrpolicy.common.archive import read_archive
from rrpolicy.experiments.images.artifacts import Samples
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rl import Distillation, PlanDistillation, Visits
from rrpolicy.rl.policies import POLICY_KINDS, ActionRepeat, load_policy, save_policy
from rrpolicy.rl.replay import ReplayTraining

ARCHIVES = Path(__file__).parents[1] / "data" / "archives"
ANSWERS = ARCHIVES / "answers.json"
Answer = list[np.ndarray[Any, Any]]
TINY = {"width": 8, "n_blocks": 1, "n_fourier_features": 2}
CODEC = PixelCodec((1, 8, 8), 2)
UNET = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4}
SAC_ARGUMENTS = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 4, "batch_size": 4}


def answers(path: Path) -> Answer:
    """What an archive says to fixed inputs, as arrays."""
    kind = path.stem if path.stem == "replay" else read_archive(path).kind
    return _ASKED[kind](path)


def _acted(agent: Any) -> Answer:
    observations = np.linspace(-1, 1, 12).reshape(3, 4)
    actions, _ = agent.predict(observations.astype(np.float32), deterministic=True)
    return [actions]


def _scored(reward: RelativeReward) -> Answer:
    x = torch.linspace(-1, 1, 2 * int(np.prod(reward.event_shape))).reshape(2, *reward.event_shape)
    with torch.no_grad():
        return [reward(x, torch.tensor([0, 3])).numpy()]


def _denoised(model: ImageDiffusion) -> Answer:
    x = torch.linspace(-1, 1, 2 * int(np.prod(model.event_shape))).reshape(2, *model.event_shape)
    return [model.eps(x, torch.tensor([0, 3])).numpy()]


def _pictures() -> np.ndarray[Any, Any]:
    return np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)


def _replayed(path: Path) -> Answer:
    run = ReplayTraining.load(path, Drift(), **SAC_ARGUMENTS)
    return [*_acted(run.model), np.array([run.num_timesteps])]


def _extracted(path: Path) -> Answer:
    agents = _pair()
    return _scored(RewardExtractor.load(path, base=agents[0], expert=agents[1]).reward)


def _distilled(path: Path) -> Answer:
    learner = Distillation.load(path, teacher=_pair()[1])
    return [*_acted(learner.student), np.array([learner.n_labels, learner.round])]


def _told_apart(path: Path) -> Answer:
    agents = _pair()
    return _scored(DiscriminatorReward.load(path, base=agents[0], expert=agents[1]).reward)


_ASKED: dict[str, Callable[[Path], Answer]] = {
    "agent": lambda path: _acted(DiffusionAgent.load(path)),
    "planner": lambda path: _acted(GuidedPlanner.load(path)),
    "reward": lambda path: _scored(RelativeReward.load(path)),
    "extractor": _extracted,
    "discriminator": _told_apart,
    "distillation": _distilled,
    "plan-distillation": lambda path: _acted(PlanDistillation.load(path, teacher=_pair()[1]).student),
    "image-diffusion": lambda path: _denoised(ImageDiffusion.load(path)),
    "image-judge": lambda path: [ImageClassifier.load(path).probabilities(_pictures())],
    "image-reward": lambda path: [ImageReward.load(path).predict(_pictures())],
    "image-samples": lambda path: [Samples.load(path).events.numpy()],
    **dict.fromkeys(POLICY_KINDS, lambda path: _acted(load_policy(path))),
    "replay": _replayed,
}


def _pair() -> tuple[DiffusionAgent, DiffusionAgent]:
    return _agent("plain"), DiffusionAgent.load(ARCHIVES / "agent-plain.zip")


def _agent(name: str) -> DiffusionAgent:
    options = KINDS[name]
    return make_agent(**(options if "policy" in options else {**options, "policy_kwargs": TINY}))


def make(folder: Path) -> None:
    """Write one archive of each kind into a folder, and ``answers.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in KINDS:
        _agent(name).save(folder / f"agent-{name}")
    base = _agent("plain")
    networks = {"window_kwargs": TINY, "step_kwargs": TINY}
    extractor = RewardExtractor(base, base, batch_size=16, buffer_size=32, seed=0, **networks)
    extractor.learn(torch.zeros(32, *base.event_shape), 1, log_interval=0)
    extractor.save(folder / "extractor")
    extractor.reward.save(folder / "reward")
    GuidedPlanner(base, extractor.reward, scale=0.5, n_candidates=2).save(folder / "planner")
    DiscriminatorReward(base, base, seed=0, window_kwargs=TINY).save(folder / "discriminator")
    student = Distillation(base, batch_size=4, net_arch=[8], seed=0)
    student.learn(Drift, 2, n_rounds=0, visits=Visits(n_envs=2, first_steps=2)).save(folder / "distillation")
    save_policy(student.student, folder / "policy-student")
    planning = PlanDistillation(base, 1, batch_size=4, seed=0)
    planning.learn(Drift, 2, n_rounds=0, visits=Visits(n_envs=2, first_steps=2)).save(folder / "plan-distillation")
    model = ImageDiffusion(CODEC, n_diffusion_steps=20, batch_size=8, unet_kwargs=UNET, seed=0)
    model.save(folder / "image-diffusion")
    ImageClassifier((1, 8, 8), ("dark", "bright"), width=8, seed=0).save(folder / "image-judge")
    judged = RewardExtractor(
        model, model, heads=("window",), seed=0, value_units=True, window_kwargs={"network": "conv", "width": 8}
    )
    ImageReward(judged.reward, CODEC, zero=0.25).save(folder / "image-reward")
    Samples(torch.linspace(-1, 1, 32).reshape(2, 4, 2, 2)).save(folder / "image-samples")
    ppo = PPO("MlpPolicy", Drift(), policy_kwargs={"net_arch": [8]}, seed=0)
    save_policy(ActionRepeat(ppo, 3), folder / "policy-ppo")
    sac = SAC("MlpPolicy", Drift(), policy_kwargs={"net_arch": [8]}, seed=0, buffer_size=10)
    save_policy(sac, folder / "policy-sac")
    save_policy(_td3_actor(), folder / "policy-td3", algorithm="TD3")
    run = ReplayTraining(Drift(), **SAC_ARGUMENTS)
    run.train(8)
    run.save(folder / "replay")
    found = {path.stem: [value.tolist() for value in answers(path)] for path in sorted(folder.glob("*.zip"))}
    (folder / ANSWERS.name).write_text(json.dumps(found), encoding="utf-8")


def _td3_actor() -> Any:
    """An untrained actor of TD3, of the shape that TD3+BC has."""
    return TD3("MlpPolicy", Drift(), policy_kwargs={"net_arch": [8]}, seed=0, buffer_size=10).actor


if __name__ == "__main__":
    make(Path(sys.argv[1]))
