"""No file makes a loader do anything but its work or a refusal: a few cases of each here, many with ``tox -e fuzz``."""

import os

import pytest

from fuzz.harness import ACCEPTED, LATE, REFUSED, run
from fuzz.targets import TARGETS, made

N_FEW = 5
N_MANY = int(os.environ.get("FUZZ_CASES", "10000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_damaged_and_hostile_files(name: str) -> None:
    report = run(made(name), range(N_FEW))
    assert not report.failures, "\n".join(report.lines())
    assert len(report.outcomes) == N_FEW


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_and_hostile_files(name: str) -> None:
    report = run(made(name), range(N_MANY), SEED)
    assert not report.failures, "\n".join(report.lines())
    # mutations that are all refused, or none, would not test much
    assert report.count(ACCEPTED) + report.count(LATE) > 0 and report.count(REFUSED) > 0
