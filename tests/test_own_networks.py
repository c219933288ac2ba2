"""Networks of the user's own: an agent's and a reward's, saved by name, loaded with the class and never without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, NARROW, Drift, make_agent
from torch import Tensor, nn

from rrpolicy import DiffusionAgent, DiscriminatorReward, GuidedPlanner, RelativeReward, RewardExtractor
from rrpolicy.common.archive import read_archive
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.testing import check_agent, check_reward

OBSERVATIONS = np.random.default_rng(0).normal(size=(3, 4))


class Recurrent(nn.Module):
    """A denoiser that reads a window row by row."""

    def __init__(
        self, process: DiffusionProcess, event_shape: tuple[int, int], pinned: Tensor, hidden: int = 8
    ) -> None:
        super().__init__()
        self.n_levels = process.n_diffusion_steps
        self.cell = nn.GRU(event_shape[1] + 1, hidden, batch_first=True, bidirectional=True)
        self.leave = nn.Linear(2 * hidden, event_shape[1])

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        level = (t / self.n_levels)[:, None, None].expand(*x_t.shape[:2], 1)
        return self.leave(self.cell(torch.cat([x_t, level], dim=-1))[0])


class Quadratic(nn.Module):
    """A reward that is a quadratic form of the event."""

    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: tuple[int, ...],
        pinned: Tensor,
        n_outputs: int = 1,
        n_features: int = 4,
    ) -> None:
        super().__init__()
        self.features = nn.Linear(int(np.prod(event_shape)), n_features)
        self.n_outputs = n_outputs

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.features(x_t.flatten(1)).square().sum(dim=1, keepdim=True).expand(-1, self.n_outputs)


class Wrong(Recurrent):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t, t)[:, :1]


def own_agent(policy: Any = Recurrent, **kwargs: Any) -> DiffusionAgent:
    return make_agent(policy=policy, policy_kwargs={"hidden": 6}, **kwargs)


def own_reward(agent: DiffusionAgent) -> RelativeReward:
    return RelativeReward.for_model(agent, window_kwargs={"network": Quadratic, "n_features": 3}, step_kwargs=NARROW)


def test_an_agent_with_an_own_network_learns_and_keeps_its_promises(tmp_path: Path) -> None:
    agent = own_agent().learn(DATASET, 3)
    assert isinstance(agent.policy.network, Recurrent) and agent.policy_class is Recurrent
    agent.save(tmp_path / "agent")
    config = read_archive(tmp_path / "agent.zip").config
    assert (config["policy"], config["policy_kwargs"]) == ("Recurrent", {"own": {"hidden": 6}})
    loaded = DiffusionAgent.load(tmp_path / "agent", policy=Recurrent)
    actions = [one.predict(OBSERVATIONS, deterministic=True)[0] for one in (agent, loaded)]
    np.testing.assert_array_equal(*actions)
    assert loaded.learn(DATASET, 1, reset_num_timesteps=False).num_timesteps == 4
    assert check_agent(type("Own", (), {"predict": agent.predict, "__call__": agent})(), Drift()) == ["predict"]


def test_an_archive_s_own_network_is_passed_and_never_guessed(tmp_path: Path) -> None:
    own_agent().save(tmp_path / "agent")
    wanted = (
        r"agent\.zip: it was made with a network class 'Recurrent' of its author: pass the class, load\(path, policy="
    )
    with pytest.raises(ValueError, match=wanted):
        DiffusionAgent.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="class 'Recurrent', the class passed is 'Quadratic'"):
        DiffusionAgent.load(tmp_path / "agent", policy=Quadratic)
    make_agent().save(tmp_path / "plain")
    with pytest.raises(ValueError, match="its network is 'MlpPolicy', which the library has"):
        DiffusionAgent.load(tmp_path / "plain", policy=Recurrent)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("LstmPolicy", r"policy is 'LstmPolicy', it must be one of .* or a class of networks"),
        (3, "policy is 3, it must be one of"),
        (dict, "policy is <class 'dict'>, it must be one of"),
        (type("MlpPolicy", (Recurrent,), {}), "policy is a class MlpPolicy, which is a name of the library's own"),
    ],
)
def test_what_is_no_network_is_refused(policy: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        own_agent(policy)


def test_faults_of_own_networks_are_told() -> None:
    with pytest.raises(ValueError, match=r"policy_kwargs is \{'width': 3\}: .*unexpected keyword argument 'width'"):
        make_agent(policy=Recurrent, policy_kwargs={"width": 3})
    with pytest.raises(ValueError, match=r"the network returned \(3, 1, 6\), wanted the shape of x_t, \(3, 8, 6\)"):
        own_agent(Wrong).predict(OBSERVATIONS)
    reward = RelativeReward.for_model(make_agent(), heads=("window",), window_kwargs={"network": Recurrent_rewards})
    with pytest.raises(ValueError, match=r"the window head's network returned \(2, 8, 6\), wanted \(2, 1\)"):
        reward(torch.zeros(2, 8, 6), torch.zeros(2, dtype=torch.int64))


class Recurrent_rewards(Recurrent):
    """A denoiser where a reward is wanted."""

    def __init__(self, *args: Any, n_outputs: int = 1) -> None:
        super().__init__(*args)


def test_a_reward_with_an_own_network_is_extracted_saved_and_steers(tmp_path: Path) -> None:
    base, expert = own_agent(), own_agent(seed=1)
    options = {"window_kwargs": {"network": Quadratic, "n_features": 3}, "step_kwargs": NARROW, "seed": 0}
    extractor = RewardExtractor(base, expert, batch_size=8, buffer_size=32, **options).learn(DATASET, 2)
    extractor.save(tmp_path / "extractor")
    extractor.reward.save(tmp_path / "reward")
    loaded = RelativeReward.load(tmp_path / "reward", network=Quadratic)
    again = RewardExtractor.load(tmp_path / "extractor", base=base, expert=expert, network=Quadratic)
    x, t = torch.randn(2, 8, 6), torch.tensor([0, 5])
    assert torch.equal(loaded(x, t), extractor.reward(x, t)) and torch.equal(again.reward(x, t), extractor.reward(x, t))
    assert again.learn(DATASET, 1, reset_num_timesteps=False).num_timesteps == 3
    with pytest.raises(ValueError, match=r"network class 'Quadratic' .* load\(path, network=Quadratic\)"):
        RelativeReward.load(tmp_path / "reward")
    planner = GuidedPlanner(base, loaded, scale=2.0)
    planner.save(tmp_path / "planner")
    other = GuidedPlanner.load(tmp_path / "planner", policy=Recurrent, network=Quadratic)
    actions = [one.predict(OBSERVATIONS, deterministic=True)[0] for one in (planner, other)]
    np.testing.assert_array_equal(*actions)


def test_a_discriminator_with_an_own_network(tmp_path: Path) -> None:
    agent = make_agent()
    learner = DiscriminatorReward(agent, agent, batch_size=8, window_kwargs={"network": Quadratic})
    learner.learn([DATASET, EXPERT_DATASET], 2).save(tmp_path / "discriminator")
    loaded = DiscriminatorReward.load(tmp_path / "discriminator", base=agent, expert=agent, network=Quadratic)
    x, t = torch.randn(2, 8, 6), torch.tensor([0, 5])
    assert torch.equal(loaded.reward(x, t), learner.reward(x, t))


def test_own_rewards_keep_their_contracts() -> None:
    class Loaded(RelativeReward):
        @classmethod
        def load(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load(path, *args, network=Quadratic, **kwargs)

    agent = make_agent()
    reward = Loaded.for_model(agent, window_kwargs={"network": Quadratic}, step_kwargs=NARROW)
    assert check_reward(reward) == ["units", "one normaliser", "archive"]
