"""Checkpoints of a training run: written whole or not at all, read as data only, refused when they are of another run."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kqgen.errors import InputError

_MARK = "kqgen training run"
_SCHEMA = 1


def write_checkpoint(path: Path, content: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Replaces the file at `path` in one step.

    Args:
        content: tensors, numbers, strings, and dicts and lists of these.
        run: what makes this run itself; a later `read_checkpoint` must give the same.
    """
    beside = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        torch.save({"mark": _MARK, "schema": _SCHEMA, "run": dict(run), "content": dict(content)}, beside)
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
            found = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
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
