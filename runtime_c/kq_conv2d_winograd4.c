/* Form `winograd4` (SPEC 6.5): F(4x4,3x3), 36 products for 16 output pixels of one kernel where 144 are usual.
 *
 * Points 0, 1, -1, 2, -2 and infinity. Kernels are transformed by whole numbers, G = (1,0,0; 1,1,1; 1,-1,1; 1,2,4; 1,-2,4; 0,0,1); what
 * Winograd's own G has beyond that, 1/24 (6, -4, -4, 1, 1, 24), goes into the transform of the sums, which come out 24 * 24 times too large,
 * all modulo 2^32. They are divided exactly: 64 by a shift, 9 by its inverse modulo 2^32.
 * A value of a transformed kernel stays within 49 * 62 = 3038, one of a patch within 100 * 128 = 12800: both are int16.
 */
#define KQ_SIDE 4u

#include "kq_winograd.h"

#define INVERSE_OF_9 0x38E38E39u
#define PATCH_OFFSET 0x12001200u /* 36 * 128 in both halves */

/* One row or column of a kernel, transformed by G. */
static KQ_INLINE void spread(uint32_t g0, uint32_t g1, uint32_t g2, uint32_t *to, uint32_t step)
{
    const uint32_t near = g0 + g2;
    const uint32_t far = g0 + (g2 << 2);
    const uint32_t twice = g1 << 1;
    to[0] = g0;
    to[step] = near + g1;
    to[2u * step] = near - g1;
    to[3u * step] = far + twice;
    to[4u * step] = far - twice;
    to[5u * step] = g2;
}

/* Transforms a kernel of two channels and stores each position `step` words after the one before. */
KQGEN_CODE static KQ_NOINLINE void transform_kernel(const uint32_t *taps, uint32_t *to, uint32_t step)
{
    uint32_t rows[6][3];
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        spread(taps[i], taps[3u + i], taps[6u + i], &rows[0][i], 3u);
    }
    for (i = 0; i < 6u; ++i) {
        const uint32_t g0 = rows[i][0] + KQ_LANES;
        const uint32_t g1 = rows[i][1];
        const uint32_t g2 = rows[i][2];
        const uint32_t near = g0 + g2;
        const uint32_t far = g0 + (g2 << 2);
        const uint32_t twice = g1 << 1;
        *to = g0 ^ KQ_LANES;
        to += step;
        *to = (near + g1) ^ KQ_LANES;
        to += step;
        *to = (near - g1) ^ KQ_LANES;
        to += step;
        *to = (far + twice) ^ KQ_LANES;
        to += step;
        *to = (far - twice) ^ KQ_LANES;
        to += step;
        *to = (g2 + KQ_LANES) ^ KQ_LANES;
        to += step;
    }
}

/* One row or column of a patch, in place. */
static KQ_INLINE void spread_patch(uint32_t *d)
{
    const uint32_t d42 = d[4] - d[2];
    const uint32_t d31 = d[3] - d[1];
    const uint32_t even = d[4] - (d[2] << 2);
    const uint32_t odd = d[3] - (d[1] << 2);
    d[0] = ((d[0] - d[2]) << 2) + d42;
    d[5] = d[5] - d[3] - (d31 << 2);
    d[1] = even + odd;
    d[2] = even - odd;
    d[3] = d42 + (d31 << 1);
    d[4] = d42 - (d31 << 1);
}

/* The columns of one half of four channels, transformed, into columns[row * 6 + column]. */
static KQ_INLINE void spread_column(const uint32_t *words, uint32_t shift, uint32_t *columns)
{
    uint32_t d[6];
    uint32_t i;
    for (i = 0; i < 6u; ++i) {
        d[i] = (words[i] >> shift) & 0x00FF00FFu;
    }
    spread_patch(d);
    for (i = 0; i < 6u; ++i) {
        columns[6u * i] = d[i];
    }
}

/* The rows of what spread_column left, transformed and stored as int16, each position `step` words after the one before. */
KQGEN_CODE static KQ_NOINLINE void spread_rows(const uint32_t *columns, uint32_t *to, uint32_t step)
{
    uint32_t *const middle = to + 7u * step;
    uint32_t row;
    for (row = 0; row < 6u; ++row) {
        uint32_t d[6];
        uint32_t i;
        for (i = 0; i < 6u; ++i) {
            d[i] = columns[i];
        }
        /* Column 4 enters all results but the last once, column 5 the last. */
        d[4] += KQ_LANES;
        d[5] += KQ_LANES;
        spread_patch(d);
        for (i = 0; i < 6u; ++i) {
            *to = d[i] ^ KQ_LANES;
            to += step;
        }
        columns += 6;
    }
    *middle = (((*middle ^ KQ_LANES) - PATCH_OFFSET)) ^ KQ_LANES;
}

/* See kq_winograd.h. Values are read plus 128, as bytes without sign; all rows of the transform but the second sum to 0, so that only
 * position (1, 1) holds 36 * 128 more, which is taken off. The transformed columns lie in run->sums meanwhile.
 */
KQGEN_CODE static KQ_NOINLINE void transform_patch(const kq_winograd *run, kq_pixel tile, uint32_t *to)
{
    const kq_window *window = &run->conv->window;
    const kq_view view = kq_patch_at(window, tile);
    const uint32_t c_in = window->c_in;
    const uint32_t row_bytes = (uint32_t)window->w_in * c_in;
    const uint32_t group = run->patch_group;
    const uint32_t step = run->words * group;
    const uint32_t whole = run->aligned != 0 && view.row_hi - view.row_lo == 6u;
    uint32_t *const columns = run->sums;
    uint32_t channel;
    for (channel = 0; channel < c_in; channel += 4u) {
        uint32_t column;
        for (column = 0; column < 6u; ++column) {
            uint32_t words[6];
            uint32_t row;
            if (whole != 0 && column - view.col_lo < view.col_hi - view.col_lo) {
                const int8_t *at = run->input + (uint32_t)(view.base + column * c_in) + channel;
                for (row = 0; row < 6u; ++row) {
                    words[row] = kq_word_at(at) ^ 0x80808080u;
                    at += row_bytes;
                }
            } else {
                for (row = 0; row < 6u; ++row) {
                    words[row] = kq_patch_word(run, &view, row, column, channel) ^ 0x80808080u;
                }
            }
            spread_column(words, 0, columns + column);
            spread_column(words, 8u, columns + 36u + column);
        }
        spread_rows(columns, to, step);
        spread_rows(columns + 36, to + group, step);
        to += 2u * group;
    }
}

/* See kq_winograd.h. The transform of the sums is A = (6,-4,-4,1,1,0; 0,-4,4,2,-2,0; 0,-4,-4,4,4,0; 0,-4,4,8,-8,24). */
KQGEN_CODE static KQ_NOINLINE void store_tile(const kq_winograd *run, const uint32_t *sums, uint32_t channel, kq_pixel tile)
{
    const kq_window *window = &run->conv->window;
    const kq_finish finish = kq_finish_of(&run->conv->requant, channel, INVERSE_OF_9);
    const uint32_t y = tile.y * 4u;
    const uint32_t x = tile.x * 4u;
    const uint32_t rows = window->h_out - y < 4u ? window->h_out - y : 4u;
    const uint32_t cols = window->w_out - x < 4u ? window->w_out - x : 4u;
    const uint32_t row_bytes = (uint32_t)window->w_out * window->c_out;
    int8_t *to = run->output + (y * window->w_out + x) * window->c_out + channel;
    uint32_t rows4[6][4];
    uint32_t i;
    for (i = 0; i < 6u; ++i) {
        const uint32_t m1 = sums[KQ_SUMS], m2 = sums[2u * KQ_SUMS], m3 = sums[3u * KQ_SUMS], m4 = sums[4u * KQ_SUMS];
        const uint32_t a = m1 + m2, b = m1 - m2, c = m3 + m4, d = m3 - m4;
        rows4[i][0] = 6u * sums[0] - (a << 2) + c;
        rows4[i][1] = (d << 1) - (b << 2);
        rows4[i][2] = (c - a) << 2;
        rows4[i][3] = ((d << 1) - b + 6u * sums[5u * KQ_SUMS]) << 2;
        sums += 6u * KQ_SUMS;
    }
    for (i = 0; i < cols; ++i) {
        const uint32_t m1 = rows4[1][i], m2 = rows4[2][i], m3 = rows4[3][i], m4 = rows4[4][i];
        const uint32_t a = m1 + m2, b = m1 - m2, c = m3 + m4, d = m3 - m4;
        int8_t *at = to;
        kq_finish_pixel(&finish, kq_shift_down(kq_signed(6u * rows4[0][i] - (a << 2) + c), 6u), at);
        if (rows > 1u) {
            at += row_bytes;
            kq_finish_pixel(&finish, kq_shift_down(kq_signed(d - (b << 1)), 5u), at);
        }
        if (rows > 2u) {
            at += row_bytes;
            kq_finish_pixel(&finish, kq_shift_down(kq_signed(c - a), 4u), at);
        }
        if (rows > 3u) {
            at += row_bytes;
            kq_finish_pixel(&finish, kq_shift_down(kq_signed((d << 1) - b + 6u * rows4[5][i]), 4u), at);
        }
        to += window->c_out;
    }
}

/* Form `winograd4` (SPEC 6.5): 3x3 kernels, stride 1; scratch as SPEC 6.4. window.tile: output channels, 2 or a multiple of 4; strip: tiles
 * of 4x4 pixels, even, a multiple of 4 where tile is 2; one more where the codebook is expanded.
 */
KQGEN_CODE void kq_conv2d_winograd4_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    kq_winograd_run(conv, input, output, scratch);
}
