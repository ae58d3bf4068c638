/* Depthwise convolution (SPEC 5.14, 6.9): each output channel reads one input channel. */
#include "kq.h"
#include "kq_depthwise.h"

/* Copies input channel `channel` into a plane of rows times columns, what lies off the map filled with its padding value. */
KQGEN_CODE static KQ_NOINLINE void lay_plane(const depthwise_layer *layer, const int8_t *input, uint32_t channel, int8_t *plane)
{
    const kq_window *window = layer->window;
    const int8_t pad = kq_pad(layer->pad_values, (int8_t)layer->pad_value, channel);
    const uint32_t c_in = window->c_in;
    uint32_t row;
    for (row = 0; row < layer->rows; ++row) {
        const uint32_t y = row - window->pad_top;
        const int8_t *from = input + y * window->w_in * c_in + channel;
        uint32_t column;
        for (column = 0; column < layer->columns; ++column) {
            const uint32_t x = column - window->pad_left;
            *plane = y < window->h_in && x < window->w_in ? from[x * c_in] : pad;
            ++plane;
        }
    }
}

/* Output channel o from the plane of its input channel. */
KQGEN_CODE static KQ_NOINLINE void convolve_plane(
    const depthwise_layer *layer, uint32_t o, const int8_t *kernel, const int8_t *plane, int8_t *output)
{
    const kq_window *window = layer->window;
    const uint32_t bias = (uint32_t)layer->requant->bias[o];
    const uint32_t row_step = (uint32_t)window->stride_h * layer->columns;
    int8_t *to = output + o;
    uint32_t y;
    for (y = 0; y < window->h_out; ++y) {
        const int8_t *from = plane;
        uint32_t x;
        for (x = 0; x < window->w_out; ++x) {
            const int8_t *weight = kernel;
            const int8_t *values = from;
            uint32_t acc = bias;
            uint32_t row;
            for (row = 0; row < window->k_h; ++row) {
                uint32_t column;
                for (column = 0; column < window->k_w; ++column) {
                    acc += (uint32_t)(*weight * values[column]);
                    ++weight;
                }
                values += layer->columns;
            }
            kq_store(acc, layer->requant, o, to);
            to += window->c_out;
            from += window->stride_w;
        }
        plane += row_step;
    }
}

/* All channels, one after the other. Scratch: a plane, two kernels. */
KQGEN_CODE static KQ_NOINLINE void convolve(const depthwise_layer *layer, const int8_t *input, int8_t *output, void *scratch)
{
    int8_t *plane = scratch;
    int8_t *room = plane + layer->rows * layer->columns;
    uint32_t o = 0;
    uint32_t channel;
    for (channel = 0; channel < layer->window->c_in; ++channel) {
        uint32_t left;
        lay_plane(layer, input, channel, plane);
        for (left = layer->each; left != 0; --left) {
            convolve_plane(layer, o, depthwise_kernel(layer, o, room), plane, output);
            ++o;
        }
    }
}

/* Uniform weights; scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = conv;
    layer.indexed = NULL;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    convolve(&layer, input, output, scratch);
}

/* Indexed kernels, of plain and of additive codebooks; scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = NULL;
    layer.indexed = conv;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    convolve(&layer, input, output, scratch);
}
