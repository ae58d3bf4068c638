/* Inner products of words that hold two int16 each, a group of streams against another: what all Winograd forms spend their time on.
 *
 * A group's words are interleaved: [position][word][stream]. Sums are modulo 2^32.
 */
#ifndef KQ_PRODUCTS_H
#define KQ_PRODUCTS_H

#include "kq_fixed.h"
#include "kq_types.h"

#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#endif

#if defined(__GNUC__) && defined(__thumb__) && !defined(__thumb2__)
#define KQ_KERNEL_GROUP 2u /* eight low registers: two streams against two */
#else
#define KQ_KERNEL_GROUP 4u /* four against two */
#endif
#define KQ_SUMS (2u * KQ_KERNEL_GROUP)

/* Between two steps that a compiler would interleave, holding the values of both at once; emits nothing. */
#if defined(__GNUC__)
#define KQ_ONE_THEN_OTHER __asm__ volatile("" : : : "memory")
#else
#define KQ_ONE_THEN_OTHER ((void)0)
#endif

/* floor(acc * multiplier / 2^16) + plus for acc read as signed, multiplier 0..32767 (SPEC 3.3); the result fits int32. */
KQGEN_CODE static inline int32_t kq_times_high(uint32_t acc, uint32_t multiplier, uint32_t plus)
{
#if defined(__ARM_FEATURE_DSP)
    return __smlawb((int32_t)acc, (int32_t)multiplier, (int32_t)plus);
#else
    const uint32_t high = (uint32_t)kq_shift_down(kq_signed(acc), 16);
    return kq_signed(high * multiplier + (((acc & 0xFFFFu) * multiplier) >> 16) + plus);
#endif
}

/* x within -128..127. */
static KQ_INLINE int32_t kq_int8(int32_t x)
{
#if defined(__ARM_FEATURE_SAT)
    int32_t result;
    __asm__("ssat %0, #8, %1" : "=r"(result) : "r"(x));
    return result;
#else
    return kq_clamped(x, -128, 127);
#endif
}

/* Adds to `sum` the products of the low halves and of the high halves, modulo 2^32. */
static KQ_INLINE uint32_t kq_multiply_add(uint32_t a, uint32_t b, uint32_t sum)
{
#if defined(__ARM_FEATURE_DSP)
    return (uint32_t)__smlad((int16x2_t)a, (int16x2_t)b, (int32_t)sum);
#else
    const uint32_t low = (uint32_t)((int32_t)(int16_t)(a & 0xFFFFu) * (int16_t)(b & 0xFFFFu));
    return sum + low + (uint32_t)(kq_shift_down(kq_signed(a), 16) * kq_shift_down(kq_signed(b), 16));
#endif
}

#if defined(__GNUC__) && defined(__thumb2__) && defined(__OPTIMIZE__)
/* The products of one word of each stream: r0 fours, r1 twos, r2 to r9 the sums. */
#if defined(__ARM_FEATURE_DSP)
/* 6 loads and 8 SMLAD: 16 cycles on an M4 for 16 products. */
#define KQ_WORD_PRODUCTS \
    "ldr r11, [r1, #4]\n\tldr r10, [r1], #8\n\tldr r14, [r0, #4]\n\tldr r12, [r0], #8\n\t" \
    "smlad r5, r14, r11, r5\n\tsmlad r4, r14, r10, r4\n\tsmlad r3, r12, r11, r3\n\tsmlad r2, r12, r10, r2\n\t" \
    "ldr r14, [r0, #4]\n\tldr r12, [r0], #8\n\t" \
    "smlad r9, r14, r11, r9\n\tsmlad r8, r14, r10, r8\n\tsmlad r7, r12, r11, r7\n\tsmlad r6, r12, r10, r6\n\t"
#define KQ_TURN \
    "lsls r10, r10, #26\n\t" \
    "bmi.w 3f\n\t" \
    "2:\n\t" KQ_WORD_PRODUCTS KQ_WORD_PRODUCTS \
    "3:\n\t" KQ_WORD_PRODUCTS KQ_WORD_PRODUCTS
#else
/* Each half is loaded by itself, which costs less than to split a word: 12 loads and 16 MLA, 50 cycles on an M3 for 16 products. */
#define KQ_HALF_PRODUCTS(half) \
    "ldrsh r11, [r1, #4 + " half "]\n\tldrsh r10, [r1, #0 + " half "]\n\t" \
    "ldrsh r14, [r0, #4 + " half "]\n\tldrsh r12, [r0, #0 + " half "]\n\t" \
    "mla r5, r14, r11, r5\n\tmla r4, r14, r10, r4\n\tmla r3, r12, r11, r3\n\tmla r2, r12, r10, r2\n\t" \
    "ldrsh r14, [r0, #12 + " half "]\n\tldrsh r12, [r0, #8 + " half "]\n\t" \
    "mla r9, r14, r11, r9\n\tmla r8, r14, r10, r8\n\tmla r7, r12, r11, r7\n\tmla r6, r12, r10, r6\n\t"
#define KQ_WORD_PRODUCTS KQ_HALF_PRODUCTS("0") KQ_HALF_PRODUCTS("2") "adds r0, #16\n\tadds r1, #8\n\t"
#define KQ_TURN "2:\n\t" KQ_WORD_PRODUCTS KQ_WORD_PRODUCTS
#endif

/* For each position the eight sums of four streams (slow) with two (fast); words is even. With SMLAD four words a turn of the
 * inner loop; where words is no multiple of four, its first turn begins in the middle.
 */
KQGEN_CODE static KQ_NOINLINE void kq_products(
    const uint32_t *fours, const uint32_t *twos, uint32_t words, uint32_t positions, uint32_t *sums)
{
    register const uint32_t *r0 __asm__("r0") = fours;
    register const uint32_t *r1 __asm__("r1") = twos;
    register uint32_t *r2 __asm__("r2") = sums;
    register uint32_t r3 __asm__("r3") = 16u * words;
    register const uint32_t *r4 __asm__("r4") = fours + 4u * words * positions;
    register uint32_t r5 __asm__("r5") = 0;
    /* On the stack: sums, bytes of a position's fours, end of all fours, end of this position's, and r7, which may be the frame pointer. */
    __asm__ volatile(
        "push {r2, r3, r4, r5, r7}\n\t"
        ".p2align 2\n\t"
        "1:\n\t"
        "ldr r10, [sp, #4]\n\t"
        "movs r2, #0\n\tmovs r3, #0\n\tmovs r4, #0\n\tmovs r5, #0\n\tmovs r6, #0\n\tmovs r7, #0\n\tmov r8, r2\n\tmov r9, r2\n\t"
        "add r11, r0, r10\n\t"
        "str r11, [sp, #12]\n\t"
        KQ_TURN
        "ldr r10, [sp, #12]\n\t"
        "cmp r0, r10\n\t"
        "bne 2b\n\t"
        "ldr r10, [sp, #0]\n\t"
        "ldr r11, [sp, #8]\n\t"
        "stmia r10!, {r2, r3, r4, r5, r6, r7, r8, r9}\n\t"
        "str r10, [sp, #0]\n\t"
        "cmp r0, r11\n\t"
        "bne 1b\n\t"
        "add sp, sp, #16\n\t"
        "pop {r7}\n\t"
        : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3), "+r"(r4), "+r"(r5)
        :
        : "r6", "r8", "r9", "r10", "r11", "r12", "r14", "cc", "memory");
}
#elif KQ_KERNEL_GROUP == 4u
/* For each position the eight sums of four streams (slow) with two (fast). */
KQGEN_CODE static KQ_NOINLINE void kq_products(
    const uint32_t *fours, const uint32_t *twos, uint32_t words, uint32_t positions, uint32_t *sums)
{
    uint32_t position;
    for (position = 0; position < positions; ++position) {
        const uint32_t *const end = fours + 4u * words;
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
        while (fours != end) {
            const uint32_t b0 = twos[0];
            const uint32_t b1 = twos[1];
            uint32_t a0 = fours[0];
            uint32_t a1 = fours[1];
            s0 = kq_multiply_add(a0, b0, s0);
            s1 = kq_multiply_add(a0, b1, s1);
            s2 = kq_multiply_add(a1, b0, s2);
            s3 = kq_multiply_add(a1, b1, s3);
            a0 = fours[2];
            a1 = fours[3];
            s4 = kq_multiply_add(a0, b0, s4);
            s5 = kq_multiply_add(a0, b1, s5);
            s6 = kq_multiply_add(a1, b0, s6);
            s7 = kq_multiply_add(a1, b1, s7);
            fours += 4;
            twos += 2;
        }
        sums[0] = s0;
        sums[1] = s1;
        sums[2] = s2;
        sums[3] = s3;
        sums[4] = s4;
        sums[5] = s5;
        sums[6] = s6;
        sums[7] = s7;
        sums += 8;
    }
}
#elif defined(__GNUC__) && defined(__thumb__) && !defined(__thumb2__) && defined(__OPTIMIZE__)
/* The products of the low halves, then of the high ones, of one word of each stream: r0 and r1 the streams, r8 to r11 the sums. MULS
 * destroys an operand, so one of four is taken twice. 32 cycles for 8 products: 6 of loads, 10 to split, 8 MULS, 8 ADD.
 */
#define KQ_WORD_PRODUCTS \
    "ldmia r0!, {r2, r3}\n\tldmia r1!, {r4, r5}\n\t" \
    "sxth r6, r2\n\tsxth r7, r4\n\tmuls r6, r7\n\tadd r8, r6\n\t" \
    "sxth r6, r3\n\tmuls r7, r6\n\tadd r10, r7\n\t" \
    "sxth r7, r5\n\tmuls r6, r7\n\tadd r11, r6\n\t" \
    "sxth r6, r2\n\tmuls r6, r7\n\tadd r9, r6\n\t" \
    "asrs r2, r2, #16\n\tasrs r3, r3, #16\n\tasrs r4, r4, #16\n\tasrs r5, r5, #16\n\t" \
    "movs r6, r2\n\tmuls r6, r4\n\tadd r8, r6\n\t" \
    "muls r2, r5\n\tadd r9, r2\n\t" \
    "muls r4, r3\n\tadd r10, r4\n\t" \
    "muls r5, r3\n\tadd r11, r5\n\t"

/* For each position the four sums of two streams (slow) with two (fast); words is even. */
KQGEN_CODE static KQ_NOINLINE void kq_products(
    const uint32_t *kernels, const uint32_t *patches, uint32_t words, uint32_t positions, uint32_t *sums)
{
    register const uint32_t *r0 __asm__("r0") = kernels;
    register const uint32_t *r1 __asm__("r1") = patches;
    register uint32_t *r2 __asm__("r2") = sums;
    register uint32_t r3 __asm__("r3") = 8u * words;
    register const uint32_t *r4 __asm__("r4") = kernels + 2u * words * positions;
    /* On the stack: sums, bytes of a position's kernels, end of all kernels, and r7, which may be the frame pointer. r12: end of this
     * position's. */
    __asm__ volatile(
        ".syntax unified\n\t"
        "push {r2, r3, r4, r7}\n\t"
        "1:\n\t"
        "ldr r3, [sp, #4]\n\t"
        "adds r3, r0, r3\n\t"
        "mov r12, r3\n\t"
        "movs r2, #0\n\tmov r8, r2\n\tmov r9, r2\n\tmov r10, r2\n\tmov r11, r2\n\t"
        "2:\n\t" KQ_WORD_PRODUCTS KQ_WORD_PRODUCTS
        "cmp r0, r12\n\t"
        "bne 2b\n\t"
        "ldr r2, [sp, #0]\n\t"
        "mov r3, r8\n\tmov r4, r9\n\tmov r5, r10\n\tmov r6, r11\n\t"
        "stmia r2!, {r3, r4, r5, r6}\n\t"
        "str r2, [sp, #0]\n\t"
        "ldr r3, [sp, #8]\n\t"
        "cmp r0, r3\n\t"
        "bne 1b\n\t"
        "add sp, #12\n\t"
        "pop {r7}\n\t"
        : "+l"(r0), "+l"(r1), "+l"(r2), "+l"(r3), "+l"(r4)
        :
        : "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}
#else
/* For each position the four sums of two streams (slow) with two (fast). */
KQGEN_CODE static KQ_NOINLINE void kq_products(
    const uint32_t *kernels, const uint32_t *patches, uint32_t words, uint32_t positions, uint32_t *sums)
{
    uint32_t position;
    for (position = 0; position < positions; ++position) {
        const uint32_t *const end = kernels + 2u * words;
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        while (kernels != end) {
            s0 = kq_multiply_add(kernels[0], patches[0], s0);
            s1 = kq_multiply_add(kernels[0], patches[1], s1);
            s2 = kq_multiply_add(kernels[1], patches[0], s2);
            s3 = kq_multiply_add(kernels[1], patches[1], s3);
            kernels += 2;
            patches += 2;
        }
        sums[0] = s0;
        sums[1] = s1;
        sums[2] = s2;
        sums[3] = s3;
        sums += 4;
    }
}
#endif

#endif
