"""What an extraction measures of itself: a fit report when learning ends, and R² where the steered base goes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rrpolicy.common.arguments import whole
from rrpolicy.common.learner import Learner
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.common.processes import current
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.events import draw_events
from rrpolicy.rewards.fit_report import FitReport
from rrpolicy.rewards.measured_fit import N_EVENTS, clipped_share, measured_fit, unfitted_levels
from rrpolicy.rewards.metrics import SteeringCheck, check_steering
from rrpolicy.rewards.recorded import RecordedPairs
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.sources import target_source
from rrpolicy.rewards.targets import Targets


class MeasuredLearner(Learner[RelativeReward]):
    """A learner of relative rewards that measures what it has learned; the base of `RewardExtractor`."""

    base: ScoreModel
    expert: ScoreModel
    value_clip: float
    _targets: Targets | None
    _units: dict[str, Tensor]

    @property
    def fit_report(self) -> FitReport | None:
        """What the last ``learn`` or :meth:`measure_fit` found; None before. The reward keeps it as ``reward.fit``."""
        return self.averaged.fit

    @usual_torch()
    def measure_fit(self, data: Any = None, n_events: int = N_EVENTS) -> FitReport:
        """
        Measure the fit at data that were held out, and keep the report in place of the one that ``learn`` made.

        :param data: of the kinds of ``learn``, held out; None for new samples of the two models
        :param n_events: clean events to look at
        :return: what ``reward.fit`` is from now on
        """
        fit = self._measured_fit(self._fit_events(data, whole("n_events", n_events, 2)), True)
        self.averaged.fit = fit
        return fit

    @usual_torch()
    def check_steering(self, data: Any = None, n_events: int = 256, **steering: Any) -> SteeringCheck:
        """
        Whether what was learned holds where the steered base goes; where it does not, ``advice`` says what to do.

        :param data: held out, of the kinds of ``learn`` but recorded pairs; None for the models' own samples
        :param n_events: events of the data, and as many samples of the steered base
        :param steering: ``n_sampling_steps``, ``scale``, ``max_shift``, ``solver`` of guided sampling
        :return: R² at the data (``recorded``) and where the steered base goes (``steered``), ``suffices`` and
            ``advice``, a sentence that is empty where no remedy is needed
        """
        x0 = draw_events(data, self.base, self.expert, whole("n_events", n_events, 2), self._fit_seed)
        return check_steering(self.averaged, self.base, self.expert, x0, self._fit_seed - 1, **steering)

    def set_parameters(self, parameters: Mapping[str, Mapping[str, Any]], exact_match: bool = True) -> None:
        """As of every learner; a fit report of other weights is dropped."""
        super().set_parameters(parameters, exact_match)
        self.averaged.fit = None

    def _fit_events(self, data: Any, n_events: int = N_EVENTS) -> Any:
        """
        Where the fit is to be measured, drawn before anything is learned: clean events, or recorded pairs.

        :raises TypeError: for data of another kind
        :raises ValueError: for data that do not fit the models
        """
        if isinstance(data, RecordedPairs):
            target_source(self.base, self.expert, data, None, self.seed, 0)  # of the same models
            return data
        return draw_events(data, self.base, self.expert, n_events, self._fit_seed)

    def _keep_fit(self, data: Any, events: Any, held_out: bool) -> None:
        """
        Measure the fit when learning ends, and warn of a reward that says nothing.

        :param data: what was learned from
        :param events: what :meth:`_fit_events` drew; None: those of the last buffer, with new noise
        :param held_out: whether they were not learned from
        """
        if not self.num_timesteps or (events is None and self._targets is None):  # nothing has been learned
            return
        if events is None:
            x0 = None if self._targets is None else self._targets.x0
            events = self._fit_events(data) if x0 is None else self._some_of(x0)
        self.averaged.fit = fit = self._measured_fit(events, held_out)
        for doubt in fit.warnings() if current().is_main else ():
            warnings.warn(doubt, RrpolicyWarning, stacklevel=4)

    def _some_of(self, x0: Tensor) -> Tensor:
        order = torch.randperm(len(x0), generator=torch.Generator().manual_seed(self._fit_seed))
        return x0[order[:N_EVENTS].to(x0.device)]

    @property
    def _fit_seed(self) -> int:
        """Another one than that of learning."""
        return 1 if self.seed is None else self.seed + 1

    def _measured_fit(self, events: Any, held_out: bool) -> FitReport:
        fit = measured_fit(self.averaged, self.base, self.expert, events, held_out, self._fit_seed)
        if self._targets is None:
            return fit
        fit = replace(fit, unfitted_levels=unfitted_levels(self._targets.t, self.base.process.n_diffusion_steps))
        if "window" not in self.averaged.heads:
            return fit
        spread = self._units["value_spread"]
        return replace(fit, clipped=clipped_share(self.averaged, self._targets, spread, self.value_clip))


def shares_data(data: Any, held_out: Any) -> bool:
    """Whether something that was learned from is among what is held out."""
    one, other = (list(part) if isinstance(part, Sequence) else [part] for part in (data, held_out))
    return any(a is b for a in one for b in other)
