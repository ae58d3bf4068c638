"""The stored integer graph: what comes back is what went in, and damaged files are refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nets
import numpy as np
import opnets
import pytest
import safetensors.numpy

from kqgen import store
from kqgen.board import load_board
from kqgen.emit import Meta, emit
from kqgen.errors import InputError
from kqgen.intgraph import IntGraph


def plain(value: Any) -> Any:
    """A graph as comparable values: arrays as dtype, shape and list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tolist()
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "graph",
    [nets.residual(), nets.two_ports(), nets.single(), nets.summed(), nets.fused(), *opnets.all_nets()],
    ids=lambda graph: graph.name,
)
def test_a_graph_comes_back_as_it_went(graph: IntGraph, tmp_path: Path) -> None:
    path = tmp_path / "net.kqgen.safetensors"
    path.write_bytes(store.to_bytes(graph, {"board": "host"}))
    back, extra = store.read(path)
    assert plain(back) == plain(graph)
    assert extra == {"board": "host"}


def test_a_file_of_the_first_schema_is_read_as_one_of_plain_codebooks(tmp_path: Path) -> None:
    """Such files say nothing of additive codebooks."""

    def make_old(document: Any) -> None:
        document["schema"] = 1
        for codebook in document["graph"]["codebooks"]:
            assert codebook.pop("additive") is False
        forget_windows(document)

    back, _ = store.read(rewritten(tmp_path, make_old, nets.residual()))
    assert plain(back) == plain(nets.residual())


def forget_windows(document: Any) -> None:
    """What files of the first two schemas do not say."""
    assert document["graph"].pop("channels_last") == []
    for node in document["graph"]["nodes"]:
        if node["type"] == "IntConv2d":
            assert (node.pop("depthwise"), node.pop("dilation")) == (False, [1, 1])


@pytest.mark.parametrize("graph", [nets.summed(), nets.fused(), nets.two_ports()], ids=lambda graph: graph.name)
def test_a_file_of_the_second_schema_has_neither_depthwise_nor_dilated_layers(graph: IntGraph, tmp_path: Path) -> None:
    def make_old(document: Any) -> None:
        document["schema"] = 2
        forget_windows(document)

    back, _ = store.read(rewritten(tmp_path, make_old, graph))
    assert plain(back) == plain(graph)
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    first, second = (emit(nets.make_plan(each), load_board("host"), golden, Meta("test", "")) for each in (graph, back))
    assert first.files == second.files


def test_a_file_of_this_schema_that_does_not_say_whether_a_codebook_is_additive_is_refused(tmp_path: Path) -> None:
    def forget(document: Any) -> None:
        del document["graph"]["codebooks"][0]["additive"]

    with pytest.raises(InputError, match="additive"):
        store.read(rewritten(tmp_path, forget, nets.summed()))


@pytest.mark.parametrize(
    ("where", "field"),
    [
        (("graph",), "rounding"),
        (("graph",), "compression"),
        (("graph", "nodes", 0, "requant"), "acc_shift"),
        (("graph", "nodes", 0), "depthwise"),
        (("graph", "nodes", 0), "dilation"),
    ],
)
def test_a_default_that_is_a_value_must_be_in_the_file(tmp_path: Path, where: tuple[str | int, ...], field: str) -> None:
    def forget(document: Any) -> None:
        for key in where:
            document = document[key]
        del document[field]

    with pytest.raises(InputError, match=field):
        store.read(rewritten(tmp_path, forget))


def test_an_addition_has_a_field_where_a_convolution_does_one(tmp_path: Path) -> None:
    def forget(document: Any) -> None:
        nodes = {node["name"]: node for node in document["graph"]["nodes"]}
        assert "addend" not in nodes["stem"]
        assert nodes["b2_add"].pop("addend")["result"]["name"] == "b2_conv2"

    with pytest.raises(InputError, match="layer b2_add: inputs cannot be"):
        store.read(rewritten(tmp_path, forget, nets.fused()))


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert store.to_bytes(nets.residual()) == store.to_bytes(nets.residual())


def rewritten(tmp_path: Path, change: Any, graph: IntGraph | None = None) -> Path:
    """A stored graph (the smallest, if none is given) whose JSON went through `change`."""
    data = store.to_bytes(graph or nets.single())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["kqgen"])
    change(document)
    arrays = safetensors.numpy.load(data)
    path = tmp_path / "changed.kqgen.safetensors"
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"kqgen": json.dumps(document)}))
    return path


def set_schema(document: Any) -> None:
    document["schema"] = 99


def set_class(document: Any) -> None:
    document["graph"]["nodes"][0]["type"] = "Popen"


def set_text(document: Any) -> None:
    document["graph"]["nodes"][0]["lo"] = "rm -rf"


def drop_field(document: Any) -> None:
    del document["graph"]["outputs"]


@pytest.mark.parametrize("change", [set_schema, set_class, set_text, drop_field])
def test_a_changed_document_is_refused(change: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compile the model again"):
        store.read(rewritten(tmp_path, change))


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, store.to_bytes(nets.single())[:-40]], ids=["empty", "zeros", "cut"])
def test_a_damaged_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.kqgen.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.kqgen\.safetensors"):
        store.read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        store.read(tmp_path / "absent.kqgen.safetensors")
