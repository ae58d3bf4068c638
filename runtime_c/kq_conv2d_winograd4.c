/* Form `winograd4` (SPEC 6.5): F(4x4,3x3), 36 products for 16 output pixels of one kernel where 144 are usual.
 *
 * Points 0, 1, -1, 2, -2 and infinity. Kernels are transformed by whole numbers, G = (1,0,0; 1,1,1; 1,-1,1; 1,2,4; 1,-2,4; 0,0,1); what
 * Winograd's own G has beyond that, 1/24 (6, -4, -4, 1, 1, 24), goes into the transform of the sums, which come out 24 * 24 times too
 * large, all modulo 2^32. They are divided exactly: 64 by a shift, 9 by its inverse modulo 2^32.
 * A value of a transformed kernel stays within 49 * 62 = 3038, one of a patch within 100 * 128 = 12800: both are int16.
 */
#define KQ_SIDE 4u

#include "kq_winograd.h"

#define INVERSE_OF_9 0x38E38E39u
#define PATCH_OFFSET 0x12001200u /* 36 * 128 in both halves */

/* See kq_winograd.h. */
KQGEN_CODE static KQ_NOINLINE void transform_kernel(const kq_kernel *low, const kq_kernel *high, uint32_t *to, uint32_t step)
{
    const kq_kernel one = *low;
    const kq_kernel other = *high;
    uint32_t columns[18];
    const uint32_t *row = columns;
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        const uint32_t g0 = kq_tap(&one, &other, i);
        const uint32_t g1 = kq_tap(&one, &other, i + 3u);
        const uint32_t g2 = kq_tap(&one, &other, i + 6u);
        const uint32_t near = g0 + g2;
        const uint32_t far = g0 + (g2 << 2);
        columns[i] = g0;
        columns[i + 3u] = near + g1;
        columns[i + 6u] = near - g1;
        columns[i + 9u] = far + (g1 << 1);
        columns[i + 12u] = far - (g1 << 1);
        columns[i + 15u] = g2;
    }
    for (i = 0; i < 6u; ++i) {
        const uint32_t g0 = row[0] + KQ_LANES; /* g0 enters all results but the last once */
        const uint32_t g1 = row[1];
        const uint32_t g2 = row[2];
        const uint32_t near = g0 + g2;
        const uint32_t far = g0 + (g2 << 2);
        *to = g0 ^ KQ_LANES;
        to += step;
        *to = (near + g1) ^ KQ_LANES;
        to += step;
        *to = (near - g1) ^ KQ_LANES;
        to += step;
        *to = (far + (g1 << 1)) ^ KQ_LANES;
        to += step;
        *to = (far - (g1 << 1)) ^ KQ_LANES;
        to += step;
        *to = (g2 + KQ_LANES) ^ KQ_LANES;
        to += step;
        row += 3;
    }
}

/* Six values of one row or column of a patch. */
typedef struct {
    uint32_t d0, d1, d2, d3, d4, d5;
} six;

/* They, transformed. */
static KQ_INLINE six spread(six d)
{
    const uint32_t d42 = d.d4 - d.d2;
    const uint32_t d31 = d.d3 - d.d1;
    const uint32_t even = d.d4 - (d.d2 << 2);
    const uint32_t odd = d.d3 - (d.d1 << 2);
    six result;
    result.d0 = ((d.d0 - d.d2) << 2) + d42;
    result.d1 = even + odd;
    result.d2 = even - odd;
    result.d3 = d42 + (d31 << 1);
    result.d4 = d42 - (d31 << 1);
    result.d5 = d.d5 - d.d3 - (d31 << 2);
    return result;
}

/* One column, transformed, into every sixth word from `to` on. */
static KQ_INLINE void spread_column(six words, uint32_t *to)
{
    const six result = spread(words);
    to[0] = result.d0;
    to[6] = result.d1;
    to[12] = result.d2;
    to[18] = result.d3;
    to[24] = result.d4;
    to[30] = result.d5;
}

/* Channels 0 and 2 of six words of four, each plus 128. */
static KQ_INLINE six even_bytes(six words)
{
    six d;
    d.d0 = kq_even_bytes(words.d0);
    d.d1 = kq_even_bytes(words.d1);
    d.d2 = kq_even_bytes(words.d2);
    d.d3 = kq_even_bytes(words.d3);
    d.d4 = kq_even_bytes(words.d4);
    d.d5 = kq_even_bytes(words.d5);
    return d;
}

/* Channels 1 and 3 of six words of four, each plus 128. */
static KQ_INLINE six odd_bytes(six words)
{
    six d;
    d.d0 = kq_odd_bytes(words.d0);
    d.d1 = kq_odd_bytes(words.d1);
    d.d2 = kq_odd_bytes(words.d2);
    d.d3 = kq_odd_bytes(words.d3);
    d.d4 = kq_odd_bytes(words.d4);
    d.d5 = kq_odd_bytes(words.d5);
    return d;
}

/* See kq_winograd.h. */
KQGEN_CODE static KQ_NOINLINE void spread_rows(const uint32_t *columns, uint32_t *to, uint32_t step)
{
    uint32_t *const middle = to + 7u * step;
    uint32_t row;
    for (row = 6; row != 0; --row) {
        six d;
        d.d0 = columns[0];
        d.d1 = columns[1];
        d.d2 = columns[2];
        d.d3 = columns[3];
        d.d4 = columns[4] + KQ_LANES; /* column 4 enters all results but the last once, column 5 the last */
        d.d5 = columns[5] + KQ_LANES;
        d = spread(d);
        *to = d.d0 ^ KQ_LANES;
        to += step;
        *to = d.d1 ^ KQ_LANES;
        to += step;
        *to = d.d2 ^ KQ_LANES;
        to += step;
        *to = d.d3 ^ KQ_LANES;
        to += step;
        *to = d.d4 ^ KQ_LANES;
        to += step;
        *to = d.d5 ^ KQ_LANES;
        to += step;
        columns += 6;
    }
    *middle = ((*middle ^ KQ_LANES) - PATCH_OFFSET) ^ KQ_LANES;
}

/* See kq_winograd.h. */
KQGEN_CODE static KQ_NOINLINE void spread_columns(
    const int8_t *at, uint32_t row_bytes, uint32_t column_bytes, uint32_t *columns, uint32_t count)
{
    uint32_t left;
    for (left = count; left != 0; --left) {
        const int8_t *const low = at + 3u * row_bytes;
        six words;
        words.d0 = kq_word_at(at);
        words.d1 = kq_word_at(at + row_bytes);
        words.d2 = kq_word_at(at + 2u * row_bytes);
        words.d3 = kq_word_at(low);
        words.d4 = kq_word_at(low + row_bytes);
        words.d5 = kq_word_at(low + 2u * row_bytes);
        spread_column(even_bytes(words), columns);
        KQ_ONE_THEN_OTHER;
        spread_column(odd_bytes(words), columns + KQ_POSITIONS);
        at += column_bytes;
        ++columns;
    }
}

/* See kq_winograd.h. The transform of the sums is A = (6,-4,-4,1,1,0; 0,-4,4,2,-2,0; 0,-4,-4,4,4,0; 0,-4,4,8,-8,24). */
KQGEN_CODE static KQ_NOINLINE void store_tile(const kq_winograd *run, const uint32_t *sums, uint32_t channel, const kq_spot *place)
{
    uint32_t totals[24];
    uint32_t *at = totals;
    uint32_t i;
    for (i = 6; i != 0; --i) {
        const uint32_t m0 = sums[0], m1 = sums[KQ_SUMS], m2 = sums[2u * KQ_SUMS];
        const uint32_t m3 = sums[3u * KQ_SUMS], m4 = sums[4u * KQ_SUMS], m5 = sums[5u * KQ_SUMS];
        const uint32_t a = m1 + m2, b = m1 - m2, c = m3 + m4, d = m3 - m4;
        at[0] = ((m0 + (m0 << 1)) << 1) - (a << 2) + c;
        at[1] = (d - (b << 1)) << 1;
        at[2] = (c - a) << 2;
        at[3] = ((d << 1) - b + ((m5 + (m5 << 1)) << 1)) << 2;
        sums += 6u * KQ_SUMS;
        at += 4;
    }
    at = totals;
    for (i = 4; i != 0; --i) {
        const uint32_t m0 = at[0], m1 = at[4], m2 = at[8], m3 = at[12], m4 = at[16], m5 = at[20];
        const uint32_t a = m1 + m2, b = m1 - m2, c = m3 + m4, d = m3 - m4;
        at[0] = (uint32_t)kq_shift_down(kq_signed(((m0 + (m0 << 1)) << 1) - (a << 2) + c), 6u);
        at[4] = (uint32_t)kq_shift_down(kq_signed(d - (b << 1)), 5u);
        at[8] = (uint32_t)kq_shift_down(kq_signed(c - a), 4u);
        at[12] = (uint32_t)kq_shift_down(kq_signed((d << 1) - b + ((m5 + (m5 << 1)) << 1)), 4u);
        ++at;
    }
    kq_store_pixels(run, totals, channel, place, INVERSE_OF_9);
}

/* Form `winograd4` (SPEC 6.5): 3x3 kernels, stride 1; scratch as SPEC 6.4. window.tile: output channels, 2 or a multiple of 4; strip: tiles
 * of 4x4 pixels, even, a multiple of 4 where tile is 2; one more where the codebook is expanded.
 */
KQGEN_CODE void kq_conv2d_winograd4_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    kq_winograd_run(conv, input, output, scratch);
}
