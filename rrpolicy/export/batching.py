"""Products that every step of a plan takes with the same weights, of what does not depend on its noise, as one product.

A step's modulation by level and observation is known before the first step. Its weights, about a quarter of all, are
then read once for a plan and not once for each step.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

PRODUCTS = ("Gemm", "MatMul")
_CALL = re.compile(r"(.+)\.\d+\.(.+?)")  # names of nodes that `assembly.inlined` has put: part, call, node


def batch_products(model: ModelProto, sources: Collection[str], late: Collection[str]) -> None:
    """
    Let a product that each call of a part takes, whose other factor is known early, be one product of all calls' rows.

    :param model: changed in place
    :param sources: inputs that a product must depend on; others are constants, and computed when a file is read
    :param late: inputs that it may not depend on
    """
    graph = model.graph
    early = _reached(graph, sources) - _reached(graph, late)
    meaning = _meanings(graph)
    weights = {one.name for one in graph.initializer}
    groups: dict[tuple[str, ...], list[NodeProto]] = {}
    for node in graph.node:
        call = _CALL.fullmatch(node.name)
        if call and node.op_type in PRODUCTS and node.input[0] in early and set(node.input[1:]) <= weights:
            groups.setdefault((call[1], call[2], *node.input[1:]), []).append(node)
    for group in groups.values():
        if len({meaning[node.input[0]] for node in group}) > 1:  # equal ones are computed once by ONNX Runtime
            _join(graph, group)
    _sort(graph)


def _join(graph: GraphProto, group: list[NodeProto]) -> None:
    """One product in place of several: the rows of all, one below the other."""
    from onnx import helper

    rows, product = f"{group[0].name}.rows", f"{group[0].name}.product"
    joined = type(group[0])()
    joined.CopyFrom(group[0])
    joined.name, joined.input[0], joined.output[0] = product, rows, product
    outputs = [node.output[0] for node in group]
    for node in group:
        graph.node.remove(node)
    graph.node.extend(
        [
            helper.make_node("Concat", [node.input[0] for node in group], [rows], rows, axis=0),
            joined,
            helper.make_node("Split", [product], outputs, f"{product}.split", axis=0, num_outputs=len(group)),
        ]
    )


def _reached(graph: GraphProto, origins: Iterable[str]) -> set[str]:
    """Names of everything that is computed from some inputs, and theirs."""
    found = set(origins)
    for node in graph.node:
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _meanings(graph: GraphProto) -> Mapping[str, int]:
    """A number for each value, equal where the same is computed of the same."""
    known: dict[object, int] = {}
    meaning: dict[str, int] = {}

    def number(key: object) -> int:
        return known.setdefault(key, len(known))

    for node in graph.node:
        inputs = tuple(meaning.setdefault(name, number(name)) for name in node.input)
        for place, name in enumerate(node.output):
            meaning[name] = number((node.op_type, _attributes(node), inputs, place))
    return meaning


def _attributes(node: NodeProto) -> str:
    return str(sorted(one.SerializeToString() for one in node.attribute))


def _sort(graph: GraphProto) -> None:
    """Each node behind those that it needs."""
    nodes = list(graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    needs = {place: sorted({makers[name] for name in node.input if name in makers}) for place, node in enumerate(nodes)}
    ordered = [nodes[place] for place in TopologicalSorter(needs).static_order()]
    del graph.node[:]
    graph.node.extend(ordered)
