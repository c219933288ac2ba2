"""What an audit page shows, checked: pictures, their scores, and what is known of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.null import NOTHING_BEYOND, Null
from rrpolicy.images.page import plain_text

UNLABELLED = "unlabelled"


@dataclass(frozen=True, eq=False)
class Audit:
    """What the page shows; :meth:`checked` makes one of what :func:`~rrpolicy.images.audit.write_audit` was given."""

    images: Sequence[Array]  # n, uint8 (H, W, C)
    scores: Array  # (n,)
    names: list[str]
    labels: list[str] | None
    labelled: Array  # bool (n,)
    unwanted: frozenset[str]
    levels: list[int]
    level_scores: Array  # (k, n)
    samples: dict[str, Sequence[Array]]
    prompts: list[str]
    left_out: list[tuple[str, str]]
    not_read: str
    unlike: Array  # bool (n,): flagged as unlike anything that the two models make
    null: Null | None
    evidence: Evidence

    @classmethod
    def checked(
        cls,
        images: Any,
        scores: Any,
        names: Any,
        labels: Any,
        unwanted: Any,
        per_level: Any,
        samples: Any,
        prompts: Any,
        left_out: Any,
        not_read: str,
        unlike: Any,
        null: Null | None,
        evidence: Evidence,
    ) -> Audit:
        """
        An audit of the arguments of :func:`~rrpolicy.images.audit.write_audit`, after checks that they fit together.

        :raises ValueError: when lengths or shapes do not fit together, naming them
        """
        values, n = np.asarray(scores, dtype=np.float64), len(images)
        if not n or values.shape != (n,) or not np.isfinite(values).all():
            raise ValueError(f"scores has shape {values.shape} for {n} images, wanted finite numbers ({n},), n >= 1")
        for name, given in (("names", names), ("labels", labels)):
            if given is not None and len(given) != n:
                raise ValueError(f"{name} has {len(given)} entries, wanted one for each of {n} images")
        known = set() if labels is None else {str(label) for label in labels if label is not None}
        if missing := sorted(set(unwanted) - known):
            raise ValueError(f"unwanted is {missing}, which no image is labelled with")
        if prompts and (wrong := {name: len(drawn) for name, drawn in samples.items() if len(drawn) != len(prompts)}):
            raise ValueError(f"samples are {wrong}, wanted one for each of {len(prompts)} prompts")
        levels, at_levels = ([], np.zeros((0, n))) if per_level is None else per_level
        at_levels = np.asarray(at_levels, dtype=np.float64)
        if at_levels.shape != (len(levels), n) or not np.isfinite(at_levels).all():
            raise ValueError(f"per_level has scores {at_levels.shape}, wanted finite numbers ({len(levels)}, {n})")
        flags = np.zeros(n, dtype=bool) if unlike is None else np.asarray(unlike)
        if flags.shape != (n,) or flags.dtype != bool:
            raise ValueError(f"unlike is {flags.dtype} {flags.shape}, wanted booleans ({n},)")
        if null is not None and null.scores.shape[1] != n:
            raise ValueError(f"null has scores {null.scores.shape}, wanted one for each of {n} images")
        order = np.argsort(np.asarray(levels, dtype=int), kind="stable")
        return cls(
            images,
            values,
            [str(i) for i in range(n)] if names is None else [plain_text(name) for name in names],
            None if labels is None else [UNLABELLED if label is None else plain_text(label) for label in labels],
            np.array([label is not None for label in labels or [None] * n]),
            frozenset(map(plain_text, unwanted)),
            [int(levels[i]) for i in order],
            at_levels[order],
            {plain_text(name): drawn for name, drawn in samples.items()},
            [plain_text(prompt) for prompt in prompts],
            [(plain_text(name), plain_text(reason)) for name, reason in left_out],
            plain_text(not_read),
            flags,
            null,
            evidence,
        )

    @property
    def covered(self) -> bool:
        """Whether scores spread no further than the null's."""
        return self.null is not None and self.null.covers(self.scores, self.kept)

    @property
    def title(self) -> str:
        """Heading of the page: a finding only where there is one."""
        nothing = self.covered and self.evidence.difference
        return NOTHING_BEYOND[0].upper() + NOTHING_BEYOND[1:] if nothing else self.evidence.title

    @property
    def order(self) -> Array:
        """Indices from the highest score to the lowest."""
        return np.argsort(-self.scores, kind="stable")

    @property
    def kept_order(self) -> Array:
        """As :attr:`order`, without flagged images."""
        return self.order[self.kept[self.order]]

    @cached_property
    def middle(self) -> float:
        """The median score of the images that are kept; of all where none is."""
        return float(np.median(self.scores[self.kept] if self.kept.any() else self.scores))

    @property
    def kept(self) -> Array:
        """Bool (n,): the images that numbers are about, those that are not flagged."""
        kept: Array = ~self.unlike
        return kept

    @property
    def judged(self) -> Array:
        """Bool (n,): images that are kept and have a label."""
        return np.asarray(self.kept & self.labelled)

    @cached_property
    def wanted(self) -> Array | None:
        """Bool (n,); None unless there are wanted and unwanted images among those of :attr:`judged`."""
        if self.labels is None:
            return None
        flags = np.array([label not in self.unwanted for label in self.labels], dtype=bool)
        judged = flags[self.judged]
        return flags if judged.any() and not judged.all() else None
