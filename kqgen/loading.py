"""Finds the model that the user names: a file of PyTorch's or of another framework, or a Python factory with a file of weights."""

from __future__ import annotations

import importlib
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.export import ExportedProgram

from kqgen.errors import InputError
from kqgen.onnx_import import load_onnx
from kqgen.pt2 import load_pt2
from kqgen.tflite_module import load_tflite

_COUNTERS = ".num_batches_tracked"
_SHOWN = 4


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model before it is read: an exported program, or a module that still has to be exported.

    Attributes:
        name: the file's stem or the factory's name, not yet a C identifier.
        program: from a .pt2, else None.
        module: from a factory, else None.
        example_inputs: one tensor an input; () for a .pt2 and for a factory that gave none.
    """

    name: str
    program: ExportedProgram | None = None
    module: torch.nn.Module | None = None
    example_inputs: tuple[torch.Tensor, ...] = ()


def load_model(spec: str, state: Path | None = None) -> LoadedModel:
    """The model that `spec` names: the path of a .pt2, .onnx or .tflite, or `package.module:factory`, imported from here too.

    A factory is the user's own code and is run: factory() returns a torch.nn.Module or (module, example_inputs). `state` is a file
    of weights for it: .safetensors, or .pt/.pth of tensors only (a state dict, or one under the key "state_dict").

    Raises:
        InputError: no such file, module or factory; the factory fails; the file holds code; keys or shapes do not fit the module.
    """
    if spec.endswith(".pt2"):
        if state is not None:
            raise InputError(
                f"{spec} brings its weights along", found=f"--state {state}", wanted="no --state", do="leave --state out, or name a factory"
            )
        return LoadedModel(name=Path(spec).stem, program=load_pt2(Path(spec)))
    if spec.endswith(".tflite"):
        return _from_file(spec, state, load_tflite)
    if spec.endswith(".onnx"):
        return _from_file(spec, state, load_onnx)
    source, colon, attribute = spec.partition(":")
    if not colon or not source or not attribute:
        raise InputError(
            f"cannot tell what model {spec!r} is",
            wanted="a file ending in .pt2, .onnx or .tflite, or package.module:factory",
            do="torch.export.save(torch.export.export(model.eval(), example_inputs), 'net.pt2')",
        )
    made = _build(spec, source, attribute)
    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{spec} made no model",
            found=type(module).__name__,
            wanted="a torch.nn.Module, or (module, example_inputs)",
            do="return the module from the factory",
        )
    examples = (examples,) if isinstance(examples, torch.Tensor) else tuple(examples)
    if not all(isinstance(each, torch.Tensor) for each in examples):
        raise InputError(f"{spec}: example inputs that are no tensors", found=str([type(each).__name__ for each in examples]))
    if state is not None:
        _load_state(module, state)
    return LoadedModel(name=attribute.rpartition(".")[2], module=module, example_inputs=examples)


def _from_file(
    spec: str, state: Path | None, read: Callable[[Path], tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]
) -> LoadedModel:
    """A model that a file of another framework holds, read as a module."""
    if state is not None:
        raise InputError(
            f"{spec} brings its weights along", found=f"--state {state}", wanted="no --state", do="leave --state out, or name a factory"
        )
    module, examples = read(Path(spec))
    return LoadedModel(name=Path(spec).stem, module=module, example_inputs=examples)


def with_examples(model: LoadedModel, shapes: Sequence[Sequence[int]]) -> LoadedModel:
    """`model` with zeros of `shapes` as example inputs where it needs some and has none.

    Args:
        shapes: one an input, the image axis first; of the calibration arrays. The batch becomes 1.

    Raises:
        InputError: examples are needed and no shape is given, or a shape has no image axis.
    """
    if model.program is not None or model.example_inputs:
        return model
    if not shapes or not all(len(shape) >= 2 and min(shape[1:]) > 0 for shape in shapes):
        raise InputError(
            f"the input shape of {model.name} is not known",
            found=", ".join(str(tuple(shape)) for shape in shapes) or "a module alone",
            wanted="example inputs, or calibration data of shape (N, C, H, W)",
            do="return (module, (example_tensor,)) from the factory, or give --calibration images.npz",
        )
    return replace(model, example_inputs=tuple(torch.zeros(1, *shape[1:]) for shape in shapes))


def _build(spec: str, source: str, attribute: str) -> Any:
    """What the factory returns; runs the user's code."""
    with _working_directory_importable():
        try:
            found: Any = importlib.import_module(source)
        except (Exception, SystemExit) as error:  # a module of the user's may fail in any way while it is imported
            raise InputError(
                f"cannot import {source}",
                found=_where(error),
                wanted="a module that Python can import",
                do="check the name and its imports",
            ) from error
        for name in attribute.split("."):
            if not hasattr(found, name):
                known = [each for each in vars(found) if not each.startswith("_") and callable(getattr(found, each))]
                wanted = f"one of: {', '.join(known[:12])}" if known else ""
                raise InputError(f"{source} has no {attribute}", wanted=wanted, do="check the name")
            found = getattr(found, name)
        if isinstance(found, torch.nn.Module):
            return found
        if not callable(found):
            raise InputError(f"{spec} cannot be called", found=type(found).__name__, wanted="a function or class that makes the model")
        try:
            return found()
        except (Exception, SystemExit) as error:  # so may its factory
            raise InputError(
                f"{spec}() failed",
                found=_where(error),
                wanted="a factory that needs no arguments",
                do="call it in Python to see the traceback",
            ) from error


def _where(error: BaseException) -> str:
    """The error and the last line of a file that led to it; the import machinery has no file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}{place}"


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _load_state(module: torch.nn.Module, path: Path) -> None:
    given = _read_state(path)
    if given and all(key.startswith("module.") for key in given):
        given = {key.removeprefix("module."): tensor for key, tensor in given.items()}
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in given and not key.endswith(_COUNTERS)]
    surplus = [key for key in given if key not in wanted and not key.endswith(_COUNTERS)]
    if missing or surplus:
        raise InputError(
            f"{path} does not fit the model",
            found="; ".join(
                f"{label} {_some(keys)}" for label, keys in (("without", missing), ("surplus", surplus)) if keys
            ),
            wanted=f"the {len(wanted)} tensors of {type(module).__name__}.state_dict()",
            do="check that the factory builds the network whose weights these are",
        )
    for key, tensor in given.items():
        if key in wanted and tensor.shape != wanted[key].shape:
            raise InputError(
                f"{path}: {key} has another shape",
                found=str(tuple(tensor.shape)),
                wanted=str(tuple(wanted[key].shape)),
                do="check that the factory builds the network whose weights these are",
            )
    module.load_state_dict({key: tensor for key, tensor in given.items() if key in wanted}, strict=False)


def _some(keys: Sequence[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    wanted = "a state dict of tensors: .safetensors, .pt or .pth"
    do = "torch.save(model.state_dict(), 'weights.pt')"
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix not in (".pt", ".pth"):
            raise InputError(f"cannot tell what {path} is", found=path.suffix or "no suffix", wanted=wanted, do=do)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: what cannot be read is refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", wanted=wanted, do="check the path") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it holds Python objects, whose loading could run code",
            found="a pickle that is not one of tensors alone; torch.save(model) writes such",
            wanted=wanted,
            do=do,
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), "").partition(". ")[0]
        raise InputError(
            f"cannot read {path}",
            found=f"{type(error).__name__}: {reason}" if reason else "an empty or cut file",
            wanted=wanted,
            do=f"write it again: {do}",
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()):
        raise InputError(f"{path} is no state dict", found=type(loaded).__name__, wanted=wanted, do=do)
    return loaded
