/* The number of the largest channel (SPEC 5.13). */
#include "kq.h"

/* output = the first of the largest of 1 to 256 channels, minus 128, for each position. */
KQGEN_CODE void kq_argmax_s8(const kq_argmax *argmax, const int8_t *input, int8_t *output)
{
    const uint32_t channels = argmax->channels;
    uint32_t position;
    for (position = 0; position < argmax->positions; ++position) {
        int32_t largest = input[0];
        uint32_t found = 0;
        uint32_t i;
        for (i = 1; i < channels; ++i) {
            if (input[i] > largest) {
                largest = input[i];
                found = i;
            }
        }
        *output = (int8_t)((int32_t)found - 128);
        input += channels;
        ++output;
    }
}
