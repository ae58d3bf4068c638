"""The emitted folder: the same bytes everywhere, clean C, and the behaviour that the header promises."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nets
import pytest
from conftest import ROOT, require_tool
from nets import flip_first_byte, write

from kqgen.assets import runtime_dir
from kqgen.board import load_board, load_core
from kqgen.elf import read_elf
from kqgen.emit import Meta, SourceTree, emit, runtime_files
from kqgen.errors import InternalError
from kqgen.firmware import model_api
from kqgen.hostlib import STRICT_FLAGS
from kqgen.image import build_image
from kqgen.intgraph import IntGraph
from kqgen.planner import make_plan
from kqgen.toolchain import core_flags, find_host_compiler, find_toolchain
from kqgen.views_text import COLUMNS

META = Meta("kqgen 1.2.3", "--weights kq")
GRAPHS: dict[str, Callable[[], IntGraph]] = {
    "residual": nets.residual, "two_ports": nets.two_ports, "single": nets.single, "summed": nets.summed, "fused": nets.fused,
}  # fmt: skip


def tree_of(name: str, board: str = "nucleo-g0b1re", vectors: int = 2) -> SourceTree:
    graph = GRAPHS[name]()
    plan = nets.make_plan(graph, {"b1_conv1": "reuse", "b1_conv2": "decode"} if name == "residual" else {})
    return emit(plan, load_board(board), nets.make_golden(graph, nets.random_inputs(graph, vectors), vectors), META)


@pytest.fixture(scope="module", params=sorted(GRAPHS))
def tree(request: pytest.FixtureRequest) -> SourceTree:
    return tree_of(request.param)


def host(argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    compiler = find_host_compiler()
    return subprocess.run([*compiler.compiler, *argv], cwd=cwd, capture_output=True, text=True, check=False)


def sources(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.c"))]


def build_and_run(folder: Path, models: list[str], main: str, *flags: str) -> str:
    """Links `main` with the models beside it and each file of their runtimes once; what it prints."""
    require_tool("cc")
    (folder / "main.c").write_text(main, encoding="utf-8")
    files = ["main.c", *(path for model in models for path in sources(folder) if path.startswith(f"{model}/{model}"))]
    runtimes = [path for path in sources(folder) if path.startswith(tuple(f"{model}/runtime/" for model in models))]
    files += {path.rpartition("/")[2]: path for path in runtimes}.values()
    include = [f"-I{model}" for model in models] + [f"-I{models[0]}/runtime"]
    built = host(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", *flags, *include, *files, "-o", "main"], folder)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([folder / "main"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tree_is_frozen_and_sorted(tree: SourceTree) -> None:
    assert list(tree.files) == sorted(tree.files)
    with pytest.raises(TypeError):
        tree.files["x"] = "y"  # type: ignore[index]


_PRINT_TEXTS = """
import hashlib, json
import test_emit
tree = test_emit.tree_of("residual")
print(json.dumps({path: hashlib.sha256(text.encode()).hexdigest() for path, text in tree.files.items()}))
"""


def test_texts_are_the_same_in_another_process_folder_zone_and_user(tmp_path: Path) -> None:
    found = []
    for seed, zone, folder in (("1", "UTC", tmp_path), ("2", "Asia/Tokyo", ROOT)):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "HOME": str(folder), "USER": f"user{seed}", "LC_ALL": "C"}
        environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tests/unit"))
        done = subprocess.run([sys.executable, "-c", _PRINT_TEXTS], cwd=folder, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert len(found[0]) > 20


def functions(text: str) -> set[str]:
    """The runtime's functions that a C text names before a bracket, comments left out."""
    return set(re.findall(r"\b(kq_\w+)\(", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)))


def test_the_runtime_files_that_are_called_are_copied_byte_for_byte_and_no_others(tree: SourceTree) -> None:
    copied = {path.removeprefix("runtime/"): text for path, text in tree.files.items() if path.startswith("runtime/")}
    assert copied == {name: (runtime_dir() / name).read_bytes().decode() for name in copied}
    called = functions(tree.files[f"{tree.model}.c"]) | functions(tree.files[f"{tree.model}_selftest.c"])
    prototypes = set(re.findall(r"(kq_\w+)\(", copied["kq.h"]))
    assert called <= prototypes
    bodies = {name: functions(text) & prototypes for name, text in copied.items() if name.endswith(".c")}
    assert called <= set().union(*bodies.values())
    assert [name for name, found in bodies.items() if not found & called] == []
    included = set(re.findall(r'#include "(\w+\.h)"', "".join(tree.files.values())))
    assert {name for name in copied if name.endswith(".h")} <= included


@pytest.mark.parametrize("board", ["nucleo-g0b1re", "nucleo-f446re", "mps3-an547"])
def test_the_runtime_of_each_core_links_by_itself(board: str, tmp_path: Path) -> None:
    require_tool("gcc")
    graph, target = nets.fused(), load_board(board)
    plan = make_plan(graph, target)
    tree = emit(plan, target, nets.make_golden(graph, nets.random_inputs(graph, 1)), META)
    folder = write(tree, tmp_path / "fused")
    image = build_image(folder, model_api(graph), target, find_toolchain("gcc"), tmp_path / "image")
    linked = {symbol.name for symbol in image.elf.symbols if symbol.kind == "function"}
    assert {step.function for step in plan.steps if step.function} <= linked


def test_a_function_that_the_runtime_lacks_is_refused() -> None:
    assert {path.name for path in runtime_files(["kq_add_s8"])} >= {"kq_add.c", "kq.h", "kq_types.h", "kq_fixed.h"}
    with pytest.raises(InternalError, match="the runtime has no function kq_conv2d_s9"):
        runtime_files(["kq_add_s8", "kq_conv2d_s9"])


def test_only_the_board_files_depend_on_the_board() -> None:
    first, second = tree_of("residual", "nucleo-g0b1re").files, tree_of("residual", "nucleo-f446re").files
    differing = {path for path in {*first, *second} if first.get(path) != second.get(path)}
    assert differing == {"README.md", "CMakeLists.txt", "toolchain-m0p.cmake", "toolchain-m4.cmake"}
    assert not [path for path in tree_of("residual", "host").files if path.startswith("toolchain")]


def test_texts_are_tidy(tree: SourceTree) -> None:
    for path, text in tree.files.items():
        if path.startswith("runtime/"):
            continue
        assert text.isascii(), path
        assert text.endswith("\n"), path
        assert not text.endswith("\n\n"), path
        assert "\n\n\n" not in text, path
        assert "\t" not in text, path
        lines = text.splitlines()
        assert [line for line in lines if line != line.rstrip() or len(line) > COLUMNS] == [], path


def test_every_layer_and_table_names_its_modules() -> None:
    graph, files = nets.residual(), tree_of("residual").files
    for node in graph.nodes:
        modules = ", ".join(path or "forward()" for path in node.sources)
        heading = rf"/\* \d+  {node.name}: .*PyTorch: {re.escape(modules)} \*/\n"
        assert re.search(heading + rf"KQGEN_TABLE static const kq_\w+ residual_{node.name} = ", files["residual.c"]), node.name
        if f"residual_{node.name}_bias" in files["residual.c"]:
            assert f"/* ---- {node.name}, from {modules} */" in files["residual_tables.c"]


@pytest.mark.parametrize("tap", [False, True], ids=["plain", "tap"])
@pytest.mark.parametrize("compiler", ["cc", "gcc", "zig"])
def test_c_is_clean_under_strict_warnings(compiler: str, tap: bool, tree: SourceTree, tmp_path: Path) -> None:
    require_tool("cc" if compiler == "cc" else "gcc" if compiler == "gcc" else "zig")
    folder = write(tree, tmp_path)
    chosen = find_host_compiler() if compiler == "cc" else find_toolchain("gcc" if compiler == "gcc" else "zig")
    core = () if compiler == "cc" else (*core_flags(chosen.kind, load_core("m0p")), "-ffreestanding")
    argv = [*chosen.compiler, *core, *STRICT_FLAGS, "-O2", "-I.", "-Iruntime", *(["-DKQGEN_TAP"] if tap else []), "-c"]
    for source in sources(folder):
        done = subprocess.run([*argv, source, "-o", "out.o"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_objects_hold_constants_and_code_alone(tree: SourceTree, tmp_path: Path) -> None:
    """No byte that changes, no name without the model's prefix, nothing needed but the runtime: in a build without taps."""
    require_tool("gcc")
    folder, compiler = write(tree, tmp_path), find_toolchain("gcc")
    for source in (path for path in sources(folder) if "/" not in path):
        argv = [*compiler.compiler, *core_flags("gcc", load_core("m0")), "-std=c11", "-ffreestanding", "-O2", "-I.", "-Iruntime"]
        subprocess.run([*argv, "-c", source, "-o", "out.o"], cwd=folder, check=True)
        elf = read_elf(folder / "out.o")
        assert [part.name for part in elf.sections if part.name.startswith((".data", ".bss")) and part.size_bytes] == []
        assert [symbol.name for symbol in elf.symbols if symbol.is_global and not symbol.name.startswith(f"{tree.model}_")] == []
        assert [name for name in elf.undefined if not name.startswith((f"{tree.model}_", "kq_"))] == []


def test_section_macros_place_every_table_and_function(tree: SourceTree, tmp_path: Path) -> None:
    require_tool("gcc")
    folder, compiler = write(tree, tmp_path), find_toolchain("gcc")
    argv = [*compiler.compiler, *core_flags("gcc", load_core("m4")), *STRICT_FLAGS, "-ffreestanding", "-O2", "-I.", "-Iruntime"]
    argv += ['-DKQGEN_TABLE=__attribute__((section(".fast_tables")))', '-DKQGEN_CODE=__attribute__((section(".fast_code")))']
    for source in (f"{tree.model}.c", f"{tree.model}_tables.c"):
        subprocess.run([*argv, "-c", source, "-o", "out.o"], cwd=folder, check=True)
        elf = read_elf(folder / "out.o")
        assert elf.section_bytes(".fast_tables") > 0
        assert [part.name for part in elf.sections if part.name.startswith((".text", ".rodata", ".data")) and part.size_bytes] == []
        assert {symbol.section for symbol in elf.symbols if symbol.kind == "function"} <= {".fast_code"}


def test_the_header_is_cplusplus(tree: SourceTree, tmp_path: Path) -> None:
    require_tool("zig")
    folder, zig = write(tree, tmp_path), find_toolchain("zig")
    (folder / "user.cpp").write_text(
        f'#include "{tree.model}.h"\nint main() {{ return {tree.model}_selftest(nullptr) == 0 ? 0 : 1; }}\n', encoding="utf-8"
    )
    argv = [*zig.compiler, "-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-DKQGEN_TAP", "-I.", "-Iruntime", "-c", "user.cpp"]
    subprocess.run([*argv, "-o", "user.o"], cwd=folder, check=True)
    # The name is C's, not mangled by C++.
    assert f"{tree.model}_selftest\0".encode() in (folder / "user.o").read_bytes()


_TWO_NETS = """
#include <stdio.h>
#include "residual.h"
#include "two_ports.h"

static _Alignas(RESIDUAL_ARENA_ALIGN) uint8_t first[RESIDUAL_ARENA_BYTES];
static _Alignas(TWO_PORTS_ARENA_ALIGN) uint8_t second[TWO_PORTS_ARENA_BYTES];

int main(void)
{
    printf("%d %d", (int)residual_selftest(first), (int)two_ports_selftest(second));
    return 0;
}
"""


@pytest.mark.parametrize("flags", [(), ("-DKQGEN_TAP",)], ids=["plain", "tap"])
def test_two_networks_share_one_firmware(flags: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("residual", "two_ports"):
        write(tree_of(name), tmp_path / name)
    assert build_and_run(tmp_path, ["residual", "two_ports"], _TWO_NETS, *flags) == "0 0"


def test_cmake_builds_the_folder_by_itself_and_inside_another_project(tmp_path: Path) -> None:
    require_tool("cmake", "cc", "gcc")
    cmake = str(shutil.which("cmake"))
    for name in ("residual", "two_ports"):
        write(tree_of(name), tmp_path / name)
    (tmp_path / "main.c").write_text(_TWO_NETS, encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(firmware LANGUAGES C)\nadd_subdirectory(two_ports)\nadd_subdirectory(residual)\n"
        "add_executable(firmware main.c)\ntarget_link_libraries(firmware PRIVATE residual two_ports)\n",
        encoding="utf-8",
    )
    cross = f"-DCMAKE_TOOLCHAIN_FILE={tmp_path / 'residual' / 'toolchain-m0p.cmake'}"
    for source, build, *options in ((".", "host"), ("residual", "cross", cross)):
        subprocess.run([cmake, "-S", source, "-B", build, *options], cwd=tmp_path, capture_output=True, check=True)
        subprocess.run([cmake, "--build", build], cwd=tmp_path, capture_output=True, check=True)
    done = subprocess.run([tmp_path / "host" / "firmware"], capture_output=True, text=True, check=True)
    assert done.stdout == "0 0"
    assert (tmp_path / "cross" / "libresidual.a").is_file()
    assert (tmp_path / "cross" / "libkq_runtime.a").is_file()


_SELFTEST = """
#include <stdio.h>
#include "residual.h"

static _Alignas(RESIDUAL_ARENA_ALIGN) uint8_t arena[RESIDUAL_ARENA_BYTES + 1u];

int main(void)
{
    printf("%d %d", (int)residual_selftest(arena), (int)residual_selftest(arena + 1));
    return 0;
}
"""


def corrupt_output(text: str, vector: int) -> str:
    """The self-test's text with the first golden output value of one vector changed."""
    head, tail = text.split("golden_output[VECTORS]", 1)
    position = [match.end() for match in re.finditer(r"\n    \{\n\s*", tail)][vector]
    value = re.compile(r"-?\d+").match(tail, position)
    assert value is not None
    changed = "1" if value.group() != "1" else "2"
    return head + "golden_output[VECTORS]" + tail[:position] + changed + tail[value.end() :]


@pytest.mark.parametrize("vector", [0, 1])
def test_selftest_numbers_the_golden_input_that_fails(vector: int, tmp_path: Path) -> None:
    folder = write(tree_of("residual"), tmp_path / "residual")
    selftest = folder / "residual_selftest.c"
    selftest.write_text(corrupt_output(selftest.read_text(encoding="utf-8"), vector), encoding="utf-8")
    assert build_and_run(tmp_path, ["residual"], _SELFTEST) == f"{-1 - vector} -1"


@pytest.mark.parametrize(
    ("layer", "table", "mask"), [("stem", "weights", 0x40), ("b1_conv2", "indices", 1), ("b2_conv", "indices", 1), ("six", "weights", 0x10)]
)
def test_selftest_with_taps_names_the_layer_that_differs(layer: str, table: str, mask: int, tmp_path: Path) -> None:
    folder = write(tree_of("residual"), tmp_path / "residual")
    tables = folder / "residual_tables.c"
    tables.write_text(flip_first_byte(tables.read_text(encoding="utf-8"), f"residual_{layer}_{table}", mask), encoding="utf-8")
    step = [node.name for node in nets.residual().nodes].index(layer)
    assert build_and_run(tmp_path, ["residual"], _SELFTEST, "-DKQGEN_TAP") == f"{1 + step} -1"


_ARGUMENTS = """
#include <stdio.h>
#include <string.h>
#include "two_ports.h"

static _Alignas(8) uint8_t arena[TWO_PORTS_ARENA_BYTES + 8u];
static int8_t left[TWO_PORTS_INPUT_LEFT_BYTES], right[TWO_PORTS_INPUT_RIGHT_BYTES];
static int8_t sum[TWO_PORTS_OUTPUT_SUM_BYTES], tail[TWO_PORTS_OUTPUT_TAIL_BYTES];

static int untouched(void)
{
    for (uint32_t i = 0; i < sizeof arena; i++) {
        if (arena[i] != 77) {
            return 0;
        }
    }
    for (uint32_t i = 0; i < sizeof sum; i++) {
        if (sum[i] != 77) {
            return 0;
        }
    }
    for (uint32_t i = 0; i < sizeof tail; i++) {
        if (tail[i] != 77) {
            return 0;
        }
    }
    return 1;
}

int main(void)
{
    memset(arena, 77, sizeof arena);
    memset(sum, 77, sizeof sum);
    memset(tail, 77, sizeof tail);
    printf("%d ", (int)two_ports_run(NULL, left, right, sum, tail));
    printf("%d ", (int)two_ports_run(arena, NULL, right, sum, tail));
    printf("%d ", (int)two_ports_run(arena, left, NULL, sum, tail));
    printf("%d ", (int)two_ports_run(arena, left, right, NULL, tail));
    printf("%d ", (int)two_ports_run(arena, left, right, sum, NULL));
    printf("%d ", (int)two_ports_run(arena + 1, left, right, sum, tail));
    printf("%d ", (int)two_ports_run(arena + 2, left, right, sum, tail));
    printf("%d ", untouched());
    printf("%d ", (int)two_ports_run(arena + 4, left, right, sum, tail));
    printf("%d", untouched());
    return 0;
}
"""


def test_wrong_arguments_give_status_codes_and_touch_nothing(tmp_path: Path) -> None:
    write(tree_of("two_ports"), tmp_path / "two_ports")
    assert build_and_run(tmp_path, ["two_ports"], _ARGUMENTS) == "-1 -1 -1 -1 -1 -2 -2 1 0 0"


def test_a_runtime_of_another_version_does_not_compile(tmp_path: Path) -> None:
    require_tool("cc")
    folder = write(tree_of("single"), tmp_path)
    header = folder / "runtime" / "kq.h"
    header.write_text(header.read_text(encoding="utf-8").replace("KQ_RUNTIME_VERSION 1", "KQ_RUNTIME_VERSION 2"), encoding="utf-8")
    done = host(["-std=c11", "-I.", "-Iruntime", "-c", "single.c"], folder)
    assert done.returncode != 0
    assert "version 1 of the kq runtime" in done.stderr


@pytest.mark.parametrize(("row", "changed"), [("    0x", "    0x00, 0x"), ("    0x", "    0x00,\n    // 0x")], ids=["longer", "shorter"])
def test_a_table_of_another_size_does_not_compile(row: str, changed: str, tmp_path: Path) -> None:
    require_tool("cc")
    folder = write(tree_of("single"), tmp_path)
    tables = folder / "single_tables.c"
    tables.write_text(tables.read_text(encoding="utf-8").replace(row, changed, 1), encoding="utf-8")
    done = host(["-std=c11", "-I.", "-Iruntime", "-c", "single_tables.c"], folder)
    assert done.returncode != 0
    assert "size of the table" in done.stderr


_SANITIZED = """
#include <stdio.h>
#include <stdlib.h>
#include "MODEL.h"

int main(void)
{
    uint8_t *const arena = malloc(MACRO_ARENA_BYTES);
    printf("%d", (int)MODEL_selftest(arena));
    free(arena);
    return 0;
}
"""

_SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DKQGEN_TAP")


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_sanitizers_find_nothing(name: str, tmp_path: Path) -> None:
    write(tree_of(name, vectors=6), tmp_path / name)
    main = _SANITIZED.replace("MODEL", name).replace("MACRO", name.upper())
    assert build_and_run(tmp_path, [name], main, *_SANITIZERS) == "0"
