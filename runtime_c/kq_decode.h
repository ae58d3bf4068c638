/* What the two functions of form `decode` share (SPEC 6.2), whose kernels are one codeword or the sum of two: all output pixels are
 * convolved with expanded kernels, four pixels to a weight and two to a multiply.
 *
 * The two differ in how a kernel is expanded and in the offset its values are stored with: 32 for one codeword, 64 for two. Each gets
 * a copy of its own of what follows, in which the offset is a constant; a network that uses one alone links one copy.
 */
#ifndef KQ_DECODE_H
#define KQ_DECODE_H

#include "kq_packed.h"
#include "kq_window.h"

/* Packs one tap of a pair of pixels in all channels: `x0` and `x1` point at the pixels' values, `step` words lie between channels. */
KQGEN_CODE static inline void kq_pack_tap(uint32_t *taps, uint32_t step, const int8_t *x0, const int8_t *x1, uint32_t c_in)
{
    uint32_t at = 0;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        taps[at] = (uint32_t)x0[i] + ((uint32_t)x1[i] << 16);
        at += step;
    }
}

/* As kq_pack_tap where one pixel's tap is padded by the same value in all channels: word = constant + x * 2^shift, shift 0 or 16. */
KQGEN_CODE static inline void kq_pack_tap_half(
    uint32_t *taps, uint32_t step, uint32_t constant, const int8_t *x, uint32_t shift, uint32_t c_in)
{
    uint32_t at = 0;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        taps[at] = constant + ((uint32_t)x[i] << shift);
        at += step;
    }
}

/* As kq_pack_tap where both taps are padded by the same value in all channels. */
KQGEN_CODE static inline void kq_pack_tap_none(uint32_t *taps, uint32_t step, uint32_t constant, uint32_t c_in)
{
    uint32_t at = 0;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        taps[at] = constant;
        at += step;
    }
}

/* Packs one tap of a pair in all channels, wherever its two positions lie; NULL stands for a padded one of the same value everywhere. */
KQGEN_CODE static void kq_pack_pair(const kq_conv2d_kq *conv, uint32_t *taps, uint32_t step, const int8_t *x0, const int8_t *x1)
{
    const uint32_t c_in = conv->window.c_in;
    const uint32_t pad = (uint32_t)conv->pad_value;
    if (x0 != NULL && x1 != NULL) {
        kq_pack_tap(taps, step, x0, x1, c_in);
    } else if (x0 != NULL) {
        kq_pack_tap_half(taps, step, pad << 16, x0, 0, c_in);
    } else if (x1 != NULL) {
        kq_pack_tap_half(taps, step, pad, x1, 16, c_in);
    } else {
        kq_pack_tap_none(taps, step, pad + (pad << 16), c_in);
    }
}

/* Packs a row of three taps of four pixels whose windows lie one column apart, in all channels. Of the six columns they cover, the
 * second begins at `x` and the next three lie on the map too; the outer two may be padded.
 */
KQGEN_CODE static KQ_NOINLINE void kq_pack_row_3(
    const kq_conv2d_kq *conv, uint32_t *taps, uint32_t step, const int8_t *x, int on_left, int on_right)
{
    const uint32_t c_in = conv->window.c_in;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        const int8_t *from = x;
        uint32_t left = (uint32_t)(on_left ? *(from - c_in) : kq_pad(conv->pad_values, conv->pad_value, i));
        uint32_t right = (uint32_t)*from;
        taps[0] = left + (right << 16);
        from += c_in;
        left = (uint32_t)*from;
        taps[2] = right + (left << 16);
        from += c_in;
        right = (uint32_t)*from;
        left += right << 16;
        taps[4] = left;
        taps[1] = left;
        from += c_in;
        left = (uint32_t)*from;
        taps[3] = right + (left << 16);
        right = (uint32_t)(on_right ? from[c_in] : kq_pad(conv->pad_values, conv->pad_value, i));
        taps[5] = left + (right << 16);
        taps += step;
        ++x;
    }
}

/* Writes the closing words of all channels, which have n taps of two pairs, for values stored plus `weight_offset`. */
KQGEN_CODE static KQ_NOINLINE void kq_close_channels(uint32_t *taps, uint32_t c_in, uint32_t n, uint32_t weight_offset)
{
    for (; c_in != 0; --c_in) {
        uint32_t total0 = 0;
        uint32_t total1 = 0;
        uint32_t left = n;
        while (left >= 4u) {
            total0 += taps[0];
            total1 += taps[1];
            total0 += taps[2];
            total1 += taps[3];
            total0 += taps[4];
            total1 += taps[5];
            total0 += taps[6];
            total1 += taps[7];
            taps += 8;
            left -= 4u;
        }
        while (left != 0) {
            total0 += taps[0];
            total1 += taps[1];
            taps += 2;
            --left;
        }
        taps[0] = kq_closing_word(total0, weight_offset);
        taps[1] = kq_closing_word(total1, weight_offset);
        taps += 2;
    }
}

/* Whether the four windows lie one column apart, and the four columns in the middle of the six they cover lie on the map. */
KQGEN_CODE static int kq_spans_row_3(const kq_window *window, const kq_pixel *pixels, const kq_view *views)
{
    return window->k_w == 3 && window->stride_w == 1 && pixels[3].y == pixels[0].y && pixels[3].x == pixels[0].x + 3u
        && views[0].col_lo <= 1u && views[0].col_hi == 3u && views[3].col_lo == 0 && views[3].col_hi >= 2u;
}

/* Packs the windows of four pixels as [c_in][n + 1][pair] words, for values stored plus `weight_offset`. */
KQGEN_CODE static KQ_NOINLINE void kq_pack_windows(
    const kq_conv2d_kq *conv, const int8_t *input, const kq_pixel *pixels, uint32_t n, uint32_t *taps, uint32_t weight_offset)
{
    const kq_window *window = &conv->window;
    const uint32_t c_in = window->c_in;
    const uint32_t step = 2u * n + 2u;
    kq_view views[4];
    uint32_t *tap = taps;
    uint32_t row_offset = 0;
    uint32_t row;
    uint32_t i;
    int by_row;
    for (i = 0; i < 4u; ++i) {
        views[i] = kq_view_at(window, pixels[i]);
    }
    by_row = kq_spans_row_3(window, pixels, views);
    for (row = 0; row < window->k_h; ++row) {
        uint32_t offset = row_offset;
        uint32_t column = 0;
        if (by_row && row - views[0].row_lo < views[0].row_hi - views[0].row_lo) {
            const int8_t *second = input + (uint32_t)(views[0].base + offset + c_in);
            kq_pack_row_3(conv, tap, step, second, views[0].col_lo == 0, views[3].col_hi == 3u);
            tap += 6;
            column = 3;
        }
        for (; column < window->k_w; ++column) {
            for (i = 0; i < 4u; i += 2u) {
                const kq_view *view = &views[i];
                const int8_t *x0 = kq_on_map(view, row, column) ? input + (uint32_t)(view[0].base + offset) : conv->pad_values;
                const int8_t *x1 = kq_on_map(view + 1, row, column) ? input + (uint32_t)(view[1].base + offset) : conv->pad_values;
                kq_pack_pair(conv, tap, step, x0, x1);
                ++tap;
            }
            offset += c_in;
        }
        row_offset += (uint32_t)window->w_in * c_in;
    }
    kq_close_channels(taps, c_in, n, weight_offset);
}

/* Adds up one output channel's 3x3 kernels over all input channels: acc[i] becomes pixel i's sum, modulo 2^32.
 * Sum S = sum s0 + 2^16 * sum s1 + 2^15 * c_in, so the even pixels follow from sum S and the odd ones' sum s1: s0 is never split off.
 */
KQGEN_CODE static KQ_NOINLINE void kq_sum_kernels_9(const uint8_t *kernel, const uint32_t *taps, uint32_t c_in, uint32_t *acc)
{
    const uint32_t excess = KQ_LANE_OFFSET * c_in;
    KQ_ASIDE uint32_t total0 = 0;
    KQ_ASIDE uint32_t total1 = 0;
    KQ_ASIDE uint32_t high0 = 0;
    KQ_ASIDE uint32_t high1 = 0;
    for (; c_in != 0; --c_in) {
        uint32_t sum0 = taps[18];
        uint32_t sum1 = taps[19];
        kq_add_tap(kernel[0], taps[0], taps[1], &sum0, &sum1);
        kq_add_tap(kernel[1], taps[2], taps[3], &sum0, &sum1);
        kq_add_tap(kernel[2], taps[4], taps[5], &sum0, &sum1);
        kq_add_tap(kernel[3], taps[6], taps[7], &sum0, &sum1);
        kq_add_tap(kernel[4], taps[8], taps[9], &sum0, &sum1);
        kq_add_tap(kernel[5], taps[10], taps[11], &sum0, &sum1);
        kq_add_tap(kernel[6], taps[12], taps[13], &sum0, &sum1);
        kq_add_tap(kernel[7], taps[14], taps[15], &sum0, &sum1);
        kq_add_tap(kernel[8], taps[16], taps[17], &sum0, &sum1);
        total0 += sum0;
        high0 += kq_high_half(sum0);
        total1 += sum1;
        high1 += kq_high_half(sum1);
        kernel += 9;
        taps += 20;
    }
    acc[0] = total0 - (high0 << 16) - excess;
    acc[1] = high0;
    acc[2] = total1 - (high1 << 16) - excess;
    acc[3] = high1;
}

/* As kq_sum_kernels_9 for kernels of n taps. */
KQGEN_CODE static KQ_NOINLINE void kq_sum_kernels(const uint8_t *kernel, const uint32_t *taps, uint32_t c_in, uint32_t n, uint32_t *acc)
{
    const uint32_t excess = KQ_LANE_OFFSET * c_in;
    KQ_ASIDE uint32_t total0 = 0;
    KQ_ASIDE uint32_t total1 = 0;
    KQ_ASIDE uint32_t high0 = 0;
    KQ_ASIDE uint32_t high1 = 0;
    for (; c_in != 0; --c_in) {
        uint32_t sum0 = 0;
        uint32_t sum1 = 0;
        uint32_t left = n;
        while (left >= 4u) {
            kq_add_tap(kernel[0], taps[0], taps[1], &sum0, &sum1);
            kq_add_tap(kernel[1], taps[2], taps[3], &sum0, &sum1);
            kq_add_tap(kernel[2], taps[4], taps[5], &sum0, &sum1);
            kq_add_tap(kernel[3], taps[6], taps[7], &sum0, &sum1);
            kernel += 4;
            taps += 8;
            left -= 4u;
        }
        while (left != 0) {
            kq_add_tap(kernel[0], taps[0], taps[1], &sum0, &sum1);
            ++kernel;
            taps += 2;
            --left;
        }
        sum0 += taps[0];
        sum1 += taps[1];
        taps += 2;
        total0 += sum0;
        high0 += kq_high_half(sum0);
        total1 += sum1;
        high1 += kq_high_half(sum1);
    }
    acc[0] = total0 - (high0 << 16) - excess;
    acc[1] = high0;
    acc[2] = total1 - (high1 << 16) - excess;
    acc[3] = high1;
}

/* Requantises one output channel of four pixels; outputs[i] + at is where pixel i's goes. */
KQGEN_CODE static KQ_NOINLINE void kq_put_four(
    const kq_requant *requant, uint32_t channel, const uint32_t *acc, int8_t *const *outputs, uint32_t at)
{
    const uint32_t bias = (uint32_t)requant->bias[channel];
    const uint32_t multiplier = (uint32_t)requant->multiplier[channel];
    const uint32_t shift = requant->shift[channel];
    const uint32_t acc_shift = requant->acc_shift;
    const int32_t zero_point = requant->zero_point;
    const int32_t lo = requant->lo;
    const int32_t hi = requant->hi;
    uint32_t i;
    for (i = 0; i < 4u; ++i) {
        const int32_t scaled = kq_scale(acc[i] + bias, multiplier, shift, acc_shift) + zero_point;
        outputs[i][at] = (int8_t)kq_clamped(scaled, lo, hi);
    }
}

/* Output channels first..first+channels-1 of four pixels from their packed windows and the expanded kernels. */
KQGEN_CODE static KQ_NOINLINE void kq_convolve_four(
    const kq_conv2d_kq *conv, uint32_t first, uint32_t channels, const uint8_t *kernels, const uint32_t *taps, int8_t *const *outputs)
{
    const uint32_t c_in = conv->window.c_in;
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    uint32_t o;
    for (o = 0; o < channels; ++o) {
        uint32_t acc[4];
        if (n == 9u) {
            kq_sum_kernels_9(kernels, taps, c_in, acc);
        } else {
            kq_sum_kernels(kernels, taps, c_in, n, acc);
        }
        kq_put_four(&conv->requant, first + o, acc, outputs, o);
        kernels += c_in * n;
    }
}

/* Output channels first..first+channels-1 of all pixels by kernels expanded into [channels][c_in][n] bytes, values plus `weight_offset`. */
KQGEN_CODE static void kq_decode_pixels(
    const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, uint32_t n, uint32_t first, uint32_t channels, const uint8_t *kernels,
    uint32_t *taps, uint32_t weight_offset)
{
    const uint32_t c_out = conv->window.c_out;
    const uint32_t w_out = conv->window.w_out;
    uint32_t left = (uint32_t)conv->window.h_out * w_out;
    uint32_t at = first;
    kq_pixel pixel = {0, 0};
    while (left != 0) {
        kq_pixel pixels[4];
        int8_t *outputs[4];
        uint32_t i;
        for (i = 0; i < 4u; ++i) {
            pixels[i] = pixel;
            outputs[i] = output + at;
            if (left > 1u) {
                pixel = kq_next_pixel(pixel, w_out);
                at += c_out;
                --left;
            } else if (i == 3u) {
                left = 0;
            }
        }
        kq_pack_windows(conv, input, pixels, n, taps, weight_offset);
        kq_convolve_four(conv, first, channels, kernels, taps, outputs);
    }
}

#endif
