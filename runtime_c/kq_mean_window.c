/* Mean of the codes of windows as TFLite's reference kernels round it (SPEC 5.15). */
#include "kq.h"
#include "kq_fixed.h"
#include "kq_window.h"

#define RECIPROCAL_BITS 24u

/* floor(2^24 / count), count 1..65025: a bit at a time, from the highest. */
KQGEN_CODE static KQ_NOINLINE uint32_t reciprocal(uint32_t count)
{
    uint32_t rest = 0;
    uint32_t quotient = 0;
    uint32_t bit = (uint32_t)1 << RECIPROCAL_BITS;
    while (bit != 0) {
        rest = (rest << 1) | (bit >> RECIPROCAL_BITS);
        if (rest >= count) {
            rest -= count;
            quotient |= bit;
        }
        bit >>= 1;
    }
    return quotient;
}

/* sum / count, halves away from zero; |sum| <= 128 * count; `inverse` is the count's reciprocal. The dividend n <= 128.5 * count, so that
 * n * inverse < 2^32, and floor(n * inverse / 2^24) is the quotient or 1 less: it misses less than n / 2^24 < 0.5.
 */
KQGEN_CODE static inline int32_t divided(int32_t sum, uint32_t count, uint32_t inverse)
{
    const uint32_t sign = sum < 0 ? ~(uint32_t)0 : 0;
    const uint32_t dividend = (((uint32_t)sum ^ sign) - sign) + (count >> 1);
    uint32_t quotient = (dividend * inverse) >> RECIPROCAL_BITS;
    if (dividend - quotient * count >= count) {
        ++quotient;
    }
    return kq_signed((quotient ^ sign) - sign);
}

/* Padded positions are left out, of the sum and of the count; no window is wholly padded. |sum| <= 255 * 255 * 128 < 2^23. */
KQGEN_CODE void kq_mean_window_s8(const kq_pool *pool, const int8_t *input, int8_t *output)
{
    const kq_window *window = &pool->window;
    const uint32_t channels = window->c_in;
    const uint32_t row_step = (uint32_t)window->w_in * channels;
    uint32_t count = 0;
    uint32_t inverse = 0;
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            const uint32_t rows = view.row_hi - view.row_lo;
            const uint32_t columns = view.col_hi - view.col_lo;
            const uint32_t first = view.base + view.row_lo * row_step + view.col_lo * channels;
            uint32_t channel;
            if (rows * columns != count) {
                count = rows * columns;
                inverse = reciprocal(count);
            }
            for (channel = 0; channel < channels; ++channel) {
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
                *output = (int8_t)kq_clamped(divided(sum, count, inverse), pool->lo, pool->hi);
                ++output;
            }
        }
    }
}
