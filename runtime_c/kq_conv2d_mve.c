/* Convolution by uniform weights and by lookup, engine `mve` (SPEC 6.7): weights of a tile of output channels are expanded into vectors of
 * int8, then all output pixels are convolved with them.
 */
#include "kq.h"
#include "kq_mve.h"

/* Expands the weights of channels first..first+channels-1. The columns, not in use yet, hold one channel's in stored order meanwhile. */
KQGEN_CODE static void arrange_weights(const kq_conv2d *conv, const kq_mve_tile *tile, uint32_t first, uint32_t channels)
{
    const kq_window *window = &conv->window;
    const uint32_t c_in = window->c_in;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * c_in;
    int8_t *to = tile->weights;
    uint32_t o;
    kq_mve_clear(to, kq_mve_round(channels, 2) * KQ_MVE_BYTES * tile->steps);
    for (o = 0; o < channels; ++o) {
        const int8_t *from = tile->columns;
        uint32_t row;
        kq_mve_expand(conv->weights, (first + o) * taps, conv->bits, taps, tile->columns);
        for (row = 0; row < window->k_h; ++row) {
            uint32_t j = row * c_in;
            uint32_t column;
            for (column = 0; column < window->k_w; ++column) {
                uint32_t i;
                for (i = 0; i < c_in; ++i) {
                    to[kq_mve_place(j + i)] = *from;
                    ++from;
                }
                j += window->k_h * c_in;
            }
        }
        to += (o & 1u) != 0 ? (2u * tile->steps - 1u) * KQ_MVE_BYTES : KQ_MVE_BYTES;
    }
}

/* Engine `mve`, uniform weights; scratch as SPEC 6.7. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_mve_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t c_out = conv->window.c_out;
    const uint32_t size = conv->window.tile < c_out ? conv->window.tile : c_out;
    const kq_mve_tile tile =
        kq_mve_tile_at(&conv->window, &conv->requant, conv->pad_values, conv->pad_value, size, kq_mve_round(size, 2), scratch);
    uint32_t first;
    for (first = 0; first < c_out; first += size) {
        const uint32_t channels = c_out - first < size ? c_out - first : size;
        arrange_weights(conv, &tile, first, channels);
        kq_mve_convolve(&tile, input, output, first, channels);
    }
}

/* Codewords of one stage that the indices can name. */
KQGEN_CODE static uint32_t named_codewords(const kq_conv2d_kq *conv)
{
    const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
    const uint32_t most = (uint32_t)1 << (conv->stages == 2u ? code_bits >> 1 : code_bits);
    return conv->codewords < most ? conv->codewords : most;
}

/* Expands the kernels of channels first..first+channels-1 of input channel i, one after the other. `book` holds the codewords that can be
 * named as bytes, those of a second stage `stage_bytes` behind those of the first.
 */
KQGEN_CODE static void arrange_kernels(
    const kq_conv2d_kq *conv, const kq_mve_tile *tile, const int8_t *book, uint32_t stage_bytes, uint32_t i, uint32_t first,
    uint32_t channels)
{
    const kq_window *window = &conv->window;
    const uint32_t c_in = window->c_in;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
    const uint32_t stage_bits = conv->stages == 2u ? code_bits >> 1 : code_bits;
    const uint32_t mask = ((uint32_t)1 << stage_bits) - 1u;
    kq_bit_reader reader = kq_bits_at(conv->indices, i * window->c_out + first, conv->index_bits);
    int8_t *to = tile->weights;
    uint32_t o;
    for (o = 0; o < channels; ++o) {
        const uint32_t index = kq_bits_next(&reader, conv->index_bits);
        const uint32_t second = index >> stage_bits & mask;
        const int8_t *a = book + (index & mask) * n;
        const int8_t *b = book + stage_bytes + second * n;
        const int32_t sign = index >> code_bits != 0 ? -1 : 1;
        uint32_t row;
        for (row = 0; row < window->k_h; ++row) {
            uint32_t j = row * c_in + i;
            uint32_t column;
            for (column = 0; column < window->k_w; ++column) {
                const int32_t value = conv->stages == 2u ? *a + *b : *a;
                to[kq_mve_place(j)] = (int8_t)(sign * value);
                ++a;
                ++b;
                j += window->k_h * c_in;
            }
        }
        to += (o & 1u) != 0 ? (2u * tile->steps - 1u) * KQ_MVE_BYTES : KQ_MVE_BYTES;
    }
}

/* Engine `mve`, indexed kernels; scratch as SPEC 6.7. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_decode_mve_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    const uint32_t c_out = window->c_out;
    const uint32_t size = window->tile < c_out ? window->tile : c_out;
    const uint32_t weight_channels = kq_mve_round(size, 8);
    const kq_mve_tile tile =
        kq_mve_tile_at(window, &conv->requant, conv->pad_values, conv->pad_value, size, weight_channels, scratch);
    int8_t *book = tile.columns + kq_mve_columns_bytes(&tile);
    const uint32_t stage_bytes = named_codewords(conv) * n;
    uint32_t first;
    kq_mve_expand(conv->codebook, 0, 6, stage_bytes, book);
    if (conv->stages == 2u) {
        kq_mve_expand(conv->codebook, conv->codewords * n, 6, stage_bytes, book + stage_bytes);
    }
    for (first = 0; first < c_out; first += size) {
        const uint32_t channels = c_out - first < size ? c_out - first : size;
        uint32_t i;
        kq_mve_clear(tile.weights, weight_channels * KQ_MVE_BYTES * tile.steps);
        for (i = 0; i < window->c_in; ++i) {
            arrange_kernels(conv, &tile, book, stage_bytes, i, first, channels);
        }
        kq_mve_convolve(&tile, input, output, first, channels);
    }
}
