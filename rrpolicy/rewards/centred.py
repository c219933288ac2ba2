"""What an action itself adds to ρ: ρ(s, a) less its mean over the base's actions in the state s.

ρ of states with their actions is high wherever the expert is often, whatever is done there. An agent that is paid ρ is
paid for being there as well; one that is paid the centred reward is paid for acting more as the expert does than the
base would. In the base's data actions are the base's, so the mean is a regression of ρ on their states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import number, whole
from rrpolicy.common.seeding import checked_seed
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards.protocol import StepReward, check_step_reward
from rrpolicy.rewards.wrappers import scores_of

HELD_OUT = 0.1  # of the episodes, at which the baseline is measured


@dataclass(frozen=True, eq=False)
class CentredReward:
    """
    ρ(s, a) − b(s), where b(s) is the mean of ρ over the base's actions. It scores single steps as a reward does, so
    `RelativeRewardWrapper`, `RelativeRewardVecEnv`, ``relabel`` and ``finetune`` take it; :meth:`fit` makes one.

    :param reward: ρ of states with their actions, with a step head
    :param baseline: (n, obs_dim) float32 standardised observations -> (n, 1), nats
    :param centre: (obs_dim,) mean of the observations that ``baseline`` was fitted to, environment units
    :param scale: (obs_dim,) their standard deviation
    :param explained: R² of the baseline for ρ of held-out episodes: how much of ρ the state alone says
    """

    reward: StepReward
    baseline: nn.Module
    centre: Array
    scale: Array
    explained: float

    @classmethod
    @usual_torch()
    def fit(
        cls,
        reward: StepReward,
        dataset: TrajectoryDataset,
        *,
        total_timesteps: int = 3_000,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        width: int = 128,
        seed: int = 0,
    ) -> Self:
        """
        Fit the baseline to a base's data.

        :param reward: ρ of states with their actions, with a step head
        :param dataset: of the base, at least two episodes; a tenth of them is held out
        :param total_timesteps: gradient steps
        :param batch_size: transitions of each
        :param learning_rate: of Adam; it falls to zero by a cosine
        :param width: of the two hidden layers
        :param seed: of weights, batches and the episodes held out
        :raises ValueError: for a reward of states alone, which no action changes, and for data that do not fit it
        """
        layout = check_step_reward(reward)
        if not layout.plan_actions:
            raise ValueError("reward scores states alone, so there is nothing to centre over actions")
        steps, size = whole("total_timesteps", total_timesteps, 1), whole("batch_size", batch_size, 1)
        rate, seed = number("learning_rate", learning_rate, above=0), checked_seed(seed)
        learned, held_out = dataset.split(HELD_OUT, seed)
        centre, scale = learned.observations.mean(axis=0), learned.observations.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _mlp(layout.observation_dim, whole("width", width, 1))
        centred = cls(reward, network, centre, scale, float("nan"))
        _regress(network, centred._inputs(learned.observations), scores_of(learned, reward), steps, size, rate, seed)
        wanted = scores_of(held_out, reward)
        spread = float(wanted.var())
        errors = wanted - centred.mean_over_base(held_out.observations)
        explained = 1 - float(np.mean(errors**2)) / spread if spread > 0 else float("nan")
        return replace(centred, explained=explained)

    @property
    def layout(self) -> TrajectoryLayout | None:
        """Of the reward."""
        return self.reward.layout

    @property
    def heads(self) -> tuple[str, ...]:
        """Single steps alone are scored."""
        return ("step",)

    @usual_torch()
    @torch.no_grad()
    def mean_over_base(self, observations: Array) -> Array:
        """b(s) (n,) of observations (n, obs_dim) in environment units, nats."""
        return self.baseline(self._inputs(observations))[:, 0].numpy()

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """(n, obs_dim), (n, act_dim) in environment units -> (n,) in nats."""
        return np.asarray(self.reward.predict(observations, actions) - self.mean_over_base(observations))

    def _inputs(self, observations: Array) -> Tensor:
        return torch.as_tensor((observations - self.centre) / self.scale, dtype=torch.float32)


def _mlp(n_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def _regress(
    network: nn.Sequential, inputs: Tensor, wanted: Array, n_steps: int, size: int, rate: float, seed: int
) -> None:
    """Fit a network by least squares: in units of the spread while it learns, in nats at the end."""
    mean, spread = float(wanted.mean()), float(wanted.std()) or 1.0
    targets = torch.as_tensor((wanted - mean) / spread, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(targets), (size,), generator=generator)
        loss = (network(inputs[rows])[:, 0] - targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for name, parameter in network[-1].named_parameters():
            parameter.mul_(spread).add_(mean if name == "bias" else 0.0)
    network.requires_grad_(False)
