/* Two output channels in one word (SPEC 6.2): one 32-bit multiply serves both.
 *
 * A weight of channels 2j and 2j + 1 is packed as w0 + w1 * 2^16 mod 2^32, an input value is a whole word. Over a group of taps whose
 * absolute weights sum to at most 255 in each channel the sum of the products is
 *     S = s0 + s1 * 2^16 mod 2^32, -32640 <= s0, s1 <= 32640,
 * so s1 = floor(int32(S) / 2^16) + bit 15 of S. The sum of all S gives the even channels once the sum of all s1 is known:
 *     sum s0 = sum S - 2^16 * sum s1 mod 2^32.
 * Eight channels, four words of weights, share each input value they load.
 *
 * The Thumb code takes instructions of ARMv6-M alone, one sum after another as they come: the M3 runs it too. It saves r7 itself, which
 * may be the frame pointer. Counts beside it are cycles of a Cortex-M0+.
 */
#ifndef KQ_LANES_H
#define KQ_LANES_H

#include "kq_fixed.h"
#include "kq_types.h"

#define KQ_LANE_SUM 255u /* absolute weights of a group, at most */
#define KQ_LANE_WORDS 4u /* words of packed weights a tap has, and sums a group leaves behind its taps */
#define KQ_LANE_CHANNELS 8u
#define KQ_LANE_TABLE 32u /* words of the table of eight channels */

/* A window and the channels it is convolved with, eight at a time. What moves on from octet to octet is left behind its last one. */
typedef struct {
    uint32_t *stream;        /* [groups][span + 4]: the window's taps, and room for four sums behind each group */
    const uint32_t *weights; /* [octets][groups][span][4]; moves on */
    const uint32_t *end;     /* of the stream */
    uint32_t span_bytes;     /* of a group's taps; 36, or a multiple of 8 */
    uint32_t *table;         /* [octets][32]: where the totals of four pairs start (4 words S, 4 words s1), then for each pair
                              * {total S, total s1, multiplier, shift, multiplier, shift}; moves on */
    int8_t *to;              /* where the first channel's result goes; moves on if `puts` */
    int32_t below;           /* lo - hi */
    int32_t hi;
    int32_t above_lo; /* zero_point - lo */
    uint32_t acc_shift;
    uint32_t octets; /* at least 1; counted down if `puts` */
    uint32_t puts;   /* 0: stop when the first octet's totals are in the table */
} kq_lane_job;
KQ_ASSERT_SIZE(kq_lane_job, 48u);

#if defined(__GNUC__) && defined(__thumb__) && !defined(__ARM_FEATURE_DSP)

/* One tap of eight channels, the input value in a register, into the sums in r8-r11: a product destroys its weight. 13 cycles. */
#define KQ_LANE_TAP(x) \
    "ldm r1!, {r2-r5}\n" \
    "muls r2, " x ", r2\n add r8, r2\n" \
    "muls r3, " x ", r3\n add r9, r3\n" \
    "muls r4, " x ", r4\n add r10, r4\n" \
    "muls r5, " x ", r5\n add r11, r5\n"

/* Two sums into their totals: ASRS leaves bit 15 in the carry, which ADCS adds. 9 cycles. */
#define KQ_LANE_TOTAL(s0, s1, high0, high1) \
    "ldm r0!, {r2, r3}\n" \
    "add " s0 ", r2\n asrs r2, r2, #16\n adcs " high0 ", r2\n" \
    "add " s1 ", r3\n asrs r3, r3, #16\n adcs " high1 ", r3\n"

/* Requantises r0 by the multiplier and shift at r4 (SPEC 3.2) and stores it: ASRS by the shift leaves the bit that rounds in the carry, the
 * clamp works on q - lo, then on q - hi. 20 cycles.
 */
#define KQ_LANE_PUT(place) \
    "ldm r4!, {r2, r3}\n" \
    "lsls r0, r0, r7\n asrs r1, r0, #16\n uxth r0, r0\n" \
    "muls r1, r2, r1\n muls r0, r2, r0\n" \
    "lsrs r0, r0, #16\n adds r0, r0, r1\n" \
    "asrs r0, r0, r3\n adcs r0, r5\n" \
    "asrs r1, r0, #31\n bics r0, r1\n" \
    "add r0, r8\n asrs r1, r0, #31\n ands r0, r1\n add r0, r9\n" \
    "strb r0, [r6, #" place "]\n"

/* KQ_LANE_PUT by SPEC 3.5, rounding twice; at r4 are the multiplier and how far the product is shifted down, at least 1. The product is
 * kq_scaled_q31's: ASRS by 15 leaves the bit that rounds in the carry, and so does ASRS by the shift of what is made smaller by one below 0.
 * 33 cycles; r12 is zero_point - lo.
 */
#define KQ_LANE_PUT_TWICE(place) \
    "ldm r4!, {r2, r3}\n" \
    "sxth r1, r0\n subs r0, r0, r1\n asrs r0, r0, #16\n" \
    "uxth r5, r2\n lsrs r2, r2, #16\n" \
    "movs r7, r5\n muls r7, r1, r7\n asrs r7, r7, #16\n" \
    "muls r5, r0, r5\n adds r5, r5, r7\n" \
    "muls r1, r2, r1\n adds r5, r5, r1\n" \
    "muls r0, r2, r0\n lsls r0, r0, #1\n asrs r5, r5, #15\n adcs r0, r5\n" \
    "asrs r1, r0, #31\n adds r0, r0, r1\n" \
    "mov r1, r12\n asrs r0, r0, r3\n adcs r0, r1\n" \
    "asrs r1, r0, #31\n bics r0, r1\n" \
    "add r0, r8\n asrs r1, r0, #31\n ands r0, r1\n add r0, r9\n" \
    "strb r0, [r6, #" place "]\n"

#define KQ_LANE_OCTETS(ready, put) \
    __asm__ volatile( \
        ".syntax unified\n" \
        "push {r7}\n" \
        "mov lr, r0\n" \
        "1:\n" \
        "mov r7, lr\n" \
        "ldm r7!, {r0-r3}\n" \
        "mov r12, r2\n" \
        "cmp r3, #36\n" \
        "bne 3f\n" \
        "2:\n" \
        "ldm r0!, {r6, r7}\n" \
        "ldm r1!, {r2-r5}\n" \
        "muls r2, r6, r2\n mov r8, r2\n" \
        "muls r3, r6, r3\n mov r9, r3\n" \
        "muls r4, r6, r4\n mov r10, r4\n" \
        "muls r5, r6, r5\n mov r11, r5\n" \
        KQ_LANE_TAP("r7") \
        "ldm r0!, {r6, r7}\n" \
        KQ_LANE_TAP("r6") \
        KQ_LANE_TAP("r7") \
        "ldm r0!, {r6, r7}\n" \
        KQ_LANE_TAP("r6") \
        KQ_LANE_TAP("r7") \
        "ldm r0!, {r6, r7}\n" \
        KQ_LANE_TAP("r6") \
        KQ_LANE_TAP("r7") \
        "ldm r0!, {r6}\n" \
        "ldm r1!, {r2-r5}\n" \
        "muls r2, r6, r2\n add r2, r8\n" \
        "muls r3, r6, r3\n add r3, r9\n" \
        "muls r4, r6, r4\n add r4, r10\n" \
        "muls r5, r6, r5\n add r5, r11\n" \
        "stm r0!, {r2-r5}\n" \
        "cmp r0, r12\n" \
        "bne 2b\n" \
        "b 5f\n" \
        "3:\n" \
        "movs r2, #0\n" \
        "mov r8, r2\n mov r9, r2\n mov r10, r2\n mov r11, r2\n" \
        "mov r2, lr\n" \
        "ldr r2, [r2, #12]\n" \
        "adds r2, r2, r0\n" \
        "mov r12, r2\n" \
        "4:\n" \
        "ldm r0!, {r6, r7}\n" \
        KQ_LANE_TAP("r6") \
        KQ_LANE_TAP("r7") \
        "cmp r0, r12\n" \
        "bne 4b\n" \
        "mov r2, r8\n mov r3, r9\n mov r4, r10\n mov r5, r11\n" \
        "stm r0!, {r2-r5}\n" \
        "mov r2, lr\n" \
        "ldr r2, [r2, #8]\n" \
        "cmp r0, r2\n" \
        "bne 3b\n" \
        "5:\n" \
        "mov r7, lr\n" \
        "str r1, [r7, #4]\n" \
        "ldr r0, [r7]\n ldr r1, [r7, #8]\n ldr r2, [r7, #12]\n ldr r3, [r7, #16]\n" \
        "adds r0, r0, r2\n adds r1, r1, r2\n mov r12, r2\n" \
        "ldm r3!, {r4-r7}\n" \
        "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n" \
        "ldm r3!, {r4-r7}\n" \
        "6:\n" \
        KQ_LANE_TOTAL("r8", "r9", "r4", "r5") \
        KQ_LANE_TOTAL("r10", "r11", "r6", "r7") \
        "add r0, r12\n" \
        "cmp r0, r1\n" \
        "bne 6b\n" \
        "mov r0, lr\n" \
        "ldr r1, [r0, #16]\n" \
        "adds r1, #32\n" \
        "mov r2, r8\n mov r3, r4\n stm r1!, {r2, r3}\n" \
        "adds r1, #16\n" \
        "mov r2, r9\n mov r3, r5\n stm r1!, {r2, r3}\n" \
        "mov r2, r10\n str r2, [r1, #16]\n str r6, [r1, #20]\n" \
        "mov r2, r11\n str r2, [r1, #40]\n str r7, [r1, #44]\n" \
        "ldr r2, [r0, #44]\n" \
        "cmp r2, #0\n" \
        "beq 8f\n" \
        "ldr r6, [r0, #20]\n" \
        "mov r4, r1\n" \
        "subs r4, #32\n" \
        "adds r1, #64\n" \
        "mov r10, r1\n" \
        "adds r0, #24\n" \
        "ldm r0!, {r2, r3, r5, r7}\n" \
        "mov r8, r2\n mov r9, r3\n" \
        ready \
        "7:\n" \
        "ldm r4!, {r0, r1}\n" \
        "lsls r2, r1, #16\n subs r0, r0, r2\n" \
        "mov r11, r1\n" \
        put("0") \
        "mov r0, r11\n" \
        put("1") \
        "adds r6, #2\n" \
        "cmp r4, r10\n" \
        "bne 7b\n" \
        "mov r7, lr\n" \
        "str r4, [r7, #16]\n" \
        "str r6, [r7, #20]\n" \
        "ldr r0, [r7, #40]\n" \
        "subs r0, #1\n" \
        "str r0, [r7, #40]\n" \
        "beq 8f\n" \
        "b 1b\n" \
        "8:\n" \
        "pop {r7}\n" \
        : "+r"(at) \
        : \
        : "r1", "r2", "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory")

/* Convolves a window with `octets` times eight channels, and requantises and stores them if `puts`. For each octet about 90 cycles, a
 * group of nine taps 139 (of n taps 21 + 16 n), its totals 22, a pair of results 49. The last of nine taps adds the other way round, into
 * registers that STM can reach.
 */
static KQ_INLINE void kq_lane_octets(kq_lane_job *job)
{
    register kq_lane_job *at __asm__("r0") = job;
    KQ_LANE_OCTETS("", KQ_LANE_PUT);
}

#if KQ_WITH_TFLITE
/* kq_lane_octets by SPEC 3.5, rounding twice. */
static KQ_INLINE void kq_lane_octets_twice(kq_lane_job *job)
{
    register kq_lane_job *at __asm__("r0") = job;
    KQ_LANE_OCTETS("mov r12, r5\n", KQ_LANE_PUT_TWICE);
}
#endif

#else

/* Adds up the sums behind all groups of a window into the table of eight channels. */
KQGEN_CODE static inline void kq_lane_totals(const kq_lane_job *job)
{
    const uint32_t span = job->span_bytes >> 2;
    uint32_t *table = job->table;
    uint32_t pair;
    for (pair = 0; pair < KQ_LANE_WORDS; ++pair) {
        const uint32_t *from = job->stream + span + pair;
        uint32_t total = table[pair];
        uint32_t high = table[KQ_LANE_WORDS + pair];
        for (; from < job->end; from += span + KQ_LANE_WORDS) {
            total += *from;
            high += (uint32_t)kq_shift_down(kq_signed(*from), 16) + ((*from >> 15) & 1u);
        }
        table[8u + 6u * pair] = total;
        table[9u + 6u * pair] = high;
    }
}

/* The packed sums of all groups of a window with eight channels, behind each group; the weights move on. */
KQGEN_CODE static inline void kq_lane_sums(kq_lane_job *job)
{
    const uint32_t *weights = job->weights;
    uint32_t *stream = job->stream;
    while (stream != job->end) {
        const uint32_t *sums_at = stream + (job->span_bytes >> 2);
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
    job->weights = weights;
}

/* int8 from a total (SPEC 3.2, or 3.5 rounding twice); `rules` are its multiplier and shift. */
static KQ_INLINE int8_t kq_lane_result(const kq_lane_job *job, uint32_t acc, const uint32_t *rules, uint32_t twice)
{
    const int32_t scaled =
        twice != 0 ? kq_rounded_down(kq_scaled_q31(kq_signed(acc), kq_signed(rules[0])), rules[1]) : kq_scale(acc, rules[0], rules[1], job->acc_shift);
    const int32_t above = scaled + job->above_lo;
    return (int8_t)(kq_clamped(above, 0, -job->below) + job->below + job->hi);
}

/* Convolves a window with `octets` times eight channels, and requantises and stores them if `puts`. */
static KQ_INLINE void kq_lane_run_octets(kq_lane_job *job, uint32_t twice)
{
    kq_lane_sums(job);
    kq_lane_totals(job);
    while (job->puts != 0) {
        uint32_t *entry = job->table + 8;
        uint32_t i;
        for (i = 0; i < KQ_LANE_CHANNELS; i += 2u) {
            job->to[i] = kq_lane_result(job, entry[0] - (entry[1] << 16), entry + 2, twice);
            job->to[i + 1u] = kq_lane_result(job, entry[1], entry + 4, twice);
            entry += 6;
        }
        job->table += KQ_LANE_TABLE;
        job->to += KQ_LANE_CHANNELS;
        --job->octets;
        if (job->octets == 0) {
            return;
        }
        kq_lane_sums(job);
        kq_lane_totals(job);
    }
}

/* As above by SPEC 3.2. */
KQGEN_CODE static inline void kq_lane_octets(kq_lane_job *job)
{
    kq_lane_run_octets(job, 0);
}

#if KQ_WITH_TFLITE
/* As above by SPEC 3.5, rounding twice. */
KQGEN_CODE static inline void kq_lane_octets_twice(kq_lane_job *job)
{
    kq_lane_run_octets(job, 1);
}
#endif

#endif

#endif
