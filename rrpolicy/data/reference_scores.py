"""What D4RL calls 0 and 100 on its locomotion tasks: the returns of a random policy and of the expert (Fu et al. 2020).
Normalised scores make the returns of different robots comparable; environments outside this table have none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rrpolicy.common.typing import Array


class ReferenceScore(NamedTuple):
    """Undiscounted returns of an episode.

    :param random: of a random policy, score 0
    :param expert: of the expert, score 100
    """

    random: float
    expert: float


REFERENCE_SCORES: Mapping[str, ReferenceScore] = {
    "halfcheetah": ReferenceScore(-280.178953, 12135.0),
    "hopper": ReferenceScore(-20.272305, 3234.3),
    "walker2d": ReferenceScore(1.629008, 4592.3),
}


def reference_score(name: str | None) -> ReferenceScore | None:
    """
    The returns that are 0 and 100 for a robot, whatever the version of its environment.

    :param name: an environment or a dataset: ``"Hopper-v5"``, ``"hopper-medium-v2"``, ``"mujoco/hopper/medium-v0"``
    :return: None where D4RL's table has no such robot
    """
    words = re.split(r"[/:_-]", (name or "").lower())
    return next((REFERENCE_SCORES[word] for word in words if word in REFERENCE_SCORES), None)


def normalized_score(name: str, returns: Any) -> Array:
    """
    D4RL's score: 0 for the random policy, 100 for the expert, linear in between and beyond.

    :param name: as in :func:`reference_score`
    :param returns: undiscounted returns, any shape
    :return: scores of that shape, float64
    :raises ValueError: for a robot that is not in the table
    """
    reference = reference_score(name)
    if reference is None:
        raise ValueError(f"name is {name!r}, wanted an environment of {', '.join(REFERENCE_SCORES)}")
    return 100.0 * (np.asarray(returns, dtype=np.float64) - reference.random) / (reference.expert - reference.random)
