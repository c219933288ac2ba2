"""ONNX files with weights of 8 bits: a third of the size, and an error that is measured and written down."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rrpolicy.export.graphs import NEEDS
from rrpolicy.export.session import KEY, GraphFile

N_EXAMPLES = 64
ERROR = "int8_error"  # in a file's description


def quantised(content: bytes) -> bytes:
    """
    A file whose matrix products have int8 weights (ONNX Runtime's dynamic quantisation).

    :param content: of a file of `export_onnx`
    :return: the same with int8 weights; ``int8_error`` of its description is the largest difference of its actions or
        rewards at 64 random inputs
    :raises ValueError: without the extra ``fast``
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(NEEDS) from error
    with TemporaryDirectory(prefix="rrpolicy-") as folder, _quiet():
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        given.write_bytes(content)
        quantize_dynamic(given, made, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
        model = onnx.load(made)
    about = json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))
    difference = _largest_difference(content, model.SerializeToString(), about)
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps({**about, ERROR: difference}, sort_keys=True)
    small: bytes = model.SerializeToString()
    return small


def _largest_difference(exact: bytes, small: bytes, about: Mapping[str, Any]) -> float:
    rng, kind = np.random.default_rng(0), about["kind"]
    output = "rho" if kind == "reward" else "action"
    files = [GraphFile.from_bytes(content, "the quantised file", [kind]) for content in (exact, small)]
    shapes = files[0].shapes(N_EXAMPLES)
    feeds: dict[str, Any] = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    if kind == "reward":
        feeds["t"] = rng.integers(about["n_diffusion_steps"], size=N_EXAMPLES)
    if kind == "planner":  # observations as spread as those that the normaliser was fitted to
        units = about["normalizer"]["observations"]
        offset, scale = np.array(units["offset"], np.float32), np.array(units["scale"], np.float32)
        feeds["observation"] = feeds["observation"] * scale + offset
    one, other = (file.run([output], feeds)[0] for file in files)
    return float(np.abs(one - other).max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which is about pictures."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
