"""A small regression tree that explains a number by named features (Breiman et al. 1984), at most three questions deep.

Every split is the one with the least squared error of all features and thresholds. How much of the number the tree
explains is measured on events that it was not grown from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rrpolicy.common.typing import Array

MAX_DEPTH = 3
LEAST_SHARE = 0.02  # of the events in a leaf
LEAST_GAIN = 0.01  # of the variance, without which a split is left out


@dataclass(frozen=True)
class Node:
    """
    A part of the events: a leaf, or split in two by ``feature <= threshold``.

    :param mean: of the number there
    :param share: of all events
    :param feature: number of the feature that is asked for; None in a leaf
    :param threshold: in the feature's units
    :param children: where the answer is yes, and where it is no
    """

    mean: float
    share: float
    feature: int | None = None
    threshold: float = 0.0
    children: tuple[Node, ...] = field(default=())


@dataclass(frozen=True)
class Leaf:
    """
    A region of the tree, in words.

    :param conditions: such as ``"x <= 0.5"``; empty for everything
    :param mean: of the number there
    :param share: of all events
    """

    conditions: tuple[str, ...]
    mean: float
    share: float


@dataclass(frozen=True)
class Tree:
    """
    A regression tree.

    :param root: its first question
    :param names: of the features (F,)
    :param fidelity: R² on held-out events; 1 where the number does not vary there and the tree is right
    """

    root: Node
    names: tuple[str, ...]
    fidelity: float

    @classmethod
    def fit(
        cls, features: Array, values: Array, names: Sequence[str], max_depth: int = MAX_DEPTH, seed: int = 0
    ) -> Tree:
        """
        Grow a tree from half of the events and measure it on the other half.

        :param features: (n, F)
        :param values: (n,) the number to explain
        :param names: of the features
        :param max_depth: questions one after the other, at least 1
        :param seed: of the division
        :raises ValueError: for shapes that do not fit together or fewer than 4 events
        """
        x, y = np.asarray(features, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if x.ndim != 2 or y.shape != x.shape[:1] or len(y) < 4 or len(names) != x.shape[1]:
            raise ValueError(f"features {x.shape}, values {y.shape} and {len(names)} names do not fit together")
        if max_depth < 1:
            raise ValueError(f"max_depth is {max_depth}, wanted at least 1")
        order = np.random.default_rng(seed).permutation(len(y))
        grown, held_out = order[: len(y) // 2], order[len(y) // 2 :]
        least = max(2, round(LEAST_SHARE * len(grown)))
        total = float(((y[grown] - y[grown].mean()) ** 2).sum())
        root = _grow(x[grown], y[grown], max_depth, least, LEAST_GAIN * total, len(grown))
        found = predicted(root, x[held_out])
        error = float(((y[held_out] - found) ** 2).sum())
        spread = float(((y[held_out] - y[held_out].mean()) ** 2).sum())
        fidelity = 1 - error / spread if spread > 0 else float(error == 0)
        return cls(root, tuple(names), fidelity)

    def predict(self, features: Array) -> Array:
        """The mean of its leaf for each of ``features`` (n, F), (n,)."""
        return predicted(self.root, np.asarray(features, dtype=np.float64))

    def leaves(self) -> list[Leaf]:
        """All regions, the highest mean first."""
        return sorted(self._leaves(self.root, ()), key=lambda leaf: -leaf.mean)

    def asked(self) -> list[str]:
        """Names of the features that the tree asks for, the first question first."""
        found: list[str] = []
        nodes = [self.root]
        while nodes:
            node = nodes.pop(0)
            if node.feature is not None:
                found.append(self.names[node.feature])
                nodes += node.children
        return list(dict.fromkeys(found))

    def _leaves(self, node: Node, before: tuple[str, ...]) -> list[Leaf]:
        if node.feature is None:
            return [Leaf(before, node.mean, node.share)]
        name, at = self.names[node.feature], f"{node.threshold:.3g}"
        yes, no = node.children
        return self._leaves(yes, (*before, f"{name} ≤ {at}")) + self._leaves(no, (*before, f"{name} > {at}"))


def predicted(node: Node, features: Array) -> Array:
    """Means (n,) of the leaves below ``node`` in which ``features`` (n, F) end."""
    if node.feature is None:
        return np.full(len(features), node.mean)
    yes = features[:, node.feature] <= node.threshold
    return np.asarray(np.where(yes, predicted(node.children[0], features), predicted(node.children[1], features)))


def _grow(x: Array, y: Array, depth: int, least: int, least_gain: float, n: int) -> Node:
    leaf = Node(float(y.mean()), len(y) / n)
    best = _best_split(x, y, least) if depth > 0 and len(y) >= 2 * least else None
    if best is None or best[0] <= max(least_gain, 1e-12):
        return leaf
    _, feature, threshold = best
    yes = x[:, feature] <= threshold
    children = tuple(_grow(x[side], y[side], depth - 1, least, least_gain, n) for side in (yes, ~yes))
    return Node(leaf.mean, leaf.share, feature, threshold, children)


def _best_split(x: Array, y: Array, least: int) -> tuple[float, int, float] | None:
    """The largest fall of the squared error, its feature and its threshold; None where nothing can be split."""
    best: tuple[float, int, float] | None = None
    n, whole = len(y), y.sum()
    sizes = np.arange(1, n)
    allowed = (sizes >= least) & (n - sizes >= least)
    for feature in range(x.shape[1]):
        order = np.argsort(x[:, feature], kind="stable")
        ordered, left = x[order, feature], np.cumsum(y[order])[:-1]
        gain = left**2 / sizes + (whole - left) ** 2 / (n - sizes) - whole**2 / n
        gain = np.where(allowed & (ordered[1:] > ordered[:-1]), gain, -np.inf)
        i = int(gain.argmax())
        if np.isfinite(gain[i]) and (best is None or gain[i] > best[0]):
            best = float(gain[i]), feature, float((ordered[i] + ordered[i + 1]) / 2)
    return best
