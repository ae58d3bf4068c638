/* Convolution with two output channels in a word (SPEC 6.2), for cores without SIMD: by uniform weights and by lookup (form `decode`).
 * The weights of a tile of output channels are expanded once into packed words; then the window of each output pixel is laid out as words
 * and convolved with them, eight channels at a time.
 */
#include "kq.h"
#include "kq_bits.h"
#include "kq_lane_layer.h"

#define CODEBOOK_BITS 6u
#define LARGEST_VALUE 31u /* of a codeword */

/* kq_bits_at as one function for all tables. */
KQGEN_CODE static KQ_NOINLINE void open_table(kq_bit_reader *reader, const uint8_t *table, uint32_t entry, uint32_t bits)
{
    *reader = kq_bits_at(table, entry, bits);
}

/* Clears the weights of a tile: what stays so is a missing channel or tap. */
KQGEN_CODE static KQ_NOINLINE void clear_weights(const packed_layer *layer)
{
    uint32_t *to = layer->weights;
    while (to != layer->tables) {
        to[0] = 0;
        to[1] = 0;
        to[2] = 0;
        to[3] = 0;
        to += 4;
    }
}

/* Unpacks `count` signed entries of 4, 6 or 8 bits from entry `entry` on; of 6 bits four at a time where they begin on a whole byte. */
KQGEN_CODE static KQ_NOINLINE void unpack_values(const uint8_t *table, uint32_t entry, uint32_t bits, uint32_t count, int8_t *to)
{
    kq_bit_reader reader;
    const uint8_t *next;
    uint32_t held;
    uint32_t held_bits;
    open_table(&reader, table, entry, bits);
    next = reader.next;
    held = reader.held;
    held_bits = reader.held_bits;
    while (count != 0) {
        if (held_bits == 0 && count >= 4u && bits == CODEBOOK_BITS) {
            const uint32_t four = next[0] + ((uint32_t)next[1] << 8) + ((uint32_t)next[2] << 16);
            to[0] = (int8_t)kq_shift_down(kq_signed(four << 26), 26);
            to[1] = (int8_t)kq_shift_down(kq_signed(four << 20), 26);
            to[2] = (int8_t)kq_shift_down(kq_signed(four << 14), 26);
            to[3] = (int8_t)kq_shift_down(kq_signed(four << 8), 26);
            next += 3;
            to += 4;
            count -= 4u;
        } else {
            if (held_bits < bits) {
                held |= (uint32_t)*next << held_bits;
                ++next;
                held_bits += 8u;
            }
            *to = (int8_t)kq_shift_down(kq_signed(held << (32u - bits)), 32u - bits);
            held >>= bits;
            held_bits -= bits;
            ++to;
            --count;
        }
    }
}

/* kq_lane_pack as one function for both kinds of weights. */
KQGEN_CODE static KQ_NOINLINE void pack_pair(
    uint32_t *to, const int8_t *values0, uint32_t scale0, const int8_t *values1, uint32_t scale1, uint32_t n)
{
    kq_lane_pack(to, values0, scale0, values1, scale1, n);
}

/* Unpacks the kernel of an index without its sign into `room`, which has room for two: a codeword, or the sum of two. */
KQGEN_CODE static KQ_NOINLINE const int8_t *unpack_kernel(const kq_conv2d_kq *conv, uint32_t stages, uint32_t code, uint32_t n, int8_t *room)
{
    if (stages == 1u) {
        unpack_values(conv->codebook, code * n, CODEBOOK_BITS, n, room);
    } else {
        const uint32_t stage_bits = ((uint32_t)conv->index_bits - conv->sign) >> 1;
        uint32_t t;
        unpack_values(conv->codebook, (code & (((uint32_t)1 << stage_bits) - 1u)) * n, CODEBOOK_BITS, n, room);
        unpack_values(conv->codebook, (conv->codewords + (code >> stage_bits)) * n, CODEBOOK_BITS, n, room + n);
        for (t = 0; t < n; ++t) {
            room[t] = (int8_t)(room[t] + room[n + t]);
        }
    }
    return room;
}

/* Expands the kernels of output channels first..first+channels-1, sums of `stages` codewords. `values`: the codebook as bytes, or NULL;
 * `room` has room for three kernels.
 */
KQGEN_CODE static void expand_kernels(
    const kq_conv2d_kq *conv, const packed_layer *layer, uint32_t stages, const int8_t *values, int8_t *room, uint32_t first, uint32_t channels)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t bits = conv->index_bits;
    const uint32_t code_bits = bits - conv->sign;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    const uint32_t next_octet = octet_words(layer) - KQ_LANE_WORDS;
    uint32_t *channel_at = layer->weights;
    uint32_t left = layer->taps;
    uint32_t i;
    for (i = 0; i < conv->window.c_in; ++i) {
        kq_bit_reader reader = kq_bits_at(conv->indices, i * conv->window.c_out + first, bits);
        uint32_t *weights = channel_at;
        uint32_t o;
        for (o = 0; o < channels; o += 2u) {
            const int8_t *kernels[2];
            uint32_t scales[2] = {0, 0};
            uint32_t lane;
            for (lane = 0; lane < 2u && o + lane < channels; ++lane) {
                const uint32_t index = kq_bits_next(&reader, bits);
                const uint32_t code = index & code_mask;
                const uint32_t one = (uint32_t)1 << (16u * lane);
                scales[lane] = index != code ? 0u - one : one;
                kernels[lane] = values != NULL ? values + code * n : unpack_kernel(conv, stages, code, n, room + lane * n);
            }
            pack_pair(weights, kernels[0], scales[0], kernels[lane - 1u], scales[1], n);
            ++weights;
            if ((o & 6u) == 6u) {
                weights += next_octet;
            }
        }
        left -= n;
        channel_at += n * KQ_LANE_WORDS;
        if (left == 0) {
            left = layer->taps;
            channel_at += (layer->span - layer->taps) * KQ_LANE_WORDS;
        }
    }
}

/* Expands the uniform weights of output channels first..first+channels-1, each `taps` of them; `room` has room for those of two. */
KQGEN_CODE static void expand_weights(
    const kq_conv2d *conv, const packed_layer *layer, uint32_t taps, int8_t *room, uint32_t first, uint32_t channels)
{
    uint32_t *pair_at = layer->weights;
    uint32_t o;
    for (o = 0; o < channels; o += 2u) {
        const uint32_t two = o + 1u < channels ? 1u : 0;
        uint32_t *weights = pair_at;
        uint32_t at = 0;
        unpack_values(conv->weights, (first + o) * taps, conv->bits, taps << two, room);
        while (at < taps) {
            const uint32_t part = taps - at < layer->taps ? taps - at : layer->taps;
            pack_pair(weights, room + at, 1, room + at + two * taps, two << 16, part);
            weights += layer->span * KQ_LANE_WORDS;
            at += part;
        }
        ++pair_at;
        if ((o & 6u) == 6u) {
            pair_at += octet_words(layer) - KQ_LANE_WORDS;
        }
    }
}

/* Whether groups of `each` of a channel's taps keep sums of absolute weights within 255, in all output channels; `room` as above. */
KQGEN_CODE static int sums_fit(const kq_conv2d *conv, uint32_t taps, uint32_t each, int8_t *room)
{
    uint32_t o;
    for (o = 0; o < conv->window.c_out; ++o) {
        uint32_t sum = 0;
        uint32_t left = each;
        uint32_t t;
        unpack_values(conv->weights, o * taps, conv->bits, taps, room);
        for (t = 0; t < taps; ++t) {
            const int32_t weight = room[t];
            sum += (uint32_t)(weight < 0 ? -weight : weight);
            if (sum > KQ_LANE_SUM) {
                return 0;
            }
            --left;
            if (left == 0) {
                left = each;
                sum = 0;
            }
        }
    }
    return 1;
}

/* Groups of a layer's taps: the fewest that its weights allow and that take no more room than those any weights allow. Weights of 8 bits,
 * two of which make a group, hardly ever allow more.
 */
KQGEN_CODE static void cut_weights(const kq_conv2d *conv, packed_layer *layer, uint32_t taps, int8_t *room)
{
    uint32_t groups = 1;
    uint32_t each = taps;
    cut_taps(layer, taps, ((uint32_t)1 << (conv->bits - 1u)) - 1u);
    while (groups < layer->groups && conv->bits != 8u) {
        if (groups * span_of(each) <= layer->groups * layer->span && sums_fit(conv, taps, each, room)) {
            layer->groups = groups;
            layer->taps = each;
            layer->span = span_of(each);
            return;
        }
        ++groups;
        while ((each - 1u) * groups >= taps) {
            --each;
        }
    }
}

/* As kq_conv2d_s8 (SPEC 6.2); scratch as SPEC 6.4. window.tile: output channels at a time, rounded up to a multiple of 8. */
KQGEN_CODE void kq_conv2d_packed_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t taps = (uint32_t)conv->window.k_h * conv->window.k_w * conv->window.c_in;
    const uint32_t c_out = conv->window.c_out;
    packed_layer layer;
    int8_t *room;
    uint32_t first = 0;
    layer.window = &conv->window;
    layer.requant = &conv->requant;
    layer.input = input;
    layer.output = output;
    layer.by_channel = 0;
    cut_weights(conv, &layer, taps, scratch);
    room = split_scratch(&layer, conv->pad_values, conv->pad_value, scratch);
    while (first < c_out) {
        const uint32_t channels = c_out - first < 8u * layer.octets ? c_out - first : 8u * layer.octets;
        clear_weights(&layer);
        expand_weights(conv, &layer, taps, room, first, channels);
        convolve_tile(&layer, first, channels);
        first += channels;
    }
}

/* Form `decode` (SPEC 6.2) by kernels that are sums of `stages` codewords. */
KQGEN_CODE static KQ_NOINLINE void decode(const kq_conv2d_kq *conv, uint32_t stages, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t c_out = conv->window.c_out;
    packed_layer layer;
    int8_t *values = NULL;
    int8_t *room;
    uint32_t first = 0;
    layer.window = &conv->window;
    layer.requant = &conv->requant;
    layer.input = input;
    layer.output = output;
    layer.by_channel = n != 1u;
    layer.groups = conv->window.c_in;
    layer.taps = n;
    layer.span = span_of(n);
    if (n == 1u) {
        cut_taps(&layer, conv->window.c_in, stages * LARGEST_VALUE);
    }
    room = split_scratch(&layer, conv->pad_values, conv->pad_value, scratch);
    if (stages == 1u && conv->strip != 0) {
        values = room;
        unpack_values(conv->codebook, 0, CODEBOOK_BITS, conv->codewords * n, values);
    }
    while (first < c_out) {
        const uint32_t channels = c_out - first < 8u * layer.octets ? c_out - first : 8u * layer.octets;
        clear_weights(&layer);
        expand_kernels(conv, &layer, stages, values, room, first, channels);
        convolve_tile(&layer, first, channels);
        first += channels;
    }
}

/* Form `decode` (SPEC 6.2); scratch as SPEC 6.4. window.tile: output channels at a time, rounded up to a multiple of 8. strip: 1 when the
 * codebook is unpacked once, else 0.
 */
KQGEN_CODE void kq_conv2d_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    decode(conv, 1, input, output, scratch);
}

/* As kq_conv2d_decode_s8 by an additive codebook; strip is not read. */
KQGEN_CODE void kq_conv2d_decode_additive_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    decode(conv, 2, input, output, scratch);
}
