"""Targets: agents, rewards, planners and everything else that is kept in the archives of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from helpers import idx
from helpers.agents import DATASET, EXPERT_DATASET, make_agent
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import Actor

from fuzz.mutate import Mutator
from fuzz.target import Target, files_of
from fuzz.tensors import archives, card_file
from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward, RewardExtractor, zoo
from rrpolicy.common.archive import write_archive
from rrpolicy.envs.controller import PDController
from rrpolicy.experiments import Task
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rl import Distillation, PlanDistillation
from rrpolicy.rl.policies import ActionRepeat, Sb3Agent, load_policy, save_policy
from rrpolicy.rl.replay import ReplayTraining
from rrpolicy.rl.vecnormalize import ObservationStatistics

NETWORK: dict[str, Any] = {"width": 8, "n_blocks": 1, "n_fourier_features": 2}
SMALL: dict[str, Any] = {"horizon": 4, "batch_size": 4, "n_diffusion_steps": 6, "policy_kwargs": NETWORK}
KINDS: dict[str, dict[str, Any]] = {
    "agent": {},
    "agent-unet": {"policy": "UnetPolicy", "policy_kwargs": {"width": 8, "multipliers": (1, 2)}},
    "agent-transformer": {"policy": "TransformerPolicy", "policy_kwargs": {"width": 8, "n_blocks": 1, "n_heads": 2}},
    "agent-controller": {
        "controller": PDController(velocity_columns=(2, 3)),
        "observation_columns": (0, 1),
        "stride": 2,
    },
    "agent-inverse": {"controller": "inverse-dynamics", "controller_kwargs": {"width": 8, "n_blocks": 1}},
    "agent-warm": {"warm_start": 3, "n_action_steps": 2, "n_sampling_steps": 3, "sampler": "dpm++"},
}
OBSERVATIONS = DATASET.observations[:2]
WINDOWS = DATASET.observations[:8].reshape(2, 4, 4), DATASET.actions[:8].reshape(2, 4, 2)
STEPS = {"log_interval": 0, "reset_num_timesteps": False}
UNET = {"block_out_channels": (4, 8), "norm_num_groups": 2, "attention_head_dim": 4}
CLASSES = ("a", "b", "c", "d")


def one_archive(
    name: str, save: Callable[[Path], Any], load: Callable[[Path], Any], use: Callable[[Any], Any], **more: Any
) -> Target:
    """A target that is a single archive."""
    files = files_of(lambda folder: save(folder / "a.zip"))
    mutators: dict[str, Mutator] = {"a.zip": archives()}
    return Target(name, files, mutators, lambda folder: load(folder / "a.zip"), use, **more)


# ---------------------------------------------------------------------- agents and rewards


@cache
def pair() -> tuple[DiffusionAgent, DiffusionAgent]:
    """A base and an expert that differ a little."""
    base, expert = make_agent(**SMALL), make_agent(**SMALL)
    return base.learn(DATASET, 1, log_interval=0), expert.learn(EXPERT_DATASET, 2, log_interval=0)


def plays(agent: Any) -> list[Any]:
    """Two decisions, the second within the first plan or after it."""
    actions, state = agent.predict(OBSERVATIONS, deterministic=True)
    again, state = agent.predict(OBSERVATIONS, state, deterministic=True)
    return [actions, again, *state]


def acts(agent: DiffusionAgent) -> list[Any]:
    """What planners, extractors and pictures ask of an agent."""
    generator = torch.Generator().manual_seed(0)
    windows = agent.sample_pinned(2, generator)
    agent.plan(OBSERVATIONS[0])
    agent.eps(windows, torch.zeros(2, dtype=torch.int64))
    return plays(agent)


def agent(name: str) -> Target:
    made = make_agent(**{**SMALL, **KINDS[name]})
    return one_archive(name, lambda path: made.save(path, resumable=False), DiffusionAgent.load, acts)


def checkpoint() -> Target:
    made = make_agent(**SMALL).learn(DATASET, 2, log_interval=0)

    def goes_on(loaded: DiffusionAgent) -> list[Any]:
        return acts(loaded.learn(DATASET, 2, **STEPS))

    return one_archive("checkpoint", made.save, DiffusionAgent.load, goes_on, in_use=(FloatingPointError,))


def extractor() -> Target:
    base, expert = pair()
    options = {"window_kwargs": NETWORK, "step_kwargs": NETWORK, "batch_size": 4, "buffer_size": 8}
    data = [DATASET, EXPERT_DATASET]
    made = RewardExtractor(base, expert, **options).learn(data, 2, log_interval=0)

    def goes_on(loaded: RewardExtractor) -> list[Any]:
        return scores(loaded.learn(data, 2, **STEPS).reward)

    load = partial(RewardExtractor.load, base=base, expert=expert)
    return one_archive("extractor", made.save, load, goes_on, in_use=(FloatingPointError,))


def distillation() -> Target:
    teacher = pair()[0]
    made = Distillation(teacher, batch_size=4, net_arch=[8]).learn(DATASET, 2, log_interval=0)

    def goes_on(loaded: Distillation) -> list[Any]:
        loaded.learn(DATASET, 2, log_interval=0)
        return [loaded.student.predict(OBSERVATIONS, deterministic=True)[0]]

    load = partial(Distillation.load, teacher=teacher)
    return one_archive("distillation", made.save, load, goes_on, in_use=(FloatingPointError,))


def plan_distillation() -> Target:
    teacher = pair()[0]
    made = PlanDistillation(teacher, 1, batch_size=4).learn(DATASET, 2, log_interval=0)

    def goes_on(loaded: PlanDistillation) -> list[Any]:
        loaded.learn(DATASET, 2, log_interval=0)
        return [loaded.student.predict(OBSERVATIONS, deterministic=True)[0]]

    load = partial(PlanDistillation.load, teacher=teacher)
    return one_archive("plan-distillation", made.save, load, goes_on, in_use=(FloatingPointError,))


def discriminator() -> Target:
    base, expert = pair()
    data = [DATASET, EXPERT_DATASET]
    made = DiscriminatorReward(base, expert, batch_size=4, window_kwargs=NETWORK).learn(data, 2, log_interval=0)

    def goes_on(loaded: DiscriminatorReward) -> list[Any]:
        return [loaded.learn(data, 2, **STEPS).reward.predict(*WINDOWS)]

    load = partial(DiscriminatorReward.load, base=base, expert=expert)
    return one_archive("discriminator", made.save, load, goes_on, in_use=(FloatingPointError,))


def scores(reward: RelativeReward) -> list[Any]:
    """Steps, windows and a gradient, as far as the reward has heads for them."""
    found: list[Any] = [reward.predict(*WINDOWS)]
    if "step" in reward.heads:
        found.append(reward.predict(DATASET.observations[:3], DATASET.actions[:3]))
    reward.gradient(torch.zeros(2, *reward.event_shape), torch.zeros(2, dtype=torch.int64))
    return found


@cache
def small_reward() -> RelativeReward:
    return RelativeReward.for_model(pair()[0], window_kwargs=NETWORK, step_kwargs=NETWORK).requires_grad_(False).eval()


def reward() -> Target:
    return one_archive("reward", small_reward().save, RelativeReward.load, scores)


def planner() -> Target:
    made = GuidedPlanner(pair()[0], small_reward(), scale=0.5, n_candidates=2)
    return one_archive("planner", made.save, GuidedPlanner.load, plays)


# ---------------------------------------------------------------------- policies


def trained_policy() -> Target:
    """An actor with statistics of observations whose actions are held."""
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=1, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu")
    agent = Sb3Agent(model.actor, "SAC", ObservationStatistics(np.zeros(3), np.ones(3)))
    observation = np.zeros((2, 3), np.float32)
    return one_archive(
        "trained-policy",
        lambda path: save_policy(ActionRepeat(agent, 2), path),
        load_policy,
        lambda policy: policy.predict(observation)[0],
    )


def actor_critic() -> Target:
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4, 4]}, seed=0, device="cpu")
    observation = np.zeros((2, 3), np.float32)
    return one_archive(
        "actor-critic",
        lambda path: save_policy(model, path),
        load_policy,
        lambda policy: policy.predict(observation, deterministic=True)[0],
    )


def older_policy() -> Target:
    """A policy of TD3+BC as older versions wrote it."""
    space, actions = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32)
    actor = Actor(space, actions, [4, 4], FlattenExtractor(space), 3)
    observation, config = np.zeros((2, 3), np.float32), {"dims": [[3], [2]], "net_arch": [4, 4]}
    return one_archive(
        "offline-policy",
        lambda path: write_archive(path, "offline-policy", config, {"policy": actor.state_dict()}),
        load_policy,
        lambda policy: policy.predict(observation, deterministic=True)[0],
    )


def replay() -> Target:
    quick: dict[str, Any] = {"learning_starts": 4, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}}

    def pendulum() -> gym.Env:
        return gym.make("Pendulum-v1", max_episode_steps=6)

    run = ReplayTraining(pendulum(), seed=3, **quick)
    run.train(8)

    def goes_on(loaded: ReplayTraining) -> list[Any]:
        data = loaded.dataset()
        loaded.model.set_logger(Logger(None, []))  # its own would make a temporary folder
        loaded.train(loaded.num_timesteps + 2)
        return [data.observations, data.actions, data.rewards, *loaded.model.policy.state_dict().values()]

    return one_archive("replay", run.save, lambda path: ReplayTraining.load(path, pendulum(), seed=3, **quick), goes_on)


# ---------------------------------------------------------------------- images


def image_diffusion() -> Target:
    codec, images = PixelCodec((1, 8, 8)), idx.images(8, size=8)[0][..., None]
    made = ImageDiffusion(codec, 6, batch_size=2, unet_kwargs=UNET).learn(images, 1, log_interval=0)

    def goes_on(loaded: ImageDiffusion) -> list[Any]:
        shape = loaded.codec.image_shape
        loaded.learn(np.zeros((2, *shape[1:], shape[0]), np.uint8), 1, **STEPS)
        loaded.eps(torch.zeros(1, *loaded.event_shape), torch.zeros(1, dtype=torch.int64))
        return []

    return one_archive("image-diffusion", made.save, ImageDiffusion.load, goes_on, in_use=(FloatingPointError,))


def image_reward() -> Target:
    model = ImageDiffusion(PixelCodec((1, 8, 8)), 6, unet_kwargs=UNET)
    options = {"network": "conv", "width": 8, "multipliers": (1, 1)}
    inner = RelativeReward(model.process, model.event_shape, heads=["window"], window_kwargs=options)
    made = ImageReward(inner.requires_grad_(False).eval(), model.codec)

    def used(loaded: ImageReward) -> Any:
        channels, height, width = loaded.codec.image_shape
        return loaded.predict(np.zeros((1, height, width, channels), np.uint8))

    return one_archive("image-reward", made.save, ImageReward.load, used)


def image_judge() -> Target:
    pixels, labels = idx.images(8, size=8)
    data = LabelledImages(pixels[..., None], labels.astype(np.int64), CLASSES)
    made = ImageClassifier((1, 8, 8), CLASSES, width=8, batch_size=2).learn(data, 1, log_interval=0)

    def goes_on(loaded: ImageClassifier) -> Any:
        channels, height, width = loaded.codec.image_shape
        images = np.zeros((2, height, width, channels), np.uint8)
        loaded.learn(LabelledImages(images, np.zeros(2, np.int64), loaded.class_names), 1, **STEPS)
        return [loaded.probabilities(images), loaded.predict(images)]

    return one_archive("image-judge", made.save, ImageClassifier.load, goes_on, in_use=(FloatingPointError,))


# ---------------------------------------------------------------------- cards


def card() -> Target:
    """What ``enjoy`` does with the card of an archive."""
    for env_id in ("Pendulum-v1", "FrankaKitchen-v1"):  # registered ids, whose modules a card may well have imported
        with suppress(Exception):
            gym.make(env_id)
    about = {"environment": "PointMaze_UMaze-v3", "maze": ["#####", "#...#", "#####"], "goal": [1.0, 3.0]}
    files = files_of(lambda folder: make_agent(**SMALL).save(folder / "a.zip", resumable=False, card=about))

    def made(card: Mapping[str, Any]) -> list[Any]:
        task = Task.from_card(card)
        return [] if task is None else [task.goal, np.array(task.maze.shape if task.is_maze else 0)]

    return Target("card", files, {"a.zip": card_file}, lambda folder: zoo.card(folder / "a.zip"), made, temporary=True)
