/* Form `reuse`: tables of dot products with eight windows anywhere. */
#ifndef KQ_REUSE_PACK_H
#define KQ_REUSE_PACK_H

#include "kq_packed.h"
#include "kq_reuse.h"
#include "kq_window.h"

#define KQ_REUSE_PADDED 0xFFFFFFFFu /* in place of a tap's offset; maps are below 2^31 bytes */

/* Offsets of one pixel's taps, every second word of `offsets`. */
KQGEN_CODE static void find_taps(const kq_window *window, kq_pixel pixel, uint32_t *offsets)
{
    const kq_view view = kq_view_at(window, pixel);
    uint32_t row_offset = view.base;
    uint32_t at = 0;
    uint32_t row;
    for (row = 0; row < window->k_h; ++row) {
        uint32_t offset = row_offset;
        uint32_t column;
        for (column = 0; column < window->k_w; ++column) {
            offsets[at] = kq_on_map(&view, row, column) ? offset : KQ_REUSE_PADDED;
            at += 2u;
            offset += window->c_in;
        }
        row_offset += (uint32_t)window->w_in * window->c_in;
    }
}

/* Packs the taps of one input channel for all pairs; `input` points at that channel of the first position. */
KQGEN_CODE static KQ_NOINLINE void pack_channel(const uint32_t *offsets, const int8_t *input, int8_t pad, uint32_t n, uint32_t *taps)
{
    uint32_t pair;
    for (pair = 0; pair < KQ_REUSE_PAIRS; ++pair) {
        uint32_t total = 0;
        uint32_t t;
        for (t = 0; t < n; ++t) {
            const int8_t x0 = offsets[0] == KQ_REUSE_PADDED ? pad : input[offsets[0]];
            const int8_t x1 = offsets[1] == KQ_REUSE_PADDED ? pad : input[offsets[1]];
            const uint32_t packed = (uint32_t)x0 + ((uint32_t)x1 << 16);
            taps[t] = packed;
            total += packed;
            offsets += 2;
        }
        taps[n] = kq_closing_word(total, KQ_WEIGHT_OFFSET);
        taps += n + 1u;
    }
}

/* Adds nine taps of two pairs to their sums. */
static KQ_INLINE void add_nine(const uint8_t *kernel, const uint32_t *first, const uint32_t *second, uint32_t *sum0, uint32_t *sum1)
{
    kq_add_tap(kernel[0], first[0], second[0], sum0, sum1);
    kq_add_tap(kernel[1], first[1], second[1], sum0, sum1);
    kq_add_tap(kernel[2], first[2], second[2], sum0, sum1);
    kq_add_tap(kernel[3], first[3], second[3], sum0, sum1);
    kq_add_tap(kernel[4], first[4], second[4], sum0, sum1);
    kq_add_tap(kernel[5], first[5], second[5], sum0, sum1);
    kq_add_tap(kernel[6], first[6], second[6], sum0, sum1);
    kq_add_tap(kernel[7], first[7], second[7], sum0, sum1);
    kq_add_tap(kernel[8], first[8], second[8], sum0, sum1);
}

/* The table of all codewords from packed taps: entry i of codeword i, and of minus it where `negative` is not NULL. */
KQGEN_CODE static KQ_NOINLINE void build_table(
    const uint8_t *kernels, uint32_t codewords, uint32_t n, const uint32_t *taps, uint32_t *positive, uint32_t *negative)
{
    uint32_t code;
    for (code = 0; code < codewords; ++code) {
        const uint32_t *first = taps;
        uint32_t pair;
        for (pair = 0; pair < KQ_REUSE_PAIRS; pair += 2u) {
            const uint32_t *second = first + n + 1u;
            uint32_t sum0 = first[n];
            uint32_t sum1 = second[n];
            uint32_t t;
            if (n == 9u) {
                add_nine(kernels, first, second, &sum0, &sum1);
            } else {
                for (t = 0; t < n; ++t) {
                    kq_add_tap(kernels[t], first[t], second[t], &sum0, &sum1);
                }
            }
            positive[pair] = sum0;
            positive[pair + 1u] = sum1;
            if (negative != NULL) {
                negative[pair] = 2u * KQ_LANE_OFFSET - sum0;
                negative[pair + 1u] = 2u * KQ_LANE_OFFSET - sum1;
            }
            first = second + n + 1u;
        }
        kernels += n;
        positive += KQ_REUSE_ENTRY;
        negative = negative == NULL ? NULL : negative + KQ_REUSE_ENTRY;
    }
}

#endif
