"""Reads a .pt2 file (torch.export.save) without trusting it.

torch.export.load unpickles sample inputs, weights marked `use_pickle`, constants and custom objects, loads compiled libraries, and
evaluates parts of the JSON. So the archive is read here, every part is checked, and a second archive with nothing but the checked
parts is built in memory; that one alone is given to torch. Both zip readers then see the same bytes, and whatever was not checked
is not there.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import _package

from kqgen.errors import InputError
from kqgen.pt2_check import checked_config, checked_model, suspicious

_LARGEST_BYTES = 1 << 30
_LARGEST_MEMBERS = 20000
_LARGEST_TENSOR = 1 << 28
_MODEL = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_WEIGHT_LIST, _CONSTANT_LIST = f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json"
_SAMPLES = "data/sample_inputs/model.pt"
_COMPILED = "data/aotinductor/"
_DO = "save the model again by torch.export.save(torch.export.export(model.eval(), example_inputs), 'net.pt2')"


def load_pt2(path: Path) -> ExportedProgram:
    """The exported program in a .pt2 file; nothing that the file brings along is run.

    Pickled parts must load with torch.load(weights_only=True). Sample inputs are kept if they do, guards are dropped.

    Raises:
        InputError: no such file, no .pt2, damaged, larger than 1 GiB unpacked, or holding something that could run code.
    """
    members = _members(path)
    model = checked_model(path, _member(path, members, _MODEL))
    clean = {_MODEL: json.dumps(model).encode()}
    clean |= _tensors(path, members, _WEIGHTS, _WEIGHT_LIST, "weight_")
    clean |= _tensors(path, members, _CONSTANTS, _CONSTANT_LIST, "tensor_")
    samples = members.get(_SAMPLES, b"")
    clean[_SAMPLES] = _resaved(_unpickled(path, _SAMPLES, samples)) if samples else b""
    archive = io.BytesIO()
    with _package.PT2ArchiveWriter(archive) as writer:
        for name, data in clean.items():
            writer.write_bytes(name, data)
    archive.seek(0)
    try:
        with _quiet():
            return _package.load_pt2(archive).exported_programs["model"]
    except Exception as error:  # torch's deserialiser meets damaged input with errors of every kind
        saved_by = str(model.get("torch_version", "an unknown version"))
        lines = str(error).strip().splitlines()
        raise InputError(
            f"cannot load {path}",
            found=f"{type(error).__name__}: {lines[0] if lines else 'no reason given'} (saved by PyTorch {saved_by})",
            wanted=f"a program that PyTorch {torch.__version__} loads",
            do=_DO,
        ) from error


def _members(path: Path) -> Mapping[str, bytes]:
    """Every file of the archive, by its name below the archive's one root folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            names = [item.filename for item in archive.infolist() if not item.is_dir()]
            if len({name.partition("/")[0] for name in names}) != 1 or len(set(names)) != len(names):
                raise InputError(
                    f"{path} is no .pt2", found="an archive without one root folder", wanted="what torch.export.save writes", do=_DO
                )
            members = {name.partition("/")[2]: archive.read(name) for name in names}
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", wanted="a .pt2 written by torch.export.save", do="check the path") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is no .pt2", found=str(error), wanted="a zip archive written by torch.export.save", do=_DO) from error
    if any(name.startswith(_COMPILED) for name in members):
        raise suspicious(path, _COMPILED, "compiled libraries")
    if members.get("archive_format") != b"pt2":
        raise InputError(
            f"{path} is no .pt2 that kqgen reads",
            found="an archive without archive_format, or written before PyTorch 2.8",
            wanted="what torch.export.save writes",
            do=_DO,
        )
    return members


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    total = sum(item.file_size for item in archive.infolist())
    if total > _LARGEST_BYTES or len(archive.infolist()) > _LARGEST_MEMBERS:
        raise InputError(
            f"{path} is absurdly large for a microcontroller",
            found=f"{total} bytes unpacked in {len(archive.infolist())} parts",
            wanted=f"at most {_LARGEST_BYTES} bytes in {_LARGEST_MEMBERS} parts",
            do="check where the file comes from",
        )


def _member(path: Path, members: Mapping[str, bytes], name: str) -> bytes:
    if name not in members:
        raise InputError(f"{path} is damaged", found=f"no {name}", wanted="what torch.export.save writes", do=_DO)
    return members[name]


def _tensors(path: Path, members: Mapping[str, bytes], folder: str, listing: str, prefix: str) -> dict[str, bytes]:
    """The checked list of stored tensors and the files it names."""
    config = checked_config(path, listing, _member(path, members, listing))
    clean: dict[str, bytes] = {}
    for name, entry in config.items():
        file = entry.get("path_name")
        if not isinstance(file, str) or not file.startswith(prefix):
            raise suspicious(path, f"{folder}{file}", f"{name} is no plain tensor")
        data = _member(path, members, folder + file)
        if entry.get("use_pickle"):
            tensor = _unpickled(path, folder + file, data)
            if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
                raise suspicious(path, f"{folder}{file}", f"a pickled {type(tensor).__name__}")
            data = _resaved(tensor)
        count = _count(path, name, entry.get("tensor_meta"))
        if count > 0 and not data:
            # torch would take the weights for zeros.
            raise InputError(f"{path} is damaged", found=f"{folder}{file} is empty", wanted=f"{count} values of {name}", do=_DO)
        clean[folder + file] = data
    clean[listing] = json.dumps({"config": config}).encode()
    return clean


def _count(path: Path, name: str, meta: Any) -> int:
    """The number of values in a stored tensor."""
    count = 1
    try:
        for size in meta["sizes"]:
            count *= size["as_int"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged", found=f"{name} has no fixed size", wanted="what torch.export.save writes") from error
    if not 0 <= count <= _LARGEST_TENSOR:
        raise InputError(f"{path} is absurdly large for a microcontroller", found=f"{name} of {count} values")
    return count


def _unpickled(path: Path, member: str, data: bytes) -> Any:
    """What a pickled part holds, tensors and plain containers only."""
    stream = io.BytesIO(data)
    try:
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                _check_sizes(path, archive)
        stream.seek(0)
        with _quiet():
            return torch.load(stream, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, EOFError, OSError,
            zipfile.BadZipFile, UnicodeDecodeError) as error:  # fmt: skip
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else "damaged"
        raise suspicious(path, member, f"a pickle that torch.load(weights_only=True) refuses ({reason})") from error


def _resaved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings and log lines: errors are reported once, by kqgen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
