"""Reads a .tflite file into plain dataclasses that hold together: sizes, indices, order and lengths of buffers are checked here, once.

The schema's own reader (`schema_py_generated` of ai-edge-litert, or the package tflite) follows offsets wherever they lead, and a small
file may name the same part many times over: what it gives is data of unknown origin, so nothing is read before its count is bounded, and
whatever the reader stumbles on becomes one InputError.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError, UnsupportedError
from kqgen.tflite_options import Options, read_options

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_IDENTIFIER = b"TFL3"
_VERSION = 3
_LARGEST_BYTES = 1 << 30
_MANY = 1 << 16
"""Tensors, operators, buffers and operator codes, at most."""
_MANY_OPERANDS = 64
_MANY_AXES = 8
_LARGEST_TENSOR = 1 << 24
"""Numbers in one tensor: a hundred times what fits a microcontroller."""
_SHARED = 16
"""Bytes of all constants, at most, as multiples of the file's: a buffer may serve several tensors."""
_SHOWN = 40
_LEFT_OUT = -1
_SCHEMAS = ("ai_edge_litert.schema_py_generated", "tflite")
_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {name.upper(): np.dtype(name) for name in ("float32", "float16", "int32", "uint8", "int64", "bool", "int16", "int8")}
)
_CODES: Mapping[str, tuple[int, int]] = MappingProxyType({"int8": (-128, 127), "uint8": (0, 255)})
"""Which codes may stand for 0; other types have none but 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: as the file has it.
        shape: sizes, channels last, each at least 1; () for a scalar.
        dtype: a numpy name.
        scale: (n,) float32, n 0 (not quantised), 1, or the channels of `axis`.
        zero_point: (n,) int64.
        axis: which the scales belong to where there are several.
        values: a constant's numbers, in `dtype`; None: computed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: Float32
    zero_point: Int64
    axis: int
    values: Array | None

    @property
    def quantised(self) -> bool:
        """Whether integers stand for real numbers: real = scale * (q - zero_point)."""
        return len(self.scale) > 0


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the file.

    Attributes:
        number: its place in the file.
        kind: as the schema names it, such as CONV_2D; "custom NAME" where the file's maker added it.
        inputs: numbers of tensors, -1 where one is left out.
        outputs: numbers of tensors.
        options: its settings.
    """

    number: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options

    def label(self, model: Model) -> str:
        """How messages name it."""
        name = model.tensors[self.outputs[0]].name.partition(";")[0] if self.outputs else ""
        return f"operator {self.number} ({self.kind}{f', {name[:_SHOWN]}' if name else ''})"


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A file's one subgraph: every input of an operator is a constant, an input, or made by an operator before it.

    Attributes:
        path: of the file.
        tensors: by number.
        operators: execution order; those that no output needs are left out.
        inputs, outputs: numbers of tensors.
    """

    path: Path
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(path: Path) -> Model:
    """The network in the file `path`.

    Raises:
        InputError: no such file, no TFLite, a damaged file, several subgraphs, dynamic or empty shapes, or no schema package is installed.
        UnsupportedError: tensors of a type that is not read.
    """
    schema = _schema()
    try:
        data = path.read_bytes() if path.stat().st_size <= _LARGEST_BYTES else b""
    except OSError as error:
        raise InputError(f"cannot read {path}", found=error.strerror or str(error), wanted="a .tflite file", do="check the path") from error
    if len(data) < 8 or data[4:8] != _IDENTIFIER:
        found = f"{len(data)} bytes, marked {data[4:8]!r}" if len(data) >= 8 else f"{len(data)} bytes"
        raise InputError(f"{path} is no TFLite file", found=found, wanted="a file marked TFL3", do="write it by tf.lite.TFLiteConverter")
    with _damage(path):
        return _Reader(path, data, schema).model()


def refuse_unknown(model: Model, known: Collection[str], wanted: str) -> None:
    """Raises UnsupportedError that lists every operator whose kind is not `known`, with counts."""
    counts: dict[str, int] = {}
    for operator in model.operators:
        if operator.kind not in known:
            counts[operator.kind] = counts.get(operator.kind, 0) + 1
    if counts:
        raise UnsupportedError(
            f"{model.path.name} holds operators that do not compile",
            found=", ".join(f"{kind} ({count} time{'s' if count > 1 else ''})" for kind, count in sorted(counts.items())),
            wanted=wanted,
            do="rewrite these parts with supported operators and convert again; `kqgen ops` lists them",
        )


def _schema() -> Any:
    for name in _SCHEMAS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise InputError("reading .tflite needs a package that is not installed", found="neither ai-edge-litert nor tflite",
                     wanted="one of them", do="pip install 'kqgen[tflite]'")  # fmt: skip


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What the schema's reader raises on a damaged file, as one error."""
    try:
        yield
    except InputError:
        raise
    except (struct.error, ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, found: str) -> InputError:
    return InputError(f"{path} is damaged", found=found, wanted="a whole .tflite file", do="copy or convert it again")


class _Reader:
    """Reads one file."""

    def __init__(self, path: Path, data: bytes, schema: Any) -> None:
        self.path, self.data, self.schema = path, data, schema
        self.constant_bytes = 0
        self.types = {value: key for key, value in vars(schema.TensorType).items() if isinstance(value, int)}
        self.kinds = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    def model(self) -> Model:
        root = self.schema.Model.GetRootAs(self.data, 0)
        if root.Version() != _VERSION:
            raise InputError(f"{self.path} has another version", found=str(root.Version()), wanted=str(_VERSION), do="convert it again")
        if root.SubgraphsLength() != 1:
            raise UnsupportedError(
                f"{self.path} holds several networks", found=f"{root.SubgraphsLength()} subgraphs", wanted="one",
                do="convert one signature, without control flow (while, if)",
            )  # fmt: skip
        graph = root.Subgraphs(0)
        for what, count in (
            ("tensors", graph.TensorsLength()), ("operators", graph.OperatorsLength()), ("buffers", root.BuffersLength()),
            ("operator codes", root.OperatorCodesLength()),
        ):  # fmt: skip
            self._need(0 < count <= _MANY, f"{count} {what}")
        codes = tuple(self._kind(root.OperatorCodes(number)) for number in range(root.OperatorCodesLength()))
        tensors = tuple(self._tensor(root, graph.Tensors(number)) for number in range(graph.TensorsLength()))
        operators = tuple(self._operator(graph.Operators(number), number, codes, tensors) for number in range(graph.OperatorsLength()))
        inputs = self._numbers(graph, "Inputs", len(tensors))
        outputs = self._numbers(graph, "Outputs", len(tensors))
        self._need(bool(outputs) and bool(inputs) and min(*inputs, *outputs, 0) >= 0, "a network without inputs or outputs")
        self._ordered(operators, tensors, inputs, outputs)
        return Model(self.path, tensors, _needed(operators, outputs), inputs, outputs)

    def _need(self, holds: bool, found: str) -> None:
        if not holds:
            raise _damaged(self.path, found)

    def _numbers(self, table: Any, field: str, limit: int) -> tuple[int, ...]:
        """A vector of tensor numbers, -1 for what is left out."""
        count = getattr(table, f"{field}Length")()
        self._need(0 <= count <= _MANY_OPERANDS, f"{count} {field.lower()} of one operator or network")
        numbers = tuple(int(getattr(table, field)(place)) for place in range(count))
        self._need(all(_LEFT_OUT <= number < limit for number in numbers), f"tensor {max(numbers, default=0)} of {limit}")
        return numbers

    def _kind(self, code: Any) -> str:
        # Files from before 2020 have the number in a byte-sized field, newer ones with numbers below 127 in both.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = self.kinds.get(number, f"number {number}")
        return f"custom {_text(code.CustomCode())}" if kind == "CUSTOM" else kind

    def _operator(self, operator: Any, number: int, codes: tuple[str, ...], tensors: tuple[Tensor, ...]) -> Operator:
        place = operator.OpcodeIndex()
        self._need(place < len(codes), f"operator code {place} of {len(codes)}")
        inputs, outputs = self._numbers(operator, "Inputs", len(tensors)), self._numbers(operator, "Outputs", len(tensors))
        whole = bool(outputs) and min(outputs) >= 0 and inputs[:1] != () and inputs[0] >= 0
        self._need(whole, f"operator {number} ({codes[place]}) without input or output")
        return Operator(number, codes[place], inputs, outputs, read_options(self.schema, operator, codes[place]))

    def _tensor(self, root: Any, tensor: Any) -> Tensor:
        name = _text(tensor.Name())
        kind = self.types.get(tensor.Type(), f"number {tensor.Type()}")
        if kind not in _DTYPES:
            raise UnsupportedError(
                f"{self.path.name}: tensor {name[:_SHOWN]} has a type that does not compile", found=kind,
                wanted="float32, float16 or int8", do="convert with another quantisation",
            )  # fmt: skip
        if tensor.IsVariable() or tensor.Sparsity() is not None:
            what = "keeps its values between calls" if tensor.IsVariable() else "is stored sparse"
            raise UnsupportedError(f"{self.path.name}: tensor {name[:_SHOWN]} {what}", wanted="plain tensors", do="convert without it")
        shape = self._shape(name, tensor)
        scale, zero_point, axis = self._quantisation(name, tensor.Quantization(), shape, _DTYPES[kind])
        values = self._values(name, root, tensor.Buffer(), shape, _DTYPES[kind])
        return Tensor(name, shape, _DTYPES[kind].name, scale, zero_point, axis, values)

    def _shape(self, name: str, tensor: Any) -> tuple[int, ...]:
        counts = tensor.ShapeLength(), tensor.ShapeSignatureLength()
        self._need(max(counts) <= _MANY_AXES, f"tensor {name[:_SHOWN]} of {max(counts)} axes")
        shape = tuple(int(tensor.Shape(axis)) for axis in range(counts[0]))
        signature = tuple(int(tensor.ShapeSignature(axis)) for axis in range(counts[1]))
        if min((*signature[1:], *shape, 0)) < 0:
            raise UnsupportedError(
                f"{self.path.name}: tensor {name[:_SHOWN]} has a dynamic shape", found=str(signature or shape),
                wanted="fixed sizes but for the batch", do="convert a model whose input shape is fixed",
            )  # fmt: skip
        if 0 in shape:
            raise InputError(f"{self.path.name}: tensor {name[:_SHOWN]} holds nothing", found=str(shape), wanted="sizes of at least 1")
        size = 1
        for each in shape:
            size *= each
        self._need(size <= _LARGEST_TENSOR, f"tensor {name[:_SHOWN]} of shape {shape}")
        return shape

    def _quantisation(self, name: str, made: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Float32, Int64, int]:
        none = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
        if made is None or made.ScaleLength() == 0:
            return none
        count, axis = made.ScaleLength(), int(made.QuantizedDimension())
        fits = count == 1 or (0 <= axis < len(shape) and count == shape[axis])
        self._need(fits and made.ZeroPointLength() in (0, 1, count), f"tensor {name[:_SHOWN]}: {count} scales for {shape}")
        scale = np.array(made.ScaleAsNumpy(), np.float32)
        zeros = np.array(made.ZeroPointAsNumpy(), np.int64) if made.ZeroPointLength() else np.zeros(1, np.int64)
        zero_point = np.array(np.broadcast_to(zeros, scale.shape))
        self._need(bool(np.all(np.isfinite(scale) & (scale > 0))), f"tensor {name[:_SHOWN]}: scales {scale.min()} to {scale.max()}")
        low, high = _CODES.get(dtype.name, (0, 0))
        self._need(bool(np.all((zero_point >= low) & (zero_point <= high))), f"tensor {name[:_SHOWN]}: zero points to {zero_point.max()}")
        for array in (scale, zero_point):
            array.setflags(write=False)
        return scale, zero_point, axis

    def _values(self, name: str, root: Any, number: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | None:
        self._need(0 <= number < root.BuffersLength(), f"tensor {name[:_SHOWN]}: buffer {number} of {root.BuffersLength()}")
        buffer = root.Buffers(number)
        if buffer.Offset() > 1:
            raise UnsupportedError(f"{self.path.name}: its numbers lie outside the flatbuffer", wanted="a file below 2 GB")
        length = buffer.DataLength()
        if length == 0:
            return None
        wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._need(length == wanted, f"tensor {name[:_SHOWN]} of shape {shape}: {length} bytes instead of {wanted}")
        self.constant_bytes += length
        self._need(self.constant_bytes <= _SHARED * len(self.data), "a buffer that stands for too many tensors")
        made: Array = buffer.DataAsNumpy().view(dtype).reshape(shape)
        if dtype.kind == "f" and not bool(np.isfinite(made).all()):
            bad = int(np.count_nonzero(~np.isfinite(made)))
            raise InputError(
                f"{self.path.name}: tensor {name[:_SHOWN]} holds NaN or infinity", found=f"{bad} of {made.size} values",
                wanted="finite weights", do="check the training or the conversion",
            )  # fmt: skip
        return made

    def _ordered(
        self, operators: tuple[Operator, ...], tensors: tuple[Tensor, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> None:
        """Operators stand in an order in which each finds what it reads; so there is no cycle."""
        known = {number for number, tensor in enumerate(tensors) if tensor.values is not None} | {_LEFT_OUT}
        self._need(not known & set(inputs), "an input that is a constant")
        self._need(len({*inputs}) == len(inputs) and len({*outputs}) == len(outputs), "an input or output named twice")
        known |= set(inputs)
        for operator in operators:
            missing = [number for number in operator.inputs if number not in known]
            self._need(not missing, f"operator {operator.number} ({operator.kind}) reads tensor {missing[:1]} before it is made")
            again = [number for number in operator.outputs if number in known]
            self._need(not again, f"operator {operator.number} ({operator.kind}) makes tensor {again[:1]}, which is there already")
            known |= set(operator.outputs)
        self._need(set(outputs) <= known - set(inputs), "an output that no operator makes")


def _needed(operators: tuple[Operator, ...], outputs: tuple[int, ...]) -> tuple[Operator, ...]:
    """Operators that outputs need; of a reshape the shape is known, so that what computes it is not needed."""
    wanted, kept = set(outputs), []
    for operator in reversed(operators):
        if wanted & set(operator.outputs):
            kept.append(operator)
            wanted |= set(operator.inputs[:1] if operator.kind == "RESHAPE" else operator.inputs)
    return tuple(reversed(kept))


def _text(raw: object) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else ""
