/* Product of two maps (SPEC 5.10). */
#include "kq.h"
#include "kq_dsp.h"
#include "kq_fixed.h"

/* What SPEC 3.2 makes of a product p, |p| <= 255 * 255: floor((p * m + 2^(down-1)) / 2^down) with down = shift + 16 - acc_shift, 2..38, is
 * (floor(p * m / 2^(down-1)) + 1) / 2 rounded down, for any down; |p * m| < 2^31. The zero point goes in before the last shift.
 */
typedef struct {
    int32_t zero_point_a, zero_point_b, multiplier;
    uint32_t down;  /* down - 1, 31 at most: from there on the quotient is -1 or 0 */
    int32_t offset; /* 1 + 2 * zero point */
    int32_t lo, hi;
} kq_mul_rule;

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>

/* The whole vectors of four products; returns the values done. */
KQGEN_CODE static uint32_t whole_vectors(const kq_mul_rule *rule, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
{
    const int32x4_t down = vdupq_n_s32(-(int32_t)rule->down);
    const int32x4_t lo = vdupq_n_s32(rule->lo);
    const int32x4_t hi = vdupq_n_s32(rule->hi);
    uint32_t i;
    for (i = 0; i + 4u <= count; i += 4u) {
        const int32x4_t left = vsubq_n_s32(vldrbq_s32(a + i), rule->zero_point_a);
        const int32x4_t right = vsubq_n_s32(vldrbq_s32(b + i), rule->zero_point_b);
        const int32x4_t product = vmulq_n_s32(vmulq_s32(left, right), rule->multiplier);
        const int32x4_t q = vshrq_n_s32(vaddq_n_s32(vshlq_s32(product, down), rule->offset), 1);
        vstrbq_s32(output + i, vminq_s32(vmaxq_s32(q, lo), hi));
    }
    return i;
}

#endif

/* `count` products by rule half_up, clamped to lo..hi or, where that is everything, saturated. */
KQGEN_CODE static void multiply(const kq_mul_rule *rule, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
{
    const int32_t zero_point_a = rule->zero_point_a;
    const int32_t zero_point_b = rule->zero_point_b;
    const int32_t multiplier = rule->multiplier;
    const uint32_t down = rule->down;
    const int32_t offset = rule->offset;
    const int32_t lo = rule->lo;
    const int32_t hi = rule->hi;
    uint32_t i = 0;
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
    i = whole_vectors(rule, a, b, output, count);
#elif defined(__ARM_FEATURE_DSP)
    if (hi - lo == INT8_MAX - INT8_MIN) {
        for (; i + 2u <= count; i += 2u) {
            const int32_t product0 = (a[i] - zero_point_a) * (b[i] - zero_point_b) * multiplier;
            const int32_t product1 = (a[i + 1u] - zero_point_a) * (b[i + 1u] - zero_point_b) * multiplier;
            output[i] = (int8_t)kq_saturated(kq_shift_down(kq_shift_down(product0, down) + offset, 1));
            output[i + 1u] = (int8_t)kq_saturated(kq_shift_down(kq_shift_down(product1, down) + offset, 1));
        }
    }
#endif
    for (; i < count; ++i) {
        const int32_t product = (a[i] - zero_point_a) * (b[i] - zero_point_b) * multiplier;
        output[i] = (int8_t)kq_clamped(kq_shift_down(kq_shift_down(product, down) + offset, 1), lo, hi);
    }
}

#if KQ_WITH_TFLITE
/* `count` products by SPEC 3.5. */
KQGEN_CODE static void multiply_as_tflite(const kq_mul *mul, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
{
    uint32_t i;
    for (i = 0; i < count; ++i) {
        const int32_t product = (a[i] - mul->zero_point_a) * (b[i] - mul->zero_point_b);
        const int32_t scaled = kq_scale_tflite((uint32_t)product, mul->multiplier, mul->shift, mul->acc_shift);
        output[i] = (int8_t)kq_clamped(scaled + mul->zero_point, mul->lo, mul->hi);
    }
}
#endif

/* output = min(max(scale((a - zero_point_a) * (b - zero_point_b)) + zero_point, lo), hi). b begins anew after count_b values, of which count
 * is a multiple. output may be a, and b where count_b is count.
 */
KQGEN_CODE void kq_mul_s8(const kq_mul *mul, const int8_t *a, const int8_t *b, int8_t *output)
{
    const uint32_t count_b = mul->count_b;
    const uint32_t down = mul->shift + 15u - mul->acc_shift;
    uint32_t left = mul->count;
    kq_mul_rule rule;
    rule.zero_point_a = mul->zero_point_a;
    rule.zero_point_b = mul->zero_point_b;
    rule.multiplier = mul->multiplier;
    rule.down = down < 31u ? down : 31u;
    rule.offset = 1 + 2 * mul->zero_point;
    rule.lo = mul->lo;
    rule.hi = mul->hi;
    while (left != 0) {
#if KQ_WITH_TFLITE
        if (kq_rounds_as_tflite(mul->acc_shift)) {
            multiply_as_tflite(mul, a, b, output, count_b);
        } else {
            multiply(&rule, a, b, output, count_b);
        }
#else
        multiply(&rule, a, b, output, count_b);
#endif
        a += count_b;
        output += count_b;
        left -= count_b;
    }
}
