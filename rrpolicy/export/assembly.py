"""ONNX models put together: operators replaced by the graphs that they stand for, several graphs in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rrpolicy.export.graphs import DOMAIN

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def inlined(model: ModelProto, parts: Mapping[str, ModelProto]) -> None:
    """
    Put the nodes of parts where a model calls them.

    :param model: changed in place
    :param parts: the graph of each operator of the library's domain; not changed
    """
    nodes: list[NodeProto] = []
    for name, part in parts.items():
        for one in part.graph.initializer:
            model.graph.initializer.add().CopyFrom(one)
            model.graph.initializer[-1].name = f"{name}.{one.name}"
    for count, node in enumerate(model.graph.node):
        if node.domain != DOMAIN:
            nodes.append(node)
        else:
            nodes.extend(_call(parts[node.op_type].graph, node, f"{node.op_type}.{count}."))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    for i in reversed(range(len(model.opset_import))):
        if model.opset_import[i].domain == DOMAIN:
            del model.opset_import[i]


def _call(graph: GraphProto, node: NodeProto, prefix: str) -> list[NodeProto]:
    """The nodes of a graph, with a call's inputs and outputs for its own; initializers are shared by all calls."""
    names = {own.name: given for own, given in zip(graph.input, node.input, strict=True)}
    names |= {own.name: given for own, given in zip(graph.output, node.output, strict=True)}
    names |= {one.name: f"{node.op_type}.{one.name}" for one in graph.initializer} | {"": ""}
    copies = []
    for own in graph.node:
        copy = type(own)()
        copy.CopyFrom(own)
        copy.name = prefix + own.name
        for field in (copy.input, copy.output):
            field[:] = [names.get(name, prefix + name) for name in field]
        copies.append(copy)
    return copies


def joined(models: Sequence[ModelProto]) -> ModelProto:
    """
    One model with the graphs of several beside each other, inputs and outputs with the names that they have.

    :param models: changed in place; the first becomes the whole
    """
    whole = models[0]
    for count, model in enumerate(models):
        kept = {one.name for field in (model.graph.input, model.graph.output) for one in field}
        _renamed(model.graph, f"{count}.", kept)
        if count:
            for one in (*model.graph.input, *model.graph.output):
                for dim in one.type.tensor_type.shape.dim:
                    if dim.dim_param:  # graphs that are run apart have batches of their own
                        dim.dim_param = f"{dim.dim_param}_{count}"
            for field in ("node", "initializer", "input", "output"):
                getattr(whole.graph, field).extend(getattr(model.graph, field))
    return whole


def shared(model: ModelProto) -> None:
    """Keep one of equal initializers, and no names of what a graph was made from."""
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for one in list(model.graph.initializer):
        key = one.data_type.to_bytes(4, "little") + str(list(one.dims)).encode() + one.raw_data
        names[one.name] = first.setdefault(key, one.name) if one.raw_data else one.name
        if names[one.name] != one.name:
            model.graph.initializer.remove(one)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        del node.metadata_props[:]
        node.doc_string = ""
    for field in (model.graph.input, model.graph.output, model.graph.initializer):
        for one in field:
            del one.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]


def _renamed(graph: GraphProto, prefix: str, keep: set[str]) -> None:
    def name(old: str) -> str:
        return old if old in keep or not old else prefix + old

    for node in graph.node:
        node.name = name(node.name)
        node.input[:] = [name(one) for one in node.input]
        node.output[:] = [name(one) for one in node.output]
    for field in (graph.input, graph.output, graph.initializer):
        for one in field:
            one.name = name(one.name)
