/* Two output channels in one word (SPEC 6.2): one 32-bit multiply serves both.
 *
 * A weight of channels 2j and 2j + 1 is packed as w0 + w1 * 2^16 mod 2^32, an input value is a whole word. Over a group of taps whose
 * absolute weights sum to at most 255 in each channel the sum of the products is
 *     S = s0 + s1 * 2^16 mod 2^32, -32640 <= s0, s1 <= 32640,
 * so s1 = floor(int32(S) / 2^16) + bit 15 of S. The sum of all S gives the even channels once the sum of all s1 is known:
 *     sum s0 = sum S - 2^16 * sum s1 mod 2^32.
 * Eight channels, four words of weights, share each input value they load.
 */
#ifndef KQ_LANES_H
#define KQ_LANES_H

#include "kq_fixed.h"
#include "kq_types.h"

#define KQ_LANE_SUM 255u  /* absolute weights of a group, at most */
#define KQ_LANE_WORDS 4u  /* words of packed weights a tap has, and sums a group leaves behind its taps */
#define KQ_LANE_CHANNELS 8u
#define KQ_LANE_TABLE 32u /* words of the table of eight channels */

/* How the taps of a window are laid out: groups of `span` words, the sums of a group behind each. */
typedef struct {
    uint32_t groups;
    uint32_t span;    /* words of a group's taps: `taps`, or one more so that it is even; 9 stays 9 */
    uint32_t taps;    /* of a group; the last group may have fewer */
    uint32_t *stream; /* [groups][span + 4]: the window of one pixel, and the sums of eight channels */
    uint32_t *weights; /* [octets][groups][span][4] */
    uint32_t *tables;  /* [octets][32]: where the totals of four pairs start (4 words S, 4 words s1), then four times
                        * {total S, total s1, multiplier, shift, multiplier, shift} */
} kq_lanes;

/* The signed number in the high half of a packed sum, modulo 2^32. */
KQGEN_CODE static inline uint32_t kq_lane_high(uint32_t sum)
{
    return (uint32_t)kq_shift_down(kq_signed(sum), 16) + ((sum >> 15) & 1u);
}

#if defined(__GNUC__) && defined(__thumb__) && !defined(__thumb2__)

/* The packed sums of all groups of nine taps with eight channels' weights, behind each group. 161 cycles a group on a Cortex-M0+, the
 * totals included: weights and input values come by LDM, a product destroys its weight, sums stay in r8-r11. The last tap adds the other
 * way round, into registers that STM can reach.
 */
static KQ_INLINE void kq_lane_sums_9(uint32_t *stream, const uint32_t *weights, const uint32_t *end)
{
    register uint32_t *x __asm__("r0") = stream;
    register const uint32_t *w __asm__("r1") = weights;
    register const uint32_t *last __asm__("r2") = end;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "mov r12, r2\n"
        "1:\n"
        "ldm r0!, {r6, r7}\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r6, r2\n mov r8, r2\n"
        "muls r3, r6, r3\n mov r9, r3\n"
        "muls r4, r6, r4\n mov r10, r4\n"
        "muls r5, r6, r5\n mov r11, r5\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r7, r2\n add r8, r2\n"
        "muls r3, r7, r3\n add r9, r3\n"
        "muls r4, r7, r4\n add r10, r4\n"
        "muls r5, r7, r5\n add r11, r5\n"
        ".rept 3\n"
        "ldm r0!, {r6, r7}\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r6, r2\n add r8, r2\n"
        "muls r3, r6, r3\n add r9, r3\n"
        "muls r4, r6, r4\n add r10, r4\n"
        "muls r5, r6, r5\n add r11, r5\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r7, r2\n add r8, r2\n"
        "muls r3, r7, r3\n add r9, r3\n"
        "muls r4, r7, r4\n add r10, r4\n"
        "muls r5, r7, r5\n add r11, r5\n"
        ".endr\n"
        "ldm r0!, {r6}\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r6, r2\n add r2, r8\n"
        "muls r3, r6, r3\n add r3, r9\n"
        "muls r4, r6, r4\n add r4, r10\n"
        "muls r5, r6, r5\n add r5, r11\n"
        "stm r0!, {r2-r5}\n"
        "cmp r0, r12\n"
        "bne 1b\n"
        "pop {r7}\n"
        : "+r"(x), "+r"(w), "+r"(last)
        :
        : "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}

/* As kq_lane_sums_9 for groups of `span` taps, an even number. */
static KQ_INLINE void kq_lane_sums(uint32_t *stream, const uint32_t *weights, const uint32_t *end, uint32_t span)
{
    register uint32_t *x __asm__("r0") = stream;
    register const uint32_t *w __asm__("r1") = weights;
    register const uint32_t *last __asm__("r2") = end;
    register uint32_t span_bytes __asm__("r3") = 4u * span;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r2, r3, r7}\n"
        "1:\n"
        "ldr r7, [sp, #4]\n"
        "adds r7, r0, r7\n"
        "mov r12, r7\n"
        "movs r7, #0\n"
        "mov r8, r7\n mov r9, r7\n mov r10, r7\n mov r11, r7\n"
        "2:\n"
        "ldm r0!, {r6, r7}\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r6, r2\n add r8, r2\n"
        "muls r3, r6, r3\n add r9, r3\n"
        "muls r4, r6, r4\n add r10, r4\n"
        "muls r5, r6, r5\n add r11, r5\n"
        "ldm r1!, {r2-r5}\n"
        "muls r2, r7, r2\n add r8, r2\n"
        "muls r3, r7, r3\n add r9, r3\n"
        "muls r4, r7, r4\n add r10, r4\n"
        "muls r5, r7, r5\n add r11, r5\n"
        "cmp r0, r12\n"
        "bne 2b\n"
        "mov r2, r8\n mov r3, r9\n mov r4, r10\n mov r5, r11\n"
        "stm r0!, {r2-r5}\n"
        "ldr r2, [sp]\n"
        "cmp r0, r2\n"
        "bne 1b\n"
        "pop {r2, r3, r7}\n"
        : "+r"(x), "+r"(w), "+r"(last), "+r"(span_bytes)
        :
        : "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}

/* Adds up the sums behind all groups into a table; `sums` are the first group's. ASRS leaves bit 15 in the carry, which ADCS adds. */
static KQ_INLINE void kq_lane_totals(const uint32_t *sums, const uint32_t *end, uint32_t span, uint32_t *table)
{
    register const uint32_t *from __asm__("r0") = sums;
    register const uint32_t *last __asm__("r1") = end;
    register uint32_t step __asm__("r2") = 4u * span;
    register uint32_t *to __asm__("r3") = table;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r3, r7}\n"
        "mov r12, r2\n"
        "ldm r3!, {r4-r7}\n"
        "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n"
        "ldm r3!, {r4-r7}\n"
        "adds r1, r1, r2\n"
        "1:\n"
        "ldm r0!, {r2, r3}\n"
        "add r8, r2\n asrs r2, r2, #16\n adcs r4, r2\n"
        "add r9, r3\n asrs r3, r3, #16\n adcs r5, r3\n"
        "ldm r0!, {r2, r3}\n"
        "add r10, r2\n asrs r2, r2, #16\n adcs r6, r2\n"
        "add r11, r3\n asrs r3, r3, #16\n adcs r7, r3\n"
        "add r0, r12\n"
        "cmp r0, r1\n"
        "bne 1b\n"
        "ldr r3, [sp]\n"
        "mov r2, r8\n str r2, [r3, #32]\n str r4, [r3, #36]\n"
        "mov r2, r9\n str r2, [r3, #56]\n str r5, [r3, #60]\n"
        "mov r2, r10\n str r2, [r3, #80]\n str r6, [r3, #84]\n"
        "mov r2, r11\n str r2, [r3, #104]\n str r7, [r3, #108]\n"
        "pop {r3, r7}\n"
        : "+r"(from), "+r"(last), "+r"(step), "+r"(to)
        :
        : "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "cc", "memory");
}

#else

/* The packed sums of all groups of `span` taps with eight channels' weights, behind each group. */
static KQ_INLINE void kq_lane_sums(uint32_t *stream, const uint32_t *weights, const uint32_t *end, uint32_t span)
{
    while (stream != end) {
        const uint32_t *sums_at = stream + span;
        uint32_t sum0 = 0;
        uint32_t sum1 = 0;
        uint32_t sum2 = 0;
        uint32_t sum3 = 0;
        while (stream != sums_at) {
            const uint32_t x = *stream;
            sum0 += weights[0] * x;
            sum1 += weights[1] * x;
            sum2 += weights[2] * x;
            sum3 += weights[3] * x;
            weights += KQ_LANE_WORDS;
            ++stream;
        }
        stream[0] = sum0;
        stream[1] = sum1;
        stream[2] = sum2;
        stream[3] = sum3;
        stream += KQ_LANE_WORDS;
    }
}

/* As kq_lane_sums for groups of nine taps. */
static KQ_INLINE void kq_lane_sums_9(uint32_t *stream, const uint32_t *weights, const uint32_t *end)
{
    kq_lane_sums(stream, weights, end, 9u);
}

/* Adds up the sums behind all groups into a table; `sums` are the first group's. */
static KQ_INLINE void kq_lane_totals(const uint32_t *sums, const uint32_t *end, uint32_t span, uint32_t *table)
{
    uint32_t pair;
    for (pair = 0; pair < KQ_LANE_WORDS; ++pair) {
        const uint32_t *from = sums + pair;
        uint32_t total = table[pair];
        uint32_t high = table[KQ_LANE_WORDS + pair];
        for (; from < end; from += span + KQ_LANE_WORDS) {
            total += *from;
            high += kq_lane_high(*from);
        }
        table[8u + 6u * pair] = total;
        table[9u + 6u * pair] = high;
    }
}

#endif

#endif
