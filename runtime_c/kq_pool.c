/* Mean and maximum over windows (SPEC 5.3, 5.4). */
#include "kq.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* The mean from a window's sum and the bias. */
KQGEN_CODE static KQ_NOINLINE int8_t mean(const kq_pool *pool, uint32_t acc)
{
    const uint32_t multiplier = kq_rounds_as_tflite(pool->acc_shift) ? (uint32_t)pool->multiplier_q31 : (uint32_t)pool->multiplier;
    const int32_t scaled = kq_rescale(acc, multiplier, pool->shift, pool->acc_shift);
    return (int8_t)kq_clamped(scaled + pool->zero_point, pool->lo, pool->hi);
}

/* What a window's sum starts from. */
static KQ_INLINE uint32_t bias_of(const kq_pool *pool)
{
    if (kq_rounds_as_tflite(pool->acc_shift)) {
        return 0u - (uint32_t)(pool->window.k_h * pool->window.k_w * pool->pad_value);
    }
    return (uint32_t)pool->bias;
}

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>

/* Means of one pixel in the whole vectors of four channels: the window's values on the map, of which there are rows by columns, begin at
 * `from`; `start` is the sum of all others and the bias. Returns the channels done.
 */
KQGEN_CODE static uint32_t mean_quads(
    const kq_pool *pool, const int8_t *from, uint32_t rows, uint32_t columns, uint32_t start, int8_t *to)
{
    const uint32_t channels = pool->window.c_in;
    const uint32_t row_rest = (pool->window.w_in - columns) * channels;
    const int32x4_t multiplier = vdupq_n_s32(pool->multiplier * 65536);
    const int32x4_t lo = vdupq_n_s32(pool->lo);
    const int32x4_t hi = vdupq_n_s32(pool->hi);
    uint32_t channel;
    if (kq_rounds_as_tflite(pool->acc_shift)) {
        return 0;
    }
    for (channel = 0; channels - channel >= 4u; channel += 4u) {
        const int8_t *next = from + channel;
        int32x4_t sum = vdupq_n_s32(kq_signed(start));
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

#else

/* Four bytes at a multiple of 4, the first lowest. */
static KQ_INLINE uint32_t quad_at(const int8_t *at)
{
#if defined(__GNUC__)
    typedef uint32_t __attribute__((may_alias)) any_word;
    return *(const any_word *)(const void *)at;
#else
    const uint8_t *bytes = (const uint8_t *)at;
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
#endif
}

/* Means of one pixel, four channels in a word, where words lie at multiples of 4 and the window has 1 to 255 values on the map: these are
 * rows by columns and begin at `from`; `start` is the sum of all others and the bias. Values plus 128 are summed in 16 bits, to 255 * 255 at
 * most. Returns the channels done: all or none.
 */
KQGEN_CODE static uint32_t mean_quads(
    const kq_pool *pool, const int8_t *from, uint32_t rows, uint32_t columns, uint32_t start, int8_t *to)
{
    const uint32_t channels = pool->window.c_in;
    const uint32_t row_step = pool->window.w_in * channels;
    const uint32_t row_bytes = columns * channels;
    const uint32_t values = rows * columns;
    const int8_t *const end = from + channels;
    if (((((uint32_t)(uintptr_t)from) | channels) & 3u) != 0 || values - 1u > 254u) {
        return 0;
    }
    start -= values << 7;
    while (from != end) {
        const int8_t *row = from;
        uint32_t even = 0;
        uint32_t odd = 0;
        uint32_t left = rows;
        do {
            const int8_t *at = row;
            const int8_t *const row_end = row + row_bytes;
            do {
                const uint32_t quad = quad_at(at) ^ 0x80808080u;
                at += channels;
                even += quad & 0x00FF00FFu;
                odd += (quad >> 8) & 0x00FF00FFu;
            } while (at != row_end);
            row += row_step;
            --left;
        } while (left != 0);
        to[0] = mean(pool, start + (even & 0xFFFFu));
        to[1] = mean(pool, start + (odd & 0xFFFFu));
        to[2] = mean(pool, start + (even >> 16));
        to[3] = mean(pool, start + (odd >> 16));
        to += 4;
        from += 4;
    }
    return channels;
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
            const uint32_t start = (uint32_t)padded + bias_of(pool);
            const uint32_t first = view.base + view.row_lo * row_step + view.col_lo * channels;
            uint32_t channel = mean_quads(pool, input + first, rows, columns, start, output);
            output += channel;
            for (; channel < channels; ++channel) {
                int32_t sum = 0;
                uint32_t row_at = first + channel;
                uint32_t row;
                for (row = 0; row < rows; ++row) {
                    uint32_t at = row_at;
                    uint32_t column;
                    for (column = 0; column < columns; ++column) {
                        sum += input[at];
                        at += channels;
                    }
                    row_at += row_step;
                }
                *output = mean(pool, start + (uint32_t)sum);
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
