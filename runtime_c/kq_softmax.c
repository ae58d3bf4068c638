/* Softmax in fixed point (SPEC 5.12). */
#include "kq.h"
#include "kq_fixed.h"

/* a * b of numbers in units of 2^-31, to the nearest, halves up; not both are -2^31. */
KQGEN_CODE static int32_t product(int32_t a, int32_t b)
{
    return kq_product_q31(a, b, 0x4000u);
}

/* 1 / (1 + x), x 0..2^31-1, both in units of 2^-31: half the denominator h is inverted by three Newton-Raphson steps r = r + r * (1 - h * r)
 * from 48/17 - 32/17 * h; r is in units of 2^-29. 1 - h * r is never below 0 by more than the rounding, and at most 1/17, so that no
 * shift overflows; r / 2 lies in 0.5..1 and may round to 1, which is limited to 2^31 - 1.
 */
KQGEN_CODE static int32_t reciprocal(uint32_t x)
{
    const int32_t half = kq_signed((x + 0x80000000u) >> 1);
    int32_t r = 1515870810 + product(half, -1010580540);
    uint32_t step;
    for (step = 0; step < 3u; ++step) {
        r += kq_signed((uint32_t)product(r, 0x20000000 - product(half, r)) << 2);
    }
    return r > 0x3FFFFFFF ? INT32_MAX : kq_signed((uint32_t)r << 1);
}

/* The exponential of a value that is `difference` below the largest. */
KQGEN_CODE static inline int32_t power(const kq_softmax *softmax, int32_t difference)
{
    return difference < softmax->count ? softmax->exponentials[difference] : 0;
}

/* One position: e = exponential, s = sum of e in units of 2^-19, s * 2^n = 2^31 + x; result = e / (1 + x) / 2^(35 - n) to the nearest - 128.
 * s lies in 2^19..4095 * 2^19, so n in 0..12 and the shift in 23..35; from 32 on the quotient is below a half.
 */
KQGEN_CODE static void softmax_position(const kq_softmax *softmax, const int8_t *input, int8_t *output)
{
    const uint32_t channels = softmax->channels;
    int32_t largest = INT8_MIN;
    uint32_t sum = 0;
    uint32_t shift = 35;
    int32_t scale;
    uint32_t i;
    for (i = 0; i < channels; ++i) {
        largest = input[i] > largest ? input[i] : largest;
    }
    for (i = 0; i < channels; ++i) {
        sum += ((uint32_t)power(softmax, largest - input[i]) + 0x800u) >> 12;
    }
    while (sum < 0x80000000u) {
        sum <<= 1;
        --shift;
    }
    scale = reciprocal(sum - 0x80000000u);
    for (i = 0; i < channels; ++i) {
        const uint32_t part = (uint32_t)product(scale, power(softmax, largest - input[i]));
        const uint32_t rounded = shift > 31u ? 0u : (part + ((uint32_t)1 << (shift - 1u))) >> shift;
        output[i] = (int8_t)kq_clamped((int32_t)rounded - 128, INT8_MIN, INT8_MAX);
    }
}

/* Softmax over the channels of each position; the output has scale 1/256 and zero point -128, and may be the input. */
KQGEN_CODE void kq_softmax_s8(const kq_softmax *softmax, const int8_t *input, int8_t *output)
{
    const uint32_t channels = softmax->channels;
    uint32_t position;
    for (position = 0; position < softmax->positions; ++position) {
        softmax_position(softmax, input, output);
        input += channels;
        output += channels;
    }
}
