"""Extraction: two score models in, the relative reward that explains their difference out.

Gradient matching (Nuti et al. 2023, algorithm 1: ∇ρ against the score difference) plus, for heads that see the whole
event, value matching (`rewards.targets`). No environment, no policy optimisation, no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.held_out import N_HELD_OUT
from rrpolicy.common.learner import LearningRate, MaybeCallback
from rrpolicy.common.messages import printable
from rrpolicy.common.noise import randint, twin
from rrpolicy.common.options import LearnOptions, TrainingOptions, check_options
from rrpolicy.common.persistence import training_arguments
from rrpolicy.common.schema import native
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.weights import set_generator_state
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible, check_models, layout_of, with_device_of
from rrpolicy.rewards.fit_report import FitReport
from rrpolicy.rewards.heads import restored_window
from rrpolicy.rewards.matching import ROW_FLOOR, UNITS, check_units, gradient_loss, level_units, row_weights
from rrpolicy.rewards.measured_learner import MeasuredLearner, shares_data
from rrpolicy.rewards.relative_reward import Head, RelativeReward
from rrpolicy.rewards.rows import StepRows, clean_events
from rrpolicy.rewards.sources import Data, Source, check_buffer, target_source
from rrpolicy.rewards.targets import Targets

VALUE_CLIP = 10.0  # the default of `value_clip`


class RewardExtractor(MeasuredLearner):
    """
    Learns ρ with ∇ρ = s_expert - s_base; further keywords are those of `TrainingOptions`.

    :param base: the weak model
    :param expert: the strong model; shares normaliser, layout, horizon and schedule with the base
    :param heads: ``"window"`` (steering), ``"step"`` (maps, per-state rewards) or both; None: both for windows (H, D)
        of agents, else ``"window"``
    :param learning_rate: peak learning rate or SB3 schedule
    :param batch_size: events per gradient step
    :param buffer_size: events whose targets are computed at once
    :param n_epochs: passes over each buffer before it is drawn anew
    :param value_coef: weight of value matching in the window head's loss; 0 turns it off
    :param n_value_draws: later noise levels per value target
    :param value_units: the window head predicts in units of the spread of values at each level, not of score
        differences: these grow as 1/σ towards clean events, over levels at which ρ hardly changes. For events that are
        scored clean, images above all
    :param n_step_rows: rows of each window at which the step head is fitted
    :param row_weighting: weight each row of a window by 1 / mean square of its score differences in the window head's
        loss: the next rows, which are acted upon, differ least and would hardly count
    :param first_action_weight: weight of the first row's actions in the window head's loss, as in `DiffusionAgent`:
        an agent that plans anew after every step is steered by them alone
    :param row_floor: rows whose mean square is a smaller part of the average are not weighted any more for it
    :param value_clip: spreads beyond which value errors count linearly: targets are heavy-tailed off the support
    :param window_kwargs: arguments of the window head's network
    :param step_kwargs: arguments of the step head's network
    :raises ValueError: when the two models do not share their space, naming the field, or options contradict
    """

    kind: ClassVar[str] = "extractor"
    differentiates_twice: ClassVar[bool] = True

    @usual_torch()
    def __init__(
        self,
        base: ScoreModel,
        expert: ScoreModel,
        heads: Sequence[Head] | None = None,
        learning_rate: LearningRate = 2e-3,
        batch_size: int = 128,
        buffer_size: int = 16_384,
        n_epochs: int = 4,
        value_coef: float = 0.03,
        n_value_draws: int = 4,
        value_units: bool = False,
        n_step_rows: int = 4,
        row_weighting: bool = True,
        first_action_weight: float = 1.0,
        window_kwargs: Mapping[str, Any] | None = None,
        step_kwargs: Mapping[str, Any] | None = None,
        *,
        row_floor: float = ROW_FLOOR,
        value_clip: float = VALUE_CLIP,
        **training: Unpack[TrainingOptions],
    ) -> None:
        check_options("RewardExtractor", training, TrainingOptions)
        check_models(base, expert)
        check_compatible(base, expert)
        super().__init__(learning_rate, batch_size, **with_device_of(base, training))
        plans_actions = getattr(layout_of(base), "plan_actions", False)
        if number("first_action_weight", first_action_weight, above=0) != 1 and not plans_actions:
            raise ValueError(f"first_action_weight is {first_action_weight}, it must be 1 where no actions are planned")
        check_buffer(buffer_size, batch_size, base.event_shape)
        if flag("value_units", value_units) and number("value_coef", value_coef) <= 0:
            raise ValueError(f"value_units needs values to be matched, value_coef is {value_coef}")
        self.base = base
        self.expert = expert
        self.buffer_size: int = native(buffer_size)
        self.n_epochs = whole("n_epochs", n_epochs, 1)
        self.value_coef: float = number("value_coef", value_coef, lowest=0)
        self.n_value_draws = whole("n_value_draws", n_value_draws, 0)
        self.value_units = flag("value_units", value_units)
        self.n_step_rows = whole("n_step_rows", n_step_rows, 1)
        self.row_weighting = flag("row_weighting", row_weighting)
        self.first_action_weight: float = native(first_action_weight)
        self.row_floor: float = number("row_floor", row_floor, above=0)
        self.value_clip: float = number("value_clip", value_clip, above=0)
        default: tuple[Head, ...] = ("window", "step") if layout_of(base) is not None else ("window",)
        self.heads = default if heads is None else tuple(heads)
        self.window_kwargs: dict[str, Any] = native(window_kwargs or {})
        self.step_kwargs: dict[str, Any] = native(step_kwargs or {})
        self._setup_model()

    def _setup_model(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            reward = RelativeReward.for_model(
                self.base,
                heads=self.heads,
                window_kwargs=self.window_kwargs,
                step_kwargs=self.step_kwargs,
                value_units=self.value_units,
            )
        self._start_from(reward)
        self._targets: Targets | None = None
        self._step_rows: StepRows | None = None
        self._buffer_state: Tensor | None = None
        self._steps_in_buffer = 0
        self._units: dict[str, Tensor] = {}

    @property
    def reward(self) -> RelativeReward:
        """The extracted reward (averaged weights)."""
        return self.averaged

    @usual_torch()
    def learn(
        self,
        data: Data = None,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        *,
        pairs: Targets | None = None,
        eval_dataset: Data = None,
        fit_dataset: Data = None,
        **options: Unpack[LearnOptions],
    ) -> Self:
        """
        Fit ρ at noised events from ``data``; one timestep is one gradient step.

        Further keywords are those of `LearnOptions`.

        :param data: where scores are compared: a dataset, several (an equal share of each), clean normalised events
            (N, *event_shape), None for the models' own samples, or pairs recorded earlier, which hold the
            predictions of both models
        :param total_timesteps: gradient steps to take
        :param callback: SB3 callback(s)
        :param pairs: where the models were compared already, e.g. along guided sampling: half of every buffer
        :param eval_dataset: what is held out, of the kinds of ``data``: ``dataset, eval_dataset = dataset.split(0.1)``
            divides by episode; None for nothing
        :param fit_dataset: what :attr:`fit_report` is measured at, of the kinds of ``data`` and held out; None for
            ``eval_dataset``, and where there is none for events of ``data`` with new noise
        :return: self
        :raises TypeError: when called without ``total_timesteps`` or with data of another kind
        :raises ValueError: when data do not fit the models
        """
        check_options("learn", options, LearnOptions)
        if total_timesteps is None:
            raise TypeError("learn() lacks total_timesteps; call it as extractor.learn(dataset, total_timesteps=3_000)")
        total_timesteps = whole("total_timesteps", total_timesteps, 0)
        loss = None if eval_dataset is None else self._held_out_loss(eval_dataset)
        watch = self._watch(loss, total_timesteps, options)
        held_out = eval_dataset if fit_dataset is None else fit_dataset
        fit_events = None if held_out is None else self._fit_events(held_out)
        self._draw_buffer = self._source(data, pairs)
        self._targets = None
        if options.get("reset_num_timesteps", True):
            self._buffer_state, self._units, self._steps_in_buffer = None, {}, 0
        self.averaged.fit = None  # of weights that change now
        self._learn(total_timesteps, callback, options, watch)
        self._keep_fit(data, fit_events, held_out is not None and not shares_data(data, held_out))
        return self

    def _draw(self) -> Batch:
        targets = self._current_targets()
        if self._step_rows is None or self._step_rows.targets is not targets:
            self._step_rows = self._step_rows_of(targets)
        return self._at(self._step_rows, randint(len(targets), (self.batch_size,), self.generator, self.device))

    def _at(self, step_rows: StepRows | None, index: Tensor) -> Batch:
        """Which targets the window head learns from; where there is a step head, from which it does."""
        return index, *(() if step_rows is None else step_rows.draw(index, self.n_step_rows, self.generator))

    def _step_rows_of(self, targets: Targets) -> StepRows | None:
        return StepRows(targets, self.module.pinned, self.module.n_clean_levels) if "step" in self.heads else None

    def _held_out_loss(self, data: Data) -> Callable[[], float]:
        seed = torch.Generator().manual_seed(0 if self.seed is None else self.seed)
        targets = self._source(data, None)(N_HELD_OUT, seed).to(self.device)
        rows, index = self._step_rows_of(targets), torch.arange(len(targets), device=self.device)

        def loss() -> float:
            with torch.enable_grad(), self._judged():  # of ρ with respect to events
                return float(self._loss_of(self._at(rows, index), targets)[0].detach())

        return loss

    def _loss_of(self, batch: Batch, targets: Targets | None = None) -> tuple[Tensor, Values]:
        known: Any = self._targets if targets is None else targets
        losses: dict[str, Tensor] = {}
        for head in self.heads:
            losses |= self._window_losses(known, batch[0]) if head == "window" else self._step_loss(known, *batch[1:])
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def _window_losses(self, targets: Targets, index: Tensor) -> dict[str, Tensor]:
        """Gradient matching and, where there are values, value matching of the window head."""
        t = targets.t[index]
        inputs = targets.x_t[index].requires_grad_(True)
        rho = self.module(inputs, t, "window").float()
        weight = self._entry_weight()
        gradient = self._gradient_loss(rho, inputs, t, targets.eps_difference[index], self.module.pinned, weight)
        losses = {"window_gradient": gradient}
        if targets.value is not None and self.value_coef > 0:
            error = (rho - targets.value[index]) / self._units["value_spread"][t]
            value = nn.functional.huber_loss(error, torch.zeros_like(error), delta=self.value_clip)
            losses["value"] = self.value_coef * value
        return losses

    def _step_loss(self, targets: Targets, index: Tensor, chosen: Tensor, n_free: Tensor) -> dict[str, Tensor]:
        """Gradient matching of the step head at what `StepRows` has drawn."""
        windows, rows = index.repeat_interleave(self.n_step_rows), chosen.flatten()
        t, x0 = targets.t[windows], clean_events(targets)
        inputs = self.module.step_inputs(x0[windows, rows], targets.x_t[windows, rows], t).requires_grad_(True)
        rho = self.module.forward_steps(inputs, t).float()
        pinned, weight = self.module.pinned[rows], self._row_weight(rows)
        wanted = targets.eps_difference[windows, rows]
        n = n_free.sum().float()
        return {"step_gradient": self._gradient_loss(rho, inputs, t, wanted, pinned, weight, n)}

    def _gradient_loss(
        self, rho: Tensor, inputs: Tensor, t: Tensor, eps_difference: Tensor, pinned: Tensor, *how: Tensor | None
    ) -> Tensor:
        scale, sigma = self.module.gradient_scale[t], self.base.process.sigma(t)
        return gradient_loss(rho, inputs, eps_difference, scale, sigma, pinned, *how)

    def _row_weight(self, rows: Any) -> Tensor | None:
        """Weights (n, 1) of some rows of a window; None where all count the same."""
        return self._units["row_weight"][rows, None] if "row_weight" in self._units else None

    def _entry_weight(self) -> Tensor | None:
        """Weights (H, 1) or (H, D) of a window's entries; None where all count the same."""
        weight = self._row_weight(slice(None))
        layout = layout_of(self.base)
        if self.first_action_weight == 1 or layout is None:
            return weight
        entries = torch.ones(self.module.event_shape, device=self.device) * (1.0 if weight is None else weight)
        entries[layout.present, layout.action_slice] *= self.first_action_weight
        return entries

    # ------------------------------------------------------------------ the buffer of targets

    def _current_targets(self) -> Targets:
        if self._steps_in_buffer >= self.n_epochs * self.buffer_size // self.batch_size:
            self._targets, self._buffer_state, self._steps_in_buffer = None, None, 0
        if self._targets is None:
            self._targets = self._draw_targets()
        self._steps_in_buffer += 1
        return self._targets

    def _source(self, data: Data, pairs: Targets | None) -> Source:
        n_value_draws = self.n_value_draws if self.value_coef > 0 and "window" in self.heads else 0
        return target_source(self.base, self.expert, data, pairs, self.seed, n_value_draws)

    def _draw_targets(self) -> Targets:
        """Draw the buffer from the random state noted for it, so that a resumed run draws the same one again."""
        resuming = self._buffer_state is not None
        generator = twin(self.generator, self._buffer_state)
        self._buffer_state = generator.get_state()
        targets = self._draw_buffer(self.buffer_size, generator).to(self.device)
        if not resuming:
            self.generator.set_state(generator.get_state())
        if not self._units:
            self._fit_units(targets)
        return targets

    def _fit_units(self, targets: Targets) -> None:
        """Fix, once, the units in which heads are compared: RMS of Δs and spread of values per level, rows' weights."""
        process, pinned = self.base.process, self.module.pinned
        if self.value_units and targets.value is None:
            raise ValueError("data was recorded without values, which value_units=True needs")
        matched = targets.value is not None and self.value_coef > 0
        rms, spread, scale = level_units(targets, process, pinned, not self.value_units, matched)
        self._units = {"value_spread": spread.clamp(min=1e-3)}
        for reward in (self.module, self.averaged):
            reward.gradient_scale.copy_(scale)
            if self.value_units:
                reward.value_scale.copy_(spread)
        if self.row_weighting and layout_of(self.base) is not None:
            self._units["row_weight"] = row_weights(targets, rms, pinned, self.row_floor)

    # ------------------------------------------------------------------ persistence

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_draw_buffer"}  # of learn

    def to(self, device: torch.device | str) -> Self:
        """As of every learner; the two models, which stay where they are, may compute elsewhere."""
        super().to(device)
        self._units = {name: value.to(self.device) for name, value in self._units.items()}
        self._targets = None if self._targets is None else self._targets.to(self.device)
        return self

    def _take_env(self, env: Any) -> None:
        self.averaged.check_environment(env)

    def _config(self) -> dict[str, Any]:
        return {
            "reward": self.averaged.to_config(),
            "fingerprint": self.base.fingerprint(),
            "training": {
                **self._training_config(),
                "buffer_size": self.buffer_size,
                "n_epochs": self.n_epochs,
                "value_coef": self.value_coef,
                "n_value_draws": self.n_value_draws,
                "value_units": self.value_units,
                "n_step_rows": self.n_step_rows,
                "row_weighting": self.row_weighting,
                "first_action_weight": self.first_action_weight,
                "row_floor": self.row_floor,
                "value_clip": self.value_clip,
            },
            "steps_in_buffer": self._steps_in_buffer,
        }

    def _extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        return self.module.normalizer_tensors()

    def _random_state(self) -> dict[str, Tensor]:
        return self._units if self._buffer_state is None else {"buffer": self._buffer_state, **self._units}

    def _set_random_state(self, state: Mapping[str, Tensor]) -> None:
        if set(state) - {"generator", "buffer", *UNITS} or ("buffer" in state and UNITS[0] not in state):
            raise ValueError(f"the random state holds {printable(sorted(state))}, wanted a buffer and {UNITS}")
        self._buffer_state = state.get("buffer")
        if self.fast_noise and "buffer" in state and state["buffer"].shape != self.generator.get_state().shape:
            self._buffer_state = None  # of another kind of device
        if self._buffer_state is not None:
            set_generator_state(twin(self.generator), self._buffer_state)
        self._units = {name: state[name].to(self.device) for name in UNITS if name in state}
        check_units(self._units, len(self.module.gradient_scale), self.module.event_shape[0])

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> RelativeReward:
        return RelativeReward.from_config(config["reward"], tensors, kwargs.get("network"))

    @classmethod
    def _from_config(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        base: ScoreModel | None = None,
        expert: ScoreModel | None = None,
        network: type[nn.Module] | None = None,
    ) -> Self:
        if base is None or expert is None:
            raise ValueError("an extractor needs its two models: RewardExtractor.load(path, base=base, expert=expert)")
        check_models(base, expert)
        if config["fingerprint"] != base.fingerprint():
            raise ValueError(f"it was made for {config['fingerprint']}, base and expert are {base.fingerprint()}")
        reward = config["reward"]
        extractor = cls(
            base,
            expert,
            heads=reward["heads"],
            window_kwargs=restored_window(reward["window_kwargs"], network),
            step_kwargs=reward["step_kwargs"],
            **training_arguments(config),
        )
        extractor._steps_in_buffer = int(config["steps_in_buffer"])
        extractor.averaged.fit = FitReport.from_dict(reward.get("fit"))
        return extractor
