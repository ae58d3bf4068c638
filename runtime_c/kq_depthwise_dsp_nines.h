/* 3x3 kernels of the depthwise form for cores with the DSP extension (SPEC 6.9): one output channel, two results at a time. */
#ifndef KQ_DEPTHWISE_DSP_NINES_H
#define KQ_DEPTHWISE_DSP_NINES_H

#include "kq_dsp.h"
#include "kq_fixed.h"
#include "kq_types.h"

/* Results of a 3x3 kernel on a plane: rows of words that give two results each, then words that give one. The first ones belong to an
 * output channel; a multiplier is 0..2^31-1, of 2^32.
 */
typedef struct {
    uint32_t weights[6]; /* of each kernel row the first and second, then the second and third */
    const uint32_t *x;
    int8_t *to;
    uint32_t row_bytes; /* of the plane */
    uint32_t end;       /* for dsp_nines */
    uint32_t bias;
    uint32_t multiplier;
    int32_t zero_point;
    uint32_t step; /* between results */
    uint32_t turn_bytes;
    uint32_t pairs_bytes; /* words that give two results */
    uint32_t odd_bytes;
    uint32_t gap_bytes; /* from the end of these to the next row */
    uint32_t rows;
} dsp_nines_job;
KQ_ASSERT_SIZE(dsp_nines_job, 76u);

#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)

/* A parameter that assembly alone uses. */
#define DSP_UNSEEN __attribute__((unused))

/* The words of a row, at r0 and, a turn on, r1, where `at` says, by their weights: the first result of two to r11, the second to r12. */
#define DSP_LOAD(at) "ldr r3, [r0" at "]\n ldr r10, [r1" at "]\n"
#define DSP_TWO_ROW(left, right) \
    "smlad r11, r3, " left ", r11\n smlatb r12, r3, " left ", r12\n" \
    "smlabt r11, r10, " right ", r11\n smlad r12, r10, " right ", r12\n"
#define DSP_ONE_ROW(left, right) "smlad r11, r3, " left ", r11\n smlabt r11, r10, " right ", r11\n"

/* Requantisation of r11 and r12, or of r11 alone: r3 holds the multiplier, r10 the zero point. */
#define DSP_SCALE_TWO "smmlar r11, r11, r3, r10\n smmlar r12, r12, r3, r10\n"
#define DSP_SCALE_ONE "smmlar r11, r11, r3, r10\n"

/* The same rounding twice (SPEC 3.5): the low byte of r10 is how far the product is shifted down, at least 1, the rest the zero point. ASRS
 * leaves the bit that rounds in the carry.
 */
#define DSP_TWICE(sum) \
    "add " sum ", " sum ", " sum ", asr #31\n asrs " sum ", " sum ", r10\n adc " sum ", " sum ", r3\n"
#define DSP_TWICE_TWO \
    "lsl r11, r11, #1\n lsl r12, r12, #1\n smmulr r11, r11, r3\n smmulr r12, r12, r3\n asr r3, r10, #8\n" DSP_TWICE("r11") DSP_TWICE("r12")
#define DSP_TWICE_ONE "lsl r11, r11, #1\n smmulr r11, r11, r3\n asr r3, r10, #8\n" DSP_TWICE("r11")

#define DSP_NINES(scale_two, scale_one) \
    __asm__ volatile( \
        "push {r4-r11, lr}\n" \
        "sub sp, #40\n" \
        "add r1, r0, #36\n" \
        "ldm r1, {r2-r11}\n" \
        "stm sp, {r2-r11}\n" \
        "ldm r0, {r4-r9}\n" \
        "ldr lr, [r0, #28]\n" \
        "ldr r2, [r0, #32]\n" \
        "ldr r0, [r0, #24]\n" \
        "1:\n" /* a row */ \
        "ldr r3, [sp, #24]\n" \
        "ldr r10, [sp, #20]\n" \
        "adds r3, r3, r0\n" \
        "add r1, r0, r10\n" \
        "str r3, [sp]\n" \
        "cmp r0, r3\n" \
        "beq 3f\n" \
        ".p2align 2\n" \
        "2:\n" /* two results */ \
        "ldr r11, [sp, #4]\n" \
        DSP_LOAD("") \
        "mov r12, r11\n" \
        DSP_TWO_ROW("r4", "r5") \
        DSP_LOAD(", r2") \
        DSP_TWO_ROW("r6", "r7") \
        DSP_LOAD(", r2, lsl #1") \
        DSP_TWO_ROW("r8", "r9") \
        "ldr r3, [sp, #8]\n" \
        "ldr r10, [sp, #12]\n" \
        scale_two \
        "ldr r3, [sp, #16]\n" \
        "ldr r10, [sp, #20]\n" \
        "ssat r11, #8, r11\n" \
        "ssat r12, #8, r12\n" \
        "strb r11, [lr]\n" \
        "strb r12, [lr, r3]\n" \
        "add lr, lr, r3, lsl #1\n" \
        "ldr r3, [sp]\n" \
        "add r0, r0, r10\n" \
        "add r1, r1, r10\n" \
        "cmp r0, r3\n" \
        "bne 2b\n" \
        "3:\n" \
        "ldr r10, [sp, #28]\n" \
        "adds r3, r3, r10\n" \
        "str r3, [sp]\n" \
        "cmp r0, r3\n" \
        "beq 5f\n" \
        ".p2align 2\n" \
        "4:\n" /* one result */ \
        "ldr r11, [sp, #4]\n" \
        DSP_LOAD("") \
        DSP_ONE_ROW("r4", "r5") \
        DSP_LOAD(", r2") \
        DSP_ONE_ROW("r6", "r7") \
        DSP_LOAD(", r2, lsl #1") \
        DSP_ONE_ROW("r8", "r9") \
        "ldr r3, [sp, #8]\n" \
        "ldr r10, [sp, #12]\n" \
        scale_one \
        "ldr r3, [sp, #16]\n" \
        "ldr r10, [sp, #20]\n" \
        "ldr r12, [sp]\n" \
        "ssat r11, #8, r11\n" \
        "add r0, r0, r10\n" \
        "add r1, r1, r10\n" \
        "strb r11, [lr]\n" \
        "add lr, lr, r3\n" \
        "cmp r0, r12\n" \
        "bne 4b\n" \
        "5:\n" \
        "ldr r3, [sp, #32]\n" \
        "ldr r10, [sp, #36]\n" \
        "add r0, r0, r3\n" \
        "subs r10, r10, #1\n" \
        "str r10, [sp, #36]\n" \
        "bne 1b\n" \
        "add sp, #40\n" \
        "pop {r4-r11, pc}\n")

/* Does a job; sums are modulo 2^32. 43 cycles for two results on a Cortex-M4, 33 for one. */
KQGEN_CODE static __attribute__((naked, noinline, used)) void dsp_nines(DSP_UNSEEN const dsp_nines_job *job)
{
    DSP_NINES(DSP_SCALE_TWO, DSP_SCALE_ONE);
}

#if KQ_WITH_TFLITE
/* Does a job by SPEC 3.5, rounding twice; |sum| < 2^30. */
KQGEN_CODE static __attribute__((naked, noinline, used)) void dsp_nines_twice(DSP_UNSEEN const dsp_nines_job *job)
{
    DSP_NINES(DSP_TWICE_TWO, DSP_TWICE_ONE);
}
#endif

#else

/* One result of a 3x3 kernel whose upper left word is at x, the one beside it `turn` words on. */
static KQ_INLINE uint32_t dsp_nine(const uint32_t *x, uint32_t row, uint32_t turn, const uint32_t *weights, uint32_t bias)
{
    uint32_t acc = bias;
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        acc = kq_two_products(x[0], weights[0], acc);
        acc = kq_product_low_high(x[turn], weights[1], acc);
        x += row;
        weights += 2;
    }
    return acc;
}

/* As above, of the window one column to the right. */
static KQ_INLINE uint32_t dsp_next_nine(const uint32_t *x, uint32_t row, uint32_t turn, const uint32_t *weights, uint32_t bias)
{
    uint32_t acc = bias;
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        acc = kq_product_low_high(weights[0], x[0], acc);
        acc = kq_two_products(x[turn], weights[1], acc);
        x += row;
        weights += 2;
    }
    return acc;
}

/* One result of a job. */
static KQ_INLINE int8_t dsp_result(const dsp_nines_job *job, uint32_t acc, uint32_t twice)
{
    if (twice != 0) {
        const int32_t product = kq_product_q31(kq_signed(acc), kq_signed(job->multiplier), 0x4000u);
        const int32_t result = kq_divided_by_power(product, (uint32_t)job->zero_point & 0xFFu);
        return (int8_t)kq_saturated(result + kq_shift_down(job->zero_point, 8));
    }
    return (int8_t)kq_saturated(kq_multiply_high(acc, job->multiplier, job->zero_point));
}

/* Does a job; sums are modulo 2^32. `twice`: by SPEC 3.5. */
static KQ_INLINE void dsp_run_nines(const dsp_nines_job *job, uint32_t twice)
{
    const uint32_t row = job->row_bytes >> 2;
    const uint32_t turn = job->turn_bytes >> 2;
    const uint32_t *x = job->x;
    int8_t *to = job->to;
    uint32_t rows = job->rows;
    do {
        const uint32_t *end = x + (job->pairs_bytes >> 2);
        for (; x != end; x += turn) {
            const uint32_t acc0 = dsp_nine(x, row, turn, job->weights, job->bias);
            const uint32_t acc1 = dsp_next_nine(x, row, turn, job->weights, job->bias);
            to[0] = dsp_result(job, acc0, twice);
            to[job->step] = dsp_result(job, acc1, twice);
            to += 2u * job->step;
        }
        end = x + (job->odd_bytes >> 2);
        for (; x != end; x += turn) {
            const uint32_t acc = dsp_nine(x, row, turn, job->weights, job->bias);
            *to = dsp_result(job, acc, twice);
            to += job->step;
        }
        x += job->gap_bytes >> 2;
        --rows;
    } while (rows != 0);
}

/* Does a job by SPEC 3.2. */
KQGEN_CODE static KQ_NOINLINE void dsp_nines(const dsp_nines_job *job)
{
    dsp_run_nines(job, 0);
}

#if KQ_WITH_TFLITE
/* Does a job by SPEC 3.5, rounding twice; |sum| < 2^30. */
KQGEN_CODE static KQ_NOINLINE void dsp_nines_twice(const dsp_nines_job *job)
{
    dsp_run_nines(job, 1);
}
#endif

#endif

/* Does a job by the layer's rule. */
static KQ_INLINE void dsp_do_nines(const dsp_nines_job *job, const kq_requant *requant)
{
    if (kq_rounds_as_tflite(requant->acc_shift)) {
#if KQ_WITH_TFLITE
        dsp_nines_twice(job);
#endif
    } else {
        dsp_nines(job);
    }
}

/* A channel's multiplier and zero point as its job takes them; 0 where the layer's rule is no single product for it. */
static KQ_INLINE uint32_t dsp_rule(const kq_requant *requant, uint32_t o, dsp_nines_job *job)
{
    const uint32_t up = 16u + requant->acc_shift - requant->shift[o];
    if (kq_rounds_as_tflite(requant->acc_shift)) {
        job->multiplier = (uint32_t)requant->multiplier_q31[o];
        job->zero_point = requant->zero_point * 256 + requant->shift[o] - 31;
        return requant->acc_shift == KQ_ROUND_TWICE && requant->shift[o] >= 32u;
    }
    job->multiplier = (uint32_t)requant->multiplier[o] << (up & 31u);
    return up <= 16u;
}

#endif
