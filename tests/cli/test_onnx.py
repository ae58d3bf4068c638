"""ONNX files from the command line to proven C: the names of the file in every report, its given scales in the integers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from conftest import require_tool
from onnxmodels import expected, model, node, save, weights

import kqgen as package
from cli import tinynet
from cli.running import BOARD, entries, kqgen, ok, read_json
from kqgen.onnx_import import load_onnx

SHAPE = ("N", 3, 8, 8)
LAYERS = ["/stem/stem.0/Conv", "/dw/Conv", "/act/Mul", "/Add", "/pool/GlobalAveragePool", "/head/Gemm"]


def network() -> onnx.ModelProto:
    """A convolution, a depthwise one with SiLU around which an addition skips, a mean and a head."""
    nodes = [
        node("Conv", "x w0 b0", "c0", LAYERS[0], pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "c0", "r0", "/stem/stem.1/Relu"),
        node("Conv", "r0 w1 b1", "c1", LAYERS[1], pads=[1, 1, 1, 1], group=8), node("Sigmoid", "c1", "g1", "/act/Sigmoid"),
        node("Mul", "c1 g1", "m1", LAYERS[2]), node("Add", "m1 r0", "a", LAYERS[3]), node("GlobalAveragePool", "a", "p", LAYERS[4]),
        node("Flatten", "p", "f"), node("Gemm", "f w2 b2", "scores", LAYERS[5], transB=1),
    ]  # fmt: skip
    constants = {
        "w0": weights(1, 8, 3, 3, 3), "b0": weights(2, 8), "w1": weights(3, 8, 1, 3, 3), "b1": weights(4, 8), "w2": weights(5, 5, 8),
        "b2": weights(6, 5),
    }  # fmt: skip
    return model(nodes, {"x": SHAPE}, ["scores"], constants, 17)


def quantised() -> onnx.ModelProto:
    """The QDQ format: uint8 activations, int8 weights with a scale a channel, int32 bias."""
    constants = {
        "xs": np.float32(0.03), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(0), "zs": np.float32(0.02), "zz": np.int8(7),
        "q": np.random.default_rng(3).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), "qs": np.array([2, 3, 4, 5], np.float32) / 1000,
        "qz": np.zeros(4, np.int8), "b": np.array([900, -400, 100, 0], np.int32), "bs": 0.03 * np.array([2, 3, 4, 5], np.float32) / 1000,
        "k": weights(5, 4, 2), "ks": np.float32(0.004), "kz": np.int8(0),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"), node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "q qs qz", "w", axis=0), node("DequantizeLinear", "b bs", "bd", axis=0),
        node("Conv", "xd w bd", "c", "conv"), node("Relu", "c", "r", "relu"),
        node("QuantizeLinear", "r ys yz", "rq"), node("DequantizeLinear", "rq ys yz", "rd"),
        node("MaxPool", "rd", "p", "pool", kernel_shape=[6, 6]), node("Flatten", "p", "f", "flat"),
        node("QuantizeLinear", "k ks kz", "kq"), node("DequantizeLinear", "kq ks kz", "kd"), node("Gemm", "f kd", "g", "head"),
        node("QuantizeLinear", "g zs zz", "gq"), node("DequantizeLinear", "gq zs zz", "scores"),
    ]  # fmt: skip
    return model(nodes, {"x": SHAPE}, ["scores"], constants, 13)


def compile_onnx(made: onnx.ModelProto, folder: Path, *options: str) -> Path:
    """`kqgen compile` of the model for the M0+ board, without building; the folder written."""
    path = save(made, folder / "net.onnx")
    np.savez(folder / "images.npz", x=tinynet.images())
    fixed = ("--board", BOARD, "--calibration", folder / "images.npz", "--out", folder / "fw", "--no-build")
    ok("compile", path, *fixed, *options)
    return folder / "fw"


def test_from_the_file_to_proven_c_under_the_files_names(tmp_path: Path) -> None:
    require_tool("cc")
    folder = compile_onnx(network(), tmp_path, "--codewords", "16", "--keep", "/dw/Conv=8")
    report = read_json(folder / "report.json")
    assert report["model"] == "net"
    assert [layer["name"] for layer in report["layers"]] == LAYERS
    assert report["layers"][1]["bits_per_weight"] == 8
    ok("verify", folder, "--inputs", tmp_path / "images.npz", "--targets", "host")
    verified = read_json(folder / "verify.json")
    assert verified["exact"] is True
    assert verified["float"]["sqnr_db"] > 15


def test_scales_of_a_quantised_model_are_kept(tmp_path: Path) -> None:
    module, examples = package.load_onnx(save(quantised(), tmp_path / "net.onnx"))
    images = tinynet.images()
    compiled = package.compile(module, examples, calibration=images, board=BOARD, weights="int8")
    graph = compiled.plan.graph
    found = [graph.tensor(name) for name in (graph.inputs[0].name, "conv", graph.outputs[0])]
    assert [(round(float(each.scale), 6), each.zero_point) for each in found] == [(0.03, -8), (0.05, -128), (0.02, 7)]
    (wanted,) = expected(_opset(quantised(), 19), {"x": images})
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), wanted, atol=0.021)


def _opset(made: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same model in an operator set that the reference implementation quantises in."""
    made.opset_import[0].version = opset
    return made


def test_a_network_exported_by_pytorch_computes_the_same(tmp_path: Path) -> None:
    """The names of nodes are those of its modules."""
    net = tinynet.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age; it needs no other package
        torch.onnx.export(
            net, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}}
        )
    module, _ = load_onnx(tmp_path / "net.onnx")
    images = torch.from_numpy(tinynet.images())
    with torch.no_grad():
        torch.testing.assert_close(module(images), net(images))
    names = [name for name, _ in module.named_modules()]
    assert {"/stem/stem.0/Conv", "/body/Conv", "/point/Conv", "/head/Gemm"} <= set(names)


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    bad = model([node("Softsign", "x", "a", "soft"), node("Det", "a", "y", "det")], {"x": SHAPE}, ["y"])
    np.savez(tmp_path / "images.npz", x=tinynet.images())
    save(bad, tmp_path / "bad.onnx")
    (tmp_path / "cut.onnx").write_bytes(network().SerializeToString()[:-100])
    before = entries(tmp_path)
    cases = (
        ("bad.onnx", ("2 operators", "Softsign: 1 (first soft)", "Det: 1 (first det)")), ("cut.onnx", ("damaged",)),
        ("none.onnx", ("no such file",)),
    )  # fmt: skip
    for name, says in cases:
        run = kqgen(
            "compile", tmp_path / name, "--board", BOARD, "--calibration", tmp_path / "images.npz", "--out", tmp_path / "fw"
        )
        assert run.status == 2
        assert [text for text in says if text not in run.err] == []
        assert "Traceback" not in run.err
        assert run.err.endswith("nothing was written\n")
    assert entries(tmp_path) == before
