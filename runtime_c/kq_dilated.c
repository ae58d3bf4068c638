/* Convolution whose taps lie apart (SPEC 5.17, 6.9), in plain C for every core: one output channel after the other, its weights expanded first.
 * window.tile holds 256 * dilation_h + dilation_w.
 */
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* A layer, however its weights are stored: one of `uniform` and `indexed` is NULL. */
typedef struct {
    const kq_conv2d *uniform;
    const kq_conv2d_kq *indexed;
    const kq_window *window;
    const kq_requant *requant;
    const int8_t *pad_values;
    const int8_t *input;
    uint32_t taps;     /* k_h * k_w */
    uint32_t channels; /* that an output channel reads: c_in, or 1 */
    int8_t pad_value;
} dilated_layer;

/* Value t of the codeword, or of the sum of two, that `code` names. */
KQGEN_CODE static int32_t value_at(const kq_conv2d_kq *conv, uint32_t code, uint32_t t, uint32_t taps)
{
    const uint32_t stage_bits = ((uint32_t)conv->index_bits - conv->sign) >> 1;
    const uint32_t first = conv->stages == 2u ? code & (((uint32_t)1 << stage_bits) - 1u) : code;
    int32_t value = kq_sign_extend(kq_bits_entry(conv->codebook, first * taps + t, 6), 6);
    if (conv->stages == 2u) {
        value += kq_sign_extend(kq_bits_entry(conv->codebook, (conv->codewords + (code >> stage_bits)) * taps + t, 6), 6);
    }
    return value;
}

/* Writes the weights of output channel o as [tap][channel]. */
KQGEN_CODE static KQ_NOINLINE void expand(const dilated_layer *layer, uint32_t o, int8_t *weights)
{
    const uint32_t count = layer->taps * layer->channels;
    uint32_t i;
    if (layer->uniform != NULL) {
        const uint32_t bits = layer->uniform->bits;
        kq_bit_reader reader = kq_bits_at(layer->uniform->weights, o * count, bits);
        for (i = 0; i < count; ++i) {
            weights[i] = (int8_t)kq_sign_extend(kq_bits_next(&reader, bits), bits);
        }
    } else {
        const kq_conv2d_kq *conv = layer->indexed;
        const uint32_t mask = ((uint32_t)1 << ((uint32_t)conv->index_bits - conv->sign)) - 1u;
        for (i = 0; i < layer->channels; ++i) {
            const uint32_t index = kq_bits_entry(conv->indices, i * layer->window->c_out + o, conv->index_bits);
            uint32_t t;
            for (t = 0; t < layer->taps; ++t) {
                const int32_t value = value_at(conv, index & mask, t, layer->taps);
                weights[t * layer->channels + i] = (int8_t)(index > mask ? -value : value);
            }
        }
    }
}

/* The dot product of a window whose first tap lies at (top, left), maybe off the map, with expanded weights; `first` channel of the map. */
KQGEN_CODE static KQ_NOINLINE uint32_t dot(const dilated_layer *layer, const int8_t *weights, int32_t top, int32_t left, uint32_t first)
{
    const kq_window *window = layer->window;
    const int32_t down = window->tile >> 8;
    const int32_t along = window->tile & 0xFF;
    uint32_t acc = 0;
    uint32_t row;
    for (row = 0; row < window->k_h; ++row) {
        int32_t x = left;
        uint32_t column;
        for (column = 0; column < window->k_w; ++column) {
            const int inside = top >= 0 && top < window->h_in && x >= 0 && x < window->w_in;
            const int8_t *from = layer->input;
            uint32_t i;
            if (inside) {
                from += ((uint32_t)top * window->w_in + (uint32_t)x) * window->c_in + first;
            }
            for (i = 0; i < layer->channels; ++i) {
                const int32_t value = inside ? from[i] : kq_pad(layer->pad_values, layer->pad_value, first + i);
                acc += (uint32_t)(*weights * value);
                ++weights;
            }
            x += along;
        }
        top += down;
    }
    return acc;
}

/* A layer whose fields but the sizes are filled in; depthwise: an output channel reads one input channel. */
KQGEN_CODE static KQ_NOINLINE void convolve(dilated_layer *layer, uint32_t depthwise, int8_t *output, int8_t *weights)
{
    const kq_window *window = layer->window;
    uint32_t first = 0;
    uint32_t part = 0;
    uint32_t o;
    layer->taps = (uint32_t)window->k_h * window->k_w;
    layer->channels = depthwise != 0 ? 1u : window->c_in;
    for (o = 0; o < window->c_out; ++o) {
        int8_t *to = output + o;
        int32_t top = -(int32_t)window->pad_top;
        uint32_t y;
        expand(layer, o, weights);
        for (y = 0; y < window->h_out; ++y) {
            int32_t left = -(int32_t)window->pad_left;
            uint32_t x;
            for (x = 0; x < window->w_out; ++x) {
                kq_store((uint32_t)layer->requant->bias[o] + dot(layer, weights, top, left, first), layer->requant, o, to);
                to += window->c_out;
                left += window->stride_w;
            }
            top += window->stride_h;
        }
        /* c_out / c_in output channels, then the next input channel. */
        part += depthwise != 0 ? window->c_in : 0;
        if (part == window->c_out) {
            part = 0;
            ++first;
        }
    }
}

/* Uniform weights. */
KQGEN_CODE static void convolve_uniform(const kq_conv2d *conv, uint32_t depthwise, const int8_t *input, int8_t *output, void *scratch)
{
    dilated_layer layer = {conv, NULL, &conv->window, &conv->requant, conv->pad_values, input, 0, 0, conv->pad_value};
    convolve(&layer, depthwise, output, scratch);
}

/* Indexed kernels. */
KQGEN_CODE static void convolve_indexed(const kq_conv2d_kq *conv, uint32_t depthwise, const int8_t *input, int8_t *output, void *scratch)
{
    dilated_layer layer = {NULL, conv, &conv->window, &conv->requant, conv->pad_values, input, 0, 0, conv->pad_value};
    convolve(&layer, depthwise, output, scratch);
}

/* Scratch as SPEC 6.4. */
KQGEN_CODE void kq_conv2d_dilated_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    convolve_uniform(conv, 0, input, output, scratch);
}

/* Scratch as SPEC 6.4. */
KQGEN_CODE void kq_conv2d_decode_dilated_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    convolve_indexed(conv, 0, input, output, scratch);
}

/* Scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_dilated_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    convolve_uniform(conv, 1, input, output, scratch);
}

/* Scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_decode_dilated_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    convolve_indexed(conv, 1, input, output, scratch);
}
