"""Int8 .tflite networks taken over as they are: every byte is that of TFLite's reference kernels, operator by operator, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from conftest import require_data, require_tool
from resnets import cifar10
from tflitecases import CASES, Case
from tflitemodels import Array, reference

from kqgen import oracle
from kqgen.board import load_board
from kqgen.deliver import deliver, drawn_inputs
from kqgen.errors import UnsupportedError
from kqgen.hostlib import build_library
from kqgen.intgraph import Int8, IntConv2d, IntGraph
from kqgen.tflite_ends import without_ends
from kqgen.tflite_integers import integers_of
from kqgen.tflite_names import tensor_names
from kqgen.tflite_read import Model, read_tflite

MODELS = (
    "ad/ad01_int8", "sww/str_ww_ref_model", "kws/kws_ref_model", "ic/pretrainedResnet_quant", "ic/pretrainedResnet_large_int8",
    "vww/vww_96_int8",
)  # fmt: skip
LAYER_INPUTS, RANDOM_INPUTS, IMAGES, LARGE_IMAGES, CLIPS = 2, 4, 40, 6, 120
CLIP_ACCURACY, IMAGE_ACCURACY = 0.901, 0.8697
"""On all 1000 clips by TFLite's reference kernels (its other kernels: 0.902), on all 10 000 images by its other kernels."""


def model_of(folder: Path, data: bytes) -> Model:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return read_tflite(path)


@pytest.mark.parametrize("case", [case for case in CASES if case.int8_too], ids=lambda case: case.name)
def test_an_operator(case: Case, tmp_path: Path) -> None:
    data = case.bytes(int8=True)
    model = model_of(tmp_path, data)
    graph = integers_of(model, "net")
    rng = np.random.default_rng(11)
    for _ in range(3):
        inputs = [rng.integers(-128, 128, model.tensors[number].shape, dtype=np.int8) for number in model.inputs]
        given = {spec.name: values.reshape(1, spec.h, spec.w, spec.c) for spec, values in zip(graph.inputs, inputs, strict=True)}
        made = oracle.run(graph, given)
        for name, wanted in zip(graph.outputs, reference(data, *inputs, kernels=case.kernels), strict=True):
            assert np.array_equal(made[name].ravel(), wanted.ravel())


def interpreter(path: Path) -> Interpreter:
    made = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, experimental_preserve_all_tensors=True
    )
    made.allocate_tensors()
    return made


def codes(graph: IntGraph, count: int) -> Int8:
    """Random codes for the network's one input."""
    return drawn_inputs(graph, count)[0]


@pytest.mark.parametrize("file", MODELS)
def test_every_layer_of_a_real_network(file: str) -> None:
    path = require_data(f"mlperf_tiny/{file}.tflite")
    model = read_tflite(path)
    graph = integers_of(model, "net")
    inner = without_ends(model, integers=True)
    names = tensor_names(inner)
    given = codes(graph, LAYER_INPUTS)
    made = oracle.run(graph, {graph.inputs[0].name: given})
    kernels = interpreter(path)
    compared = 0
    for number, values in enumerate(given):
        _run(kernels, values)
        for operator in inner.operators:
            name = names[operator.outputs[0]]
            if name in made:
                compared += 1
                assert np.array_equal(made[name][number].ravel(), kernels.get_tensor(operator.outputs[0]).ravel()), name
    assert compared == LAYER_INPUTS * len(graph.nodes)


def _run(kernels: Interpreter, values: Array) -> npt.NDArray[np.int8]:
    """The output for one input."""
    detail = kernels.get_input_details()[0]
    kernels.set_tensor(detail["index"], values.reshape(detail["shape"]))
    kernels.invoke()
    return np.array(kernels.get_tensor(kernels.get_output_details()[0]["index"]))


@pytest.mark.parametrize("file", MODELS)
def test_the_c_gives_tflites_bytes(file: str, tmp_path: Path) -> None:
    """The generated C on this computer, dead structure taken out of it, on real inputs where there are any and on random codes."""
    require_tool("cc")
    path = require_data(f"mlperf_tiny/{file}.tflite")
    graph = integers_of(read_tflite(path), "net")
    real, labels, accuracy = real_inputs(file, graph)
    given = np.concatenate([real, codes(graph, RANDOM_INPUTS)])
    out = tmp_path / "fw"
    made = deliver(graph, load_board("host"), drawn_inputs(graph), "test", None, out, None, lambda *_: None, False)
    found = build_library(out, made.plan.graph).run((given,))[0]
    kernels = interpreter(path)
    wanted = np.stack([_run(kernels, values).ravel() for values in given])
    assert np.array_equal(found.reshape(len(given), -1), wanted)
    if labels is not None:
        right = float((found.reshape(len(given), -1)[: len(labels)].argmax(axis=1) == labels).mean())
        assert abs(right - accuracy) < 3 * (accuracy * (1 - accuracy) / len(labels)) ** 0.5


def real_inputs(file: str, graph: IntGraph) -> tuple[Int8, Array | None, float]:
    """Codes of real inputs, their labels where there are any, and the accuracy to expect."""
    spec = graph.inputs[0]
    sides = (-1, spec.h, spec.w, spec.c)
    if file.startswith("ic/"):
        images, labels = cifar10("test")
        count = LARGE_IMAGES if "large" in file else IMAGES
        return (images[:count].astype(np.int16) - 128).astype(np.int8).reshape(sides), labels[:count], IMAGE_ACCURACY
    if file.startswith("kws/"):
        clips = np.load(require_data("mlperf_tiny/perf/kws01_1000.npz"))
        return clips["mfcc_int8"][:CLIPS].reshape(sides), clips["label"][:CLIPS], CLIP_ACCURACY
    if file.startswith("sww/"):
        spectra = np.load(require_data("mlperf_tiny/sww/calibration_samples.npz"))["specs"]
        return oracle.quantise(spec, spectra).reshape(sides), None, 0.0
    return np.zeros((0, spec.h, spec.w, spec.c), np.int8), None, 0.0


def test_channels_without_weights_keep_their_code(tmp_path: Path) -> None:
    """The converter gives them biases of 2^30 and more, which rule `tflite` cannot hold; the same code comes of a small one."""
    path = require_data("mlperf_tiny/vww/vww_96_int8.tflite")
    del tmp_path
    model = read_tflite(path)
    graph = integers_of(model, "net")
    biggest = max(int(np.abs(node.requant.bias.astype(np.int64)).max()) for node in graph.nodes if isinstance(node, IntConv2d))
    stored = max(int(np.abs(tensor.values.astype(np.int64)).max()) for tensor in model.tensors if tensor.values is not None)
    assert stored >= 2**30 > biggest


@pytest.mark.parametrize(
    ("name", "says"), [("div", "DIV"), ("gelu", "GELU")],
)  # fmt: skip
def test_float_networks_have_no_integers(name: str, says: str, tmp_path: Path) -> None:
    case = next(each for each in CASES if each.name == name)
    with pytest.raises(UnsupportedError) as caught:
        integers_of(model_of(tmp_path, case.bytes(int8=False)), "net")
    assert says in str(caught.value) or "float32" in str(caught.value)
