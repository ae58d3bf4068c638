"""The table of an allocation: what each layer was given for a target size, and why it matters."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kqgen.allocate import Allocation
from kqgen.planned import spelled
from kqgen.report import grouped

REPEAT = "The same without a target: "


def show_allocation(console: Console, allocation: Allocation) -> None:
    """One line a layer, then the reasons and the options that come to the same."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("stored as", no_wrap=True)
    for column in ("weights", "bytes", "bits/w", "error %", "sensitivity"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in allocation.layers:
        table.add_row(
            layer.name, layer.choice, grouped(layer.weights), grouped(layer.stored_bytes), f"{layer.bits_per_weight:.2f}",
            f"{100 * layer.error:.1f}", f"{layer.importance:.2f}",
        )  # fmt: skip
    console.print(table)
    for reason in allocation.reasons:
        console.print(Text(reason), soft_wrap=True)
    console.print(Text(f"{REPEAT}{spelled(allocation.compression)}"), soft_wrap=True)
    console.print()
