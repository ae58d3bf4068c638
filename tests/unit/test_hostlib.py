"""The generated C on this computer against the integer reference, byte by byte."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
from conftest import ROOT, require_tool
from nets import flip_first_byte, write

from kqgen import hostlib
from kqgen.board import load_board
from kqgen.emit import Meta, emit
from kqgen.errors import InputError, InternalError, ToolchainError
from kqgen.hostlib import HostLibrary, build_library
from kqgen.intgraph import Int8, IntGraph
from kqgen.plan import Form
from kqgen.toolchain import find_toolchain

KQ_LAYERS = {"residual": ("b1_conv1", "b1_conv2", "b2_conv", "wide"), "summed": ("stem", "narrow", "one_word")}


def folder_of(graph: IntGraph, folder: Path, forms: Mapping[str, Form] | None = None) -> Path:
    golden = nets.make_golden(graph, nets.random_inputs(graph, 1))
    return write(emit(nets.make_plan(graph, forms), load_board("host"), golden, Meta("kqgen", "")), folder)


def inputs_of(graph: IntGraph, count: int) -> tuple[Int8, ...]:
    """Random images, the first two of which saturate."""
    arrays = nets.random_inputs(graph, count)
    for array in arrays:
        array[:1], array[1:2] = -128, 127
    return arrays


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    require_tool("cc")
    graph = nets.residual()
    return build_library(folder_of(graph, tmp_path_factory.mktemp("residual")), graph)


@pytest.mark.parametrize("form", ["decode", "reuse"])
@pytest.mark.parametrize("make", [nets.residual, nets.two_ports, nets.single, nets.summed], ids=lambda make: make.__name__)
def test_every_layer_equals_the_reference(make: object, form: Form, tmp_path: Path) -> None:
    require_tool("cc")
    assert callable(make)
    graph: IntGraph = make()
    forms: dict[str, Form] = dict.fromkeys(KQ_LAYERS.get(graph.name, ()), form)
    library = build_library(folder_of(graph, tmp_path, forms), graph, tap=True)
    inputs = inputs_of(graph, 150)
    expected = nets.run_reference(graph, inputs)
    outputs, layers = library.run_tapped(inputs)
    for node, found in zip(graph.nodes, layers, strict=True):
        assert np.array_equal(found, expected[node.name]), node.name
        assert found.min() < found.max()
    for name, found in zip(graph.outputs, outputs, strict=True):
        assert np.array_equal(found, expected[name])


def test_batches_threads_and_progress_change_nothing(residual: HostLibrary) -> None:
    inputs = inputs_of(residual.graph, 300)
    expected = nets.run_reference(residual.graph, inputs)[residual.graph.outputs[0]]
    told: list[float] = []
    (alone,) = residual.run(inputs, threads=1, tell=told.append)
    assert np.array_equal(alone, expected)
    assert (told, told[-1], len(told)) == (sorted(told), 1.0, -(-300 // hostlib.CHUNK_IMAGES))
    assert np.array_equal(residual.run(inputs, threads=3)[0], expected)
    assert np.array_equal(residual.run(inputs[0][:1])[0], expected[:1])
    assert np.array_equal(residual.run(np.asfortranarray(inputs[0]))[0], expected)
    assert np.array_equal(residual.run(inputs[0][::-2])[0], expected[::-2])
    assert residual.run(inputs[0][:0])[0].shape == (0, 1, 1, 10)


def test_inputs_are_not_changed(residual: HostLibrary) -> None:
    (array,) = inputs_of(residual.graph, 5)
    array.setflags(write=False)
    before = array.copy()
    residual.run(array)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (np.zeros((2, 11, 9, 3), np.float32), "float32"),
        (np.zeros((2, 11, 9, 3), np.uint8), "uint8"),
        (np.zeros((2, 9, 11, 3), np.int8), "9, 11, 3"),
        (np.zeros((11, 9, 3), np.int8), "11, 9, 3"),
    ],
    ids=["float", "unsigned", "sides", "no batch"],
)
def test_wrong_arrays_are_refused(bad: Int8, found: str, residual: HostLibrary) -> None:
    with pytest.raises(InputError, match="input x of residual") as refused:
        residual.run(bad)
    assert found in refused.value.found
    assert "int8 (N, 11, 9, 3)" in refused.value.wanted


def test_wrong_numbers_of_arrays_are_refused(residual: HostLibrary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 input"):
        residual.run(inputs_of(residual.graph, 2) * 2)
    graph = nets.two_ports()
    library = build_library(folder_of(graph, tmp_path), graph)
    left, right = nets.random_inputs(graph, 3)
    with pytest.raises(InputError, match="input right"):
        library.run((left, right[:2]))


def test_taps_need_a_tap_build(residual: HostLibrary) -> None:
    with pytest.raises(InternalError, match="without taps"):
        residual.run_tapped(inputs_of(residual.graph, 1))


def test_a_flipped_byte_shows_at_its_layer(tmp_path: Path) -> None:
    require_tool("cc")
    graph = nets.residual()
    folder, cache = folder_of(graph, tmp_path / "folder"), tmp_path / "cache"
    inputs = inputs_of(graph, 20)
    before = build_library(folder, graph, tap=True, cache_dir=cache).run_tapped(inputs)[1]
    tables = folder / "residual_tables.c"
    tables.write_text(flip_first_byte(tables.read_text(encoding="utf-8"), "residual_b2_conv_indices", 1), encoding="utf-8")
    after = build_library(folder, graph, tap=True, cache_dir=cache).run_tapped(inputs)[1]
    first = next(number for number, (old, new) in enumerate(zip(before, after, strict=True)) if not np.array_equal(old, new))
    assert graph.nodes[first].name == "b2_conv"
    assert len(list(cache.iterdir())) == 2


def test_what_is_built_once_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("cc")
    graph = nets.single()
    folder, cache = folder_of(graph, tmp_path / "folder"), tmp_path / "cache"
    build_library(folder, graph, cache_dir=cache)
    (library,) = cache.iterdir()
    monkeypatch.setattr(hostlib, "_build", lambda *_: pytest.fail("built again"))
    inputs = inputs_of(graph, 4)
    found = build_library(folder, graph, cache_dir=cache).run(inputs)[0]
    assert np.array_equal(found, nets.run_reference(graph, inputs)["only"])
    assert [path.name for path in cache.iterdir()] == [library.name]


# The package without its __init__, so that PyTorch is not loaded: it takes long, and longer under sanitizers.
_BUILD = """
import pickle, sys, types
from pathlib import Path
package = types.ModuleType("kqgen")
package.__path__ = [sys.argv[1]]
sys.modules["kqgen"] = package
from kqgen.hostlib import build_library
folder, cache, sanitize = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "sanitize"
graph, inputs, expected = pickle.loads(sys.stdin.buffer.read())
library = build_library(folder, graph, cache_dir=cache, sanitize=sanitize)
assert [found.tobytes() for found in library.run(inputs)] == expected
print("equal")
"""


def run_elsewhere(folder: Path, cache: Path, graph: IntGraph, kind: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Builds and runs a library in a process of its own; "equal" when it gave the reference's bytes."""
    inputs = inputs_of(graph, 40)
    expected = nets.run_reference(graph, inputs)
    return subprocess.run(
        [sys.executable, "-c", _BUILD, str(ROOT / "kqgen"), str(folder), str(cache), kind],
        input=pickle.dumps((graph, inputs, [np.ascontiguousarray(expected[name]).tobytes() for name in graph.outputs])),
        env={**os.environ, **environment}, capture_output=True, timeout=600, check=False,
    )  # fmt: skip


def test_processes_may_share_a_cache(tmp_path: Path) -> None:
    require_tool("cc")
    graph = nets.single()
    folder, cache = folder_of(graph, tmp_path / "folder"), tmp_path / "cache"
    with ThreadPoolExecutor(3) as pool:
        finished = list(pool.map(lambda _: run_elsewhere(folder, cache, graph, "plain"), range(3)))
    assert [(done.returncode, done.stdout) for done in finished] == [(0, b"equal\n")] * 3, finished
    assert len(list(cache.iterdir())) == 1


def sanitized(folder: Path, cache: Path, graph: IntGraph) -> subprocess.CompletedProcess[bytes]:
    """A run with ASan and UBSan; leaks are Python's own."""
    preload = hostlib.sanitizer_preload()
    return run_elsewhere(folder, cache, graph, "sanitize", LD_PRELOAD=preload, ASAN_OPTIONS="detect_leaks=0", PYTHONMALLOC="malloc")


def test_sanitizers_find_an_arena_too_small_and_nothing_else(tmp_path: Path) -> None:
    require_tool("cc")
    graph = nets.residual()
    folder = folder_of(graph, tmp_path / "folder", {"b1_conv1": "reuse", "b1_conv2": "decode"})
    done = sanitized(folder, tmp_path / "cache", graph)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"equal\n", b"")
    header = folder / "residual.h"
    text = header.read_text(encoding="utf-8")
    match = re.search(r"ARENA_BYTES (\d+)u", text)
    assert match is not None
    header.write_text(text.replace(match.group(), f"ARENA_BYTES {int(match.group(1)) - 8}u"), encoding="utf-8")
    done = sanitized(folder, tmp_path / "cache", graph)
    assert done.returncode != 0
    assert b"heap-buffer-overflow" in done.stderr


def test_c_that_does_not_compile_is_reported_with_the_compilers_words(tmp_path: Path) -> None:
    require_tool("cc")
    graph = nets.single()
    folder, cache = folder_of(graph, tmp_path / "folder"), tmp_path / "cache"
    (folder / "single.c").write_text("int single_broken(void) { return missing_name; }\n", encoding="utf-8")
    with pytest.raises(ToolchainError, match=r"single\.c") as refused:
        build_library(folder, graph, cache_dir=cache)
    assert "missing_name" in refused.value.found
    assert list(cache.iterdir()) == []


def test_the_c_of_another_graph_is_refused(tmp_path: Path) -> None:
    require_tool("cc")
    graph = nets.single()
    folder = folder_of(graph, tmp_path)
    smaller = replace(graph, inputs=(replace(graph.inputs[0], h=1),))
    with pytest.raises(ToolchainError) as refused:
        build_library(folder, smaller)
    assert "generated from another graph" in refused.value.found
    longer = replace(graph, nodes=graph.nodes * 2)
    with pytest.raises(InternalError, match="other layers"):
        build_library(folder, longer, tap=True).run(nets.random_inputs(graph, 2))


@pytest.mark.parametrize("missing", ["residual_tables.c", "residual.h", "runtime"])
def test_a_folder_without_its_sources_is_refused(missing: str, tmp_path: Path) -> None:
    graph = nets.residual()
    folder = folder_of(graph, tmp_path)
    for path in [*(folder / missing).glob("*"), folder / missing]:
        if path.is_file():
            path.unlink()
    with pytest.raises(InputError, match="does not hold the generated C") as refused:
        build_library(folder, graph)
    assert missing in refused.value.found


def test_python_without_headers_loads_a_plain_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("cc")
    graph = nets.two_ports()
    monkeypatch.setattr(hostlib, "_python_header", lambda: None)
    library = build_library(folder_of(graph, tmp_path), graph, tap=True)
    inputs = inputs_of(graph, 10)
    expected = nets.run_reference(graph, inputs)
    for node, found in zip(graph.nodes, library.run_tapped(inputs)[1], strict=True):
        assert np.array_equal(found, expected[node.name])


def test_zig_serves_as_the_compiler_of_this_computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("zig")
    graph = nets.single()
    monkeypatch.setattr(hostlib, "find_host_compiler", lambda: find_toolchain("zig"))
    library = build_library(folder_of(graph, tmp_path), graph)
    inputs = inputs_of(graph, 30)
    assert library.compiler.startswith("zig cc ")
    assert np.array_equal(library.run(inputs)[0], nets.run_reference(graph, inputs)["only"])
