/* Sum of two maps (SPEC 5.2). */
#include "kq.h"
#include "kq_dsp.h"
#include "kq_fixed.h"

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>

/* The whole vectors of four sums; returns the values done. */
KQGEN_CODE static uint32_t add_vectors(const kq_add *add, const int8_t *a, const int8_t *b, int8_t *output)
{
    const int32x4_t bias = vdupq_n_s32(add->bias);
    const int32x4_t down = vdupq_n_s32(-(int32_t)add->shift);
    const int32x4_t lo = vdupq_n_s32(add->lo);
    const int32x4_t hi = vdupq_n_s32(add->hi);
    const uint32_t count = add->count;
    uint32_t i;
    for (i = 0; i + 4u <= count; i += 4u) {
        const int32x4_t first = vmlaq_n_s32(bias, vldrbq_s32(a + i), add->multiplier_a);
        const int32x4_t sum = vshlq_s32(vmlaq_n_s32(first, vldrbq_s32(b + i), add->multiplier_b), down);
        vstrbq_s32(output + i, vminq_s32(vmaxq_s32(sum, lo), hi));
    }
    return i;
}

#elif defined(__GNUC__) && defined(__thumb__) && !defined(__ARM_FEATURE_DSP)

/* Adds `count` values, at least 1: 22 cycles each on a Cortex-M0+. The clamp works on the sum minus lo, then on it minus hi. */
static KQ_INLINE void add_values(const kq_add *add, const int8_t *a, const int8_t *b, int8_t *output, uint32_t count)
{
    const int32_t rules[7] = {add->multiplier_a, add->multiplier_b, add->bias, -add->lo, add->lo - add->hi, add->hi, add->shift};
    register const int8_t *end_a __asm__("r0") = a + count;
    register const int8_t *end_b __asm__("r1") = b + count;
    register int8_t *end __asm__("r2") = output + count;
    register uint32_t left __asm__("r3") = 0u - count;
    register const int32_t *rule __asm__("r4") = rules;
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
        "muls r6, r4, r6\n muls r7, r5, r7\n"
        "adds r6, r6, r7\n add r6, r8\n"
        "mov r7, r12\n asrs r6, r6, r7\n"
        "add r6, r9\n asrs r7, r6, #31\n bics r6, r7\n"
        "add r6, r10\n asrs r7, r6, #31\n ands r6, r7\n add r6, r11\n"
        "strb r6, [r2, r3]\n"
        "adds r3, #1\n"
        "bne 1b\n"
        "pop {r7}\n"
        : "+r"(left), "+r"(rule)
        : "r"(end_a), "r"(end_b), "r"(end)
        : "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}

#endif

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
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
    i = add_vectors(add, a, b, output);
#elif defined(__ARM_FEATURE_DSP)
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
#elif defined(__GNUC__) && defined(__thumb__)
    if (count != 0) {
        add_values(add, a, b, output, count);
        i = count;
    }
#endif
    for (; i < count; ++i) {
        const int32_t sum = a[i] * multiplier_a + b[i] * multiplier_b + bias;
        output[i] = (int8_t)kq_clamped(kq_shift_down(sum, shift), lo, hi);
    }
}
