"""ONNX files that are damaged, hostile or not for kqgen: each gives one clear error, and nothing outside the model's folder is read."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxmodels import expected, model, node, save, weights

from kqgen.errors import InputError, KqgenError, ToolchainError, UnsupportedError
from kqgen.onnx_import import load_onnx

SHAPE = (1, 3, 8, 8)


def small() -> onnx.ModelProto:
    """A convolution, a ReLU, a mean and a dense layer."""
    nodes = [
        node("Conv", "x w b", "c", "stem/conv", pads=[1, 1, 1, 1]), node("Relu", "c", "r", "stem/relu"),
        node("GlobalAveragePool", "r", "g", "mean"), node("Flatten", "g", "f", "flat"), node("Gemm", "f k", "y", "head"),
    ]  # fmt: skip
    constants = {"w": weights(1, 4, 3, 3, 3), "b": weights(2, 4), "k": weights(3, 4, 2)}
    return model(nodes, {"x": SHAPE}, ["y"], constants)


def refusal(made: onnx.ModelProto | bytes, tmp_path: Path) -> KqgenError:
    """The error that loading gives."""
    path = tmp_path / "net.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    with pytest.raises(KqgenError) as caught:
        load_onnx(path)
    return caught.value


def test_names_of_nodes_and_inputs_are_kept(tmp_path: Path) -> None:
    made = small()
    made.graph.node[0].name, made.graph.node[1].name, made.graph.node[2].name = "block.0/conv", "block.1;relu(a)", ""
    made.graph.node[3].name = "head"
    module, examples = load_onnx(save(made, tmp_path / "net.onnx"))
    names = [name for name, child in module.named_modules() if not list(child.children())]
    assert names == ["block.0/conv", "block.1_relu_a_", "GlobalAveragePool_2", "head", "head_1"]
    assert [tuple(each.shape) for each in examples] == [SHAPE]
    assert [tuple(value.shape) for key, value in module.named_parameters() if key == "block.0/conv.weight"] == [(4, 3, 3, 3)]


def test_names_that_modules_use_themselves_or_within_each_other(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "a", "forward"), node("PRelu", "a s", "b", "act"), node("Relu", "b", "c", "act.weight"),
        node("Relu", "c", "y", "act.b.c"),
    ]  # fmt: skip
    module, _ = load_onnx(save(model(nodes, {"x": SHAPE}, ["y"], {"s": weights(1, 3, 1, 1)}), tmp_path / "net.onnx"))
    assert [name for name, child in module.named_modules() if not list(child.children())] == ["forward_", "act.b.c", "act_weight"]


def test_inputs_named_as_python_or_c_words(tmp_path: Path) -> None:
    nodes = [node("Sum", "input self lambda input:0", "y")]
    shapes = dict.fromkeys(("input", "self", "lambda", "input:0"), SHAPE)
    module, examples = load_onnx(save(model(nodes, shapes, ["y"]), tmp_path / "net.onnx"))
    assert len(examples) == 4
    placeholders = [each.target for each in module.graph.nodes if each.op == "placeholder"]  # type: ignore[union-attr]
    assert placeholders == ["input", "self_1", "lambda_", "input_0"]


def test_an_input_that_is_turned_first_is_taken_channels_first(tmp_path: Path) -> None:
    constants = {"w": weights(1, 4, 3, 3, 3), "one": weights(2, 2, 1, 3, 3), "s": np.array([-1, 1, 8, 9], np.int64)}
    turned = model(
        [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "y"), node("Reshape", "z s", "r"), node("Conv", "r one", "v")],
        {"x": ("N", 8, 9, 3), "z": ("N", 8, 9, 1)}, ["y", "v"], constants,
    )  # fmt: skip
    module, examples = load_onnx(save(turned, tmp_path / "net.onnx"))
    assert [tuple(each.shape) for each in examples] == [(1, 3, 8, 9), (1, 1, 8, 9)]
    x, z = weights(7, 1, 8, 9, 3), weights(8, 1, 8, 9, 1)
    made = module(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(z.transpose(0, 3, 1, 2)))
    for found, wanted in zip(made, expected(turned, {"x": x, "z": z}), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("axis", ["N", None, 1, 4])
def test_the_batch_axis_may_be_anything(tmp_path: Path, axis: str | int | None) -> None:
    made = small()
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [axis, *SHAPE[1:]]))
    _, examples = load_onnx(save(made, tmp_path / "net.onnx"))
    assert tuple(examples[0].shape) == (axis if isinstance(axis, int) else 1, *SHAPE[1:])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_weights_of_other_floats(tmp_path: Path, kind: int) -> None:
    made = small()
    stored = numpy_helper.to_array(made.graph.initializer[0])
    made.graph.initializer[0].CopyFrom(helper.make_tensor("w", kind, stored.shape, stored.reshape(-1).tolist()))
    module, _ = load_onnx(save(made, tmp_path / "net.onnx"))
    read = dict(module.named_parameters())["stem/conv.weight"].detach().numpy()
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, stored, rtol=1e-2)


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(small(), path, save_as_external_data=True, size_threshold=0)
    stored, _ = load_onnx(save(small(), tmp_path / "one.onnx"))
    module, _ = load_onnx(path)
    for key, value in stored.state_dict().items():
        np.testing.assert_array_equal(module.state_dict()[key].numpy(), value.numpy())


def _external(change: Callable[[onnx.TensorProto], None], tmp_path: Path) -> KqgenError:
    """The error after `change` of the first initialiser, which lies in weights.bin beside the model."""
    (tmp_path / "net").mkdir()
    path = tmp_path / "net" / "net.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    made = onnx.load(path, load_external_data=False)
    change(made.graph.initializer[0])
    save(made, path)
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    (tmp_path / "net" / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError) as caught:
        load_onnx(path)
    return caught.value


def _place(tensor: onnx.TensorProto, key: str, value: str) -> None:
    kept = [(each.key, each.value) for each in tensor.external_data if each.key != key]
    del tensor.external_data[:]
    for name, text in [*kept, (key, value)]:
        tensor.external_data.add(key=name, value=text)


@pytest.mark.parametrize("place", ["../secret.bin", "link.bin", "/etc/hostname", "", ".", "a/../../secret.bin"])
def test_weights_outside_the_models_folder_are_not_read(tmp_path: Path, place: str) -> None:
    error = _external(lambda tensor: _place(tensor, "location", place), tmp_path)
    assert "outside the model's folder" in error.what
    assert "secret" not in error.wanted


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("location", "gone.bin", "are missing"), ("offset", "99999", "damaged"), ("offset", "-4", "damaged"), ("length", "1e9", "damaged"),
        ("length", "99999999999", "damaged"), ("length", "8", "damaged"),
    ],
)  # fmt: skip
def test_weights_beside_the_model_that_are_not_there(tmp_path: Path, key: str, value: str, says: str) -> None:
    assert says in _external(lambda tensor: _place(tensor, key, value), tmp_path).what


def test_all_unknown_operators_are_told_at_once(tmp_path: Path) -> None:
    nodes = [
        node("Softsign", "x", "a", "first"), node("LogSoftmax", "a", "b", "log"), node("Softsign", "b", "c"),
        helper.make_node("FusedConv", ["c"], ["d"], domain="com.microsoft"), node("QLinearConv", "d s z", "y", "q"),
        node("Det", "x", "nobody", "dead"),
    ]  # fmt: skip
    constants = {"s": np.ones(1, np.float32), "z": np.zeros(1, np.int8)}
    error = refusal(model(nodes, {"x": SHAPE}, ["y"], constants), tmp_path)
    assert isinstance(error, UnsupportedError)
    assert error.found.splitlines() == [
        "Softsign: 2 (first first)", "LogSoftmax: 1 (first log)", "com.microsoft.FusedConv: 1 (first FusedConv_3)",
        "QLinearConv: 1 (first q)",
    ]  # fmt: skip
    assert "4 operators" in error.what
    assert "logits" in error.do
    assert "QuantFormat.QDQ" in error.do
    assert "com.microsoft" in error.do


def _with(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    made = small()
    change(made)
    return made


def _initialiser(array: np.ndarray, name: str) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        place = [each.name for each in made.graph.initializer].index(name)
        made.graph.initializer[place].CopyFrom(numpy_helper.from_array(array, name))

    return change


def _shape(*axes: int | str | None) -> Callable[[onnx.ModelProto], None]:
    return lambda made: made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, axes))


def _input_of(kind: int) -> Callable[[onnx.ModelProto], None]:
    return lambda made: made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, SHAPE))


def _huge(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[0] = 1 << 40


def _grow(operator: str, *operands: np.ndarray) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        names = [f"grow{number}" for number in range(len(operands))]
        made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in zip(names, operands, strict=True))
        made.graph.node.append(helper.make_node(operator, names, ["grown"]))
        made.graph.node.append(helper.make_node("Add", ["y", "grown"], ["out"]))
        made.graph.output[0].name = "out"

    return change


def _function(made: onnx.ModelProto) -> None:
    made.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 18)]))


BAD: dict[str, tuple[Callable[[onnx.ModelProto], None], tuple[str, ...]]] = {
    "opset 6": (lambda made: made.opset_import[0].__setattr__("version", 6), ("opset 6", "opset 7 to 23", "convert_version")),
    "opset 99": (lambda made: made.opset_import[0].__setattr__("version", 99), ("opset 99",)),
    "no opset": (lambda made: made.ClearField("opset_import"), ("no opset_import",)),
    "no graph": (lambda made: made.ClearField("graph"), ("a file that holds no graph",)),
    "no nodes": (lambda made: made.graph.ClearField("node"), ("a graph without nodes",)),
    "no inputs": (lambda made: made.graph.ClearField("input"), ("has no inputs",)),
    "no outputs": (lambda made: made.graph.ClearField("output"), ("has no outputs",)),
    "output of nobody": (lambda made: made.graph.output[0].__setattr__("name", "z"), ("lacks tensors", "z, read by the outputs")),
    "output is a weight": (lambda made: made.graph.output[0].__setattr__("name", "w"), ("output w", "does not depend on the inputs")),
    "weights missing": (lambda made: made.graph.initializer.pop(0), ("lacks tensors that it reads", "w, read by stem/conv")),
    "weights twice": (lambda made: made.graph.initializer[1].__setattr__("name", "w"), ("two initialisers of one name", "w")),
    "tensor twice": (
        lambda made: made.graph.node[1].output.__setitem__(0, "c"), ("tensor c is made twice", "by node stem/conv and by stem/relu"),
    ),
    "cycle": (lambda made: made.graph.node[0].input.__setitem__(0, "r"), ("holds a cycle", "stem/conv, stem/relu")),
    "rows of any number": (_shape(1, 3, "rows", 8), ("no fixed size", "(1, 3, rows, 8)", "update_inputs_outputs_dims", "[1, 3, SIZE, 8]")),
    "no shape": (lambda made: made.graph.input[0].type.tensor_type.ClearField("shape"), ("no fixed size", "no shape")),
    "axis of no size": (_shape(1, 3, 0, 8), ("an axis of no size", "(1, 3, 0, 8)")),
    "axis below 0": (_shape(1, 3, -8, 8), ("an axis of no size",)),
    "five axes": (_shape(1, 3, 4, 4, 4), ("cannot compile layer stem/conv", "5 axes")),
    "a huge input": (_shape(1, 3, 1 << 20, 1 << 20), ("absurdly large", "input x")),
    "channels that do not fit": (_shape(1, 4, 8, 8), ("layer stem/conv (Conv) is wrong", "4 input channels")),
    "features that do not fit": (_initialiser(weights(1, 5, 2), "k"), ("layer head (Gemm) is wrong", "(1, 4)")),
    "integers in": (_input_of(TensorProto.INT64), ("input x", "int64", "uint8 pixels")),
    "texts in": (_input_of(TensorProto.STRING), ("input x", "string")),
    "NaN": (_initialiser(np.full((4, 3, 3, 3), np.nan, np.float32), "w"), ("layer stem/conv (Conv) holds NaN", "108 of 108 values of w")),
    "infinity in half precision": (
        _initialiser(np.full(4, np.inf, np.float16), "b"), ("b is out of range", "4 of 4", "65504", "float32 model"),
    ),
    "double beyond float": (_initialiser(np.full(4, 1e300), "b"), ("b is out of range", "4 of 4", "3.4e38")),
    "no weights": (_initialiser(np.zeros((0, 3, 3, 3), np.float32), "w"), ("layer stem/conv (Conv) is wrong", "(0, 3, 3, 3)")),
    "complex weights": (_initialiser(np.zeros(4, np.complex64), "b"), ("b holds COMPLEX64",)),
    "huge weights": (_huge, ("absurdly large", "w of ")),
    "weights below 0": (lambda made: made.graph.initializer[0].dims.__setitem__(0, -4), ("damaged", "(-4, 3, 3, 3)")),
    "too few weights": (lambda made: made.graph.initializer[0].dims.__setitem__(0, 5), ("damaged",)),
    "own functions": (_function, ("operators of its own", "Twice", "inline_local_functions")),
    "stride 0": (
        lambda made: made.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 1])), ("attribute strides", "stem/conv"),
    ),
    "absurd pads": (lambda made: made.graph.node[0].attribute[0].ints.__setitem__(0, 1 << 40), ("attribute pads", "stem/conv")),
    "attribute of another kind": (
        lambda made: made.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", "one")), ("attribute pads",),
    ),
    "attribute of other numbers": (
        lambda made: made.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", [0.5] * 4)), ("whole numbers", "stem/conv"),
    ),
    "a constant that grows": (_grow("Expand", weights(1, 1000, 1), np.array([1, 1 << 20], np.int64)), ("a constant of 1.04858e+09",)),
    "a constant of a shape": (_grow("ConstantOfShape", np.array([1 << 30], np.int64)), ("a constant of", "67108864")),
    "a long range": (_grow("Range", *(np.array(each, np.int64) for each in (0, 1 << 50, 1))), ("a constant of",)),
    "a product of vectors": (_grow("Mul", weights(1, 1 << 14, 1), weights(1, 1, 1 << 14)), ("a constant of 2.68435e+08",)),
    "constants that do not fit": (_grow("Add", weights(1, 3), weights(1, 4)), ("layer Add_5 (Add) is wrong",)),
    "a table that grows": (_grow("Gather", weights(1, 2, 1 << 14), np.zeros(1 << 14, np.int64)), ("a constant of",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    change, says = BAD[name]
    error = refusal(_with(change), tmp_path)
    assert isinstance(error, InputError)
    assert [text for text in says if text not in error.render()] == []
    assert error.wanted or error.do


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-38, 3e38, np.inf, np.nan])
def test_scales_that_no_activation_has(tmp_path: Path, scale: float) -> None:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    error = refusal(model(nodes, {"x": SHAPE}, ["y"], {"s": np.float32(scale), "z": np.uint8(0)}), tmp_path)
    assert "layer QuantizeLinear_0 (QuantizeLinear) is wrong" in error.what
    assert "a scale of an activation" in error.wanted


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"not a model at all", b"\xff" * 40, b"PK\x03\x04" + b"\0" * 60])
def test_files_that_are_no_onnx(tmp_path: Path, content: bytes) -> None:
    assert "is no ONNX file, or damaged" in refusal(content, tmp_path).what


def test_sizes_that_do_not_fit_leave_no_log(tmp_path: Path) -> None:
    """PyTorch logs a traceback of its own where an operator refuses its operands."""
    seen: list[logging.LogRecord] = []
    watcher = logging.Handler()
    watcher.emit = seen.append  # type: ignore[assignment,method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(watcher)
    refusal(_with(_initialiser(weights(1, 5, 2), "k")), tmp_path)
    logger.removeHandler(watcher)
    assert seen == []


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_onnx(tmp_path / "none.onnx")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    content = small().SerializeToString().replace(b"stem/conv", b"stem\xffconv")
    assert "is no ONNX file, or damaged" in refusal(content, tmp_path).what


def test_long_chains_in_reverse_order_take_no_time(tmp_path: Path) -> None:
    count = 3000
    nodes = [node("Identity", f"t{number}", f"t{number + 1}") for number in range(count)]
    made = model([*reversed(nodes), node("Relu", f"t{count}", "y")], {"t0": (1, 2)}, ["y"])
    start = time.monotonic()
    module, _ = load_onnx(save(made, tmp_path / "net.onnx"))
    assert [name for name, _ in module.named_children()] == [f"Relu_{count}"]
    assert time.monotonic() - start < 20


def test_without_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    path = save(small(), tmp_path / "net.onnx")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ToolchainError, match=r"pip install 'kqgen\[onnx\]'"):
        load_onnx(path)


def test_truncated_files_give_one_clear_error(tmp_path: Path) -> None:
    content, path = small().SerializeToString(), tmp_path / "net.onnx"
    for size in range(0, len(content), 11):
        path.write_bytes(content[:size])
        with pytest.raises(KqgenError) as caught:
            load_onnx(path)
        assert caught.value.exit_status == 2


def test_changed_bytes_give_a_clear_error_or_a_network(tmp_path: Path) -> None:
    """Whatever is raised is an error on purpose; most changes fall into weights or into names and give a network."""
    rng, path = np.random.default_rng(11), tmp_path / "net.onnx"
    content = np.frombuffer(small().SerializeToString(), np.uint8)
    loaded = 0
    for _ in range(400):
        changed = content.copy()
        places = rng.integers(0, len(content), rng.integers(1, 4))
        changed[places] = rng.integers(0, 256, len(places))
        path.write_bytes(changed.tobytes())
        status = 0
        try:
            load_onnx(path)
        except KqgenError as error:
            status = error.exit_status
        assert status in (0, 2)
        loaded += status == 0
    assert 0 < loaded < 400
