/* Clamp of a map (SPEC 5.5). */
#include "kq.h"
#include "kq_fixed.h"

/* output = min(max(input, lo), hi); output may be the input. */
KQGEN_CODE void kq_clamp_s8(const kq_clamp *clamp, const int8_t *input, int8_t *output)
{
    const uint32_t count = clamp->count;
    const int32_t lo = clamp->lo;
    const int32_t hi = clamp->hi;
    uint32_t i;
    for (i = 0; i < count; ++i) {
        output[i] = (int8_t)kq_clamped(input[i], lo, hi);
    }
}
