/* Convolution with two output channels in a word (SPEC 6.2), for cores without SIMD: by uniform weights (form `packed`) and by lookup
 * (form `decode`). The weights of a tile of output channels are expanded once into packed words; then the window of each output pixel is
 * laid out as words and convolved with them, eight channels at a time.
 */
#include "kq.h"
#include "kq_bits.h"
#include "kq_lanes.h"
#include "kq_window.h"

#define CODEBOOK_BITS 6u
#define LARGEST_VALUE 31u /* of a codeword */

/* A layer, however its weights are stored. */
typedef struct {
    const kq_window *window;
    const kq_requant *requant;
    const int8_t *pad_values;
    const int8_t *input;
    int8_t *output;
    uint32_t pad_value;  /* sign-extended */
    uint32_t by_channel; /* 1: a group is the kernel of an input channel; 0: taps come in the order of the map, cut into groups */
    kq_lanes lanes;
} packed_layer;

/* Where the next value of a window goes when taps come in the order of the map. */
typedef struct {
    uint32_t *to;
    uint32_t room; /* taps left in this group, at least 1 */
} packed_cursor;

/* Sets groups, span and taps: `groups` groups of `taps` taps. */
KQGEN_CODE static void set_groups(kq_lanes *lanes, uint32_t groups, uint32_t taps)
{
    lanes->groups = groups;
    lanes->taps = taps;
    lanes->span = taps == 9u ? taps : (taps + 1u) & ~(uint32_t)1u;
}

/* The fewest groups, as even as can be, whose weights of at most `largest` cannot sum to more than 255. */
KQGEN_CODE static void cut_taps(kq_lanes *lanes, uint32_t taps, uint32_t largest)
{
    uint32_t groups = 1;
    uint32_t each = taps;
    while (each * largest > KQ_LANE_SUM) {
        ++groups;
        while ((each - 1u) * groups >= taps) {
            --each;
        }
    }
    set_groups(lanes, groups, each);
}

/* Divides the scratch: the window, then the weights and the tables of `octets` times eight channels. Returns the end. */
KQGEN_CODE static uint32_t *split_scratch(kq_lanes *lanes, uint32_t octets, void *scratch)
{
    lanes->stream = scratch;
    lanes->weights = lanes->stream + lanes->groups * (lanes->span + KQ_LANE_WORDS);
    lanes->tables = lanes->weights + octets * lanes->groups * lanes->span * KQ_LANE_WORDS;
    return lanes->tables + octets * KQ_LANE_TABLE;
}

/* Clears the weights of `octets` times eight channels: what stays so is a missing channel or tap. */
KQGEN_CODE static KQ_NOINLINE void clear_weights(const kq_lanes *lanes, uint32_t octets)
{
    uint32_t *to = lanes->weights;
    const uint32_t *end = to + octets * lanes->groups * lanes->span * KQ_LANE_WORDS;
    while (to != end) {
        to[0] = 0;
        to[1] = 0;
        to[2] = 0;
        to[3] = 0;
        to += 4;
    }
}

/* Where the totals of output channels first..first+channels-1 start, and how they are requantised. A total of S starts from both biases
 * of a pair, packed like weights but to 32 bits, so that it ends as the even channel's sum after the odd one's is taken out.
 */
KQGEN_CODE static void fill_tables(const packed_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = layer->requant;
    uint32_t *table = layer->lanes.tables;
    uint32_t o;
    for (o = 0; o < ((channels + 7u) & ~(uint32_t)7u); o += 2u) {
        const uint32_t pair = (o >> 1) & 3u;
        uint32_t *entry = table + 8u + 6u * pair;
        uint32_t i;
        table[pair] = 0;
        table[KQ_LANE_WORDS + pair] = 0;
        for (i = 0; i < 2u; ++i) {
            const uint32_t there = o + i < channels ? 1u : 0;
            const uint32_t channel = there != 0 ? first + o + i : first;
            const uint32_t bias = there * (uint32_t)requant->bias[channel];
            table[pair] += bias << (16u * i);
            table[KQ_LANE_WORDS + pair] = bias;
            entry[2u + 2u * i] = (uint32_t)requant->multiplier[channel];
            entry[3u + 2u * i] = requant->shift[channel];
        }
        if (pair == 3u) {
            table += KQ_LANE_TABLE;
        }
    }
}

/* Adds the values of a codeword, times `scale` (1 or -1 in the even channel's half, 2^16 or -2^16 in the odd one's), to packed weights. */
KQGEN_CODE static KQ_NOINLINE void add_codeword(const uint8_t *codebook, uint32_t codeword, uint32_t scale, uint32_t *weights, uint32_t n)
{
    const kq_bit_reader reader = kq_bits_at(codebook, codeword * n, CODEBOOK_BITS);
    const uint8_t *next = reader.next;
    uint32_t held = reader.held;
    uint32_t held_bits = reader.held_bits;
    for (; n != 0; --n) {
        if (held_bits < CODEBOOK_BITS) {
            held |= (uint32_t)*next << held_bits;
            ++next;
            held_bits += 8u;
        }
        *weights += (uint32_t)kq_shift_down(kq_signed(held << 26), 26) * scale;
        held >>= CODEBOOK_BITS;
        held_bits -= CODEBOOK_BITS;
        weights += KQ_LANE_WORDS;
    }
}

/* As add_codeword from the codeword's values as bytes. */
KQGEN_CODE static KQ_NOINLINE void add_values(const int8_t *values, uint32_t scale, uint32_t *weights, uint32_t n)
{
    uint32_t t;
    for (t = 0; t < n; ++t) {
        *weights += (uint32_t)values[t] * scale;
        weights += KQ_LANE_WORDS;
    }
}

/* Expands all codewords, `count` values in all, into bytes. */
KQGEN_CODE static void expand_codebook(const uint8_t *codebook, uint32_t count, int8_t *values)
{
    kq_bit_reader reader = kq_bits_at(codebook, 0, CODEBOOK_BITS);
    uint32_t i;
    for (i = 0; i < count; ++i) {
        values[i] = (int8_t)kq_sign_extend(kq_bits_next(&reader, CODEBOOK_BITS), CODEBOOK_BITS);
    }
}

/* Expands the kernels of output channels first..first+channels-1, sums of `stages` codewords. `values`: the codebook as bytes, or NULL. */
KQGEN_CODE static void expand_kernels(
    const kq_conv2d_kq *conv, const kq_lanes *lanes, uint32_t stages, const int8_t *values, uint32_t first, uint32_t channels)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t bits = conv->index_bits;
    const uint32_t code_bits = bits - conv->sign;
    const uint32_t stage_bits = stages == 1u ? code_bits : code_bits >> 1;
    const uint32_t stage_mask = ((uint32_t)1 << stage_bits) - 1u;
    const uint32_t octet_words = lanes->groups * lanes->span * KQ_LANE_WORDS;
    uint32_t *channel_at = lanes->weights;
    uint32_t room = lanes->taps;
    uint32_t i;
    for (i = 0; i < conv->window.c_in; ++i) {
        kq_bit_reader reader = kq_bits_at(conv->indices, i * conv->window.c_out + first, bits);
        uint32_t *weights = channel_at;
        uint32_t o;
        for (o = 0; o < channels; ++o) {
            const uint32_t index = kq_bits_next(&reader, bits);
            const uint32_t one = (o & 1u) != 0 ? 0x10000u : 1u;
            const uint32_t scale = (index >> code_bits) != 0 ? 0u - one : one;
            uint32_t codeword = index & stage_mask;
            uint32_t stage;
            for (stage = 0; stage < stages; ++stage) {
                if (values != NULL) {
                    add_values(values + codeword * n, scale, weights, n);
                } else {
                    add_codeword(conv->codebook, codeword, scale, weights, n);
                }
                codeword = conv->codewords + ((index >> stage_bits) & stage_mask);
            }
            weights += o & 1u;
            if ((o & 7u) == 7u) {
                weights += octet_words - KQ_LANE_WORDS;
            }
        }
        room -= n;
        channel_at += n * KQ_LANE_WORDS;
        if (room == 0) {
            room = lanes->taps;
            channel_at += (lanes->span - lanes->taps) * KQ_LANE_WORDS;
        }
    }
}

/* Expands the uniform weights of output channels first..first+channels-1, each `taps` of them. */
KQGEN_CODE static void expand_weights(const kq_conv2d *conv, const kq_lanes *lanes, uint32_t taps, uint32_t first, uint32_t channels)
{
    const uint32_t bits = conv->bits;
    const uint32_t octet_words = lanes->groups * lanes->span * KQ_LANE_WORDS;
    kq_bit_reader reader = kq_bits_at(conv->weights, first * taps, bits);
    uint32_t *channel_at = lanes->weights;
    uint32_t o;
    for (o = 0; o < channels; ++o) {
        const uint32_t lane = 16u * (o & 1u);
        uint32_t *weights = channel_at;
        uint32_t room = lanes->taps;
        uint32_t left;
        for (left = taps; left != 0; --left) {
            *weights += (uint32_t)kq_sign_extend(kq_bits_next(&reader, bits), bits) << lane;
            weights += KQ_LANE_WORDS;
            --room;
            if (room == 0) {
                room = lanes->taps;
                weights += (lanes->span - lanes->taps) * KQ_LANE_WORDS;
            }
        }
        channel_at += o & 1u;
        if ((o & 7u) == 7u) {
            channel_at += octet_words - KQ_LANE_WORDS;
        }
    }
}

/* Whether groups of `each` of a channel's taps keep sums of absolute weights within 255, in all output channels. */
KQGEN_CODE static int sums_fit(const kq_conv2d *conv, uint32_t taps, uint32_t each)
{
    const uint32_t bits = conv->bits;
    kq_bit_reader reader = kq_bits_at(conv->weights, 0, bits);
    uint32_t o;
    for (o = 0; o < conv->window.c_out; ++o) {
        uint32_t sum = 0;
        uint32_t room = each;
        uint32_t left;
        for (left = taps; left != 0; --left) {
            const int32_t weight = kq_sign_extend(kq_bits_next(&reader, bits), bits);
            sum += (uint32_t)(weight < 0 ? -weight : weight);
            if (sum > KQ_LANE_SUM) {
                return 0;
            }
            --room;
            if (room == 0) {
                room = each;
                sum = 0;
            }
        }
    }
    return 1;
}

/* Groups of a layer's taps: the fewest that its weights allow and that take no more room than those any weights allow. */
KQGEN_CODE static void cut_weights(const kq_conv2d *conv, kq_lanes *lanes, uint32_t taps)
{
    uint32_t most;
    uint32_t groups = 1;
    uint32_t each = taps;
    cut_taps(lanes, taps, ((uint32_t)1 << (conv->bits - 1u)) - 1u);
    most = lanes->groups * lanes->span;
    while (groups < lanes->groups) {
        kq_lanes tried;
        set_groups(&tried, groups, each);
        if (tried.groups * tried.span <= most && sums_fit(conv, taps, each)) {
            set_groups(lanes, groups, each);
            return;
        }
        ++groups;
        while ((each - 1u) * groups >= taps) {
            --each;
        }
    }
}

/* Writes `count` bytes as words that lie `step` words apart. */
KQGEN_CODE static KQ_NOINLINE void widen_apart(uint32_t *to, uint32_t step, const int8_t *from, uint32_t count)
{
    const int8_t *end = from + count;
    while (from != end) {
        *to = (uint32_t)*from;
        to += step;
        ++from;
    }
}

/* Writes one word `count` times, `step` words apart. */
KQGEN_CODE static KQ_NOINLINE void fill_apart(uint32_t *to, uint32_t step, uint32_t word, uint32_t count)
{
    for (; count != 0; --count) {
        *to = word;
        to += step;
    }
}

/* One tap that lies outside the map, in all channels. */
KQGEN_CODE static void pad_apart(const packed_layer *layer, uint32_t *to, uint32_t step)
{
    if (layer->pad_values != NULL) {
        widen_apart(to, step, layer->pad_values, layer->window->c_in);
    } else {
        fill_apart(to, step, layer->pad_value, layer->window->c_in);
    }
}

/* Lays out a window by channel: [c_in][span + 4], taps of a channel in the order of the kernel. */
KQGEN_CODE static void lay_by_channel(const packed_layer *layer, const kq_view *view)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    const uint32_t k_w = window->k_w;
    const uint32_t step = layer->lanes.span + KQ_LANE_WORDS;
    uint32_t *to = layer->lanes.stream;
    uint32_t row_at = view->base;
    uint32_t row;
    for (row = 0; row < window->k_h; ++row) {
        uint32_t at = row_at;
        uint32_t column;
        for (column = 0; column < k_w; ++column) {
            if (kq_on_map(view, row, column)) {
                widen_apart(to, step, layer->input + at, c_in);
            } else {
                pad_apart(layer, to, step);
            }
            at += c_in;
            ++to;
        }
        row_at += (uint32_t)window->w_in * c_in;
    }
}

/* Appends `count` bytes to a window. */
KQGEN_CODE static void widen_along(const kq_lanes *lanes, packed_cursor *cursor, const int8_t *from, uint32_t count)
{
    while (count != 0) {
        const uint32_t part = count < cursor->room ? count : cursor->room;
        widen_apart(cursor->to, 1, from, part);
        from += part;
        count -= part;
        cursor->to += part;
        cursor->room -= part;
        if (cursor->room == 0) {
            cursor->room = lanes->taps;
            cursor->to += lanes->span - lanes->taps + KQ_LANE_WORDS;
        }
    }
}

/* Appends `positions` positions outside the map to a window. */
KQGEN_CODE static void pad_along(const packed_layer *layer, packed_cursor *cursor, uint32_t positions)
{
    const uint32_t c_in = layer->window->c_in;
    const int8_t pad_value = (int8_t)kq_signed(layer->pad_value);
    for (; positions != 0; --positions) {
        uint32_t i;
        if (layer->pad_values != NULL) {
            widen_along(&layer->lanes, cursor, layer->pad_values, c_in);
        } else {
            for (i = 0; i < c_in; ++i) {
                widen_along(&layer->lanes, cursor, &pad_value, 1);
            }
        }
    }
}

/* Lays out a window in the order of the map: a row of the kernel that lies on it is one run of bytes. */
KQGEN_CODE static void lay_along(const packed_layer *layer, const kq_view *view)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    const uint32_t columns = view->col_hi - view->col_lo;
    packed_cursor cursor = {layer->lanes.stream, layer->lanes.taps};
    uint32_t at = view->base + view->col_lo * c_in;
    uint32_t row;
    for (row = 0; row < window->k_h; ++row) {
        if (row - view->row_lo < view->row_hi - view->row_lo) {
            pad_along(layer, &cursor, view->col_lo);
            widen_along(&layer->lanes, &cursor, layer->input + at, columns * c_in);
            pad_along(layer, &cursor, window->k_w - view->col_hi);
        } else {
            pad_along(layer, &cursor, window->k_w);
        }
        at += (uint32_t)window->w_in * c_in;
    }
}

/* Requantises `channels` channels, from `channel` on, whose totals a table holds: the even one of a pair is what S has left. */
KQGEN_CODE static void put_channels(const kq_requant *requant, const uint32_t *table, uint32_t channel, uint32_t channels, int8_t *to)
{
    uint32_t i;
    table += 8;
    for (i = 0; i < channels; i += 2u) {
        kq_store(table[0] - (table[1] << 16), requant, channel + i, to + i);
        if (i + 1u < channels) {
            kq_store(table[1], requant, channel + i + 1u, to + i + 1u);
        }
        table += 6;
    }
}

/* Output channels first..first+channels-1 of the pixel whose window is laid out; `to` takes the first of them. */
KQGEN_CODE static KQ_NOINLINE void convolve_pixel(const packed_layer *layer, uint32_t first, uint32_t channels, int8_t *to)
{
    const kq_lanes *lanes = &layer->lanes;
    const uint32_t span = lanes->span;
    const uint32_t octet_words = lanes->groups * span * KQ_LANE_WORDS;
    uint32_t *stream = lanes->stream;
    const uint32_t *end = stream + lanes->groups * (span + KQ_LANE_WORDS);
    const uint32_t *weights = lanes->weights;
    uint32_t *table = lanes->tables;
    while (channels != 0) {
        const uint32_t part = channels < KQ_LANE_CHANNELS ? channels : KQ_LANE_CHANNELS;
        if (span == 9u) {
            kq_lane_sums_9(stream, weights, end);
        } else {
            kq_lane_sums(stream, weights, end, span);
        }
        kq_lane_totals(stream + span, end, span, table);
        put_channels(layer->requant, table, first, part, to);
        weights += octet_words;
        table += KQ_LANE_TABLE;
        to += part;
        first += part;
        channels -= part;
    }
}

/* Output channels first..first+channels-1 of all pixels, by expanded weights. */
KQGEN_CODE static void convolve_tile(const packed_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_window *window = layer->window;
    int8_t *to = layer->output + first;
    kq_pixel pixel;
    fill_tables(layer, first, channels);
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            if (layer->by_channel != 0) {
                lay_by_channel(layer, &view);
            } else {
                lay_along(layer, &view);
            }
            convolve_pixel(layer, first, channels, to);
            to += window->c_out;
        }
    }
}

/* Form `packed` (SPEC 6.2); scratch as SPEC 6.4. window.tile: output channels at a time, rounded up to a multiple of 8. */
KQGEN_CODE void kq_conv2d_packed_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t taps = (uint32_t)conv->window.k_h * conv->window.k_w * conv->window.c_in;
    const uint32_t octets = (conv->window.tile + 7u) >> 3;
    const uint32_t c_out = conv->window.c_out;
    packed_layer layer = {&conv->window, &conv->requant, conv->pad_values, input, output, (uint32_t)conv->pad_value, 0, {0}};
    uint32_t first;
    cut_weights(conv, &layer.lanes, taps);
    (void)split_scratch(&layer.lanes, octets, scratch);
    for (first = 0; first < c_out; first += 8u * octets) {
        const uint32_t channels = c_out - first < 8u * octets ? c_out - first : 8u * octets;
        clear_weights(&layer.lanes, octets);
        expand_weights(conv, &layer.lanes, taps, first, channels);
        convolve_tile(&layer, first, channels);
    }
}

/* Form `decode` (SPEC 6.2) by kernels that are sums of `stages` codewords. */
KQGEN_CODE static void decode(const kq_conv2d_kq *conv, uint32_t stages, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t octets = (conv->window.tile + 7u) >> 3;
    const uint32_t c_out = conv->window.c_out;
    packed_layer layer = {&conv->window, &conv->requant, conv->pad_values, input, output, (uint32_t)conv->pad_value, 0, {0}};
    int8_t *values = NULL;
    uint32_t *end;
    uint32_t first;
    if (n == 1u) {
        cut_taps(&layer.lanes, conv->window.c_in, stages * LARGEST_VALUE);
    } else {
        layer.by_channel = 1;
        set_groups(&layer.lanes, conv->window.c_in, n);
    }
    end = split_scratch(&layer.lanes, octets, scratch);
    if (conv->strip != 0) {
        values = (int8_t *)end;
        expand_codebook(conv->codebook, stages * conv->codewords * n, values);
    }
    for (first = 0; first < c_out; first += 8u * octets) {
        const uint32_t channels = c_out - first < 8u * octets ? c_out - first : 8u * octets;
        clear_weights(&layer.lanes, octets);
        expand_kernels(conv, &layer.lanes, stages, values, first, channels);
        convolve_tile(&layer, first, channels);
    }
}

/* Form `decode` (SPEC 6.2); scratch as SPEC 6.4. window.tile: output channels at a time, rounded up to a multiple of 8. strip: 1 when the
 * codebook is expanded once.
 */
KQGEN_CODE void kq_conv2d_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    decode(conv, 1, input, output, scratch);
}

/* As kq_conv2d_decode_s8 by an additive codebook. */
KQGEN_CODE void kq_conv2d_decode_additive_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    decode(conv, 2, input, output, scratch);
}
