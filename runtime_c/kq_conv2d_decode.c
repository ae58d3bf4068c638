/* Convolution by lookup, form `decode` (SPEC 6.2): the kernels of a tile of output channels are expanded once, then all output pixels
 * are convolved with them, four pixels to a weight and two to a multiply.
 */
#include "kq.h"
#include "kq_decode.h"

/* Expands the kernels of output channels first..first+channels-1 into [channels][c_in][n] bytes. */
KQGEN_CODE static void expand_kernels(const kq_conv2d_kq *conv, uint32_t n, uint32_t first, uint32_t channels, uint8_t *kernels)
{
    const uint32_t c_in = conv->window.c_in;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t bits = conv->index_bits;
    const uint32_t code_bits = bits - conv->sign;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    const uint32_t channel_bytes = c_in * n;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        kq_bit_reader reader = kq_bits_at(conv->indices, i * c_out + first, bits);
        uint32_t kernel = i * n;
        uint32_t o;
        for (o = 0; o < channels; ++o) {
            const uint32_t index = kq_bits_next(&reader, bits);
            kq_expand_codeword(conv->codebook, index & code_mask, index >> code_bits, kernels + kernel, n);
            kernel += channel_bytes;
        }
    }
}

/* Form `decode` (SPEC 6.2); scratch as SPEC 6.4: packed taps, then kernels. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t tile = conv->window.tile;
    uint32_t *taps = scratch;
    uint8_t *kernels = (uint8_t *)(taps + 2u * (n + 1u) * conv->window.c_in);
    uint32_t first;
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        expand_kernels(conv, n, first, channels, kernels);
        kq_decode_pixels(conv, input, output, n, first, channels, kernels, taps, KQ_WEIGHT_OFFSET);
    }
}
