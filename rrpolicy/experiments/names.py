"""Names that a user gives are looked up in one way, and a wrong one is answered with those that there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def check_names(what: str, given: Sequence[str] | None, known: Iterable[str]) -> None:
    """
    :param what: is named
    :param given: names; None for none
    :param known: all that there are
    :raises ValueError: for the first that is not known
    """
    names = list(known)
    if unknown := [name for name in given or () if name not in names]:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {unknown[0]!r}")
