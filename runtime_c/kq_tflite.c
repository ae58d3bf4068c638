/* Requantisation as TFLite's reference kernels round it (SPEC 3.5). All of it is left out unless KQ_WITH_TFLITE is 1. */
#include "kq.h"
#include "kq_fixed.h"

#if KQ_WITH_TFLITE

/* Generated code of rule `tflite` reads this, so that it links with no runtime that lacks the rule. */
KQGEN_TABLE const uint8_t kq_built_with_KQ_WITH_TFLITE = 1;

/* The product of accumulator and multiplier, rounded once or twice. A sum with half of 2^right stays below 2^31, as |product| < 2^29. */
KQGEN_CODE int32_t kq_scale_tflite(uint32_t acc, int32_t multiplier, uint32_t shift, uint32_t rule)
{
    const uint32_t left = shift < 31u ? 31u - shift : 0;
    const uint32_t right = shift < 31u ? 0 : shift - 31u;
    const int32_t shifted = kq_signed(acc << left);
    if (rule == KQ_ROUND_TWICE && right != 0) {
        return kq_rounded_down(kq_scaled_q31(shifted, multiplier), right);
    }
    if (rule == KQ_ROUND_ONCE && right != 0) {
        const uint32_t high = (uint32_t)kq_product_q31(shifted, multiplier, 0);
        return kq_shift_down(kq_signed(high + ((uint32_t)1 << (right - 1u))), right);
    }
    return kq_divided_by_power(kq_product_q31(shifted, multiplier, 0x4000u), right);
}

#endif
