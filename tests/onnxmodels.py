"""ONNX models for tests: single operators and small networks, and what ONNX's reference implementation makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Arrays = Mapping[str, np.ndarray]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of float inputs; the shapes of the outputs are left open."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(operator: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; names of tensors apart by blanks, `_` for one left out."""
    given = ["" if each == "_" else each for each in inputs.split()]
    return helper.make_node(operator, given, outputs.split(), name=name or None, **attributes)


def save(made: onnx.ModelProto, path: Path) -> Path:
    """Writes the model."""
    path.write_bytes(made.SerializeToString())
    return path


def expected(made: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    """The outputs by ONNX's reference implementation."""
    return list(ReferenceEvaluator(made).run(None, dict(inputs)))


def weights(seed: int, *shape: int, scale: float = 0.5) -> np.ndarray:
    """Seeded float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
