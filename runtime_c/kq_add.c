/* Sum of two maps (SPEC 5.2). */
#include "kq.h"
#include "kq_fixed.h"

/* output = min(max((a * multiplier_a + b * multiplier_b + bias) >> shift, lo), hi); the bias holds the rounding term (halves up).
 * Every product and sum fits int32 by SPEC 5.2. output may be a or b.
 */
KQGEN_CODE void kq_add_s8(const kq_add *add, const int8_t *a, const int8_t *b, int8_t *output)
{
    const uint32_t count = add->count;
    const int32_t multiplier_a = add->multiplier_a;
    const int32_t multiplier_b = add->multiplier_b;
    const int32_t bias = add->bias;
    const uint32_t shift = add->shift;
    const int32_t lo = add->lo;
    const int32_t hi = add->hi;
    uint32_t i;
    for (i = 0; i < count; ++i) {
        const int32_t sum = a[i] * multiplier_a + b[i] * multiplier_b + bias;
        output[i] = (int8_t)kq_clamped(kq_shift_down(sum, shift), lo, hi);
    }
}
