/* Windows over an input map (SPEC 5): which taps of an output pixel lie on the map, and where. */
#ifndef KQ_WINDOW_H
#define KQ_WINDOW_H

#include "kq_types.h"

/* The taps of one output pixel. Tap (r, c) lies on the map when row_lo <= r < row_hi and col_lo <= c < col_hi; then its first channel
 * is at input[base + (r * w_in + c) * c_in], computed modulo 2^32 (base itself may lie before the map).
 */
typedef struct {
    uint32_t base;
    uint32_t row_lo, row_hi, col_lo, col_hi;
} kq_view;

/* An output pixel, in row-major order. */
typedef struct {
    uint32_t y, x;
} kq_pixel;

/* The pixel after `pixel`. */
KQGEN_CODE static inline kq_pixel kq_next_pixel(kq_pixel pixel, uint32_t w_out)
{
    ++pixel.x;
    if (pixel.x == w_out) {
        pixel.x = 0;
        ++pixel.y;
    }
    return pixel;
}

/* Valid taps of a window of k positions that starts at `start` (negative: in the padding) on an axis of `size` positions:
 * lo..hi-1, 0 <= lo <= hi <= k. start > -2^24, start + k < 2^25 by SPEC 8.
 */
KQGEN_CODE static inline void kq_valid_taps(int32_t start, uint32_t k, uint32_t size, uint32_t *lo, uint32_t *hi)
{
    const int32_t taps = (int32_t)k;
    const int32_t room = (int32_t)size - start;
    const int32_t last = room > taps ? taps : (room > 0 ? room : 0);
    const int32_t first = start < 0 ? -start : 0;
    *hi = (uint32_t)last;
    *lo = (uint32_t)(first < last ? first : last);
}

/* The taps of output pixel `pixel`. */
KQGEN_CODE static inline kq_view kq_view_at(const kq_window *window, kq_pixel pixel)
{
    kq_view view;
    const int32_t top = (int32_t)(pixel.y * window->stride_h) - window->pad_top;
    const int32_t left = (int32_t)(pixel.x * window->stride_w) - window->pad_left;
    kq_valid_taps(top, window->k_h, window->h_in, &view.row_lo, &view.row_hi);
    kq_valid_taps(left, window->k_w, window->w_in, &view.col_lo, &view.col_hi);
    view.base = ((uint32_t)top * window->w_in + (uint32_t)left) * window->c_in;
    return view;
}

/* Whether tap (row, column) lies on the map. */
KQGEN_CODE static inline int kq_on_map(const kq_view *view, uint32_t row, uint32_t column)
{
    return row - view->row_lo < view->row_hi - view->row_lo && column - view->col_lo < view->col_hi - view->col_lo;
}

/* What a padded position reads in channel `channel`. */
KQGEN_CODE static inline int8_t kq_pad(const int8_t *pad_values, int8_t pad_value, uint32_t channel)
{
    return pad_values != NULL ? pad_values[channel] : pad_value;
}

#endif
