"""Checkpoints of a training run: written whole or not at all, read as data only, refused when they are of another run."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kqgen.errors import InputError
from kqgen.train_model import KqModule
from kqgen.train_modules import IndexedWeight, UniformWeight

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MARK = "kqgen training run"
_SCHEMA = 1


def identity(model: KqModule, settings: DataclassInstance) -> dict[str, Any]:
    """What a checkpoint must agree in to be of a run of `model`: every setting, the float network, and how its weights are stored."""
    run: dict[str, Any] = {}
    for key, value in dataclasses.asdict(settings).items():
        run.update(value if isinstance(value, dict) else {key: value})
    digest = 0
    for name, tensor in sorted(model.blueprint.program.state_dict.items()):
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest = zlib.crc32(data, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), digest))
    forms: list[tuple[Any, ...]] = []
    for name, made in model.net.named_modules():
        if isinstance(made, UniformWeight):
            forms.append((name, made.bits))
        elif isinstance(made, IndexedWeight):
            forms.append((name, made.count, made.book.codewords, made.book.sign, made.book.additive))
    books = sorted(model.books.items())
    return {**run, "float network": f"{digest:08x}", "stored weights": f"{zlib.crc32(repr((forms, books)).encode()):08x}"}


def write_checkpoint(path: Path, content: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Replaces the file at `path` in one step.

    Args:
        content: tensors, numbers, strings, and dicts and lists of these.
        run: what makes this run itself; a later `read_checkpoint` must give the same.
    """
    beside = path.with_name(f"{path.name}.part{os.getpid()}")
    archive = io.BytesIO()  # torch's own writer answers a full disk with an error that tells nothing
    torch.save({"mark": _MARK, "schema": _SCHEMA, "run": dict(run), "content": dict(content)}, archive)
    try:
        beside.write_bytes(archive.getbuffer())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_checkpoint(path: Path, run: Mapping[str, Any], device: torch.device) -> Mapping[str, Any]:
    """What `write_checkpoint` kept.

    Raises:
        InputError: the file is cut, damaged, no checkpoint of ours, or of a run with other settings; it is left as it is.
    """
    do = f"delete {path} to start anew, or give another file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"{broken} is damaged")
            found = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = next(iter(str(error).strip().splitlines()), "").partition(". ")[0]
        raise InputError(
            f"{path} cannot be read as a checkpoint", found=f"{type(error).__name__}: {reason}", wanted="a file that this run wrote", do=do
        ) from error
    if not isinstance(found, dict) or found.get("mark") != _MARK:
        raise InputError(f"{path} is no checkpoint of kqgen", found=type(found).__name__, wanted="a file that this run wrote", do=do)
    if found.get("schema") != _SCHEMA:
        raise InputError(f"{path} has another schema", found=str(found.get("schema")), wanted=str(_SCHEMA), do=do)
    differing = sorted(key for key in {*run, *found["run"]} if run.get(key) != found["run"].get(key))
    if differing:
        raise InputError(
            f"{path} is the checkpoint of another run",
            found=", ".join(f"{key} {found['run'].get(key)}" for key in differing),
            wanted=", ".join(f"{key} {run.get(key)}" for key in differing),
            do=f"give the same settings again, or {do}",
        )
    content: Mapping[str, Any] = found["content"]
    return content
