/* Sum or difference of two maps as TFLite's reference kernels round it (SPEC 5.14). */
#include "kq.h"
#include "kq_fixed.h"

/* An operand's multiplier and how it rounds. */
typedef struct {
    int32_t high;   /* floor(multiplier / 2^16) * 2^5 */
    int32_t low;    /* multiplier mod 2^16 */
    uint32_t right; /* shift - 31 */
    uint32_t half;  /* of 2^right */
    uint32_t away;  /* all bits set where right is not 0: halves go away from zero */
} add_scale;

/* How an operand is brought to the common scale. */
KQGEN_CODE static add_scale scale_of(int32_t multiplier, uint32_t shift)
{
    add_scale scale;
    scale.high = kq_shift_down(multiplier, 16) * 32;
    scale.low = multiplier & 0xFFFF;
    scale.right = shift - 31u;
    scale.half = ((uint32_t)1 << scale.right) >> 1;
    scale.away = scale.right != 0 ? ~(uint32_t)0 : 0;
    return scale;
}

/* value / 2^right, halves away from zero. */
static KQ_INLINE int32_t rounded(int32_t value, uint32_t right, uint32_t half, uint32_t away)
{
    return kq_shift_down(kq_signed((uint32_t)value + half + ((uint32_t)kq_shift_down(value, 31) & away)), right);
}

/* A value's distance from its zero point, within 255, times 2^20, times the multiplier: floor((d * 2^20 * m + 2^30) / 2^31) is
 * floor((d * m + 2^10) / 2^11), and all of d * m but d * (m mod 2^16) is a multiple of 2^11. |d * m_high * 2^5| < 2^28, |d * m_low| < 2^24.
 */
static KQ_INLINE int32_t on_common_scale(int32_t distance, const add_scale *scale)
{
    const int32_t product = distance * scale->high + kq_shift_down(distance * scale->low + 1024, 11);
    return rounded(product, scale->right, scale->half, scale->away);
}

/* Three products a value, each rounded twice (SPEC 3.5, shifts from 31 up). The sum of two stays below 2^28. output may be a, and b where
 * count_b is count.
 */
KQGEN_CODE void kq_rescaled_add_s8(const kq_rescaled_add *add, const int8_t *a, const int8_t *b, int8_t *output)
{
    const add_scale scale_a = scale_of(add->multiplier_a, add->shift_a);
    const add_scale scale_b = scale_of(add->multiplier_b, add->shift_b);
    const add_scale scale = scale_of(add->multiplier, add->shift);
    const int32_t multiplier = add->multiplier;
    const int32_t zero_point_a = add->zero_point_a;
    const int32_t zero_point_b = add->zero_point_b;
    const int32_t zero_point = add->zero_point;
    const int32_t lo = add->lo;
    const int32_t hi = add->hi;
    const uint32_t count_b = add->count_b;
    const uint32_t flip = 0u - add->minus;
    uint32_t left = add->count;
    while (left != 0) {
        uint32_t i;
        for (i = 0; i < count_b; ++i) {
            const uint32_t scaled_a = (uint32_t)on_common_scale(a[i] - zero_point_a, &scale_a);
            const uint32_t scaled_b = (uint32_t)on_common_scale(b[i] - zero_point_b, &scale_b);
            const int32_t total = kq_signed(scaled_a + ((scaled_b ^ flip) - flip));
            const int32_t scaled = rounded(kq_scaled_q31(total, multiplier), scale.right, scale.half, scale.away);
            output[i] = (int8_t)kq_clamped(scaled + zero_point, lo, hi);
        }
        a += count_b;
        output += count_b;
        left -= count_b;
    }
}
