"""Graphs before they are files: gradients in few operators are torch's, and products of all steps are one product."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rrpolicy.export.batching import batch_products
from rrpolicy.export.graphs import traced

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 2)).astype(np.float32)
LEVELS = [np.full((1, 3), value, np.float32) for value in (0.1, 0.7)]


def test_the_gradient_of_silu_and_layer_norm_is_torchs() -> None:
    torch.manual_seed(0)
    plain, weighted = nn.LayerNorm(6, elementwise_affine=False), nn.LayerNorm(6)
    first, last = nn.Linear(6, 6), nn.Linear(6, 1)
    for parameter in weighted.parameters():
        nn.init.normal_(parameter)

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = last(nn.functional.silu(weighted(first(nn.functional.silu(plain(x))))))
            return torch.autograd.grad(value.sum(), x)[0]

    graph = traced(gradient, (torch.randn(3, 6),))
    x = 3 * torch.randn(5, 6)
    torch.testing.assert_close(graph(x), gradient(x))
    norm, other = (node for node in graph.graph.nodes if node.target is torch.ops.aten.native_layer_norm.default)
    means = [[user for user in one.users if user.args[1] == 1] for one in (norm, other)]
    assert not means[0] and means[1]  # what the layer norm without weights returned is used again


def model() -> onnx.ModelProto:
    """Two steps: each adds a product of observation and level, and one of the noise, with the same weights."""
    nodes, total = [], "noise"
    for step in range(2):
        nodes += [
            helper.make_node("Add", ["observation", f"level{step}"], [f"known{step}"], f"known{step}"),
            helper.make_node("MatMul", [f"known{step}", "weight"], [f"early{step}"], f"step.{step}.early"),
            helper.make_node("Pad", [f"early{step}", "pads"], [f"wide{step}"], f"wide{step}"),
            helper.make_node("Add", [total, f"wide{step}"], [f"sum{step}"], f"sum{step}"),
            helper.make_node("MatMul", [f"sum{step}", "weight"], [f"late{step}"], f"step.{step}.late"),
            helper.make_node("Pad", [f"late{step}", "pads"], [f"step{step}"], f"step{step}"),
        ]
        total = f"step{step}"
    constants = {"weight": WEIGHT, "level0": LEVELS[0], "level1": LEVELS[1], "pads": np.array([0, 0, 0, 1])}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("observation", "noise")]
    output = helper.make_tensor_value_info("step1", TensorProto.FLOAT, ["n", 3])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "two steps", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_products_of_what_is_known_early_are_one() -> None:
    made = model()
    feeds = {name: RNG.normal(size=(4, 3)).astype(np.float32) for name in ("observation", "noise")}
    wanted = onnxruntime.InferenceSession(made.SerializeToString()).run(None, feeds)
    batch_products(made, ["observation"], ["noise"])
    onnx.checker.check_model(made)
    assert [node.op_type for node in made.graph.node].count("MatMul") == 3  # of the noise each has its own
    np.testing.assert_allclose(onnxruntime.InferenceSession(made.SerializeToString()).run(None, feeds), wanted)


def test_equal_products_are_left_to_the_runtime() -> None:
    made = model()
    for node in made.graph.node:
        node.input[:] = ["level0" if name == "level1" else name for name in node.input]
    before = len(made.graph.node)
    batch_products(made, ["observation"], ["noise"])
    assert len(made.graph.node) == before
