"""A .tflite file is data of unknown origin: whole ones are read, all others give one clear error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import _missing
from tflitecases import CASES, RELU, Sketch
from tflitemodels import Maker

from kqgen.errors import InputError, UnsupportedError
from kqgen.tflite_integers import integers_of, is_int8
from kqgen.tflite_module import load_tflite, module_of
from kqgen.tflite_names import tensor_names
from kqgen.tflite_read import Model, read_tflite

DAMAGED = 200
BY_NAME = {case.name: case for case in CASES}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return path


def read(folder: Path, data: bytes) -> Model:
    return read_tflite(written(folder, data))


def refusal(folder: Path, data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, data)
    return str(caught.value)


def test_tensors_and_settings_are_as_written(tmp_path: Path) -> None:
    model = read(tmp_path, BY_NAME["conv_same_stride_2_odd"].bytes(int8=True))
    operator = model.operators[0]
    assert (operator.kind, operator.inputs, operator.outputs) == ("CONV_2D", (0, 1, 3), (2,))
    assert (operator.options.same, operator.options.stride, operator.options.activation) == (True, (2, 2), "RELU6")
    weights, source = model.tensors[1], model.tensors[0]
    assert (weights.shape, weights.dtype, len(weights.scale), weights.axis) == ((5, 3, 3, 3), "int8", 5, 0)
    assert weights.values is not None
    assert source.values is None
    assert (float(source.scale[0]), int(source.zero_point[0])) == (float(np.float32(0.05)), -7)
    with pytest.raises(ValueError, match="read-only"):
        weights.values[0] = 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no TFLite file"),
        (b"abc", "no TFLite file"),
        (b"\x1c\x00\x00\x00GGUF" + bytes(64), "no TFLite file"),
        (b"\x00\x00\x00\xffTFL3" + bytes(64), "damaged"),
        (b"\x08\x00\x00\x00TFL3", "damaged"),
    ],
)
def test_what_is_no_tflite(tmp_path: Path, data: bytes, says: str) -> None:
    assert says in refusal(tmp_path, data)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_tflite(tmp_path / "none.tflite")


def test_no_schema_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    assert "pip install 'kqgen[tflite]'" in refusal(tmp_path, b"TFL3")


def test_either_schema_package_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema of the package tflite in the place of ai-edge-litert's."""
    if importlib.util.find_spec("tflite") is None:
        _missing("needs the package tflite, which is not installed")
    monkeypatch.setattr("kqgen.tflite_read._SCHEMAS", ("tflite",))
    model = read(tmp_path, BY_NAME["depthwise_multiplier"].bytes(int8=True))
    assert model.operators[0].kind == "DEPTHWISE_CONV_2D"
    assert model.operators[0].options.same


def change(maker: Maker, what: Callable[[Maker], None]) -> bytes:
    x = maker.tensor("x", (1, 4), 0.1, 0)
    y = maker.tensor("y", (1, 4), 0.1, 0)
    maker.operator("RELU", [x], [y], version=2)
    what(maker)
    return maker.bytes([x], [y])


def _dynamic(maker: Maker) -> None:
    maker.graph.tensors[0].shapeSignature = [1, -1]


def _empty(maker: Maker) -> None:
    maker.graph.tensors[1].shape = [1, 0]


def _huge(maker: Maker) -> None:
    maker.graph.tensors[1].shape = [1, 2**30]


def _axes(maker: Maker) -> None:
    maker.graph.tensors[0].shape = [1] * 20


def _negative(maker: Maker) -> None:
    maker.graph.tensors[0].shape = [1, -4]


def _twice(maker: Maker) -> None:
    maker.model.subgraphs = [maker.graph, maker.graph]


def _index(maker: Maker) -> None:
    maker.graph.operators[0].inputs = [7]


def _left_out(maker: Maker) -> None:
    maker.graph.operators[0].inputs = [-1]


def _own_output(maker: Maker) -> None:
    maker.graph.operators[0].inputs = [1]


def _cycle(maker: Maker) -> None:
    maker.tensor("z", (1, 4), 0.1, 0)
    maker.graph.operators[0].inputs = [2]
    maker.operator("RELU", [1], [2], version=2)


def _again(maker: Maker) -> None:
    maker.operator("RELU", [0], [1], version=2)


def _buffer(maker: Maker) -> None:
    maker.graph.tensors[0].buffer = 9


def _short(maker: Maker) -> None:
    maker.tensor("k", (1, 4), 0.1, 0, np.zeros(3))


def _long(maker: Maker) -> None:
    maker.tensor("k", (1, 4), 0.1, 0, np.zeros(5))


def _infinite(maker: Maker) -> None:
    maker.tensor("k", (2,), values=np.array([1.0, np.inf]), dtype="float32")


def _scale(maker: Maker) -> None:
    maker.graph.tensors[0].quantization.scale = np.array([0.0], np.float32)


def _scales(maker: Maker) -> None:
    maker.graph.tensors[0].quantization.scale = np.ones(3, np.float32)


def _zero_point(maker: Maker) -> None:
    maker.graph.tensors[0].quantization.zeroPoint = np.array([200])


def _variable(maker: Maker) -> None:
    maker.graph.tensors[0].isVariable = True


def _complex(maker: Maker) -> None:
    maker.graph.tensors[0].type = 8


def _version(maker: Maker) -> None:
    maker.model.version = 2


def _outside(maker: Maker) -> None:
    maker.model.buffers[0].offset, maker.model.buffers[0].size = 4096, 10


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (_dynamic, "dynamic shape"), (_negative, "dynamic shape"), (_empty, "holds nothing"), (_huge, "damaged"), (_axes, "20 axes"),
        (_twice, "2 subgraphs"), (_index, "damaged"), (_left_out, "without input"), (_own_output, "before it is made"),
        (_cycle, "before it is made"), (_again, "there already"), (_buffer, "buffer 9 of"), (_short, "3 bytes instead of 4"),
        (_long, "5 bytes instead of 4"), (_infinite, "NaN or infinity"), (_scale, "scales 0"), (_scales, "3 scales"),
        (_zero_point, "zero points to 200"), (_variable, "keeps its values"), (_complex, "COMPLEX64"), (_version, "another version"),
        (_outside, "outside the flatbuffer"),
    ],
)  # fmt: skip
def test_one_thing_wrong(tmp_path: Path, what: Callable[[Maker], None], says: str) -> None:
    assert says in refusal(tmp_path, change(Maker(), what))


def test_damage_anywhere_gives_an_input_error(tmp_path: Path) -> None:
    """Cut files and changed bytes, through both ways a file is taken: nothing but an InputError, or a network, comes out."""
    rng = np.random.default_rng(5)
    names = ("conv_dilated", "dense_on_a_flattened_map", "softmax", "concat", "strided_slice", "split", "add", "mean", "pad", "prelu")
    wholes = [BY_NAME[name].bytes(int8) for name in names for int8 in (False, True)]
    outcomes = {"network": 0, "refused": 0}
    for number in range(DAMAGED):
        data = bytearray(wholes[number % len(wholes)])
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
        if number % 5 == 0:
            del data[int(rng.integers(len(data))) :]
        for take in (module_of, lambda model: integers_of(model, "net") if is_int8(model) else None):
            try:
                take(read(tmp_path, bytes(data)))
                outcomes["network"] += 1
            except InputError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > DAMAGED // 4


def test_all_unsupported_operators_at_once(tmp_path: Path) -> None:
    maker = Maker()
    x, *rest = (maker.tensor(f"t{number}", (1, 4), dtype="float32") for number in range(5))
    maker.operator("SIN", [x], [rest[0]])
    maker.operator("SIN", [rest[0]], [rest[1]])
    maker.operator("RELU", [rest[1]], [rest[2]])
    maker.operator("CUSTOM", [rest[2]], [rest[3]])
    maker.model.operatorCodes[-1].customCode = "FlexErf"
    with pytest.raises(UnsupportedError) as caught:
        load_tflite(written(tmp_path, maker.bytes([x], [rest[3]])))
    assert "SIN (2 times), custom FlexErf (1 time)" in str(caught.value)


def test_what_no_output_needs_is_left_out(tmp_path: Path) -> None:
    """A converter leaves the computation of a reshape's shape behind; the shape is known, so it does not matter."""
    sketch = Sketch(int8=False)
    x = sketch.input(1, 2, 3, 4)
    shape = sketch.maker.tensor("shape", (4,), dtype="int32")
    sketch.add("SHAPE", [x], [shape])
    y = sketch.map(1, 24)
    sketch.add("RESHAPE", [x, shape], [y])
    model = read(tmp_path, sketch.bytes(y))
    assert [operator.kind for operator in model.operators] == ["RESHAPE"]


def test_names_are_those_of_layers(tmp_path: Path) -> None:
    maker = Maker()
    x = maker.tensor("serving_default_input_1:0", (1, 4, 4, 2), dtype="float32")
    w = maker.tensor("w", (2, 1, 1, 2), values=np.ones((2, 1, 1, 2)), dtype="float32")
    names = (
        "model/activation/Relu;model/batch_normalization/FusedBatchNormV3;model/depthwise_conv2d_4/depthwise;model/conv2d_3/Conv2D1",
        "StatefulPartitionedCall:0",
    )
    a, b = (maker.tensor(name, (1, 4, 4, 2), dtype="float32") for name in names)
    for source, made in ((x, a), (a, b)):
        sketch = Sketch(int8=False)
        sketch.maker = maker
        sketch.add("CONV_2D", [source, w], [made], strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=RELU)
    model = read(tmp_path, maker.bytes([x], [b]))
    assert tensor_names(model) == ("input_1", "", "conv2d_3", "conv")
