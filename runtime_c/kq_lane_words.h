/* What two output channels in one word (SPEC 6.2) are fed: windows as words, kernels packed in pairs.
 *
 * The Thumb code is as that of kq_lanes.h: instructions of ARMv6-M alone, r7 saved by itself, counts in cycles of a Cortex-M0+.
 */
#ifndef KQ_LANE_WORDS_H
#define KQ_LANE_WORDS_H

#include "kq_lanes.h"
#include "kq_types.h"

#if defined(__GNUC__) && defined(__thumb__) && !defined(__ARM_FEATURE_DSP)

/* Writes `rows` rows of `count` bytes, at least 1 of each, as words: `row_step` bytes between rows where they are read, `gap_bytes` behind
 * each where they go. 17 cycles for four values, about 25 a row. Returns the end of what it wrote.
 */
static KQ_INLINE uint32_t *kq_widen(
    uint32_t *to, const int8_t *from, uint32_t count, uint32_t rows, uint32_t row_step, uint32_t gap_bytes)
{
    const uint32_t sizes[4] = {count, rows, row_step - count, gap_bytes};
    register uint32_t *word __asm__("r0") = to;
    register const int8_t *byte __asm__("r1") = from;
    register const uint32_t *size __asm__("r2") = sizes;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "ldm r2!, {r3-r6}\n"
        "mov r8, r3\n mov r9, r4\n mov r10, r5\n mov r12, r6\n"
        "1:\n"
        "mov r2, r8\n"
        "lsrs r2, r2, #2\n"
        "beq 3f\n"
        "lsls r2, r2, #2\n"
        "adds r1, r1, r2\n"
        "rsbs r2, r2, #0\n"
        "adds r7, r1, #1\n"
        "2:\n"
        "ldrsb r3, [r1, r2]\n ldrsb r4, [r7, r2]\n"
        "adds r2, #2\n"
        "ldrsb r5, [r1, r2]\n ldrsb r6, [r7, r2]\n"
        "adds r2, #2\n"
        "stm r0!, {r3-r6}\n"
        "bne 2b\n"
        "3:\n"
        "mov r3, r8\n"
        "movs r2, #3\n"
        "ands r2, r3\n"
        "beq 5f\n"
        "adds r1, r1, r2\n"
        "rsbs r2, r2, #0\n"
        "4:\n"
        "ldrsb r3, [r1, r2]\n"
        "stm r0!, {r3}\n"
        "adds r2, #1\n"
        "bne 4b\n"
        "5:\n"
        "add r1, r10\n"
        "add r0, r12\n"
        "mov r3, r9\n"
        "subs r3, #1\n"
        "mov r9, r3\n"
        "bne 1b\n"
        "pop {r7}\n"
        : "+r"(word), "+r"(byte), "+r"(size)
        :
        : "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r12", "cc", "memory");
    return word;
}

/* Writes `rows` rows of three positions by channel: channel i of a row's three goes to three words, `apart_bytes` before those of channel
 * i + 1, a row three words behind the one before. 14 cycles for three values, about 20 a row.
 */
static KQ_INLINE void kq_widen_threes(
    uint32_t *to, uint32_t apart_bytes, const int8_t *from, uint32_t c_in, uint32_t rows, uint32_t row_step)
{
    const uint32_t sizes[4] = {apart_bytes - 12u, c_in, rows, row_step};
    register uint32_t *word __asm__("r0") = to;
    register const int8_t *byte __asm__("r1") = from;
    register const uint32_t *size __asm__("r2") = sizes;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "ldm r2!, {r3-r6}\n"
        "mov r12, r3\n mov r8, r4\n mov r9, r5\n mov r10, r6\n"
        "mov r11, r0\n"
        "adds r4, r1, r4\n"
        "1:\n"
        "mov r7, r8\n"
        "adds r5, r4, r7\n adds r6, r5, r7\n"
        "rsbs r7, r7, #0\n"
        "2:\n"
        "ldrsb r1, [r4, r7]\n ldrsb r2, [r5, r7]\n ldrsb r3, [r6, r7]\n"
        "stm r0!, {r1-r3}\n"
        "add r0, r12\n"
        "adds r7, #1\n"
        "bne 2b\n"
        "movs r0, #12\n"
        "add r0, r11\n"
        "mov r11, r0\n"
        "add r4, r10\n"
        "mov r3, r9\n"
        "subs r3, #1\n"
        "mov r9, r3\n"
        "bne 1b\n"
        "pop {r7}\n"
        : "+r"(word), "+r"(byte), "+r"(size)
        :
        : "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}

/* Packs two kernels of n values, each times its scale, into every fourth word. 13 cycles a word. */
static KQ_INLINE void kq_lane_pack(
    uint32_t *to, const int8_t *values0, uint32_t scale0, const int8_t *values1, uint32_t scale1, uint32_t n)
{
    register uint32_t *word __asm__("r0") = to;
    register const int8_t *end0 __asm__("r1") = values0 + n;
    register uint32_t times0 __asm__("r2") = scale0;
    register const int8_t *end1 __asm__("r3") = values1 + n;
    register uint32_t times1 __asm__("r4") = scale1;
    register uint32_t left __asm__("r5") = 0u - n;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "1:\n"
        "ldrsb r6, [r1, r5]\n ldrsb r7, [r3, r5]\n"
        "muls r6, r2, r6\n muls r7, r4, r7\n"
        "adds r6, r6, r7\n"
        "str r6, [r0]\n"
        "adds r0, #16\n"
        "adds r5, #1\n"
        "bne 1b\n"
        "pop {r7}\n"
        : "+r"(word), "+r"(left)
        : "r"(end0), "r"(times0), "r"(end1), "r"(times1)
        : "r6", "cc", "memory");
}

#else

/* Writes `rows` rows of `count` bytes, at least 1 of each, as words: `row_step` bytes between rows where they are read, `gap_bytes` behind
 * each where they go. Returns the end of what it wrote.
 */
KQGEN_CODE static inline uint32_t *kq_widen(
    uint32_t *to, const int8_t *from, uint32_t count, uint32_t rows, uint32_t row_step, uint32_t gap_bytes)
{
    for (; rows != 0; --rows) {
        uint32_t i;
        for (i = 0; i < count; ++i) {
            to[i] = (uint32_t)from[i];
        }
        to += count + (gap_bytes >> 2);
        from += row_step;
    }
    return to;
}

/* Writes `rows` rows of three positions by channel: channel i of a row's three goes to three words, `apart_bytes` before those of channel
 * i + 1, a row three words behind the one before.
 */
KQGEN_CODE static inline void kq_widen_threes(
    uint32_t *to, uint32_t apart_bytes, const int8_t *from, uint32_t c_in, uint32_t rows, uint32_t row_step)
{
    for (; rows != 0; --rows) {
        uint32_t *word = to;
        uint32_t i;
        for (i = 0; i < c_in; ++i) {
            word[0] = (uint32_t)from[i];
            word[1] = (uint32_t)from[i + c_in];
            word[2] = (uint32_t)from[i + 2u * c_in];
            word += apart_bytes >> 2;
        }
        to += 3;
        from += row_step;
    }
}

/* Packs two kernels of n values, each times its scale, into every fourth word. */
KQGEN_CODE static inline void kq_lane_pack(
    uint32_t *to, const int8_t *values0, uint32_t scale0, const int8_t *values1, uint32_t scale1, uint32_t n)
{
    uint32_t t;
    for (t = 0; t < n; ++t) {
        *to = (uint32_t)values0[t] * scale0 + (uint32_t)values1[t] * scale1;
        to += KQ_LANE_WORDS;
    }
}

#endif

#endif
