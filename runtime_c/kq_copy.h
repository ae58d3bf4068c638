/* Bytes copied and filled, by words where addresses allow. */
#ifndef KQ_COPY_H
#define KQ_COPY_H

#include "kq_types.h"

#if defined(__GNUC__)
typedef uint32_t __attribute__((may_alias)) kq_any_word;
#endif

/* Copies size_bytes bytes, which do not overlap. */
KQGEN_CODE static inline void kq_copy(const int8_t *from, int8_t *to, uint32_t size_bytes)
{
    uint32_t i = 0;
#if defined(__GNUC__)
    if (size_bytes >= 8u && (((uintptr_t)from ^ (uintptr_t)to) & 3u) == 0u) {
        for (; (((uintptr_t)to + i) & 3u) != 0u; ++i) {
            to[i] = from[i];
        }
        for (; i + 4u <= size_bytes; i += 4u) {
            *(kq_any_word *)(void *)(to + i) = *(const kq_any_word *)(const void *)(from + i);
        }
    }
#endif
    for (; i < size_bytes; ++i) {
        to[i] = from[i];
    }
}

/* Writes size_bytes times `value`. */
KQGEN_CODE static inline void kq_fill(int8_t *to, uint32_t size_bytes, int8_t value)
{
    uint32_t i = 0;
#if defined(__GNUC__)
    const uint32_t word = (uint8_t)value * 0x01010101u;
    if (size_bytes >= 8u) {
        for (; (((uintptr_t)to + i) & 3u) != 0u; ++i) {
            to[i] = value;
        }
        for (; i + 4u <= size_bytes; i += 4u) {
            *(kq_any_word *)(void *)(to + i) = word;
        }
    }
#endif
    for (; i < size_bytes; ++i) {
        to[i] = value;
    }
}

#endif
