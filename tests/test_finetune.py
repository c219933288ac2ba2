"""SAC that goes on from data: where it begins, that data and environment pay alike, that it goes where it is paid."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import same_tensors

from rrpolicy import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rl.finetune import SETTINGS, FinetuneSettings, SquashedReward, finetune, rho_of
from rrpolicy.rl.policies import MeanAction, load_policy, save_policy

LIMIT = 6
TINY = FinetuneSettings(
    total_timesteps=0,
    n_cloning_steps=0,
    n_critic_steps=0,
    eval_freq=100,
    n_eval_episodes=2,
    arguments={"batch_size": 64, "learning_rate": 1e-2, "gamma": 0.0, "policy_kwargs": {"net_arch": [16]}},
)
WANTED = 0.6  # the action that ρ prefers; the true reward prefers the lowest


class Meter(gym.Env[Any, Any]):
    """Shows where it is, which is anywhere, and pays less the higher the action; falls over at the upper end."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._next(), -float(action[0]), bool(self.at[0] > 0.9), False, {}

    def _next(self) -> Any:
        self.at = self.np_random.uniform(-1, 1, 2)
        return self.at


gym.register("Meter-v0", entry_point=Meter, max_episode_steps=LIMIT)


def make_env() -> gym.Env:
    return gym.make("Meter-v0", disable_env_checker=True)


class Preference:
    """log N(a; WANTED, 0.5²) - log N(a; -WANTED, 0.5²) of two policies, and a bit of the state."""

    heads: tuple[str, ...] = ("window", "step")
    layout: Any = TrajectoryLayout(observation_dim=2, action_dim=1, horizon=4)

    def predict(self, observations: Any, actions: Any = None, levels: Any = None) -> Any:
        ratio = 2 * WANTED / 0.5**2 * np.asarray(actions)[:, 0]
        return (ratio + 0.1 * np.asarray(observations)[:, 0]).astype(np.float32)


class Peak(Preference):
    """Highest at WANTED, whatever the state."""

    def predict(self, observations: Any, actions: Any = None, levels: Any = None) -> Any:
        return (-8 * (np.asarray(actions)[:, 0] - WANTED) ** 2).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> TrajectoryDataset:
    """Random actions; each third episode falls, the last one is still under way."""
    rng = np.random.default_rng(0)
    lengths = np.tile([LIMIT, LIMIT, 3], 20)
    n = int(lengths.sum())
    actions = rng.uniform(-2, 2, (n, 1)).astype(np.float32)
    whole = TrajectoryDataset.from_arrays(rng.uniform(-1, 1, (n, 2)), actions, -actions[:, 0], episode_lengths=lengths)
    returns = [float(whole.episode(index)["rewards"].sum()) for index in range(len(lengths) - 1)]
    return replace(whole, metadata={"returns": returns})


def start(data: TrajectoryDataset, reward: Any, **changes: Any) -> Any:
    return finetune(make_env, data, reward, 3, replace(TINY, **changes))


def test_the_buffer_begins_with_the_data_as_they_are_paid(data: TrajectoryDataset) -> None:
    reward = Preference()
    model = start(data, reward).model
    buffer, n = model.replay_buffer, model.replay_buffer.pos
    assert n == len(data) - 40 - 1  # ends of 40 episodes were cut off, of one the end is not there yet
    assert np.flatnonzero(buffer.dones[:n, 0]).tolist() == [13 * k + 12 for k in range(19)]
    assert np.abs(buffer.actions[:n]).max() <= 1 < np.abs(data.actions).max()  # SAC's units
    rho = reward.predict(buffer.observations[:n, 0], 2 * buffer.actions[:n, 0])
    values = rho_of(reward, data)
    assert buffer.rewards[:n, 0] == pytest.approx(1 / (1 + np.exp((values.mean() - rho) / values.std())), abs=1e-5)
    assert buffer.sample(64).observations.abs().max() <= 1  # nothing but data so far
    true = start(data, None).model.replay_buffer
    assert true.rewards[:n, 0] == pytest.approx(-2 * true.actions[:n, 0, 0], abs=1e-6)


@pytest.mark.parametrize("paid", [None, Preference()])
def test_the_environment_pays_what_the_data_were_paid(data: TrajectoryDataset, paid: Any) -> None:
    def twice(values: Any) -> Any:
        return 2 * values

    trained = finetune(make_env, data, paid, 1, replace(TINY, total_timesteps=20, eval_freq=15), transform=twice)
    buffer, n = trained.model.replay_buffer, len(data) - 41
    assert buffer.pos == n + 20 and [look.timesteps for look in trained.curve] == [0, 15, 20]
    observations, actions = buffer.observations[n : n + 20, 0], 2 * buffer.actions[n : n + 20, 0]
    wanted = -actions[:, 0] if paid is None else 2 * paid.predict(observations, actions)
    assert buffer.rewards[n : n + 20, 0] == pytest.approx(wanted, abs=1e-4)
    buffer.observations[n:] = 99.0
    seen = buffer.sample(41).observations[:, 0] == 99.0
    assert seen.sum() == 20  # half of a batch is what came since


def test_environments_may_pay_an_array_and_fill_one_again(data: TrajectoryDataset) -> None:
    class Refilled(gym.Wrapper[Any, Any, Any, Any]):
        buffer = np.zeros(2)

        def reset(self, **kwargs: Any) -> Any:
            self.buffer[:], info = self.env.reset(**kwargs)
            return self.buffer, info

        def step(self, action: Any) -> Any:
            self.buffer[:], reward, *rest = self.env.step(action)
            return self.buffer, np.array([reward]), *rest

    plain, other = (
        finetune(make, data, None, 1, replace(TINY, total_timesteps=14)).model.replay_buffer
        for make in (make_env, lambda: Refilled(make_env()))
    )
    assert plain is not None and other is not None
    for name in ("observations", "next_observations", "rewards", "dones"):
        assert np.array_equal(getattr(plain, name), getattr(other, name))
    with pytest.raises(ValueError, match="wrapped in NormalizeReward"):
        finetune(lambda: gym.wrappers.NormalizeReward(make_env()), data, None, 1, TINY)


def test_the_actor_begins_as_a_clone_and_stays_one_while_the_critic_learns(data: TrajectoryDataset) -> None:
    skilled = replace(data, actions=np.clip(1.5 * data.observations[:, :1], -2, 2))
    observations = np.random.default_rng(1).uniform(-1, 1, (64, 2))
    plain, clone, valued = (
        start(skilled, None, n_cloning_steps=a, n_critic_steps=b).model for a, b in ((0, 0), (300, 0), (300, 3))
    )
    error = [
        np.abs(model.predict(observations, deterministic=True)[0] - 1.5 * observations[:, :1]).mean()
        for model in (plain, clone)
    ]
    assert error[1] < 0.15 < 0.5 * error[0]
    assert same_tensors(clone.actor.state_dict(), valued.actor.state_dict())
    assert not same_tensors(clone.critic.state_dict(), valued.critic.state_dict())
    assert all(parameter.requires_grad for parameter in valued.actor.parameters())


def test_it_goes_where_it_is_paid_to(data: TrajectoryDataset, tmp_path: Any) -> None:
    observations = np.random.default_rng(2).uniform(-1, 1, (64, 2))
    changes: dict[str, Any] = {"total_timesteps": 150, "n_cloning_steps": 20, "n_critic_steps": 100}
    ours, true = start(data, Peak(), **changes), start(data, None, **changes)
    acts = [MeanAction(one.model).predict(observations)[0].mean() for one in (ours, true)]
    assert acts[0] == pytest.approx(WANTED, abs=0.25) and acts[1] < -1.5
    first, last = true.curve[0], true.curve[-1]
    assert (first.timesteps, last.timesteps, len(last.returns)) == (0, 150, 2)
    assert np.mean(last.returns) > np.mean(first.returns)
    save_policy(true.model, tmp_path / "policy.zip", {"curve": true.curve})
    kept = MeanAction(load_policy(tmp_path / "policy.zip"))
    assert kept.predict(observations)[0].mean() < -0.75  # its own units, as robots have: [-1, 1]


def test_held_to_its_clone_it_takes_the_best_policy_that_a_kl_allows(data: TrajectoryDataset) -> None:
    rng = np.random.default_rng(3)
    base = replace(data, actions=np.clip(rng.normal(-WANTED, 0.5, data.actions.shape), -2, 2).astype(np.float32))
    observations = torch.zeros(1, 2)

    def learned(**changes: Any) -> Any:
        settings = replace(TINY, n_cloning_steps=500, **changes)
        return finetune(make_env, base, Preference(), 3, settings, transform=lambda values: values).model

    clone, held = learned(), learned(total_timesteps=200, n_critic_steps=400, prior=1.0)
    centre, log_width, _ = clone.actor.get_action_dist_params(observations)
    mean, log_std, _ = held.actor.get_action_dist_params(observations)
    # of Gaussians u, the best by E ρ(2 tanh u) − KL, found on a grid
    draws = torch.linspace(0.0005, 0.9995, 999).erfinv() * 2**0.5
    draws = torch.cat([draws, -draws])
    at, width = torch.linspace(-1, 1.5, 126)[:, None], torch.linspace(0.1, 0.6, 26)
    own = float(log_width.detach().exp())
    kl = ((width / own) ** 2 + ((at - float(centre)) / own) ** 2 - 1) / 2 - (width / own).log()
    gain = 4.8 * 2 * (at[..., None] + width[:, None] * draws).tanh().mean(dim=-1) - kl
    best = float(at[gain.max(dim=1).values.argmax()])
    assert mean.item() == pytest.approx(best, abs=0.25)  # a small critic, from few steps
    assert mean.item() > centre.item() + 0.4 and abs(log_std.item() - log_width.item()) < 0.5


def test_training_is_reproducible_and_the_mean_is_no_draw(data: TrajectoryDataset) -> None:
    changes: dict[str, Any] = {"total_timesteps": 8, "n_cloning_steps": 2, "n_critic_steps": 2}
    one, other = (start(data, Preference(), **changes).model for _ in range(2))
    assert same_tensors(one.policy.state_dict(), other.policy.state_dict())
    observation = np.zeros(2)
    mean = MeanAction(one)
    torch.manual_seed(0)
    assert np.array_equal(mean.predict(observation)[0], mean.predict(observation, deterministic=False)[0])
    assert not np.array_equal(one.predict(observation)[0], one.predict(observation)[0])


def test_what_is_paid_is_the_logistic_function_of_the_spread() -> None:
    paid = SquashedReward.fit(np.array([1.0, 3.0]))
    assert (paid.centre, paid.scale) == (2.0, 1.0)
    assert paid(np.array([2.0, 3.0, 1e6, -1e6])) == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1, 0])
    for values in ([], [2.0, 2.0]):
        with pytest.raises(ValueError, match=f"of {len(values)} transitions between which ρ does not differ"):
            SquashedReward.fit(np.array(values))
    with pytest.raises(ValueError, match=r"scale above 0, got 0\.0 and -1\.0"):
        SquashedReward(0.0, -1.0)


def windows_only() -> Any:
    reward = Preference()
    reward.heads = ("window",)
    return reward


def states_only() -> Any:
    reward = Preference()
    reward.layout = replace(reward.layout, plan_actions=False)
    return reward


@pytest.mark.parametrize("make", [windows_only, states_only])
def test_rewards_that_do_not_score_single_actions_are_refused(data: TrajectoryDataset, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="reward must score states and actions with a step head"):
        finetune(make_env, data, make(), 0, TINY)


def test_bad_settings_and_data_are_refused(data: TrajectoryDataset) -> None:
    with pytest.raises(ValueError, match="dataset has no rewards"):
        finetune(make_env, data.with_rewards(None), None, 0, TINY)
    for name, value in (("total_timesteps", -1), ("eval_freq", 0), ("n_eval_episodes", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, it must be a whole number of at least"):
            replace(SETTINGS, **{name: value})
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"prior is {value}"):
            FinetuneSettings(prior=value)
    with pytest.raises(ValueError, match="arguments holds 'ent_coef', which prior is in the place of"):
        FinetuneSettings(prior=1.0, arguments={"ent_coef": 0.1})
    with pytest.raises(ValueError, match=r"arguments holds \['learning_starts'\]"):
        FinetuneSettings(arguments={"learning_starts": 3})
