"""The audit page says what it was told, asks for nothing, and fits a phone and a desktop in a real browser."""

import base64
import io
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import WIDTHS, browsed
from PIL import Image

from rrpolicy.common.stats import auroc
from rrpolicy.images.audit import write_audit
from rrpolicy.images.audit_pictures import N_EXTREME, N_LEFT_OUT, N_RANKED
from rrpolicy.images.charts import curve, histograms, signed
from rrpolicy.images.evidence import LIMITS, Evidence
from rrpolicy.images.page import POLICY

EVIL = '<img src="http://example.org/x.png" onerror="console.log(1)">&amp;'
SOURCE = re.compile(r'<img[^>]*src="data:image/(?:png|jpeg);base64,([^"]+)"')


def arguments(n: int = 40) -> dict[str, Any]:
    """Images whose brightness is their rank: number i has score i - n / 2 and is wanted from n / 4 on."""
    images = np.repeat(np.arange(n, dtype=np.uint8), 64).reshape(n, 8, 8, 1)
    scores = np.arange(n) - n / 2
    labels = ["bad" if i < n / 4 else "good" for i in range(n)]
    return {
        "images": images,
        "scores": scores,
        "labels": labels,
        "unwanted": ["bad"],
        "names": [f"a/long/path/{i}_{EVIL}.png" for i in range(n)],
        "per_level": ((50, 0), np.stack([scores % 7, scores])),
        "samples": {EVIL: images[:4], "steered": np.repeat(images[:4], 3, axis=-1)},
        "title": f"Title {EVIL}",
    }


def written(folder: Path, **changes: Any) -> str:
    return write_audit(folder, **{**arguments(), **changes}).read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    return page.split(f'<h2 id="{name}">')[1].split("</section>")[0]


def greys(html: str) -> list[int]:
    pictures = (Image.open(io.BytesIO(base64.b64decode(source))) for source in SOURCE.findall(html))
    return [int(np.asarray(picture).ravel()[0]) for picture in pictures]


# ---------------------------------------------------------------------- content


def test_extremes_and_ranking_are_in_order(tmp_path: Path) -> None:
    page = written(tmp_path)
    highest, lowest = section(page, "extremes").split("Lowest ρ")
    assert greys(highest) == list(range(39, 19, -1)) and greys(lowest) == list(range(20))
    assert re.findall(r"<b>(.\d+\.\d+)</b>", highest)[0] == "+19.00" and "−20.00" in lowest
    ranking = section(page, "ranking")
    assert greys(ranking) == list(range(39, -1, -1)) and "All 40 images" in ranking
    many = written(tmp_path, **arguments(200))
    assert len(greys(section(many, "extremes"))) == 2 * N_EXTREME


def test_long_rankings_are_thinned_evenly(tmp_path: Path) -> None:
    n = 1000
    page = write_audit(tmp_path, np.zeros((n, 2, 2, 3), np.uint8), np.arange(n)).read_text(encoding="utf-8")
    ranks = [int(rank) for rank in re.findall(r'<th scope="row">(\d+)</th>', section(page, "ranking"))]
    assert len(ranks) == N_RANKED and (ranks[0], ranks[-1]) == (1, n) and set(np.diff(ranks)) <= {4, 5}
    assert f"{N_RANKED} of 1,000 images" in page


def test_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    page, given = written(tmp_path), arguments()
    wanted = np.array([label == "good" for label in given["labels"]])
    assert "<dd>1.000<small>" in page and "<dd>50%<small>" in page
    levels = re.findall(r'<th scope="row">(\d+)</th><td>([\d.]+)</td>', section(page, "levels"))
    at_50 = auroc(given["per_level"][1][0], wanted).value
    assert levels == [("0", "1.000"), ("50", f"{at_50:.3f}")]
    rows = re.findall(
        r'<th scope="row">(\w+)(?:<small>unwanted</small>)?</th><td>(\d+)</td><td>([^<]+)</td>',
        section(page, "distribution"),
    )
    assert rows == [("good", "30", "+4.50"), ("bad", "10", "−15.50")]
    assert section(page, "distribution").count('class="bars low"') == 1


def test_the_page_is_whole_without_labels_levels_and_samples(tmp_path: Path) -> None:
    page = write_audit(tmp_path / "new", [np.zeros((300, 200, 3), np.uint8)], [0.5]).read_text(encoding="utf-8")
    assert "AUROC" not in page and "side by side" not in page and 'id="distribution"' in page
    pictures = [Image.open(io.BytesIO(base64.b64decode(source))) for source in SOURCE.findall(page)]
    assert [(picture.size, picture.format) for picture in pictures] == [((107, 160), "JPEG")] * 2 + [((53, 80), "JPEG")]
    only = written(tmp_path, unwanted=["bad", "good"])
    assert "AUROC" not in only


class Counting(list[Any]):
    """Images that count how often they are asked for."""

    asked = 0

    def __getitem__(self, i: Any) -> Any:
        self.asked += 1
        return super().__getitem__(i)

    def __iter__(self) -> Any:
        raise AssertionError("all images at once")


def test_only_images_that_are_shown_are_asked_for(tmp_path: Path) -> None:
    images = Counting([np.zeros((2, 2, 3), np.uint8)] * 2000)
    write_audit(tmp_path, images, np.arange(2000))
    assert images.asked == 2 * N_EXTREME + N_RANKED


def test_files_that_were_left_out_are_listed(tmp_path: Path) -> None:
    assert 'id="left-out"' not in written(tmp_path)
    some = [(f"{EVIL}/{os.fsdecode(bytes([233]))}.png", "the file is empty"), ("b.jpg", "is a JPEG of 33 scans")]
    page = written(tmp_path, left_out=some, not_read="3 .avif", names=[os.fsdecode(b"\xe9")] * 40)
    rows = re.findall(r'<th scope="row">([^<]*)</th><td class="left">([^<]*)</td>', section(page, "left-out"))
    assert [unescape(name) for name, _ in rows] == [f"{EVIL}/\\udce9.png", "b.jpg"] and rows[1][1] == some[1][1]
    assert "<dt>Left out</dt><dd>2<small>" in page and "by suffix: 3 .avif." in page and "\\udce9" in page
    many = section(written(tmp_path, left_out=some * 1000), "left-out")
    assert many.count('scope="row"') == N_LEFT_OUT
    assert f"2,000 files that could not be read, the first {N_LEFT_OUT} of them" in many
    assert "<table" not in section(written(tmp_path, not_read="3 .avif"), "left-out")


def test_a_histogram_has_its_bars_where_the_values_are() -> None:
    html = histograms([0.0, 0.0, 10.0], {"a": [True, True, True], "none": [False] * 3})
    lefts, tops = zip(*re.findall(r"M([\d.]+) 100V([\d.]+)", html), strict=True)
    assert [float(left) < 50 for left in lefts] == [True, False] and tops == ("8.0", "54.0")
    assert html.count("<i ") == 1 and 'class="mark"' in html
    assert '<i style="left:50.00%">' in histograms([3.0, 3.0], {"a": [True, True]})
    assert "+0.002" in histograms([-0.004, 0.004], {"a": [True, True]})


def test_a_curve_spans_its_levels() -> None:
    html = curve([0, 10, 20], [0.5, 1.0, 0.75], [0.45, 0.9, 0.7], [0.55, 1.0, 0.8])
    assert 'd="M0.00 83.33L50.00 0.00L100.00 41.67"' in html
    assert curve([3], [0.2], [0.1], [0.3]).count("<i ") == 1
    assert (signed(-0.5), signed(2, 0)) == ("−0.50", "+2")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"scores": np.zeros(39)}, r"scores has shape \(39,\) for 40 images"),
        ({"scores": np.full(40, np.nan)}, "finite"),
        ({"images": [], "scores": []}, "n >= 1"),
        ({"labels": ["a"]}, "labels has 1 entries, wanted one for each of 40"),
        ({"names": ["a"]}, "names has 1 entries"),
        ({"unwanted": ["worse"]}, r"unwanted is \['worse'\]"),
        ({"per_level": ((0,), np.zeros((2, 40)))}, r"per_level has scores \(2, 40\)"),
        ({"samples": {"a": np.zeros((1, 4, 4), np.uint8)}}, r"an image is uint8 \(4, 4\)"),
        ({"images": np.zeros((40, 4, 4, 1))}, "an image is float64"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        written(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- safety and layout


def test_nothing_is_asked_for_and_nothing_runs(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert POLICY in page and "default-src 'none'" in POLICY and "<script" not in page
    assert "&lt;img src=&quot;http://example.org" in page and "<img src=" not in page
    assert {source[:5] for source in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data:"}
    assert re.search(r"url\(|@import", page) is None
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))


def test_the_page_fits_phone_and_desktop(tmp_path: Path) -> None:
    page = written(tmp_path, labels=["bad" if i < 10 else "a-rather-long-label" * 3 for i in range(40)])
    report, console = browsed(page, tmp_path)
    assert console == ""
    for width in WIDTHS:
        measures = report[str(width)]
        assert measures["scroll"] <= width and measures["widest"] <= width
        assert measures["smallest"] >= 12
        assert (measures["broken"], measures["requests"], measures["images"]) == (0, 0, 40 + 40 + 8 + 12 + 10)


def test_the_browser_test_sees_what_is_wrong(tmp_path: Path) -> None:
    wide = '<img src="http://localhost:9/x.png" alt=""><div style="width:900px">wide</div></main>'
    report, console = browsed(written(tmp_path).replace("</main>", wide), tmp_path)
    assert report[str(WIDTHS[0])]["scroll"] >= 900 and report["1280"]["scroll"] <= 1280
    assert report[str(WIDTHS[0])]["broken"] == 1 and "Content Security Policy" in console


# ---------------------------------------------------------------------- what may be said


SCORES = np.array([3.0, -1.0, -2.0])


def page_of(folder: Path, evidence: Evidence) -> str:
    images = [np.full((4, 4, 1), 80 * i, np.uint8) for i in range(3)]
    return unescape(write_audit(folder, images, SCORES, evidence=evidence).read_text(encoding="utf-8"))


def test_an_order_has_no_unit_no_zero_and_no_preference(tmp_path: Path) -> None:
    page = page_of(tmp_path, Evidence(in_nats=False, has_zero=False, level=40))
    assert "orders pictures, here at noise level 40" in page and "It has no unit, no zero and no sign." in page
    body = page[page.index("<body") :]
    for word in ("nats", "prefer", "Below zero", "avoid", "log density"):
        assert word not in body.replace(LIMITS[0], ""), word
    assert body.count('class="is-high"') == 3  # the middle is the median: two above or at it, one of them shown twice


def test_without_a_zero_signs_are_not_spoken_of(tmp_path: Path) -> None:
    page = page_of(tmp_path, Evidence(in_nats=True, has_zero=False))
    assert "in nats" in page and "differences mean something, signs do not" in page
    assert "Below zero" not in page and "What the expert prefers" not in page
    calibrated = page_of(tmp_path, Evidence())
    assert "Below zero" in calibrated and "At zero the two make a picture equally often" in calibrated
    assert "What the expert prefers" in calibrated


def test_the_page_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    odd = b"\xe9".decode(errors="surrogateescape")
    facts = (("base", "models/<b>all</b>"), ("R² of score differences", "0.91"), ("name", odd))
    page = write_audit(tmp_path, [np.zeros((4, 4, 1), np.uint8)], [1.0], evidence=Evidence(facts=facts)).read_text()
    assert "models/&lt;b&gt;all&lt;/b&gt;" in page and '<td class="left">0.91</td>' in page and "\\udce9" in page
    assert all(limit in unescape(page) for limit in LIMITS) and len(LIMITS) == 5
