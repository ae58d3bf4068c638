/* Inner loops of form `reuse` (SPEC 6.3): tables of dot products, and lists of the entries that output channels add up.
 *
 * Eight output pixels are four pairs. A pair's dot products s0 and s1 with a codeword make the word
 *     S = 2^15 + s0 + s1 * 2^16 mod 2^32, -32640 <= s0, s1 <= 32640,
 * so s1 = floor(int32(S) / 2^16); minus the codeword has the word 2^16 - S. An entry of a table is four such words. An output channel has
 * eight accumulators, modulo 2^32: the sums of S of the four pairs, then the sums of s1; sum s0 = sum S - 2^16 * sum s1 - 2^15 * entries.
 */
#ifndef KQ_REUSE_H
#define KQ_REUSE_H

#include "kq_fixed.h"
#include "kq_types.h"

#define KQ_REUSE_PIXELS 8u
#define KQ_REUSE_PAIRS 4u
#define KQ_REUSE_ENTRY 4u   /* words of an entry */
#define KQ_REUSE_STRIP 8u   /* input channels added up at a time, at most */
#define KQ_REUSE_GROUP 32u  /* output channels that have lists at a time */
#define KQ_REUSE_COLUMNS 10u /* that eight 3x3 windows side by side cover */

/* What a codeword of 3x3 values w[row][column] becomes: {w00, w10}, {w01, w11}, {w02, w12}, {w20, w21}, {w22, 0}, two int16 in a word, the
 * first in the low half. Window words in the same order: word 2j is {x[0][j], x[1][j]}, word 2j + 1 is {x[2][j], x[2][j+1]}, columns
 * j = 0..9, the last high half is 0.
 */
#define KQ_REUSE_RECORD 5u

/* A list is, for each output channel: its first entry, a word for the loop, its other entries. Entries are offsets in bytes from the tables;
 * where the loop is written in assembly they are addresses. On ARMv6-M the word for the loop comes last: a 0.
 */
#define KQ_REUSE_EXTRA 1u /* words of a channel's list besides its entries */
#define KQ_REUSE_CLOSE 2u /* words that close the lists */

/* Whether 3x3 windows side by side are built by kq_reuse_slide: on cores without DSP instructions packed pairs are faster. */
#if defined(__ARM_FEATURE_DSP) || !defined(__thumb__)
#define KQ_REUSE_SLIDES 1
#else
#define KQ_REUSE_SLIDES 0
#endif

#if defined(__GNUC__) && defined(__thumb__)
#define KQ_REUSE_ADDRESSES 1
#else
#define KQ_REUSE_ADDRESSES 0
#endif

/* The value itself, of which the compiler knows nothing: it would take apart what was put together. */
static KQ_INLINE uint32_t kq_opaque(uint32_t value)
{
#if KQ_REUSE_ADDRESSES
    __asm__("" : "+r"(value));
#endif
    return value;
}

/* What a list holds for the word at `to`. */
KQGEN_CODE static inline uint32_t kq_reuse_place(const uint32_t *from, const uint32_t *to)
{
#if KQ_REUSE_ADDRESSES
    (void)from;
    return (uint32_t)(uintptr_t)to;
#else
    return (uint32_t)((size_t)(to - from) * sizeof(uint32_t));
#endif
}

/* Where entry i of an output channel stands in its list. */
KQGEN_CODE static inline uint32_t kq_reuse_slot(uint32_t i)
{
#if KQ_REUSE_ADDRESSES && !defined(__thumb2__)
    return i;
#else
    return i == 0 ? 0 : i + 1u;
#endif
}

/* Adds the entries that `list` names to the accumulators of `channels` output channels, 1..32, each of which has `entries`, 1..8.
 * `fresh`: the entries or channels are not as many as in the call before, or the lists were overwritten.
 *
 * 14 cycles an entry on a Cortex-M4: five loads in a row (6), eight sums; 24 a channel. The list holds where to jump into eight unrolled
 * steps, and where to leave. 22 an entry on a Cortex-M0+, of which twelve split and add four words; 50 a channel.
 */
KQGEN_CODE static KQ_NOINLINE void kq_reuse_gather(
    uint32_t *accumulators, const uint32_t *tables, uint32_t *list, uint32_t channels, uint32_t entries, int fresh)
{
#if KQ_REUSE_ADDRESSES && !defined(__thumb2__)
    register uint32_t *at __asm__("r5") = list;
    register uint32_t *sums __asm__("r0") = accumulators;
    register uint32_t *end __asm__("r1") = accumulators + 8u * channels;
    (void)tables;
    if (fresh) {
        uint32_t i;
        for (i = 0; i < channels; ++i) {
            list += entries;
            *list = 0;
            ++list;
        }
    }
    __asm__ volatile(
        ".syntax unified\n"
        "push {r6, r7}\n"
        "push {r0, r1}\n"
        "1:\n"
        "ldm r0!, {r6, r7}\n"
        "ldm r0!, {r1, r2, r3}\n"
        "mov r8, r1\n"
        "mov r9, r2\n"
        "mov r10, r3\n"
        "ldm r0!, {r1, r2, r3}\n"
        "mov r11, r1\n"
        "mov r12, r2\n"
        "mov lr, r3\n"
        "ldm r5!, {r4}\n"
        "2:\n"
        "ldm r4!, {r0, r1, r2, r3}\n"
        "add r6, r0\n"
        "asrs r0, r0, #16\n"
        "add r10, r0\n"
        "add r7, r1\n"
        "asrs r1, r1, #16\n"
        "add r11, r1\n"
        "add r8, r2\n"
        "asrs r2, r2, #16\n"
        "add r12, r2\n"
        "add r9, r3\n"
        "asrs r3, r3, #16\n"
        "add lr, r3\n"
        "ldm r5!, {r4}\n"
        "cmp r4, #0\n"
        "bne 2b\n"
        "ldr r0, [sp]\n"
        "ldr r4, [sp, #4]\n"
        "stm r0!, {r6, r7}\n"
        "mov r1, r8\n"
        "mov r2, r9\n"
        "mov r3, r10\n"
        "stm r0!, {r1, r2, r3}\n"
        "mov r1, r11\n"
        "mov r2, r12\n"
        "mov r3, lr\n"
        "stm r0!, {r1, r2, r3}\n"
        "str r0, [sp]\n"
        "cmp r0, r4\n"
        "bne 1b\n"
        "pop {r0, r1}\n"
        "pop {r6, r7}\n"
        : "+r"(at), "+r"(sums), "+r"(end)
        :
        : "r2", "r3", "r4", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#elif KQ_REUSE_ADDRESSES
    register uint32_t *at __asm__("r5") = list;
    register uint32_t *sums __asm__("r4") = accumulators;
    register uint32_t count __asm__("r0") = fresh ? channels : 0;
    register uint32_t steps __asm__("r1") = entries;
    (void)tables;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4, r7}\n"
        "ldr r4, [r5], #4\n"
        "cmp r0, #0\n"
        "beq.n 5f\n"
        "adr.w r2, 3f\n"
        "adds r2, #1\n"
        "movs r3, #36\n"
        "mls r2, r3, r1, r2\n"
        "adds r1, #1\n"
        "lsls r1, r1, #2\n"
        "mov r3, r5\n"
        "1:\n"
        "str r2, [r3]\n"
        "add r3, r1\n"
        "subs r0, #1\n"
        "bne 1b\n"
        "adr.w r2, 4f\n"
        "adds r2, #1\n"
        "str r2, [r3]\n"
        "5:\n"
        "ldr r1, [sp]\n"
        "b.n 2f\n"
        ".p2align 2\n"
        ".rept 8\n"
        "ldr.n r0, [r4]\n"
        "ldr.n r1, [r4, #4]\n"
        "ldr.n r2, [r4, #8]\n"
        "ldr.n r3, [r4, #12]\n"
        "ldr.w r4, [r5], #4\n"
        "add.n r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add.n r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add.n r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add.n r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        ".endr\n"
        "3:\n"
        "ldr r0, [sp]\n"
        "add.w r1, r0, #32\n"
        "str r6, [r0]\n"
        "str r7, [r0, #4]\n"
        "str.w r8, [r0, #8]\n"
        "str.w r9, [r0, #12]\n"
        "str.w r10, [r0, #16]\n"
        "str.w r11, [r0, #20]\n"
        "str.w r12, [r0, #24]\n"
        "str.w lr, [r0, #28]\n"
        "str r1, [sp]\n"
        "2:\n"
        "ldr r6, [r1]\n"
        "ldr r7, [r1, #4]\n"
        "ldr.w r8, [r1, #8]\n"
        "ldr.w r9, [r1, #12]\n"
        "ldr.w r10, [r1, #16]\n"
        "ldr.w r11, [r1, #20]\n"
        "ldr.w r12, [r1, #24]\n"
        "ldr.w lr, [r1, #28]\n"
        "ldr.w pc, [r5], #4\n"
        ".p2align 2\n"
        "4:\n"
        "pop {r4, r7}\n"
        : "+r"(at), "+r"(sums), "+r"(count), "+r"(steps)
        :
        : "r2", "r3", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    (void)fresh;
    for (; channels != 0; --channels) {
        uint32_t i;
        for (i = 0; i < entries; ++i) {
            const uint32_t *entry = tables + (list[kq_reuse_slot(i)] >> 2);
            uint32_t pair;
            for (pair = 0; pair < KQ_REUSE_PAIRS; ++pair) {
                accumulators[pair] += entry[pair];
                accumulators[pair + 4u] += (uint32_t)kq_shift_down(kq_signed(entry[pair]), 16);
            }
        }
        list += entries + KQ_REUSE_EXTRA;
        accumulators += 8;
    }
#endif
}

/* The table of all codewords for eight 3x3 windows side by side: entry i of codeword i, and of minus it where `negative` is not NULL.
 * `records` and `window` as above.
 *
 * 95 cycles a codeword on a Cortex-M4, 40 of them SMLAD and SMLABT; the window lies on the stack meanwhile.
 */
KQGEN_CODE static KQ_NOINLINE void kq_reuse_slide(
    const uint32_t *records, uint32_t codewords, const uint32_t *window, uint32_t *positive, uint32_t *negative)
{
#if defined(__ARM_FEATURE_DSP)
    register const uint32_t *from __asm__("r0") = records;
    register const uint32_t *end __asm__("r1") = records + codewords * KQ_REUSE_RECORD;
    register const uint32_t *x __asm__("r2") = window;
    register uint32_t *plus __asm__("r3") = positive;
    register uint32_t *minus __asm__("r4") = negative == NULL ? positive : negative; /* positive entries are stored after negative ones */
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "sub sp, #88\n"
        "str r0, [sp, #80]\n"
        "str r1, [sp, #84]\n"
        "mov r0, r3\n"
        "mov r1, r4\n"
        "ldm r2!, {r3-r12}\n"
        "stm sp, {r3-r12}\n"
        "ldm r2!, {r3-r12}\n"
        "add r2, sp, #40\n"
        "stm r2, {r3-r12}\n"
        "ldr r8, [sp, #80]\n"
        ".p2align 2\n"
        "1:\n"
        "ldm r8!, {r9-r12, lr}\n"
        "str r8, [sp, #80]\n"
        "ldr r2, [sp, #0]\n"
        "ldr r6, [sp, #4]\n"
        "ldr r3, [sp, #8]\n"
        "ldr r7, [sp, #12]\n"
        "ldr r4, [sp, #16]\n"
        "ldr r8, [sp, #20]\n"
        "ldr r5, [sp, #24]\n"
        "smuad r2, r9, r2\n"
        "smlad r2, r10, r3, r2\n"
        "smlad r2, r11, r4, r2\n"
        "smlad r2, r12, r6, r2\n"
        "smlabt r2, lr, r7, r2\n"
        "smuad r3, r9, r3\n"
        "smlad r3, r10, r4, r3\n"
        "smlad r3, r11, r5, r3\n"
        "smlad r3, r12, r7, r3\n"
        "smlabt r3, lr, r8, r3\n"
        "add.w r2, r2, r3, lsl #16\n"
        "rsb.w r3, r2, #0x8000\n"
        "str r3, [r1], #4\n"
        "add.w r2, r2, #0x8000\n"
        "str r2, [r0], #4\n"
        "ldr r6, [sp, #28]\n"
        "ldr r2, [sp, #32]\n"
        "ldr r7, [sp, #36]\n"
        "ldr r3, [sp, #40]\n"
        "smuad r4, r9, r4\n"
        "smlad r4, r10, r5, r4\n"
        "smlad r4, r11, r2, r4\n"
        "smlad r4, r12, r8, r4\n"
        "smlabt r4, lr, r6, r4\n"
        "smuad r5, r9, r5\n"
        "smlad r5, r10, r2, r5\n"
        "smlad r5, r11, r3, r5\n"
        "smlad r5, r12, r6, r5\n"
        "smlabt r5, lr, r7, r5\n"
        "add.w r4, r4, r5, lsl #16\n"
        "rsb.w r5, r4, #0x8000\n"
        "str r5, [r1], #4\n"
        "add.w r4, r4, #0x8000\n"
        "str r4, [r0], #4\n"
        "ldr r8, [sp, #44]\n"
        "ldr r4, [sp, #48]\n"
        "ldr r6, [sp, #52]\n"
        "ldr r5, [sp, #56]\n"
        "smuad r2, r9, r2\n"
        "smlad r2, r10, r3, r2\n"
        "smlad r2, r11, r4, r2\n"
        "smlad r2, r12, r7, r2\n"
        "smlabt r2, lr, r8, r2\n"
        "smuad r3, r9, r3\n"
        "smlad r3, r10, r4, r3\n"
        "smlad r3, r11, r5, r3\n"
        "smlad r3, r12, r8, r3\n"
        "smlabt r3, lr, r6, r3\n"
        "add.w r2, r2, r3, lsl #16\n"
        "rsb.w r3, r2, #0x8000\n"
        "str r3, [r1], #4\n"
        "add.w r2, r2, #0x8000\n"
        "str r2, [r0], #4\n"
        "ldr r7, [sp, #60]\n"
        "ldr r2, [sp, #64]\n"
        "ldr r8, [sp, #68]\n"
        "ldr r3, [sp, #72]\n"
        "smuad r4, r9, r4\n"
        "smlad r4, r10, r5, r4\n"
        "smlad r4, r11, r2, r4\n"
        "smlad r4, r12, r6, r4\n"
        "smlabt r4, lr, r7, r4\n"
        "smuad r5, r9, r5\n"
        "smlad r5, r10, r2, r5\n"
        "smlad r5, r11, r3, r5\n"
        "smlad r5, r12, r7, r5\n"
        "smlabt r5, lr, r8, r5\n"
        "add.w r4, r4, r5, lsl #16\n"
        "rsb.w r5, r4, #0x8000\n"
        "str r5, [r1], #4\n"
        "add.w r4, r4, #0x8000\n"
        "str r4, [r0], #4\n"
        "ldr r8, [sp, #80]\n"
        "ldr r2, [sp, #84]\n"
        "cmp r8, r2\n"
        "bne.w 1b\n"
        "add sp, #88\n"
        "pop {r7}\n"
        : "+r"(from), "+r"(end), "+r"(x), "+r"(plus), "+r"(minus)
        :
        : "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    uint32_t code;
    for (code = 0; code < codewords; ++code) {
        uint32_t pair;
        for (pair = 0; pair < KQ_REUSE_PAIRS; ++pair) {
            uint32_t dots[2];
            uint32_t i;
            for (i = 0; i < 2u; ++i) {
                const uint32_t *x = window + 4u * pair + 2u * i;
                uint32_t dot = 0;
                uint32_t column;
                for (column = 0; column < 3u; ++column) {
                    dot += (uint32_t)((int32_t)(int16_t)(records[column] & 0xFFFFu) * (int16_t)(x[2u * column] & 0xFFFFu));
                    dot += (uint32_t)(kq_shift_down(kq_signed(records[column]), 16) * kq_shift_down(kq_signed(x[2u * column]), 16));
                }
                dot += (uint32_t)((int32_t)(int16_t)(records[3] & 0xFFFFu) * (int16_t)(x[1] & 0xFFFFu));
                dot += (uint32_t)(kq_shift_down(kq_signed(records[3]), 16) * kq_shift_down(kq_signed(x[1]), 16));
                dot += (uint32_t)((int32_t)(int16_t)(records[4] & 0xFFFFu) * kq_shift_down(kq_signed(x[3]), 16));
                dots[i] = dot;
            }
            positive[pair] = 0x8000u + dots[0] + (dots[1] << 16);
            if (negative != NULL) {
                negative[pair] = 0x10000u - positive[pair];
            }
        }
        records += KQ_REUSE_RECORD;
        positive += KQ_REUSE_ENTRY;
        negative = negative == NULL ? NULL : negative + KQ_REUSE_ENTRY;
    }
#endif
}

#endif
