"""Small int8 .tflite models made for tests, and what TFLite's reference kernels make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

Array = npt.NDArray[Any]

_TYPES = {
    "int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32, "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16, "uint8": schema.TensorType.UINT8, "int16": schema.TensorType.INT16,
}  # fmt: skip


class Maker:
    """A model under construction: tensors and operators in the order they are added."""

    def __init__(self, name: str = "model") -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = name
        self.model.operatorCodes = []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.name = name
        self.graph.tensors = []
        self.graph.operators = []
        self.model.subgraphs = [self.graph]

    def tensor(
        self, name: str, shape: Sequence[int], scale: float | Sequence[float] | Array = (), zero_point: int | Sequence[int] | Array = 0,
        values: Array | None = None, dtype: str = "int8", axis: int = 0,
    ) -> int:  # fmt: skip
        """A tensor, quantised where `scale` is given (several: along `axis`), constant where `values` are."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), _TYPES[dtype], 0
        scales = np.atleast_1d(np.asarray(scale, np.float32))
        if scales.size:
            quantisation = schema.QuantizationParametersT()
            quantisation.scale = scales
            quantisation.zeroPoint = np.broadcast_to(np.asarray(zero_point, np.int64), scales.shape).copy()
            quantisation.quantizedDimension = axis
            tensor.quantization = quantisation
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<")).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 1) -> None:
        """An operator by its name in the schema; `options` is one of the schema's ...OptionsT."""
        number = getattr(schema.BuiltinOperator, code)
        codes = [(each.builtinCode, each.version) for each in self.model.operatorCodes]
        if (number, version) not in codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = number, min(number, 127), version
            self.model.operatorCodes.append(entry)
            codes.append((number, version))
        operator = schema.OperatorT()
        operator.opcodeIndex = codes.index((number, version))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(operator)

    def bytes(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file."""
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def reference(model: bytes, *inputs: Array, kernels: OpResolverType = OpResolverType.BUILTIN_REF) -> list[Array]:
    """What TFLite's reference (or other) kernels make of one set of inputs, every output in the order of the file."""
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values.reshape(detail["shape"]))
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]).copy() for detail in interpreter.get_output_details()]
