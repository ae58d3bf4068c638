"""A .tflite network as a PyTorch module computes what TFLite's float kernels compute, channels first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from conftest import require_data
from tflitecases import CASES, RELU, SAME, Case, Sketch
from tflitemodels import Array, Maker, reference

from kqgen.errors import UnsupportedError
from kqgen.tflite_module import HANDLERS, load_tflite

TOLERANCE = 1e-5


def written(folder: Path, data: bytes) -> Path:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return path


def first(values: Array) -> torch.Tensor:
    """Channels last to channels first."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1) if values.ndim > 2 else values))


def last(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """And back."""
    return np.moveaxis(values.numpy(), 1, -1) if values.dim() > 2 else values.numpy()


def outputs(path: Path, *inputs: Array) -> list[npt.NDArray[np.float32]]:
    module, examples = load_tflite(path)
    given = [first(values) for values in inputs]
    assert [each.shape for each in examples] == [each.shape for each in given]
    with torch.no_grad():
        made = module(*given)
    return [last(each) for each in (made if isinstance(made, tuple) else (made,))]


@pytest.mark.parametrize("case", [case for case in CASES if case.float_too], ids=lambda case: case.name)
def test_an_operator(case: Case, tmp_path: Path) -> None:
    data = case.bytes(int8=False)
    rng = np.random.default_rng(3)
    path = written(tmp_path, data)
    module, examples = load_tflite(path)
    del module
    inputs = [rng.normal(0, 1, tuple(each.shape)).astype(np.float32) for each in examples]
    inputs = [np.moveaxis(each, 1, -1) if each.ndim > 2 else each for each in inputs]
    wanted = reference(data, *inputs, kernels=case.kernels)
    found = outputs(path, *inputs)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() < TOLERANCE


def test_every_operator_has_its_case() -> None:
    tried = {
        schema_kind(code.builtinCode)
        for case in CASES if case.float_too
        for code in schema.ModelT.InitFromPackedBuf(case.bytes(int8=False), 0).operatorCodes
    }  # fmt: skip
    elsewhere = {"DEQUANTIZE", "QUANTIZE", "TRANSPOSE"}
    assert set(HANDLERS) - tried == {*elsewhere, "SQUEEZE", "EXPAND_DIMS", "PADV2", "SPLIT_V", "RELU_0_TO_1"}


def schema_kind(number: int) -> str:
    return next(str(name) for name, value in vars(schema.BuiltinOperator).items() if value == number)


def test_float16_weights_behind_a_dequantize(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sketch = Sketch(int8=False)
    x = sketch.input(1, 6, 5, 3)
    half = rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float16)
    w = sketch.maker.tensor("half", half.shape, values=half, dtype="float16")
    whole = sketch.maker.tensor("whole", half.shape, dtype="float32")
    sketch.add("DEQUANTIZE", [w], [whole])
    y = sketch.map(1, 6, 5, 4)
    sketch.add("CONV_2D", [x, whole], [y], padding=SAME, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    path = written(tmp_path, sketch.bytes(y))
    module, _ = load_tflite(path)
    weight = next(module.parameters()).detach().numpy()
    assert np.array_equal(weight, half.astype(np.float32).transpose(0, 3, 1, 2))


def test_int8_weights_of_a_float_network(tmp_path: Path) -> None:
    """The hybrid kind: weights int8, everything else float."""
    sketch = Sketch(int8=False)
    x = sketch.input(1, 8)
    values = np.arange(-12, 12).reshape(3, 8)
    w = sketch.maker.tensor("w", (3, 8), 0.25, 0, values)
    y = sketch.map(1, 3)
    sketch.add("FULLY_CONNECTED", [x, w], [y])
    given = np.linspace(-1, 1, 8, dtype=np.float32)[None]
    assert np.allclose(outputs(written(tmp_path, sketch.bytes(y)), given)[0], given @ (0.25 * values.T), atol=TOLERANCE)


def test_grouped_convolution(tmp_path: Path) -> None:
    sketch = Sketch(int8=False)
    x = sketch.input(1, 5, 5, 6)
    w, scale = sketch.weights(4, 3, 3, 3)
    y = sketch.map(1, 5, 5, 4)
    sketch.add("CONV_2D", [x, w, sketch.bias(4, scale)], [y], padding=SAME, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    data = sketch.bytes(y)
    given = np.random.default_rng(0).normal(0, 1, (1, 5, 5, 6)).astype(np.float32)
    assert np.abs(outputs(written(tmp_path, data), given)[0] - reference(data, given)[0]).max() < TOLERANCE


def test_a_channels_first_input_stays_so(tmp_path: Path) -> None:
    """Networks that came from PyTorch turn their input round first; nothing is left of that."""
    sketch = Sketch(int8=False)
    x = sketch.input(1, 3, 6, 5)
    turned = sketch.map(1, 6, 5, 3)
    sketch.add("TRANSPOSE", [x, sketch.numbers(0, 2, 3, 1)], [turned])
    y = sketch.map(1, 6, 5, 3)
    sketch.add("RELU", [turned], [y])
    back = sketch.map(1, 3, 6, 5)
    sketch.add("TRANSPOSE", [y, sketch.numbers(0, 3, 1, 2)], [back])
    module, examples = load_tflite(written(tmp_path, sketch.bytes(back)))
    assert [tuple(each.shape) for each in examples] == [(1, 3, 6, 5)]
    given = torch.randn(1, 3, 6, 5)
    assert torch.equal(module(given), torch.relu(given))


def test_int8_tensors_keep_the_files_quantisation(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "add")
    module, _ = load_tflite(written(tmp_path, case.bytes(int8=True)))
    pins = [node.args[1:3] for node in module.graph.nodes if node.target is torch.fake_quantize_per_tensor_affine]
    scale = [float(np.float32(each)) for each in (0.05, 0.021, 0.06)]
    assert pins == [(scale[0], -7), (scale[1], 12), (scale[2], 3)]


def test_uint8_codes_count_as_int8(tmp_path: Path) -> None:
    maker = Maker()
    x = maker.tensor("x", (1, 4), 0.1, 131, dtype="uint8")
    y = maker.tensor("y", (1, 4), 0.1, 128, dtype="uint8")
    maker.operator("RELU", [x], [y])
    module, _ = load_tflite(written(tmp_path, maker.bytes([x], [y])))
    zeros = [node.args[2] for node in module.graph.nodes if node.target is torch.fake_quantize_per_tensor_affine]
    assert zeros == [3, 0]


def test_a_refusal_names_the_operator(tmp_path: Path) -> None:
    made = next(each for each in CASES if each.name == "average_pool_uneven")
    with pytest.raises(UnsupportedError, match=r"operator 0 \(AVERAGE_POOL_2D, map_2\)") as caught:
        load_tflite(written(tmp_path, made.bytes(int8=False)))
    assert "as much padding on either side" in str(caught.value)


def test_a_flattened_map_goes_into_dense_layers_alone(tmp_path: Path) -> None:
    sketch = Sketch(int8=False)
    x, other = sketch.input(1, 3, 4, 5), sketch.input(1, 60)
    flat, y = sketch.map(1, 60), sketch.map(1, 60)
    sketch.add("RESHAPE", [x, sketch.numbers(1, 60)], [flat], newShape=[1, 60])
    sketch.add("ADD", [flat, other], [y], fusedActivationFunction=RELU)
    with pytest.raises(UnsupportedError, match="before the map is flattened"):
        load_tflite(written(tmp_path, sketch.bytes(y)))


@pytest.mark.parametrize(
    ("file", "scale"),
    [("ad/ad01_fp32", 1.0), ("ic/pretrainedResnet", 255.0), ("ic/pretrainedResnet_large_float", 255.0), ("vww/vww_96_float", 1.0)],
)
def test_real_networks(file: str, scale: float) -> None:
    path = require_data(f"mlperf_tiny/{file}.tflite")
    module, examples = load_tflite(path)
    del module
    shape = tuple(examples[0].shape)
    given = np.random.default_rng(0).uniform(0, scale, (1, *shape[2:], shape[1]) if len(shape) > 2 else shape).astype(np.float32)
    wanted = reference(path.read_bytes(), given)[0]
    assert np.abs(outputs(path, given)[0] - wanted).max() < TOLERANCE * max(1.0, float(np.abs(wanted).max()))
