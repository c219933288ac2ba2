"""Samples of a model as an archive, so that they can be kept as models are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from rrpolicy.common.archive import read_archive, write_archive


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model."""

    events: Tensor  # (n, *event_shape), clean

    kind: ClassVar[str] = "image-samples"

    def save(self, path: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
        """Write one archive (no pickle)."""
        write_archive(path, self.kind, {}, {"samples": {"events": self.events}}, card)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """
        Read an archive that :meth:`save` wrote.

        :raises FileNotFoundError: when there is no such file
        :raises ValueError: when the archive is damaged or of another kind
        """
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            return cls(archive.tensors["samples"]["events"])
