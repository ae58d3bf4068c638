/* A result for every value, from tables (SPEC 5.9). */
#include "kq.h"

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>

/* The whole vectors of 16 values by one table of 256 results; returns the values done. */
KQGEN_CODE static uint32_t look_up_vectors(const int8_t *table, const int8_t *input, int8_t *output, uint32_t count)
{
    uint32_t i;
    for (i = 0; i + 16u <= count; i += 16u) {
        const uint8x16_t at = veorq_u8(vreinterpretq_u8_s8(vldrbq_s8(input + i)), vdupq_n_u8(0x80u));
        vstrbq_s8(output + i, vldrbq_gather_offset_s8(table, at));
    }
    return i;
}

#endif

/* By one table; `middle` is the result of 0. */
KQGEN_CODE static void look_up(const int8_t *middle, const int8_t *input, int8_t *output, uint32_t count)
{
    const int8_t *const quads_end = input + (count & ~(uint32_t)3u);
    const int8_t *const end = input + count;
    while (input != quads_end) {
        const int32_t at0 = input[0];
        const int32_t at1 = input[1];
        const int32_t at2 = input[2];
        const int32_t at3 = input[3];
        output[0] = middle[at0];
        output[1] = middle[at1];
        output[2] = middle[at2];
        output[3] = middle[at3];
        input += 4;
        output += 4;
    }
    while (input != end) {
        *output = middle[*input];
        ++input;
        ++output;
    }
}

/* output = table[input + 128] of the one table, or of its channel's, channels fastest; output may be the input. */
KQGEN_CODE void kq_lookup_s8(const kq_lookup *lookup, const int8_t *input, int8_t *output)
{
    const int8_t *const middle = lookup->table + 128;
    const uint32_t channels = lookup->channels;
    uint32_t left = lookup->count;
    if (channels == 1u) {
        uint32_t done = 0;
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
        done = look_up_vectors(lookup->table, input, output, left);
#endif
        look_up(middle, input + done, output + done, left - done);
        return;
    }
    while (left != 0) {
        const int8_t *own = middle;
        uint32_t channel;
        for (channel = 0; channel < channels; ++channel) {
            *output = own[*input];
            ++input;
            ++output;
            own += 256;
        }
        left -= channels;
    }
}
