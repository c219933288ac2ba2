"""A diffusion planner as an SB3-style agent: learns from data, acts through ``predict``, saved as one safe archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from rrpolicy.agents.archive import N_STARTS, arguments_of, checked_starts, policy_of
from rrpolicy.agents.arguments import check_training
from rrpolicy.agents.checks import check_columns, check_controller, checked_datasets, checked_group
from rrpolicy.agents.environment import Env, fitting_environment, flat_environment, place_of
from rrpolicy.agents.inverse_dynamics import INVERSE_DYNAMICS, LearnedController
from rrpolicy.agents.options import AUTO, PlanningOptions
from rrpolicy.agents.planning import Planner
from rrpolicy.agents.policy import DiffusionPolicy, fingerprint
from rrpolicy.agents.ranges import LEAST_CLIP, check_range, clip_for
from rrpolicy.common.arguments import flag, number
from rrpolicy.common.boxes import box_to_dict
from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.held_out import N_HELD_OUT
from rrpolicy.common.learner import Learner, LearningRate, MaybeCallback
from rrpolicy.common.noise import generator, randint, send
from rrpolicy.common.options import LearnOptions, TrainingOptions, check_options
from rrpolicy.common.schema import native
from rrpolicy.common.spaces import flat_box
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import MODES, Normalizer
from rrpolicy.data.report import warn_of_actions
from rrpolicy.data.windows import WindowSampler
from rrpolicy.diffusion.networks import archived_kwargs, network_name, restored_kwargs
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import Denoiser
from rrpolicy.envs.controller import Controller, PDController
from rrpolicy.export.compiled import digest_of


class DiffusionAgent(Planner, Learner[DiffusionPolicy]):
    """
    Plans windows by denoising (Janner et al. 2022) and acts on them.

    Further keywords are those of `TrainingOptions`.

    :param policy: ``"MlpPolicy"``, ``"UnetPolicy"``, ``"TransformerPolicy"`` or an own class of networks, see
        `DiffusionPolicy`
    :param env: environment (or its id) whose spaces the agent is made for; dictionaries, tuples and boxes of other
        shapes are flattened by ``rrpolicy.common.spaces.FlatSpaces``, and ``predict`` takes the flat vectors
    :param learning_rate: peak learning rate or SB3 schedule
    :param horizon: rows H of a window
    :param stride: environment steps between two rows; planned actions in between are interpolated linearly
    :param batch_size: windows per gradient step
    :param process: noise levels and what the network predicts; None for 50 cosine levels and ``"x0"``
    :param planning: how plans are sampled and executed; None for the defaults of `PlanningOptions`
    :param observation_columns: observation entries that are planned; None for all
    :param n_observation_rows: known observations a plan begins with, ``stride`` steps apart, the present one last
    :param controller: turns the next planned observation into an action: a law, or ``"inverse-dynamics"`` for a network
        that is learned with the denoiser; None plans the actions themselves
    :param controller_kwargs: arguments of that network
    :param first_action_weight: weight of the first action in the loss
    :param normalizer: shared normaliser, for a pair whose reward is to be extracted:
        ``Normalizer.fit([dataset, expert_dataset])``; None fits one in ``learn``
    :param normalizer_mode: ``"limits"``, ``"gaussian"``, ``"isotropic"`` or ``"quantiles"``, for a normaliser fitted in
        ``learn``
    :param padding: also learn from windows that run past the end of an episode (masked)
    :param policy_kwargs: arguments of the network
    :raises ValueError: for spaces that are no boxes, an environment that normalises observations, and options out of
        range, naming them
    :raises TypeError: for a keyword that there is not, naming where it belongs
    """

    kind: ClassVar[str] = "agent"

    @usual_torch()
    def __init__(
        self,
        policy: str | type[nn.Module],
        env: Env | str,
        learning_rate: LearningRate = 2e-3,
        horizon: int = 32,
        stride: int = 1,
        batch_size: int = 128,
        process: DiffusionProcess | None = None,
        planning: PlanningOptions | None = None,
        observation_columns: Sequence[int] | None = None,
        n_observation_rows: int = 1,
        controller: PDController | Literal["inverse-dynamics"] | None = None,
        controller_kwargs: Mapping[str, Any] | None = None,
        first_action_weight: float = 1.0,
        normalizer: Normalizer | None = None,
        normalizer_mode: str = "limits",
        padding: bool = True,
        policy_kwargs: Mapping[str, Any] | None = None,
        **training: Unpack[TrainingOptions],
    ) -> None:
        check_training(training)
        super().__init__(learning_rate, batch_size, **training)
        self.env: Env | None = flat_environment(env)
        self.observation_space = flat_box(self.env.observation_space, "observation")
        self.action_space = flat_box(self.env.action_space, "action")
        self.policy_class = policy
        self.first_action_weight: float = number("first_action_weight", first_action_weight, above=0)
        self.policy_kwargs: dict[str, Any] = native(policy_kwargs or {})
        if normalizer_mode not in MODES:
            raise ValueError(f"normalizer_mode is {normalizer_mode!r}, it must be one of {MODES}")
        self.normalizer_mode = normalizer_mode
        self.padding = flag("padding", padding)
        self._given_controller = controller
        self.controller_kwargs: dict[str, Any] = native(controller_kwargs or {})
        self.controller: Controller | None = controller if isinstance(controller, PDController) else None
        self.process = DiffusionProcess() if process is None else checked_group("process", process, DiffusionProcess)
        self.layout = TrajectoryLayout(
            observation_dim=self.observation_space.shape[0],
            action_dim=self.action_space.shape[0],
            horizon=horizon,
            stride=stride,
            observation_columns=None if observation_columns is None else tuple(observation_columns),
            plan_actions=controller is None,
            n_observation_rows=n_observation_rows,
        )
        self._setup_planning(planning, LEAST_CLIP[normalizer_mode if normalizer is None else normalizer.mode])
        self._normalizer = normalizer
        self._starts = torch.zeros(1, self.layout.n_observation_rows * self.layout.width)
        self._setup_model()

    def _setup_planning(self, planning: PlanningOptions | None, least_clip: float) -> None:
        options = PlanningOptions() if planning is None else checked_group("planning", planning, PlanningOptions)
        check_controller(self._given_controller, self.controller_kwargs, options.lookahead)
        self._clip_fits_data = options.clip == AUTO
        self.planning = options.settled(self.layout.longest_execution, least_clip)
        self._check_planning()
        check_columns(self.controller, self.layout)

    def _setup_model(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            module = DiffusionPolicy(
                self.policy_class,
                self.layout,
                self.process,
                self.first_action_weight,
                self.policy_kwargs,
                self.controller_kwargs if self._given_controller == INVERSE_DYNAMICS else None,
            )
        self._start_from(module)
        if self._normalizer is not None:
            self._take_units(self._normalizer)
        self._acting_generator = generator(0 if self.seed is None else self.seed)

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
        *,
        eval_dataset: TrajectoryDataset | Sequence[TrajectoryDataset] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Self:
        """
        Learn to denoise windows of ``dataset``, and a learned controller its transitions; one timestep is one gradient
        step. Further keywords are those of `LearnOptions`.

        :param dataset: what to imitate, environment units; a warning names the share of each column that lies beyond
            ``clip``, where nothing is ever planned
        :param total_timesteps: gradient steps to take
        :param callback: SB3 callback(s); ``on_step`` comes after every gradient step
        :param eval_dataset: what is held out: ``dataset, eval_dataset = dataset.split(0.1)`` divides by episode
        :return: self
        :raises TypeError: when called without a dataset, or with a keyword that there is not
        :raises ValueError: when dataset and layout do not fit, or more than half of a column lies beyond ``clip`` of a
            normaliser that was given and learning does not go on from before
        :raises FloatingPointError: when the loss is not finite, naming the step
        """
        check_options("learn", options, LearnOptions)
        datasets, total_timesteps = checked_datasets(dataset, total_timesteps)
        normalizer = self._normalizer or Normalizer.fit(datasets, mode=self.normalizer_mode)
        advice = "make the agent with padding=True or a shorter horizon"
        self._sampler = WindowSampler(datasets, self.layout, normalizer, self.padding, advice).to(self.device)
        self._transitions = self._transitions_of(datasets, normalizer)
        if (clip := self.planning.clip) is not None and self._clip_fits_data:
            clip = clip_for(normalizer, self._sampler, clip)
        new = self._normalizer is not None and options.get("reset_num_timesteps", True)
        warn_of_actions(datasets, self.action_space)
        check_range(datasets, self._sampler, self.layout, normalizer, clip, new)
        loss = None if eval_dataset is None else self._held_out_loss(eval_dataset, normalizer)
        watch = self._watch(loss, total_timesteps, options)
        self.planning = replace(self.planning, clip=clip)
        self._take_units(normalizer)  # only now: arguments that were refused leave no trace
        drawing = generator(0 if self.seed is None else self.seed)
        first_rows = self._sampler.draw(N_STARTS, drawing)[0][:, : self.layout.n_observation_rows]
        self._starts = first_rows.flatten(1).cpu().clone()
        self._learn(total_timesteps, callback, options, watch)
        return self

    def _draw(self) -> Batch:
        return self._drawn(self._sampler, self._transitions, self.batch_size)

    def _drawn(self, windows: WindowSampler, transitions: WindowSampler | None, n: int) -> Batch:
        """Windows, their masks, levels and noise, and as many transitions where a controller is learned."""
        x0, mask = windows.draw(n, self.generator)
        t, noise = self.module.draw(x0, self.generator)
        return (x0, mask, t, noise, *(() if transitions is None else transitions.draw(n, self.generator)[:1]))

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        """The loss, and its parts where there are two."""
        loss = self.module.loss_at(*batch[:4])
        if self.module.inverse_dynamics is None:
            return loss, {}
        # no weight between the two: they share no parameters, only the bound on the gradient's norm
        error = self.module.inverse_dynamics.loss(batch[4])
        return loss + error, {"denoising": loss.detach(), "inverse_dynamics": error.detach()}

    def _transitions_of(self, datasets: Sequence[TrajectoryDataset], normalizer: Normalizer) -> WindowSampler | None:
        """What inverse dynamics is learned from; None for an agent without."""
        network = self.module.inverse_dynamics
        return None if network is None else network.transitions(datasets, normalizer).to(self.device)

    def _held_out_loss(self, data: Any, normalizer: Normalizer) -> Callable[[], float]:
        datasets, _ = checked_datasets(data, 0)
        advice = "hold out longer episodes, or make the agent with padding=True or a shorter horizon"
        windows = WindowSampler(datasets, self.layout, normalizer, self.padding, advice).to(self.device)
        transitions = self._transitions_of(datasets, normalizer)

        def loss() -> float:
            with self._judged():
                return float(self._loss_of(self._drawn(windows, transitions, N_HELD_OUT))[0])

        return loss

    # ------------------------------------------------------------------ score model

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.layout.event_shape

    @property
    def policy(self) -> DiffusionPolicy:
        """The network that is trained, as in SB3; :attr:`averaged` holds the mean of its weights, which acts."""
        return self.module

    @property
    def pinned(self) -> Tensor:
        """Entries (H, D) that stay clean: the current observation."""
        return self.averaged.pinned

    @property
    def normalizer(self) -> Normalizer:
        """
        The one normaliser, environment units to normalised ones.

        :raises ValueError: before the agent has learned or been given one
        """
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
        windows = torch.zeros(n, *self.event_shape, device=self.device)
        chosen = randint(len(self._starts), (n,), generator, self.device)
        rows = send(self._starts, self.device)[chosen]
        windows[:, : self.layout.n_observation_rows] = rows.view(n, -1, self.layout.width)
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

    def _take_env(self, env: Env | str) -> None:
        self.set_env(env)

    def _config(self) -> dict[str, Any]:
        given = self._given_controller
        return {
            "policy": network_name(self.policy_class),
            "layout": self.layout.to_dict(),
            "process": self.process.to_dict(),
            "controller": given.to_dict() if isinstance(given, PDController) else given,
            "controller_kwargs": self.controller_kwargs,
            "planning": self.planning.to_dict(),
            "observation_space": box_to_dict(self.observation_space),
            "action_space": box_to_dict(self.action_space),
            "policy_kwargs": archived_kwargs(self.policy_class, self.policy_kwargs),
            "training": {
                **self._training_config(),
                "first_action_weight": self.first_action_weight,
                "padding": self.padding,
            },
        }

    def _digest(self) -> str | None:
        if not isinstance(self.policy_class, str) or not isinstance(self.planning.sampler, str):
            return None
        return digest_of(self._config(), {"averaged": self.averaged.state_dict(), **self._extra_tensors()})

    def _extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        units = {name: torch.tensor(array) for name, array in self.normalizer.to_arrays().items()}
        return {"normalizer": units, "starts": {"rows": self._starts}}

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> DiffusionPolicy:
        policy = policy_of(config, kwargs.get("policy"))
        return DiffusionPolicy(
            policy,
            TrajectoryLayout.from_dict(config["layout"]),
            DiffusionProcess(**config["process"]),
            policy_kwargs=restored_kwargs(policy, config["policy_kwargs"]),
            inverse_dynamics=config.get("controller_kwargs", {}) if config["controller"] == INVERSE_DYNAMICS else None,
        )

    @classmethod
    def _from_config(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        policy: type[nn.Module] | None = None,
    ) -> Self:
        agent = cls(**arguments_of(config, Normalizer.from_tensors(tensors["normalizer"]), policy))
        agent.env = None
        agent._starts = checked_starts(tensors["starts"]["rows"], agent.layout)
        return agent

    def _card(self) -> dict[str, Any]:
        return place_of(self.env)
