"""The output folder: writing it as a whole, and opening it again.

    <model>.h .c, tables, self-test, runtime/, CMakeLists.txt, README.md    what firmware takes
    <model>.kqgen.safetensors, <model>.pt2                                  for verification only
    report.json, verify.json, bench.json, <model>.elf                       results
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kqgen import memory, plan_check, store
from kqgen.board import Board, load_board
from kqgen.errors import InputError
from kqgen.harness import IoBuffer, ModelApi
from kqgen.intgraph import IntGraph
from kqgen.plan import Plan
from kqgen.schedule import schedule

GRAPH_SUFFIX = ".kqgen.safetensors"
FLOAT_SUFFIX = ".pt2"
BOARD_FILE = "board.toml"


@dataclass(frozen=True, slots=True)
class Firmware:
    """An output folder that was read back.

    Attributes:
        folder: where it lies.
        graph: the integer graph the C was made from.
        plan: the same plan the C was made with; planning is deterministic.
        board: the board it was compiled for.
    """

    folder: Path
    graph: IntGraph
    plan: Plan
    board: Board

    @property
    def api(self) -> ModelApi:
        """How the generated C is called."""
        return model_api(self.graph)

    @property
    def float_model(self) -> Path | None:
        """The float model kept for comparison, None when it is not there."""
        path = self.folder / f"{self.graph.name}{FLOAT_SUFFIX}"
        return path if path.is_file() else None

    def read_report(self) -> Mapping[str, Any]:
        """report.json as it lies in the folder.

        Raises:
            InputError: it is missing or no JSON object.
        """
        path = self.folder / "report.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read", found=str(error), do="compile the model again") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} holds no report", found=type(content).__name__, do="compile the model again")
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes one result into the folder, whole or not at all."""
        replace_file(self.folder / name, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as kqgen writes it: indented, in the order given, ended by a newline, no NaN."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def replace_file(path: Path, data: bytes) -> None:
    """Writes `path` so that a reader, or a full disk, sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def model_api(graph: IntGraph) -> ModelApi:
    """How the C generated from `graph` is called."""
    return ModelApi(
        graph.name,
        tuple(IoBuffer(tensor.name, tensor.size_bytes) for tensor in graph.inputs),
        tuple(IoBuffer(name, graph.tensor(name).size_bytes) for name in graph.outputs),
    )


def make_plan(graph: IntGraph) -> Plan:
    """The one plan of a graph: forms, places, and the independent check that they hold."""
    made = memory.plan(graph, schedule(graph))
    plan_check.check(made)
    return made


def check_replaceable(out: Path) -> None:
    """Refuses to overwrite what kqgen did not write.

    Raises:
        InputError: `out` is a file, or a folder with something else in it.
    """
    if out.is_file():
        raise InputError(f"--out {out} is a file", wanted="a folder", do="choose another folder")
    if out.is_dir() and any(out.iterdir()) and not any(out.glob(f"*{GRAPH_SUFFIX}")):
        raise InputError(
            f"--out {out} holds files that kqgen did not write",
            wanted="an empty folder, a new one, or one that kqgen wrote before",
            do="choose another folder",
        )


def publish(stage: Path, out: Path) -> None:
    """Puts a finished folder in the place of `out`; what was there before goes only after the new one stands."""
    check_replaceable(out)
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    try:
        if out.exists():
            os.replace(out, old / out.name)
        try:
            os.replace(stage, out)
        except OSError:
            if (old / out.name).exists():
                os.replace(old / out.name, out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def open_firmware(folder: Path) -> Firmware:
    """Reads an output folder back.

    Raises:
        InputError: no such folder, or not one that kqgen wrote.
    """
    graphs = sorted(folder.glob(f"*{GRAPH_SUFFIX}")) if folder.is_dir() else []
    if len(graphs) != 1:
        raise InputError(
            f"{folder} is no folder of kqgen",
            found="no such folder" if not folder.is_dir() else f"{len(graphs)} files *{GRAPH_SUFFIX}",
            wanted="the folder that kqgen compile wrote",
            do="kqgen compile MODEL --board BOARD --calibration IMAGES.npz --out " + str(folder),
        )
    graph, extra = store.read(graphs[0])
    own_board = folder / BOARD_FILE
    board = load_board(own_board if own_board.is_file() else str(extra.get("board")))
    return Firmware(folder, graph, make_plan(graph), board)
