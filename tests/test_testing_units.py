"""`check_agent` and `check_reward` find the contracts *units*, *one normaliser* and *archive* broken, each once.

Every broken object is a good one with one method spoilt (``test_testing.py`` has those that break *predict*).
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, NARROW, NORMALIZER, Drift, make_agent

from rrpolicy import DiffusionAgent, GuidedPlanner, Normalizer, RelativeReward
from rrpolicy.data.normalizer import Affine
from rrpolicy.testing import ContractError, check_agent, check_reward


def make_reward(cls: type[RelativeReward] = RelativeReward) -> RelativeReward:
    reward = cls.for_model(make_agent(), window_kwargs=NARROW, step_kwargs=NARROW)
    reward.gradient_scale.fill_(5.0)
    return reward


# ---------------------------------------------------------------------- agents


class NormalisedPlans(DiffusionAgent):
    """Shows its plans in normalised units."""

    def planned_observations(self, plans: Any) -> Any:
        return self.layout.observations_of(plans)


class Uphill(GuidedPlanner):
    """Guidance with the wrong sign."""

    def _denoiser(self) -> Any:
        steered = super()._denoiser()
        return lambda x_t, t: 2 * self.agent.averaged.eps(x_t, t) - steered(x_t, t)


class OtherFingerprint(DiffusionAgent):
    def fingerprint(self) -> str:
        return f"horizon={self.layout.horizon}"


class ForgetsNormalizer(DiffusionAgent):
    """The archive holds another normaliser than the agent."""

    @classmethod
    def load(cls, path: Any, **kwargs: Any) -> Any:
        known = super().load(path, **kwargs).normalizer
        other = Normalizer(known.observations, Affine(np.full(2, 0.5), np.ones(2)), "gaussian")
        agent = make_agent(cls, normalizer=other)
        agent.env = None
        agent.predict = make_agent().predict  # acts as before, so only the normaliser is lost
        return agent


class Pickles(DiffusionAgent):
    def save(self, path: Any, **kwargs: Any) -> None:
        super().save(path, **kwargs)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("agent.pkl", pickle.dumps(3))


class NoZip(DiffusionAgent):
    def save(self, path: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"weights")


class LosesWeights(DiffusionAgent):
    @classmethod
    def load(cls, path: Any, **kwargs: Any) -> Any:
        agent = super().load(path, **kwargs)
        torch.nn.init.constant_(next(agent.averaged.parameters()), 0.1)
        return agent


class KeepsEnvironment(DiffusionAgent):
    @classmethod
    def load(cls, path: Any, **kwargs: Any) -> Any:
        agent = super().load(path, **kwargs)
        agent.env = Drift()
        return agent


class Trusting(DiffusionAgent):
    """Loads damaged files without a word."""

    @classmethod
    def load(cls, path: Any, **kwargs: Any) -> Any:
        try:
            return super().load(path, **kwargs)
        except ValueError:
            return make_agent(cls)


@pytest.mark.parametrize(
    ("cls", "contract", "seen"),
    [
        (NormalisedPlans, "units", "a plan begins at .* in environment units"),
        (OtherFingerprint, "one normaliser", "fingerprint 'horizon=8' does not hold"),
        (ForgetsNormalizer, "one normaliser", "the archive lost the normaliser"),
        (Pickles, "archive", r"the archive holds \['agent.pkl'\]"),
        (NoZip, "archive", "did not write a zip"),
        (LosesWeights, "archive", "what was loaded answers otherwise"),
        (KeepsEnvironment, "archive", "what was loaded has an environment"),
        (Trusting, "archive", "a file that was cut off was not refused"),
    ],
)
def test_each_other_broken_contract_of_an_agent_is_found(cls: type[DiffusionAgent], contract: str, seen: str) -> None:
    with pytest.raises(ContractError, match=rf"contract '{contract}' is broken: .*{seen}") as caught:
        check_agent(make_agent(cls, n_action_steps=3), Drift())
    assert caught.value.contract == contract


def test_broken_planners_are_found() -> None:
    with pytest.raises(ContractError, match="contract 'units' is broken: guidance is not"):
        check_agent(Uphill(make_agent(), make_reward()), Drift())
    planner = GuidedPlanner(make_agent(), make_reward())
    planner.reward.normalizer = Normalizer.fit(DATASET)
    with pytest.raises(ContractError, match="base, reward and planner do not share one normaliser"):
        check_agent(planner, Drift())


@pytest.mark.parametrize(
    ("method", "seen"),
    [("normalize", "a constant column does not map to 0"), ("denormalize", "normalising does not undo")],
)
def test_a_broken_normaliser_is_found(method: str, seen: str) -> None:
    class Broken(Affine):
        def normalize(self, x: Any) -> Any:
            return super().normalize(x) + (1e-3 if method == "normalize" else 0)

        def denormalize(self, x: Any) -> Any:
            return super().denormalize(x) * 1.01 if method == "denormalize" else super().denormalize(x)

        def select(self, columns: Any) -> Any:
            return Broken(self.offset[list(columns)], self.scale[list(columns)])

    class BrokenNormalizer(Normalizer):
        def packed(self, layout: Any) -> Any:
            whole = super().packed(layout)
            varying = self.observations.scale.copy()
            varying[3] = 1.0 if method == "denormalize" else 0.0
            return Broken(np.append(whole.offset[:2], self.observations.offset), np.append(whole.scale[:2], varying))

    agent = make_agent(normalizer=BrokenNormalizer(NORMALIZER.observations, NORMALIZER.actions))
    agent.plan = lambda observation: np.repeat(np.asarray(observation)[:, None], 8, axis=1)  # type: ignore[method-assign]
    with pytest.raises(ContractError, match=f"contract 'one normaliser' is broken: {seen}"):
        check_agent(agent, Drift())


# ---------------------------------------------------------------------- rewards, each broken once


class PairOfNumbers(RelativeReward):
    def forward(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        return super().forward(x_t, t, head)[:, None].expand(-1, 2)


class Centred(RelativeReward):
    """Subtracts the mean of the batch."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        rho = super().forward(x_t, t, head)
        return rho - rho.mean()


class LeaksPinned(RelativeReward):
    def gradient(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        return torch.where(self.pinned, 1.0, super().gradient(x_t, t, head))


class Doubled(RelativeReward):
    """The gradient of another function."""

    def gradient(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        return 2 * super().gradient(x_t, t, head)


class LeavesGraph(RelativeReward):
    def gradient(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        x_t.requires_grad_(True)
        return super().gradient(x_t, t, head)


class AnyShape(RelativeReward):
    def forward(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        return super().forward(x_t[:, : self.event_shape[0]], t, head)


class ForgetsUnits(RelativeReward):
    """Takes data in environment units for normalised data."""

    def predict(self, observations: Any, actions: Any = None, **kwargs: Any) -> Any:
        return super().predict(observations, None if actions is None else 0.5 * actions, **kwargs)


class LosesScale(RelativeReward):
    @classmethod
    def load(cls, path: Any) -> Any:
        reward = super().load(path)
        reward.gradient_scale.fill_(1.0)
        return reward


class TrustsFiles(RelativeReward):
    @classmethod
    def load(cls, path: Any) -> Any:
        try:
            return super().load(path)
        except ValueError:
            return make_reward(cls)


class Trains(RelativeReward):
    """Asking for the gradient switches the mode and fills in the weights' gradients."""

    def gradient(self, x_t: torch.Tensor, t: torch.Tensor, head: Any = None) -> torch.Tensor:
        with torch.enable_grad():
            self(x_t, t, head).sum().backward()
        return super().gradient(x_t, t, head)


@pytest.mark.parametrize(
    ("cls", "contract", "seen"),
    [
        (PairOfNumbers, "units", "of 6 events is"),
        (Centred, "units", "of an event depends on its batch"),
        (LeaksPinned, "units", "is not zero at pinned entries"),
        (Doubled, "units", "along a direction is"),
        (LeavesGraph, "units", "changed x_t"),
        (Trains, "units", "a weight's gradient changed"),
        (AnyShape, "units", "a wrong event shape was not refused"),
        (ForgetsUnits, "units", "predict in environment units is"),
        (LosesScale, "archive", "what was loaded answers otherwise"),
        (TrustsFiles, "archive", "a file that was cut off was not refused"),
    ],
)
def test_each_broken_reward_is_found(cls: type[RelativeReward], contract: str, seen: str) -> None:
    with pytest.raises(ContractError, match=rf"(?s)contract '{contract}' is broken: .*{seen}") as caught:
        check_reward(make_reward(cls))
    assert caught.value.contract == contract
