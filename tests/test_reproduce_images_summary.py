"""The image experiment's tables and figures, made from rows alone."""

from pathlib import Path

from rrpolicy.experiments.images import draw, summary
from rrpolicy.experiments.images.aims import aims_table
from rrpolicy.experiments.images.rows import total_seconds
from rrpolicy.experiments.results import Result


def result(
    task: str, agent: str, metric: str, value: float, seed: int = 1, reference: str = "", level: int | None = None
) -> Result:
    numbers = (value, value, value, 1, value)
    return Result(task, "fine-tuned", seed, "", agent, metric, *numbers, "0", "r", reference=reference, level=level)


def test_aims_stand_beside_means_and_the_worst() -> None:
    results = [
        result("a+b", "rho", "auroc", 0.97),
        result("a+b", "rho", "auroc", 0.95, 2),
        result("none", "rho", "auroc", 0.45, reference="a+b"),
        result("none", "rho", "auroc", 0.99, reference="a+b", level=20),
        result("a+b", "brightness", "auroc", 0.2),
        result("a+b", "brightness", "auroc_reversed", 0.8),
        result("a+b", "rho", "mean", -3.0, reference="a"),
        result("a+b", "rho", "mean", -0.5, reference="b"),
        result("a+b", "rho", "mean", -0.25, reference="c"),
        result("a+b", "rho", "mean", 0.75, reference="d"),
        result("a+b", "rho", "auroc_lookalikes", 0.9, reference="a"),
        result("a+b", "rho", "auroc_elbo_subset", 0.96),
        result("a+b", "elbo", "auroc", 0.98),
        result("none", "rho", "mean", 5.0, reference="a"),
        result("a+b", "elbo", "mean_stayed", 9.0),
        result("a+b", "elbo", "mean", -9.0, reference="a"),
        result("a+b", "elbo", "mean", 8.0, reference="c"),
        result("a+b", "elbo", "mean", 10.0, reference="d"),
    ]
    for agent, share in (("base", 0.2), ("expert", 0.04), ("steered-1", 0.05), ("steered-2", 0.01)):
        results += [
            result("a+b", agent, "harmful_share", share),
            result("a+b", agent, "judge_confidence", 0.9 + share),
            result("a+b", agent, "judge_confidence_stayed", 0.9 - share),
        ]
    lines = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[2].removesuffix(" |")
        for line in aims_table(results).splitlines()
    }
    assert lines["AUROC of clean images, harmless over harmful"] == "0.960, 0.950 (2)"
    assert lines["AUROC, removed classes against look-alikes"] == "0.900, 0.900 (1)"
    assert lines["mean ρ of a class that stayed: how far from 0, nats"] == "0.50, 0.75 (2)"
    assert lines["the same: how far from the mean of these classes"] == "0.50, 0.50 (2)"  # which is 0.25
    bounds = "difference of bounds of a class that stayed: how far from the mean of these classes, nats"
    assert lines[bounds] == "1.00, 1.00 (2)"  # which is 9
    both = "mean ρ of a class that stayed minus its difference of bounds, both from the mean of these classes"
    assert lines[both] == "0.50, 0.50 (2)"  # -0.5 and 0.5 beside -1 and 1
    assert lines["mean difference of bounds over classes that stayed, nats"] == "9.00, 9.00 (1)"
    assert lines["mean ρ of a removed class, nats"] == "-1.75, -0.50 (2)"
    assert lines["AUROC of the control: order alone, however small the differences"] == "0.450, 0.450 (1)"
    assert lines["AUROC minus that of brightness, the better way round"] == "0.170, 0.170 (1)"
    assert lines["AUROC minus that of the difference of bounds, same images"] == "-0.020, -0.020 (1)"
    assert lines["harmful samples at scale 1, minus the expert's"] == "0.010, 0.010 (1)"
    assert lines["harmful samples at scale 2, in parts of the base's"] == "0.050, 0.050 (1)"
    assert lines["classifier's confidence in samples at scale 2, minus that in the base's"] == "-0.190, -0.190 (1)"
    stayed = "classifier's confidence in samples of classes that stayed at scale 2, minus that in the base's"
    assert lines[stayed] == "0.190, 0.190 (1)"


def test_removed_classes_are_held_against_the_spread_of_the_control_of_their_seed() -> None:
    results = []
    for seed, sd in ((1, 0.5), (2, 2.0)):
        results += [result("none", "rho", "sd", sd, seed), result("a+b", "rho", "sd", 100.0, seed)]
        means = {"a": -6.0, "b": -2.0, "c": 0.0, "d": 2.0}
        results += [result("a+b", "rho", "mean", value, seed, reference=name) for name, value in means.items()]
        results += [result("none", "rho", "mean", value / 10, seed, reference=name) for name, value in means.items()]
        results.append(result("none", "base", "harmful_share", 0.2, seed, reference="a+b"))
    lines = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[2].removesuffix(" |")
        for line in aims_table(results).splitlines()
    }
    removed = "removed class: mean ρ below those that stayed, in standard deviations of the control's ρ"
    assert lines[removed] == "6.2, 1.5 (4)"  # 7 and 3 nats below 1, in halves and in twos
    control = "control: the same of each pair that it is asked about"
    assert lines[control] == "0.62, 1.00 (2)"  # 0.5 nats


def test_shared_work_is_paid_for_once() -> None:
    results = []
    for seed, task in ((1, "a"), (1, "b"), (2, "a")):
        costs = {"base": 100.0, "base-samples": 10.0, "judge": 1000.0, "expert": 1.0, "unit": 1112.0}
        results += [result(task, agent, "cpu_seconds", value, seed) for agent, value in costs.items()]
    assert total_seconds(results) == 1000 + 2 * 110 + 3 * 2  # one judge, two bases, three experts and a second each


def test_only_what_there_is_is_drawn(tmp_path: Path) -> None:
    control = [
        result("none", "rho", "auroc", 0.5, reference="a+b", level=5),
        result("none", "rho", "mean", 0.1, reference="a"),
        result("none", "base", "harmful_share", 0.1, reference="a+b"),
    ]
    assert {path.name for path in draw(control, tmp_path / "r.csv")} == {"levels.png", "classes.png"}
    assert "AUROC of the control" not in summary(control)  # no clean image was ranked
