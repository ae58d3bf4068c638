/* Inner products of the forms for cores with the DSP extension (SPEC 6.5): four output channels by two pixels at a time.
 *
 * The file that includes this gets a copy of its own of what follows; DSP_DUAL, defined before, chooses the order of instructions for cores
 * that issue two at once.
 */
#ifndef KQ_DSP_GROUPS_H
#define KQ_DSP_GROUPS_H

#include "kq_fixed.h"
#include "kq_types.h"

#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)

/* Four channels (r4, r5, then other words in the same) by two windows (r2, r3). */
#define DSP_FIRST_CHANNEL "smlad r6, r4, r2, r6\n smlad r7, r4, r3, r7\n"
#define DSP_SECOND_CHANNEL "smlad r8, r5, r2, r8\n smlad r9, r5, r3, r9\n"
#define DSP_THIRD_CHANNEL "smlad r10, r4, r2, r10\n smlad r11, r4, r3, r11\n"

/* Steps: two values of two windows by four channels. r0 and r1 point one word before x and weights; the arguments say where words lie off
 * them. DSP_EIGHT_STEPS and DSP_TWO_STEPS repeat theirs until r0 reaches what the stack holds at 52 and at 56.
 */
#if defined(DSP_DUAL)

/* In the order of the multiplications, each word loaded right after the last use of its register, two multiplications at least before the
 * next: 8 cycles on a Cortex-M7, whose loads pair with multiplications. x and weights of a step are loaded in the step before it, those of
 * a first step by DSP_AHEAD; the last step so loads words behind its operands, which lie in the scratch too.
 */
#define DSP_AHEAD "ldr r2, [r0, #4]\n ldr r3, [r0, #8]\n ldr r4, [r1, #4]\n ldr r5, [r1, #8]\n"
#define DSP_FRONT(w2, w3) \
    DSP_FIRST_CHANNEL "ldr r4, [r1, #" w2 "]\n" DSP_SECOND_CHANNEL "ldr r5, [r1, #" w3 "]\n" DSP_THIRD_CHANNEL
#define DSP_STEPS(numbers) \
    ".irp k, " numbers "\n" \
    DSP_FRONT("(16 * \\k + 12)", "(16 * \\k + 16)") \
    "ldr r4, [r1, #(16 * \\k + 20)]\n smlad r12, r5, r2, r12\n ldr r2, [r0, #(8 * \\k + 12)]\n smlad lr, r5, r3, lr\n" \
    "ldr r3, [r0, #(8 * \\k + 16)]\n ldr r5, [r1, #(16 * \\k + 24)]\n" \
    ".endr\n"
#define DSP_LAST_STEP(w2, w3, w0, x_bytes, w_bytes, start, end) \
    DSP_FRONT(w2, w3) \
    "ldr r4, [r1, #" w0 "]\n smlad r12, r5, r2, r12\n ldr r2, [sp, #" end "]\n add r0, #" x_bytes "\n smlad lr, r5, r3, lr\n" \
    "add r1, #" w_bytes "\n cmp r0, r2\n ldr r2, [r0, #4]\n ldr r3, [r0, #8]\n ldr r5, [r1, #8]\n bne " start "\n"
#define DSP_EIGHT_STEPS \
    DSP_AHEAD \
    ".p2align 2\n" \
    "2:\n" \
    DSP_STEPS("0, 1, 2, 3, 4, 5, 6") \
    DSP_LAST_STEP("124", "128", "132", "64", "128", "2b", "52")
#define DSP_TWO_STEPS \
    DSP_AHEAD \
    ".p2align 2\n" \
    "4:\n" \
    DSP_STEPS("0") \
    DSP_LAST_STEP("28", "32", "36", "16", "32", "4b", "56")

#else

/* Loads side by side: 16 cycles on a Cortex-M4, 14 on an M33. */
#define DSP_STEP(x0, x1, w0, w1, w2, w3) \
    "ldr r2, [r0, #" x0 "\n ldr r3, [r0, #" x1 "\n ldr r4, [r1, #" w0 "\n ldr r5, [r1, #" w1 "\n" \
    DSP_FIRST_CHANNEL DSP_SECOND_CHANNEL \
    "ldr r4, [r1, #" w2 "\n ldr r5, [r1, #" w3 "\n" \
    DSP_THIRD_CHANNEL "smlad r12, r5, r2, r12\n smlad lr, r5, r3, lr\n"
#define DSP_STEPS(numbers) \
    ".irp k, " numbers "\n" \
    DSP_STEP("(8 * \\k + 4)]", "(8 * \\k + 8)]", "(16 * \\k + 4)]", "(16 * \\k + 8)]", "(16 * \\k + 12)]", "(16 * \\k + 16)]") \
    ".endr\n"
#define DSP_EIGHT_STEPS \
    ".p2align 2\n" \
    "2:\n" \
    DSP_STEPS("0, 1, 2, 3, 4, 5, 6") \
    DSP_STEP("60]", "64]!", "116]", "120]", "124]", "128]!") \
    "ldr r4, [sp, #52]\n" \
    "cmp r0, r4\n" \
    "bne 2b\n"
#define DSP_TWO_STEPS \
    ".p2align 2\n" \
    "4:\n" \
    DSP_STEPS("0") \
    DSP_STEP("12]", "16]!", "20]", "24]", "28]", "32]!") \
    "ldr r4, [sp, #56]\n" \
    "cmp r0, r4\n" \
    "bne 4b\n"

#endif

/* A parameter that assembly alone uses. */
#define DSP_UNSEEN __attribute__((unused))

/* Requantisation of the sums of a group; r4 holds the zero point, r1 points at the last word of the weights and moves on to that of the
 * group. Where r3, to1, is NULL the sums are what is wanted.
 */
#define DSP_SUMS_ALONE "cmp r3, #0\n beq 6f\n"
#define DSP_SCALE \
    "ldr r0, [r1, #4]\n" \
    "ldr r5, [r1, #8]\n" \
    DSP_SUMS_ALONE \
    "smmlar r6, r6, r0, r4\n" \
    "smmlar r7, r7, r0, r4\n" \
    "smmlar r8, r8, r5, r4\n" \
    "smmlar r9, r9, r5, r4\n" \
    "ldr r0, [r1, #12]\n" \
    "ldr r5, [r1, #16]!\n" \
    "smmlar r10, r10, r0, r4\n" \
    "smmlar r11, r11, r0, r4\n" \
    "smmlar r12, r12, r5, r4\n" \
    "smmlar lr, lr, r5, r4\n"

/* Rounding twice (SPEC 3.5): the multiplier is in r0, how far the product is shifted down, at least 1, in r5. Halves go away from zero: a
 * product below zero is made smaller by one before ASRS leaves the bit that rounds in the carry.
 */
#define DSP_TWICE(sum0, sum1) \
    "lsls " sum0 ", " sum0 ", #1\n lsls " sum1 ", " sum1 ", #1\n" \
    "smmulr " sum0 ", " sum0 ", r0\n smmulr " sum1 ", " sum1 ", r0\n" \
    "add " sum0 ", " sum0 ", " sum0 ", asr #31\n add " sum1 ", " sum1 ", " sum1 ", asr #31\n" \
    "asrs " sum0 ", " sum0 ", r5\n adc " sum0 ", " sum0 ", r4\n" \
    "asrs " sum1 ", " sum1 ", r5\n adc " sum1 ", " sum1 ", r4\n"
#define DSP_SCALE_TWICE \
    "ldr r0, [r1, #4]\n ldr r5, [r1, #20]\n" \
    DSP_SUMS_ALONE \
    DSP_TWICE("r6", "r7") \
    "ldr r0, [r1, #8]\n ldr r5, [r1, #24]\n" \
    DSP_TWICE("r8", "r9") \
    "ldr r0, [r1, #12]\n ldr r5, [r1, #28]\n" \
    DSP_TWICE("r10", "r11") \
    "ldr r0, [r1, #16]\n ldr r5, [r1, #32]!\n" \
    DSP_TWICE("r12", "lr")

#define DSP_GROUPS(scale) \
    __asm__ volatile( \
        "push {r0-r11, lr}\n" \
        "subs r0, #4\n" \
        "str r0, [sp]\n" \
        "subs r1, #4\n" \
        "1:\n" /* a group: biases */ \
        "ldr r0, [sp]\n" \
        "ldr r4, [sp, #52]\n" \
        "ldr r6, [r1, #4]\n" \
        "ldr r8, [r1, #8]\n" \
        "ldr r10, [r1, #12]\n" \
        "ldr r12, [r1, #16]!\n" \
        "mov r7, r6\n" \
        "mov r9, r8\n" \
        "mov r11, r10\n" \
        "mov lr, r12\n" \
        "cmp r0, r4\n" \
        "beq 3f\n" \
        DSP_EIGHT_STEPS \
        "3:\n" \
        "ldr r4, [sp, #56]\n" \
        "cmp r0, r4\n" \
        "beq 5f\n" \
        DSP_TWO_STEPS \
        "5:\n" \
        "ldr r2, [sp, #8]\n" \
        "ldr r3, [sp, #12]\n" \
        "ldr r4, [sp, #64]\n" \
        scale \
        "ssat r6, #8, r6\n" \
        "ssat r7, #8, r7\n" \
        "ssat r8, #8, r8\n" \
        "ssat r9, #8, r9\n" \
        "ssat r10, #8, r10\n" \
        "ssat r11, #8, r11\n" \
        "ssat r12, #8, r12\n" \
        "ssat lr, #8, lr\n" \
        "strb r8, [r2, #1]\n" \
        "strb r10, [r2, #2]\n" \
        "strb r12, [r2, #3]\n" \
        "strb r6, [r2], #4\n" \
        "strb r9, [r3, #1]\n" \
        "strb r11, [r3, #2]\n" \
        "strb lr, [r3, #3]\n" \
        "strb r7, [r3], #4\n" \
        "str r2, [sp, #8]\n" \
        "str r3, [sp, #12]\n" \
        "ldr r4, [sp, #60]\n" \
        "cmp r1, r4\n" \
        "bne 1b\n" \
        "add sp, #16\n" \
        "pop {r4-r11, pc}\n" \
        "6:\n" /* accumulators alone */ \
        "stm r2, {r6-r12, lr}\n" \
        "add sp, #16\n" \
        "pop {r4-r11, pc}\n")

/* The dot products of groups of four output channels with the windows of two pixels.
 *
 * A group of `weights` is four biases, then for each step (two values of a window) a word a channel, then four multipliers. `x` holds for
 * each step a word a pixel; steps are an even number, at least 2. `x_last` is the last word of x, `x_eights` the last word of its whole
 * eights of steps (the word before x where there is none), `w_last` the last word of the last group.
 * to0 and to1 get four int8 a group: int8 saturation of zero_point + (acc * multiplier + 2^31) / 2^32 rounded down, multiplier 0..2^31-1.
 * Where to1 is NULL one group is computed and its accumulators go to to0 as eight int32, a channel's two pixels side by side.
 * Sums are modulo 2^32.
 * Fourteen registers are in use, so the arguments stay on the stack: x, weights, to0, to1 at 0..12, the others from 52 on. */
KQGEN_CODE static __attribute__((naked, noinline, used)) void dsp_groups(
    DSP_UNSEEN const uint32_t *x, DSP_UNSEEN const uint32_t *weights, DSP_UNSEEN void *to0, DSP_UNSEEN int8_t *to1,
    DSP_UNSEEN const uint32_t *x_eights, DSP_UNSEEN const uint32_t *x_last, DSP_UNSEEN const uint32_t *w_last,
    DSP_UNSEEN int32_t zero_point)
{
    DSP_GROUPS(DSP_SCALE);
}

#if KQ_WITH_TFLITE
/* As dsp_groups by SPEC 3.5, rounding twice: four shifts less 31, each 1..31, follow the multipliers. |acc| < 2^30. */
KQGEN_CODE static __attribute__((naked, noinline, used)) void dsp_groups_twice(
    DSP_UNSEEN const uint32_t *x, DSP_UNSEEN const uint32_t *weights, DSP_UNSEEN void *to0, DSP_UNSEEN int8_t *to1,
    DSP_UNSEEN const uint32_t *x_eights, DSP_UNSEEN const uint32_t *x_last, DSP_UNSEEN const uint32_t *w_last,
    DSP_UNSEEN int32_t zero_point)
{
    DSP_GROUPS(DSP_SCALE_TWICE);
}
#endif

#else

/* The sum of two products of int16, modulo 2^32: |product| <= 2^30. */
KQGEN_CODE static uint32_t two_products(uint32_t a, uint32_t b)
{
    const int32_t low = (int16_t)(a & 0xFFFFu) * (int16_t)(b & 0xFFFFu);
    const int32_t high = (int16_t)(a >> 16) * (int16_t)(b >> 16);
    return (uint32_t)low + (uint32_t)high;
}

/* floor((acc * multiplier + 2^31) / 2^32) from halves; multiplier 0..2^31-1. |high * any half| <= 2^15 * 65535 < 2^31. */
KQGEN_CODE static int32_t multiply_high(uint32_t acc, uint32_t multiplier)
{
    const int32_t high = kq_shift_down(kq_signed(acc), 16);
    const uint32_t low = acc & 0xFFFFu;
    const uint32_t m_high = multiplier >> 16;
    const uint32_t m_low = multiplier & 0xFFFFu;
    const uint32_t across = (uint32_t)high * m_low;
    const uint32_t along = low * m_high;
    const uint32_t carry = ((low * m_low) >> 16) + (across & 0xFFFFu) + (along & 0xFFFFu) + 0x8000u;
    return kq_signed((uint32_t)high * m_high + (uint32_t)kq_shift_down(kq_signed(across), 16) + (along >> 16) + (carry >> 16));
}

/* As above. */
KQGEN_CODE static KQ_NOINLINE void dsp_groups(
    const uint32_t *x, const uint32_t *weights, void *to0, int8_t *to1, const uint32_t *x_eights, const uint32_t *x_last,
    const uint32_t *w_last, int32_t zero_point)
{
    const uint32_t *w_end = w_last + 1;
    int8_t *to = to0;
    (void)x_eights;
    do {
        uint32_t acc[8];
        const uint32_t *from = x;
        uint32_t i;
        for (i = 0; i < 8u; ++i) {
            acc[i] = weights[i >> 1];
        }
        weights += 4;
        while (from != x_last + 1) {
            for (i = 0; i < 8u; ++i) {
                acc[i] += two_products(weights[i >> 1], from[i & 1u]);
            }
            from += 2;
            weights += 4;
        }
        for (i = 0; i < 8u; ++i) {
            if (to1 == NULL) {
                ((int32_t *)to0)[i] = kq_signed(acc[i]);
            } else {
                const int32_t value = kq_clamped(zero_point + multiply_high(acc[i], weights[i >> 1]), -128, 127);
                ((i & 1u) != 0 ? to1 : to)[i >> 1] = (int8_t)value;
            }
        }
        if (to1 == NULL) {
            return;
        }
        weights += 4;
        to += 4;
        to1 += 4;
    } while (weights != w_end);
}

#if KQ_WITH_TFLITE
/* As dsp_groups by SPEC 3.5, rounding twice: four shifts less 31 follow the multipliers. */
KQGEN_CODE static KQ_NOINLINE void dsp_groups_twice(
    const uint32_t *x, const uint32_t *weights, void *to0, int8_t *to1, const uint32_t *x_eights, const uint32_t *x_last,
    const uint32_t *w_last, int32_t zero_point)
{
    const uint32_t *last = weights + 2u * (uint32_t)(x_last + 1 - x) + 11;
    int8_t *to = to0;
    while (last <= w_last) {
        uint32_t acc[8];
        uint32_t i;
        dsp_groups(x, weights, acc, NULL, x_eights, x_last, weights, 0);
        for (i = 0; i < 8u; ++i) {
            const uint32_t *rule = last - 7 + (i >> 1);
            const int32_t scaled = kq_divided_by_power(kq_product_q31(kq_signed(acc[i]), kq_signed(rule[0]), 0x4000u), rule[4]);
            ((i & 1u) != 0 ? to1 : to)[i >> 1] = (int8_t)kq_clamped(zero_point + scaled, -128, 127);
        }
        to += 4;
        to1 += 4;
        weights = last + 1;
        last = weights + 2u * (uint32_t)(x_last + 1 - x) + 11;
    }
}
#endif

#endif

#endif
