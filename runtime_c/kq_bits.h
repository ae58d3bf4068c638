/* Readers of packed tables (SPEC 4.1): n-bit entries, lowest bit first.
 *
 * Tables are read a byte at a time, so they may lie at any address, and never beyond the byte that holds the last bit asked for.
 */
#ifndef KQ_BITS_H
#define KQ_BITS_H

#include "kq_types.h"

/* A position in a stream: bytes from `next` on are unread, the low `held_bits` bits of `held` (0..7 between calls) come before them. */
typedef struct {
    const uint8_t *next;
    uint32_t held;
    uint32_t held_bits;
} kq_bit_reader;

/* A reader before entry number `entry` of a table whose entries have `bits` bits, 1..16. The bit position may exceed 2^32. */
KQGEN_CODE static inline kq_bit_reader kq_bits_at(const uint8_t *table, uint32_t entry, uint32_t bits)
{
    kq_bit_reader reader;
    const uint32_t rest = (entry & 7u) * bits; /* bits after the last multiple of 8 entries, which ends on a whole byte */
    const uint32_t used = rest & 7u;
    reader.next = table + (size_t)(entry >> 3) * bits + (rest >> 3);
    reader.held = 0;
    reader.held_bits = 0;
    if (used != 0) {
        reader.held = (uint32_t)*reader.next >> used;
        reader.held_bits = 8u - used;
        ++reader.next;
    }
    return reader;
}

/* The next entry, 0..2^bits-1; bits 1..16. */
KQGEN_CODE static inline uint32_t kq_bits_next(kq_bit_reader *reader, uint32_t bits)
{
    uint32_t value;
    while (reader->held_bits < bits) {
        reader->held |= (uint32_t)*reader->next << reader->held_bits;
        ++reader->next;
        reader->held_bits += 8u;
    }
    value = reader->held & (((uint32_t)1 << bits) - 1u);
    reader->held >>= bits;
    reader->held_bits -= bits;
    return value;
}

/* Entry number `entry` of a table, 0..2^bits-1; bits 1..16. */
KQGEN_CODE static inline uint32_t kq_bits_entry(const uint8_t *table, uint32_t entry, uint32_t bits)
{
    kq_bit_reader reader = kq_bits_at(table, entry, bits);
    return kq_bits_next(&reader, bits);
}

/* The two's complement number in the low `bits` bits of value, -2^(bits-1)..2^(bits-1)-1; higher bits of value are 0. */
KQGEN_CODE static inline int32_t kq_sign_extend(uint32_t value, uint32_t bits)
{
    const int32_t half = (int32_t)((uint32_t)1 << (bits - 1u));
    return ((int32_t)value ^ half) - half;
}

#endif
