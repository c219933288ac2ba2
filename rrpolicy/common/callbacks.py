"""SB3's callbacks for gradient steps: the ways of giving them as one list, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from tqdm.auto import tqdm

MaybeCallback = BaseCallback | Callable[..., bool] | list[BaseCallback] | None


def as_callbacks(callback: MaybeCallback) -> list[BaseCallback]:
    """SB3's ways of giving callbacks (none, one, a list, a function) as one list."""
    if callback is None:
        return []
    given = callback if isinstance(callback, list) else [callback]
    return [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]


class StepProgressBar(BaseCallback):
    """One bar over gradient steps (SB3's own counts environments)."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self._n_steps = n_steps

    def _on_training_start(self) -> None:
        self._bar = tqdm(total=self._n_steps, unit="step", dynamic_ncols=True)

    def _on_step(self) -> bool:
        self._bar.update(1)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()
