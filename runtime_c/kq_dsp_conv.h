/* Convolution on cores with the DSP extension (SPEC 6.5): weights of a tile of output channels widened to int16 once, then four output
 * channels by two pixels at a time. What both ways of storing weights share, and uniform weights.
 *
 * The file that includes this gets a copy of its own of what follows; DSP_DUAL, defined before, chooses the order of instructions for cores
 * that issue two at once.
 */
#ifndef KQ_DSP_CONV_H
#define KQ_DSP_CONV_H

#include "kq_bits.h"
#include "kq_dsp.h"
#include "kq_dsp_groups.h"
#include "kq_dsp_windows.h"
#include "kq_fixed.h"
#include "kq_window.h"

#define DSP_GROUP 4u /* output channels of a group */
#define DSP_EIGHT 8u

/* For functions that are not called often: as little code as can be. */
#if defined(__GNUC__)
#define DSP_SMALL __attribute__((cold, noinline))
#else
#define DSP_SMALL
#endif

/* Limits `channels` results of one pixel that `row` holds, adds them to what `to` holds where the layer sums, and stores them there. */
KQGEN_CODE static KQ_NOINLINE void settle_row(const kq_requant *requant, const int8_t *row, uint32_t channels, int8_t *to)
{
    const int32_t lo = requant->lo;
    const int32_t hi = requant->hi;
    const int8_t *end = row + channels;
    if (requant->sum == NULL) {
        while (row != end) {
            *to = (int8_t)kq_clamped(*row, lo, hi);
            ++row;
            ++to;
        }
    } else {
        const kq_add sum = *requant->sum;
        while (row != end) {
            *to = (int8_t)kq_summed(&sum, kq_clamped(*row, lo, hi), *to);
            ++row;
            ++to;
        }
    }
}

/* Words of a group behind its multipliers. */
static KQ_INLINE uint32_t rule_words(const dsp_layer *layer)
{
#if KQ_WITH_TFLITE
    return layer->rule_words;
#else
    (void)layer;
    return 0;
#endif
}

#if KQ_WITH_TFLITE
/* Chooses the groups of a layer that rounds twice, by shifts of at least 1 behind the product, and whose scratch is made for them. */
KQGEN_CODE static DSP_SMALL void choose_rule(dsp_layer *layer)
{
    const kq_requant *requant = layer->requant;
    uint32_t o;
    layer->rule_words = requant->acc_shift == KQ_ROUND_TWICE ? 4u : 0;
    for (o = 0; o < layer->window->c_out; ++o) {
        if (requant->shift[o] < 32u) {
            layer->rule_words = 0;
        }
    }
}

/* Multipliers and shifts of output channels first..first+channels-1 by SPEC 3.5. */
KQGEN_CODE static DSP_SMALL void put_rules(dsp_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = layer->requant;
    uint32_t *rules = layer->groups + layer->group_words - 8;
    uint32_t o;
    for (o = 0; o < channels; ++o) {
        rules[o & 3u] = (uint32_t)requant->multiplier_q31[first + o];
        rules[4u + (o & 3u)] = requant->shift[first + o] - 31u;
        if ((o & 3u) == 3u) {
            rules += layer->group_words;
        }
    }
    layer->ready = 1;
}
#endif

/* Results of the groups from `weights` on of the two pixels that are widened. */
static KQ_INLINE void run_groups(
    const dsp_layer *layer, const uint32_t *weights, int8_t *to0, int8_t *to1, const uint32_t *w_last, int32_t zero_point)
{
#if KQ_WITH_TFLITE
    if (layer->rule_words != 0) {
        dsp_groups_twice(layer->x, weights, to0, to1, layer->x_eights, layer->x_last, w_last, zero_point);
        return;
    }
#endif
    dsp_groups(layer->x, weights, to0, to1, layer->x_eights, layer->x_last, w_last, zero_point);
}

/* Output channels first..first+channels-1 of `pixels` pixels, 2 or 1, whose windows are widened, by way of two rows in scratch; `to` is
 * where the first pixel's first result goes.
 */
KQGEN_CODE static DSP_SMALL void convolve_by_rows(
    const dsp_layer *layer, uint32_t first, uint32_t channels, uint32_t pixels, int8_t *to)
{
    const kq_requant *requant = layer->requant;
    const uint32_t *weights = layer->groups;
    const uint32_t whole = round_up(channels);
    int8_t *row = layer->rows;
    uint32_t done = 0;
    if (layer->ready) {
        run_groups(layer, weights, row, row + whole, weights + (whole >> 2) * layer->group_words - 1, requant->zero_point);
        done = channels;
    }
    while (done < channels) {
        uint32_t acc[2u * DSP_GROUP];
        uint32_t i;
        dsp_groups(layer->x, weights, acc, NULL, layer->x_eights, layer->x_last, weights, 0);
        weights += layer->group_words;
        for (i = 0; i < 2u * DSP_GROUP && done + (i >> 1) < channels; ++i) {
            row[done + (i >> 1) + ((i & 1u) != 0 ? whole : 0)] = kq_requantise(acc[i], requant, first + done + (i >> 1));
        }
        done += DSP_GROUP;
    }
    do {
        settle_row(requant, row, channels, to);
        row += whole;
        to += layer->window->c_out;
        --pixels;
    } while (pixels != 0);
}

/* Output channels first..first+channels-1 of all pixels by the groups in scratch. */
KQGEN_CODE static KQ_NOINLINE void convolve(const dsp_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_window *window = layer->window;
    const kq_requant *requant = layer->requant;
    const uint32_t c_out = window->c_out;
    const uint32_t row_step = (uint32_t)window->w_in * window->c_in;
    const uint32_t *w_last = layer->groups + (channels >> 2) * layer->group_words - 1;
    const int straight = layer->ready && (channels & 3u) == 0 && requant->sum == NULL && requant->hi - requant->lo == INT8_MAX - INT8_MIN;
    const int nines = layer->row_values == 9u && window->k_h == 3;
    int8_t *to = layer->output + first;
    uint32_t waiting = 0;
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        kq_view view;
        int32_t left = -(int32_t)window->pad_left;
        int whole;
        pixel.x = 0;
        view = kq_view_at(window, pixel);
        whole = view.row_hi - view.row_lo == window->k_h && (nines || layer->rest == 0);
        for (; pixel.x < window->w_out; ++pixel.x) {
            uint32_t *words = layer->x + waiting;
            const int8_t *from = layer->input + view.base;
            if (!whole || left < 0 || left + window->k_w > window->w_in) {
                widen_edge(layer, &view, left, words);
            } else if (nines) {
                widen_nines(words, from, row_step);
            } else {
                widen_rows(words, from, layer->row_quads, window->k_h, row_step);
            }
            left += window->stride_w;
            view.base += (uint32_t)window->stride_w * window->c_in;
            waiting ^= 1u;
            if (waiting == 0) {
                if (straight) {
                    run_groups(layer, layer->groups, to, to + c_out, w_last, requant->zero_point);
                } else {
                    convolve_by_rows(layer, first, channels, 2, to);
                }
                to += 2u * c_out;
            }
        }
    }
    if (waiting != 0) {
        convolve_by_rows(layer, first, channels, 1, to);
    }
}

/* Writes biases and multipliers of the groups of output channels first..first+channels-1, and zeros as weights of a group that is not full
 * or whose windows may not fill their quads. `ready`: SPEC 3.2 is one multiplication by m * 2^(16 + acc_shift - shift) wherever that is an
 * integer below 2^31.
 */
KQGEN_CODE static DSP_SMALL void prepare_groups(dsp_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = layer->requant;
    const uint32_t base = 16u + requant->acc_shift;
    uint32_t *group = layer->groups;
    uint32_t o = 0;
    layer->ready = 1;
    while (o < channels) {
        uint32_t *multipliers = group + layer->group_words - 4 - rule_words(layer);
        uint32_t i;
        if (channels - o < DSP_GROUP || layer->rest != 0) {
            uint32_t *word = group;
            while (word != multipliers) {
                *word = 0;
                ++word;
            }
        }
        for (i = 0; i < DSP_GROUP && o < channels; ++i) {
            const uint32_t channel = first + o;
            const uint32_t up = base - requant->shift[channel];
            group[i] = (uint32_t)requant->bias[channel];
            multipliers[i] = (uint32_t)requant->multiplier[channel] << (up & 31u);
            if (up > 16u || kq_rounds_as_tflite(requant->acc_shift)) {
                layer->ready = 0;
            }
            ++o;
        }
        group += layer->group_words;
    }
#if KQ_WITH_TFLITE
    if (layer->rule_words != 0) {
        put_rules(layer, first, channels);
    }
#endif
}

/* Fills a layer but for what `groups` holds, with the parts of scratch up to the groups laid out from `scratch` on. */
KQGEN_CODE static DSP_SMALL void lay_out(dsp_layer *layer, const int8_t *pad_values, int8_t pad_value, int8_t *scratch)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    const uint32_t row_values = c_in * window->k_w;
    const uint32_t rest = row_values & 3u;
    const uint32_t row_bytes = round_up(row_values);
    const uint32_t rests = rest * window->k_h;
    uint32_t channel = 0;
    uint32_t i;
    layer->row_values = row_values;
    layer->row_quads = row_values >> 2;
    layer->rest = rest;
    layer->rest_quads = round_up(rests) >> 2;
    layer->quads = layer->row_quads * window->k_h + layer->rest_quads;
#if KQ_WITH_TFLITE
    choose_rule(layer);
#endif
    layer->group_words = 8u + rule_words(layer) + (layer->quads << 3);
    layer->pad_row = scratch;
    layer->edge_row = layer->pad_row + row_bytes;
    layer->rows = layer->edge_row + row_bytes;
    layer->rests = layer->rows + 2u * round_up(window->tile);
    layer->x = (uint32_t *)(void *)(layer->rests + round_up(rests));
    layer->groups = layer->x + (layer->quads << 2);
    layer->x_last = layer->groups - 1;
    layer->x_eights = layer->x_last - ((layer->quads << 2) & (2u * DSP_EIGHT - 1u));
    for (i = 0; i < row_values; ++i) {
        layer->pad_row[i] = kq_pad(pad_values, pad_value, channel);
        ++channel;
        if (channel == c_in) {
            channel = 0;
        }
    }
    for (i = rests; i < round_up(rests); ++i) {
        layer->rests[i] = 0;
    }
}

/* The words of channel `channel` of a tile in its group: the first of them, others lie 4 apart. */
KQGEN_CODE static uint32_t *channel_words(const dsp_layer *layer, uint32_t channel)
{
    return layer->groups + (channel >> 2) * layer->group_words + 4 + (channel & 3u);
}

/* The next `count` weights of a table, 0 to 4, as a quad; those that are missing are 0. */
KQGEN_CODE static DSP_SMALL uint32_t next_weights(kq_bit_reader *reader, uint32_t bits, uint32_t count)
{
    uint32_t quad = 0;
    uint32_t at;
    for (at = 0; at < count << 3; at += 8u) {
        quad |= ((uint32_t)kq_sign_extend(kq_bits_next(reader, bits), bits) & 0xFFu) << at;
    }
    return quad;
}

/* Widens `quads` quads of weights of 8 bits, at least 1. Returns where the next go. */
KQGEN_CODE static KQ_NOINLINE uint32_t *widen_bytes(uint32_t *to, const int8_t *from, uint32_t quads)
{
    do {
        const uint32_t quad = kq_quad_at(from);
        to[0] = kq_even_values(quad);
        to[4] = kq_odd_values(quad);
        to += 8;
        from += 4;
        --quads;
    } while (quads != 0);
    return to;
}

/* Widens the uniform weights of `channels` output channels, which `reader` stands at. */
KQGEN_CODE static DSP_SMALL void widen_uniform(const dsp_layer *layer, kq_bit_reader *reader, uint32_t bits, uint32_t channels)
{
    uint32_t o;
    for (o = 0; o < channels; ++o) {
        uint32_t *to = channel_words(layer, o);
        int8_t *rests = layer->rests;
        uint32_t row;
        uint32_t i;
        for (row = 0; row < layer->window->k_h; ++row) {
            uint32_t rest;
            i = layer->row_quads;
            if (bits == 8u && i != 0) {
                to = widen_bytes(to, (const int8_t *)reader->next, i);
                reader->next += i << 2;
                i = 0;
            }
            for (; i != 0; --i) {
                const uint8_t *next = reader->next;
                uint32_t quad;
                if (reader->held_bits != 0) {
                    quad = next_weights(reader, bits, 4);
                } else if (bits == 4u) {
                    const uint32_t packed = next[0] | (uint32_t)next[1] << 8;
                    quad = (packed & 0xFu) | (packed & 0xF0u) << 4 | (packed & 0xF00u) << 8 | (packed & 0xF000u) << 12;
                    quad = kq_signed_quad(quad, 4u);
                    reader->next = next + 2;
                } else {
                    quad = kq_quad_of_6_bits(next[0] | (uint32_t)next[1] << 8 | (uint32_t)next[2] << 16);
                    reader->next = next + 3;
                }
                to[0] = kq_even_values(quad);
                to[4] = kq_odd_values(quad);
                to += 8;
            }
            rest = next_weights(reader, bits, layer->rest);
            for (i = layer->rest; i != 0; --i) {
                *rests = (int8_t)(rest & 0xFFu);
                ++rests;
                rest >>= 8;
            }
        }
        rests = layer->rests;
        for (i = layer->rest_quads; i != 0; --i) {
            const uint32_t quad = kq_quad_at(rests);
            to[0] = kq_even_values(quad);
            to[4] = kq_odd_values(quad);
            to += 8;
            rests += 4;
        }
    }
}

/* Uniform weights (SPEC 6.5); scratch as SPEC 6.4. window.tile: output channels, at least 1. */
KQGEN_CODE static void dsp_uniform(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t tile = window->tile;
    kq_bit_reader reader = kq_bits_at(conv->weights, 0, conv->bits);
    dsp_layer layer;
    uint32_t first;
    layer.window = window;
    layer.requant = &conv->requant;
    layer.input = input;
    layer.output = output;
    lay_out(&layer, conv->pad_values, conv->pad_value, scratch);
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        prepare_groups(&layer, first, channels);
        widen_uniform(&layer, &reader, conv->bits, channels);
        convolve(&layer, first, channels);
    }
}

#endif
