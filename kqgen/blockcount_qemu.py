"""The block counter as a plugin of QEMU (runtime_c/tools/kq_qemu_counter.c), compiled for this computer when first needed."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from kqgen.assets import runtime_dir
from kqgen.blockcount import END, START, CountScope, Edge, RawCounts
from kqgen.elf import Elf
from kqgen.errors import InternalError, ToolchainError
from kqgen.thumb import Program, insn_size
from kqgen.toolchain import find_host_compiler, run_tool

PLUGIN_FILE, COUNTS_FILE = "kq_qemu_counter.so", "counts.txt"

SOURCES = ("kq_qemu_counter.c", "kq_block_counter.c")
"""In runtime_c/tools; kq_qemu_plugin.h declares what they use of QEMU."""

# First QEMU version of each interface version that the plugin speaks; a later QEMU refuses older plugins, and says so.
_API_VERSIONS = (((11, 1), 7), ((11, 0), 6), ((9, 0), 2), ((6, 0), 1))


def plugin_api(qemu_version: str) -> int:
    """The version of the plugin interface to speak with that QEMU ("7.2.22").

    Raises: ToolchainError when QEMU is older than 6.0, the first with all functions that are used.
    """
    match = re.match(r"(\d+)\.(\d+)", qemu_version)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    for first, api in _API_VERSIONS:
        if found >= first:
            return api
    raise ToolchainError(
        "this QEMU cannot count instructions", found=f"QEMU {qemu_version}", wanted="QEMU 6.0 or later", do="install a later one"
    )


@cache
def plugin_library(api: int) -> bytes:
    """The plugin for a version of the interface, as the bytes of a shared library.

    Raises: ToolchainError without a C compiler for this computer, or when it fails.
    """
    try:
        compiler = find_host_compiler()
    except ToolchainError as error:
        raise ToolchainError(
            f"counting under QEMU needs a plugin that is compiled here: {error.what}", found=error.found, wanted=error.wanted, do=error.do
        ) from error
    sources = [str(runtime_dir() / "tools" / name) for name in SOURCES]
    # QEMU itself defines the functions of its interface; only macOS wants to be told.
    undefined = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    flags = ("-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", *undefined, f"-DKQ_PLUGIN_API={api}")
    with tempfile.TemporaryDirectory(prefix="kqgen-count-") as name:
        library = Path(name) / PLUGIN_FILE
        argv = [*compiler.compiler, *flags, *sources, "-o", str(library)]
        run_tool(argv, cwd=Path(name), what=f"compiling {SOURCES[0]}", kind=compiler.kind)
        return library.read_bytes()


def plugin_option(library: Path, entry: int, scope: CountScope) -> str:
    """The value of QEMU's option -plugin; the counts go to COUNTS_FILE in QEMU's working folder.

    Args: entry: address of the run function, Thumb bit clear.
    """
    ranges = [("run", piece) for piece in scope.run_ranges]
    if scope.flash is not None:
        ranges.append(("flash", (scope.flash.origin, scope.flash.end)))
    parts = [
        f"out={COUNTS_FILE}",
        f"entry={entry:x}",
        *(f"{key}={low:x}:{high:x}" for key, (low, high) in ranges),
        *(f"helper={address:x}" for address in sorted(scope.helpers)),
    ]
    # A comma inside a value is doubled.
    return ",".join((str(library).replace(",", ",,"), *parts))


def parse_counts(text: str) -> RawCounts:
    """What the plugin wrote: one line a layer and an edge, and last the block at the end of the run.

    Raises: InternalError when the edges or layers did not fit; ToolchainError when the text is not whole.
    """
    reads: list[int] = []
    edges: list[Edge] = []
    for line in text.splitlines():
        words = line.split()
        match words:
            case ["reads", count]:
                reads.append(int(count))
            case ["edge", layer, previous, block, times]:
                edges.append(Edge(int(layer), int(previous), int(block), int(times)))
            case ["end", previous, called]:
                edges.append(Edge(len(reads) - 1, int(previous), END, 1))
                return RawCounts(tuple(edges), tuple(reads), bool(int(called)))
            case ["full"]:
                raise InternalError("the network has more edges between blocks, or layers, than the plugin has room for")
            case _:
                raise ToolchainError(f"cannot read {COUNTS_FILE} of the counter plugin", found=line, wanted="reads, edge or end")
    raise ToolchainError(f"{COUNTS_FILE} of the counter plugin is cut short", found=f"{len(edges)} edges and no end", do="check free space")


def whole_instructions(counts: RawCounts, elf: Elf) -> RawCounts:
    """The counts with blocks cut where their last whole instruction ends.

    QEMU (7.2 at least) looks at the next instruction to see whether it crosses a page (1 KB on these cores), and lends its plugins
    the first half of one that does as part of the block before.

    Raises: InternalError for a block outside the program.
    """
    program = Program.of_elf(elf)
    blocks = {block for edge in counts.edges for block in (edge.previous, edge.block)}
    cut = {block: block if block in (START, END) else _cut(program, block) for block in blocks}
    return replace(counts, edges=tuple(replace(edge, previous=cut[edge.previous], block=cut[edge.block]) for edge in counts.edges))


def _cut(program: Program, block: int) -> int:
    pc, size_bytes = block >> 16, block & 0xFFFF
    code = program.read(pc, size_bytes)
    if code is None:
        raise InternalError(f"QEMU executed {size_bytes} bytes at {pc:#010x}", found="no code there", wanted="a block of the program")
    ends = [0]
    while ends[-1] < size_bytes:
        ends.append(ends[-1] + insn_size(int.from_bytes(code[ends[-1] : ends[-1] + 2], "little")))
    return pc << 16 | max(end for end in ends if end <= size_bytes)
