/* What the depthwise forms share (SPEC 6.9): the kernel of an output channel, and an input channel as a plane with its padding laid in.
 *
 * What windows read is copied to scratch before the results that would lie there are stored, so that results may go where the input lies,
 * when both maps have the same shape and strides are 1.
 */
#ifndef KQ_DEPTHWISE_H
#define KQ_DEPTHWISE_H

#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_types.h"
#include "kq_window.h"

/* A layer, however its weights are stored: one of `uniform` and `indexed` is NULL. */
typedef struct {
    const kq_conv2d *uniform;
    const kq_conv2d_kq *indexed;
    const kq_window *window;
    const kq_requant *requant;
    const int8_t *pad_values;
    int32_t pad_value;
    uint32_t taps;    /* k_h * k_w */
    uint32_t rows;    /* of a plane: those that the windows cover */
    uint32_t columns;
    uint32_t each;    /* output channels of one input channel */
} depthwise_layer;

/* A layer's sizes; the caller has set `uniform` and `indexed`. */
KQGEN_CODE static KQ_NOINLINE void depthwise_measure(
    depthwise_layer *layer, const kq_window *window, const kq_requant *requant, const int8_t *pad_values, int8_t pad_value)
{
    uint32_t channels = window->c_in;
    layer->window = window;
    layer->requant = requant;
    layer->pad_values = pad_values;
    layer->pad_value = pad_value;
    layer->taps = (uint32_t)window->k_h * window->k_w;
    layer->rows = (window->h_out - 1u) * window->stride_h + window->k_h;
    layer->columns = (window->w_out - 1u) * window->stride_w + window->k_w;
    layer->each = 1;
    while (channels < window->c_out) {
        channels += window->c_in;
        ++layer->each;
    }
}

/* Writes `count` signed numbers of `bits` bits from entry `entry` of a table as bytes. */
KQGEN_CODE static KQ_NOINLINE void depthwise_unpack(
    const uint8_t *table, uint32_t entry, uint32_t bits, uint32_t count, int8_t *to)
{
    kq_bit_reader reader = kq_bits_at(table, entry, bits);
    for (; count != 0; --count) {
        *to = (int8_t)kq_sign_extend(kq_bits_next(&reader, bits), bits);
        ++to;
    }
}

/* The kernel of output channel o as bytes, in `room`, which has room for two, or where it is stored so. */
KQGEN_CODE static KQ_NOINLINE const int8_t *depthwise_kernel(const depthwise_layer *layer, uint32_t o, int8_t *room)
{
    const uint32_t n = layer->taps;
    if (layer->uniform != NULL) {
        if (layer->uniform->bits == 8u) {
            return (const int8_t *)layer->uniform->weights + o * n;
        }
        depthwise_unpack(layer->uniform->weights, o * n, layer->uniform->bits, n, room);
    } else {
        const kq_conv2d_kq *conv = layer->indexed;
        const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
        const uint32_t index = kq_bits_entry(conv->indices, o, conv->index_bits);
        const uint32_t code = index & (((uint32_t)1 << code_bits) - 1u);
        const int32_t sign = index != code ? -1 : 1;
        uint32_t t;
        if (conv->stages == 2u) {
            const uint32_t stage_bits = code_bits >> 1;
            depthwise_unpack(conv->codebook, (code & (((uint32_t)1 << stage_bits) - 1u)) * n, 6, n, room);
            depthwise_unpack(conv->codebook, (conv->codewords + (code >> stage_bits)) * n, 6, n, room + n);
            for (t = 0; t < n; ++t) {
                room[t] = (int8_t)(sign * (room[t] + room[n + t]));
            }
        } else {
            depthwise_unpack(conv->codebook, code * n, 6, n, room);
            for (t = 0; t < n; ++t) {
                room[t] = (int8_t)(sign * room[t]);
            }
        }
    }
    return room;
}

#endif
