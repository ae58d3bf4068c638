"""The model that the user names: .pt2, or a factory with weights; each mistake gives one clear error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from floatnets import images, randomise
from onnxmodels import model, node, save
from torch import nn

from kqgen.errors import InputError
from kqgen.loading import load_model, with_examples

SOURCE = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

def with_example():
    return plain(), (torch.zeros(1, 3, 8, 8),)

def with_one_tensor():
    return plain(), torch.zeros(1, 3, 8, 8)

class Net(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)

ready = plain()
number = 3

def fails():
    raise ValueError("no such width")

def leaves():
    raise SystemExit(1)

def wrong():
    return 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of factories in the working directory, under a name of its own."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


def state() -> dict[str, torch.Tensor]:
    return randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), seed=7).state_dict()


def test_a_pt2(tmp_path: Path) -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3), (images(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "my-net.pt2")
    model = load_model(str(tmp_path / "my-net.pt2"))
    assert model.name == "my-net"
    assert model.program is not None
    assert with_examples(model, ()) is model
    with pytest.raises(InputError, match="brings its weights along"):
        load_model(str(tmp_path / "my-net.pt2"), tmp_path / "a.pt")


@pytest.mark.parametrize(("factory", "examples"), [("plain", 0), ("with_example", 1), ("with_one_tensor", 1), ("Net", 0), ("ready", 0)])
def test_factories_from_the_working_directory(factories: str, factory: str, examples: int) -> None:
    path = list(sys.path)
    model = load_model(f"{factories}:{factory}")
    assert model.name == factory
    assert isinstance(model.module, nn.Module)
    assert len(model.example_inputs) == examples
    assert sys.path == path


def test_examples_are_made_from_the_shape_of_the_calibration_data(factories: str) -> None:
    model = load_model(f"{factories}:plain")
    assert [each.shape for each in with_examples(model, [(500, 3, 32, 32)]).example_inputs] == [(1, 3, 32, 32)]
    given = load_model(f"{factories}:with_example")
    assert with_examples(given, [(500, 3, 32, 32)]) is given
    for shapes in ((), [(5,)], [(5, 0)]):
        with pytest.raises(InputError, match="input shape of plain is not known"):
            with_examples(model, shapes)


@pytest.mark.parametrize("form", ["weights.pt", "weights.pth", "nested.pt", "parallel.pt", "weights.safetensors"])
def test_weights_of_every_form(factories: str, tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state(), path)
    elif form == "nested.pt":
        torch.save({"state_dict": state(), "epoch": 3}, path)
    elif form == "parallel.pt":
        torch.save({f"module.{key}": value for key, value in state().items()}, path)
    else:
        torch.save(state(), path)
    model = load_model(f"{factories}:plain", path)
    assert model.module is not None
    assert all(torch.equal(value, state()[key]) for key, value in model.module.state_dict().items())


def test_half_precision_weights_become_float32(factories: str, tmp_path: Path) -> None:
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in state().items()}, tmp_path / "a.pt")
    model = load_model(f"{factories}:plain", tmp_path / "a.pt")
    assert model.module is not None
    assert model.module.state_dict()["0.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("net.h5", ["what model", ".pt2, .onnx or .tflite", "package.module:factory"]),
        ("{m}:", ["what model"]),
        ("{m}:absent", ["has no absent", "plain"]),
        ("{m}:number", ["cannot be called", "int"]),
        ("{m}:wrong", ["made no model", "int"]),
        ("{m}:fails", ["failed", "ValueError: no such width", "line"]),
        ("{m}:leaves", ["failed", "SystemExit"]),
        ("no_such_package.net:plain", ["cannot import no_such_package.net", "ModuleNotFoundError"]),
        ("none.pt2", ["no such file: none.pt2"]),
        ("none.onnx", ["no such file: none.onnx"]),
    ],
)
def test_wrong_models_give_one_clear_error(factories: str, spec: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_model(spec.format(m=factories))
    for part in parts:
        assert part in caught.value.render()


def test_a_module_that_does_not_compile_gives_one_clear_error(factories: str, tmp_path: Path) -> None:
    (tmp_path / "broken_factories.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="SyntaxError"):
        load_model("broken_factories:f")


class Hostile:
    """Writes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_weights_that_hold_code_are_refused_and_not_run(factories: str, tmp_path: Path) -> None:
    torch.save({"0.weight": Hostile(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="loading could run code"):
        load_model(f"{factories}:plain", tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_are_refused_by_name(factories: str, tmp_path: Path) -> None:
    def refused(changed: object, suffix: str = "pt") -> str:
        path = tmp_path / f"a.{suffix}"
        torch.save(changed, path)
        with pytest.raises(InputError) as caught:
            load_model(f"{factories}:plain", path)
        return caught.value.render()

    missing = {key: value for key, value in state().items() if key != "0.bias"}
    assert "without 0.bias" in refused(missing)
    assert "surplus 2.weight" in refused(state() | {"2.weight": torch.ones(1)})
    assert "and 2 more" in refused({})
    shape = refused(state() | {"0.bias": torch.ones(5)})
    assert "0.bias has another shape" in shape
    assert "(5,)" in shape
    assert "(4,)" in shape
    assert "is no state dict" in refused([1, 2])
    assert "is no state dict" in refused({"epoch": 3})
    assert "cannot tell what" in refused(state(), "bin")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_damaged_or_missing_weights_give_one_clear_error(factories: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_model(f"{factories}:plain", tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(InputError, match=r"cannot read|refused"):
        load_model(f"{factories}:plain", tmp_path / name)


def test_an_onnx_file(tmp_path: Path) -> None:
    path = save(model([node("Relu", "image", "y", "act")], {"image": ("N", 3, 8, 8)}, ["y"]), tmp_path / "my-net.onnx")
    loaded = load_model(str(path))
    assert loaded.name == "my-net"
    assert isinstance(loaded.module, nn.Module)
    assert [tuple(each.shape) for each in loaded.example_inputs] == [(1, 3, 8, 8)]
    with pytest.raises(InputError, match="brings its weights along"):
        load_model(str(path), tmp_path / "a.pt")
