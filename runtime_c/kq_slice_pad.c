/* Strided slice with channels added before and behind (SPEC 5.6). */
#include "kq.h"

/* out(y, x, c) = in(start_h + y * step_h, start_w + x * step_w, c - c_before), or pad_value where that is no input channel.
 * Every row and column named lies on the input.
 */
KQGEN_CODE void kq_slice_pad_s8(const kq_slice_pad *slice, const int8_t *input, int8_t *output)
{
    const uint32_t c_in = slice->c_in;
    const uint32_t c_out = slice->c_out;
    const uint32_t c_before = slice->c_before;
    const int8_t pad_value = slice->pad_value;
    uint32_t row = slice->start_h;
    uint32_t y;
    for (y = 0; y < slice->h_out; ++y) {
        uint32_t column = slice->start_w;
        uint32_t x;
        for (x = 0; x < slice->w_out; ++x) {
            const int8_t *from = input + (row * slice->w_in + column) * c_in;
            uint32_t c;
            for (c = 0; c < c_out; ++c) {
                /* Channels before c_before wrap to numbers far above c_in. */
                const uint32_t channel = c - c_before;
                *output = channel < c_in ? from[channel] : pad_value;
                ++output;
            }
            column += slice->step_w;
        }
        row += slice->step_h;
    }
}
