"""Which named arrays of a file make the observation, for formats that keep several."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import RrpolicyWarning


def chosen_keys(
    place: Path,
    wanted: Sequence[str] | None,
    usual: Sequence[str],
    numbers: Collection[str],
    pictures: Collection[str] = (),
) -> tuple[str, ...]:
    """
    The names of the arrays that make the observation, in their order.

    :param place: the file or folder, for errors
    :param wanted: names given by the user; None for the usual
    :param usual: names that are taken by default
    :param numbers: names of all arrays that could be taken
    :param pictures: names that are left out of the usual, with a warning that names them
    :raises ValueError: for a text in place of names
    :raises FileFault: for a name that is none of ``numbers``, and for no name at all
    """
    if isinstance(wanted, str):
        raise ValueError(f"observation_keys is {wanted!r}, wanted a sequence of names")
    keys = tuple(usual if wanted is None else wanted)
    wrong = [key for key in keys if key not in numbers]
    if wrong or not keys:
        told = f"{wrong[0]!r} is no array of numbers" if wrong else "there is none"
        raise FileFault(place, f"observation_keys: {told}, found {sorted(numbers)[:20]}, pictures are not supported")
    if wanted is None and pictures:
        told = f"{place}: pictures are left out of the observation: {', '.join(pictures)}"
        warnings.warn(told, RrpolicyWarning, stacklevel=3)
    return keys
