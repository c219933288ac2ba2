"""The bar of a training: work between steps is shown, and what comes before the first does not spoil the estimate."""

import re
import time
from types import SimpleNamespace

import pytest

from rrpolicy.common.callbacks import StepProgressBar, note, stop_noting


def remaining(text: str) -> float:
    """Seconds that the last bar of some output says are left."""
    minutes, seconds = re.findall(r"<(\d+):(\d+),", text)[-1]
    return 60 * int(minutes) + int(seconds)


def test_work_before_the_first_step_is_shown_and_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    bar = StepProgressBar(1000)
    bar.init_callback(SimpleNamespace(get_env=lambda: None, num_timesteps=0, logger=None))  # type: ignore[arg-type]
    bar.on_training_start({}, {})
    try:
        for quarter in range(1, 5):
            time.sleep(0.15)
            note("targets", quarter / 4)
        first = time.monotonic()
        while time.monotonic() - first < 0.35:
            time.sleep(0.005)
            bar.on_step()
        shown = capsys.readouterr().err
        assert all(f"targets {share}%" in shown for share in (25, 50, 75)) and "targets 100%" not in shown
        assert remaining(shown) < 25  # 1000 steps of some 5 ms; with the targets' time, the first bars say minutes
        assert max(map(remaining, re.findall(r"\r[^\r]*<\d+:\d+,[^\r]*", shown))) < 60
    finally:
        stop_noting()
    note("targets", 0.5)
    assert capsys.readouterr().err == ""
    bar.on_training_end()
