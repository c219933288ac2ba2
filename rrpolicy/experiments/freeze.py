"""Freezes the recipes of an experiment: ``python -m rrpolicy.experiments.freeze EXPERIMENT [--seed N]...``.

Digests of the package's recipes go into the tuning log with the date; from then on `rrpolicy reproduce` measures
reporting seeds with these recipes alone. Commit the log before the first row.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Mapping, Sequence

from rrpolicy.experiments.locomotion.spec import CASES, PAPER, of_case
from rrpolicy.experiments.recipes import packaged_recipe
from rrpolicy.experiments.store import digest
from rrpolicy.experiments.tuning_log import ANY, freeze


def _mazes() -> dict[str, str]:
    return {ANY: digest(packaged_recipe("point_maze"))}


def _robots() -> dict[str, str]:
    return {f"{robot} {case}": digest(of_case(packaged_recipe(robot), case)) for robot in PAPER for case in CASES}


def _images() -> dict[str, str]:
    return {ANY: digest([packaged_recipe("fashion_mnist"), None])}  # no images but Fashion-MNIST's own


DIGESTS: Mapping[str, Callable[[], Mapping[str, str]]] = {"maze2d": _mazes, "locomotion": _robots, "images": _images}
"""Digests of an experiment's recipes as they are now; the keys are those of `tuning_log.Frozen`."""


def main(arguments: Sequence[str]) -> int:
    """Freeze an experiment and print its entry."""
    parser = argparse.ArgumentParser(prog="python -m rrpolicy.experiments.freeze", description=__doc__)
    parser.add_argument("experiment", choices=sorted(DIGESTS))
    parser.add_argument("--seed", type=int, action="append", default=[], help="that reports; default: as planned")
    given = parser.parse_args(arguments)
    try:
        found = freeze(given.experiment, DIGESTS[given.experiment](), given.seed, datetime.date.today())
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{given.experiment}: frozen on {found.date}, seeds {', '.join(map(str, found.seeds))}\n")
    sys.stdout.writelines(f"  {name} {value}\n" for name, value in found.digests.items())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
