/* Convolution by lookup, form `reuse` (SPEC 6.3): for eight output pixels and a strip of input channels, the dot products of every codeword
 * with every input channel are computed once, into tables; each output channel then only adds up the entries that its indices name.
 */
#include "kq.h"
#include "kq_bits.h"
#include "kq_packed.h"
#include "kq_reuse_gather.h"
#include "kq_reuse_lists.h"
#include "kq_reuse_pack.h"
#include "kq_reuse_slide.h"
#include "kq_window.h"

/* Scratch of the form, in the order of SPEC 6.4; n = k_h * k_w. */
typedef struct {
    uint32_t *accumulators; /* [c_out][8] */
    uint32_t *tables;       /* [strip][rows][4] */
    uint32_t *lists;        /* of up to 32 output channels; before that the window: [10][2], or packed taps [pair][n + 1] */
    uint32_t *offsets;      /* [pair][n][2]: of a tap's first channel in the input, or KQ_REUSE_PADDED */
    uint8_t *kernels;       /* [codewords][n] values plus 32, or [codewords + 1][6] words where windows slide; room for either */
    uint32_t rows;          /* entries of a table: one for each index there may be */
    uint32_t slides;        /* 3x3 windows of stride 1, the eight pixels side by side in a row, at most the outer two columns padded */
} reuse_scratch;

/* Whether windows slide: 3x3, stride 1, every eight pixels side by side in a row, at most the outer two of their columns padded. */
KQGEN_CODE static uint32_t side_by_side(const kq_window *window)
{
    const uint32_t other = (window->k_h ^ 3u) | (window->k_w ^ 3u) | (window->stride_w ^ 1u) | (window->w_out & (KQ_REUSE_PIXELS - 1u));
    const uint32_t inside = (uint32_t)window->w_in + window->pad_left;
    return KQ_REUSE_SLIDES && (other | window->pad_left >> 1) == 0 && window->w_out < inside;
}

/* Where the parts lie. */
KQGEN_CODE static reuse_scratch split_scratch(const kq_conv2d_kq *conv, uint32_t n, void *scratch)
{
    reuse_scratch parts;
    const kq_window *window = &conv->window;
    const uint32_t strip = conv->strip;
    const uint32_t listed = KQ_REUSE_GROUP * (strip + KQ_REUSE_EXTRA) + KQ_REUSE_CLOSE;
    const uint32_t packed = KQ_REUSE_PAIRS * (n + 1u);
    const uint32_t negated = conv->sign != 0 ? (uint32_t)1 << (conv->index_bits - 1u) : 0;
    parts.rows = negated + conv->codewords;
    parts.slides = side_by_side(window);
    parts.accumulators = scratch;
    parts.tables = parts.accumulators + (uint32_t)window->c_out * KQ_REUSE_PIXELS;
    parts.lists = parts.tables + strip * parts.rows * KQ_REUSE_ENTRY;
    parts.offsets = parts.lists + (listed > packed ? listed : packed);
    parts.kernels = (uint8_t *)(parts.offsets + KQ_REUSE_PIXELS * n);
    return parts;
}

/* All codewords that indices can name, as the tables' builder reads them. */
KQGEN_CODE static void expand_codebook(const kq_conv2d_kq *conv, const reuse_scratch *parts, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < conv->codewords; ++i) {
        if (parts->slides != 0) {
            uint8_t kernel[9];
            kq_expand_codeword(conv->codebook, i, 0, kernel, 9u);
            make_record(kernel, (uint32_t *)(void *)parts->kernels + i * KQ_REUSE_RECORD);
        } else {
            kq_expand_codeword(conv->codebook, i, 0, parts->kernels + i * n, n);
        }
    }
    if (parts->slides != 0) {
        ((uint32_t *)(void *)parts->kernels)[(conv->codewords + 1u) * KQ_REUSE_RECORD - 1u] = KQ_REUSE_STOP;
    }
}

/* Lists of `channels` output channels: entries of `entries` input channels, from table entry `entry` of the indices on. */
KQGEN_CODE static KQ_NOINLINE void make_lists(
    const kq_conv2d_kq *conv, const reuse_scratch *parts, uint32_t entry, uint32_t entries, uint32_t channels)
{
    const uint32_t bits = conv->index_bits;
    const uint32_t mask = ((uint32_t)1 << bits) - 1u;
    const uint32_t span = entries + KQ_REUSE_EXTRA;
    uint32_t place = kq_reuse_place(parts->tables, parts->tables);
    uint32_t i;
    for (i = 0; i < entries; ++i) {
        const kq_bit_reader reader = kq_bits_at(conv->indices, entry, bits);
        const uint8_t *next = reader.next;
        uint32_t held = reader.held;
        uint32_t held_bits = reader.held_bits;
        uint32_t *to = parts->lists + kq_reuse_slot(i);
        uint32_t *const stop = to + channels * span;
        do {
            while (held_bits < bits) {
                held |= (uint32_t)*next << held_bits;
                ++next;
                held_bits += 8u;
            }
            *to = place + (held & mask) * (uint32_t)(KQ_REUSE_ENTRY * sizeof(uint32_t));
            to += span;
            held >>= bits;
            held_bits -= bits;
        } while (to != stop);
        entry += conv->window.c_out;
        place += parts->rows * KQ_REUSE_ENTRY * (uint32_t)sizeof(uint32_t);
    }
}

/* The tables of one strip of input channels added to the accumulators of all output channels. */
KQGEN_CODE static KQ_NOINLINE void gather_strip(const kq_conv2d_kq *conv, const reuse_scratch *parts, uint32_t channel, uint32_t entries)
{
    const uint32_t c_out = conv->window.c_out;
    const uint32_t place = kq_reuse_place(parts->tables, parts->tables);
    const uint32_t table_bytes = parts->rows * KQ_REUSE_ENTRY * (uint32_t)sizeof(uint32_t);
    const uint32_t fast = conv->index_bits == 6u && (c_out & 3u) == 0 && (entries == 6u || entries == 8u) ? KQ_REUSE_GROUP : 0;
    const uint32_t step = (c_out >> 2) * 3u;
    const uint8_t *from = conv->indices + (size_t)step * channel;
    uint32_t *accumulators = parts->accumulators;
    uint32_t left = c_out;
    int fresh = 1;
#if KQ_REUSE_SIXES
    if (fast != 0 && entries == 6u) {
        uint32_t *const lists = parts->lists;
        uint32_t *const stop = accumulators + (c_out & ~(KQ_REUSE_GROUP - 1u)) * KQ_REUSE_PIXELS;
        for (; accumulators != stop; accumulators += KQ_REUSE_GROUP * KQ_REUSE_PIXELS) {
            place_sixes(from, step, place, table_bytes, lists);
            kq_reuse_gather_sixes(accumulators, lists);
            from += (KQ_REUSE_GROUP >> 2) * 3u;
        }
        left = c_out & (KQ_REUSE_GROUP - 1u);
    }
#endif
    while (left != 0) {
        const uint32_t channels = left < KQ_REUSE_GROUP ? left : KQ_REUSE_GROUP;
        if (channels != fast) {
            make_lists(conv, parts, channel * c_out + c_out - left, entries, channels);
            fresh = 1;
        } else if (entries == 6u) {
            place_sixes(from, step, place, table_bytes, parts->lists);
        } else {
            place_eights(from, step, place, table_bytes, parts->lists);
        }
        kq_reuse_gather(accumulators, parts->tables, parts->lists, channels, entries, fresh);
        fresh = 0;
        from += (KQ_REUSE_GROUP >> 2) * 3u;
        accumulators += KQ_REUSE_GROUP * KQ_REUSE_PIXELS;
        left -= channels;
    }
}

/* Accumulators as they are before the first entry, so that `c_in` entries leave bias + sum s1 in the last four, and in the first four
 * that of s0 plus 2^16 times those.
 */
KQGEN_CODE static void start_sums(const kq_conv2d_kq *conv, uint32_t *accumulators)
{
    const uint32_t excess = KQ_LANE_OFFSET * conv->window.c_in;
    uint32_t o;
    for (o = 0; o < conv->window.c_out; ++o) {
        const uint32_t bias = (uint32_t)conv->requant.bias[o];
        uint32_t pair;
        for (pair = 0; pair < KQ_REUSE_PAIRS; ++pair) {
            accumulators[pair] = bias + (bias << 16) - excess;
            accumulators[pair + 4u] = bias;
        }
        accumulators += KQ_REUSE_PIXELS;
    }
}

/* One output channel of `pixels` pixels, 1..8, from its accumulators to `to` and on in steps of c_out; `sum`: NULL or requant->sum. */
static KQ_INLINE void finish_channel(
    const kq_requant *requant, const kq_add *sum, uint32_t channel, const uint32_t *accumulators, uint32_t pixels, int8_t *to, uint32_t c_out)
{
    const uint32_t multiplier = (uint32_t)requant->multiplier[channel];
    const uint32_t shift = requant->shift[channel];
    const uint32_t acc_shift = requant->acc_shift;
    const int32_t zero_point = requant->zero_point;
    const int32_t lo = requant->lo;
    const int32_t hi = requant->hi;
    const uint32_t *const stop = accumulators + (pixels >> 1);
    while (accumulators != stop) {
        const uint32_t high = accumulators[4];
        const int32_t first = kq_scale(accumulators[0] - (high << 16), multiplier, shift, acc_shift) + zero_point;
        const int32_t second = kq_scale(high, multiplier, shift, acc_shift) + zero_point;
        *to = (int8_t)kq_summed(sum, kq_clamped(first, lo, hi), *to);
        to += c_out;
        *to = (int8_t)kq_summed(sum, kq_clamped(second, lo, hi), *to);
        to += c_out;
        ++accumulators;
    }
    if ((pixels & 1u) != 0) {
        const int32_t last = kq_scale(accumulators[0] - (accumulators[4] << 16), multiplier, shift, acc_shift) + zero_point;
        *to = (int8_t)kq_summed(sum, kq_clamped(last, lo, hi), *to);
    }
}

/* All output channels of `pixels` pixels, 1..8, from accumulators to `output`, added to what that holds. */
KQGEN_CODE static KQ_NOINLINE void finish_summed(const kq_conv2d_kq *conv, const uint32_t *accumulators, uint32_t pixels, int8_t *output)
{
    uint32_t o;
    for (o = 0; o < conv->window.c_out; ++o) {
        finish_channel(&conv->requant, conv->requant.sum, o, accumulators, pixels, output + o, conv->window.c_out);
        accumulators += KQ_REUSE_PIXELS;
    }
}

/* All output channels of `pixels` pixels, 1..8, from accumulators to `output`. */
KQGEN_CODE static KQ_NOINLINE void finish(const kq_conv2d_kq *conv, const uint32_t *accumulators, uint32_t pixels, int8_t *output)
{
    uint32_t o;
    for (o = 0; o < conv->window.c_out; ++o) {
        finish_channel(&conv->requant, NULL, o, accumulators, pixels, output + o, conv->window.c_out);
        accumulators += KQ_REUSE_PIXELS;
    }
}

/* Form `reuse` (SPEC 6.3); scratch as SPEC 6.4. window.tile: 8; strip: input channels at a time, 1..8. */
KQGEN_CODE void kq_conv2d_reuse_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    const uint32_t c_in = window->c_in;
    const reuse_scratch parts = split_scratch(conv, n, scratch);
    const uint32_t negated = conv->sign != 0 ? (parts.rows - conv->codewords) * KQ_REUSE_ENTRY : 0;
    uint32_t left = (uint32_t)window->h_out * window->w_out;
    kq_pixel pixel = {0, 0};
    slide_view slide;
    expand_codebook(conv, &parts, n);
    while (left != 0) {
        const uint32_t pixels = left < KQ_REUSE_PIXELS ? left : KQ_REUSE_PIXELS;
        uint32_t channel = 0;
        uint32_t i;
        slide = slide_view_at(window, pixel);
        for (i = 0; i < KQ_REUSE_PIXELS; ++i) {
            if (parts.slides == 0) {
                find_taps(window, pixel, parts.offsets + (i >> 1) * 2u * n + (i & 1u));
            }
            if (i + 1u < pixels || pixels < left) {
                pixel = kq_next_pixel(pixel, window->w_out);
            }
        }
        start_sums(conv, parts.accumulators);
        while (channel != c_in) {
            const uint32_t entries = c_in - channel < conv->strip ? c_in - channel : conv->strip;
            uint32_t *table = parts.tables;
            for (i = 0; i < entries; ++i) {
                const int8_t pad = kq_pad(conv->pad_values, conv->pad_value, channel + i);
                uint32_t *negative = conv->sign != 0 ? table + negated : NULL;
                if (parts.slides != 0) {
                    fill_window(&slide, input + channel + i, pad, parts.lists);
                    kq_reuse_slide((const uint32_t *)(const void *)parts.kernels, conv->codewords, parts.lists, table, negative);
                } else {
                    pack_channel(parts.offsets, input + channel + i, pad, n, parts.lists);
                    build_table(parts.kernels, conv->codewords, n, parts.lists, table, negative);
                }
                table += parts.rows * KQ_REUSE_ENTRY;
            }
            gather_strip(conv, &parts, channel, entries);
            channel += entries;
        }
        if (conv->requant.sum != NULL) {
            finish_summed(conv, parts.accumulators, pixels, output);
        } else {
            finish(conv, parts.accumulators, pixels, output);
        }
        output += pixels * window->c_out;
        left -= pixels;
    }
}
