"""Operators without weights, the helpers below them, and the table readers: C against SPEC.md, number by number."""

from __future__ import annotations

import zlib
from itertools import product

import numpy as np
import pytest
from kernelcases import NO_PADDING, Array, Padding, Pair, inputs, out_size, requantised, windows
from kernellib import Kernels

from kqgen import bits, fixed

POOLS: list[tuple[Pair, Pair, Padding, tuple[int, int, int]]] = [
    ((2, 2), (2, 2), NO_PADDING, (8, 6, 5)),
    ((2, 2), (2, 2), NO_PADDING, (7, 5, 1)),
    ((3, 3), (2, 2), (1, 1, 1, 1), (9, 8, 17)),
    ((3, 3), (1, 1), (1, 1, 1, 1), (4, 5, 3)),
    ((3, 2), (1, 2), (0, 1, 1, 0), (6, 7, 3)),
    ((8, 8), (8, 8), NO_PADDING, (8, 8, 64)),
    ((1, 1), (3, 3), NO_PADDING, (7, 7, 2)),
    ((25, 5), (25, 5), NO_PADDING, (25, 5, 5)),
    # Words of four channels, and the most values (255) whose sums take 16 bits; then one more.
    ((3, 3), (2, 1), (1, 1, 1, 1), (9, 8, 12)),
    ((15, 17), (1, 1), NO_PADDING, (15, 18, 4)),
    ((16, 16), (1, 1), NO_PADDING, (16, 17, 4)),
]


def pool(
    kernels: Kernels, function: str, x: Array, kernel: Pair, stride: Pair, padding: Padding, bias: int = 0, multiplier: int = 0,
    shift: int = 1, acc_shift: int = 0, zero_point: int = 0, lo: int = -128, hi: int = 127, pad_value: int = 0,
    offset: int = 3,
) -> Array:  # fmt: skip
    h, w = out_size(x.shape[:2], kernel, stride, padding)
    channels = x.shape[2]
    window = {
        "h_in": x.shape[0], "w_in": x.shape[1], "c_in": channels, "h_out": h, "w_out": w, "c_out": channels,
        "k_h": kernel[0], "k_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1], "pad_top": padding[0], "pad_left": padding[2],
    }  # fmt: skip
    rest = {
        "bias": bias, "multiplier": multiplier, "shift": shift, "acc_shift": acc_shift, "zero_point": zero_point, "lo": lo, "hi": hi,
        "pad_value": pad_value,
    }  # fmt: skip
    with kernels.memory() as place:
        output = place(bytes(h * w * channels), "int8_t *", 1)
        layer = kernels.ffi.new("kq_pool *", {"window": window, **rest})
        getattr(kernels.lib, function)(layer, place(x.tobytes(), "int8_t *", offset), output)
        return np.frombuffer(kernels.ffi.buffer(output, h * w * channels), np.int8).reshape(h, w, channels).copy()


@pytest.mark.parametrize("kind", ["any", "low", "high", "ends"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "shape"), POOLS, ids=str)
def test_avg_pool(kernels: Kernels, kernel: Pair, stride: Pair, padding: Padding, shape: tuple[int, int, int], kind: str) -> None:
    rng = np.random.default_rng(sum(shape))
    x = inputs(rng, shape, kind)
    size = kernel[0] * kernel[1]
    for pad_value, acc_shift in product((-128, -7, 127), (0, 2)):
        multiplier, shift = int(rng.integers(2**14, 2**15)), max(1, int(np.log2(size)) + acc_shift - 1)
        bias = -size * pad_value
        acc = bias + sum(tap for _, _, tap in windows(x, kernel, stride, padding, pad_value))
        wanted = requantised(np.asarray(acc), np.array(multiplier), np.array(shift), acc_shift, -3, -120, 110)
        for offset in (3, 4):
            found = pool(
                kernels, "kq_avg_pool_s8", x, kernel, stride, padding, bias, multiplier, shift, acc_shift, -3, -120, 110, pad_value, offset,
            )  # fmt: skip
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["any", "low", "high"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "shape"), POOLS, ids=str)
def test_max_pool_leaves_padding_out(
    kernels: Kernels, kernel: Pair, stride: Pair, padding: Padding, shape: tuple[int, int, int], kind: str
) -> None:
    x = inputs(np.random.default_rng(sum(shape)), shape, kind)
    lowest = np.iinfo(np.int64).min
    largest = np.max([tap for _, _, tap in windows(x, kernel, stride, padding, lowest)], axis=0)
    assert int(largest.min()) >= -128, "a window lies wholly in the padding"
    for lo, hi in ((-128, 127), (-20, 30), (5, 5)):
        found = pool(kernels, "kq_max_pool_s8", x, kernel, stride, padding, lo=lo, hi=hi)
        np.testing.assert_array_equal(found, np.minimum(np.maximum(largest, lo), hi))


def add(kernels: Kernels, parameters: tuple[int, int, int, int], clamp: Pair, a: Array, b: Array, into: str) -> Array:
    m_a, m_b, bias, shift = parameters
    fields = {"count": a.size, "multiplier_a": m_a, "multiplier_b": m_b, "bias": bias, "shift": shift, "lo": clamp[0], "hi": clamp[1]}
    with kernels.memory() as place:
        buffers = {"a": place(a.tobytes(), "int8_t *", 1), "b": place(b.tobytes(), "int8_t *", 2), "": place(bytes(a.size), "int8_t *", 3)}
        kernels.lib.kq_add_s8(kernels.ffi.new("kq_add *", fields), buffers["a"], buffers["b"], buffers[into])
        return np.frombuffer(kernels.ffi.buffer(buffers[into], a.size), np.int8).copy()


@pytest.mark.parametrize("into", ["", "a", "b"])
def test_add_of_all_pairs_also_in_place(kernels: Kernels, into: str) -> None:
    a, b = (grid.astype(np.int8).ravel() for grid in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
    rng = np.random.default_rng(2)
    shifts = set()
    for _ in range(12):
        scales = np.exp2(rng.uniform(-9, 9, 3))
        zero_points = [int(zp) for zp in rng.choice([-128, 127, -5, 60], 3)]
        parameters = fixed.add_parameters(scales[0], zero_points[0], scales[1], zero_points[1], scales[2], zero_points[2])
        m_a, m_b, bias, shift = parameters
        total = a.astype(np.int64) * m_a + b.astype(np.int64) * m_b + bias
        assert np.abs(total).max() < 2**31
        lo = int(rng.integers(-128, 0))
        wanted = np.minimum(np.maximum(total // 2**shift, lo), 100)
        np.testing.assert_array_equal(add(kernels, parameters, (lo, 100), a, b, into), wanted)
        shifts.add(shift)
    assert len(shifts) > 3


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("lo", "hi"), [(-128, 127), (0, 127), (-5, 6), (40, 40)])
def test_clamp(kernels: Kernels, lo: int, hi: int, in_place: bool) -> None:
    x = np.arange(-128, 128).astype(np.int8)
    with kernels.memory() as place:
        source = place(x.tobytes(), "int8_t *", 1)
        output = source if in_place else place(bytes(x.size), "int8_t *", 1)
        kernels.lib.kq_clamp_s8(kernels.ffi.new("kq_clamp *", {"count": x.size, "lo": lo, "hi": hi}), source, output)
        found = np.frombuffer(kernels.ffi.buffer(output, x.size), np.int8).copy()
    np.testing.assert_array_equal(found, np.minimum(np.maximum(x, lo), hi))


@pytest.mark.parametrize("size", [0, 1, 2, 255, 4096])
def test_crc32_is_that_of_zlib(kernels: Kernels, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8).tobytes()
    with kernels.memory() as place:
        found = kernels.lib.kq_crc32(0, place(data, "int8_t *", 1), size)
    assert found == zlib.crc32(data) == fixed.crc32(data)


@pytest.mark.parametrize("acc_shift", [0, 1, 4, 9, 15])
def test_requantisation_in_32_bits_equals_the_specification(kernels: Kernels, acc_shift: int) -> None:
    """SPEC 3.3 against 3.2 over the whole range of every parameter, ends included."""
    rng = np.random.default_rng(acc_shift)
    count = 300_000
    low, high = -(2**31) >> acc_shift, (2**31 - 1) >> acc_shift
    acc = np.clip(np.trunc(np.exp2(rng.uniform(0, 31, count)) * rng.choice([-1, 1], count)), low, high).astype(np.int64)
    acc[:4000] = np.tile([low, high, 0, -1], 1000)
    acc[4000:9000] = np.clip(rng.integers(-8, 9, 5000) * 2**16 + rng.integers(-1, 2, 5000), low, high)
    multiplier = rng.integers(0, 2**15, count).astype(np.int16)
    multiplier[::7], multiplier[1::7] = 2**15 - 1, 2**14
    shift = rng.integers(1, 23, count).astype(np.uint8)
    # Make some fall exactly on halves: acc a multiple of 2^(s-1), multiplier a power of two.
    half = (acc >> 3 << 3)[9000:60000]
    acc[9000:60000], multiplier[9000:60000], shift[9000:60000] = half, 2**14, rng.integers(1, 6, 51000)
    wanted = (acc * 2**acc_shift * multiplier + 2 ** (shift.astype(np.int64) + 15)) // 2 ** (shift.astype(np.int64) + 16)
    with kernels.memory() as place:
        found = place(bytes(4 * count), "int32_t *")
        kernels.lib.probe_scale(
            count, place(acc.astype(np.int32).tobytes(), "int32_t *"), place(multiplier.tobytes(), "int16_t *"), place(shift.tobytes()),
            place(np.full(count, acc_shift, np.uint8).tobytes()), found,
        )  # fmt: skip
        np.testing.assert_array_equal(np.frombuffer(kernels.ffi.buffer(found, 4 * count), np.int32), wanted)
    np.testing.assert_array_equal(fixed.scale(acc, multiplier, shift, acc_shift), wanted)


@pytest.mark.parametrize("width", range(1, 17))
def test_the_reader_finds_every_entry_of_a_packed_table(kernels: Kernels, width: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, 67)
    with kernels.memory() as place:
        table = place(bits.pack(values, width), "uint8_t *", 1)
        for start in (*range(20), 66, 67):
            found = place(bytes(2 * len(values)), "uint16_t *")
            kernels.lib.probe_bits(table, start, width, len(values) - start, found)
            assert np.frombuffer(kernels.ffi.buffer(found, 2 * (len(values) - start)), np.uint16).tolist() == values[start:].tolist()


@pytest.mark.parametrize("width", [1, 2, 4, 6, 8, 12])
def test_sign_extension(kernels: Kernels, width: int) -> None:
    half = 1 << (width - 1)
    assert [kernels.lib.probe_signed(value, width) for value in range(2 * half)] == [*range(half), *range(-half, 0)]


def test_runtime_version(kernels: Kernels) -> None:
    assert kernels.lib.KQ_RUNTIME_VERSION == 1
