/* Fixed-point arithmetic (SPEC 1.4, 2, 3). Right shifts of negative numbers, modulo conversions and rounding happen here alone. */
#ifndef KQ_FIXED_H
#define KQ_FIXED_H

#include "kq_types.h"

#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#endif

/* What SPEC 2 assumes and a compiler can be asked. */
KQ_STATIC_ASSERT((-1 & 3) == 3, "two's complement");
KQ_STATIC_ASSERT((-5 >> 1) == -3, "right shift of negative numbers rounds down");
KQ_STATIC_ASSERT((int32_t)0xFFFFFFFEu == -2 && (int8_t)0xFEu == -2, "conversion to signed types is modulo 2^n");

/* The int32 with the bits of x: modulo 2^32. */
KQGEN_CODE static inline int32_t kq_signed(uint32_t x)
{
    return (int32_t)x;
}

/* floor(x / 2^n), n 0..31. */
KQGEN_CODE static inline int32_t kq_shift_down(int32_t x, uint32_t n)
{
    return x >> n;
}

/* x within lo..hi. */
KQGEN_CODE static inline int32_t kq_clamped(int32_t x, int32_t lo, int32_t hi)
{
    return x < lo ? lo : (x > hi ? hi : x);
}

/* floor((a * b + half * 2^16) / 2^31) for any a and b but -2^31 twice, half 0..2^15: the product of two numbers in units of 2^-31 (SPEC 3.5).
 * Where there is no SMULL, from halves: |high * any half| <= 2^15 * 65535 < 2^31, and the carries of the lower word fit 18 bits.
 */
KQGEN_CODE static inline int32_t kq_product_q31(int32_t a, int32_t b, uint32_t half)
{
#if defined(__GNUC__) && defined(__thumb2__)
    uint32_t low;
    uint32_t high;
    __asm__("smull %0, %1, %2, %3\n\tadds %0, %0, %4\n\tadc %1, %1, #0" : "=&r"(low), "=&r"(high) : "r"(a), "r"(b), "r"(half << 16) : "cc");
    return kq_signed(high << 1 | low >> 31);
#else
    const int32_t a_high = kq_shift_down(a, 16);
    const int32_t b_high = kq_shift_down(b, 16);
    const uint32_t a_low = (uint32_t)a & 0xFFFFu;
    const uint32_t b_low = (uint32_t)b & 0xFFFFu;
    const uint32_t across = (uint32_t)a_high * b_low;
    const uint32_t along = (uint32_t)b_high * a_low;
    const uint32_t middle = ((a_low * b_low) >> 16) + (across & 0xFFFFu) + (along & 0xFFFFu) + half;
    const uint32_t high = (uint32_t)kq_shift_down(kq_signed(across), 16) + (uint32_t)kq_shift_down(kq_signed(along), 16) + (middle >> 16);
    return kq_signed(((high + (uint32_t)a_high * (uint32_t)b_high) << 1) | ((middle >> 15) & 1u));
#endif
}

/* kq_product_q31(x, multiplier, 0x4000u) for |x| < 2^29, multiplier 0..2^31-1: halves fit words as they are, the lower one of x signed.
 * |low * any| <= 2^15 * 65535 < 2^31, |high * m_low| < 2^13 * 2^16, |middle| < 2^29 + 2^30 + 2^15.
 */
KQGEN_CODE static inline int32_t kq_scaled_q31(int32_t x, int32_t multiplier)
{
#if defined(__ARM_FEATURE_DSP)
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(x * 2), "r"(multiplier));
    return high;
#elif defined(__GNUC__) && defined(__thumb2__)
    return kq_product_q31(x, multiplier, 0x4000u);
#else
    const int32_t low = (int16_t)(x & 0xFFFF);
    const int32_t high = kq_shift_down(x - low, 16);
    const int32_t m_low = multiplier & 0xFFFF;
    const int32_t m_high = kq_shift_down(multiplier, 16);
    const int32_t middle = high * m_low + low * m_high + kq_shift_down(low * m_low, 16);
    return high * m_high * 2 + kq_shift_down(middle + 0x4000, 15);
#endif
}

/* x / 2^n, n 1..31, halves away from zero. */
KQGEN_CODE static inline int32_t kq_rounded_down(int32_t x, uint32_t n)
{
    return kq_shift_down(x + kq_shift_down(x, 31) + kq_signed((uint32_t)1 << (n - 1u)), n);
}

/* x / 2^n, n 0..31, halves away from zero. */
KQGEN_CODE static inline int32_t kq_divided_by_power(int32_t x, uint32_t n)
{
    const uint32_t half = ((uint32_t)1 << n) >> 1;
    const uint32_t below = n != 0 ? (uint32_t)kq_shift_down(x, 31) : 0;
    return kq_shift_down(kq_signed((uint32_t)x + half + below), n);
}

/* floor((acc * 2^acc_shift * multiplier + 2^(shift+15)) / 2^(shift+16)): one rounding, halves up (SPEC 3.2, 3.3).
 * acc * 2^acc_shift fits int32 read as signed; multiplier 0..32767; shift 1..22; acc_shift 0..15.
 * |high * multiplier| <= 2^15 * 32767 < 2^30, low * multiplier < 2^31, so no step overflows. SMLAWB computes the same sum: the upper 32 bits
 * of the 48-bit product, plus `half`.
 */
KQGEN_CODE static inline int32_t kq_scale(uint32_t acc, uint32_t multiplier, uint32_t shift, uint32_t acc_shift)
{
    const uint32_t shifted = acc << acc_shift;
    const uint32_t half = ((uint32_t)1 << shift) >> 1;
#if defined(__ARM_FEATURE_DSP)
    return kq_shift_down(__smlawb(kq_signed(shifted), kq_signed(multiplier), kq_signed(half)), shift);
#else
    const uint32_t high = (uint32_t)kq_shift_down(kq_signed(shifted), 16);
    const uint32_t low = shifted & 0xFFFFu;
    return kq_shift_down(kq_signed(high * multiplier + ((low * multiplier) >> 16) + half), shift);
#endif
}

/* Whether `acc_shift` names SPEC 3.5, in a runtime that has it. */
static KQ_INLINE int kq_rounds_as_tflite(uint32_t acc_shift)
{
    return KQ_WITH_TFLITE != 0 && acc_shift >= KQ_ROUND_TWICE;
}

#if KQ_WITH_TFLITE
/* An accumulator by SPEC 3.5: |acc| * 2^max(0, 31 - shift) < 2^29; multiplier 0..2^31-1; shift 1..62; rule KQ_ROUND_TWICE or KQ_ROUND_ONCE. */
int32_t kq_scale_tflite(uint32_t acc, int32_t multiplier, uint32_t shift, uint32_t rule);
#endif

/* An accumulator by SPEC 3.2, or by 3.5 where acc_shift says so. */
static KQ_INLINE int32_t kq_rescale(uint32_t acc, uint32_t multiplier, uint32_t shift, uint32_t acc_shift)
{
#if KQ_WITH_TFLITE
    if (kq_rounds_as_tflite(acc_shift)) {
        return kq_scale_tflite(acc, kq_signed(multiplier), shift, acc_shift);
    }
#endif
    return kq_scale(acc, multiplier, shift, acc_shift);
}

/* The multiplier of a channel by the layer's rule. */
static KQ_INLINE uint32_t kq_multiplier(const kq_requant *requant, uint32_t channel)
{
    return kq_rounds_as_tflite(requant->acc_shift) ? (uint32_t)requant->multiplier_q31[channel] : (uint32_t)requant->multiplier[channel];
}

/* int8 from an accumulator that holds the bias (SPEC 3.2, 3.5); ranges as kq_rescale, -128 <= lo <= hi <= 127. */
KQGEN_CODE static inline int8_t kq_requantise(uint32_t acc, const kq_requant *requant, uint32_t channel)
{
    const int32_t scaled = kq_rescale(acc, kq_multiplier(requant, channel), requant->shift[channel], requant->acc_shift);
    return (int8_t)kq_clamped(scaled + requant->zero_point, requant->lo, requant->hi);
}

/* `result` added to `other` (SPEC 5.2, 5.8), or `result` itself where `sum` is NULL. Every product and sum fits int32 by SPEC 5.2. */
KQGEN_CODE static inline int32_t kq_summed(const kq_add *sum, int32_t result, int32_t other)
{
    int32_t total;
    if (sum == NULL) {
        return result;
    }
    total = kq_shift_down(result * sum->multiplier_a + other * sum->multiplier_b + sum->bias, sum->shift);
    return kq_clamped(total, sum->lo, sum->hi);
}

/* Requantises an accumulator that holds the bias, adds what `to` holds where the layer sums, and stores it there. */
KQGEN_CODE static inline void kq_store(uint32_t acc, const kq_requant *requant, uint32_t channel, int8_t *to)
{
    *to = (int8_t)kq_summed(requant->sum, kq_requantise(acc, requant, channel), *to);
}

/* kq_store of two pixels of one channel, at different places; the parameters are fetched once. */
KQGEN_CODE static inline void kq_store_two(
    uint32_t acc0, uint32_t acc1, const kq_requant *requant, uint32_t channel, int8_t *q0, int8_t *q1)
{
    const uint32_t multiplier = kq_multiplier(requant, channel);
    const uint32_t shift = requant->shift[channel];
    const uint32_t acc_shift = requant->acc_shift;
    const int32_t zero_point = requant->zero_point;
    const int32_t lo = requant->lo;
    const int32_t hi = requant->hi;
    const int32_t scaled0 = kq_rescale(acc0, multiplier, shift, acc_shift) + zero_point;
    const int32_t scaled1 = kq_rescale(acc1, multiplier, shift, acc_shift) + zero_point;
    *q0 = (int8_t)kq_summed(requant->sum, kq_clamped(scaled0, lo, hi), *q0);
    *q1 = (int8_t)kq_summed(requant->sum, kq_clamped(scaled1, lo, hi), *q1);
}

#endif
