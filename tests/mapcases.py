"""Layers without weights for the kernel tests, and what SPEC.md says they compute: numpy, written without a look at runtime or kqgen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class MapCase:
    """One call.

    Attributes:
        label: says what is special.
        function, struct: the runtime's.
        fields: of the struct, without pointers.
        tables: pointers of the struct: (C type, array).
        inputs: int8 arrays.
        wanted: what must come out.
        held: what the output holds before.
        over: numbers of the inputs that the output may take the place of.
    """

    label: str
    function: str
    struct: str
    fields: Mapping[str, int]
    inputs: tuple[Array, ...]
    wanted: Array
    tables: Mapping[str, tuple[str, Array]] = field(default_factory=dict)
    held: Array | None = None
    over: tuple[int, ...] = ()


def run(kernels: Any, case: MapCase, over: int | None = None, offsets: tuple[int, ...] = (3, 1, 2)) -> Array:
    """Runs a case with every buffer in an allocation of its own that ends with it; `over`: the output takes that input's place."""
    with kernels.memory() as place:
        pointers = {name: place(values.tobytes(), f"{kind} *") for name, (kind, values) in case.tables.items()}
        layer = kernels.ffi.new(f"{case.struct} *", {**case.fields, **pointers})
        given = [place(array.astype(np.int8).tobytes(), "int8_t *", at) for array, at in zip(case.inputs, offsets, strict=False)]
        held = np.full(case.wanted.size, 0x55, np.int8) if case.held is None else case.held
        output = place(held.tobytes(), "int8_t *", offsets[-1]) if over is None else given[over]
        getattr(kernels.lib, case.function)(layer, *given, output)
        return np.frombuffer(kernels.ffi.buffer(output, case.wanted.size), np.int8).reshape(case.wanted.shape).copy()


def cases() -> Iterator[MapCase]:
    """All of them."""
    yield from lookups()
    yield from products()
    yield from places()
    yield from slices()
    yield from softmaxes()
    yield from arg_maxes()


def maps(rng: np.random.Generator, shape: tuple[int, ...], kind: str = "any") -> Array:
    """Random int8 values: any, or the two ends alone."""
    values = rng.choice([-128, 127], shape) if kind == "ends" else rng.integers(-128, 128, shape)
    return values.astype(np.int8)


def lookups() -> Iterator[MapCase]:
    rng = np.random.default_rng(11)
    for shape, channels in (((1, 1, 1), 1), ((4, 4, 16), 1), ((3, 5, 7), 1), ((2, 3, 5), 5), ((1, 1, 3), 3), ((1, 256, 1), 1)):
        table = maps(rng, (channels, 256))
        x = np.arange(-128, 128).astype(np.int8).reshape(shape) if math.prod(shape) == 256 and channels == 1 else maps(rng, shape)
        wanted = table[np.arange(shape[2]) if channels > 1 else 0, x.astype(int) + 128]
        fields = {"count": x.size, "channels": channels}
        tables = {"table": ("int8_t", table)}
        yield MapCase(f"lookup {shape} {channels}", "kq_lookup_s8", "kq_lookup", fields, (x,), wanted, tables, over=(0,))


def products() -> Iterator[MapCase]:
    rng = np.random.default_rng(12)
    for number, (shape, broadcast, kind) in enumerate(product(((1, 1, 9), (5, 3, 4), (4, 2, 17)), (False, True), ("any", "ends"))):
        a, b = maps(rng, shape, kind), maps(rng, (1, 1, shape[2]) if broadcast else shape, kind)
        z_a, z_b, z = (int(each) for each in rng.choice([-128, 127, 0, -5, 60], 3))
        acc_shift, shift, multiplier = (0, 15, 3)[number % 3], int(rng.integers(1, 23)), int(rng.choice([0, 2**14, 2**15 - 1, 20011]))
        lo, hi = ((-128, 127), (-30, 99))[number % 2]
        acc = (a.astype(np.int64) - z_a) * (b.astype(np.int64) - z_b)
        scaled = (acc * 2**acc_shift * multiplier + 2 ** (shift + 15)) // 2 ** (shift + 16)
        wanted = np.minimum(np.maximum(scaled + z, lo), hi).astype(np.int8)
        fields = {
            "count": a.size, "count_b": b.size, "multiplier": multiplier, "shift": shift, "acc_shift": acc_shift, "zero_point_a": z_a,
            "zero_point_b": z_b, "zero_point": z, "lo": lo, "hi": hi,
        }  # fmt: skip
        over = (0,) if broadcast and shape[:2] != (1, 1) else (0, 1)
        yield MapCase(f"mul {shape} {broadcast} {kind}", "kq_mul_s8", "kq_mul", fields, (a, b), wanted, over=over)


def places() -> Iterator[MapCase]:
    rng = np.random.default_rng(13)
    layouts = (
        ((4, 5, 8), (4, 5, 20), (0, 0, 8), (1, 1)),
        ((3, 4, 5), (3, 4, 5), (0, 0, 0), (1, 1)),
        ((3, 4, 12), (9, 4, 12), (3, 0, 0), (1, 1)),
        ((3, 4, 4), (3, 9, 4), (0, 5, 0), (1, 1)),
        ((3, 4, 3), (6, 8, 3), (1, 1, 0), (2, 2)),
        ((2, 2, 1), (8, 9, 3), (1, 2, 2), (3, 5)),
        ((1, 1, 40), (2, 2, 44), (1, 1, 4), (7, 9)),
    )
    for number, (shape, out, start, step) in enumerate(layouts):
        for multiplier, bias, shift in ((1, 0, 0), (70000, -30 * 2**16, 16), (1, 2**18 + 2**19, 20), (16_777_215, -100, 1)):
            x, held = maps(rng, shape, "ends" if multiplier > 2**20 else "any"), maps(rng, out)
            value = x.astype(np.int64) if shift == 0 else np.clip((x.astype(np.int64) * multiplier + bias) // 2**shift, -128, 127)
            wanted = held.copy()
            for y, column, channel in np.ndindex(shape):
                wanted[start[0] + y * step[0], start[1] + column * step[1], start[2] + channel] = value[y, column, channel]
            fields = {
                "start": (start[0] * out[1] + start[1]) * out[2] + start[2], "row_step": step[0] * out[1] * out[2],
                "column_step": step[1] * out[2], "h": shape[0], "w": shape[1], "c": shape[2], "multiplier": multiplier, "bias": bias,
                "shift": shift,
            }  # fmt: skip
            yield MapCase(f"place {number} {multiplier}", "kq_place_s8", "kq_place", fields, (x,), wanted, held=held)


def slices() -> Iterator[MapCase]:
    rng = np.random.default_rng(14)
    layouts = (
        ((8, 6, 4), (0, 0), (2, 2), (4, 3), 2, 2), ((7, 9, 3), (1, 2), (3, 1), (2, 7), 0, 5), ((5, 5, 1), (0, 0), (1, 1), (5, 5), 4, 0),
        ((4, 4, 17), (3, 3), (1, 1), (1, 1), 0, 0), ((6, 6, 3), (0, 1), (5, 2), (2, 2), 300, 1),
        # Padding and cropping on every side, of rows, columns and channels; far beyond the map; nothing left of it.
        ((3, 4, 8), (-1, -2), (1, 1), (6, 9), 0, 0), ((3, 4, 8), (1, 1), (1, 1), (2, 3), -3, -2),
        ((3, 4, 8), (-3, -5), (2, 3), (4, 4), -1, 2), ((1, 900, 2), (0, 700), (1, 1), (1, 200), 0, 0),
        ((1, 900, 2), (0, -5000), (1, 255), (1, 30), 0, 0), ((2, 3, 4), (0, 0), (1, 1), (2, 3), -4, 3),
        ((2, 3, 4), (-200, 9), (1, 1), (3, 2), 0, 0), ((2, 3, 4), (0, 0), (1, 1), (2, 3), 9, -6),
    )  # fmt: skip
    for shape, start, step, size, before, after in layouts:
        x = maps(rng, shape)
        wanted = np.full((*size, before + shape[2] + after), -77, np.int8)
        for y, column, channel in np.ndindex(wanted.shape):
            at = (start[0] + y * step[0], start[1] + column * step[1], channel - before)
            if all(0 <= each < side for each, side in zip(at, shape, strict=True)):
                wanted[y, column, channel] = x[at]
        fields = {
            "h_in": shape[0], "w_in": shape[1], "c_in": shape[2], "h_out": size[0], "w_out": size[1], "c_out": wanted.shape[2],
            "start_h": start[0], "start_w": start[1], "step_h": step[0], "step_w": step[1], "c_before": before, "pad_value": -77,
        }  # fmt: skip
        yield MapCase(f"slice {shape} {start} {before}", "kq_slice_pad_s8", "kq_slice_pad", fields, (x,), wanted)


def p(a: int, b: int) -> int:
    """SPEC 5.12."""
    return (a * b + 2**30) >> 31


def exponential(a: int) -> int:
    """SPEC 5.12: exp of a <= 0 in Q5.26, in Q0.31."""

    def away(x: int, by: int) -> int:
        return (abs(x) + by // 2) // by * (1 if x >= 0 else -1)

    if a == 0:
        return 2**31 - 1
    r = a % 2**24 - 2**24
    x = 32 * r + 2**28
    x2 = p(x, x)
    x3, x4 = p(x2, x), p(x2, x2)
    e = 1895147668 + p(1895147668, x + away(p(away(x4, 4) + x3, 715827883) + x2, 2))
    for bit, factor in enumerate((1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)):
        if (r - a) >> (24 + bit) & 1:
            e = p(e, factor)
    return e


def exponentials(scale: float, whole: bool = False) -> Array:
    """SPEC 5.12: the table of a scale, or, `whole`, TFLite's with the entries that add nothing."""
    fraction, k = math.frexp(scale * 2**26)
    last = min(255, 31 * 2**26 // 2**k)
    table = [exponential(p(-d * 2**k, round(fraction * 2**31))) for d in range(last + 1)]
    return np.array([e for e in table if whole or e >= 2**11], np.int32)


def softmax(table: Array, x: Array) -> list[int]:
    """SPEC 5.12 of one position."""
    differences = [int(x.max()) - int(each) for each in x]
    powers = [int(table[d]) if d < len(table) else 0 for d in differences]
    total = sum((e + 2**11) >> 12 for e in powers)
    n = 32 - total.bit_length()
    h = ((total << n) - 2**31 + 2**31) >> 1
    r = 1515870810 + p(h, -1010580540)
    for _ in range(3):
        r += 4 * p(r, 2**29 - p(h, r))
    v = min(2 * r, 2**31 - 1)
    return [-128 if 35 - n > 31 else min((p(v, e) + 2 ** (34 - n)) >> (35 - n), 255) - 128 for e in powers]


def softmaxes() -> Iterator[MapCase]:
    rng = np.random.default_rng(15)
    for scale, shape in product((1e-3, 0.0625, 0.1718, 3.0), ((1, 1, 1), (1, 1, 10), (3, 2, 5), (1, 2, 256))):
        table = exponentials(scale)
        x = maps(rng, shape)
        x[0, 0] = np.where(np.arange(shape[2]) % 2, -128, 127)
        yield softmax_case(f"softmax {scale} {shape}", table, x, exponentials(scale, whole=True))
    yield softmax_case("4095 equal", exponentials(0.1), np.full((1, 1, 4095), 5, np.int8))
    yield softmax_case("one of 4095", exponentials(9.0), np.where(np.arange(4095) == 7, 127, -128).astype(np.int8).reshape(1, 1, -1))


def softmax_case(label: str, table: Array, x: Array, whole: Array | None = None) -> MapCase:
    """A softmax of x by a table, which must give what the whole table gives."""
    wanted = np.array([softmax(table if whole is None else whole, row) for row in x.reshape(-1, x.shape[2])], np.int8).reshape(x.shape)
    fields = {"positions": x.shape[0] * x.shape[1], "channels": x.shape[2], "count": len(table)}
    return MapCase(label, "kq_softmax_s8", "kq_softmax", fields, (x,), wanted, {"exponentials": ("int32_t", table)}, over=(0,))


def arg_maxes() -> Iterator[MapCase]:
    rng = np.random.default_rng(16)
    for shape, kind in product(((1, 1, 1), (1, 1, 256), (4, 3, 10), (2, 2, 3)), ("any", "ends")):
        x = maps(rng, shape, kind)
        wanted = np.array([[[list(row).index(max(row)) - 128] for row in line] for line in x.tolist()], np.int8)
        fields = {"positions": shape[0] * shape[1], "channels": shape[2]}
        yield MapCase(f"argmax {shape} {kind}", "kq_argmax_s8", "kq_argmax", fields, (x,), wanted)
