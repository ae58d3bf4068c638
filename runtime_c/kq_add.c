/* Sum of two maps (SPEC 5.2). */
#include "kq.h"
#include "kq_dsp.h"
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
    uint32_t i = 0;
#if defined(__ARM_FEATURE_DSP)
    if (hi - lo == INT8_MAX - INT8_MIN) {
        for (; i + 4u <= count; i += 4u) {
            const int32_t a0 = a[i];
            const int32_t a1 = a[i + 1u];
            const int32_t a2 = a[i + 2u];
            const int32_t a3 = a[i + 3u];
            const int32_t b0 = b[i];
            const int32_t b1 = b[i + 1u];
            const int32_t b2 = b[i + 2u];
            const int32_t b3 = b[i + 3u];
            output[i] = (int8_t)kq_saturated(kq_shift_down(a0 * multiplier_a + b0 * multiplier_b + bias, shift));
            output[i + 1u] = (int8_t)kq_saturated(kq_shift_down(a1 * multiplier_a + b1 * multiplier_b + bias, shift));
            output[i + 2u] = (int8_t)kq_saturated(kq_shift_down(a2 * multiplier_a + b2 * multiplier_b + bias, shift));
            output[i + 3u] = (int8_t)kq_saturated(kq_shift_down(a3 * multiplier_a + b3 * multiplier_b + bias, shift));
        }
    }
#endif
    for (; i < count; ++i) {
        const int32_t sum = a[i] * multiplier_a + b[i] * multiplier_b + bias;
        output[i] = (int8_t)kq_clamped(kq_shift_down(sum, shift), lo, hi);
    }
}
