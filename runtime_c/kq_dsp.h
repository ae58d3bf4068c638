/* Pieces of the forms for cores with the DSP extension (SPEC 6.5): two int16 in a word, two products an instruction. Each piece has a plain
 * C twin that gives the same bits.
 *
 * Quads: four int8 in a word, the first in the lowest byte. A quad widens to two words of int16: its first and third value, then its second
 * and fourth; weights and inputs alike, so that the order does not matter to their products.
 */
#ifndef KQ_DSP_H
#define KQ_DSP_H

#include "kq_types.h"

/* The quad at any address: cores with the DSP extension load words from everywhere. */
static KQ_INLINE uint32_t kq_quad_at(const int8_t *from)
{
#if defined(__ARM_FEATURE_DSP)
    typedef uint32_t __attribute__((may_alias, aligned(1))) anywhere;
    return *(const anywhere *)from;
#else
    const uint32_t low = (uint32_t)(uint8_t)from[0] | (uint32_t)(uint8_t)from[1] << 8;
    return low | (uint32_t)(uint8_t)from[2] << 16 | (uint32_t)(uint8_t)from[3] << 24;
#endif
}

/* First and third value of a quad as int16, the first in the low half. */
static KQ_INLINE uint32_t kq_even_values(uint32_t quad)
{
#if defined(__ARM_FEATURE_DSP)
    uint32_t values;
    __asm__("sxtb16 %0, %1" : "=r"(values) : "r"(quad));
    return values;
#else
    return ((uint32_t)(int8_t)(quad & 0xFFu) & 0xFFFFu) | (uint32_t)(int8_t)((quad >> 16) & 0xFFu) << 16;
#endif
}

/* Second and fourth value of a quad as int16, the second in the low half. */
static KQ_INLINE uint32_t kq_odd_values(uint32_t quad)
{
#if defined(__ARM_FEATURE_DSP)
    uint32_t values;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(values) : "r"(quad));
    return values;
#else
    return kq_even_values(quad >> 8);
#endif
}

/* The low halves of two words: that of `low` below that of `high`. */
static KQ_INLINE uint32_t kq_low_halves(uint32_t low, uint32_t high)
{
#if defined(__ARM_FEATURE_DSP)
    uint32_t halves;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(halves) : "r"(low), "r"(high));
    return halves;
#else
    return (low & 0xFFFFu) | high << 16;
#endif
}

/* The high halves of two words: that of `low` below that of `high`. */
static KQ_INLINE uint32_t kq_high_halves(uint32_t low, uint32_t high)
{
#if defined(__ARM_FEATURE_DSP)
    uint32_t halves;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(halves) : "r"(high), "r"(low));
    return halves;
#else
    return low >> 16 | (high & 0xFFFF0000u);
#endif
}

/* The quad itself where `flip` is 0, minus it where all bits of `flip` are set. Values -127..127. */
static KQ_INLINE uint32_t kq_flipped_quad(uint32_t quad, uint32_t flip)
{
    const uint32_t turned = quad ^ flip;
#if defined(__ARM_FEATURE_DSP)
    uint32_t flipped;
    __asm__("ssub8 %0, %1, %2" : "=r"(flipped) : "r"(turned), "r"(flip));
    return flipped;
#else
    /* Adds the flip's 1 to each byte without a carry into the next. */
    const uint32_t ones = flip & 0x01010101u;
    return ((turned & 0x7F7F7F7Fu) + ones) ^ (turned & 0x80808080u);
#endif
}

/* As a quad of numbers of `bits` bits, 4 or 6, from their bits as unsigned bytes. */
static KQ_INLINE uint32_t kq_signed_quad(uint32_t quad, uint32_t bits)
{
    const uint32_t half = 0x01010101u << (bits - 1u);
    return (((quad ^ half) | 0x80808080u) - half) ^ 0x80808080u;
}

/* Four 6-bit numbers from the low 24 bits of `packed`, the first in the lowest. */
static KQ_INLINE uint32_t kq_quad_of_6_bits(uint32_t packed)
{
    const uint32_t spread = (packed & 0x3Fu) | (packed & 0xFC0u) << 2 | (packed & 0x3F000u) << 4 | (packed & 0xFC0000u) << 6;
    return kq_signed_quad(spread, 6u);
}

/* acc plus the products of both halves of two words, int16 each, modulo 2^32. */
static KQ_INLINE uint32_t kq_two_products(uint32_t a, uint32_t b, uint32_t acc)
{
#if defined(__ARM_FEATURE_DSP)
    __asm__("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(a), "r"(b));
    return acc;
#else
    const int32_t low = (int16_t)(a & 0xFFFFu) * (int16_t)(b & 0xFFFFu);
    const int32_t high = (int16_t)(a >> 16) * (int16_t)(b >> 16);
    return acc + (uint32_t)low + (uint32_t)high;
#endif
}

/* acc plus the low half of a times the high half of b. */
static KQ_INLINE uint32_t kq_product_low_high(uint32_t a, uint32_t b, uint32_t acc)
{
#if defined(__ARM_FEATURE_DSP)
    __asm__("smlabt %0, %1, %2, %0" : "+r"(acc) : "r"(a), "r"(b));
    return acc;
#else
    return acc + (uint32_t)((int16_t)(a & 0xFFFFu) * (int16_t)(b >> 16));
#endif
}

/* acc plus the high half of a times the low half of b. */
static KQ_INLINE uint32_t kq_product_high_low(uint32_t a, uint32_t b, uint32_t acc)
{
    return kq_product_low_high(b, a, acc);
}

/* plus + floor((acc * multiplier + 2^31) / 2^32); multiplier 0..2^31-1. Elsewhere from halves: |high * any half| <= 2^15 * 65535 < 2^31. */
static KQ_INLINE int32_t kq_multiply_high(uint32_t acc, uint32_t multiplier, int32_t plus)
{
#if defined(__ARM_FEATURE_DSP)
    int32_t result;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(result) : "r"(acc), "r"(multiplier), "r"(plus));
    return result;
#else
    const int32_t high = (int32_t)acc >> 16;
    const uint32_t low = acc & 0xFFFFu;
    const uint32_t m_high = multiplier >> 16;
    const uint32_t m_low = multiplier & 0xFFFFu;
    const uint32_t across = (uint32_t)high * m_low;
    const uint32_t along = low * m_high;
    const uint32_t carry = ((low * m_low) >> 16) + (across & 0xFFFFu) + (along & 0xFFFFu) + 0x8000u;
    return plus + (int32_t)((uint32_t)high * m_high + (uint32_t)((int32_t)across >> 16) + (along >> 16) + (carry >> 16));
#endif
}

/* The int8 nearest to x. */
static KQ_INLINE int32_t kq_saturated(int32_t x)
{
#if defined(__ARM_FEATURE_DSP)
    int32_t saturated;
    __asm__("ssat %0, #8, %1" : "=r"(saturated) : "r"(x));
    return saturated;
#else
    return x < INT8_MIN ? INT8_MIN : (x > INT8_MAX ? INT8_MAX : x);
#endif
}

#endif
