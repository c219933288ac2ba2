"""Published numbers: what a key gives is known beforehand, and what does not agree with its rows is found."""

import datetime
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.program import invoke

from rrpolicy.common.stats import student_quantile, wilson_interval
from rrpolicy.experiments.published.keys import figure, like, rendered
from rrpolicy.experiments.published.pages import compare, read_listed, unlisted
from rrpolicy.experiments.published.rows import Rows
from rrpolicy.experiments.published.tables import table
from rrpolicy.experiments.tuning_log import Frozen, Tuning

ROOT = Path(__file__).resolve().parents[1]
HEADING = "robot,data,seed,variant,agent,reference,metric,level,step,value,ci_low,ci_high,n,cpu_seconds,recipe\n"
LOG = {
    "r": Tuning((0,), (1, 2, 3), (4, 5)),
    "frozen": Tuning((0,), (1,), (), "", (Frozen(datetime.date.today(), (2,), {}),)),
}
LINES = [  # robot, seed, agent, reference, metric, value
    ("hopper", 1, "base", "", "score", 10.0),
    ("hopper", 2, "base", "", "score", 20.0),
    ("hopper", 3, "base", "", "score", 30.0),
    ("hopper", 1, "steered", "", "score", 50.0),
    ("hopper", 2, "steered", "", "score", 61.0),
    ("hopper", 3, "steered", "", "score", 69.0),
    ("hopper", 1, "reward", "", "cell", 1.0),
    ("hopper", 2, "reward", "", "cell", 1.0),
    ("hopper", 3, "reward", "", "cell", 0.0),
    ("hopper", 1, "steered", "base", "score", 1234.5),
    ("walker", 4, "steered", "", "score", 0.5),
    ("walker", 1, "steered", "", "score", 0.25),
]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    text = "".join(
        f"{robot},noisy,{seed},,{agent},{reference},{metric},,,{value},{value - 1},{value + 2},64,7.0,abc\n"
        for robot, seed, agent, reference, metric, value in LINES
    )
    (tmp_path / "r.csv").write_text(HEADING + text)
    card = tmp_path / "zoo" / "Env" / "reward"
    card.mkdir(parents=True)
    (card / "card.json").write_text(
        '{"results": [{"agent": "a", "metric": "m", "mean": 0.5, "ci_low": 0.25, "ci_high": 1, "n": 3}]}'
    )
    return Rows(tmp_path, tmp_path / "zoo", LOG)


# ---------------------------------------------------------------------- keys

BASE, STEERED = ("r robot=hopper agent=" + name + " metric=score" for name in ("base", "steered"))
HALF = student_quantile(2) * 10 / np.sqrt(3)


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        (f"{BASE} seed=1", (10, 9, 12)),
        (BASE, (20, 20 - HALF, 20 + HALF)),
        (f"{BASE} interval=range", (20, 10, 30)),
        (f"{BASE} stat=min", (10,)),
        (f"{BASE} stat=max", (30,)),
        (f"{BASE} stat=sum / 60", (1,)),
        (f"{BASE} seed=2,3 stat=count", (2,)),
        (f"{BASE} column=n", (64, 64, 64)),
        (f"{BASE} stat=max column=cpu_seconds", (7,)),
        ("r agent=reward metric=cell stat=hits", (2, 3)),
        ("r agent=reward metric=cell stat=share", (2 / 3, *wilson_interval(2, 3))),
        ("r agent=steered reference=base metric=score", (1234.5, 1233.5, 1236.5)),
        (f"{STEERED} seed=1 / {BASE} seed=1", (5,)),
        (f"{STEERED} - {BASE}", (40, 40 - HALF / 10, 40 + HALF / 10)),
        ("zoo:Env/reward agent=a metric=m", (0.5, 0.25, 1)),
    ],
)
def test_a_key_gives_the_numbers_of_its_rows(rows: Rows, key: str, numbers: tuple[float, ...]) -> None:
    assert figure(key, rows).numbers == pytest.approx(numbers)


def test_a_ratio_of_means_is_paired_by_seed(rows: Rows) -> None:
    found = figure(f"{STEERED} / {BASE}", rows)
    assert found.numbers[0] == pytest.approx(3) and found.numbers[1] < 3 < found.numbers[2] and found.seeds == (1, 2, 3)


def test_the_headline_is_of_reporting_seeds_where_there_are_any(rows: Rows) -> None:
    assert figure("r robot=walker agent=steered metric=score seeds=headline", rows).seeds == (4,)
    assert figure("r robot=walker agent=steered metric=score seeds=seen", rows).numbers[0] == 0.25
    assert figure(f"{BASE} seeds=headline", rows).seeds == (1, 2, 3)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("r agent=none", "no row of r has agent=none"),
        ("r gait=2", "r has no column 'gait'"),
        ("none agent=base", r"none\.csv: is not there"),
        ("zoo:No/reward agent=a", "card.json: holds no results"),
        (f"{BASE} stat=mode", "stat must be one of min, max"),
        ("agent=base", "a key begins with the name of a CSV"),
        (f"{BASE} / {BASE} / 2", "a key is one selection, or two"),
        ("zoo:Env/reward seeds=headline", "seeds must be headline or seen of an experiment with a tuning log"),
    ],
)
def test_what_a_key_cannot_give_is_named(rows: Rows, key: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        figure(key, rows)


def test_numbers_are_written_as_they_stand() -> None:
    given = [("0.91", 0.5), (".91", 0.514), (".91", 1.5), ("−.1", -0.26), ("1 130", 12345.6), ("1,130", 999), ("+3", 4)]
    assert [like(*one) for one in given] == ["0.50", ".51", "1.50", "−.3", "12 346", "999", "+4"]
    assert like("0.0", -0.04) == "0.0" and like("1.0", -2) == "−2.0" and like("-1.0", -2) == "-2.0"


def test_a_text_with_more_numbers_than_its_key_is_a_fault(rows: Rows) -> None:
    assert rendered("24/24", figure("r agent=reward metric=cell stat=hits", rows)) == "2/3"
    with pytest.raises(ValueError, match="has 3 numbers, its key gives 1"):
        rendered("1.0 [.5, 2.0]", figure(f"{BASE} stat=min", rows))


# ---------------------------------------------------------------------- tables

SPECIFICATION = """ r seeds=headline metric=score digits=1
head: robot | data
row: Hopper | noisy = robot=hopper
row: Walker2d | noisy = robot=walker
column: base = agent=base
column: steered = agent=steered show=value mark=bold
column: worst = agent=steered stat=min digits=2 style=bare miss=<.8 wrap=()
column: seeds = agent=steered show=seeds
"""
TABLE = f"""| robot | data | base | steered | worst | seeds |
| --- | --- | --- | --- | --- | --- |
| Hopper | noisy | 20.0 [{20 - HALF:.1f}, {20 + HALF:.1f}] | **60.0** | (50.00) | 1–3, seen while tuning |
| Walker2d | noisy | – | **0.5** | (**.50**) | 4 |
""".replace("[-", "[−")


def test_a_table_is_what_its_specification_says(rows: Rows) -> None:
    assert table(SPECIFICATION, rows) == TABLE
    with pytest.raises(ValueError, match="begins with head:, row: or column:, got 'rows: a'"):
        table("r\nrows: a", rows)


# ---------------------------------------------------------------------- pages

PAGE = f"""# Title 1.5

Text of `0.5` and 2026-11-29 with 20.0 and 2/3.

<!-- numbers: r robot=hopper
20.0 = agent=base metric=score
2/3 = agent=reward metric=cell stat=hits
-->
<!-- table:{SPECIFICATION}-->
{TABLE}<!-- end -->

Then .75.
"""


def test_a_page_that_agrees_has_no_faults(rows: Rows) -> None:
    page = compare("page.md", PAGE, rows)
    assert page.faults == [] and page.text == PAGE
    assert page.unkeyed == ["1.5", ".75"] and page.keyed == 9  # 2 in the text, 7 in the table


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("with 20.0 and", "with 21.0 and", "'20.0' does not stand"),
        ("**60.0**", "**61.0**", r"a table does not stand as its rows make it, e\.g\. \| Hopper \| noisy"),
        ("20.0 and 2/3.", "2/3 and 20.0.", "'2/3' does not stand (in this order)"),
    ],
)
def test_what_does_not_agree_is_found(rows: Rows, old: str, new: str, words: str) -> None:
    (fault, *_) = compare("page.md", PAGE.replace(old, new), rows).faults
    assert words.replace("\\", "") in fault


def test_other_rows_change_the_text_the_key_and_the_table(rows: Rows) -> None:
    wrong = PAGE.replace("20.0", "23.0").replace("**60.0**", "**9.0**")
    page = compare("page.md", wrong, rows)
    assert len(page.faults) == 2 and "23.0 is 20.0 in its rows" in page.faults[0]
    assert page.text == PAGE and compare("page.md", page.text, rows).faults == []


def test_numbers_without_keys_are_listed_and_counted(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "listed.toml"
    path.write_text('n_results = 1\n[results."page.md"]\n"a trial" = [".75"]\n[settings."page.md"]\nsize = ["1.5"]\n')
    listed, page = read_listed(path), compare("page.md", PAGE, rows)
    assert listed == ({"page.md": Counter([".75"])}, {"page.md": Counter(["1.5"])}) and unlisted(page, listed) == []
    page.unkeyed = ["1.5", ".5"]
    assert unlisted(page, listed) == [
        "page.md: no key, and not listed: .5",
        "page.md: listed, and not there without a key any more: .75",
    ]
    path.write_text(path.read_text().replace("n_results = 1", "n_results = 2"))
    with pytest.raises(ValueError, match="lists 1 results without rows, n_results is 2: it may only shrink"):
        read_listed(path)


def test_every_number_of_this_checkout_has_rows_or_is_listed() -> None:
    result = invoke(["reproduce", "verify", "--root", str(ROOT)])
    assert result.exit_code == 0, result.output
    pages = {line.split(": ")[0] for line in result.output.splitlines()}
    assert {"README.md", "docs/results.md", "docs/results/locomotion/summary.md", "zoo/README.md"} <= pages


def test_the_command_says_what_differs(tmp_path: Path) -> None:
    result = invoke(["reproduce", "verify", "--root", str(tmp_path)])
    assert result.exit_code == 1 and "no checkout with docs/results/" in result.output, result.output
