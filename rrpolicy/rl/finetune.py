"""Fine-tuning: SAC (Stable-Baselines3) that starts from recorded data in a real environment, on ρ or the true reward.

The replay buffer starts with the data, relabelled with the reward, which stay half of each batch (Ball et al. 2023);
the actor starts as a behaviour clone of the data, the critic with the clone's values. With a prior, −KL(policy ‖ clone)
takes the place of SAC's entropy: KL-regularised reinforcement learning (Galashov et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self, cast

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.sac.policies import Actor
from tqdm.auto import tqdm

from rrpolicy.common.arguments import number, whole
from rrpolicy.common.environments import Copying, make_several, refuse_normalised_rewards
from rrpolicy.common.seeding import MAX_SB3_SEED, checked_seed
from rrpolicy.common.spaces import FlatSpaces, flat_box_or_none, refuse_normalised
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.report import check_actions
from rrpolicy.data.transitions import Transitions, terminals, transitions
from rrpolicy.evaluation import evaluate
from rrpolicy.rewards.protocol import StepReward
from rrpolicy.rewards.wrappers import RelativeRewardVecEnv, Transform, scores_of
from rrpolicy.rl.policies import MeanAction

SATURATED = 0.999  # actions nearer to their bounds are cloned as this: a squashed Gaussian cannot reach 1
CLONING_RATE = 1e-3
TEMPERATURE = "auto_0.02"  # initial; with SAC's own 1 entropy outweighs the reward, and the clone is unlearned
GAMMA = 0.99  # discount of SAC, where its arguments name none
EVALUATION_SEED = 1_000_000  # episodes of evaluations during training are used nowhere else
FIXED = ("buffer_size", "learning_starts", "n_steps", "use_sde")  # arguments of SAC that starting from data decides


@dataclass(frozen=True)
class FinetuneSettings:
    """
    Numbers of fine-tuning SAC from data; the same whatever the reward.

    :param total_timesteps: environment steps
    :param n_cloning_steps: gradient steps of behaviour cloning before them; 0 leaves the actor as SAC makes it
    :param n_critic_steps: gradient steps of the critic on the data, the actor held fixed, before them
    :param eval_freq: environment steps between two evaluations under the true reward
    :param n_eval_episodes: of such an evaluation
    :param prior: temperature τ of −KL(policy ‖ clone), in units of the reward, in place of SAC's entropy; None: the
        entropy
    :param arguments: for SAC's constructor, over ``ent_coef=TEMPERATURE`` and ``gamma=GAMMA``
    :raises ValueError: for a number out of range, or an argument that is not to be chosen
    """

    total_timesteps: int = 50_000
    n_cloning_steps: int = 5_000
    n_critic_steps: int = 5_000
    eval_freq: int = 10_000
    n_eval_episodes: int = 8
    prior: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (
            ("total_timesteps", 0),
            ("n_cloning_steps", 0),
            ("n_critic_steps", 0),
            ("eval_freq", 1),
            ("n_eval_episodes", 1),
        ):
            whole(name, getattr(self, name), least)
        if self.prior is not None:
            number("prior", self.prior, above=0)
            if "ent_coef" in self.arguments:
                raise ValueError("arguments holds 'ent_coef', which prior is in the place of")
        if chosen := sorted(set(FIXED) & set(self.arguments)):
            raise ValueError(f"arguments holds {chosen}, which starting from data decides")


SETTINGS = FinetuneSettings()


@dataclass(frozen=True)
class SquashedReward:
    """
    A reward in (0, 1) made of ρ: the logistic function of ρ in units of its spread. A robot that walks badly is nearly
    always many nats below its best, where a bound by that best, as in mazes, would be near 0 throughout.

    :param centre: ρ whose reward is 1/2, nats
    :param scale: nats, above 0
    :raises ValueError: when they are not such numbers
    """

    centre: float
    scale: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.centre) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"centre and scale must be finite and scale above 0, got {self.centre} and {self.scale}")

    @classmethod
    def fit(cls, values: Array) -> Self:
        """
        Fit the units to values of the reward.

        :param values: ρ (n,) of transitions to distinguish, nats
        :raises ValueError: when they are all the same, or none
        """
        if not len(values) or not np.ptp(values) > 0:
            raise ValueError(f"values are of {len(values)} transitions between which ρ does not differ")
        return cls(float(np.mean(values)), float(np.std(values)))

    def __call__(self, values: Array) -> Array:
        """ρ (n,) in nats -> rewards (n,)."""
        return 0.5 + 0.5 * np.tanh((np.asarray(values) - self.centre) / (2 * self.scale))


class CurvePoint(NamedTuple):
    """The true returns (n_eval_episodes,) of the policy's mean actions after so many environment steps."""

    timesteps: int
    returns: list[float]


@dataclass(frozen=True)
class Finetuned:
    """
    The result of fine-tuning: the policy and its learning curve.

    :param model: SAC; act with ``MeanAction(model)``
    :param curve: from the clone on
    """

    model: SAC
    curve: list[CurvePoint]


class HalfDataBuffer(ReplayBuffer):
    """
    A replay buffer of which half of each batch are the data that it starts with, half is what came since: however many
    data there are, the critic soon sees actions that they do not hold.
    """

    n_data = 0

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        n_new = batch_size // 2 if self.pos > self.n_data else 0
        old = np.random.randint(self.n_data, size=batch_size - n_new)
        new = np.random.randint(self.n_data, self.pos, size=n_new) if n_new else old[:0]
        return self._get_samples(np.concatenate([old, new]), env)


def finetune(
    make_env: Callable[[], gym.Env],
    dataset: TrajectoryDataset,
    reward: StepReward | None,
    seed: int = 0,
    settings: FinetuneSettings = SETTINGS,
    *,
    transform: Transform | None = None,
    progress_bar: bool = False,
) -> Finetuned:
    """
    Fine-tune SAC on recorded data and on what the policy does in the environment.

    :param make_env: makes the real environment; its own reward is the true one that is evaluated meanwhile, its spec
        has the time limit
    :param dataset: data to start from, with true rewards; where they lack how episodes ended, that is inferred from the
        time limit, with a warning
    :param reward: ρ of states and actions with a step head; None: the true reward
    :param seed: of weights, batches, exploration and starts, global generators included
    :param settings: how long and with which numbers
    :param transform: the reward for ρ (n,) in nats; None: :class:`SquashedReward` fitted on the dataset
    :param progress_bar: show one
    :raises ValueError: when data, environment and reward do not fit, the data hold no rewards, the environment
        normalises observations or rewards, or ``make_env`` hands out one and the same environment (which is left open)
    """
    seed, make_env = checked_seed(seed, MAX_SB3_SEED), partial(_flat, make_env)
    (single,) = make_several(make_env, 1, "make_env")
    env = DummyVecEnv([lambda: Copying(single)])
    try:
        refuse_normalised(env, "the dataset is in the environment's own units")
        refuse_normalised_rewards(env)
        check_actions(dataset, cast(gym.spaces.Box, env.action_space), "data of this environment")
        make_reward_env, data = _make_reward_env(env, dataset, reward, transform)
        temperature = TEMPERATURE if settings.prior is None else settings.prior
        # SB3 writes into policy_kwargs
        arguments = {"ent_coef": temperature, "gamma": GAMMA, **deepcopy(dict(settings.arguments))}
        model = SAC(
            "MlpPolicy", make_reward_env, buffer_size=1, learning_starts=0, seed=seed, device="cpu", **arguments
        )
        model.set_logger(Logger(None, []))
        _fill(model, data, settings.total_timesteps)
        _clone(model, data, settings.n_cloning_steps, seed)
        if settings.prior is not None:
            _hold(model)
        _value(model, settings.n_critic_steps)
        return Finetuned(model, _learn(model, make_env, seed, settings, progress_bar))
    finally:
        env.close()


def _flat(make_env: Callable[[], gym.Env]) -> gym.Env:
    env = make_env()
    flat = all(flat_box_or_none(space) for space in (env.observation_space, env.action_space))
    return env if flat else FlatSpaces(env)


def rho_of(reward: StepReward, dataset: TrajectoryDataset) -> Array:
    """
    ρ (N,) of each row of a dataset as an environment would return it, nats.

    :raises ValueError: when the reward does not score single states with their actions, or does not fit the dataset
    """
    heads = getattr(reward, "heads", ("step",))
    if reward.layout is None or not reward.layout.plan_actions or "step" not in heads:
        raise ValueError(
            f"reward must score states and actions with a step head, it has {heads} and layout {reward.layout}"
        )
    return scores_of(dataset, reward)


def _make_reward_env(
    env: DummyVecEnv, dataset: TrajectoryDataset, reward: StepReward | None, transform: Transform | None
) -> tuple[VecEnv, Transitions]:
    """Environment and transitions with the same reward."""
    spec = env.envs[0].spec
    over = terminals(dataset, None if spec is None else spec.max_episode_steps)
    if reward is None:
        return env, transitions(dataset, over)
    values = rho_of(reward, dataset)
    bounded = SquashedReward.fit(values) if transform is None else transform
    return RelativeRewardVecEnv(env, reward, bounded), transitions(dataset.with_rewards(bounded(values)), over)


def _fill(model: SAC, data: Transitions, more: int) -> None:
    """A replay buffer that holds the data and has room for all that comes."""
    n = len(data.rewards)
    # one row more, so that it never begins anew
    buffer = HalfDataBuffer(n + more + 1, model.observation_space, model.action_space, "cpu")
    buffer.observations[:n, 0], buffer.next_observations[:n, 0] = data.observations, data.next_observations
    buffer.actions[:n, 0] = model.policy.scale_action(data.actions)  # SAC keeps them between -1 and 1
    buffer.rewards[:n, 0], buffer.dones[:n, 0] = data.rewards, data.terminals
    buffer.pos = buffer.n_data = n
    model.replay_buffer = buffer


def _clone(model: SAC, data: Transitions, n_steps: int, seed: int) -> None:
    """Fit the actor to the data's actions by maximum likelihood."""
    actor, generator = model.actor, torch.Generator().manual_seed(seed)
    gaussian = cast(SquashedDiagGaussianDistribution, actor.action_dist)
    observations = torch.tensor(data.observations)
    actions = torch.tensor(model.policy.scale_action(data.actions)).clamp(-SATURATED, SATURATED)
    optimizer = torch.optim.Adam(actor.parameters(), CLONING_RATE)
    for _ in range(n_steps):
        rows = torch.randint(len(actions), (model.batch_size,), generator=generator)
        mean, log_std, _ = actor.get_action_dist_params(observations[rows])
        loss = -gaussian.proba_distribution(mean, log_std).log_prob(actions[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _hold(model: SAC) -> None:
    """Put −KL(actor ‖ the actor as it is now) in the place of the entropy in all that the model learns from now on."""
    prior = model.policy.make_actor()
    prior.load_state_dict(model.actor.state_dict())
    held: Any = model.actor
    held.action_log_prob = partial(_against_prior, model.actor, prior)


def _against_prior(actor: Actor, prior: Actor, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    An actor's drawn actions (B, act_dim) in [-1, 1] and log policy(a | s) / prior(a | s) (B,), whose mean is their KL.
    Both are Gaussians squashed by the same function, which leaves the ratio as it is.
    """
    mean, log_std, _ = actor.get_action_dist_params(observations)
    with torch.no_grad():
        its_mean, its_log_std, _ = prior.get_action_dist_params(observations)
    drawn = mean + log_std.exp() * torch.randn_like(mean)
    own, its = ((drawn - centre) / width.exp() for centre, width in ((mean, log_std), (its_mean, its_log_std)))
    return drawn.tanh(), ((its.square() - own.square()) / 2 + its_log_std - log_std).sum(dim=1)


def _value(model: SAC, n_steps: int) -> None:
    """Fit the critic to the data while the actor stays what it is."""
    if n_steps:
        model.actor.requires_grad_(False)
        model.train(n_steps, model.batch_size)
        model.actor.requires_grad_(True)


def _learn(
    model: SAC, make_env: Callable[[], gym.Env], seed: int, settings: FinetuneSettings, progress_bar: bool
) -> list[CurvePoint]:
    """Learn in the environment, with evaluations before, meanwhile and at the end."""
    curve, total = [], settings.total_timesteps
    with tqdm(total=total, unit="step", leave=False, disable=not progress_bar) as bar:
        while True:
            result = evaluate(MeanAction(model), make_env, settings.n_eval_episodes, seed=EVALUATION_SEED + seed)
            curve.append(CurvePoint(model.num_timesteps, np.asarray(result.returns).tolist()))
            steps = min(settings.eval_freq, total - model.num_timesteps)
            if steps < 1:
                return curve
            model.learn(steps, reset_num_timesteps=False)
            bar.update(steps)
