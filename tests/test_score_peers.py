"""IQ-Learn and the diffusion discriminator of DIFO: closed forms of their losses, and what they learn."""

import numpy as np
import pytest
import torch

from rrpolicy.data.collect import collect_point_maze
from rrpolicy.rl.diffusion_discriminator import DiffusionDiscriminator
from rrpolicy.rl.iq_learn import InverseQSettings, inverse_q_loss, train_inverse_q
from rrpolicy.rl.policies import ACTION_REPEAT

MAZE, GOAL = ["#####", "#...#", "#####"], (1, 3)


def test_without_a_future_the_inverse_reward_is_the_ratio_that_the_penalty_allows() -> None:
    """Where γ = 0 the loss is −E_expert r + E_policy r + c E r², and its minimum (p_expert − p_policy) / (2c p)."""
    shown, done = torch.tensor([0, 0, 0, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])  # actions of one state
    expert = torch.arange(12) < 6
    actions, penalty = torch.cat([shown, done]), 0.25
    policy = torch.bincount(done, minlength=3) / 6
    q = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([q], line_search_fn="strong_wolfe", max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (policy.double() * q).sum().expand(12)
        found = inverse_q_loss(q[actions], value, torch.zeros(12), expert, discount=0.0, penalty=penalty)
        found.backward()
        return found

    optimizer.step(loss)  # type: ignore[arg-type]
    both = torch.bincount(actions, minlength=3) / 12
    wanted = (torch.bincount(shown, minlength=3) / 6 - policy) / (2 * penalty * both)
    torch.testing.assert_close(q.detach(), wanted.double(), rtol=1e-3, atol=1e-3)


def test_what_follows_counts_with_the_discount() -> None:
    q, value, following = (torch.tensor(one) for one in ([3.0, 1.0], [2.0, 0.5], [1.0, 4.0]))
    expert = torch.tensor([True, False])
    # rewards 3 - .5 and 1 - 2; minus the first, plus the mean of 2 - .5 and .5 - 2, plus a tenth of the mean square
    assert float(inverse_q_loss(q, value, following, expert, 0.5, 0.1)) == pytest.approx(-2.5 + 0.0 + 0.1 * 3.625)


@pytest.mark.slow
def test_iq_learn_finds_the_goal_of_a_corridor() -> None:
    data = collect_point_maze(MAZE, 20_000, goal=GOAL, episode_length=200)
    peer = train_inverse_q(data, MAZE, GOAL, settings=InverseQSettings(12_000))
    states = np.array([[x, 0.0, 0.0, 0.0] for x in (-1.0, 0.0, 1.0)])
    actions = peer.agent.predict(states[:2], deterministic=True)[0]
    assert (actions[:, 0] > 0.2).all()  # to the right, where the goal is
    rewards = peer.reward.predict(states)
    assert rewards[2] == rewards.max()


def test_iq_learn_is_reproducible_and_counts_steps() -> None:
    data = collect_point_maze(MAZE, 2_000, goal=GOAL, episode_length=200)
    small = {"learning_starts": 32, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
    settings = InverseQSettings(128, n_envs=4, gradient_steps=1, arguments=small)
    one, same, other = (train_inverse_q(data, MAZE, GOAL, seed, settings) for seed in (3, 3, 4))
    states = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    assert one.environment_steps == 128 * ACTION_REPEAT
    assert np.array_equal(one.reward.predict(states), same.reward.predict(states))
    assert not np.array_equal(one.reward.predict(states), other.reward.predict(states))
    assert np.array_equal(*(peer.agent.predict(states, deterministic=True)[0] for peer in (one, same)))
    with pytest.raises(ValueError, match="no episode of"):
        train_inverse_q(collect_point_maze(MAZE, 40, goal=GOAL, episode_length=4), MAZE, GOAL, settings=settings)


def test_the_discriminator_tells_two_distributions_apart_and_judges_alike() -> None:
    torch.manual_seed(0)
    net = DiffusionDiscriminator(2, width=32, n_blocks=1)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    labels = (torch.arange(128) < 64).float()
    for _ in range(200):
        seen = torch.randn(128, 2) * 0.5 + (2 * labels - 1)[:, None]  # the expert's around 1, the agent's around -1
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(seen), labels)
        loss = loss + net.denoising_loss(seen[:64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    judged = net(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    assert judged[0] > 1 and judged[1] < -1
    assert torch.equal(judged, net(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))  # at fixed levels and noises
    net.train()
    assert net(torch.ones(3, 2)).shape == (3,) and not torch.equal(net(torch.ones(3, 2)), net(torch.ones(3, 2)))
