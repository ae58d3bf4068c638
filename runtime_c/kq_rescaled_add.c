/* Sum or difference of two maps as TFLite's reference kernels round it (SPEC 5.14). */
#include "kq.h"
#include "kq_fixed.h"

#define LEFT_SHIFT 20u
#define ONE_HALF 0x4000u /* of a unit, for kq_product_q31 */

/* A value's distance from its zero point, in 2^-20 units of the common scale: |value| <= 255 * 2^20 < 2^28. */
KQGEN_CODE static inline uint32_t on_common_scale(int32_t value, int32_t multiplier, uint32_t right)
{
    const int32_t shifted = kq_signed((uint32_t)value << LEFT_SHIFT);
    return (uint32_t)kq_divided_by_power(kq_product_q31(shifted, multiplier, ONE_HALF), right);
}

/* Three products a value, each rounded twice (SPEC 3.5, shifts from 31 up). The sum of two stays below 2^29. output may be a, and b where
 * count_b is count.
 */
KQGEN_CODE void kq_rescaled_add_s8(const kq_rescaled_add *add, const int8_t *a, const int8_t *b, int8_t *output)
{
    const uint32_t count_b = add->count_b;
    const uint32_t right_a = add->shift_a - 31u;
    const uint32_t right_b = add->shift_b - 31u;
    const uint32_t right = add->shift - 31u;
    const uint32_t flip = 0u - add->minus;
    uint32_t left = add->count;
    while (left != 0) {
        uint32_t i;
        for (i = 0; i < count_b; ++i) {
            const uint32_t scaled_a = on_common_scale(a[i] - add->zero_point_a, add->multiplier_a, right_a);
            const uint32_t scaled_b = on_common_scale(b[i] - add->zero_point_b, add->multiplier_b, right_b);
            const int32_t total = kq_signed(scaled_a + ((scaled_b ^ flip) - flip));
            const int32_t scaled = kq_divided_by_power(kq_product_q31(total, add->multiplier, ONE_HALF), right);
            output[i] = (int8_t)kq_clamped(scaled + add->zero_point, add->lo, add->hi);
        }
        a += count_b;
        output += count_b;
        left -= count_b;
    }
}
