"""Whether indices suit their codebook (SPEC 4.2, 4.3): what the generated C trusts, of graphs read from files and of graphs made here."""

from __future__ import annotations

import numpy as np

from kqgen.bits import CODEBOOK_VALUE_MAX, KERNEL_L1_MAX
from kqgen.intgraph import IntCodebook, KqWeights, codeword_rows, effective_kernels
from kqgen.options import MAX_INDEX_BITS, index_bits


def codebook_misfit(codebook: IntCodebook) -> str:
    """What in a codebook breaks SPEC 4.2 and 4.3, as a phrase; empty when it is sound."""
    values = codebook.values
    if values.ndim != 3 or values.dtype != np.int8 or values.size == 0:
        return f"{values.dtype} {values.shape}"
    if len(values) % codebook.stages:
        return f"{len(values)} codewords for two stages of equal length"
    if codebook.index_bits > MAX_INDEX_BITS:
        return f"{codebook.codewords} codewords a stage, whose indices take {codebook.index_bits} bits, more than {MAX_INDEX_BITS}"
    magnitudes = np.abs(values.astype(np.int64)).reshape(len(values), -1)
    if int(magnitudes.max()) > CODEBOOK_VALUE_MAX:
        return f"a value of size {int(magnitudes.max())}, beyond the bounds of SPEC 4.3"
    largest = int(magnitudes.sum(axis=1).max())
    if not codebook.additive and largest > KERNEL_L1_MAX:
        return f"absolute values that sum to {largest}, beyond the bounds of SPEC 4.3"
    return ""


def index_misfit(weights: KqWeights, codebook: IntCodebook) -> tuple[str, str]:
    """Which field of a layer's indices does not suit a sound codebook, and what was found there; two empty strings when all do.

    Codes and signs are (c_out, c_in) int16 and bool. What suits: a width of SPEC 4.2, codes that name stored codewords within it, no
    sign without a sign bit, and, with an additive codebook, no pair in use beyond the bound of SPEC 4.3.
    """
    width, codes = weights.index_bits, weights.codes
    if not 1 <= width <= codebook.index_bits or index_bits(1 << codebook.stage_bits(width), codebook.sign, codebook.additive) != width:
        kind = f"{'an additive' if codebook.additive else 'a'} codebook {'with' if codebook.sign else 'without'} signs"
        return "index_bits", f"{width} bits, with {kind} whose own are {codebook.index_bits}"
    limit = codebook.named(width)
    numbers = codeword_rows(weights, codebook) - codebook.codewords * np.arange(codebook.stages)[:, None, None]
    if codes.size and (int(codes.min()) < 0 or int(numbers.max()) >= limit):
        stage = " of a stage" if codebook.additive else ""
        found = int(codes.min()) if int(codes.min()) < 0 else int(numbers.max())
        return "codes", f"codeword number {found}, where {width} bits name {limit} codewords{stage} of {codebook.name}"
    if not codebook.sign and bool(weights.negative.any()):
        return "negative", "signs with a codebook that has none"
    if codebook.additive and codes.size:
        distinct = np.unique(codes)[None]
        pairs = KqWeights(codebook.name, width, distinct, np.zeros(distinct.shape, np.bool_))
        sums = np.abs(effective_kernels(pairs, codebook).astype(np.int64)).sum(axis=(1, 2))[0]
        if int(sums.max()) > KERNEL_L1_MAX:
            pair = int(distinct[0, int(sums.argmax())])
            return "codes", f"code {pair}, whose two codewords add up to absolute values of {int(sums.max())} (SPEC 4.3: {KERNEL_L1_MAX})"
    return "", ""
