"""Packed tables (SPEC 4): streams of n-bit entries, lowest bit first, padded with zero bits to whole bytes; kq_bits.h reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kqgen.errors import InputError, InternalError

Array = npt.NDArray[Any]

ENTRY_BITS_MAX = 16
CODEBOOK_BITS = 6
CODEBOOK_VALUE_MAX = 31
KERNEL_L1_MAX = 255

_CHUNK = 1 << 19
"""Entries packed at a time, a multiple of 8 so that chunks end on whole bytes; bounds the temporary bit matrix to 8 MB."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a table of `count` entries of `bits` bits."""
    return -(-count * bits // 8)


def pack(values: npt.ArrayLike, bits: int) -> bytes:
    """The stream of unsigned entries `values`, taken in C order (SPEC 4.1).

    Shapes: values any, integers 0..2^bits-1; bits 1..16.
    Raises: InternalError when a value or the width is out of range.
    """
    _check_width(bits)
    flat = np.asarray(values).reshape(-1)
    if flat.dtype.kind not in "iu":
        raise InternalError("only integers can be packed", found=str(flat.dtype))
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= 1 << bits):
        raise InternalError(f"a value does not fit {bits} bits", found=f"{int(flat.min())}..{int(flat.max())}")
    word = np.dtype("u1" if bits <= 8 else "<u2")
    entries = flat.astype(word)
    if bits == 8 * word.itemsize:
        return entries.tobytes()
    return b"".join(
        np.packbits(
            np.unpackbits(entries[start : start + _CHUNK].view(np.uint8).reshape(-1, word.itemsize), axis=1, bitorder="little")[:, :bits],
            bitorder="little",
        ).tobytes()
        for start in range(0, len(entries), _CHUNK)
    )


def unpack(data: bytes, bits: int, count: int) -> npt.NDArray[np.uint16]:
    """The `count` unsigned entries of a stream.

    Shapes: result (count,) uint16, 0..2^bits-1.
    Raises: InputError when `data` is not exactly as long as the entries, or its padding is not zero; InternalError for a bad width.
    """
    _check_width(bits)
    _check_table(data, bits, count)
    if bits in (8, 16):
        return np.frombuffer(data, dtype="u1" if bits == 8 else "<u2").astype(np.uint16)
    raw = np.frombuffer(data, dtype=np.uint8)
    word = np.dtype("u1" if bits <= 8 else "<u2")
    out = np.empty(count, dtype=np.uint16)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        stream = np.unpackbits(raw[start * bits // 8 : packed_bytes(stop, bits)], bitorder="little", count=(stop - start) * bits)
        packed = np.packbits(stream.reshape(-1, bits), axis=1, bitorder="little")  # a short row is padded with zeros
        out[start:stop] = np.ascontiguousarray(packed).view(word).reshape(-1)
    return out


def pack_signed(values: npt.ArrayLike, bits: int) -> bytes:
    """The stream of two's complement entries `values`, in C order.

    Shapes: values any, integers -2^(bits-1)..2^(bits-1)-1; bits 1..16.
    Raises: InternalError when a value or the width is out of range.
    """
    _check_width(bits)
    signed = np.asarray(values)
    half = 1 << (bits - 1)
    if signed.size and (int(signed.min()) < -half or int(signed.max()) >= half):
        raise InternalError(f"a value does not fit {bits} bits", found=f"{int(signed.min())}..{int(signed.max())}")
    if bits == 8:
        return signed.astype(np.int8).tobytes()
    return pack(signed.astype(np.int32) & ((1 << bits) - 1), bits)


def unpack_signed(data: bytes, bits: int, count: int) -> npt.NDArray[np.int16]:
    """The `count` two's complement entries of a stream.

    Shapes: result (count,) int16, -2^(bits-1)..2^(bits-1)-1.
    Raises: as `unpack`.
    """
    half = 1 << (bits - 1)
    return ((unpack(data, bits, count).astype(np.int32) ^ half) - half).astype(np.int16)


def pack_indices(codes: Array, negative: Array, index_bits: int) -> bytes:
    """The index table of a layer: input channel slowest, the sign in the top bit (SPEC 4.2).

    Shapes: codes (c_out, c_in) integers >= 0; negative (c_out, c_in) bool; index_bits 1..12.
    Raises: InternalError when the shapes differ, or a codeword's number reaches into the sign or does not fit.
    """
    if codes.ndim != 2 or codes.shape != negative.shape:
        raise InternalError("codes and signs must be (c_out, c_in)", found=f"{codes.shape} and {negative.shape}")
    sign_bit = 1 << (index_bits - 1)
    if bool(negative.any()) and int(codes.max()) >= sign_bit:
        raise InternalError("a codeword's number reaches into the sign bit", found=f"codeword {int(codes.max())} in {index_bits} bits")
    return pack((codes.astype(np.int32) | np.where(negative, sign_bit, 0)).T, index_bits)


def unpack_indices(
    data: bytes, index_bits: int, sign: bool, c_out: int, c_in: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """(codes, negative) of a layer, each (c_out, c_in): the inverse of `pack_indices`.

    Raises: as `unpack`.
    """
    entries = np.ascontiguousarray(unpack(data, index_bits, c_out * c_in).reshape(c_in, c_out).T)
    code_mask = (1 << (index_bits - int(sign))) - 1
    return (entries & code_mask).astype(np.int16), entries > code_mask


def pack_codebook(values: Array, additive: bool = False) -> bytes:
    """The table of a codebook: 6 bits a value, codeword by codeword, row by row (SPEC 4.3).

    Shapes: values (codewords, k_h, k_w) integers -31..31, absolute values of a codeword summing to at most 255 unless it is `additive`.
    Raises: InternalError when a bound of SPEC 4.3 does not hold.
    """
    wide = np.asarray(values, dtype=np.int64)
    if wide.ndim != 3 or wide.size == 0:
        raise InternalError("a codebook must be (codewords, k_h, k_w)", found=str(wide.shape))
    _check_codebook(wide, additive, InternalError)
    return pack_signed(wide, CODEBOOK_BITS)


def unpack_codebook(data: bytes, codewords: int, k_h: int, k_w: int, additive: bool = False) -> npt.NDArray[np.int8]:
    """(codewords, k_h, k_w) int8: the inverse of `pack_codebook`; `codewords` counts those of both stages.

    Raises: as `unpack`, and InputError when a bound of SPEC 4.3 does not hold.
    """
    values = unpack_signed(data, CODEBOOK_BITS, codewords * k_h * k_w).reshape(codewords, k_h, k_w)
    _check_codebook(values.astype(np.int64), additive, InputError)
    return values.astype(np.int8)


def pack_uniform(values: Array, bits: int, *, lowest: bool = False) -> bytes:
    """The table of uniform weights (SPEC 4.4).

    Shapes: values (c_out, k_h, k_w, c_in) integers within -(2^(bits-1)-1)..2^(bits-1)-1; bits 8, 6 or 4. -2^(bits-1) is taken
        with `lowest` alone.
    Raises: InternalError when a value or the width is out of range.
    """
    if bits not in (8, 6, 4):
        raise InternalError("uniform weights have 8, 6 or 4 bits", found=f"{bits} bits")
    if values.size and int(values.min()) == -(1 << (bits - 1)) and not lowest:
        raise InternalError(f"a weight of {bits} bits is the one without a negative", found=str(int(values.min())))
    return pack_signed(values, bits)


def unpack_uniform(data: bytes, bits: int, shape: tuple[int, int, int, int]) -> npt.NDArray[np.int8]:
    """(c_out, k_h, k_w, c_in) int8: the inverse of `pack_uniform`.

    Raises: as `unpack`, and InputError when a weight is -2^(bits-1).
    """
    values = unpack_signed(data, bits, int(np.prod(shape))).reshape(shape)
    if values.size and int(values.min()) == -(1 << (bits - 1)):
        raise InputError(f"a weight of {bits} bits is the one without a negative", found=str(int(values.min())), do="compile again")
    return values.astype(np.int8)


def _check_width(bits: int) -> None:
    if not 1 <= bits <= ENTRY_BITS_MAX:
        raise InternalError("an entry's width is out of range", found=f"{bits} bits", wanted=f"1..{ENTRY_BITS_MAX}")


def _check_table(data: bytes, bits: int, count: int) -> None:
    """Refuses a table of another length, or with bits set behind its last entry."""
    wanted = packed_bytes(count, bits)
    if len(data) != wanted:
        raise InputError(
            "a packed table has the wrong length", found=f"{len(data)} bytes", wanted=f"{wanted} bytes for {count} entries of {bits} bits",
            do="compile again",
        )  # fmt: skip
    used = count * bits % 8
    if used and data[-1] >> used:
        raise InputError("a packed table has bits behind its last entry", found=f"last byte 0x{data[-1]:02x}", do="compile again")


def _check_codebook(values: npt.NDArray[np.int64], additive: bool, error: type[InputError] | type[InternalError]) -> None:
    magnitudes = np.abs(values)
    if int(magnitudes.max(initial=0)) > CODEBOOK_VALUE_MAX:
        raise error("a codebook value does not fit 6 bits", found=str(int(magnitudes.max())), wanted=f"at most {CODEBOOK_VALUE_MAX}")
    sums = magnitudes.reshape(len(values), -1).sum(axis=1)
    if not additive and int(sums.max(initial=0)) > KERNEL_L1_MAX:
        raise error(
            f"codeword {int(sums.argmax())} sums to too much", found=str(int(sums.max())), wanted=f"absolute values up to {KERNEL_L1_MAX}"
        )
