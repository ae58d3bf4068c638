/* Two output pixels in one word (SPEC 6.2, 6.3): one 32-bit multiply serves both.
 *
 * A tap of both pixels is packed as x0 + x1 * 2^16 mod 2^32. Weights are stored plus 32, as unsigned bytes 1..63, or as the sum of two such
 * bytes plus 64. A channel's taps are followed by the word 2^15 - 32 (or 64) * (sum of the taps), so that starting from it the sum over
 * one kernel is
 *     S = 2^15 + s0 + s1 * 2^16 mod 2^32,
 * where s0 and s1 are the two pixels' dot products, -32640..32640 by SPEC 4.3. Hence 0 < 2^15 + s0 < 2^16, and S splits without a carry:
 * s0 = S mod 2^16 - 2^15, s1 = floor(int32(S) / 2^16).
 */
#ifndef KQ_PACKED_H
#define KQ_PACKED_H

#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_types.h"

#define KQ_WEIGHT_OFFSET 32u
#define KQ_LANE_OFFSET 0x8000u
#define KQ_CODEBOOK_BITS 6u

/* The kernel of one codeword as bytes, each value (or minus it) plus 32: n values from entry `codeword * n` of the codebook. */
KQGEN_CODE static KQ_NOINLINE void kq_expand_codeword(
    const uint8_t *codebook, uint32_t codeword, uint32_t negative, uint8_t *kernel, uint32_t n)
{
    const kq_bit_reader reader = kq_bits_at(codebook, codeword * n, KQ_CODEBOOK_BITS);
    /* 64 - v is ~v + 65: one formula for both signs. */
    const uint32_t flip = negative != 0 ? 0xFFFFFFFFu : 0;
    const uint32_t plus = negative != 0 ? 2u * KQ_WEIGHT_OFFSET + 1u : 0;
    const uint8_t *next = reader.next;
    uint32_t held = reader.held;
    uint32_t held_bits = reader.held_bits;
    uint32_t t;
    for (t = 0; t < n; ++t) {
        if (held_bits < KQ_CODEBOOK_BITS) {
            held |= (uint32_t)*next << held_bits;
            ++next;
            held_bits += 8u;
        }
        /* Flipping the sign bit of a 6-bit number adds 32 to it. */
        kernel[t] = (uint8_t)((((held & 63u) ^ KQ_WEIGHT_OFFSET) ^ flip) + plus);
        held >>= KQ_CODEBOOK_BITS;
        held_bits -= KQ_CODEBOOK_BITS;
    }
}

/* Adds one tap of two pairs of pixels, packed as x0 and x1, to their sums. */
static KQ_INLINE void kq_add_tap(uint32_t weight, uint32_t x0, uint32_t x1, uint32_t *sum0, uint32_t *sum1)
{
    *sum0 += weight * x0;
    *sum1 += weight * x1;
    KQ_SIDE_BY_SIDE(*sum0, *sum1);
}

/* The word after a channel's taps, whose packed words add up to `total`, for values stored plus `offset`. */
KQGEN_CODE static inline uint32_t kq_closing_word(uint32_t total, uint32_t offset)
{
    return KQ_LANE_OFFSET - offset * total;
}

#endif
