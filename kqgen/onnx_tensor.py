"""Tensors stored in an .onnx file, or in a file of weights beside it: read only where size and place are what they should be."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError, UnsupportedError

Array = npt.NDArray[Any]

LARGEST_BYTES = 1 << 30
LARGEST_VALUES = 1 << 26
"""Values of one tensor, at most: more than any microcontroller's flash by far."""
SAVE_AGAIN = "write it again: torch.onnx.export, or onnx.save after onnx.checker.check_model"


def damaged(path: Path, found: str) -> InputError:
    """The error for a file that holds no network as ONNX has it."""
    wanted = "what torch.onnx.export or onnx.save writes"
    return InputError(f"{path} is no ONNX file, or damaged", found=found, wanted=wanted, do=SAVE_AGAIN)


def text(path: Path, value: Any) -> str:
    """A text of the file; the parser gives bytes where it is no UTF-8."""
    if not isinstance(value, str):
        raise damaged(path, f"a name that is no text: {value!r:.60}")
    return value


def read_array(onnx: ModuleType, path: Path, proto: Any) -> Array:
    """A stored tensor as NumPy has it; float16, bfloat16 and double become float32.

    Raises:
        InputError: sizes that do not fit the values or are absurd, values out of range, weights missing or outside the folder.
        UnsupportedError: a kind of value that kqgen does not read.
    """
    name, kinds = text(path, proto.name) or "a constant", onnx.TensorProto
    sizes = tuple(int(each) for each in proto.dims)
    if any(each < 0 for each in sizes):
        raise damaged(path, f"{name} of shape {sizes}")
    count = math.prod(sizes)
    if count > LARGEST_VALUES:
        raise InputError(
            f"{path} is absurdly large for a microcontroller", found=f"{name} of {count} values", wanted=f"at most {LARGEST_VALUES}"
        )
    floats = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE)
    whole = (kinds.INT8, kinds.UINT8, kinds.INT16, kinds.UINT16, kinds.INT32, kinds.UINT32, kinds.INT64, kinds.BOOL)
    if proto.data_type not in floats + whole:
        known = proto.data_type in kinds.DataType.values()
        found = kinds.DataType.Name(proto.data_type) if known else f"type {proto.data_type}"
        wanted = "float32, float16 or int8 weights"
        raise UnsupportedError(f"cannot compile {path}: {name} holds {found}", wanted=wanted, do="export in float32")
    if proto.data_location == kinds.EXTERNAL:
        proto = _with_external(onnx, path, proto, name)
    array: Array = onnx.numpy_helper.to_array(proto)
    if array.shape != sizes:
        raise damaged(path, f"{name} of shape {sizes} with {array.size} values")
    if proto.data_type == kinds.FLOAT or proto.data_type in whole:
        return array
    return _as_float32(path, name, array, kinds.DataType.Name(proto.data_type).lower())


def _as_float32(path: Path, name: str, array: Array, kind: str) -> Array:
    with np.errstate(over="ignore"):
        made = array.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(made)))
    if bad and kind != "bfloat16":
        limit = "65504 in size" if kind == "float16" else "3.4e38 in size"
        raise InputError(
            f"{path}: {name} is out of range",
            found=f"{bad} of {array.size} values are NaN, infinity or too large ({kind})",
            wanted=f"finite values, at most {limit}",
            do="export the float32 model" if kind == "float16" else "scale the weights, or check the training",
        )
    return made


def _with_external(onnx: ModuleType, path: Path, proto: Any, name: str) -> Any:
    """The tensor with its values read from the file beside the model, which must lie in the model's folder."""
    entries = {str(each.key): str(each.value) for each in proto.external_data}
    location, folder = entries.get("location", ""), path.resolve().parent
    place = (folder / location).resolve() if location and "\0" not in location else folder
    if not location or not place.is_relative_to(folder) or place == folder:
        raise InputError(
            f"{path} is refused: {name} is said to lie outside the model's folder",
            found=f"{location!r:.120}",
            wanted=f"a file in {folder}",
            do="onnx.save(model, 'net.onnx') with the weights inside",
        )
    offset, length = int(entries.get("offset") or 0), int(entries.get("length") or -1)
    try:
        size = place.stat().st_size
        if not place.is_file() or offset < 0 or offset > size or (length >= 0 and offset + length > size):
            raise damaged(path, f"{name}: bytes {offset} to {offset + max(length, 0)} of {location}, which has {size}")
        with place.open("rb") as file:
            file.seek(offset)
            data = file.read(min(length if length >= 0 else size - offset, LARGEST_BYTES))
    except OSError as error:
        raise InputError(
            f"{path}: the weights of {name} are missing",
            found=f"no file {place.name} beside it",
            wanted="the file of weights that was written with the model",
            do="copy it into the model's folder, or onnx.save(model, 'net.onnx') with the weights inside",
        ) from error
    copy = onnx.TensorProto()
    copy.CopyFrom(proto)
    copy.ClearField("external_data")
    copy.data_location = onnx.TensorProto.DEFAULT
    copy.raw_data = data
    return copy
