/* Indexed kernels of the forms for cores with the DSP extension (SPEC 6.5): codewords unpacked, then widened to the words of a tile. */
#ifndef KQ_DSP_KERNELS_H
#define KQ_DSP_KERNELS_H

#include "kq_dsp_conv.h"

#define DSP_CODEBOOK_BITS 6u

/* How the kernels of a layer are read. */
typedef struct {
    const kq_conv2d_kq *conv;
    const int8_t *book;        /* the codewords that indices can name as bytes, or NULL: they are unpacked where they are used */
    const int8_t *second_book; /* those of the second stage, or NULL */
    int8_t *own;               /* room for two kernels */
    int8_t *addend;            /* and for a codeword */
    uint32_t n;
    uint32_t code_bits;
} dsp_kernels;

/* Unpacks the codebook's `count` values from number `entry` on, and zeros up to a whole quad. */
KQGEN_CODE static KQ_NOINLINE void unpack_values(const uint8_t *codebook, uint32_t entry, uint32_t count, int8_t *to)
{
    uint32_t *quads = (uint32_t *)(void *)to;
    kq_bit_reader reader = kq_bits_at(codebook, entry, DSP_CODEBOOK_BITS);
    if (reader.held_bits == 0) {
        /* Behind three bytes of four values the next one has its byte, so that a whole word can be read. */
        while (count > 4u) {
            *quads = kq_quad_of_6_bits(kq_quad_at((const int8_t *)reader.next));
            ++quads;
            reader.next += 3;
            count -= 4u;
        }
    }
    while (count >= 4u) {
        *quads = next_weights(&reader, DSP_CODEBOOK_BITS, 4);
        ++quads;
        count -= 4u;
    }
    if (count != 0) {
        *quads = next_weights(&reader, DSP_CODEBOOK_BITS, count);
    }
}

/* Codeword `code` of a stage as bytes, where the book holds it, or in `own`; the stage's first is number `start` of the codebook. */
KQGEN_CODE static const int8_t *codeword_bytes(const dsp_kernels *kernels, const int8_t *book, uint32_t start, uint32_t code, int8_t *own)
{
    const uint32_t n = kernels->n;
    if (book != NULL) {
        return book + code * n;
    }
    unpack_values(kernels->conv->codebook, (start + code) * n, n, own);
    return own;
}

/* The kernel that an index names, its sign left out, as bytes: where the book holds it, or in `own`. */
KQGEN_CODE static KQ_NOINLINE const int8_t *kernel_bytes(const dsp_kernels *kernels, uint32_t index, int8_t *own)
{
    const kq_conv2d_kq *conv = kernels->conv;
    const uint32_t stage_bits = kernels->code_bits >> (conv->stages - 1u);
    const uint32_t stage_mask = ((uint32_t)1 << stage_bits) - 1u;
    const int8_t *first = codeword_bytes(kernels, kernels->book, 0, index & stage_mask, own);
    if (conv->stages == 2u) {
        const int8_t *second =
            codeword_bytes(kernels, kernels->second_book, conv->codewords, (index >> stage_bits) & stage_mask, kernels->addend);
        uint32_t t;
        for (t = 0; t < kernels->n; ++t) {
            own[t] = (int8_t)(first[t] + second[t]);
        }
        return own;
    }
    return first;
}

/* Widens two kernels of one output channel, of input channels two apart in a quad: their words of tap after tap lie `step` apart. Flips:
 * all bits set to negate.
 */
static KQ_INLINE void widen_kernels(
    uint32_t *to, uint32_t step, const int8_t *low, const int8_t *high, uint32_t n, uint32_t low_flip, uint32_t high_flip)
{
    const int8_t *end = low + n;
    while (low + 3 < end) {
        const uint32_t low_quad = kq_flipped_quad(kq_quad_at(low), low_flip);
        const uint32_t high_quad = kq_flipped_quad(kq_quad_at(high), high_flip);
        const uint32_t low_even = kq_even_values(low_quad);
        const uint32_t low_odd = kq_odd_values(low_quad);
        const uint32_t high_even = kq_even_values(high_quad);
        const uint32_t high_odd = kq_odd_values(high_quad);
        *to = kq_low_halves(low_even, high_even);
        to += step;
        *to = kq_low_halves(low_odd, high_odd);
        to += step;
        *to = kq_high_halves(low_even, high_even);
        to += step;
        *to = kq_high_halves(low_odd, high_odd);
        to += step;
        low += 4;
        high += 4;
    }
    while (low != end) {
        *to = kq_low_halves(((uint32_t)*low ^ low_flip) - low_flip, ((uint32_t)*high ^ high_flip) - high_flip);
        to += step;
        ++low;
        ++high;
    }
}

/* Puts a reader before index number `entry`. */
KQGEN_CODE static KQ_NOINLINE void start_indices(kq_bit_reader *reader, const kq_conv2d_kq *conv, uint32_t entry)
{
    *reader = kq_bits_at(conv->indices, entry, conv->index_bits);
}

/* Reads the next `count` indices: kq_bits_next, in line in every build. */
KQGEN_CODE static KQ_NOINLINE void read_indices(kq_bit_reader *reader, uint32_t bits, uint32_t count, uint32_t *indices)
{
    const uint32_t mask = ((uint32_t)1 << bits) - 1u;
    const uint8_t *next = reader->next;
    uint32_t held = reader->held;
    uint32_t held_bits = reader->held_bits;
    const uint32_t *end = indices + count;
    while (indices != end) {
        while (held_bits < bits) {
            held |= (uint32_t)*next << held_bits;
            ++next;
            held_bits += 8u;
        }
        *indices = held & mask;
        ++indices;
        held >>= bits;
        held_bits -= bits;
    }
    reader->next = next;
    reader->held = held;
    reader->held_bits = held_bits;
}

/* Widens the kernels of output channels first..first+channels-1 where input channels fill whole quads. */
KQGEN_CODE static KQ_NOINLINE void widen_quads_of_kernels(
    const dsp_layer *layer, const dsp_kernels *kernels, uint32_t first, uint32_t channels)
{
    const kq_conv2d_kq *conv = kernels->conv;
    const uint32_t bits = conv->index_bits;
    const uint32_t c_in = layer->window->c_in;
    const uint32_t c_out = layer->window->c_out;
    const uint32_t n = kernels->n;
    const uint32_t code_bits = kernels->code_bits;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    const int ready_made = kernels->book != NULL && conv->stages != 2u;
    uint32_t pair;
    for (pair = 0; pair < c_in >> 1; ++pair) {
        const uint32_t channel = ((pair & ~(uint32_t)1u) << 1) + (pair & 1u);
        uint32_t *group = layer->groups + 4 + (pair << 2);
        uint32_t left = channels;
        kq_bit_reader low;
        kq_bit_reader high;
        start_indices(&low, conv, channel * c_out + first);
        start_indices(&high, conv, (channel + 2u) * c_out + first);
        do {
            const uint32_t count = left < DSP_GROUP ? left : DSP_GROUP;
            uint32_t indices[2u * DSP_GROUP];
            uint32_t i;
            read_indices(&low, bits, count, indices);
            read_indices(&high, bits, count, indices + DSP_GROUP);
            for (i = 0; i < count; ++i) {
                const uint32_t low_index = indices[i];
                const uint32_t high_index = indices[i + DSP_GROUP];
                const int8_t *low_kernel = kernels->book + (low_index & code_mask) * n;
                const int8_t *high_kernel = kernels->book + (high_index & code_mask) * n;
                if (!ready_made) {
                    low_kernel = kernel_bytes(kernels, low_index, kernels->own);
                    high_kernel = kernel_bytes(kernels, high_index, kernels->own + round_up(n));
                }
                widen_kernels(
                    group + i, c_in << 1, low_kernel, high_kernel, n, 0u - (low_index >> code_bits), 0u - (high_index >> code_bits));
            }
            group += layer->group_words;
            left -= count;
        } while (left != 0);
    }
}

/* As widen_quads_of_kernels for any number of input channels: value by value, to the place SPEC 6.5 gives it. */
KQGEN_CODE static DSP_SMALL void widen_single_kernels(
    const dsp_layer *layer, const dsp_kernels *kernels, uint32_t first, uint32_t channels)
{
    const kq_conv2d_kq *conv = kernels->conv;
    const kq_window *window = layer->window;
    const uint32_t bits = conv->index_bits;
    const uint32_t row_whole = layer->row_quads << 2;
    uint32_t channel;
    for (channel = 0; channel < window->c_in; ++channel) {
        kq_bit_reader reader;
        uint32_t o;
        start_indices(&reader, conv, channel * window->c_out + first);
        for (o = 0; o < channels; ++o) {
            uint32_t index;
            const int8_t *kernel;
            int16_t *to = (int16_t *)(void *)channel_words(layer, o);
            uint32_t row;
            read_indices(&reader, bits, 1, &index);
            kernel = kernel_bytes(kernels, index, kernels->own);
            for (row = 0; row < window->k_h; ++row) {
                uint32_t in_row;
                for (in_row = channel; in_row < layer->row_values; in_row += window->c_in) {
                    const uint32_t rests = row_whole * window->k_h + layer->rest * row - row_whole;
                    const uint32_t place = in_row + (in_row < row_whole ? row_whole * row : rests);
                    const uint32_t half = ((place >> 2) << 4) + ((place & 1u) << 3) + ((place >> 1) & 1u);
                    to[half] = (int16_t)(index >> kernels->code_bits != 0 ? -*kernel : *kernel);
                    ++kernel;
                }
            }
        }
    }
}

/* Indexed kernels (SPEC 6.5); scratch as SPEC 6.4. window.tile: output channels, at least 1; strip: 1 unpacks the codebook first. */
KQGEN_CODE static void dsp_indexed(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t tile = window->tile;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    int8_t *own = scratch;
    dsp_layer layer;
    dsp_kernels kernels;
    uint32_t first;
    layer.window = window;
    layer.requant = &conv->requant;
    layer.input = input;
    layer.output = output;
    kernels.conv = conv;
    kernels.book = NULL;
    kernels.second_book = NULL;
    kernels.own = own;
    kernels.addend = own + 2u * round_up(n);
    kernels.n = n;
    kernels.code_bits = (uint32_t)conv->index_bits - conv->sign;
    lay_out(&layer, conv->pad_values, conv->pad_value, kernels.addend + round_up(n));
    if (conv->strip != 0) {
        const uint32_t named = (uint32_t)1 << (kernels.code_bits >> (conv->stages - 1u));
        const uint32_t values = (named < conv->codewords ? named : conv->codewords) * n;
        int8_t *book = (int8_t *)(layer.groups + (round_up(tile) >> 2) * layer.group_words);
        int8_t *second_book = book + round_up(values);
        unpack_values(conv->codebook, 0, values, book);
        kernels.book = book;
        if (conv->stages == 2u) {
            unpack_values(conv->codebook, conv->codewords * n, values, second_book);
            kernels.second_book = second_book;
        }
    }
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        prepare_groups(&layer, first, channels);
        if ((window->c_in & 3u) == 0) {
            widen_quads_of_kernels(&layer, &kernels, first, channels);
        } else {
            widen_single_kernels(&layer, &kernels, first, channels);
        }
        convolve(&layer, first, channels);
    }
}

#endif
