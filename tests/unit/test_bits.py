"""Packed tables: every entry is where SPEC 4 puts it, and what cannot be stored is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kqgen import bits
from kqgen.errors import InputError, InternalError

CHUNK = 1 << 19  # entries that pack takes at a time


def stream(values: list[int], width: int) -> bytes:
    """SPEC 4.1 by one big integer: entry i at bits i*n, lowest bit first, zero bits up to a whole byte."""
    total = sum((value & ((1 << width) - 1)) << (number * width) for number, value in enumerate(values))
    return total.to_bytes(-(-len(values) * width // 8), "little")


@pytest.mark.parametrize("width", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 333])
def test_pack_places_every_bit(width: int, count: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, count)
    packed = bits.pack(values, width)
    assert packed == stream(values.tolist(), width)
    assert len(packed) == bits.packed_bytes(count, width)
    assert bits.unpack(packed, width, count).tolist() == values.tolist()


@pytest.mark.parametrize("width", [1, 6, 8, 9, 12, 16])
def test_pack_of_many_entries_joins_its_chunks(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, 2 * CHUNK + 5)
    packed = bits.pack(values, width)
    assert len(packed) == bits.packed_bytes(values.size, width)
    assert np.array_equal(bits.unpack(packed, width, values.size), values)
    for start in (CHUNK - 8, 2 * CHUNK - 16):
        piece = packed[start * width // 8 : (start + 16) * width // 8]
        assert piece == stream(values[start : start + 16].tolist(), width)


@pytest.mark.parametrize("width", [1, 4, 6, 8, 12])
def test_signed_entries_are_two_s_complement(width: int) -> None:
    half = 1 << (width - 1)
    values = np.concatenate([[-half, half - 1], np.random.default_rng(width).integers(-half, half, 101)])
    packed = bits.pack_signed(values, width)
    assert packed == stream(values.tolist(), width)
    assert bits.unpack_signed(packed, width, values.size).tolist() == values.tolist()


def test_indices_are_ordered_by_input_channel_and_carry_the_sign_on_top() -> None:
    codes = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int16)  # (c_out 2, c_in 3)
    negative = np.array([[False, True, False], [False, False, True]])
    packed = bits.pack_indices(codes, negative, 4)
    assert packed == stream([1, 4, 2 + 8, 5, 3, 6 + 8], 4)
    found_codes, found_negative = bits.unpack_indices(packed, 4, True, 2, 3)
    assert np.array_equal(found_codes, codes)
    assert np.array_equal(found_negative, negative)


@pytest.mark.parametrize(("index_bits", "sign"), [(1, False), (1, True), (2, True), (7, False), (9, True), (12, False), (12, True)])
def test_indices_come_back(index_bits: int, sign: bool) -> None:
    rng = np.random.default_rng(index_bits)
    codes = rng.integers(0, 1 << (index_bits - sign), (17, 5)).astype(np.int16)
    negative = (rng.random((17, 5)) < 0.5) & sign
    found_codes, found_negative = bits.unpack_indices(bits.pack_indices(codes, negative, index_bits), index_bits, sign, 17, 5)
    assert np.array_equal(found_codes, codes)
    assert np.array_equal(found_negative, negative)


def test_codebook_is_four_values_in_three_bytes() -> None:
    values = np.array([[[31, -31], [0, 1]], [[-1, 5], [17, -9]]], dtype=np.int8)
    packed = bits.pack_codebook(values)
    assert packed == stream(values.ravel().tolist(), 6)
    assert len(packed) == 6
    assert np.array_equal(bits.unpack_codebook(packed, 2, 2, 2), values)


@pytest.mark.parametrize("width", [8, 6, 4])
def test_uniform_weights_come_back(width: int) -> None:
    most = (1 << (width - 1)) - 1
    values = np.random.default_rng(width).integers(-most, most + 1, (5, 3, 3, 7)).astype(np.int8)
    packed = bits.pack_uniform(values, width)
    assert packed == stream(values.ravel().tolist(), width)
    assert np.array_equal(bits.unpack_uniform(packed, width, (5, 3, 3, 7)), values)


def test_eight_bit_weights_lie_as_plain_bytes() -> None:
    values = np.arange(-127, 128, dtype=np.int8).reshape(5, 1, 3, 17)
    assert bits.pack_uniform(values, 8) == values.tobytes()


def codebook(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), 3, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bits.pack([8], 3),
        lambda: bits.pack([-1], 3),
        lambda: bits.pack([0.5], 3),
        lambda: bits.pack([0], 0),
        lambda: bits.pack([0], 17),
        lambda: bits.unpack(b"", 17, 0),
        lambda: bits.pack_signed([4], 3),
        lambda: bits.pack_signed([-5], 3),
        lambda: bits.pack_indices(np.array([[4]]), np.array([[True]]), 3),
        lambda: bits.pack_indices(np.array([[8]]), np.array([[False]]), 3),
        lambda: bits.pack_indices(np.array([[1, 2]]), np.array([[False]]), 3),
        lambda: bits.pack_codebook(codebook([32, 0, 0, 0, 0, 0, 0, 0, 0])),
        lambda: bits.pack_codebook(codebook([0] * 9, [-31, 31, -31, 31, -31, 31, -31, 31, 8])),
        lambda: bits.pack_codebook(np.zeros((3, 3), np.int8)),
        lambda: bits.pack_uniform(np.full((1, 1, 1, 1), -8), 4),
        lambda: bits.pack_uniform(np.full((1, 1, 1, 1), 32), 6),
        lambda: bits.pack_uniform(np.zeros((1, 1, 1, 1), np.int8), 5),
    ],
)
def test_what_cannot_be_stored_is_our_own_error(call: Callable[[], object]) -> None:
    with pytest.raises(InternalError):
        call()


def test_the_largest_codeword_is_accepted() -> None:
    values = codebook([-31, 31, -31, 31, -31, 31, -31, 31, 7])
    assert np.array_equal(bits.unpack_codebook(bits.pack_codebook(values), 1, 3, 3), values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bits.unpack(b"\x00\x00", 3, 2), "length"),
        (lambda: bits.unpack(b"", 3, 2), "length"),
        (lambda: bits.unpack(b"\x40", 3, 2), "behind its last entry"),
        (lambda: bits.unpack_codebook(bits.pack_signed([-32] + [0] * 8, 6), 1, 3, 3), "6 bits"),
        (lambda: bits.unpack_codebook(bits.pack_signed([31] * 9, 6), 1, 3, 3), "sums to too much"),
        (lambda: bits.unpack_uniform(b"\x80", 8, (1, 1, 1, 1)), "without a negative"),
    ],
)
def test_a_damaged_table_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
