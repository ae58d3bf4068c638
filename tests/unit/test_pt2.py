"""A .pt2 is loaded without running anything it brings along."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from floatnets import images, randomise
from torch import nn

from kqgen.errors import InputError
from kqgen.frontend import import_exported
from kqgen.pt2 import load_pt2
from kqgen.pt2_check import _is_plain_tree, _is_shape_expression

SHAPE = (2, 3, 8, 8)
MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, SAMPLES = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"
Members = dict[str, bytes]


class Scaled(nn.Module):
    """Has parameters, buffers and a constant, so that a file of it has all kinds of part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.constant = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), torch.tensor([0.5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x * self.constant)))


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch.export.save writes it, batch axis symbolic."""
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    program = torch.export.export(randomise(Scaled()), (images(*SHAPE),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


def altered(good: Path, out: Path, change: Callable[[Members], object]) -> Path:
    """A copy of `good` with its members changed in place."""
    with zipfile.ZipFile(good) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"net/{name}", data)
    return out


def edited(member: str, change: Callable[[Any], object]) -> Callable[[Members], object]:
    """A change of one JSON member, in place."""

    def apply(members: Members) -> None:
        content = json.loads(members[member])
        change(content)
        members[member] = json.dumps(content).encode()

    return apply


def first(config: Any) -> Any:
    return next(iter(config["config"].values()))


def test_a_saved_program_comes_back(good: Path, tmp_path: Path) -> None:
    program = load_pt2(good)
    x = images(*SHAPE)
    with torch.no_grad():
        assert torch.equal(program.module()(x), randomise(Scaled())(x))
    assert program.example_inputs is not None
    assert program.example_inputs[0][0].shape == SHAPE
    assert import_exported(program, "net").inputs[0].shape == (3, 8, 8)
    assert list(tmp_path.iterdir()) == []


class Hostile:
    """Writes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def torch_pickle(marker: Path) -> bytes:
    out = io.BytesIO()
    torch.save((Hostile(marker),), out)
    return out.getvalue()


def plain_pickle(marker: Path) -> bytes:
    return pickle.dumps(Hostile(marker))


def as_pickle(members: Members, listing: str, prefix: str, data: bytes) -> None:
    config = json.loads(members[listing])
    entry = first(config)
    entry |= {"use_pickle": True, "path_name": f"{prefix}0"}
    members[listing] = json.dumps(config).encode()
    members[f"{listing.rpartition('/')[0]}/{prefix}0"] = data


PLACES: dict[str, Callable[[Members, bytes], object]] = {
    "sample inputs": lambda members, data: members.update({SAMPLES: data}),
    "pickled weight": lambda members, data: as_pickle(members, WEIGHTS, "weight_", data),
    "pickled constant": lambda members, data: as_pickle(members, CONSTANTS, "tensor_", data),
    "custom object": lambda members, data: as_pickle(members, CONSTANTS, "custom_obj_", data),
    "opaque object": lambda members, data: as_pickle(members, CONSTANTS, "opaque_obj_", data),
}


@pytest.mark.parametrize("make", [torch_pickle, plain_pickle])
@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_pickle_is_refused_and_not_run(good: Path, tmp_path: Path, place: str, make: Callable[[Path], bytes]) -> None:
    marker = tmp_path / "ran"
    path = altered(good, tmp_path / "bad.pt2", lambda members: PLACES[place](members, make(marker)))
    with pytest.raises(InputError, match="refused: loading it could run code"):
        load_pt2(path)
    assert not marker.exists()


def test_the_hostile_pickle_would_have_run(tmp_path: Path) -> None:
    """The files of the test above are armed: loaded without care they write their marker."""
    torch.load(io.BytesIO(torch_pickle(tmp_path / "a")), weights_only=False)
    pickle.loads(plain_pickle(tmp_path / "b"))
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def test_legacy_weights_beside_the_list_are_left_out(good: Path, tmp_path: Path) -> None:
    """torch prefers data/weights/model.pt, a pickle, to the list; it must not even get there."""
    marker = tmp_path / "ran"
    hostile = {"data/weights/model.pt": torch_pickle(marker), "data/constants/model.pt": torch_pickle(marker)}
    load_pt2(altered(good, tmp_path / "bad.pt2", lambda members: members.update(hostile)))
    assert not marker.exists()


def test_benign_pickled_weights_and_samples_load(good: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    torch.save(nn.Parameter(torch.ones(4, 3, 3, 3)), out)
    path = altered(good, tmp_path / "ok.pt2", lambda members: as_pickle(members, WEIGHTS, "weight_", out.getvalue()))
    assert torch.equal(load_pt2(path).state_dict["conv.weight"], torch.ones(4, 3, 3, 3))


def rename_input(model: Any) -> None:
    text = json.dumps(model).replace('"name": "x"', '"name": "x=print(1)"')
    model |= json.loads(text)


def node(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"][-1]


EDITS: dict[str, Callable[[Any], object]] = {
    "code in a shape": lambda model: model["graph_module"]["graph"]["sym_int_values"].update(
        {"s": {"as_expr": {"expr_str": "__import__('os').system('true')", "hint": None}}}
    ),
    "code in an input's name": rename_input,
    "a function of torch as operator": lambda model: node(model).update({"target": "torch.load"}),
    "a private attribute as operator": lambda model: node(model).update({"target": "torch.ops.aten.relu.default.__class__"}),
    "an operator that opens files": lambda model: node(model).update({"target": "torch.ops.aten.from_file.default"}),
    "another namespace": lambda model: node(model).update({"target": "torch.ops.rpc.call"}),
    "an imported class in the tree": lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(
        {"in_spec": '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'}
    ),
    "deep nesting": lambda model: model.update({"verifiers": nested(80)}),
}


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize("edit", EDITS)
def test_json_that_could_run_code_is_refused(good: Path, tmp_path: Path, edit: str) -> None:
    path = altered(good, tmp_path / "bad.pt2", edited(MODEL, EDITS[edit]))
    with pytest.raises(InputError, match="refused: loading it could run code"):
        load_pt2(path)


def test_guards_are_dropped(good: Path, tmp_path: Path) -> None:
    """torch compiles them as Python when the program is called."""
    marker = tmp_path / "ran"
    guard = f"open({str(marker)!r}, 'w') is not None"
    path = altered(good, tmp_path / "bad.pt2", edited(MODEL, lambda model: model.update({"guards_code": [guard]})))
    load_pt2(path).module()(images(*SHAPE))
    assert not marker.exists()


def test_compiled_libraries_are_refused(good: Path, tmp_path: Path) -> None:
    path = altered(good, tmp_path / "bad.pt2", lambda members: members.update({"data/aotinductor/model/net.so": b"\x7fELF"}))
    with pytest.raises(InputError, match="compiled libraries"):
        load_pt2(path)


@pytest.mark.parametrize(
    "text",
    ["7", "-3", "s77", "Symbol('s77', positive=True, integer=True)", "2*s0 + 1", "Max(1, u0)", "FloorDiv(Add(s0, Integer(-1)), 2)",
     "Mul(Integer(64), Symbol('s0', integer=True))", "Ge(Symbol('s0'), 2)", "s0 >= 2"],
)  # fmt: skip
def test_shapes_as_torch_writes_them_pass(text: str) -> None:
    assert _is_shape_expression(text)


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "s0.real", "exec('1')", "Symbol('s0; 1')", "Symbol('s0', commutative=x)", "lambda: 1", "[s0]", "'s0'", "x", "(" * 300, "",
     "Symbol(*s0)", "10**10", "1 if s0 else 2", "s0 @ s1", "Integer(2)(3)", str(1 << 70)],
)  # fmt: skip
def test_any_other_expression_does_not(text: str) -> None:
    assert not _is_shape_expression(text)


def test_trees_of_containers_alone_pass() -> None:
    leaf: dict[str, object] = {"type": None, "context": None, "children_spec": []}
    assert _is_plain_tree(json.dumps([1, {"type": "builtins.dict", "context": '["a", "b"]', "children_spec": [leaf, leaf]}]))
    assert not _is_plain_tree(json.dumps([1, {"type": "os.system", "context": "null", "children_spec": []}]))
    assert not _is_plain_tree(json.dumps([1, {"type": "builtins.dict", "context": '["a", {"x": 1}]', "children_spec": []}]))


def bomb(path: Path) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("net/data/weights/weight_0", "w", force_zip64=True) as stream,
    ):
        for _ in range(3):
            stream.write(bytes(1 << 20))
    return path


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "bomb.pt2")
    assert path.stat().st_size < 1 << 14
    monkeypatch.setattr("kqgen.pt2._LARGEST_BYTES", 1 << 21)
    with pytest.raises(InputError, match="absurdly large"):
        load_pt2(path)


def test_a_tensor_that_claims_to_be_huge_is_refused(good: Path, tmp_path: Path) -> None:
    path = altered(
        good, tmp_path / "bad.pt2", edited(WEIGHTS, lambda config: first(config)["tensor_meta"].update({"sizes": [{"as_int": 1 << 40}]}))
    )
    with pytest.raises(InputError, match="absurdly large"):
        load_pt2(path)


def test_files_that_are_no_pt2_give_one_clear_error(good: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_pt2(tmp_path / "none.pt2")
    with pytest.raises(InputError, match=r"is no \.pt2"):
        load_pt2(tmp_path)
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(InputError, match=r"is no \.pt2"):
        load_pt2(tmp_path / "text.pt2")
    (tmp_path / "cut.pt2").write_bytes(good.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"is no \.pt2"):
        load_pt2(tmp_path / "cut.pt2")
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt2")
    with pytest.raises(InputError, match=r"is no \.pt2 that kqgen reads"):
        load_pt2(tmp_path / "state.pt2")


@pytest.mark.parametrize("member", [MODEL, WEIGHTS, CONSTANTS, "data/weights/weight_0"])
@pytest.mark.parametrize("change", ["lost", "emptied", "garbled"])
def test_damaged_files_give_one_clear_error(good: Path, tmp_path: Path, member: str, change: str) -> None:
    def damage(members: Members) -> None:
        if change == "lost":
            del members[member]
        else:
            members[member] = b"" if change == "emptied" else members[member][:37]

    with pytest.raises(InputError) as caught:
        load_pt2(altered(good, tmp_path / "bad.pt2", damage))
    assert caught.value.exit_status == 2


def test_a_flipped_bit_is_seen_by_the_checksum(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    data[data.index(b"graph_module") + 3] ^= 1
    (tmp_path / "bad.pt2").write_bytes(data)
    with pytest.raises(InputError, match="CRC"):
        load_pt2(tmp_path / "bad.pt2")
