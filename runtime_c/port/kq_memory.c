/* memcpy and memset for images linked without a C library: compilers call them for structs and loops.
 * Compiled with -fno-builtin, so that their own loops do not become calls to themselves.
 */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size_bytes);
void *memset(void *to, int value, size_t size_bytes);

/* Copies by words where both ends are word-aligned, by bytes elsewhere. */
void *memcpy(void *restrict to, const void *restrict from, size_t size_bytes)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((((uintptr_t)out | (uintptr_t)in) & 3u) == 0u) {
        for (; size_bytes >= 4u; size_bytes -= 4u) {
            *(uint32_t *)(void *)out = *(const uint32_t *)(const void *)in;
            out += 4;
            in += 4;
        }
    }
    for (; size_bytes != 0u; size_bytes--) {
        *out = *in;
        out++;
        in++;
    }
    return to;
}

/* Fills with the low byte of value; by words where the start is word-aligned. */
void *memset(void *to, int value, size_t size_bytes)
{
    uint8_t *out = to;
    const uint32_t byte = (uint32_t)value & 0xFFu;
    if (((uintptr_t)out & 3u) == 0u) {
        const uint32_t word = byte * 0x01010101u;
        for (; size_bytes >= 4u; size_bytes -= 4u) {
            *(uint32_t *)(void *)out = word;
            out += 4;
        }
    }
    for (; size_bytes != 0u; size_bytes--) {
        *out = (uint8_t)byte;
        out++;
    }
    return to;
}
