"""The output folder: writing it as a whole, and opening it again.

    <model>.h .c, tables, self-test, runtime/, CMakeLists.txt, README.md    what firmware takes
    <model>.kqgen.safetensors, <model>.pt2                                  for verification only
    report.json, verify.json, bench.json, fidelity.json, <model>.elf        results
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kqgen import prune_record, store
from kqgen.board import Board, board_names, load_board, parse_board
from kqgen.errors import InputError
from kqgen.harness import IoBuffer, ModelApi
from kqgen.intgraph import IntGraph
from kqgen.plan import FORMS, OPTIMISE, Plan, Planning
from kqgen.planner import make_plan
from kqgen.prune_record import Dead
from kqgen.views_project import defines

GRAPH_SUFFIX = ".kqgen.safetensors"
FLOAT_SUFFIX = ".pt2"
GRAPH_SUFFIXES = (GRAPH_SUFFIX, ".kq.safetensors")
"""Of files that hold an integer graph: what compile and what training writes."""
BOARD_FILE = "board.toml"

_SHOWN = 4
_FILES = re.compile(
    r"CMakeLists\.txt|README\.md|LICENSE|board\.toml|toolchain-\w+\.cmake|(report|verify|bench|fidelity)\.json|runtime/kq\w*\.[ch]"
)
_MODEL_FILES = (".h", ".c", "_tables.h", "_tables.c", "_selftest.c", ".elf", FLOAT_SUFFIX, GRAPH_SUFFIX)


@dataclass(frozen=True, slots=True)
class Firmware:
    """An output folder that was read back.

    Attributes:
        folder: where it lies.
        graph: the integer graph the C was made from.
        plan: the same plan the C was made with; planning is deterministic.
        board: the board it was compiled for.
        planning: what the user chose about forms and room.
        dead: what was removed from the network; None when nothing was.
    """

    folder: Path
    graph: IntGraph
    plan: Plan
    board: Board
    planning: Planning
    dead: Dead | None = None

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


@dataclass(frozen=True, slots=True)
class Network:
    """A network in integers, and the folder it lies in when compile wrote it.

    Attributes:
        firmware: None for a file.
        dead: what was removed from the network; None when nothing was.
    """

    graph: IntGraph
    firmware: Firmware | None
    dead: Dead | None = None


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
        defines(graph),
    )


def check_replaceable(out: Path) -> None:
    """Refuses to overwrite what kqgen did not write.

    Raises:
        InputError: `out` is no folder, the working directory, or a folder with something else in it.
    """
    standing = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    if not standing.is_dir():
        raise InputError(f"--out {out} cannot be a folder", found=f"{standing} is a file", wanted="a folder", do="choose another folder")
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"--out {out} is the folder you are in", found=str(out.resolve()), wanted="a folder that can be replaced as a whole",
            do="name a folder inside it, such as --out firmware",
        )  # fmt: skip
    foreign = _foreign_files(out) if out.is_dir() else []
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise InputError(
            f"--out {out} holds files that kqgen did not write",
            found=", ".join(foreign[:_SHOWN]) + more,
            wanted="an empty folder, a new one, or one with nothing but what kqgen wrote: it is replaced as a whole",
            do="choose another folder, or move these files away",
        )


def _foreign_files(folder: Path) -> list[str]:
    """Paths inside `folder` of files that no output folder has, sorted."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    graphs = [name for name in files if name.endswith(GRAPH_SUFFIX) and "/" not in name]
    model = graphs[0].removesuffix(GRAPH_SUFFIX) if len(graphs) == 1 else None
    own = {f"{model}{end}" for end in _MODEL_FILES} if model else set()
    return [name for name in files if name not in own and not (model and _FILES.fullmatch(name))]


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `out` when the block ends well; else nothing is left of it.

    It lies beside `out`, so that a full disk or an interrupt is met before `out` is touched. Files that shall not be
    published may go into its parent, which is temporary.

    Raises:
        InputError: see `check_replaceable`. OSError: the folder cannot be written.
    """
    check_replaceable(out)
    target = out.resolve()
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as parent:
            stage = Path(parent) / target.name
            stage.mkdir()
            yield stage
            _publish(stage, target)
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _publish(stage: Path, out: Path) -> None:
    """Puts a finished folder in the place of `out`; what was there before goes only after the new one stands."""
    check_replaceable(out)
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    try:
        if out.exists():
            os.replace(out, old / out.name)
        os.replace(stage, out)
    except BaseException:
        if (old / out.name).exists() and not out.exists():
            os.replace(old / out.name, out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def is_builtin(board: Board) -> bool:
    """Whether kqgen's own board of that name is this very board."""
    return board.name in board_names() and replace(board, where="") == replace(load_board(board.name), where="")


def board_text(board: Board) -> str:
    """The board as a board file, for an output folder that cannot rely on a file of the user's."""
    keys: dict[str, str | int | bool | None] = {
        "title": board.title, "core": board.core.name, "clock_hz": board.clock_hz, "flash_wait_states": board.flash_wait_states,
        "reserve_flash_bytes": board.reserve_flash_bytes, "reserve_ram_bytes": board.reserve_ram_bytes, "emulator": board.emulator,
        "qemu_machine": board.qemu_machine, "source": board.source, "notes": board.notes or None,
        "dsp": board.core.has_dsp if board.core.name == "m33" else None,
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items() if value is not None]
    for region in board.regions:
        lines += ["", f"[memory.{json.dumps(region.name)}]", f"origin = 0x{region.origin:08x}", f"size_bytes = {region.size_bytes}"]
    return "\n".join(lines) + "\n"


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
    board = _stored_board(folder, str(extra.get("board")))
    planning = _stored_planning(extra, graphs[0].name)
    return Firmware(folder, graph, make_plan(graph, board, planning), board, planning, prune_record.read(extra, graphs[0].name))


def planned_for(board: Board, planning: Planning) -> dict[str, object]:
    """What is kept beside a graph so that `open_firmware` plans it again as it was."""
    return {"board": board.name, "optimise": planning.optimise, "forms": [list(pair) for pair in planning.forms]}


def _stored_planning(extra: Mapping[str, Any], file: str) -> Planning:
    optimise, forms = next((each for each in OPTIMISE if each == extra.get("optimise")), None), extra.get("forms")
    known = isinstance(forms, list) and all(isinstance(pair, list) and len(pair) == 2 and pair[1] in FORMS for pair in forms)
    if optimise is None or not isinstance(forms, list) or not known:
        raise InputError(
            f"{file} does not say how the network was planned", found=f"optimise {extra.get('optimise')}, forms {forms}",
            wanted="what kqgen compile wrote", do="compile the model again",
        )  # fmt: skip
    return Planning(optimise, tuple((str(layer), form) for layer, form in forms))


def open_network(path: Path) -> Network:
    """Reads an output folder, or a file that holds an integer graph.

    Raises:
        InputError: neither of them.
    """
    if path.is_dir():
        firmware = open_firmware(path)
        return Network(firmware.graph, firmware, firmware.dead)
    if not path.name.endswith(GRAPH_SUFFIXES):
        raise InputError(
            f"{path} is no network of kqgen",
            found="no such file or folder" if not path.exists() else "a file of another kind",
            wanted=f"the folder that kqgen compile wrote, or a file *{' or *'.join(GRAPH_SUFFIXES)}",
            do=f"kqgen compile MODEL --board BOARD --calibration IMAGES.npz --out {path.stem or 'firmware'}",
        )
    graph, extra = store.read(path)
    return Network(graph, None, prune_record.read(extra, path.name))


def _stored_board(folder: Path, name: str) -> Board:
    path = folder / BOARD_FILE
    if not path.is_file():
        return load_board(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", found=str(error), wanted="a TOML file in UTF-8", do="compile the model again") from error
    return parse_board(text, name, str(path))
