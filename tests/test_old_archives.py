"""Archives of earlier versions load and answer as they did."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.old_archives import ANSWERS, ARCHIVES, answers

EXPECTED = json.loads(ANSWERS.read_text(encoding="utf-8"))


def test_each_kept_archive_has_its_answers() -> None:
    assert set(EXPECTED) == {path.stem for path in ARCHIVES.glob("*.zip")}


@pytest.mark.parametrize("path", sorted(ARCHIVES.glob("*.zip")), ids=lambda path: path.stem)
def test_it_answers_as_it_did(path: Path) -> None:
    found = answers(path)
    assert len(found) == len(EXPECTED[path.stem]) > 0
    for mine, kept in zip(found, EXPECTED[path.stem], strict=True):
        np.testing.assert_allclose(mine, kept, rtol=1e-4, atol=1e-5)
