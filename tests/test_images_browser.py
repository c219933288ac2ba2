"""The audit page in a real browser, phone and desktop: hostile names, nested folders, one class, many pictures."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import WIDTHS, browsed

from rrpolicy.images.audit import write_audit
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.null import Null

EVIL = '"><img src="http://example.org/x.png" onerror="console.log(1)"><style>*{width:9999px}</style>&amp;\u202e\x00\n'
WORD = "unbroken" * 32  # as long as a file system lets a name be
RNG = np.random.default_rng(0)


def hostile(n: int) -> dict[str, Any]:
    """Every text that an audit takes is hostile, in one way or another."""
    scores = RNG.normal(size=n)
    scores[0] = 1e12
    return {
        "names": [f"{i}{EVIL}{WORD}.png" for i in range(n)],
        "labels": [(EVIL, WORD, "")[i % 3] for i in range(n)],
        "unwanted": [EVIL],
        "per_level": ([0, 5], [scores, -scores]),
        "left_out": [(EVIL + WORD, WORD + EVIL)] * 3,
        "samples": {EVIL: images(2), WORD: images(2)},
        "prompts": [EVIL, WORD],
        "not_read": f"3 {WORD}",
        "title": EVIL + WORD,
        "scores": scores,
        "unlike": np.arange(n) % 7 == 1,
        "null": Null([EVIL, WORD], [scores, scores]),
        "evidence": Evidence(support=WORD, facts=((EVIL, WORD), (WORD, EVIL))),
    }


def images(n: int) -> Any:
    return RNG.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def nested(n: int) -> dict[str, Any]:
    """Folders in folders, as deep as paths go."""
    folders = ["/".join([f"a folder of level {level}" for level in range(1 + i % 40)]) for i in range(n)]
    return {
        "scores": RNG.normal(size=n),
        "names": [f"{one}/{i}.png" for i, one in enumerate(folders)],
        "labels": folders,
        "unwanted": folders[:3],
    }


def one_class(n: int) -> dict[str, Any]:
    return {"scores": np.full(n, 0.25), "labels": ["the only one"] * n, "unwanted": ["the only one"]}


def many(n: int) -> dict[str, Any]:
    """Each picture in a folder of its own, and an outlier."""
    return {
        "scores": np.append(RNG.normal(size=n - 1), -1e6),
        "labels": [f"class {i}" for i in range(n)],
        "names": [f"class {i}/{i}.png" for i in range(n)],
        "unwanted": [f"class {i}" for i in range(n // 2)],
        "per_level": ([0, 1, 2], RNG.normal(size=(3, n))),
    }


MORE = [pytest.param(*one, marks=pytest.mark.slow) for one in ((many, 5000), (nested, 200), (one_class, 12))]


@pytest.mark.parametrize(("make", "n"), [(hostile, 60), *MORE])
def test_the_page_fits_and_asks_for_nothing(make: Any, n: int, tmp_path: Path) -> None:
    start = time.process_time()
    page = write_audit(tmp_path, images(n), **make(n)).read_text(encoding="utf-8")
    assert time.process_time() - start < 10 and len(page) < 2**20
    report, console = browsed(page, tmp_path)
    assert console == "" and {390, 1280} <= set(WIDTHS)
    for width in WIDTHS:
        found = report[str(width)]
        assert found["scroll"] <= width and found["widest"] <= width, (width, found)
        assert (found["broken"], found["requests"]) == (0, 0) and found["images"] == page.count("<img") > 0
        assert found["smallest"] >= 12


def test_five_thousand_pictures_take_no_time(tmp_path: Path) -> None:
    start = time.process_time()
    for make in (one_class, many):
        write_audit(tmp_path, images(5000), **make(5000))
    assert time.process_time() - start < 5
