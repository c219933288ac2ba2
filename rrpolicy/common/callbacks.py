"""SB3's callbacks for gradient steps: the ways of giving them as one list, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

_BAR: ContextVar[StepProgressBar | None] = ContextVar("bar", default=None)  # of the training that is running
MaybeCallback = BaseCallback | Callable[..., bool] | list[BaseCallback] | None


def as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    """SB3's ways of giving callbacks (none, one, a list, a function) as one list."""
    if callback is None:
        return []
    given = callback if isinstance(callback, list) else [callback]
    return [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]


def refuse_evaluation(callbacks: Iterable[BaseCallback], learner: Any) -> None:
    """
    Refuse callbacks that evaluate what does not act.

    :param callbacks: and those inside them
    :param learner: what learns
    :raises ValueError: for an ``EvalCallback`` around something that does not act
    """
    for one in callbacks:
        if isinstance(one, EvalCallback) and not hasattr(learner, "predict"):
            raise ValueError(
                f"EvalCallback evaluates what has predict, and {type(learner).__name__} has none: pass eval_dataset= "
                "to learn, or evaluate GuidedPlanner(base, reward) afterwards"
            )
        inner = one.callbacks if isinstance(one, CallbackList) else [getattr(one, "callback", None)]
        refuse_evaluation([each for each in inner if isinstance(each, BaseCallback)], learner)


class NoEnvironment(VecEnv):
    """
    Stands in for an environment where learning has none: callbacks count one step of it for each gradient step.
    """

    def __init__(self) -> None:
        nothing = spaces.Box(-1.0, 1.0, (1,))
        super().__init__(1, nothing, nothing)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None]

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        """
        Refuse an action: there is no environment.

        :raises ValueError: always
        """
        raise ValueError("there is no environment: learning takes gradient steps on data, of which callbacks count one")

    reset = step_async = step_wait = set_attr = env_method = _refuse

    def close(self) -> None:
        """There is nothing to close."""

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False]


def note(what: str, share: float) -> None:
    """
    Show how far a longer piece of work between two gradient steps is, where a training with a progress bar is running.

    :param what: a word for it
    :param share: in (0, 1]; 1 ends it
    """
    bar = _BAR.get()
    if bar is not None:
        bar.note(what, share)


def stop_noting() -> None:
    """What is noted is shown no more: the training has ended, in whichever way."""
    _BAR.set(None)


class StepProgressBar(BaseCallback):
    """
    One bar over gradient steps (SB3's own counts environments).

    The time that is left is estimated by the mean of all steps, work between them included, but for what is done before
    the first one: it would count as the time of each step.
    """

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self._n_steps = n_steps

    def _on_training_start(self) -> None:
        self._bar = tqdm(total=self._n_steps, unit="step", dynamic_ncols=True, smoothing=0)
        _BAR.set(self)

    def note(self, what: str, share: float) -> None:
        """As :func:`note`."""
        self._bar.set_description(f"{what} {share:.0%}" if share < 1 else None)
        if share >= 1 and self._bar.n == 0:
            self._bar.unpause()  # the clock begins with the first step

    def _on_step(self) -> bool:
        self._bar.update(1)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()
