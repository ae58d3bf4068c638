/* Maps put together of others (SPEC 5.11). */
#include "kq.h"
#include "kq_copy.h"
#include "kq_fixed.h"

/* `count` values brought to the output's quantisation: min(max((q * multiplier + bias) >> shift, -128), 127). */
KQGEN_CODE static void rescale(const kq_place *place, const int8_t *from, int8_t *to, uint32_t count)
{
    const int32_t multiplier = place->multiplier;
    const int32_t bias = place->bias;
    const uint32_t shift = place->shift;
    uint32_t i;
    for (i = 0; i < count; ++i) {
        to[i] = (int8_t)kq_clamped(kq_shift_down(from[i] * multiplier + bias, shift), INT8_MIN, INT8_MAX);
    }
}

/* Value (y, x, c) of the input goes to start + y * row_step + x * column_step + c. Rows or whole maps that lie together there are one run.
 * Every product and sum fits int32 by SPEC 5.11.
 */
KQGEN_CODE void kq_place_s8(const kq_place *place, const int8_t *input, int8_t *output)
{
    uint32_t run = place->c;
    uint32_t columns = place->w;
    uint32_t rows = place->h;
    uint32_t row;
    output += place->start;
    if (place->column_step == run) {
        run *= columns;
        columns = 1;
        if (place->row_step == run) {
            run *= rows;
            rows = 1;
        }
    }
    for (row = 0; row < rows; ++row) {
        int8_t *to = output;
        uint32_t column;
        for (column = 0; column < columns; ++column) {
            if (place->shift == 0u) {
                kq_copy(input, to, run);
            } else {
                rescale(place, input, to, run);
            }
            input += run;
            to += place->column_step;
        }
        output += place->row_step;
    }
}

/* size_bytes times `value`. */
KQGEN_CODE void kq_fill_s8(int8_t *output, uint32_t size_bytes, int8_t value)
{
    kq_fill(output, size_bytes, value);
}
