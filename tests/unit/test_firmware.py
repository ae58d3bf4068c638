"""The output folder: replaced as a whole or not at all, never in the place of something else, and read back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import pytest

from kqgen import store
from kqgen.board import Board, all_boards, bench_board, load_board, load_core, parse_board
from kqgen.errors import InputError
from kqgen.firmware import board_text, check_replaceable, is_builtin, json_bytes, open_firmware, planned_for, replace_file, staged
from kqgen.plan import Planning
from kqgen.planner import make_plan


def stored(board: Board) -> bytes:
    """The graph of a network called net, planned for a board."""
    return store.to_bytes(replace(nets.single(), name="net"), planned_for(board, Planning()))


def make(folder: Path, *files: str) -> Path:
    """A folder as kqgen leaves it for a network called net, with these files besides."""
    folder.mkdir(parents=True)
    (folder / "net.kqgen.safetensors").write_bytes(stored(load_board("nucleo-g0b1re")))
    for name in ("net.c", "net.h", "report.json", "runtime/kq.h", *files):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("old", encoding="utf-8")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_was_staged_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    out = make(tmp_path / "fw", "verify.json", "bench.json", "net.elf")
    with staged(out) as stage:
        (stage / "new.txt").write_text("new", encoding="utf-8")
        (stage.parent / "build.o").write_text("not published", encoding="utf-8")
        assert (out / "net.c").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["fw", "fw/new.txt"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), InputError("no")])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    out = make(tmp_path / "fw")
    before = names(tmp_path)

    def fail(folder: Path) -> None:
        with staged(folder) as stage:
            (stage / "half").write_text("half", encoding="utf-8")
            raise error

    for folder in (out, tmp_path / "a" / "b" / "fw"):
        with pytest.raises(type(error)):
            fail(folder)
        assert names(tmp_path) == before


@pytest.mark.parametrize("fails", [1, 2])
def test_a_failure_while_folders_change_places_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    out = make(tmp_path / "fw")
    before = names(tmp_path)
    calls: list[int] = []
    real = os.replace

    def failing(source: Path, target: Path) -> None:
        calls.append(1)
        if len(calls) == fails:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt), staged(out) as stage:
        (stage / "new.txt").write_text("new", encoding="utf-8")
    assert names(tmp_path) == before
    assert (out / "net.c").read_text(encoding="utf-8") == "old"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real")
    (tmp_path / "fw").symlink_to(tmp_path / "real")
    with staged(tmp_path / "fw") as stage:
        (stage / "new.txt").write_text("new", encoding="utf-8")
    assert (tmp_path / "fw").is_symlink()
    assert names(tmp_path / "real") == ["new.txt"]


@pytest.mark.parametrize("name", ["main.c", "runtime/mine.h", "other.c", "net.o", "build/CMakeCache.txt", ".gitignore", "images.npz"])
def test_a_file_that_is_not_ours_keeps_its_folder(tmp_path: Path, name: str) -> None:
    out = make(tmp_path / "fw", name)
    with pytest.raises(InputError, match="files that kqgen did not write") as raised:
        check_replaceable(out)
    assert raised.value.found == name


def test_many_foreign_files_are_counted(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        check_replaceable(tmp_path)
    assert raised.value.found == "0.txt, 1.txt, 2.txt, 3.txt and 2 more"


def test_new_and_empty_folders_and_ours_are_taken(tmp_path: Path) -> None:
    check_replaceable(tmp_path)
    check_replaceable(tmp_path / "new" / "deep")
    check_replaceable(make(tmp_path / "fw", "README.md", "LICENSE", "CMakeLists.txt", "board.toml", "toolchain-m0p.cmake", "net.pt2",
                           "net_tables.c", "net_tables.h", "net_selftest.c", "net.elf", "runtime/kq_conv2d.c"))  # fmt: skip


def test_two_networks_in_one_folder_are_not_ours(tmp_path: Path) -> None:
    out = make(tmp_path / "fw", "other.kqgen.safetensors")
    with pytest.raises(InputError, match="files that kqgen did not write"):
        check_replaceable(out)
    with pytest.raises(InputError, match="is no folder of kqgen") as raised:
        open_firmware(out)
    assert raised.value.found == "2 files *.kqgen.safetensors"


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verify.json"
    replace_file(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o644

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        replace_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["verify.json"]


def test_json_has_no_nan() -> None:
    assert json_bytes({"b": 1, "a": None}) == b'{\n  "b": 1,\n  "a": null\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"a": float("nan")})


def test_a_folder_is_read_back(tmp_path: Path) -> None:
    firmware = open_firmware(make(tmp_path / "fw"))
    assert (firmware.graph.name, firmware.board.name, firmware.float_model) == ("net", "nucleo-g0b1re", None)
    assert (firmware.api.run_function, firmware.api.input_bytes, firmware.api.output_bytes) == ("net_run", 24, 12)
    assert firmware.plan.graph is firmware.graph
    assert firmware.planning == Planning()
    (tmp_path / "fw" / "net.pt2").write_bytes(b"")
    assert firmware.float_model == tmp_path / "fw" / "net.pt2"


def test_it_is_planned_again_as_it_was(tmp_path: Path) -> None:
    folder, board = make(tmp_path / "fw"), load_board("nucleo-g0b1re")
    planning = Planning("ram", (("b1_conv2", "reuse"), ("b1.conv1", "decode")))
    graph = replace(nets.residual(), name="net")
    (folder / "net.kqgen.safetensors").write_bytes(store.to_bytes(graph, planned_for(board, planning)))
    firmware = open_firmware(folder)
    assert firmware.planning == planning
    plan = make_plan(graph, board, planning)
    assert (firmware.plan.steps, firmware.plan.arena_bytes) == (plan.steps, plan.arena_bytes)
    forms = {step.node: step.form for step in firmware.plan.steps}
    assert (forms["b1_conv1"], forms["b1_conv2"]) == ("decode", "reuse")


@pytest.mark.parametrize(
    "changed",
    [{"optimise": None}, {"optimise": "most"}, {"forms": None}, {"forms": [["stem"]]}, {"forms": [["stem", "fast"]]}, {"forms": ["stem"]}],
    ids=str,
)
def test_a_folder_that_does_not_say_how_it_was_planned_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = make(tmp_path / "fw")
    extra = planned_for(load_board("nucleo-g0b1re"), Planning()) | changed
    kept = {key: value for key, value in extra.items() if value is not None}
    (folder / "net.kqgen.safetensors").write_bytes(store.to_bytes(replace(nets.single(), name="net"), kept))
    with pytest.raises(InputError, match=r"net\.kqgen\.safetensors does not say how the network was planned"):
        open_firmware(folder)


@pytest.mark.parametrize("board", [*all_boards(), bench_board(load_core("m33"))], ids=lambda board: board.name)
def test_a_board_comes_back_from_its_text(board: Board) -> None:
    assert parse_board(board_text(board), board.name, "board.toml") == replace(board, where="board.toml")


def test_a_core_without_an_option_comes_back_without_it() -> None:
    board = replace(bench_board(load_core("m33")), core=load_core("m33").without_dsp())
    assert parse_board(board_text(board), board.name, "board.toml").core.has_dsp is False


def test_only_a_board_just_like_ours_is_ours() -> None:
    board = load_board("microbit")
    assert is_builtin(board)
    assert is_builtin(replace(board, where="elsewhere.toml"))
    assert not is_builtin(replace(board, clock_hz=1))
    assert not is_builtin(replace(board, name="mine"))


def test_a_board_of_the_users_own_travels_with_the_folder(tmp_path: Path) -> None:
    own = replace(load_board("microbit"), name="mine", clock_hz=20_000_000, title='Board "one"\\two')
    folder = make(tmp_path / "fw")
    (folder / "net.kqgen.safetensors").write_bytes(stored(own))
    (folder / "board.toml").write_text(board_text(own), encoding="utf-8")
    assert open_firmware(folder).board == replace(own, where=str(folder / "board.toml"))
    (folder / "board.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"board\.toml"):
        open_firmware(folder)
