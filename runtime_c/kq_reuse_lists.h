/* Form `reuse`: lists from 6-bit indices, sixteen at a time. */
#ifndef KQ_REUSE_LISTS_H
#define KQ_REUSE_LISTS_H

#include "kq_reuse.h"

/* Four bytes at any address, the first in the lowest bits. */
KQGEN_CODE static inline uint32_t word_at(const uint8_t *from)
{
#if defined(__GNUC__) && defined(__thumb2__)
    typedef uint32_t __attribute__((may_alias, aligned(1))) anywhere;
    return *(const anywhere *)(const void *)from;
#else
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
#endif
}

/* Four entries' places in lists, `span` words apart: `place` plus 16 bytes times a 6-bit index. The first index stands in bits 4..9 of `even`,
 * the third in bits 16..21; the second and fourth so in `odd`; other bits count for nothing.
 */
KQGEN_CODE static KQ_INLINE void place_four(uint32_t even, uint32_t odd, uint32_t mask, uint32_t place, uint32_t *to, uint32_t span)
{
    const uint32_t first = kq_opaque(even & mask);
    const uint32_t second = kq_opaque(odd & mask);
    to[0] = place + (first & 0xFFFFu);
    to[span] = place + (second & 0xFFFFu);
    to[2u * span] = place + (first >> 12);
    to[3u * span] = place + (second >> 12);
}

/* Sixteen entries' places in lists, `span` words apart, from sixteen 6-bit indices at `from`. */
KQGEN_CODE static KQ_INLINE void place_16_of_6_bits(const uint8_t *from, uint32_t mask, uint32_t place, uint32_t *to, uint32_t span)
{
    const uint32_t word0 = word_at(from);
    const uint32_t word1 = word_at(from + 3);
    const uint32_t word2 = word_at(from + 6);
    const uint32_t word3 = word_at(from + 8);
    place_four(word0 << 4, word0 >> 2, mask, place, to, span);
    place_four(word1 << 4, word1 >> 2, mask, place, to + 4u * span, span);
    place_four(word2 << 4, word2 >> 2, mask, place, to + 8u * span, span);
    place_four(word3 >> 4, word3 >> 10, mask, place, to + 12u * span, span);
}

/* The entries of input channels in the lists of 32 output channels, `span` words apart, whose 6-bit indices begin at `from` and lie `step`
 * bytes apart from one input channel to the next; tables lie `table_bytes` apart. The first input channel's entries come first in the lists,
 * the second one's `second` words on, and so forth up to `stop`.
 */
KQGEN_CODE static KQ_INLINE void place_32_of_6_bits(
    const uint8_t *from, uint32_t step, uint32_t place, uint32_t table_bytes, uint32_t *list, uint32_t span, uint32_t second, uint32_t stop)
{
    const uint32_t mask = kq_opaque(0x003F03F0u);
    uint32_t *const end = list + stop;
    uint32_t *to = list;
    do {
        place_16_of_6_bits(from, mask, place, to, span);
        place_16_of_6_bits(from + 12, mask, place, to + 16u * span, span);
        from += step;
        place += table_bytes;
        to += to == list ? second : 1u;
    } while (to != end);
}

/* As place_32_of_6_bits for strips of six input channels. */
KQGEN_CODE static KQ_NOINLINE void place_sixes(const uint8_t *from, uint32_t step, uint32_t place, uint32_t table_bytes, uint32_t *list)
{
#if KQ_REUSE_SIXES
    place_32_of_6_bits(from, step, place, table_bytes, list, 6u, 1u, 6u);
    list[KQ_REUSE_GROUP * 6u] = 0;
#else
    place_32_of_6_bits(from, step, place, table_bytes, list, 6u + KQ_REUSE_EXTRA, kq_reuse_slot(1u), kq_reuse_slot(6u));
#endif
}

/* As place_32_of_6_bits for strips of eight input channels. */
KQGEN_CODE static KQ_NOINLINE void place_eights(const uint8_t *from, uint32_t step, uint32_t place, uint32_t table_bytes, uint32_t *list)
{
    place_32_of_6_bits(from, step, place, table_bytes, list, 8u + KQ_REUSE_EXTRA, kq_reuse_slot(1u), kq_reuse_slot(8u));
}

#endif
