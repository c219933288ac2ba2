"""Sections of the audit page that an auditor acts on: labels, thresholds, wrong ranks, samples, names."""

import base64
import csv
import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_images_cli import fault, run, world, write_pictures  # noqa: F401

from rrpolicy.cli.label_files import read_labels
from rrpolicy.evaluation import read_results
from rrpolicy.images.audit import write_audit
from rrpolicy.images.audit_numbers import N_LABELS
from rrpolicy.images.audit_pictures import N_SAMPLES, N_WRONG
from rrpolicy.images.charts import axis_ends, histograms
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.folders import find_pictures

SOURCE = re.compile(r'<img[^>]*src="data:image/png;base64,([^"]+)"')


def greys(html: str) -> list[int]:
    pictures = (Image.open(io.BytesIO(base64.b64decode(source))) for source in SOURCE.findall(html))
    return [int(np.asarray(picture).ravel()[0]) for picture in pictures]


def written(folder: Path, n: int = 100, **changes: Any) -> str:
    """Picture number i has the grey i and scores i; the first half is unwanted, but for every tenth."""
    images = np.repeat(np.arange(n, dtype=np.uint8), 4).reshape(n, 2, 2, 1)
    labels = ["good" if i >= n / 2 or i % 10 == 0 else "bad" for i in range(n)]
    given = {"scores": np.arange(n) - 10.0, "labels": labels, "unwanted": ["bad"], **changes}
    return unescape(write_audit(folder, images, **given).read_text(encoding="utf-8"))


def section(page: str, name: str) -> str:
    assert f'<h2 id="{name}">' in page
    return page.split(f'<h2 id="{name}">')[1].split("</section>")[0]


# ---------------------------------------------------------------------- numbers of labels


def test_means_have_intervals(tmp_path: Path) -> None:
    scores = np.array([1.0, 3.0, 5.0, 7.0, -2.0])  # mean 4, standard error (20 / 3 / 4) ** 0.5 = 1.291
    page = write_audit(tmp_path, np.zeros((5, 2, 2, 1), np.uint8), scores, labels=[*"aaaab"]).read_text()
    rows = section(page, "distribution")
    assert "<td>4</td><td>+4.00</td><td>+1.47 to +6.53</td>" in rows
    assert "<td>1</td><td>−2.00</td><td>–</td>" in rows  # one picture has no interval


def test_of_many_labels_those_with_most_pictures_are_shown(tmp_path: Path) -> None:
    labels = [f"{i:03d}" for i in range(100)] + ["200"] * 2
    page = write_audit(tmp_path, np.zeros((102, 2, 2, 1), np.uint8), np.arange(102), labels=labels).read_text()
    rows = section(page, "distribution")
    assert rows.count('scope="row"') == N_LABELS and rows.count('class="plot"') == N_LABELS
    assert '<th scope="row">200</th><td>2</td>' in rows and f"The {N_LABELS} labels with most images, of 101." in rows


def test_thresholds_tell_what_they_keep(tmp_path: Path) -> None:
    # wanted: -10, 0, 10, 20, 30 and 40..89; unwanted: the other 45 below 40
    rows = re.findall(
        r'<th scope="row">([^<]+)</th><td class="left">([^<]+)</td><td>([\d.]+%)<small>[^<]+</small></td><td>([\d.]+%)',
        section(written(tmp_path), "thresholds"),
    )
    assert rows == [
        ("−10.00", "keeps 99% of wanted", "100.0%", "100.0%"),
        ("+0.00", "zero", "98.2%", "80.0%"),
        ("+10.00", "keeps 95% of wanted", "96.4%", "60.0%"),
        ("+40.00", "keeps 90% of wanted", "90.9%", "0.0%"),
        ("+62.00", "keeps 50% of wanted", "50.9%", "0.0%"),
    ]
    page = written(tmp_path, evidence=Evidence(has_zero=False))
    assert ">zero<" not in section(page, "thresholds") and "n = 55" in section(page, "thresholds")
    for unwanted in ([], ["good", "bad"]):
        assert 'id="thresholds"' not in written(tmp_path, unwanted=unwanted)


def test_the_most_wrongly_ranked_are_shown(tmp_path: Path) -> None:
    low, high = section(written(tmp_path), "wrong").split("Highest unwanted")
    assert greys(low) == [0, 10, 20, 30, 40, *range(50, 57)] and len(greys(low)) == N_WRONG
    assert greys(high) == [49, 48, 47, 46, 45, 44, 43, 42, 41, 39, 38, 37]
    flags = np.arange(100) < 11
    low, high = section(written(tmp_path, unlike=flags), "wrong").split("Highest unwanted")
    assert greys(low)[0] == 20  # flagged pictures are not judged
    assert 'id="wrong"' not in written(tmp_path, unwanted=[])


def test_pictures_without_a_label_are_neither_wanted_nor_unwanted(tmp_path: Path) -> None:
    labels = ["bad"] * 2 + ["good"] * 2 + [None] * 2
    scores = np.array([0.0, 1.0, 2.0, 3.0, -9.0, 9.0])
    images = np.repeat(np.arange(6, dtype=np.uint8), 4).reshape(6, 2, 2, 1)
    page = write_audit(tmp_path, images, scores, labels=labels, unwanted=["bad"]).read_text()
    assert "<dt>AUROC</dt><dd>1.000<small>" in page and greys(section(page, "wrong")) == [2, 3, 1, 0]
    assert '<th scope="row">unlabelled</th><td>2</td>' in page


# ---------------------------------------------------------------------- names and samples


def test_names_are_text(tmp_path: Path) -> None:
    names = [f"some/folder/with-a-long-name/number-{i:03d}.png" for i in range(100)]
    page = written(tmp_path, names=names)
    for part in ("extremes", "wrong"):
        assert "<span>…" in section(page, part) and "number-049.png</span>" in section(page, "wrong")
    short = written(tmp_path, names=[f"{i}.png" for i in range(100)], labels=None, unwanted=[])
    assert "<b>+89.00</b><span>99.png</span>" in section(short, "extremes")


def test_samples_stand_under_their_prompts(tmp_path: Path) -> None:
    prompts = ["a <b>cat</b>", "a dog"]
    samples = {
        name: np.full((2, 2, 2, 1), grey, np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None, None]
        for name, grey in (("model alone", 10), ("scale 1", 20), ("expert", 30))
    }
    images, scores = np.zeros((1, 2, 2, 1), np.uint8), [0.0]
    page = write_audit(tmp_path, images, scores, samples=samples, prompts=prompts).read_text()
    first, second = section(page, "samples").split("<h3>")[1:]
    assert first.startswith("a &lt;b&gt;cat&lt;/b&gt;</h3>") and second.startswith("a dog</h3>")
    assert (greys(first), greys(second)) == ([10, 20, 30], [11, 21, 31])
    assert [re.findall("<figcaption>([^<]+)", one) for one in (first, second)] == [[*samples]] * 2
    many = {"model alone": np.zeros((20, 2, 2, 1), np.uint8)}
    page = write_audit(tmp_path, images, scores, samples=many, prompts=["a"] * 20).read_text()
    assert section(page, "samples").count("<img") == N_SAMPLES and f"The first {N_SAMPLES} of 20." in page
    with pytest.raises(ValueError, match=r"samples are {'model alone': 20}, wanted one for each of 2 prompts"):
        write_audit(tmp_path, images, scores, samples=many, prompts=prompts)


def test_an_audit_shows_base_steered_and_expert(world: Path, tmp_path: Path) -> None:  # noqa: F811
    options = (
        "audit",
        world / "pictures",
        "--reward",
        world / "reward",
        "--levels",
        0,
        "--n",
        3,
        "--scales",
        "0,1",
        "--out",
        tmp_path / "out",
        "--no-progress",
    )
    run(*options, "--model", world / "base", "--expert", world / "expert")
    samples = section((tmp_path / "out" / "index.html").read_text(), "samples")
    assert re.findall("<h3>([^<]+)", samples) == ["model alone", "scale 1", "expert"] and samples.count("<img") == 9
    run("sample", "--model", world / "expert", "--n", 3, "--out", tmp_path / "drawn")
    drawn = [np.asarray(Image.open(path)).ravel()[0] for path in sorted((tmp_path / "drawn").glob("*.png"))]
    assert greys(samples)[6:] == drawn  # the expert's own, from the same noise
    assert "an expert's samples are shown beside" in fault(*options, "--expert", world / "expert")


# ---------------------------------------------------------------------- histograms


def test_one_outlier_does_not_stretch_the_axis() -> None:
    values = np.concatenate([np.linspace(-1, 1, 200), [1000.0]])
    assert axis_ends(values) == pytest.approx((-1.0, 1.99), abs=0.03)
    html = histograms(values, {"a": np.ones(201, dtype=bool)})
    bars = [(float(left), float(top)) for left, top in re.findall(r"M([\d.]+) 100V([\d.]+)", html)]
    assert len(bars) > 20 and max(left for left, _ in bars) > 95  # spread out, and the outlier in the last bar
    assert "In the last bars: 1 further right, up to +1000.00" in html and "further left" not in html
    assert all(0 <= float(left) <= 100 for left in re.findall(r'<i style="left:([-\d.]+)%', html))
    both = histograms(-np.concatenate([values, [-500.0]]), {"a": np.ones(202, dtype=bool)})
    assert "1 further left, down to −1000.00; 1 further right, up to +500.00" in both
    assert "further" not in histograms(values[:-1], {"a": np.ones(200, dtype=bool)})
    assert "1 further right, up to +9.00" in histograms([*[2.0] * 20, 9.0], {"a": np.ones(21, dtype=bool)})


def test_long_names_of_groups_are_cut_in_front() -> None:
    name = "a/" * 100 + "last"
    html = histograms([0.0, 1.0], {name: [True, True], "short": [True, False]})
    assert f"<b>…{name[-59:]}</b>" in html and "<b>short</b>" in html


def test_axes_of_usual_scores_are_their_range() -> None:
    for values in (np.random.default_rng(0).normal(size=500), np.arange(8.0), np.array([0.0, 1.0, 100.0])):
        assert axis_ends(values) == (values.min(), values.max())


# ---------------------------------------------------------------------- labels from a table


def labelled(folder: Path, text: str, name: str = "labels.csv") -> tuple[list[str | None], str]:
    """The labels of the pictures bright/0, bright/1, bright/2, dark/0, dark/1, dark/2, dark/only."""
    write_pictures(folder / "p")
    Image.new("L", (8, 8)).save(folder / "p" / "dark" / "only.png")
    (folder / name).write_text(text)
    pictures, told = read_labels(folder / name, folder / "p", find_pictures([folder / "p"]).pictures)
    return [one.label for one in pictures], told


@pytest.mark.parametrize(
    ("text", "wanted", "told"),
    [
        ("path,label\nbright/0.png,cat\ndark/0.png,dog\n", {0: "cat", 3: "dog"}, "5 pictures without a row: "),
        ("score,Label;x,PATH\n.5,cat,dark/1.png\n", {4: "cat"}, "1 pictures labelled"),
        ("\ufefflabel;filename\ncat;only.png\n", {6: "cat"}, "6 pictures without a row"),
        (
            "path,label\nonly.png,a\n0.png,b\nno/only.png,a\ngone.png,c\n",
            {6: "a"},
            "1 of them by file name alone; 6 pictures without a row",
        ),
        ("path,label\nonly.png,a\n0.png,b\ngone.png,c\n", {6: "a"}, "2 rows without a picture: 0.png, gone.png"),
        (
            "path,label\n./bright//0.png,cat\ndark\\1.png,dog\nbright/1.png,\nbright/2.png\n",
            {0: "cat", 4: "dog"},
            "5 pict",
        ),
    ],
)
def test_labels_are_matched_by_path_or_by_name(text: str, wanted: dict[int, str], told: str, tmp_path: Path) -> None:
    labels, said = labelled(tmp_path, text.replace("Label;x", "Label"))
    assert {i: label for i, label in enumerate(labels) if label is not None} == wanted and told in said


def test_labels_may_have_the_paths_that_scores_have(tmp_path: Path) -> None:
    assert labelled(tmp_path, f"path,label\n{tmp_path}/p/dark/2.png,x\n")[0][5] == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", r"labels.csv: wanted the columns path \(or filename\) and label, there are: a, b"),
        (
            "path,label\nbright/0.png,a\n./bright/0.png,b\n",
            r"labels.csv: has two labels of .*bright/0.png: \['a', 'b'\]",
        ),
        ("path,label\nx.png,a\n", "labels.csv: labels none of the 7 pictures, such as .*bright/0.png"),
        ("", "labels.csv: wanted the columns"),
        ('path,label\n"' + "x" * 2**18, "labels.csv: is no table"),
    ],
)
def test_tables_that_hold_no_labels_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        labelled(tmp_path, text)


def test_an_audit_takes_labels_from_a_table(world: Path, tmp_path: Path) -> None:  # noqa: F811
    table = tmp_path / "labels.csv"
    table.write_text("path,label,score\nbright/0.png,fine,.1\ndark/0.png,gore,.9\ndark/1.png,gore,.8\nx.png,fine,0\n")
    options = (
        "audit",
        world / "pictures",
        "--reward",
        world / "reward",
        "--labels",
        table,
        "--levels",
        0,
        "--out",
        tmp_path / "out",
        "--no-progress",
    )
    said = run(*options, "--unwanted", "gore").output
    assert f"3 pictures labelled by {table}; 3 pictures without a row: " in said
    assert "1 rows without a picture: x.png" in said
    rows = {(row["agent"], row["metric"]): row["n"] for row in read_results(tmp_path / "out")}
    assert rows == {
        ("fine", "rho"): 1,
        ("gore", "rho"): 2,
        ("pictures", "rho"): 3,
        ("wanted", "auroc"): 3,
        ("wanted", "auroc_t0"): 3,
    }
    lines = list(csv.DictReader((tmp_path / "out" / "scores.csv").read_text().splitlines()))
    assert [(line["path"], line["label"]) for line in lines][:2] == [("bright/0.png", "fine"), ("bright/1.png", "")]
    assert "3 pictures without a row" in (tmp_path / "out" / "index.html").read_text()
    assert "--unwanted dark is no label of" in fault(*options, "--unwanted", "dark")
    assert "gone.csv" in fault(*options[:4], "--labels", tmp_path / "gone.csv", "--out", tmp_path / "out")
