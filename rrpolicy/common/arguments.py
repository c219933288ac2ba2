"""Arguments that are one number or one flag, refused by name when they are something else, such as text."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from rrpolicy.common.schema import native


def flag(name: str, value: Any) -> bool:
    """
    A true or false argument.

    :param name: of the argument
    :param value: True or False, of Python or numpy, or 1 or 0
    :raises ValueError: for anything else, above all text: ``"False"`` would count as True
    """
    if not isinstance(value, bool | np.bool_ | Integral) or value not in (0, 1):
        raise ValueError(f"{name} is {value!r:.60}, it must be True or False")
    return bool(value)


def number(name: str, value: Any, lowest: float | None = None, above: float | None = None) -> Any:
    """
    A number as an argument, within bounds.

    :param name: of the argument
    :param value: a number of Python or numpy
    :param lowest: smallest number allowed; with this or ``above`` it must also be finite
    :param above: the number must be larger than this
    :return: it, of Python
    :raises ValueError: for anything else and for what is out of bounds
    """
    given: Any = value  # whose type narrows to one that numbers cannot be compared with
    if not isinstance(given, Real) or isinstance(given, bool):
        raise ValueError(f"{name} is {value!r:.60}, it must be a number")
    for bound, fits, wanted in (
        (lowest, lowest is None or bool(value >= lowest), "of at least"),
        (above, above is None or bool(value > above), "above"),
    ):
        if bound is not None and not (fits and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, it must be a finite number {wanted} {bound:g}")
    return native(value)


def whole(name: str, value: Any, lowest: int | None = None) -> int:
    """
    A whole number as an argument.

    :param name: of the argument
    :param value: a whole number of Python or numpy
    :param lowest: smallest number allowed
    :raises ValueError: for anything else
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or (lowest is not None and value < lowest):
        bound = "" if lowest is None else f" of at least {lowest}"
        raise ValueError(f"{name} is {value!r:.60}, it must be a whole number{bound}")
    return int(value)
