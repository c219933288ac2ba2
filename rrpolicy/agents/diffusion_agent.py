"""A diffusion planner as an SB3-style agent: learns from data, acts through ``predict``, saved as one safe archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from rrpolicy.agents.archive import N_STARTS, arguments_of, checked_starts
from rrpolicy.agents.checks import check_columns, check_controller, checked_datasets
from rrpolicy.agents.environment import Env, checked_environment, fitting_environment, flat_environment, place_of
from rrpolicy.agents.inverse_dynamics import INVERSE_DYNAMICS, LearnedController
from rrpolicy.agents.planning import Planner, PlanningOptions
from rrpolicy.agents.policy import DiffusionPolicy, fingerprint
from rrpolicy.agents.ranges import AUTO, LEAST_CLIP, check_range, clip_for
from rrpolicy.common.arguments import flag, number
from rrpolicy.common.held_out import N_HELD_OUT, held_out
from rrpolicy.common.learner import Learner, LearningRate, MaybeCallback
from rrpolicy.common.schema import native
from rrpolicy.common.spaces import box_to_dict, flat_box
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import MODES, Normalizer
from rrpolicy.data.report import warn_of_actions
from rrpolicy.data.windows import WindowSampler
from rrpolicy.diffusion.process import DiffusionProcess, Prediction, Schedule
from rrpolicy.diffusion.sampling import Solver
from rrpolicy.diffusion.score_model import Denoiser
from rrpolicy.envs.controller import Controller, PDController


class DiffusionAgent(Planner, Learner[DiffusionPolicy]):
    """
    Plans windows by denoising (Janner et al. 2022) and acts on them.

    :param policy: ``"MlpPolicy"``, ``"UnetPolicy"`` or ``"TransformerPolicy"``
    :param env: environment (or its id) whose spaces the agent is made for; dictionaries, tuples and boxes of other
        shapes are flattened by ``rrpolicy.common.spaces.FlatSpaces``, and ``predict`` takes the flat vectors
    :param learning_rate: peak learning rate or SB3 schedule
    :param horizon: rows H of a window
    :param stride: environment steps between two rows; planned actions in between are interpolated linearly
    :param batch_size: windows per gradient step
    :param n_diffusion_steps: noise levels T
    :param schedule: ``"cosine"`` or ``"linear"``
    :param prediction: what the network predicts: ``"x0"``, ``"eps"`` or ``"v"``
    :param observation_columns: observation entries that are planned; None for all
    :param controller: turns the next planned observation into an action: a law, or ``"inverse-dynamics"`` for a network
        that is learned with the denoiser; None plans the actions themselves
    :param controller_kwargs: arguments of that network
    :param n_action_steps: environment steps executed before planning again; None: 8, or less for a short window
    :param n_sampling_steps: denoising steps per plan
    :param sampler: ``"ddim"``, ``"ddpm"`` or ``"dpm++"``
    :param warm_start: level from which the previous plan is refined; None plans from noise
    :param clip: bound of normalised plan entries while sampling; ``"auto"``: 1.5 for the modes ``"limits"`` and
        ``"isotropic"``; for ``"gaussian"`` at least 5, for ``"quantiles"`` at least 1.5, and as much as the data that
        it learns from reach; None for none
    :param lookahead: rows of the plan by which a controller's target is ahead, fractions allowed where it is a law
    :param n_candidates: plans sampled per environment, of which the agent keeps the one it finds likeliest by itself
        (`diffusion.plausibility`)
    :param first_action_weight: weight of the first action in the loss
    :param normalizer: shared normaliser, for a pair whose reward is to be extracted:
        ``Normalizer.fit([dataset, expert_dataset])``; None fits one in ``learn``
    :param normalizer_mode: ``"limits"``, ``"gaussian"``, ``"isotropic"`` or ``"quantiles"``, for a normaliser fitted in
        ``learn``
    :param padding: also learn from windows that run past the end of an episode (masked)
    :param ema_decay: decay of the averaged weights
    :param weight_decay: AdamW weight decay
    :param max_grad_norm: gradient clipping
    :param n_observation_rows: known observations a plan begins with, ``stride`` steps apart, the present one last
    :param policy_kwargs: arguments of the network
    :param tensorboard_log: folder of the TensorBoard log
    :param verbose: 0 silent, 1 prints the log
    :param seed: seed of weights, training and stochastic acting
    :param device: ``"cpu"`` or ``"auto"``
    :raises ValueError: for spaces that are no boxes, an environment that normalises observations, and options out of
        range, naming them
    """

    kind: ClassVar[str] = "agent"

    @usual_torch()
    def __init__(
        self,
        policy: str,
        env: Env | str,
        learning_rate: LearningRate = 2e-3,
        horizon: int = 32,
        stride: int = 1,
        batch_size: int = 128,
        n_diffusion_steps: int = 50,
        schedule: Schedule = "cosine",
        prediction: Prediction = "x0",
        observation_columns: Sequence[int] | None = None,
        controller: PDController | Literal["inverse-dynamics"] | None = None,
        controller_kwargs: Mapping[str, Any] | None = None,
        n_action_steps: int | None = None,
        n_sampling_steps: int = 5,
        sampler: Solver = "ddim",
        warm_start: int | None = None,
        clip: float | Literal["auto"] | None = AUTO,
        lookahead: float = 1.0,
        n_candidates: int = 1,
        first_action_weight: float = 1.0,
        normalizer: Normalizer | None = None,
        normalizer_mode: str = "limits",
        padding: bool = True,
        ema_decay: float = 0.999,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 1.0,
        n_observation_rows: int = 1,
        policy_kwargs: Mapping[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            learning_rate, batch_size, ema_decay, weight_decay, max_grad_norm, tensorboard_log, verbose, seed, device
        )
        self.env: Env | None = flat_environment(env)
        self.observation_space = flat_box(self.env.observation_space, "observation")
        self.action_space = flat_box(self.env.action_space, "action")
        self.policy = policy
        self.first_action_weight: float = number("first_action_weight", first_action_weight, above=0)
        self.policy_kwargs: dict[str, Any] = native(policy_kwargs or {})
        if normalizer_mode not in MODES:
            raise ValueError(f"normalizer_mode is {normalizer_mode!r}, it must be one of {MODES}")
        self.normalizer_mode = normalizer_mode
        self.padding = flag("padding", padding)
        check_controller(controller, controller_kwargs, lookahead)
        self._given_controller = controller
        self.controller_kwargs: dict[str, Any] = native(controller_kwargs or {})
        self.controller: Controller | None = controller if isinstance(controller, PDController) else None
        self.process = DiffusionProcess(n_diffusion_steps, schedule, prediction)
        self.layout = TrajectoryLayout(
            observation_dim=self.observation_space.shape[0],
            action_dim=self.action_space.shape[0],
            horizon=horizon,
            stride=stride,
            observation_columns=None if observation_columns is None else tuple(observation_columns),
            plan_actions=controller is None,
            n_observation_rows=n_observation_rows,
        )
        self._clip_fits_data = clip == AUTO
        least = LEAST_CLIP[normalizer_mode if normalizer is None else normalizer.mode]
        self.planning = PlanningOptions(
            min(8, self.layout.longest_execution) if n_action_steps is None else n_action_steps,
            n_sampling_steps,
            sampler,
            warm_start,
            least if clip == AUTO else clip,
            lookahead,
            n_candidates,
        )
        self._check_planning()
        check_columns(self.controller, self.layout)
        self._normalizer = normalizer
        self._starts = torch.zeros(1, self.layout.n_observation_rows * self.layout.width)
        self._setup_model()

    def _setup_model(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            module = DiffusionPolicy(
                self.policy,
                self.layout,
                self.process,
                self.first_action_weight,
                self.policy_kwargs,
                self.controller_kwargs if self._given_controller == INVERSE_DYNAMICS else None,
            )
        self._start_from(module)
        if self._normalizer is not None:
            self._take_units(self._normalizer)
        self._acting_generator = torch.Generator()
        self._acting_generator.manual_seed(0 if self.seed is None else self.seed)

    def _take_units(self, normalizer: Normalizer) -> None:
        """
        The one normaliser: of plans, and of the learned controller that follows them.

        :raises ValueError: for a normaliser of other widths than the layout's
        """
        normalizer.packed(self.layout)
        self._normalizer = normalizer
        if self.averaged.inverse_dynamics is not None:
            self.controller = LearnedController(self.averaged.inverse_dynamics, normalizer)

    # ------------------------------------------------------------------ learning

    @usual_torch()
    def learn(
        self,
        dataset: TrajectoryDataset | Sequence[TrajectoryDataset],
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint_path: str | Path | None = None,
        checkpoint_freq: int = 1000,
        eval_dataset: TrajectoryDataset | Sequence[TrajectoryDataset] | None = None,
        eval_freq: int = 500,
        patience: int | None = None,
    ) -> Self:
        """
        Learn to denoise windows of ``dataset``, and a learned controller its transitions; one timestep is one gradient
        step.

        :param dataset: what to imitate, environment units; a warning names the share of each column that lies beyond
            ``clip``, where nothing is ever planned
        :param total_timesteps: gradient steps to take
        :param callback: SB3 callback(s); ``on_step`` comes after every gradient step
        :param log_interval: steps between two log lines; 0 for none
        :param reset_num_timesteps: False continues the count and the learning-rate schedule (resume)
        :param progress_bar: show one
        :param checkpoint_path: archive written every ``checkpoint_freq`` steps, at the end, and on Ctrl-C or SIGTERM
        :param eval_dataset: what is held out: ``dataset, eval_dataset = dataset.split(0.1)`` divides by episode. The
            loss of the averaged weights on it is logged as ``eval/loss``; when learning ends, the averaged weights of
            ``best_step``, where it was lowest, are the agent's. Training itself does not change
        :param eval_freq: steps between two such measurements
        :param patience: measurements without a lower loss after which learning ends; None for all steps
        :return: self
        :raises TypeError: when called without a dataset
        :raises ValueError: when dataset and layout do not fit, or more than half of a column lies beyond ``clip`` of a
            normaliser that was given and learning does not go on from before
        :raises FloatingPointError: when the loss is not finite, naming the step
        """
        datasets, total_timesteps = checked_datasets(dataset, total_timesteps)
        normalizer = self._normalizer or Normalizer.fit(datasets, mode=self.normalizer_mode)
        advice = "make the agent with padding=True or a shorter horizon"
        self._sampler = WindowSampler(datasets, self.layout, normalizer, self.padding, advice)
        self._transitions = self._transitions_of(datasets, normalizer)
        if (clip := self.planning.clip) is not None and self._clip_fits_data:
            clip = clip_for(normalizer, self._sampler, clip)
        new = self._normalizer is not None and reset_num_timesteps
        warn_of_actions(datasets, self.action_space)
        check_range(datasets, self._sampler, self.layout, normalizer, clip, new)
        loss = None if eval_dataset is None else self._held_out_loss(eval_dataset, normalizer)
        watch = held_out(loss, eval_freq, patience, total_timesteps if reset_num_timesteps else None)
        self.planning = replace(self.planning, clip=clip)
        self._take_units(normalizer)  # only now: arguments that were refused leave no trace
        generator = torch.Generator().manual_seed(0 if self.seed is None else self.seed)
        first_rows = self._sampler.draw(N_STARTS, generator)[0][:, : self.layout.n_observation_rows]
        self._starts = first_rows.flatten(1).clone()
        self._optimise(
            total_timesteps,
            callback,
            log_interval,
            reset_num_timesteps,
            progress_bar,
            checkpoint_path,
            checkpoint_freq,
            watch,
        )
        return self

    def _draw_loss(self) -> tuple[Tensor, dict[str, float]]:
        return self._loss_of(self._sampler, self._transitions, self.batch_size)

    def _loss_of(
        self, windows: WindowSampler, transitions: WindowSampler | None, n: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of ``n`` windows and as many transitions, and its parts where there are two."""
        x0, mask = windows.draw(n, self.generator)
        loss = self.module.loss(x0, mask, self.generator)
        if self.module.inverse_dynamics is None or transitions is None:
            return loss, {}
        # no weight between the two: they share no parameters, only the bound on the gradient's norm
        error = self.module.inverse_dynamics.loss(transitions.draw(n, self.generator)[0])
        return loss + error, {"denoising": float(loss.detach()), "inverse_dynamics": float(error.detach())}

    def _transitions_of(self, datasets: Sequence[TrajectoryDataset], normalizer: Normalizer) -> WindowSampler | None:
        """What inverse dynamics is learned from; None for an agent without."""
        network = self.module.inverse_dynamics
        return None if network is None else network.transitions(datasets, normalizer)

    def _held_out_loss(self, data: Any, normalizer: Normalizer) -> Callable[[], float]:
        datasets, _ = checked_datasets(data, 0)
        advice = "hold out longer episodes, or make the agent with padding=True or a shorter horizon"
        windows = WindowSampler(datasets, self.layout, normalizer, self.padding, advice)
        transitions = self._transitions_of(datasets, normalizer)

        def loss() -> float:
            with self._judged():
                return float(self._loss_of(windows, transitions, N_HELD_OUT)[0])

        return loss

    # ------------------------------------------------------------------ score model

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.layout.event_shape

    @property
    def pinned(self) -> Tensor:
        """Entries (H, D) that stay clean: the current observation."""
        return self.averaged.pinned

    @property
    def normalizer(self) -> Normalizer:
        """:raises ValueError: before the agent has learned or been given one"""
        if self._normalizer is None:
            raise ValueError("the agent has no normalizer: call learn(dataset, total_timesteps) or pass normalizer=")
        return self._normalizer

    @usual_torch()
    @torch.no_grad()
    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, H, D) of normalised windows ``x_t`` (B, H, D) at levels ``t`` (B,)."""
        return self.averaged.eps(x_t, t)

    @usual_torch()
    def sample_pinned(self, n: int, generator: torch.Generator) -> Tensor:
        """Windows (n, H, D) that hold observations of the training data where a window is pinned, zeros elsewhere."""
        windows = torch.zeros(n, *self.event_shape)
        chosen = self._starts[torch.randint(len(self._starts), (n,), generator=generator)]
        windows[:, : self.layout.n_observation_rows] = chosen.view(n, -1, self.layout.width)
        return torch.where(self.pinned, windows, 0.0)

    def fingerprint(self) -> str:
        """Equal for agents that share layout, normaliser and process."""
        return fingerprint(self.layout, self.normalizer, self.process)

    def _denoiser(self) -> Denoiser:
        return self.averaged.eps

    # ------------------------------------------------------------------ environment

    def get_env(self) -> VecEnv | None:
        """The environment as SB3's callbacks want it, vectorised; without one as for any other learner."""
        env = self.env
        if env is None or isinstance(env, VecEnv):
            return super().get_env() if env is None else env
        return DummyVecEnv([lambda: env])

    def set_env(self, env: Env | str) -> None:
        """
        Act in another environment from now on.

        :param env: as in the constructor
        :raises ValueError: when the environment's spaces are not the agent's, or it normalises observations
        """
        self.env = fitting_environment(env, self.observation_space, self.action_space)

    # ------------------------------------------------------------------ persistence

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", env: Env | str | None = None, **kwargs: Any
    ) -> Self:
        """
        Read what :meth:`save` wrote.

        :param path: file, with or without ``.zip``
        :param env: the environment that the agent is to have, or its id; archives hold none
        :raises FileNotFoundError: when there is no such file
        :raises ValueError: for an archive that is damaged, foreign, unsafe or of another kind, or another environment
        :raises TypeError: for a keyword that there is not, naming it
        """
        return super().load(path, device, env=None if env is None else checked_environment(env), **kwargs)

    def _config(self) -> dict[str, Any]:
        given = self._given_controller
        return {
            "policy": self.policy,
            "layout": self.layout.to_dict(),
            "process": self.process.to_dict(),
            "controller": given.to_dict() if isinstance(given, PDController) else given,
            "controller_kwargs": self.controller_kwargs,
            "planning": asdict(self.planning),
            "observation_space": box_to_dict(self.observation_space),
            "action_space": box_to_dict(self.action_space),
            "policy_kwargs": self.policy_kwargs,
            "training": {
                **self._training_config(),
                "first_action_weight": self.first_action_weight,
                "padding": self.padding,
            },
        }

    def _extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"normalizer": self.normalizer.to_tensors(), "starts": {"rows": self._starts}}

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> DiffusionPolicy:
        return DiffusionPolicy(
            config["policy"],
            TrajectoryLayout.from_dict(config["layout"]),
            DiffusionProcess(**config["process"]),
            policy_kwargs=config["policy_kwargs"],
            inverse_dynamics=config.get("controller_kwargs", {}) if config["controller"] == INVERSE_DYNAMICS else None,
        )

    @classmethod
    def _from_config(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], env: Env | None = None
    ) -> Self:
        agent = cls(**arguments_of(config, Normalizer.from_tensors(tensors["normalizer"])))
        agent.env = None
        agent._starts = checked_starts(tensors["starts"]["rows"], agent.layout)
        if env is not None:
            agent.set_env(env)
        return agent

    def _card(self) -> dict[str, Any]:
        return place_of(self.env)
