"""Weak and expert data of one SAC run (Stable-Baselines3): its replay buffer and its last policy, as in D4RL (Fu et al.
2020), where medium-replay ends when the medium return is reached.
A run can be stopped and resumed without loss, except that the current episode is cut off."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from tqdm.auto import tqdm

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.device import resolve
from rrpolicy.common.environments import Copying, refuse_normalised_rewards
from rrpolicy.common.interruption import TrainingInterrupted, deferred_signals
from rrpolicy.common.messages import at, printable
from rrpolicy.common.seeding import MAX_SB3_SEED, checked_seed
from rrpolicy.common.spaces import flat_box
from rrpolicy.common.typing import Array
from rrpolicy.common.weights import moments, set_moments
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.reference_scores import is_registered, normalized_score, reference_score

KIND = "replay-training"
LARGEST = 1e9  # observation or reward of a replay buffer; squares of larger ones are not finite in single precision
MAX_LOG_ENTROPY = 80.0  # beyond it the coefficient is not a finite number in single precision
WINDOW_EPISODES = 10  # whose mean return counts as what the policy reaches
DEFAULTS: dict[str, Any] = {  # of SAC's arguments
    "learning_starts": 10_000,  # random steps at first, as in Stable-Baselines3's trained agents
    "train_freq": 1,  # environment steps per gradient step
}
_CHUNK_STEPS = 200  # between two checks of signals, return and checkpoint
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class ReplayTraining:
    """
    A run of SAC in one environment, with all transitions of it.

    :param env: the environment, with flat Box spaces and a known id
    :param seed: of weights, exploration and starts
    :param arguments: for SAC's constructor, JSON values, over :data:`DEFAULTS`
    :raises ValueError: for other spaces
    """

    def __init__(self, env: gym.Env, seed: int = 0, **arguments: Any) -> None:
        flat_box(env.observation_space, "observation")
        flat_box(env.action_space, "action")
        refuse_normalised_rewards(env)
        self.env_id = "" if env.spec is None else env.spec.id
        self._registered = is_registered(env)
        self.seed = seed = checked_seed(seed, MAX_SB3_SEED)
        self.arguments = {**DEFAULTS, **arguments}
        # SB3 writes into policy_kwargs; room for what is seen is made when it is known how much is needed
        self.model = SAC("MlpPolicy", Copying(env), seed=seed, device="cpu", buffer_size=1, **deepcopy(self.arguments))
        self._buffer = ReplayBuffer(1, self.model.observation_space, self.model.action_space, "cpu")
        self._saved_at = 0

    # ------------------------------------------------------------------ learning

    def train(
        self,
        total_timesteps: int,
        stop_return: float | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_freq: int = 50_000,
        progress_bar: bool = False,
    ) -> None:
        """
        Continue the run.

        :param total_timesteps: environment steps, those already made included
        :param stop_return: end earlier, once :meth:`medium_end` is known
        :param checkpoint: archive to keep the run in, also when Ctrl-C or SIGTERM arrives; None for none
        :param checkpoint_freq: environment steps between two checkpoints
        :param progress_bar: show one
        :raises TrainingInterrupted: when a signal arrived; the checkpoint has been written
        """
        self._make_room(total_timesteps)
        progress = {"total": total_timesteps, "initial": self.num_timesteps, "unit": "step", "leave": False}
        with deferred_signals() as received, tqdm(**progress, disable=not progress_bar) as bar:
            while self.num_timesteps < total_timesteps:
                if stop_return is not None and self.medium_end(stop_return) is not None:
                    break
                steps = min(_CHUNK_STEPS, total_timesteps - self.num_timesteps)
                try:
                    self.model.learn(steps, reset_num_timesteps=False)
                except ValueError as error:  # of torch, when weights have become NaN: tensors in several lines
                    raise ValueError(f"the run cannot go on: {printable(error, 200)}") from error
                bar.update(steps)
                if checkpoint is not None and (received or self.num_timesteps - self._saved_at >= checkpoint_freq):
                    self.save(checkpoint)
                if received:
                    raise TrainingInterrupted(received[0])
            if checkpoint is not None:
                self.save(checkpoint)

    @property
    def num_timesteps(self) -> int:
        """Environment steps made, all of which the buffer holds."""
        return int(self.model.num_timesteps)

    def returns(self) -> tuple[Array, Array]:
        """Undiscounted returns of the finished episodes (n,), and how many rows had been seen at their ends (n,)."""
        buffer = self._buffer
        ends = np.flatnonzero(buffer.dones[: self.num_timesteps, 0]) + 1
        sums = np.cumsum(buffer.rewards[: self.num_timesteps, 0], dtype=np.float64)
        return np.diff(sums[ends - 1], prepend=0.0), ends

    def medium_end(self, stop_return: float) -> int | None:
        """
        The number of rows after which the run first reached a return.

        :param stop_return: environment units
        :return: how many rows had been seen when the mean return of ``WINDOW_EPISODES`` training episodes first
            reached it; None while it has not
        """
        returns, ends = self.returns()
        if len(returns) < WINDOW_EPISODES:
            return None
        means = np.convolve(returns, np.full(WINDOW_EPISODES, 1 / WINDOW_EPISODES), mode="valid")
        reached = np.flatnonzero(means >= stop_return)
        return int(ends[reached[0] + WINDOW_EPISODES - 1]) if reached.size else None

    def dataset(self, stop_return: float | None = None) -> TrajectoryDataset:
        """
        The transitions of the run, in their order.

        :param stop_return: leave out what came after :meth:`medium_end`, where that is known
        :return: observations, actions and rewards in environment units; ``metadata`` holds how they were made
        :raises ValueError: when nothing has been seen yet
        """
        end = None if stop_return is None else self.medium_end(stop_return)
        rows, buffer, model = slice(0, end or self.num_timesteps), self._buffer, self.model
        returns, ends = self.returns()
        returns = returns[ends <= rows.stop]
        cut = (buffer.dones[rows, 0] > 0) & (buffer.timeouts[rows, 0] > 0)
        metadata = {
            "source": "replay buffer of SAC",
            "env_id": self.env_id,
            "algorithm": "SAC",
            "seed": self.seed,
            "arguments": self.arguments,
            "total_timesteps": rows.stop,
            "stop_return": stop_return,
            "reached": end is not None,
            "returns": returns.tolist(),
            **self._level(returns),
        }
        return TrajectoryDataset.from_arrays(
            buffer.observations[rows, 0],
            model.policy.unscale_action(buffer.actions[rows, 0]),  # SAC keeps them between -1 and 1
            rewards=buffer.rewards[rows, 0],
            terminals=(buffer.dones[rows, 0] > 0) & ~cut,
            timeouts=cut,
            metadata=metadata,
        )

    def facts(self) -> dict[str, Any]:
        """JSON values about the policy as it is now, for its card."""
        return {
            "environment": self.env_id,
            "algorithm": "SAC",
            "seed": self.seed,
            "arguments": self.arguments,
            "total_timesteps": self.num_timesteps,
            **self._level(self.returns()[0]),
        }

    def _level(self, returns: Array) -> dict[str, float]:
        """Mean return of the last episodes, exploration included, and its normalised score."""
        if not len(returns):
            return {}
        level = {"last_return": float(returns[-WINDOW_EPISODES:].mean())}
        if self._registered and reference_score(self.env_id) is not None:
            level["normalized_score"] = float(normalized_score(self.env_id, level["last_return"]))
        return level

    # ------------------------------------------------------------------ persistence

    def save(self, path: str | Path) -> Path:
        """
        Keep the run in one archive without pickles.

        :param path: file; ``.zip`` is added when missing
        :return: the path written
        :raises ValueError: when a number is not finite
        """
        model, n = self.model, self.num_timesteps
        name, keys, *gauss = np.random.get_state(legacy=True)
        tensors = {
            "policy": model.policy.state_dict(),
            "replay": {name: torch.from_numpy(getattr(self._buffer, name)[:n]) for name in _ARRAYS},
            "random": {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))},
            **{part: moments(optimizer) for part, optimizer in self._optimizers().items()},
        }
        if model.log_ent_coef is not None:
            tensors["entropy"] = {"log_ent_coef": model.log_ent_coef}
        config = {
            "env_id": self.env_id,
            "seed": self.seed,
            "arguments": self.arguments,
            "num_timesteps": n,
            "n_updates": int(model._n_updates),
            "numpy": [name, *gauss],
        }
        self._saved_at = n
        return write_archive(path, KIND, config, tensors)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env | None = None,
        device: torch.device | str = "auto",
        *,
        seed: int = 0,
        **arguments: Any,
    ) -> ReplayTraining:
        """
        Go on with a run. Its environment begins a new episode with new starts; the one under way ends where it is.

        :param path: what :meth:`save` wrote
        :param env: as before; it is needed
        :param device: where networks are; runs are made on the CPU
        :param seed: as before
        :param arguments: as before
        :raises FileNotFoundError: when there is no such file
        :raises ValueError: without an environment, or when the archive is damaged, foreign, of another kind or of a run
            that began otherwise
        """
        if env is None:
            raise ValueError(f"{path}: a run goes on in its environment, wanted env")
        resolve(device)
        archive = read_archive(path, KIND)
        run = cls(env, seed, **arguments)
        for key, now in (("env_id", run.env_id), ("seed", seed), ("arguments", run.arguments)):
            if archive.config.get(key) != now:
                was = printable(archive.config.get(key))
                raise ValueError(at(path, f"the run began with {key} {was}, now it is {printable(now)}"))
        with archive.rebuilding():
            run._restore(archive.config, archive.tensors)
        return run

    def _restore(self, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        model, n = self.model, int(config["num_timesteps"])
        model.num_timesteps, model._n_updates, self._saved_at = n, int(config["n_updates"]), n
        model.policy.load_state_dict(tensors["policy"])
        for part, optimizer in self._optimizers().items():
            set_moments(optimizer, tensors[part])
        if model.log_ent_coef is not None:
            entropy = tensors["entropy"]["log_ent_coef"]
            if entropy.shape != model.log_ent_coef.shape or not bool((entropy.abs() < MAX_LOG_ENTROPY).all()):
                raise ValueError(f"log_ent_coef is {printable(entropy)}, wanted a number within ±{MAX_LOG_ENTROPY}")
            model.log_ent_coef.data.copy_(entropy)
        arrays = {name: tensors["replay"][name].numpy() for name in _ARRAYS}
        for name, values in arrays.items():
            if values.shape != (wanted := (n, *getattr(self._buffer, name).shape[1:])):
                raise ValueError(
                    f"the replay buffer does not have the {n} rows of num_timesteps: {name} has shape "
                    f"{values.shape}, wanted {wanted}"
                )
            bound = 1.0 if name in ("actions", "dones", "timeouts") else LARGEST
            if not (np.abs(values) <= bound + 1e-4).all():
                raise ValueError(f"the replay buffer's {name} reach beyond ±{bound:g}")
        self._make_room(n, arrays)
        if n:  # a time limit, as far as learning is concerned: the value of what would have followed counts
            self._buffer.timeouts[n - 1] = np.maximum(self._buffer.timeouts[n - 1], 1 - self._buffer.dones[n - 1])
            self._buffer.dones[n - 1] = 1
        torch.set_rng_state(tensors["random"]["torch"])
        name, position, has_gauss, gauss = config["numpy"]
        np.random.set_state((name, tensors["random"]["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
        model.action_space.seed(self.seed + n)
        if model.env is not None:
            model.env.seed(self.seed + n)

    def _make_room(self, total_timesteps: int, arrays: Mapping[str, Array] | None = None) -> None:
        """A buffer for all steps to come, with what was seen; some rows more, so that it never begins anew."""
        n, old = self.num_timesteps, self._buffer
        spare = int(self.arguments["train_freq"])  # steps are counted, but end with a gradient step
        if total_timesteps + spare <= old.buffer_size and arrays is None:
            return
        kept = {name: getattr(old, name)[:n] for name in _ARRAYS} if arrays is None else arrays
        new = ReplayBuffer(max(total_timesteps, n) + spare, old.observation_space, old.action_space, "cpu")
        for name, values in kept.items():
            getattr(new, name)[:n] = values
        new.pos = n
        self._buffer = self.model.replay_buffer = new

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        model = self.model
        found = {
            "actor-optimizer": model.actor.optimizer,
            "critic-optimizer": model.critic.optimizer,
            "entropy-optimizer": model.ent_coef_optimizer,
        }
        return {name: optimizer for name, optimizer in found.items() if optimizer is not None}
