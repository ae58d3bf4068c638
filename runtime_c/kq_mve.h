/* What the functions of engine `mve` share (SPEC 6.7): Helium, Armv8.1-M's integer vectors, with a plain twin of every step beside it.
 *
 * A strip of columns holds the input rows that one output row needs, padding included, as [column][k_h][c_in]: the window of an output
 * pixel is then one run of taps = k_w * k_h * c_in values. Weights lie in the same order, filled up with zeros to whole vectors of 16, two
 * output channels taking turns vector by vector. Two pixels by two channels share all they load: four VMLADAVA (16 multiply-accumulates
 * each) to four loads, which take turns so that a vector unit of two beats is always busy with both.
 * Vectors may read behind the values they need, never behind the scratch: where weights are 0 it does not matter what they read.
 */
#ifndef KQ_MVE_H
#define KQ_MVE_H

#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_mve_copy.h"
#include "kq_window.h"

#define KQ_MVE_SLACK 32u /* bytes behind the columns that may be read */

#define KQ_MVE_CONSTANTS 44u /* words of a tile's constants */
#define KQ_MVE_PARAMS 10u    /* words of two channels' parameters */

/* A layer's tile at work: parameters of the layer, and the parts of scratch in their order. */
typedef struct {
    const kq_window *window;
    const kq_requant *requant;
    int32_t *constants; /* Helium: vectors of what all channels share, as kq_mve_fill_constants writes them */
    int32_t *params;    /* Helium: of two channels b0 b1, m0 m1 m0 m1 (times 2^16), s0 s1 s0 s1 (negated) */
    int8_t *pads;       /* c_in values */
    int8_t *weights;    /* [pairs of channels][steps][2][16] */
    int8_t *columns;
    uint32_t steps;       /* vectors that a window takes */
    uint32_t slide_bytes; /* what the columns move by from one output row to the next; 0: they are written anew */
} kq_mve_tile;

/* x rounded up to a multiple of `unit`, a power of two. */
KQGEN_CODE static inline uint32_t kq_mve_round(uint32_t x, uint32_t unit)
{
    return (x + unit - 1u) & ~(unit - 1u);
}

/* Place of value j of a window among the weights of its channel. */
KQGEN_CODE static inline uint32_t kq_mve_place(uint32_t j)
{
    return j + (j & ~(KQ_MVE_BYTES - 1u));
}

/* Where the weights of channel number `o` of the tile begin, in bytes. */
KQGEN_CODE static inline uint32_t kq_mve_channel(const kq_mve_tile *tile, uint32_t o)
{
    return ((o & ~(uint32_t)1u) * tile->steps + (o & 1u)) * KQ_MVE_BYTES;
}

/* Sets `size_bytes` values to 0; Helium: and up to 15 more. */
KQGEN_CODE static inline void kq_mve_clear(int8_t *to, uint32_t size_bytes)
{
    uint32_t i;
#if KQ_MVE
    for (i = 0; i < size_bytes; i += KQ_MVE_BYTES) {
        vst1q_s8(to + i, vdupq_n_s8(0));
    }
#else
    for (i = 0; i < size_bytes; ++i) {
        to[i] = 0;
    }
#endif
}

/* Entries `first`..`first`+count-1 of a table of signed numbers of `bits` bits, 4, 6 or 8, as bytes. */
KQGEN_CODE static KQ_NOINLINE void kq_mve_expand(const uint8_t *table, uint32_t first, uint32_t bits, uint32_t count, int8_t *to)
{
    kq_bit_reader reader;
#if KQ_MVE
    /* Eight entries take `bits` whole bytes: offsets of their first and last byte, and where in these 16 bits they begin, repeat. */
    for (; count != 0 && (first & 7u) != 0; --count) {
        *to = (int8_t)kq_sign_extend(kq_bits_entry(table, first, bits), bits);
        ++to;
        ++first;
    }
    if (count >= 8u) {
        const uint16x8_t begin = vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)bits);
        const uint16x8_t low = vshrq_n_u16(begin, 3);
        const uint16x8_t high = vshrq_n_u16(vaddq_n_u16(begin, (uint16_t)(bits - 1u)), 3);
        const int16x8_t up = vreinterpretq_s16_u16(vsubq_u16(vdupq_n_u16((uint16_t)(16u - bits)), vandq_u16(begin, vdupq_n_u16(7))));
        const int32_t down = (int32_t)bits - 16;
        const uint8_t *from = table + (size_t)(first >> 3) * bits;
        do {
            const uint16x8_t both = vsliq_n_u16(vldrbq_gather_offset_u16(from, low), vldrbq_gather_offset_u16(from, high), 8);
            vstrbq_s16(to, vshlq_r_s16(vreinterpretq_s16_u16(vshlq_u16(both, up)), down));
            from += bits;
            to += 8;
            first += 8u;
            count -= 8u;
        } while (count >= 8u);
    }
#endif
    reader = kq_bits_at(table, first, bits);
    for (; count != 0; --count) {
        *to = (int8_t)kq_sign_extend(kq_bits_next(&reader, bits), bits);
        ++to;
    }
}

#endif
