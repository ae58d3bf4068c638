/* Convolution by lookup, form `reuse` (SPEC 6.3): for a tile of output pixels and each input channel, a codeword's dot products are
 * computed when the first output channel asks for that codeword, and kept; every output channel then only adds or subtracts them.
 */
#include "kq.h"
#include "kq_packed.h"
#include "kq_window.h"

#define PADDED 0xFFFFFFFFu /* in place of a tap's offset; maps are below 2^31 bytes */

/* Scratch of the form, in the order of SPEC 6.4; pairs = window.tile / 2, n = k_h * k_w. */
typedef struct {
    uint32_t *accumulators; /* [c_out][2 * pairs in use] */
    uint32_t *sums;         /* [codewords][pairs in use]: s0 mod 2^16 in the low half, s1 in the high half */
    uint32_t *offsets;      /* [pairs in use][n][2]: of a tap's first channel in the input, or PADDED */
    uint32_t *taps;         /* [pairs in use][n + 1] packed taps of one input channel (SPEC 6.2) */
    uint8_t *kernels;       /* [codewords][n] values plus 32 */
    uint16_t *stamps;       /* [codewords]: 1 + the input channel whose sums are kept, 0 for none */
} reuse_scratch;

/* Where the parts lie. */
KQGEN_CODE static reuse_scratch split_scratch(const kq_conv2d_kq *conv, uint32_t n, void *scratch)
{
    reuse_scratch parts;
    const uint32_t tile = conv->window.tile;
    const uint32_t pairs = tile >> 1;
    const uint32_t codewords = conv->codewords;
    parts.accumulators = scratch;
    parts.sums = parts.accumulators + tile * conv->window.c_out;
    parts.offsets = parts.sums + codewords * pairs;
    parts.taps = parts.offsets + n * tile;
    parts.kernels = (uint8_t *)(parts.taps + (n + 1u) * pairs);
    parts.stamps = (uint16_t *)(void *)(parts.kernels + ((codewords * n + 3u) & ~(uint32_t)3u));
    return parts;
}

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
            offsets[at] = kq_on_map(&view, row, column) ? offset : PADDED;
            at += 2u;
            offset += window->c_in;
        }
        row_offset += (uint32_t)window->w_in * window->c_in;
    }
}

/* Packs the taps of one input channel for all pairs; `input` points at that channel of the first position. */
KQGEN_CODE static KQ_NOINLINE void pack_channel(
    const uint32_t *offsets, const int8_t *input, int8_t pad, uint32_t n, uint32_t pairs, uint32_t *taps)
{
    uint32_t pair;
    for (pair = 0; pair < pairs; ++pair) {
        uint32_t total = 0;
        uint32_t t;
        for (t = 0; t < n; ++t) {
            const int8_t x0 = offsets[0] == PADDED ? pad : input[offsets[0]];
            const int8_t x1 = offsets[1] == PADDED ? pad : input[offsets[1]];
            const uint32_t packed = (uint32_t)x0 + ((uint32_t)x1 << 16);
            taps[t] = packed;
            total += packed;
            offsets += 2;
        }
        taps[n] = kq_closing_word(total, KQ_WEIGHT_OFFSET);
        taps += n + 1u;
    }
}

/* Dot products of one codeword of 3x3 values with `pairs` pairs, an even number, two signed halves a word: flipping bit 15 of S
 * (kq_packed.h) takes 2^15 from the low half modulo 2^16 and leaves the high half, which already is s1.
 */
KQGEN_CODE static KQ_NOINLINE void sum_pairs_9(const uint8_t *kernel, const uint32_t *taps, uint32_t pairs, uint32_t *sums)
{
    for (; pairs != 0; pairs -= 2u) {
        uint32_t sum0 = taps[9];
        uint32_t sum1 = taps[19];
        kq_add_tap(kernel[0], taps[0], taps[10], &sum0, &sum1);
        kq_add_tap(kernel[1], taps[1], taps[11], &sum0, &sum1);
        kq_add_tap(kernel[2], taps[2], taps[12], &sum0, &sum1);
        kq_add_tap(kernel[3], taps[3], taps[13], &sum0, &sum1);
        kq_add_tap(kernel[4], taps[4], taps[14], &sum0, &sum1);
        kq_add_tap(kernel[5], taps[5], taps[15], &sum0, &sum1);
        kq_add_tap(kernel[6], taps[6], taps[16], &sum0, &sum1);
        kq_add_tap(kernel[7], taps[7], taps[17], &sum0, &sum1);
        kq_add_tap(kernel[8], taps[8], taps[18], &sum0, &sum1);
        sums[0] = sum0 ^ KQ_LANE_OFFSET;
        sums[1] = sum1 ^ KQ_LANE_OFFSET;
        taps += 20;
        sums += 2;
    }
}

/* As sum_pairs_9 for codewords of n values and any number of pairs. */
KQGEN_CODE static KQ_NOINLINE void sum_pairs(const uint8_t *kernel, const uint32_t *taps, uint32_t n, uint32_t pairs, uint32_t *sums)
{
    while (pairs != 0) {
        const uint32_t *second = pairs > 1u ? taps + n + 1u : taps; /* a last odd pair is summed twice */
        uint32_t sum0 = taps[n];
        uint32_t sum1 = second[n];
        uint32_t t;
        for (t = 0; t < n; ++t) {
            kq_add_tap(kernel[t], taps[t], second[t], &sum0, &sum1);
        }
        sums[0] = sum0 ^ KQ_LANE_OFFSET;
        if (pairs == 1u) {
            return;
        }
        sums[1] = sum1 ^ KQ_LANE_OFFSET;
        taps = second + n + 1u;
        sums += 2;
        pairs -= 2u;
    }
}

/* Dot products of one codeword with all pairs. */
KQGEN_CODE static void sum_codeword(const uint8_t *kernel, const uint32_t *taps, uint32_t n, uint32_t pairs, uint32_t *sums)
{
    const uint32_t even = n == 9u ? pairs & ~(uint32_t)1u : 0;
    if (even != 0) {
        sum_pairs_9(kernel, taps, even, sums);
    }
    sum_pairs(kernel, taps + even * (n + 1u), n, pairs - even, sums + even);
}

/* Adds the two halves of each sum to the accumulators of one output channel, modulo 2^32. */
KQGEN_CODE static KQ_NOINLINE void add_sums(const uint32_t *sums, uint32_t *accumulators, uint32_t pairs)
{
    uint32_t pair;
    for (pair = 0; pair < pairs; ++pair) {
        accumulators[2u * pair] += kq_low_half(sums[pair]);
        accumulators[2u * pair + 1u] += kq_high_half(sums[pair]);
    }
}

/* As add_sums, subtracting. */
KQGEN_CODE static KQ_NOINLINE void subtract_sums(const uint32_t *sums, uint32_t *accumulators, uint32_t pairs)
{
    uint32_t pair;
    for (pair = 0; pair < pairs; ++pair) {
        accumulators[2u * pair] -= kq_low_half(sums[pair]);
        accumulators[2u * pair + 1u] -= kq_high_half(sums[pair]);
    }
}

/* One input channel into the accumulators of all output channels; its indices are the reader's next c_out entries. */
KQGEN_CODE static KQ_NOINLINE void gather_channel(
    const kq_conv2d_kq *conv, const reuse_scratch *parts, kq_bit_reader *reader, uint32_t n, uint32_t pairs, uint32_t stamp)
{
    const uint32_t bits = conv->index_bits;
    const uint32_t code_bits = bits - conv->sign;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    const uint32_t c_out = conv->window.c_out;
    uint32_t *accumulators = parts->accumulators;
    uint32_t *const all_sums = parts->sums;
    uint16_t *const stamps = parts->stamps;
    kq_bit_reader indices = *reader;
    uint32_t o;
    for (o = 0; o < c_out; ++o) {
        const uint32_t index = kq_bits_next(&indices, bits);
        const uint32_t code = index & code_mask;
        uint32_t *sums = all_sums + code * pairs;
        if (stamps[code] != stamp) {
            stamps[code] = (uint16_t)stamp;
            sum_codeword(parts->kernels + code * n, parts->taps, n, pairs, sums);
        }
        if (index == code) {
            add_sums(sums, accumulators, pairs);
        } else {
            subtract_sums(sums, accumulators, pairs);
        }
        accumulators += 2u * pairs;
    }
    *reader = indices;
}

/* All output channels of `pixels` pixels, 1..window.tile, from accumulators to `output`. */
KQGEN_CODE static void finish(const kq_conv2d_kq *conv, const uint32_t *accumulators, uint32_t pixels, uint32_t pairs, int8_t *output)
{
    const uint32_t c_out = conv->window.c_out;
    uint32_t o;
    for (o = 0; o < c_out; ++o) {
        uint32_t at = o;
        uint32_t pixel;
        for (pixel = 0; pixel < pixels; ++pixel) {
            kq_store(accumulators[pixel], &conv->requant, o, output + at);
            at += c_out;
        }
        accumulators += 2u * pairs;
    }
}

/* Form `reuse` (SPEC 6.3); scratch as SPEC 6.4. window.tile: output pixels, even, at least 2. */
KQGEN_CODE void kq_conv2d_reuse_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    const uint32_t c_in = window->c_in;
    const uint32_t c_out = window->c_out;
    const uint32_t codewords = conv->codewords;
    const reuse_scratch parts = split_scratch(conv, n, scratch);
    uint32_t left = (uint32_t)window->h_out * window->w_out;
    kq_pixel pixel = {0, 0};
    uint32_t i;
    for (i = 0; i < codewords; ++i) {
        kq_expand_codeword(conv->codebook, i, 0, parts.kernels + i * n, n);
    }
    while (left != 0) {
        const uint32_t pixels = left < window->tile ? left : window->tile;
        const uint32_t pairs = (pixels + 1u) >> 1;
        kq_bit_reader reader = kq_bits_at(conv->indices, 0, conv->index_bits);
        for (i = 0; i < 2u * pairs; ++i) {
            find_taps(window, pixel, parts.offsets + (i >> 1) * 2u * n + (i & 1u));
            if (i + 1u < pixels || pixels < left) {
                pixel = kq_next_pixel(pixel, window->w_out);
            }
        }
        for (i = 0; i < c_out; ++i) {
            uint32_t p;
            for (p = 0; p < 2u * pairs; ++p) {
                parts.accumulators[i * 2u * pairs + p] = (uint32_t)conv->requant.bias[i];
            }
        }
        for (i = 0; i < codewords; ++i) {
            parts.stamps[i] = 0;
        }
        for (i = 0; i < c_in; ++i) {
            pack_channel(parts.offsets, input + i, kq_pad(conv->pad_values, conv->pad_value, i), n, pairs, parts.taps);
            gather_channel(conv, &parts, &reader, n, pairs, i + 1u);
        }
        finish(conv, parts.accumulators, pixels, pairs, output);
        output += pixels * c_out;
        left -= pixels;
    }
}
