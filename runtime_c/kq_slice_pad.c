/* Strided slice, cropped or padded on any side (SPEC 5.6). */
#include "kq.h"
#include "kq_copy.h"

/* One output row from the input row at `from`: columns and channels that are not on the input become pad_value. */
KQGEN_CODE static void slice_row(const kq_slice_pad *slice, const int8_t *from, int8_t *to)
{
    const int32_t c_before = slice->c_before;
    const uint32_t c_in = slice->c_in;
    const uint32_t c_out = slice->c_out;
    const uint32_t first = c_before > 0 ? (uint32_t)c_before : 0u;
    const uint32_t dropped = c_before < 0 ? (uint32_t)-c_before : 0u;
    const uint32_t left = c_in > dropped ? c_in - dropped : 0u;
    const uint32_t room = c_out > first ? c_out - first : 0u;
    const uint32_t kept = left < room ? left : room;
    const uint32_t w_in = slice->w_in;
    int32_t column = slice->start_w;
    uint32_t x = slice->w_out;
    if (kept == c_in && c_in == c_out && slice->step_w == 1u && column >= 0) {
        const uint32_t skipped = (uint32_t)column < w_in ? (uint32_t)column : w_in;
        const uint32_t whole = w_in - skipped < x ? w_in - skipped : x;
        kq_copy(from + skipped * c_in, to, whole * c_in);
        kq_fill(to + whole * c_in, (x - whole) * c_in, slice->pad_value);
        return;
    }
    for (; x != 0; --x) {
        if ((uint32_t)column < w_in) {
            const uint32_t start = first < c_out ? first : c_out;
            kq_fill(to, start, slice->pad_value);
            kq_copy(from + (uint32_t)column * c_in + dropped, to + start, kept);
            kq_fill(to + start + kept, c_out - start - kept, slice->pad_value);
        } else {
            kq_fill(to, c_out, slice->pad_value);
        }
        to += c_out;
        column += slice->step_w;
    }
}

/* out(y, x, c) = in(start_h + y * step_h, start_w + x * step_w, c - c_before), or pad_value where there is no such value. Rows and columns
 * stay below 2^24: 65535 * 255 + 32767.
 */
KQGEN_CODE void kq_slice_pad_s8(const kq_slice_pad *slice, const int8_t *input, int8_t *output)
{
    const uint32_t in_row = (uint32_t)slice->w_in * slice->c_in;
    const uint32_t out_row = (uint32_t)slice->w_out * slice->c_out;
    int32_t row = slice->start_h;
    uint32_t y;
    for (y = 0; y < slice->h_out; ++y) {
        if ((uint32_t)row < slice->h_in) {
            slice_row(slice, input + (uint32_t)row * in_row, output);
        } else {
            kq_fill(output, out_row, slice->pad_value);
        }
        output += out_row;
        row += slice->step_h;
    }
}
