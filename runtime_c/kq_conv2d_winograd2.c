/* Form `winograd2` (SPEC 6.5): F(2x2,3x3), 16 products for 4 output pixels of one kernel where 36 are usual.
 *
 * Points 0, 1, -1 and infinity. Kernels are transformed by whole numbers, G = (1,0,0; 1,1,1; 1,-1,1; 0,0,1); what Winograd's own G has
 * beyond that, 1/2 (2, 1, 1, 2), goes into the transform of the sums, which come out 2 * 2 times too large, modulo 2^32.
 * A value of a transformed kernel stays within 9 * 62 = 558, one of a patch within 4 * 128 = 512.
 */
#define KQ_SIDE 2u

#include "kq_winograd.h"

#define PATCH_OFFSET 0x02000200u /* 4 * 128 in both halves */

/* See kq_winograd.h. */
KQGEN_CODE static KQ_NOINLINE void transform_kernel(const kq_kernel *low, const kq_kernel *high, uint32_t *to, uint32_t step)
{
    const kq_kernel one = *low;
    const kq_kernel other = *high;
    uint32_t rows[4][3];
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        const uint32_t g0 = kq_tap(&one, &other, i);
        const uint32_t g1 = kq_tap(&one, &other, i + 3u);
        const uint32_t g2 = kq_tap(&one, &other, i + 6u);
        const uint32_t near = g0 + g2;
        rows[0][i] = g0;
        rows[1][i] = near + g1;
        rows[2][i] = near - g1;
        rows[3][i] = g2;
    }
    for (i = 0; i < 4u; ++i) {
        const uint32_t g0 = rows[i][0] + KQ_LANES;
        const uint32_t near = g0 + rows[i][2];
        *to = g0 ^ KQ_LANES;
        to += step;
        *to = (near + rows[i][1]) ^ KQ_LANES;
        to += step;
        *to = (near - rows[i][1]) ^ KQ_LANES;
        to += step;
        *to = (rows[i][2] + KQ_LANES) ^ KQ_LANES;
        to += step;
    }
}

/* One column of a patch, transformed, into every fourth word from `to` on. */
static KQ_INLINE void spread_column(uint32_t d0, uint32_t d1, uint32_t d2, uint32_t d3, uint32_t *to)
{
    to[0] = d0 - d2;
    to[4] = d1 + d2;
    to[8] = d2 - d1;
    to[12] = d1 - d3;
}

/* See kq_winograd.h. */
KQGEN_CODE static KQ_NOINLINE void spread_rows(const uint32_t *columns, uint32_t *to, uint32_t step)
{
    uint32_t *const middle = to + 5u * step;
    uint32_t row;
    for (row = 0; row < 4u; ++row) {
        /* What is added makes each result KQ_LANES larger, modulo 2^32. */
        const uint32_t d0 = columns[0] + 2u * KQ_LANES;
        const uint32_t d1 = columns[1];
        const uint32_t d2 = columns[2] + KQ_LANES;
        const uint32_t d3 = columns[3] - KQ_LANES;
        *to = (d0 - d2) ^ KQ_LANES;
        to += step;
        *to = (d1 + d2) ^ KQ_LANES;
        to += step;
        *to = (d2 - d1) ^ KQ_LANES;
        to += step;
        *to = (d1 - d3) ^ KQ_LANES;
        to += step;
        columns += 4;
    }
    *middle = ((*middle ^ KQ_LANES) - PATCH_OFFSET) ^ KQ_LANES;
}

/* See kq_winograd.h. */
KQGEN_CODE static KQ_NOINLINE void spread_columns(
    const int8_t *at, uint32_t row_bytes, uint32_t column_bytes, uint32_t *columns, uint32_t count)
{
    uint32_t left;
    for (left = count; left != 0; --left) {
        const int8_t *const low = at + 2u * row_bytes;
        const uint32_t d0 = kq_word_at(at);
        const uint32_t d1 = kq_word_at(at + row_bytes);
        const uint32_t d2 = kq_word_at(low);
        const uint32_t d3 = kq_word_at(low + row_bytes);
        spread_column(kq_even_bytes(d0), kq_even_bytes(d1), kq_even_bytes(d2), kq_even_bytes(d3), columns);
        KQ_ONE_THEN_OTHER;
        spread_column(kq_odd_bytes(d0), kq_odd_bytes(d1), kq_odd_bytes(d2), kq_odd_bytes(d3), columns + KQ_POSITIONS);
        at += column_bytes;
        ++columns;
    }
}

/* See kq_winograd.h. The transform of the sums is A = (2,1,1,0; 0,1,-1,-2). */
KQGEN_CODE static KQ_NOINLINE void store_tile(const kq_winograd *run, const uint32_t *sums, uint32_t channel, const kq_spot *place)
{
    uint32_t totals[8];
    uint32_t *at = totals;
    uint32_t i;
    for (i = 4; i != 0; --i) {
        const uint32_t m1 = sums[KQ_SUMS], m2 = sums[2u * KQ_SUMS];
        at[0] = (sums[0] << 1) + m1 + m2;
        at[1] = m1 - m2 - (sums[3u * KQ_SUMS] << 1);
        sums += 4u * KQ_SUMS;
        at += 2;
    }
    at = totals;
    for (i = 2; i != 0; --i) {
        const uint32_t m1 = at[2], m2 = at[4];
        at[0] = (uint32_t)kq_shift_down(kq_signed((at[0] << 1) + m1 + m2), 2u);
        at[2] = (uint32_t)kq_shift_down(kq_signed(m1 - m2 - (at[6] << 1)), 2u);
        ++at;
    }
    kq_store_pixels(run, totals, channel, place, 1u);
}

/* Form `winograd2` (SPEC 6.5): 3x3 kernels, stride 1; scratch as SPEC 6.4. window.tile: output channels, 2 or a multiple of 4; strip: tiles
 * of 2x2 pixels, even, a multiple of 4 where tile is 2; one more where the codebook is expanded.
 */
KQGEN_CODE void kq_conv2d_winograd2_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    kq_winograd_run(conv, input, output, scratch);
}
