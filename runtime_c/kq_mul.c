/* Product of two maps (SPEC 5.10). */
#include "kq.h"
#include "kq_fixed.h"

/* output = min(max(scale((a - zero_point_a) * (b - zero_point_b)) + zero_point, lo), hi). |product| <= 255 * 255 < 2^16, times 2^15 at most:
 * it fits int32. b begins anew after count_b values, of which count is a multiple. output may be a, and b where count_b is count.
 */
KQGEN_CODE void kq_mul_s8(const kq_mul *mul, const int8_t *a, const int8_t *b, int8_t *output)
{
    const uint32_t count_b = mul->count_b;
    const uint32_t multiplier = (uint32_t)mul->multiplier;
    const uint32_t shift = mul->shift;
    const uint32_t acc_shift = mul->acc_shift;
    const int32_t zero_point_a = mul->zero_point_a;
    const int32_t zero_point_b = mul->zero_point_b;
    const int32_t zero_point = mul->zero_point;
    const int32_t lo = mul->lo;
    const int32_t hi = mul->hi;
    uint32_t left = mul->count;
    while (left != 0) {
        uint32_t i;
        for (i = 0; i < count_b; ++i) {
            const int32_t product = (a[i] - zero_point_a) * (b[i] - zero_point_b);
            const int32_t scaled = kq_rescale((uint32_t)product, multiplier, shift, acc_shift);
            output[i] = (int8_t)kq_clamped(scaled + zero_point, lo, hi);
        }
        a += count_b;
        output += count_b;
        left -= count_b;
    }
}
