"""The counter plugin: under QEMU the same layers, instructions, jumps and flash reads as under unicorn, and M55 besides."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import nets
import pytest
import tiny
from conftest import ImageBuilder, require_tool

from kqgen.assets import runtime_dir
from kqgen.blockcount import END, START, Edge, RawCounts
from kqgen.blockcount_qemu import SOURCES, parse_counts, plugin_api, plugin_library
from kqgen.blocks import BlockCount, LayerProfile
from kqgen.board import Board, Region, bench_board, load_board, load_core
from kqgen.deliver import write_for
from kqgen.emit import Meta, emit
from kqgen.emulate import run_unicorn
from kqgen.errors import CapacityError, InputError, InternalError, KqgenError, ToolchainError
from kqgen.firmware import Firmware
from kqgen.harness import EmulatedRun, IoBuffer, ModelApi
from kqgen.image import Image, build_image
from kqgen.pipeline import bench_firmware
from kqgen.plan import Plan, Planning
from kqgen.qemu import run_qemu
from kqgen.toolchain import WARNING_FLAGS, find_host_compiler, find_toolchain, run_tool

IMAGES = [tiny.image(seed) for seed in range(3)]
BOARDS = ("mps2-an385", "mps2-an386", "mps2-an500")


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tool("cc", "gcc", "qemu")


def _jumps(layer: LayerProfile) -> dict[int, int]:
    """Jumps by the address after the instruction that jumps: where emulators split a block tells nothing."""
    ends: dict[int, int] = {}
    for block in layer.blocks:
        if block.taken:
            ends[block.pc + block.size_bytes] = ends.get(block.pc + block.size_bytes, 0) + block.taken
    return ends


def _layers(run: EmulatedRun) -> list[tuple[int, dict[int, int], int | None]]:
    assert run.profile is not None
    return [(layer.instructions, _jumps(layer), layer.flash_reads) for layer in run.profile]


def _both(image: Image, data: list[bytes]) -> tuple[EmulatedRun, EmulatedRun]:
    require_tool("unicorn")
    qemu, unicorn = (run(image, data, profile=True, flash_reads=True) for run in (run_qemu, run_unicorn))
    assert qemu.outputs == unicorn.outputs
    return qemu, unicorn


@pytest.mark.parametrize("board", [*BOARDS, "mps2-an521", "microbit"])
def test_the_tiny_model_counts_as_under_unicorn(tiny_image: ImageBuilder, board: str) -> None:
    qemu, unicorn = _both(tiny_image(board, "gcc"), IMAGES)
    assert _layers(qemu) == _layers(unicorn)
    assert qemu.profile is not None
    assert len(qemu.profile) == tiny.STEPS
    for layer in qemu.profile:
        assert all(0 <= block.taken <= block.executions and block.executions > 0 for block in layer.blocks)
    assert qemu.profile[1].flash_reads is not None
    assert qemu.profile[1].flash_reads >= 48


@cache
def _plan() -> Plan:
    return nets.make_plan(nets.residual(), {"b1_conv1": "reuse", "b1_conv2": "decode"})


def _residual(folder: Path, board: Board) -> tuple[Image, bytes]:
    """A generated network with every kind of layer, and one input."""
    graph = _plan().graph
    inputs = nets.random_inputs(graph, 1)
    tree = emit(_plan(), board, nets.make_golden(graph, inputs), Meta("kqgen", ""))
    api = ModelApi(
        graph.name,
        tuple(IoBuffer(tensor.name, tensor.size_bytes) for tensor in graph.inputs),
        tuple(IoBuffer(name, graph.tensor(name).size_bytes) for name in graph.outputs),
    )
    image = build_image(nets.write(tree, folder / "sources"), api, board, find_toolchain("gcc"), folder / "image")
    return image, b"".join(array[0].tobytes() for array in inputs)


@pytest.mark.parametrize("board", BOARDS)
def test_a_generated_network_counts_as_under_unicorn(tmp_path: Path, board: str) -> None:
    image, data = _residual(tmp_path, load_board(board))
    qemu, unicorn = _both(image, [data])
    assert _layers(qemu) == _layers(unicorn)
    assert qemu.profile is not None
    assert len(qemu.profile) == len(_plan().steps)


def _with_negate(folder: Path, board: Board, *assembly: str) -> Image:
    """The tiny model with its first layer in assembly."""
    around = (".syntax unified", '.section .text.kq_negate,"ax",%progbits', ".global kq_negate", ".thumb_func", ".type kq_negate,%function")
    quoted = (line.replace('"', '\\"') for line in (*around, *assembly, ".size kq_negate, . - kq_negate", ".text"))
    text = "__asm__(" + "\n".join(f'"{line}\\n"' for line in quoted) + ");\n"
    start, end = tiny.RUNTIME.index("void kq_negate"), tiny.RUNTIME.index("void kq_weigh")
    sources = tiny.write_sources(folder / "sources", runtime=tiny.RUNTIME[:start] + text + tiny.RUNTIME[end:])
    return build_image(sources, tiny.API, board, find_toolchain("gcc"), folder / "image")


def test_a_block_before_an_instruction_across_a_page(tmp_path: Path) -> None:
    """QEMU counts in pages of 1 KB, and shows its plugins half of an instruction that crosses from one into the next."""
    image = _with_negate(
        tmp_path, load_board("mps2-an386"),
        ".balign 1024", "kq_negate:", "b 1f", ".space 1018", "1: movs r3, #0", "ldrsb.w r3, [r0], #1", "mvn r3, r3", "strb r3, [r1], #1",
        "subs r2, #1", "bne 1b", "bx lr",
    )  # fmt: skip
    crossing = image.elf.symbol("kq_negate").address + 1022
    qemu, unicorn = _both(image, IMAGES)
    assert list(qemu.outputs) == [tiny.steps(data)[-1] for data in IMAGES]
    assert _layers(qemu) == _layers(unicorn)
    assert qemu.profile is not None
    before = [block for block in qemu.profile[0].blocks if block.pc + block.size_bytes == crossing]
    assert [(block.size_bytes, block.executions) for block in before] == [(2, 48)]


def test_code_for_the_m33_counts_the_same_on_the_m55(tiny_image: ImageBuilder) -> None:
    """The M55 runs code for the M33, which unicorn can count: the only second opinion on that machine."""
    board = replace(
        load_board("mps3-an547"), name="m33-on-an547", core=load_core("m33"), emulator="unicorn",
        regions=(Region("flash", 0, 512 << 10), Region("ram", 0x2000_0000, 512 << 10)),
    )  # fmt: skip
    qemu, unicorn = _both(tiny_image(board, "gcc"), IMAGES)
    assert _layers(qemu) == _layers(unicorn)


def test_loops_and_conditional_instructions_of_the_m55(tmp_path: Path) -> None:
    """A low-overhead loop, and in it an IT block whose instruction never has its condition."""
    image = _with_negate(
        tmp_path, bench_board(load_core("m55")),
        "kq_negate:", "push {lr}", "dls lr, r2", "1: ldrsb r3, [r0], #1", "mvn r3, r3", "cmp r2, #0", "it mi", "addmi r3, #1",
        "strb r3, [r1], #1", "le lr, 1b", "pop {pc}",
    )  # fmt: skip
    first, second = (run_qemu(image, IMAGES, profile=True, flash_reads=True) for _ in range(2))
    assert list(first.outputs) == [tiny.steps(data)[-1] for data in IMAGES]
    assert first == second
    assert first.profile is not None
    function = image.elf.symbol("kq_negate")
    loop, end = function.address, function.address + function.size_bytes
    inside = [block for block in first.profile[0].blocks if loop <= block.pc < end]
    others = [block for block in first.profile[0].blocks if block not in inside]
    # The first pass through the loop belongs to the block that begins with PUSH; POP leaves the function.
    assert [(block.pc, block.executions, block.taken) for block in inside] == [(loop, 1, 1), (loop + 6, 47, 46), (end - 2, 1, 1)]
    assert _walked(image, inside) == 2 + 48 * 7 + 1
    assert first.profile[0].instructions == _walked(image, inside) + _walked(image, others)


def _walked(image: Image, blocks: Sequence[BlockCount]) -> int:
    """Executed instructions of the blocks, by walking their code."""
    count = 0
    for block in blocks:
        at = block.pc
        while at < block.pc + block.size_bytes:
            segment = next(part for part in image.elf.segments if part.address <= at < part.address + len(part.data))
            at += 4 if segment.data[at - segment.address + 1] >= 0xE8 else 2
            count += block.executions
    return count


def test_bench_of_the_m55(tmp_path: Path) -> None:
    _residual(tmp_path, load_board("mps2-an386"))
    firmware = Firmware(tmp_path / "sources", _plan().graph, _plan(), load_board("mps2-an386"), Planning())
    first, second = (bench_firmware(firmware, core="m55", toolchain="gcc") for _ in range(2))
    assert first == second
    assert first.core == "m55"
    assert len(first.layers) == len(_plan().steps)
    assert all(layer.instructions > 0 and layer.cycles_modelled > 0 for layer in first.layers)
    assert first.instructions == sum(layer.instructions for layer in first.layers)
    # A board of the user's own, which QEMU has not, is counted on the machine that it has.
    own = replace(load_board("mps3-an547"), name="own", emulator="none", qemu_machine=None)
    plan = write_for(tmp_path / "own", firmware.graph, own, Planning())
    assert bench_firmware(Firmware(tmp_path / "own", firmware.graph, plan, own, Planning()), toolchain="gcc").layers == first.layers


def test_a_network_too_large_for_the_m55_machine(tmp_path: Path) -> None:
    header = tiny.RUNTIME_HEADER.replace("weights[20]", "weights[600000]")
    sources = tiny.write_sources(tmp_path / "sources", runtime_header=header)
    with pytest.raises(CapacityError, match="does not fit the memory"):
        build_image(sources, tiny.API, bench_board(load_core("m55")), find_toolchain("gcc"), tmp_path / "image")


def test_what_is_not_asked_for_is_not_counted(tiny_image: ImageBuilder) -> None:
    image = tiny_image("mps2-an386", "gcc")
    assert run_qemu(image, IMAGES).profile is None
    assert run_qemu(image, [], profile=True).profile is None
    profile = run_qemu(image, IMAGES, profile=True).profile
    assert profile is not None
    assert [layer.flash_reads for layer in profile] == [None] * tiny.STEPS
    with pytest.raises(InputError, match="cannot be profiled"):
        run_qemu(tiny_image("mps2-an386", "gcc", tap=True), IMAGES, profile=True)


def test_a_temporary_folder_with_a_comma(tiny_image: ImageBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tiny_image("mps2-an386", "gcc")
    expected = run_qemu(image, IMAGES[:1], profile=True)
    (tmp_path / "a,b =c").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a,b =c"))
    assert run_qemu(image, IMAGES[:1], profile=True) == expected


def test_without_a_compiler_for_this_computer(tiny_image: ImageBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tiny_image("mps2-an386", "gcc")
    which = shutil.which
    plugin_library.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: which(name) if name.startswith("qemu") else None)
    monkeypatch.setattr("kqgen.toolchain._find_zig", lambda: None)
    with pytest.raises(ToolchainError, match="counting under QEMU needs a plugin") as caught:
        run_qemu(image, IMAGES[:1], profile=True)
    assert "install" in caught.value.do
    assert run_qemu(image, IMAGES[:1]).profile is None


def test_a_qemu_that_refuses_the_plugin(tiny_image: ImageBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kqgen.qemu.plugin_api", lambda version: 99)
    with pytest.raises(ToolchainError, match="refuses the plugin that counts instructions") as caught:
        run_qemu(tiny_image("mps2-an386", "gcc"), IMAGES[:1], profile=True)
    assert "99" in caught.value.found


def test_a_fault_is_not_taken_for_a_refused_plugin(tmp_path: Path) -> None:
    runtime = tiny.RUNTIME.replace("uint32_t at = 0u;", 'uint32_t at = 0u;\n    __asm__ volatile("udf #0");')
    sources = tiny.write_sources(tmp_path / "sources", runtime=runtime)
    image = build_image(sources, tiny.API, load_board("mps2-an386"), find_toolchain("gcc"), tmp_path / "image")
    with pytest.raises(ToolchainError, match="ended with status 5"):
        run_qemu(image, IMAGES[:1], profile=True)


@pytest.mark.parametrize(
    ("version", "api"),
    [("6.0.0", 1), ("7.2.22", 1), ("8.2.2", 1), ("9.0.0", 2), ("10.0.2", 2), ("10.2.50", 2), ("11.0.1", 6), ("11.1.0", 7), ("12.0.0", 7)],
)
def test_the_interface_version_for_each_qemu(version: str, api: int) -> None:
    assert plugin_api(version) == api


@pytest.mark.parametrize("version", ["5.2.0", "unknown"])
def test_a_qemu_too_old(version: str) -> None:
    with pytest.raises(ToolchainError, match="cannot count instructions"):
        plugin_api(version)


def test_reading_back_the_counts() -> None:
    text = f"reads 3\nreads 0\nedge 0 {START} 65538 1\nedge 0 65538 {END} 1\nedge 1 {START} 131076 5\nend 131076 0\n"
    edges = (Edge(0, START, 65538, 1), Edge(0, 65538, END, 1), Edge(1, START, 131076, 5), Edge(1, 131076, END, 1))
    assert parse_counts(text) == RawCounts(edges, (3, 0), False)


@pytest.mark.parametrize(
    ("text", "error"),
    [("", ToolchainError), ("reads 3\nedge 0 1 2 3\n", ToolchainError), ("reads 3\nend", ToolchainError), ("full\n", InternalError)],
)
def test_counts_that_are_not_whole(text: str, error: type[KqgenError]) -> None:
    with pytest.raises(error):
        parse_counts(text)


@pytest.mark.parametrize("api", [1, 2, 6, 7])
def test_the_plugin_compiles_without_a_warning(tmp_path: Path, api: int) -> None:
    compiler = find_host_compiler()
    sources = [str(runtime_dir() / "tools" / name) for name in SOURCES]
    more = ("-Wpedantic", "-Wsign-conversion", "-Wmissing-prototypes")
    argv = [*compiler.compiler, "-std=c11", "-O2", "-fPIC", *WARNING_FLAGS, *more, f"-DKQ_PLUGIN_API={api}", "-c", *sources]
    run_tool(argv, cwd=tmp_path, what="compiling the plugin", kind=compiler.kind)
    assert len(list(tmp_path.glob("*.o"))) == len(SOURCES)
