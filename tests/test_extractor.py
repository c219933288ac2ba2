"""Extraction on tiny agents: the null control, the sign, the data it takes, and the pairs that it refuses.

How exactly ρ is recovered is shown on analytic mixtures in ``test_oracle.py``.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, KINDS, NARROW, Lines, agent_of_kind, few_own_samples, make_agent
from stable_baselines3.common.logger import Logger

from rrpolicy import DiffusionAgent, GuidedPlanner, Normalizer, RelativeReward, RewardExtractor
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.rewards.matching import eps_rms, row_weights
from rrpolicy.rewards.metrics import explained_by_level
from rrpolicy.rewards.sources import target_source
from rrpolicy.rewards.targets import make_targets

OBSERVATIONS = DATASET.observations[::17][:6]
STEPS = np.arange(0, 140)


def make_extractor(base: Any, expert: Any, **kwargs: Any) -> RewardExtractor:
    options = {"window_kwargs": NARROW, "step_kwargs": NARROW, "batch_size": 32, "buffer_size": 512, "seed": 0}
    return RewardExtractor(base, expert, **{**options, **kwargs})


def first_losses(extractor: RewardExtractor) -> dict[str, float]:
    """What is logged of the losses in the first step, before any weight has changed."""
    log = Lines()
    extractor.set_logger(Logger(None, [log]))
    extractor.learn(DATASET, 1, log_interval=1)
    ((_, line),) = log.seen
    names = ("window_gradient", "step_gradient", "value")
    return {name: line[f"train/{name}"] for name in names if f"train/{name}" in line}


@pytest.fixture(scope="module")
def pair() -> tuple[DiffusionAgent, DiffusionAgent]:
    """Two agents that have seen enough of their data to differ."""
    base, expert = make_agent(batch_size=64), make_agent(batch_size=64)
    return base.learn(DATASET, 60), expert.learn(EXPERT_DATASET, 60)


@pytest.fixture(scope="module")
def rewards(pair: tuple[DiffusionAgent, DiffusionAgent]) -> list[RelativeReward]:
    """ρ of the expert over the base, and of the base over the expert."""
    data = [DATASET, EXPERT_DATASET]
    return [make_extractor(*models).learn(data, 90).reward for models in (pair, pair[::-1])]


# ---------------------------------------------------------------------- the null control


FEW = ("plain", "unet", "history-controller", "inverse")  # each network and controller; the others show nothing more


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FEW)) for kind in KINDS])
def test_identical_agents_give_an_exactly_constant_reward(kind: str, tmp_path: Path) -> None:
    base = agent_of_kind(kind).learn(DATASET, 2)
    base.save(tmp_path / "agent")
    same = DiffusionAgent.load(tmp_path / "agent")
    reward = make_extractor(base, same, buffer_size=64).learn([DATASET, EXPERT_DATASET], 5).reward
    x_t, t = torch.randn(50, *base.event_shape), torch.randint(10, (50,))
    for head in reward.heads:
        assert (reward(x_t, t, head) == 0).all() and (reward.gradient(x_t, t, head) == 0).all()
    assert (reward.predict(DATASET.observations, DATASET.actions) == 0).all()  # a constant map
    for scale in (1.0, 5.0):
        planner = GuidedPlanner(base, reward, scale=scale)
        np.testing.assert_array_equal(
            *(agent.predict(OBSERVATIONS, deterministic=True)[1][0] for agent in (planner, base))
        )


# ---------------------------------------------------------------------- the sign


def test_the_expert_s_data_score_higher_and_swapping_flips_that(rewards: list[RelativeReward]) -> None:
    for reward, sign in zip(rewards, (1, -1), strict=True):
        means = []
        for dataset in (DATASET, EXPERT_DATASET):
            windows = dataset.windows(reward.layout, dataset.window_starts(reward.layout))
            means.append(reward.predict(windows.observations, windows.actions).mean())
        assert sign * (means[1] - means[0]) > 0


def test_swapping_gives_opposite_gradients(
    pair: tuple[DiffusionAgent, DiffusionAgent], rewards: list[RelativeReward]
) -> None:
    windows = DATASET.windows(pair[0].layout, STEPS)
    normalizer = pair[0].normalizer
    rows = pair[0].layout.pack(
        normalizer.observations.normalize(windows.observations), normalizer.actions.normalize(windows.actions)
    )
    x0, t = torch.as_tensor(rows), torch.full((len(STEPS),), 4)
    x_t = pair[0].process.q_sample(x0, t, torch.randn(x0.shape))
    one, other = (reward.gradient(x_t, t).flatten() for reward in rewards)
    assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) < -0.3
    assert explained_by_level(rewards[0], *pair, x0, [4])[4] > 0.2 > explained_by_level(rewards[1], *pair, x0, [4])[4]


def test_steering_moves_the_base_towards_the_expert(
    pair: tuple[DiffusionAgent, DiffusionAgent], rewards: list[RelativeReward]
) -> None:
    base, expert = pair
    pushes = [agent.plan(OBSERVATIONS)[:, -1, 0].mean() for agent in (base, GuidedPlanner(base, rewards[0]), expert)]
    assert pushes[0] < pushes[1] and pushes[0] < pushes[2]


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("kind", ["dataset", "datasets", "tensor", "none"])
def test_it_learns_from_datasets_tensors_and_the_models_own_samples(
    kind: str, pair: tuple[DiffusionAgent, DiffusionAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_own_samples(monkeypatch)
    events = torch.rand(40, 8, 6)
    data: Any = {"dataset": DATASET, "datasets": [DATASET, EXPERT_DATASET], "tensor": events, "none": None}
    extractor = make_extractor(*pair, buffer_size=64).learn(data[kind], 3)
    assert extractor.num_timesteps == 3 and all(torch.isfinite(one).all() for one in extractor.reward.parameters())
    assert (extractor.reward.gradient_scale > 0).all()


def test_wrong_calls_are_refused(pair: tuple[DiffusionAgent, DiffusionAgent]) -> None:
    extractor = make_extractor(*pair)
    with pytest.raises(TypeError, match=r"extractor\.learn\(dataset, total_timesteps=3_000\)"):
        extractor.learn(10_000)
    with pytest.raises(TypeError, match="data is a str"):
        extractor.learn("PointMaze", 10)
    with pytest.raises(ValueError, match=r"data has shape \(3, 8, 5\), wanted \(N, 8, 6\)"):
        extractor.learn(torch.zeros(3, 8, 5), 10)


# ---------------------------------------------------------------------- options


def test_heads_follow_the_kind_of_event() -> None:
    mixture = GaussianMixtureModel(torch.zeros(1, 5))
    assert make_extractor(mixture, mixture).heads == ("window",)
    assert make_extractor(make_agent(), make_agent()).heads == ("window", "step")
    only = make_extractor(make_agent(), make_agent(seed=1), heads=("step",))
    assert set(first_losses(only)) == {"step_gradient"}  # values are for heads that see the event
    assert only.reward.heads == ("step",)


def test_values_are_matched_only_when_asked_for() -> None:
    base, expert = make_agent(), make_agent(seed=1)
    for value_coef, matched in ((0.0, False), (0.3, True)):
        losses = first_losses(make_extractor(base, expert, value_coef=value_coef, buffer_size=64))
        assert ("value" in losses) == matched


def test_in_units_of_values_a_slowly_changing_reward_is_one_to_the_network(tmp_path: Path) -> None:
    """Score differences of mixtures grow towards clean events, the spread of their log ratio does not."""
    means = torch.tensor([[-1.0], [1.0]])
    base, expert = (GaussianMixtureModel(means, 0.05, weights) for weights in (None, torch.tensor([0.9, 0.1])))
    options: dict[str, Any] = {"heads": ("window",), "value_coef": 0.3, "batch_size": 32, "buffer_size": 2048}
    extractor = RewardExtractor(base, expert, value_units=True, seed=0, **options).learn(None, 2, log_interval=0)
    spread = extractor.reward.value_scale
    assert 0 < spread[0] < 2 * spread[len(spread) // 4]
    x_t, t = torch.randn(8, 1), torch.arange(8)
    torch.testing.assert_close(extractor.reward(x_t, t), spread[:8] * extractor.reward.window(x_t, t)[:, 0])
    extractor.reward.save(tmp_path / "reward.zip")
    assert torch.equal(RelativeReward.load(tmp_path / "reward.zip")(x_t, t), extractor.reward(x_t, t))
    same = RewardExtractor(base, base, value_units=True, seed=0, **options).learn(None, 5, log_interval=0)
    assert (same.reward(x_t, t) == 0).all()


def test_units_of_values_need_values() -> None:
    with pytest.raises(ValueError, match=r"value_units needs values to be matched, value_coef is 0\.0"):
        make_extractor(make_agent(), make_agent(seed=1), value_units=True, value_coef=0.0)
    extractor = make_extractor(make_agent(), make_agent(seed=1), value_units=True, heads=("step",))
    with pytest.raises(ValueError, match="data was recorded without values"):
        extractor.learn(DATASET, 1)


def test_rows_that_differ_less_count_as_much_as_others() -> None:
    base, expert, generator = make_agent(), make_agent(seed=1), torch.Generator().manual_seed(0)
    pinned, free = base.pinned, ~base.pinned
    targets = make_targets(base, expert, torch.randn(512, *base.event_shape, generator=generator), generator, 0)
    rms = eps_rms(targets, base.process, pinned)
    squares = (targets.eps_difference / rms[targets.t, None, None]).pow(2).mean(dim=0)
    rows = torch.stack([squares[i][free[i]].mean() for i in range(8)])
    weight = row_weights(targets, rms, pinned)
    product = weight * rows
    torch.testing.assert_close(product, product[:1].expand(8), rtol=1e-4, atol=0)  # none is below the floor here
    torch.testing.assert_close((weight[:, None] * free).sum() / free.sum(), torch.tensor(1.0))
    torch.testing.assert_close(row_weights(targets, rms, pinned, 100.0), torch.ones(8))  # all are below 100 averages
    options: list[dict[str, Any]] = [{}, {"row_weighting": False}, {"row_floor": 100.0}]
    few: dict[str, Any] = {"heads": ("window",), "buffer_size": 64}
    learners = (make_extractor(base, expert, **few, **one) for one in options)
    weighted, alike, floored = (first_losses(learner)["window_gradient"] for learner in learners)
    assert floored == pytest.approx(alike, rel=1e-5) and abs(weighted - alike) > 1e-3 * alike


def test_errors_of_values_count_linearly_beyond_the_clip(tmp_path: Path) -> None:
    base, expert = make_agent(), make_agent(seed=1)
    options: dict[str, Any] = {"heads": ("window",), "buffer_size": 64}

    def loss(clip: float, value_coef: float = 0.5) -> float:
        return first_losses(make_extractor(base, expert, value_clip=clip, value_coef=value_coef, **options))["value"]

    beyond, squared = loss(1e-4), loss(1e9)  # 1e-4 times the mean size of the errors, half their mean square
    assert loss(2e-4) == pytest.approx(2 * beyond, rel=1e-2) and loss(1e8) == pytest.approx(squared, rel=1e-6)
    assert (beyond / 1e-4 / 0.5) ** 2 < squared / 0.25 and loss(1e9, 0.25) == pytest.approx(squared / 2, rel=1e-6)
    extractor = make_extractor(base, expert, value_clip=1e9, **options)
    extractor.save(tmp_path / "extractor")
    assert RewardExtractor.load(tmp_path / "extractor", base=base, expert=expert).value_clip == 1e9


def test_the_first_actions_count_as_much_as_they_are_told_to() -> None:
    def loss(weight: float, **changes: Any) -> float:
        options: dict[str, Any] = {"first_action_weight": weight, "heads": ("window",), "buffer_size": 64, **changes}
        extractor = make_extractor(make_agent(), make_agent(seed=1), **options)
        return first_losses(extractor)["window_gradient"]

    for changes in ({}, {"row_weighting": False}):
        one, two, three = (loss(weight, **changes) for weight in (1.0, 2.0, 3.0))
        assert two - one > 0.01 * one
        assert three - two == pytest.approx(two - one, rel=1e-3)  # a share of the loss, times the weight
    for bad in (0.0, float("nan")):
        with pytest.raises(ValueError, match="first_action_weight is"):
            make_extractor(make_agent(), make_agent(seed=1), first_action_weight=bad)
    images = GaussianMixtureModel(torch.zeros(1, 4, 2), 1.0)
    states = agent_of_kind("controller")
    for model in (images, states):
        with pytest.raises(ValueError, match="it must be 1 where no actions are planned"):
            RewardExtractor(model, model, first_action_weight=2.0)


def test_the_step_head_sees_clean_states_at_the_cleanest_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = make_extractor(make_agent(), make_agent(seed=1), heads=("step",))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    ask = RelativeReward.forward_steps
    monkeypatch.setattr(
        RelativeReward, "forward_steps", lambda self, x, t: (seen.append((x.detach(), t)), ask(self, x, t))[1]
    )
    events = torch.randn(40, *extractor.base.event_shape, generator=torch.Generator().manual_seed(0))
    extractor.learn(events, 3)
    inputs, t = torch.cat([x for x, _ in seen]), torch.cat([level for _, level in seen])
    clean = t < extractor.reward.n_clean_levels
    assert 0.5 <= clean.float().mean() < 0.9  # half of the windows, and by chance some of the others
    for level in range(10):
        of_level, rows = inputs[t == level], extractor.base.process.alpha(level) * events.flatten(0, 1)
        nearest = torch.cdist(of_level, rows, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
        assert len(of_level) and (nearest < 1e-5).all() == (level < extractor.reward.n_clean_levels)
        assert (nearest < 1e-5).all() or (nearest > 1e-3).all()


def test_the_buffer_is_drawn_anew_after_its_epochs() -> None:
    class Counted(GaussianMixtureModel):
        n_calls = 0

        def eps(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            self.n_calls += 1
            return super().eps(x_t, t)

    base = Counted(torch.zeros(1, 4))
    extractor = make_extractor(base, GaussianMixtureModel(torch.ones(1, 4)), buffer_size=64, n_epochs=2)
    seen: list[int] = [0]  # calls after each step, of which a buffer lasts for four
    extractor.learn(torch.randn(40, 4), 9, callback=lambda *_: bool(seen.append(base.n_calls)) or True)
    assert [after > before for before, after in itertools.pairwise(seen)] == ([True] + [False] * 3) * 2 + [True]


def test_half_of_every_buffer_are_the_given_pairs() -> None:
    base, expert, generator = make_agent(), make_agent(seed=1), torch.Generator().manual_seed(0)
    pairs = make_targets(base, expert, torch.randn(16, *base.event_shape, generator=generator), generator, 0)
    buffer = target_source(base, expert, DATASET, pairs, 0, 0)(64, generator)
    known = (buffer.x_t[:, None] == pairs.x_t).flatten(2).all(dim=2)
    assert len(buffer) == 64 and known.any(dim=1).tolist() == [True] * 32 + [False] * 32
    row = int(known[0].int().argmax())
    assert torch.equal(buffer.eps_difference[0], pairs.eps_difference[row]) and buffer.t[0] == pairs.t[row]
    with_pairs, without = (
        make_extractor(base, expert, buffer_size=64).learn(DATASET, 1, log_interval=0, pairs=given).reward
        for given in (pairs, None)
    )
    assert not torch.equal(with_pairs.gradient_scale, without.gradient_scale)


def test_learning_twice_starts_with_a_new_buffer_and_new_units() -> None:
    extractor = make_extractor(make_agent(), make_agent(seed=1), buffer_size=64).learn(DATASET, 3)
    scale = extractor.reward.gradient_scale.clone()
    extractor.learn(EXPERT_DATASET, 1)
    assert extractor.num_timesteps == 1 and not torch.equal(extractor.reward.gradient_scale, scale)


def test_the_two_models_are_untouched(pair: tuple[DiffusionAgent, DiffusionAgent]) -> None:
    before = [agent.predict(OBSERVATIONS, deterministic=True)[0] for agent in pair]
    gradients = [parameter.requires_grad for agent in pair for parameter in agent.module.parameters()]
    make_extractor(*pair, buffer_size=64).learn(DATASET, 3)
    for agent, actions in zip(pair, before, strict=True):
        np.testing.assert_array_equal(agent.predict(OBSERVATIONS, deterministic=True)[0], actions)
        assert all(parameter.grad is None for parameter in agent.averaged.parameters())
    assert gradients == [parameter.requires_grad for agent in pair for parameter in agent.module.parameters()]


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"horizon": 10}, "event_shape"),
        ({"n_diffusion_steps": 12}, "n_diffusion_steps"),
        ({"stride": 2}, "stride=1 against stride=2"),
        ({"normalizer": Normalizer.fit(DATASET)}, "normalizer="),
    ],
)
def test_pairs_of_different_spaces_are_refused(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"base and expert differ in .*{field}"):
        RewardExtractor(make_agent(), make_agent(**kwargs))


def test_schedules_are_compared() -> None:
    with pytest.raises(ValueError, match=r"differ in process\.schedule: base has cosine, expert has linear"):
        RewardExtractor(make_agent(n_diffusion_steps=30), make_agent(n_diffusion_steps=30, schedule="linear"))


def test_a_buffer_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_size is 16, it must be at least batch_size, 32"):
        make_extractor(make_agent(), make_agent(), buffer_size=16)


# ---------------------------------------------------------------------- the archive


def test_a_loaded_extractor_has_the_same_reward(rewards: list[RelativeReward], tmp_path: Path) -> None:
    base, expert = make_agent(), make_agent(seed=1)
    extractor = make_extractor(base, expert, buffer_size=64).learn(DATASET, 3)
    extractor.save(tmp_path / "extractor")
    loaded = RewardExtractor.load(tmp_path / "extractor", base=base, expert=expert)
    np.testing.assert_array_equal(
        loaded.reward.predict(DATASET.observations, DATASET.actions),
        extractor.reward.predict(DATASET.observations, DATASET.actions),
    )
    with pytest.raises(ValueError, match=r"extractor\.zip: an extractor needs its two models"):
        RewardExtractor.load(tmp_path / "extractor")
    with pytest.raises(ValueError, match=r"extractor\.zip: it was made for .*horizon=8"):
        RewardExtractor.load(tmp_path / "extractor", base=make_agent(horizon=10), expert=make_agent(horizon=10))


def test_the_reward_alone_is_saved_without_its_training(tmp_path: Path) -> None:
    extractor = make_extractor(make_agent(), make_agent(seed=1), buffer_size=64).learn(DATASET, 3)
    extractor.save(tmp_path / "extractor")
    extractor.reward.save(tmp_path / "reward")
    assert (tmp_path / "reward.zip").stat().st_size < 0.5 * (tmp_path / "extractor.zip").stat().st_size
    loaded = RelativeReward.load(tmp_path / "reward")
    np.testing.assert_array_equal(
        loaded.predict(DATASET.observations, DATASET.actions),
        extractor.reward.predict(DATASET.observations, DATASET.actions),
    )
