/* Mean and maximum over windows (SPEC 5.3, 5.4). */
#include "kq.h"
#include "kq_fixed.h"
#include "kq_window.h"

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>

/* Means of one pixel in the whole vectors of four channels: the window's values on the map, of which there are rows by columns, begin at
 * `from`; `start` is the sum of all others and the bias. Returns the channels done.
 */
KQGEN_CODE static uint32_t mean_vectors(
    const kq_pool *pool, const int8_t *from, uint32_t rows, uint32_t columns, int32_t start, int8_t *to)
{
    const uint32_t channels = pool->window.c_in;
    const uint32_t row_rest = (pool->window.w_in - columns) * channels;
    const int32x4_t multiplier = vdupq_n_s32(pool->multiplier * 65536);
    const int32x4_t lo = vdupq_n_s32(pool->lo);
    const int32x4_t hi = vdupq_n_s32(pool->hi);
    uint32_t channel;
    for (channel = 0; channels - channel >= 4u; channel += 4u) {
        const int8_t *next = from + channel;
        int32x4_t sum = vdupq_n_s32(start);
        uint32_t row;
        for (row = 0; row < rows; ++row) {
            uint32_t column;
            for (column = 0; column < columns; ++column) {
                sum = vaddq_s32(sum, vldrbq_s32(next));
                next += channels;
            }
            next += row_rest;
        }
        sum = vmulhq_s32(vshlq_r_s32(sum, pool->acc_shift), multiplier);
        sum = vaddq_n_s32(vrshlq_s32(sum, vdupq_n_s32(-(int32_t)pool->shift)), pool->zero_point);
        vstrbq_s32(to + channel, vminq_s32(vmaxq_s32(sum, lo), hi));
    }
    return channel;
}

#endif

/* Mean over windows; a padded position counts and reads pad_value. |sum| <= 255 * 255 * 128 < 2^23. */
KQGEN_CODE void kq_avg_pool_s8(const kq_pool *pool, const int8_t *input, int8_t *output)
{
    const kq_window *window = &pool->window;
    const uint32_t channels = window->c_in;
    const uint32_t row_step = (uint32_t)window->w_in * channels;
    const uint32_t size = (uint32_t)window->k_h * window->k_w;
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            const uint32_t rows = view.row_hi - view.row_lo;
            const uint32_t columns = view.col_hi - view.col_lo;
            const int32_t padded = (int32_t)(size - rows * columns) * pool->pad_value;
            const uint32_t first = view.base + view.row_lo * row_step + view.col_lo * channels;
            uint32_t channel = 0;
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
            channel = mean_vectors(pool, input + first, rows, columns, padded + pool->bias, output);
            output += channel;
#endif
            for (; channel < channels; ++channel) {
                int32_t sum = padded;
                uint32_t row_at = first + channel;
                uint32_t row;
                int32_t scaled;
                for (row = 0; row < rows; ++row) {
                    uint32_t at = row_at;
                    uint32_t column;
                    for (column = 0; column < columns; ++column) {
                        sum += input[at];
                        at += channels;
                    }
                    row_at += row_step;
                }
                scaled = kq_scale((uint32_t)sum + (uint32_t)pool->bias, (uint32_t)pool->multiplier, pool->shift, pool->acc_shift);
                *output = (int8_t)kq_clamped(scaled + pool->zero_point, pool->lo, pool->hi);
                ++output;
            }
        }
    }
}

/* Maximum over windows, none of which is wholly padded; then the clamp. */
KQGEN_CODE void kq_max_pool_s8(const kq_pool *pool, const int8_t *input, int8_t *output)
{
    const kq_window *window = &pool->window;
    const uint32_t channels = window->c_in;
    const uint32_t row_step = (uint32_t)window->w_in * channels;
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            const uint32_t rows = view.row_hi - view.row_lo;
            const uint32_t columns = view.col_hi - view.col_lo;
            const uint32_t first = view.base + view.row_lo * row_step + view.col_lo * channels;
            uint32_t channel;
            for (channel = 0; channel < channels; ++channel) {
                int32_t largest = INT8_MIN;
                uint32_t row_at = first + channel;
                uint32_t row;
                for (row = 0; row < rows; ++row) {
                    uint32_t at = row_at;
                    uint32_t column;
                    for (column = 0; column < columns; ++column) {
                        largest = input[at] > largest ? input[at] : largest;
                        at += channels;
                    }
                    row_at += row_step;
                }
                *output = (int8_t)kq_clamped(largest, pool->lo, pool->hi);
                ++output;
            }
        }
    }
}
