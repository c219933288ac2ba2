"""Torch functions as ONNX graphs: gradients inside, any batch size, and what is called at every step traced once.

A function is traced with its gradients (``make_fx`` with core ATen decompositions, which the exporter has functions
for). A `Part`, such as the guided noise predictor, stands in the whole as one operator until its nodes take its place.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from rrpolicy.common.torch_mode import usual_torch

if TYPE_CHECKING:
    from onnx import ModelProto

DOMAIN = "rrpolicy"
N_EXAMPLES = 3  # rows of the batch that is traced; graphs hold for any other number
NEEDS = "exporting needs the extra fast: pip install 'rrpolicy[fast]'"
aten = torch.ops.aten
_SAME_ROWS = (aten.view.default, aten.alias.default, aten.detach.default, aten.clone.default, aten.slice.Tensor)


def check_exporter() -> None:
    """
    Check that graphs can be exported, before any work is done for one.

    :raises ValueError: without the extra ``fast``
    """
    if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise ValueError(NEEDS)


@dataclass(frozen=True)
class Part:
    """
    A function that a graph calls as one operator.

    :param name: of the operator
    :param scalar: whether its result is one number a row, not an event
    """

    name: str
    scalar: bool = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The operator, while a graph that holds it is traced; its first input has the shape of an event."""
        shape = inputs[0].shape[:1] if self.scalar else inputs[0].shape
        return torch.onnx.ops.symbolic(f"{DOMAIN}::{self.name}", inputs, dtype=torch.float32, shape=shape)


@usual_torch()
def traced(function: Callable[..., Any], examples: Sequence[Tensor]) -> GraphModule:
    """
    A function with the gradients that it takes, as a graph of core ATen operators with a symbolic batch.

    :param function: of tensors
    :param examples: arguments, of `N_EXAMPLES` rows where they have a batch
    :raises ValueError: for a function that cannot be traced, such as one whose operations depend on numbers
    """
    try:
        with torch.no_grad():
            graph = make_fx(
                function,
                decomposition_table={
                    **torch._decomp.core_aten_decompositions(),
                    aten.native_layer_norm_backward.default: _layer_norm_backward,
                    aten.silu_backward.default: _silu_backward,
                },
                tracing_mode="symbolic",
                _allow_non_fake_inputs=True,
            )(*examples)
        _reuse_normalised(graph)
        return graph
    except Exception as error:
        raise ValueError(f"cannot be traced for export: {type(error).__name__}: {str(error)[:300]}") from error


def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, weight: Any, bias: Any, mask: Any
) -> tuple[Tensor, None, None]:
    """The gradient with respect to ``x``, in fewer operators than torch's own decomposition; weights have none here."""
    axes = list(range(x.ndim - len(shape), x.ndim))
    inner = grad if weight is None else grad * weight
    normalised = (x - mean) * rstd
    along = (inner * normalised).mean(axes, keepdim=True)
    return (inner - inner.mean(axes, keepdim=True) - normalised * along) * rstd, None, None


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient by the result of the forward pass, y = x σ(x), in fewer operators than torch's own decomposition."""
    gate = x.sigmoid()
    y = x * gate
    return grad * (gate + (y - y * gate))


def _reuse_normalised(graph: GraphModule) -> None:
    """Let (x - mean) · rstd of a layer norm without weights be what that layer norm returned."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.mul.Tensor or not all(isinstance(one, Node) for one in node.args):
            continue
        centred, rstd = node.args
        if centred.target is not aten.sub.Tensor or rstd.target is not operator.getitem or rstd.args[1] != 2:
            continue
        norm, mean = rstd.args[0], centred.args[1]
        plain = norm.target is aten.native_layer_norm.default and norm.args[2] is None and norm.args[3] is None
        if plain and centred.args[0] is norm.args[0] and getattr(mean, "args", None) == (norm, 1):
            (result,) = [one for one in norm.users if one.args[1] == 0]
            node.replace_all_uses_with(result)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def read_from(graph: GraphModule, column: int, known: int, pinned: Tensor) -> None:
    """
    Let a graph read pinned entries of one input from another that holds the same there.

    What is computed of them is then the same at every step of a loop, and is computed once.

    :param graph: changed in place
    :param column: number of the input that is read
    :param known: number of the input to be read in its place
    :param pinned: bool (*event_shape)
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    allowed = set(pinned.flatten().nonzero().flatten().tolist())
    for node in list(graph.graph.nodes):
        if node.target is not aten.index.Tensor or len(node.args[1]) != 2 or node.args[1][0] is not None:
            continue
        chain, places = _chain(node.args[0], inputs[column]), _constant(graph, node.args[1][1])
        if chain is None or places is None or not set(places.flatten().tolist()) <= allowed:
            continue
        with graph.graph.inserting_before(node):
            source = inputs[known]
            for step in reversed(chain):
                source = graph.graph.create_node("call_function", step.target, (source, *step.args[1:]), step.kwargs)
                source.meta = dict(step.meta)
        node.args = (source, node.args[1])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _chain(node: Any, origin: Node) -> list[Node] | None:
    """The nodes from one back to an input, where they keep its rows as they are; None otherwise."""
    found: list[Node] = []
    while isinstance(node, Node) and node is not origin:
        if node.target not in _SAME_ROWS or (node.target is aten.slice.Tensor and node.args[1:3] != (0, 0)):
            return None
        found.append(node)
        node = node.args[0]
    return found if node is origin else None


def _constant(graph: GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = getattr(graph, str(node.target), None)
    return value if isinstance(value, Tensor) else None


class _Module(nn.Module):
    """A function as the exporter wants it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@usual_torch()
def onnx_model(
    function: Callable[..., Any], inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[str, int | None]
) -> ModelProto:
    """
    A function as an ONNX model.

    :param function: of tensors; a graph from :func:`traced`, or one without gradients, which may call a `Part`
    :param inputs: an example of each, by name
    :param outputs: their names
    :param axes: the batch's axis of inputs where that is not the first; None for an input without a batch
    :raises ValueError: without the extra ``fast``, or for an operation that ONNX has not, naming it
    """
    module = function if isinstance(function, GraphModule) else _Module(function)
    dims = [axes.get(name, 0) for name in inputs]
    batch = torch.export.Dim("batch", min=1)
    shapes: Any = tuple(None if axis is None else {axis: batch} for axis in dims)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=shapes if module is function else (shapes,),
                input_names=list(inputs),
                output_names=list(outputs),
                optimize=False,
                verbose=False,
            )
        except ImportError as error:
            raise ValueError(NEEDS) from error
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"cannot be exported: {str(error.__cause__ or error)[:300]}") from error
    if program is None:
        raise ValueError("cannot be exported: the exporter returned nothing")
    program.optimize()
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
