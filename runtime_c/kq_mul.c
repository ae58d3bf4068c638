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
static KQ_INLINE uint32_t whole_vectors(const kq_mul_rule *rule, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
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

#elif defined(__GNUC__) && defined(__thumb__) && !defined(__ARM_FEATURE_DSP)

/* `count` products, at least 1: 22 cycles each on a Cortex-M0+. The clamp works on the result minus lo, then on it minus hi. */
static KQ_INLINE void multiply_values(const kq_mul_rule *rule, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
{
    const int32_t rules[7] = {
        rule->multiplier, kq_signed(rule->down), -rule->zero_point_a, -rule->zero_point_b, rule->offset - 2 * rule->lo,
        rule->lo - rule->hi, rule->hi};
    register const int8_t *end_a __asm__("r0") = a + count;
    register const int8_t *end_b __asm__("r1") = b + count;
    register int8_t *end __asm__("r2") = output + count;
    register uint32_t left __asm__("r3") = 0u - count;
    register const int32_t *from __asm__("r4") = rules;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "ldr r7, [r4, #8]\n mov r8, r7\n"
        "ldr r7, [r4, #12]\n mov r9, r7\n"
        "ldr r7, [r4, #16]\n mov r10, r7\n"
        "ldr r7, [r4, #20]\n mov r11, r7\n"
        "ldr r7, [r4, #24]\n mov r12, r7\n"
        "ldr r5, [r4, #4]\n"
        "ldr r4, [r4]\n"
        "1:\n"
        "ldrsb r6, [r0, r3]\n ldrsb r7, [r1, r3]\n"
        "add r6, r8\n add r7, r9\n"
        "muls r6, r7, r6\n muls r6, r4, r6\n"
        "asrs r6, r6, r5\n add r6, r10\n asrs r6, r6, #1\n"
        "asrs r7, r6, #31\n bics r6, r7\n"
        "add r6, r11\n asrs r7, r6, #31\n ands r6, r7\n add r6, r12\n"
        "strb r6, [r2, r3]\n"
        "adds r3, #1\n"
        "bne 1b\n"
        "pop {r7}\n"
        : "+r"(left), "+r"(from)
        : "r"(end_a), "r"(end_b), "r"(end)
        : "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}

#endif

/* `count` products by rule half_up, at least 1, clamped to lo..hi. */
static KQ_INLINE void multiply(const kq_mul_rule *rule, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
{
    uint32_t i = 0;
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
    i = whole_vectors(rule, a, b, output, count);
#elif defined(__ARM_FEATURE_DSP)
    for (; i + 2u <= count && rule->hi - rule->lo == INT8_MAX - INT8_MIN; i += 2u) {
        const int32_t product0 = (a[i] - rule->zero_point_a) * (b[i] - rule->zero_point_b) * rule->multiplier;
        const int32_t product1 = (a[i + 1u] - rule->zero_point_a) * (b[i + 1u] - rule->zero_point_b) * rule->multiplier;
        output[i] = (int8_t)kq_saturated(kq_shift_down(kq_shift_down(product0, rule->down) + rule->offset, 1));
        output[i + 1u] = (int8_t)kq_saturated(kq_shift_down(kq_shift_down(product1, rule->down) + rule->offset, 1));
    }
#elif defined(__GNUC__) && defined(__thumb__)
    multiply_values(rule, a, b, output, count);
    i = count;
#endif
    for (; i < count; ++i) {
        const int32_t product = (a[i] - rule->zero_point_a) * (b[i] - rule->zero_point_b) * rule->multiplier;
        output[i] = (int8_t)kq_clamped(kq_shift_down(kq_shift_down(product, rule->down) + rule->offset, 1), rule->lo, rule->hi);
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
            a += count_b;
            output += count_b;
            left -= count_b;
            continue;
        }
#endif
        multiply(&rule, a, b, output, count_b);
        a += count_b;
        output += count_b;
        left -= count_b;
    }
}
