/* Convolution by lookup, form `reuse` (SPEC 6.3): for eight output pixels and a strip of input channels, the dot products of every codeword
 * with every input channel are computed once, into tables; each output channel then only adds up the entries that its indices name.
 */
#include "kq.h"
#include "kq_bits.h"
#include "kq_packed.h"
#include "kq_reuse.h"
#include "kq_window.h"

#define PADDED 0xFFFFFFFFu /* in place of a tap's offset; maps are below 2^31 bytes */

/* Scratch of the form, in the order of SPEC 6.4; n = k_h * k_w. */
typedef struct {
    uint32_t *accumulators; /* [c_out][8] */
    uint32_t *tables;       /* [strip][rows][4] */
    uint32_t *lists;        /* of up to 32 output channels; before that the window: [10][2], or packed taps [pair][n + 1] */
    uint32_t *offsets;      /* [pair][n][2]: of a tap's first channel in the input, or PADDED */
    uint8_t *kernels;       /* [codewords][n] values plus 32, or [codewords][5] words where windows slide; room for either */
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

/* A codeword's record (kq_reuse.h) from its nine values plus 32. */
KQGEN_CODE static void make_record(const uint8_t *kernel, uint32_t *record)
{
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        record[i] = (((uint32_t)kernel[i] - KQ_WEIGHT_OFFSET) & 0xFFFFu) | ((uint32_t)kernel[i + 3u] - KQ_WEIGHT_OFFSET) << 16;
    }
    record[3] = (((uint32_t)kernel[6] - KQ_WEIGHT_OFFSET) & 0xFFFFu) | ((uint32_t)kernel[7] - KQ_WEIGHT_OFFSET) << 16;
    record[4] = ((uint32_t)kernel[8] - KQ_WEIGHT_OFFSET) & 0xFFFFu;
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
}

/* Offsets of one pixel's taps, every second word of `offsets`. */
KQGEN_CODE static void find_taps(const kq_window *window, kq_pixel pixel, uint32_t *offsets)
{
    const kq_view view = kq_view_at(window, pixel);
    uint32_t row_offset = view.base;
    uint32_t at = 0;
    uint32_t row;
    for (row = 0; row < window->k_h; ++row) {
        uint32_t offset = row_offset;
        uint32_t column;
        for (column = 0; column < window->k_w; ++column) {
            offsets[at] = kq_on_map(&view, row, column) ? offset : PADDED;
            at += 2u;
            offset += window->c_in;
        }
        row_offset += (uint32_t)window->w_in * window->c_in;
    }
}

/* Packs the taps of one input channel for all pairs; `input` points at that channel of the first position. */
KQGEN_CODE static KQ_NOINLINE void pack_channel(const uint32_t *offsets, const int8_t *input, int8_t pad, uint32_t n, uint32_t *taps)
{
    uint32_t pair;
    for (pair = 0; pair < KQ_REUSE_PAIRS; ++pair) {
        uint32_t total = 0;
        uint32_t t;
        for (t = 0; t < n; ++t) {
            const int8_t x0 = offsets[0] == PADDED ? pad : input[offsets[0]];
            const int8_t x1 = offsets[1] == PADDED ? pad : input[offsets[1]];
            const uint32_t packed = (uint32_t)x0 + ((uint32_t)x1 << 16);
            taps[t] = packed;
            total += packed;
            offsets += 2;
        }
        taps[n] = kq_closing_word(total, KQ_WEIGHT_OFFSET);
        taps += n + 1u;
    }
}

/* Adds nine taps of two pairs to their sums. */
static KQ_INLINE void add_nine(const uint8_t *kernel, const uint32_t *first, const uint32_t *second, uint32_t *sum0, uint32_t *sum1)
{
    kq_add_tap(kernel[0], first[0], second[0], sum0, sum1);
    kq_add_tap(kernel[1], first[1], second[1], sum0, sum1);
    kq_add_tap(kernel[2], first[2], second[2], sum0, sum1);
    kq_add_tap(kernel[3], first[3], second[3], sum0, sum1);
    kq_add_tap(kernel[4], first[4], second[4], sum0, sum1);
    kq_add_tap(kernel[5], first[5], second[5], sum0, sum1);
    kq_add_tap(kernel[6], first[6], second[6], sum0, sum1);
    kq_add_tap(kernel[7], first[7], second[7], sum0, sum1);
    kq_add_tap(kernel[8], first[8], second[8], sum0, sum1);
}

/* The table of all codewords from packed taps: entry i of codeword i, and of minus it where `negative` is not NULL. */
KQGEN_CODE static KQ_NOINLINE void build_table(
    const uint8_t *kernels, uint32_t codewords, uint32_t n, const uint32_t *taps, uint32_t *positive, uint32_t *negative)
{
    uint32_t code;
    for (code = 0; code < codewords; ++code) {
        const uint32_t *first = taps;
        uint32_t pair;
        for (pair = 0; pair < KQ_REUSE_PAIRS; pair += 2u) {
            const uint32_t *second = first + n + 1u;
            uint32_t sum0 = first[n];
            uint32_t sum1 = second[n];
            uint32_t t;
            if (n == 9u) {
                add_nine(kernels, first, second, &sum0, &sum1);
            } else {
                for (t = 0; t < n; ++t) {
                    kq_add_tap(kernels[t], first[t], second[t], &sum0, &sum1);
                }
            }
            positive[pair] = sum0;
            positive[pair + 1u] = sum1;
            if (negative != NULL) {
                negative[pair] = 2u * KQ_LANE_OFFSET - sum0;
                negative[pair + 1u] = 2u * KQ_LANE_OFFSET - sum1;
            }
            first = second + n + 1u;
        }
        kernels += n;
        positive += KQ_REUSE_ENTRY;
        negative = negative == NULL ? NULL : negative + KQ_REUSE_ENTRY;
    }
}

/* Eight windows side by side: where the three rows they cover lie, and whether the outer two of their ten columns are on the map. */
typedef struct {
    uint32_t rows[3];  /* offset of the second column's first channel in the input */
    uint32_t steps[3]; /* from one column to the next; 0 where the row is padded */
    uint32_t left, right;
} slide_view;

/* The windows of eight pixels from `pixel` on, side by side. */
KQGEN_CODE static slide_view slide_view_at(const kq_window *window, kq_pixel pixel)
{
    slide_view slide;
    const kq_pixel last = {pixel.y, pixel.x + KQ_REUSE_PIXELS - 1u};
    const kq_view view = kq_view_at(window, pixel);
    const kq_view end = kq_view_at(window, last);
    uint32_t offset = view.base + window->c_in;
    uint32_t row;
    for (row = 0; row < 3u; ++row) {
        slide.rows[row] = offset;
        slide.steps[row] = row - view.row_lo < view.row_hi - view.row_lo ? window->c_in : 0;
        offset += (uint32_t)window->w_in * window->c_in;
    }
    slide.left = view.col_lo == 0;
    slide.right = end.col_hi == 3u;
    return slide;
}

/* Two int16 in a word, the first in the low half. */
KQGEN_CODE static inline uint32_t halves(int8_t low, int8_t high)
{
    return ((uint32_t)low & 0xFFFFu) | (uint32_t)high << 16;
}

/* Window words (kq_reuse.h) of one input channel, at which `input` points for the first position. */
KQGEN_CODE static KQ_NOINLINE void fill_window(const slide_view *slide, const int8_t *input, int8_t pad, uint32_t *words)
{
    const uint32_t step0 = slide->steps[0];
    const uint32_t step1 = slide->steps[1];
    const uint32_t step2 = slide->steps[2];
    const int8_t *row0 = step0 != 0 ? input + slide->rows[0] : &pad;
    const int8_t *row1 = step1 != 0 ? input + slide->rows[1] : &pad;
    const int8_t *row2 = step2 != 0 ? input + slide->rows[2] : &pad;
    const uint32_t *const last = words + 18;
    int8_t before = pad;
    words[0] = halves(pad, pad);
    if (slide->left != 0) {
        words[0] = halves(*(row0 - step0), *(row1 - step1));
        before = *(row2 - step2);
    }
    do {
        words[1] = halves(before, row2[0]);
        words[2] = halves(row0[0], row1[0]);
        row0 += step0;
        row1 += step1;
        words[3] = halves(row2[0], row2[step2]);
        words[4] = halves(row0[0], row1[0]);
        row2 += step2;
        before = *row2;
        row0 += step0;
        row1 += step1;
        row2 += step2;
        words += 4;
    } while (words + 2 != last);
    if (slide->right != 0) {
        words[1] = halves(before, *row2);
        words[2] = halves(*row0, *row1);
    } else {
        words[1] = halves(before, pad);
        words[2] = halves(pad, pad);
    }
    words[3] = 0;
}

/* Four bytes at any address, the first in the lowest bits. */
KQGEN_CODE static inline uint32_t word_at(const uint8_t *from)
{
#if defined(__GNUC__) && defined(__thumb2__)
    typedef uint32_t __attribute__((may_alias, aligned(1))) anywhere;
    return *(const anywhere *)(const void *)from;
#else
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
#endif
}

/* Four entries' places in lists, `span` words apart: `place` plus 16 bytes times a 6-bit index. The first index stands in bits 4..9 of `even`,
 * the third in bits 16..21; the second and fourth so in `odd`; other bits count for nothing.
 */
KQGEN_CODE static KQ_INLINE void place_four(uint32_t even, uint32_t odd, uint32_t mask, uint32_t place, uint32_t *to, uint32_t span)
{
    const uint32_t first = kq_opaque(even & mask);
    const uint32_t second = kq_opaque(odd & mask);
    to[0] = place + (first & 0xFFFFu);
    to[span] = place + (second & 0xFFFFu);
    to[2u * span] = place + (first >> 12);
    to[3u * span] = place + (second >> 12);
}

/* Sixteen entries' places in lists, `span` words apart, from sixteen 6-bit indices at `from`. */
KQGEN_CODE static KQ_INLINE void place_16_of_6_bits(const uint8_t *from, uint32_t mask, uint32_t place, uint32_t *to, uint32_t span)
{
    const uint32_t word0 = word_at(from);
    const uint32_t word1 = word_at(from + 3);
    const uint32_t word2 = word_at(from + 6);
    const uint32_t word3 = word_at(from + 8);
    place_four(word0 << 4, word0 >> 2, mask, place, to, span);
    place_four(word1 << 4, word1 >> 2, mask, place, to + 4u * span, span);
    place_four(word2 << 4, word2 >> 2, mask, place, to + 8u * span, span);
    place_four(word3 >> 4, word3 >> 10, mask, place, to + 12u * span, span);
}

/* The entries of `entries` input channels in the lists of 32 output channels, whose 6-bit indices begin at `from` and lie `step` bytes
 * apart from one input channel to the next; tables lie `table_bytes` apart.
 */
KQGEN_CODE static KQ_INLINE void place_32_of_6_bits(
    const uint8_t *from, uint32_t step, uint32_t place, uint32_t table_bytes, uint32_t *list, uint32_t entries)
{
    const uint32_t mask = kq_opaque(0x003F03F0u);
    const uint32_t span = entries + KQ_REUSE_EXTRA;
    uint32_t *const stop = list + kq_reuse_slot(entries);
    uint32_t *to = list;
    do {
        place_16_of_6_bits(from, mask, place, to, span);
        place_16_of_6_bits(from + 12, mask, place, to + 16u * span, span);
        from += step;
        place += table_bytes;
        to += to == list ? kq_reuse_slot(1u) : 1u;
    } while (to != stop);
}

/* As place_32_of_6_bits for strips of six input channels. */
KQGEN_CODE static KQ_NOINLINE void place_sixes(const uint8_t *from, uint32_t step, uint32_t place, uint32_t table_bytes, uint32_t *list)
{
    place_32_of_6_bits(from, step, place, table_bytes, list, 6u);
}

/* As place_32_of_6_bits for strips of eight input channels. */
KQGEN_CODE static KQ_NOINLINE void place_eights(const uint8_t *from, uint32_t step, uint32_t place, uint32_t table_bytes, uint32_t *list)
{
    place_32_of_6_bits(from, step, place, table_bytes, list, 8u);
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

/* Clamps a result, adds what `to` holds where the layer sums, and stores it there. */
static KQ_INLINE void put(int32_t scaled, const kq_requant *requant, int8_t *to)
{
    *to = (int8_t)kq_summed(requant->sum, kq_clamped(scaled, requant->lo, requant->hi), *to);
}

/* All output channels of `pixels` pixels, 1..8, from accumulators to `output`. */
KQGEN_CODE static KQ_NOINLINE void finish(const kq_conv2d_kq *conv, const uint32_t *accumulators, uint32_t pixels, int8_t *output)
{
    const kq_requant *requant = &conv->requant;
    const uint32_t acc_shift = requant->acc_shift;
    const int32_t zero_point = requant->zero_point;
    const uint32_t c_out = conv->window.c_out;
    uint32_t o;
    for (o = 0; o < c_out; ++o) {
        const uint32_t multiplier = (uint32_t)requant->multiplier[o];
        const uint32_t shift = requant->shift[o];
        const uint32_t *const stop = accumulators + (pixels >> 1);
        int8_t *to = output + o;
        const uint32_t *pair;
        for (pair = accumulators; pair != stop; ++pair) {
            const uint32_t high = pair[4];
            put(kq_scale(pair[0] - (high << 16), multiplier, shift, acc_shift) + zero_point, requant, to);
            to += c_out;
            put(kq_scale(high, multiplier, shift, acc_shift) + zero_point, requant, to);
            to += c_out;
        }
        if ((pixels & 1u) != 0) {
            put(kq_scale(pair[0] - (pair[4] << 16), multiplier, shift, acc_shift) + zero_point, requant, to);
        }
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
        finish(conv, parts.accumulators, pixels, output);
        output += pixels * window->c_out;
        left -= pixels;
    }
}
