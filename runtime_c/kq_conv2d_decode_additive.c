/* Convolution by lookup, form `decode` (SPEC 6.2), by an additive codebook: a kernel is the sum of two codewords (SPEC 4.2). */
#include "kq.h"
#include "kq_decode.h"

#define SUM_OFFSET (2u * KQ_WEIGHT_OFFSET)

/* Adds a codeword (or minus it) to an expanded kernel, each value plus 32; as kq_expand_codeword otherwise. Two codewords give values plus
 * 64, 2..126.
 */
KQGEN_CODE static KQ_NOINLINE void add_codeword(
    const uint8_t *codebook, uint32_t codeword, uint32_t negative, uint8_t *kernel, uint32_t n)
{
    kq_bit_reader reader = kq_bits_at(codebook, codeword * n, KQ_CODEBOOK_BITS);
    const uint32_t flip = negative != 0 ? 0xFFFFFFFFu : 0;
    const uint32_t plus = negative != 0 ? 2u * KQ_WEIGHT_OFFSET + 1u : 0;
    uint32_t t;
    for (t = 0; t < n; ++t) {
        const uint32_t value = kq_bits_next(&reader, KQ_CODEBOOK_BITS) ^ KQ_WEIGHT_OFFSET;
        kernel[t] = (uint8_t)(kernel[t] + (value ^ flip) + plus);
    }
}

/* Expands the kernels of output channels first..first+channels-1 into [channels][c_in][n] bytes, values plus 64. */
KQGEN_CODE static void expand_sums(const kq_conv2d_kq *conv, uint32_t n, uint32_t first, uint32_t channels, uint8_t *kernels)
{
    const uint32_t c_in = conv->window.c_in;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t bits = conv->index_bits;
    const uint32_t code_bits = bits - conv->sign;
    const uint32_t stage_bits = code_bits >> 1;
    const uint32_t stage_mask = ((uint32_t)1 << stage_bits) - 1u;
    const uint32_t channel_bytes = c_in * n;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        kq_bit_reader reader = kq_bits_at(conv->indices, i * c_out + first, bits);
        uint8_t *kernel = kernels + i * n;
        uint32_t o;
        for (o = 0; o < channels; ++o) {
            const uint32_t index = kq_bits_next(&reader, bits);
            const uint32_t negative = index >> code_bits;
            const uint32_t second = (index >> stage_bits) & stage_mask;
            kq_expand_codeword(conv->codebook, index & stage_mask, negative, kernel, n);
            add_codeword(conv->codebook, conv->codewords + second, negative, kernel, n);
            kernel += channel_bytes;
        }
    }
}

/* Form `decode` (SPEC 6.2) by an additive codebook; scratch and tile as kq_conv2d_decode_s8. */
KQGEN_CODE void kq_conv2d_decode_additive_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t tile = conv->window.tile;
    uint32_t *taps = scratch;
    uint8_t *kernels = (uint8_t *)(taps + 2u * (n + 1u) * conv->window.c_in);
    uint32_t first;
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        expand_sums(conv, n, first, channels, kernels);
        kq_decode_pixels(conv, input, output, n, first, channels, kernels, taps, SUM_OFFSET);
    }
}
