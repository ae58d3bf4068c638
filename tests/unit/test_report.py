"""The report: its sums, its bits per weight from plain counting, its JSON; and what is said when a board is too small."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace

import nets
import numpy as np
import pytest

from kqgen import sizes
from kqgen.board import Board, load_board
from kqgen.capacity import check_capacity, needs, refusal, room_table
from kqgen.errors import CapacityError, InternalError
from kqgen.intgraph import IntConv2d, IntNode, KqWeights, UniformWeights, frozen
from kqgen.plan import Plan
from kqgen.report import IN_TABLES, Measured, build, document, fullest_step, grouped, live_tensors, op_title

BOARD = load_board("nucleo-g0b1re")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return nets.make_plan(nets.residual())


def measured(tables_bytes: int) -> Measured:
    return Measured("cc 1.0", code_bytes=4000, tables_bytes=tables_bytes, stack_bytes=300)


def test_sums(plan: Plan) -> None:
    tables = sizes.tables_bytes(plan.graph)
    report = build(plan, BOARD, measured(tables + 6))
    parts = [layer.flash_bytes for layer in report.layers] + [book.flash_bytes for book in report.codebooks]
    assert sum(parts) == report.flash_bytes.tables == tables
    assert (report.flash_bytes.code, report.flash_bytes.total) == (4006, tables + 4006)
    ram = report.ram_bytes
    assert (ram.arena, ram.output, ram.stack) == (plan.arena_bytes, 10, 300)
    assert ram.total == plan.arena_bytes + 10 + 300
    assert report.macs == sum(node.macs for node in plan.graph.nodes if isinstance(node, IntConv2d))


def test_without_a_build_measured_figures_are_none(plan: Plan) -> None:
    report = build(plan, BOARD, None)
    assert (report.toolchain, report.flash_bytes.code, report.flash_bytes.total) == (None, None, None)
    assert (report.ram_bytes.stack, report.ram_bytes.total) == (None, None)


def test_tables_of_another_size_are_a_bug(plan: Plan) -> None:
    planned = sizes.tables_bytes(plan.graph)
    layers = sum(isinstance(node, IntConv2d) for node in plan.graph.nodes)
    most = max(64, 18 * layers)
    build(plan, BOARD, measured(planned + most))
    for off in (-1, most + 1):
        with pytest.raises(InternalError, match="tables of"):
            build(plan, BOARD, measured(planned + off))


def test_bits_per_weight_count_indices_codebooks_and_padding(plan: Plan) -> None:
    """Counted here from the tables of the network: 24 codewords of 9 and 5 of 5 values of 6 bits; indices of 6 and 3 bits."""
    widths = build(plan, BOARD, None).bits_per_weight
    books = 8 * (24 * 9 * 6 // 8 + (5 * 5 * 6 + 7) // 8)
    indices = 6 * (8 * 8 + 8 * 8 + 8 * 17) + (3 * 17 * 6 + 7) // 8 * 8
    indexed = 9 * (64 + 64 + 136) + 5 * 17 * 6
    assert widths.kq == pytest.approx((books + indices) / indexed)
    others = 8 * 8 * 3 * 9 + (6 * 7 * 6 * 6 + 7) // 8 * 8 + (4 * 9 * 7 + 7) // 8 * 8
    assert widths.conv == pytest.approx((books + indices + others) / (indexed + 216 + 252 + 63))
    dense = next(node for node in plan.graph.nodes if node.name == "fc")
    assert isinstance(dense, IntConv2d)
    count = dense.weight_count
    assert widths.all == pytest.approx((books + indices + others + 8 * count) / (indexed + 216 + 252 + 63 + count))


def test_a_network_without_weights_has_no_bits() -> None:
    net = nets.Builder("pools")
    net.input("x", 4, 4, 2)
    net.max_pool("pool", (2, 2))
    report = build(nets.make_plan(net.graph()), BOARD, None)
    assert dataclasses.astuple(report.bits_per_weight) == (None, None, None)
    assert report.macs == 0


def test_what_int8_would_take_is_what_an_int8_network_takes(plan: Plan) -> None:
    def widened(node: IntNode) -> IntNode:
        if not isinstance(node, IntConv2d):
            return node
        shape = (node.output.c, *node.kernel, node.in_shape[2])
        return replace(node, weights=UniformWeights(8, frozen(rng.integers(-9, 10, shape), np.int8)))

    rng = np.random.default_rng(0)
    wide = replace(plan.graph, nodes=tuple(widened(node) for node in plan.graph.nodes), codebooks=())
    assert build(plan, BOARD, None).int8_tables_bytes == sizes.tables_bytes(wide)


def test_layers_for_people(plan: Plan) -> None:
    rows = {layer.name: (layer.title, layer.output, layer.weights, layer.form) for layer in build(plan, BOARD, None).layers}
    assert rows["stem"] == ("conv 3x3 3->8", "11x9x8", "int8", "direct")
    assert rows["b2.conv"][:3] == ("conv 3x3/2 8->17", "6x5x17", "KQ 5+sign")
    assert rows["wide"][:3] == ("conv 1x5 17->6", "6x5x6", "KQ 3")
    assert rows["b2_add"] == ("add", "6x5x17", "", "plain")
    assert rows["mean"][0] == "avg pool 3x3/2"
    assert rows["pool"][0] == "max pool 2x2/1"
    assert rows["b2_skip"][0] == "slice, pad"
    assert rows["relu"][0] == "clamp"
    assert rows["six"][2:] == ("int6", "unpack")
    assert rows["fc"][0].startswith("dense ")


def test_additive_codebooks_and_narrow_indices() -> None:
    plan = nets.make_plan(nets.summed())
    report = build(plan, BOARD, None)
    rows = {layer.name: (layer.weights, layer.index_bits, layer.weight_bits) for layer in report.layers}
    assert rows["stem"] == ("KQ 5+sign", 6, 8 * -(-7 * 3 * 6 // 8))
    assert rows["narrow"] == ("KQ 2+sign", 3, 8 * -(-20 * 7 * 3 // 8))
    assert rows["sum"] == ("KQ 2x4+sign", 9, 8 * -(-9 * 20 * 9 // 8))
    assert rows["narrow.sum"] == ("KQ 2x2+sign", 5, 8 * -(-11 * 9 * 5 // 8))
    assert rows["row"] == ("KQ 2x2", 4, 8 * -(-6 * 5 * 4 // 8))
    assert [(book.name, book.codewords, book.stages, book.flash_bytes) for book in report.codebooks] == [
        ("pairs", 26, 2, -(-26 * 9 * 6 // 8)), ("flat_pairs", 8, 2, -(-8 * 5 * 6 // 8)), ("plain", 21, 1, -(-21 * 9 * 6 // 8)),
    ]  # fmt: skip
    assert set(document(report)["codebooks"][0]) == {"name", "codewords", "flash_bytes"}
    parts = [layer.flash_bytes for layer in report.layers] + [book.flash_bytes for book in report.codebooks]
    assert sum(parts) == report.flash_bytes.tables


def test_uneven_strides_are_told() -> None:
    net = nets.Builder("net")
    net.input("x", 8, 8, 1)
    net.conv("a", 2, (3, 3), stride=(2, 1))
    assert op_title(net.graph().nodes[0]) == "conv 3x3/2x1 1->2"


def test_json_leaves_out_what_is_for_people_and_what_is_not_finite() -> None:
    @dataclass(frozen=True)
    class Inner:
        value: float
        note: str = field(metadata=IN_TABLES)

    @dataclass(frozen=True)
    class Outer:
        items: tuple[Inner, ...]
        ratio: float | None
        title: str = field(metadata=IN_TABLES)

    made = document(Outer((Inner(float("inf"), "a"), Inner(2.0, "b")), float("nan"), "c"))
    assert made == {"schema": 1, "items": [{"value": None}, {"value": 2.0}], "ratio": None}


def test_a_report_is_plain_json(plan: Plan) -> None:
    made = document(build(plan, BOARD, None))
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    indexed = [node for node in plan.graph.nodes if isinstance(node, IntConv2d) and isinstance(node.weights, KqWeights)]
    assert [layer["index_bits"] for layer in made["layers"] if layer["index_bits"]] == [
        node.weights.index_bits for node in indexed if isinstance(node.weights, KqWeights)
    ]


def test_numbers_are_grouped() -> None:
    assert [grouped(value) for value in (0, 999, 1000, 16688, 1234567, 1e6, None)] == [
        "0", "999", "1 000", "16 688", "1 234 567", "1 000 000", "-",
    ]  # fmt: skip


# Capacity

def test_the_fullest_step_holds_no_more_than_the_arena(plan: Plan) -> None:
    number = fullest_step(plan)
    held = sum(tensor.size_bytes for tensor in live_tensors(plan, number)) + plan.steps[number].scratch_bytes
    assert held <= plan.arena_bytes
    for other in range(len(plan.steps)):
        assert sum(tensor.size_bytes for tensor in live_tensors(plan, other)) + plan.steps[other].scratch_bytes <= held


def small(flash_bytes: int, ram_bytes: int) -> Board:
    """A board of which a network may take so much."""
    regions = tuple(
        replace(region, size_bytes={"flash": flash_bytes, "ram": ram_bytes}[region.name] + 100) for region in BOARD.regions
    )
    return replace(BOARD, name="small", regions=regions, reserve_flash_bytes=100, reserve_ram_bytes=100, where="small.toml")


def test_a_network_that_just_fits_is_taken(plan: Plan) -> None:
    report = build(plan, BOARD, measured(sizes.tables_bytes(plan.graph)))
    flash, ram = report.flash_bytes.total, report.ram_bytes.total
    assert flash is not None
    assert ram is not None
    check_capacity(plan, small(flash, ram), report)
    check_capacity(plan, load_board("host"), report)
    with pytest.raises(CapacityError, match=r"residual does not fit small: flash [\d ]+ bytes needed, [\d ]+ usable of [\d ]+\n") as raised:
        check_capacity(plan, small(flash - 1, ram), report)
    assert "RAM:" not in raised.value.found
    with pytest.raises(CapacityError, match="does not fit small: RAM ") as raised:
        check_capacity(plan, small(flash, ram - 1), report)
    assert "flash:" not in raised.value.found
    with pytest.raises(CapacityError, match=r"flash .*; RAM ") as raised:
        check_capacity(plan, small(flash - 1, ram - 1), report)
    assert "100 bytes of flash and 100 bytes of RAM" in raised.value.wanted
    assert "small.toml" in raised.value.wanted


def test_before_a_build_what_is_known_counts(plan: Plan) -> None:
    report = build(plan, BOARD, None)
    known = (sizes.tables_bytes(plan.graph), plan.arena_bytes + 10)
    check_capacity(plan, small(*known), report)
    for short in ((known[0] - 1, known[1]), (known[0], known[1] - 1)):
        with pytest.raises(CapacityError):
            check_capacity(plan, small(*short), report)


def rows(table: str) -> dict[str, int]:
    found = {}
    for line in table.splitlines():
        label, _, size = line.strip().rpartition("  ")
        found[label.strip()] = int(size.replace(" ", ""))
    return found


def test_the_room_of_ram(plan: Plan) -> None:
    report = build(plan, BOARD, measured(sizes.tables_bytes(plan.graph)))
    table = rows(room_table(plan, report, "RAM"))
    assert table["in all"] == report.ram_bytes.total
    assert (table["output"], table["stack"]) == (10, 300)
    arena = table.pop(f"RAM: arena, fullest at {report.fullest}")
    assert arena == plan.arena_bytes
    assert arena + table["output"] + table["stack"] == table["in all"]
    inside = sum(size for label, size in table.items() if label not in ("output", "stack", "in all"))
    held = live_tensors(plan, fullest_step(plan))
    assert inside == sum(tensor.size_bytes for tensor in held) + plan.steps[fullest_step(plan)].scratch_bytes
    assert arena - 4 * (len(held) + 1) < inside <= arena


def test_an_input_takes_its_room_in_the_arena() -> None:
    plan = nets.make_plan(nets.single())
    table = rows(room_table(plan, build(plan, BOARD, None), "RAM"))
    assert (table["x 2x3x4"], table["output"], table["in all"]) == (24, 12, plan.arena_bytes + 12)


def test_the_room_of_flash_names_the_largest_layers_and_adds_up(plan: Plan) -> None:
    report = build(plan, BOARD, measured(sizes.tables_bytes(plan.graph)))
    table = rows(room_table(plan, report, "flash"))
    assert table["in all"] == report.flash_bytes.total
    assert table["flash: tables"] + table["code"] == table["in all"]
    parts = [size for label, size in table.items() if label not in ("flash: tables", "code", "in all")]
    assert sum(parts) == table["flash: tables"]
    largest = max(report.layers, key=lambda layer: layer.flash_bytes)
    assert table[f"{largest.name} {largest.title}"] == largest.flash_bytes


def test_lines_of_a_room_table_are_aligned(plan: Plan) -> None:
    report = build(plan, BOARD, None)
    for memory in ("RAM", "flash"):
        assert len({len(line) for line in room_table(plan, report, memory).splitlines()}) == 1


def test_boards_with_room_are_named_the_smallest_first(plan: Plan) -> None:
    made = build(plan, BOARD, None)
    for arena, boards in ((5000, "stm32vldiscovery or microbit or nucleo-f446re"), (10_000, "microbit or nucleo-f446re or nucleo-g0b1re")):
        report = replace(made, ram_bytes=replace(made.ram_bytes, arena=arena))
        error = refusal(plan, BOARD, report, needs(report, small(1, 1))[1:])
        assert error.what.startswith("residual does not fit nucleo-g0b1re: RAM ")
        assert error.do.startswith(f"--board {boards}, or ")
        assert error.exit_status == 3


def test_what_only_the_linker_saw_keeps_its_message(plan: Plan) -> None:
    report, board = build(plan, BOARD, None), load_board("microbit")
    error = refusal(plan, board, report, needs(report, board), "ld: region flash overflowed by 20 bytes")
    assert error.what == "residual does not fit microbit: the linker finds no room for tables, code and stack"
    assert error.found.endswith("ld: region flash overflowed by 20 bytes")
    assert "stm32vldiscovery" not in error.do
