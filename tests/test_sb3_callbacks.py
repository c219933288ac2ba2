"""Stable-Baselines3's callbacks and TensorBoard around everything that learns: agents, extractors, discriminators."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.agents import DATASET, EXPERT_DATASET, NARROW, Drift, Lines, make_agent, same_tensors
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rrpolicy import DiffusionAgent, RewardExtractor
from rrpolicy.rewards.discriminator import DiscriminatorReward

BASE, EXPERT = make_agent(), make_agent(seed=1)
DATA = [DATASET, EXPERT_DATASET]


def new_extractor(**kwargs: Any) -> RewardExtractor:
    sizes: dict[str, Any] = {"batch_size": 8, "buffer_size": 32, "window_kwargs": NARROW}
    return RewardExtractor(BASE, EXPERT, heads=("window",), **sizes, **kwargs)


def new_discriminator(**kwargs: Any) -> DiscriminatorReward:
    return DiscriminatorReward(BASE, EXPERT, batch_size=8, window_kwargs=NARROW, **kwargs)


def loaded_agent(**kwargs: Any) -> DiffusionAgent:
    """Without an environment."""
    agent = make_agent(**kwargs)
    agent.env = None
    return agent


MAKERS: dict[str, Any] = {
    "agent": make_agent,
    "without environment": loaded_agent,
    "extractor": new_extractor,
    "discriminator": new_discriminator,
}
every_learner = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Count(BaseCallback):
    def _on_step(self) -> bool:
        self.seen = [*getattr(self, "seen", []), (self.num_timesteps, self.training_env.num_envs)]
        return True


@every_learner
def test_logs_are_written_every_so_many_steps(make: Any) -> None:
    learner, lines = make(), Lines()
    learner.set_logger(Logger(None, [lines]))
    learner.learn(DATA, 7, LogEveryNTimesteps(3), log_interval=0)
    assert [step for step, _ in lines.seen] == [3, 6]
    assert all(line["train/loss"] > 0 and line["time/total_timesteps"] == step for step, line in lines.seen)
    learner.dump_logs()
    assert lines.seen[-1][0] == 7


@every_learner
def test_a_progress_bar_counts_gradient_steps(make: Any) -> None:
    pytest.importorskip("rich")  # which SB3's progress bar needs
    learner, bar = make(), ProgressBarCallback()
    learner.learn(DATA, 5, bar)
    assert (bar.pbar.total, bar.pbar.n) == (5, 5)
    again = ProgressBarCallback()
    learner.learn(DATA, 3, [again], reset_num_timesteps=False)
    assert (again.pbar.total, again.pbar.n) == (3, 3)


@every_learner
def test_lists_events_and_checkpoints(make: Any, tmp_path: Path) -> None:
    learner, count, direct = make(), Count(), Count()
    every = EveryNTimesteps(2, count)
    checkpoint = CheckpointCallback(3, str(tmp_path), "model", save_replay_buffer=True, save_vecnormalize=True)
    learner.learn(DATA, 6, CallbackList([direct, every, checkpoint]))
    assert count.seen == [(2, 1), (4, 1), (6, 1)] and [step for step, _ in direct.seen] == list(range(1, 7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_3_steps.zip", "model_6_steps.zip"]
    models = {} if isinstance(learner, DiffusionAgent) else {"base": BASE, "expert": EXPERT}
    last = type(learner).load(tmp_path / "model_6_steps", **models)
    assert same_tensors(last.averaged.state_dict(), learner.averaged.state_dict())


@every_learner
def test_the_stand_in_for_an_environment_is_there_only_while_learning(make: Any) -> None:
    learner = make()
    kept: list[Any] = []
    learner.learn(DATA, 1, lambda *_: kept.append(learner.get_env()) or True)
    assert kept[0].num_envs == 1
    if isinstance(learner, DiffusionAgent) and learner.env is not None:
        return
    assert learner.get_env() is None
    with pytest.raises(ValueError, match="there is no environment"):
        kept[0].reset()


@pytest.mark.parametrize("make", [make_agent, loaded_agent])
def test_evaluation_and_what_hangs_on_it(make: Any, tmp_path: Path) -> None:
    agent = make()
    reached = StopTrainingOnRewardThreshold(-1e9)
    evaluation = EvalCallback(
        DummyVecEnv([lambda: Monitor(Drift())]),
        callback_on_new_best=reached,
        eval_freq=2,
        n_eval_episodes=2,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
        agent.learn(DATASET, 6, evaluation)
    assert agent.num_timesteps == 2  # the threshold was reached at once
    with np.load(tmp_path / "evaluations.npz") as results:
        assert results["timesteps"].tolist() == [2] and results["results"].shape == (1, 2)
    best = DiffusionAgent.load(tmp_path / "best_model")
    assert same_tensors(best.averaged.state_dict(), agent.averaged.state_dict())


@pytest.mark.parametrize(
    "inside", [lambda one: one, lambda one: [one], lambda one: CallbackList([one]), lambda one: EveryNTimesteps(2, one)]
)
@pytest.mark.parametrize("make", [new_extractor, new_discriminator])
def test_what_does_not_act_is_not_evaluated(make: Any, inside: Any) -> None:
    evaluation = EvalCallback(DummyVecEnv([lambda: Monitor(Drift())]), verbose=0, warn=False)
    with pytest.raises(ValueError, match=r"and (RewardExtractor|DiscriminatorReward) has none: pass eval_dataset="):
        make().learn(DATA, 2, inside(evaluation))


def test_training_stops_when_returns_do_not_grow() -> None:
    agent = make_agent()
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1)
    evaluation = EvalCallback(
        DummyVecEnv([lambda: Monitor(Drift(1))]),
        callback_after_eval=stop,
        eval_freq=1,
        n_eval_episodes=1,
        verbose=0,
        warn=False,
    )
    evaluation.best_mean_reward = 1e9
    agent.learn(DATASET, 20, evaluation)
    assert agent.num_timesteps < 20


# ---------------------------------------------------------------------- TensorBoard


def logged(folder: Path) -> dict[str, list[int]]:
    """Steps of the loss in each run."""
    steps = {}
    for run in sorted(folder.iterdir()):
        events = EventAccumulator(str(run))
        events.Reload()
        steps[run.name] = sorted(event.step for event in events.Scalars("train/loss"))  # of several files
    return steps


@every_learner
def test_a_new_training_is_a_new_run_and_a_resumed_one_continues(make: Any, tmp_path: Path) -> None:
    learner = make(tensorboard_log=str(tmp_path / "log"))
    kind = learner.kind
    learner.learn(DATA, 2, log_interval=1)
    learner.learn(DATA, 2, log_interval=1, reset_num_timesteps=False)
    assert logged(tmp_path / "log") == {f"{kind}_1": [1, 2, 3, 4]}
    learner.save(tmp_path / "model")
    learner.learn(DATA, 1, log_interval=1)
    assert logged(tmp_path / "log") == {f"{kind}_1": [1, 2, 3, 4], f"{kind}_2": [1]}
    models = {} if isinstance(learner, DiffusionAgent) else {"base": BASE, "expert": EXPERT}
    loaded = type(learner).load(tmp_path / "model", **models)
    loaded.tensorboard_log = str(tmp_path / "log")
    loaded.learn(DATA, 2, log_interval=1, reset_num_timesteps=False)  # its own run, not the latest
    assert logged(tmp_path / "log") == {f"{kind}_1": [1, 2, 3, 4, 5, 6], f"{kind}_2": [1]}
    other = make(tensorboard_log=str(tmp_path / "log"))
    other.learn(DATA, 1, log_interval=1)
    assert set(logged(tmp_path / "log")) == {f"{kind}_1", f"{kind}_2", f"{kind}_3"}


def test_a_logger_that_was_given_is_kept(tmp_path: Path) -> None:
    agent, lines = make_agent(tensorboard_log=str(tmp_path / "log")), Lines()
    agent.set_logger(Logger(None, [lines]))
    agent.learn(DATASET, 2, log_interval=1)
    assert [step for step, _ in lines.seen] == [1, 2] and not (tmp_path / "log").exists()


@every_learner
def test_no_episode_ends_in_a_gradient_step(make: Any) -> None:
    learner = make()
    learner.learn(DATA if make is not make_agent else DATASET, 3, callback=StopTrainingOnMaxEpisodes(1))
    assert learner.num_timesteps == 3
