/* Form `reuse`: output channels add up the entries that their lists name. */
#ifndef KQ_REUSE_GATHER_H
#define KQ_REUSE_GATHER_H

#include "kq_reuse.h"

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

#if KQ_REUSE_SIXES
/* Adds entries to the accumulators of KQ_REUSE_GROUP output channels, six to each, which `list` names one after the other; a 0 ends it.
 *
 * 14 cycles an entry on a Cortex-M4, as above, and 19.5 a channel: two channels a pass, nothing to jump to, and a channel's accumulators are
 * loaded in a row with its first entry.
 */
KQGEN_CODE static KQ_NOINLINE void kq_reuse_gather_sixes(uint32_t *accumulators, const uint32_t *list)
{
    register const uint32_t *at __asm__("r5") = list;
    register uint32_t *sums __asm__("r4") = accumulators;
    __asm__ volatile(
        ".syntax unified\n"
        "add.w r4, r4, #32\n"
        "push {r4, r7}\n"
        "ldr.w r0, [r5], #4\n"
        ".p2align 2\n"
        "1:\n"
        "ldr r6, [r4, #-32]\n"
        "ldr r7, [r4, #-28]\n"
        "ldr r8, [r4, #-24]\n"
        "ldr r9, [r4, #-20]\n"
        "ldr r10, [r4, #-16]\n"
        "ldr r11, [r4, #-12]\n"
        "ldr r12, [r4, #-8]\n"
        "ldr lr, [r4, #-4]\n"
        "ldr.w r4, [r5], #4\n"
        "ldr r1, [r0, #4]\n"
        "ldr r2, [r0, #8]\n"
        "ldr r3, [r0, #12]\n"
        "ldr r0, [r0, #0]\n"
        "add r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        ".rept 4\n"
        "ldr r0, [r4, #0]\n"
        "ldr r1, [r4, #4]\n"
        "ldr r2, [r4, #8]\n"
        "ldr r3, [r4, #12]\n"
        "ldr.w r4, [r5], #4\n"
        "add r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        ".endr\n"
        "ldr r0, [r4, #0]\n"
        "ldr r1, [r4, #4]\n"
        "ldr r2, [r4, #8]\n"
        "ldr r3, [r4, #12]\n"
        "ldr r4, [sp]\n"
        "add r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        "str r7, [r4, #-28]\n"
        "str r8, [r4, #-24]\n"
        "str r9, [r4, #-20]\n"
        "str r10, [r4, #-16]\n"
        "str r11, [r4, #-12]\n"
        "str r12, [r4, #-8]\n"
        "str lr, [r4, #-4]\n"
        "str r6, [r4, #-32]\n"
        "ldr.w r0, [r5], #4\n"
        "ldr.w r6, [r4, #0]\n"
        "ldr.w r7, [r4, #4]\n"
        "ldr.w r8, [r4, #8]\n"
        "ldr.w r9, [r4, #12]\n"
        "ldr.w r10, [r4, #16]\n"
        "ldr.w r11, [r4, #20]\n"
        "ldr.w r12, [r4, #24]\n"
        "ldr.w lr, [r4, #28]\n"
        "ldr.w r4, [r5], #4\n"
        "ldr r1, [r0, #4]\n"
        "ldr r2, [r0, #8]\n"
        "ldr r3, [r0, #12]\n"
        "ldr r0, [r0, #0]\n"
        "add r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        ".rept 4\n"
        "ldr r0, [r4, #0]\n"
        "ldr r1, [r4, #4]\n"
        "ldr r2, [r4, #8]\n"
        "ldr r3, [r4, #12]\n"
        "ldr.w r4, [r5], #4\n"
        "add r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        ".endr\n"
        "ldr r0, [r4, #0]\n"
        "ldr r1, [r4, #4]\n"
        "ldr r2, [r4, #8]\n"
        "ldr r3, [r4, #12]\n"
        "ldr r4, [sp]\n"
        "add r6, r0\n"
        "add.w r10, r10, r0, asr #16\n"
        "add r7, r1\n"
        "add.w r11, r11, r1, asr #16\n"
        "add r8, r2\n"
        "add.w r12, r12, r2, asr #16\n"
        "add r9, r3\n"
        "add.w lr, lr, r3, asr #16\n"
        "str.w r7, [r4, #4]\n"
        "str.w r8, [r4, #8]\n"
        "str.w r9, [r4, #12]\n"
        "str.w r10, [r4, #16]\n"
        "str.w r11, [r4, #20]\n"
        "str.w r12, [r4, #24]\n"
        "str.w lr, [r4, #28]\n"
        "str.w r6, [r4], #64\n"
        "str r4, [sp]\n"
        "ldr.w r0, [r5], #4\n"
        "cmp r0, #0\n"
        "bne.w 1b\n"
        "pop {r4, r7}\n"
        : "+r"(at), "+r"(sums)
        :
        : "r0", "r1", "r2", "r3", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
}
#endif

#endif
