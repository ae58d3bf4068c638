/* What both Winograd forms of a 3x3 convolution with stride 1 share (SPEC 6.5): F(2x2,3x3) and F(4x4,3x3) on integers, exact to the bit.
 *
 * A form defines KQ_SIDE, the output pixels of a tile along each axis (2 or 4), includes this and adds the functions declared last here.
 *
 * Transforms are linear, so they run on two channels in one word, x0 + x1 * 2^16 mod 2^32, by plain 32-bit additions and shifts: a carry of
 * the low half into the high one is part of that number. At the end KQ_LANES (2^15 in each half) is added, which leaves both halves in
 * 0..2^16-1, and flipping the top bit of each half gives two int16, for every result fits int16.
 */
#ifndef KQ_WINOGRAD_H
#define KQ_WINOGRAD_H

#include "kq_winograd_parts.h"

/* Transforms one kernel of two channels and stores the value of each position `step` words after the one before. */
static void transform_kernel(const kq_kernel *low, const kq_kernel *high, uint32_t *to, uint32_t step);

/* Transforms `count` columns of a patch of four channels: KQ_PATCH words in a column, row_bytes apart, columns `column_bytes` apart.
 * Channels 0 and 2 go to columns[row * KQ_PATCH + column], channels 1 and 3 KQ_POSITIONS words further.
 */
static void spread_columns(const int8_t *at, uint32_t row_bytes, uint32_t column_bytes, uint32_t *columns, uint32_t count);

/* Transforms the rows of what spread_columns left for two channels and stores the value of each position `step` words after the one before.
 * Values were read plus 128, as bytes without sign. All rows of a patch's transform but the second sum to 0, so that only position (1, 1)
 * holds more for that, which is taken off.
 */
static void spread_rows(const uint32_t *columns, uint32_t *to, uint32_t step);

/* Stores the pixels of a tile, one output channel, from every KQ_SUMS-th word of `sums`. */
static void store_tile(const kq_winograd *run, const uint32_t *sums, uint32_t channel, const kq_spot *place);

/* What four padded channels from `channel` on read. */
KQGEN_CODE static KQ_NOINLINE uint32_t kq_pad_word(const kq_conv2d_kq *conv, uint32_t channel)
{
    return conv->pad_values != NULL ? kq_bytes_at(conv->pad_values + channel, conv->window.c_in - channel)
                                    : (uint8_t)conv->pad_value * 0x01010101u;
}

/* Four channels, from `channel` on, of the columns of a patch that lie on the map, into words[row][column]: of a patch with rows off the
 * map, or that cannot be read by words.
 */
KQGEN_CODE static KQ_NOINLINE void kq_border_patch(
    const kq_winograd *run, const kq_view *view, uint32_t channel, uint32_t pads, uint32_t *words)
{
    const uint32_t c_in = run->conv->window.c_in;
    const uint32_t row_bytes = run->conv->window.w_in * c_in;
    const uint32_t row_lo = view->row_lo;
    const uint32_t rows = view->row_hi - row_lo;
    const uint32_t cols = view->col_hi - view->col_lo;
    uint32_t offset = view->base + view->col_lo * c_in + channel;
    uint32_t row;
    for (row = 0; row < KQ_PATCH; ++row) {
        const uint32_t *const end = words + cols;
        if (row - row_lo >= rows) {
            while (words != end) {
                *words++ = pads;
            }
        } else if (run->aligned != 0) {
            const int8_t *at = run->input + offset;
            while (words != end) {
                *words++ = kq_word_at(at);
                at += c_in;
            }
        } else {
            const int8_t *at = run->input + offset;
            while (words != end) {
                *words++ = kq_bytes_at(at, c_in - channel);
                at += c_in;
            }
        }
        words += KQ_PATCH - cols;
        offset += row_bytes;
    }
}

/* The rows and columns of a patch that lie on the map, and where its first pixel would (modulo 2^32). */
KQGEN_CODE static inline kq_view kq_patch_at(const kq_window *window, kq_pixel tile)
{
    kq_view view;
    const int32_t top = (int32_t)(tile.y * KQ_SIDE) - window->pad_top;
    const int32_t left = (int32_t)(tile.x * KQ_SIDE) - window->pad_left;
    kq_valid_taps(top, KQ_PATCH, window->h_in, &view.row_lo, &view.row_hi);
    kq_valid_taps(left, KQ_PATCH, window->w_in, &view.col_lo, &view.col_hi);
    view.base = ((uint32_t)top * window->w_in + (uint32_t)left) * window->c_in;
    return view;
}

/* Transforms the patch of the tile at `tile` (in tiles) into every run->patch_group-th word from `to` on. What is on its way lies in
 * run->sums.
 */
KQGEN_CODE static KQ_NOINLINE void kq_transform_patch(const kq_winograd *run, kq_pixel tile, uint32_t *to)
{
    const kq_window *window = &run->conv->window;
    const kq_view view = kq_patch_at(window, tile);
    const uint32_t c_in = window->c_in;
    const uint32_t row_bytes = window->w_in * c_in;
    const uint32_t group = run->patch_group;
    const uint32_t step = run->words * group;
    const uint32_t cols = view.col_hi - view.col_lo;
    const uint32_t rows_inside = view.row_hi - view.row_lo == KQ_PATCH && run->aligned != 0;
    const uint32_t inside = rows_inside != 0 && cols == KQ_PATCH;
    const uint32_t column_row = rows_inside != 0 ? row_bytes : 4u * KQ_PATCH;
    const uint32_t column_step = rows_inside != 0 ? c_in : 4u;
    uint32_t *const columns = run->sums;
    uint32_t *const words = columns + 2u * KQ_POSITIONS;
    uint32_t channel;
    for (channel = 0; channel < c_in; channel += 4u) {
        const int8_t *at = run->input + (uint32_t)(view.base + view.col_lo * c_in) + channel;
        if (inside == 0) {
            const uint32_t pads = kq_pad_word(run->conv, channel);
            words[0] = pads;
            spread_columns((const int8_t *)words, 0, 0, columns, view.col_lo);
            spread_columns((const int8_t *)words, 0, 0, columns + view.col_hi, KQ_PATCH - view.col_hi);
            if (rows_inside == 0) {
                kq_border_patch(run, &view, channel, pads, words);
                at = (const int8_t *)words;
            }
        }
        spread_columns(at, column_row, column_step, columns + view.col_lo, cols);
        spread_rows(columns, to, step);
        spread_rows(columns + KQ_POSITIONS, to + group, step);
        to += 2u * group;
    }
}

/* Transforms the kernels of output channels first..first+channels-1 into run->kernels, a group of 2 or 4 at a time. */
KQGEN_CODE static KQ_NOINLINE void kq_transform_kernels(const kq_winograd *run, uint32_t first, uint32_t channels)
{
    const uint32_t c_in = run->conv->window.c_in;
    const uint32_t group = run->kernel_group;
    const uint32_t step = run->words * group;
    uint32_t *to = run->kernels;
    uint32_t left;
    for (left = channels; left != 0;) {
        const uint32_t count = left < group ? left : group;
        uint32_t word;
        for (word = 0; word < run->words; ++word) {
            const uint32_t channel = ((word >> 1) << 2) + (word & 1u);
            const uint32_t low_lane = channel < c_in ? 1u : 0;
            const uint32_t high_lane = channel + 2u < c_in ? 0x10000u : 0;
            uint16_t indices[8];
            uint32_t k;
            kq_read_indices(run->conv, low_lane != 0 ? channel : 0, first, count, indices);
            kq_read_indices(run->conv, high_lane != 0 ? channel + 2u : 0, first, count, indices + 4);
            for (k = 0; k < count; ++k) {
                int8_t low_buffer[KQ_TAPS], high_buffer[KQ_TAPS];
                const kq_kernel low = kq_kernel_of(run, indices[k], low_lane, low_buffer);
                const kq_kernel high = kq_kernel_of(run, indices[k + 4u], high_lane, high_buffer);
                transform_kernel(&low, &high, to + k, step);
            }
            to += group;
        }
        to += (KQ_POSITIONS - 1u) * step;
        first += count;
        left -= count;
    }
}

/* All products of one tile of kernels and one strip of patches, and their pixels. */
KQGEN_CODE static KQ_NOINLINE void kq_multiply(const kq_winograd *run, uint32_t first, uint32_t channels, kq_pixel start, uint32_t tiles)
{
    const uint32_t kernel_group = run->kernel_group;
    const uint32_t patch_group = run->patch_group;
    const kq_window *window = &run->conv->window;
    const uint32_t tiles_w = (window->w_out + KQ_SIDE - 1u) >> (KQ_SIDE >> 1);
    const uint32_t *kernels = run->kernels;
    uint32_t k;
    for (k = 0; k < channels; k += kernel_group) {
        const uint32_t *patches = run->patches;
        kq_pixel tile = start;
        uint32_t t;
        for (t = 0; t < tiles; ++t) {
            const uint32_t j = t & (patch_group - 1u);
            const uint32_t y = tile.y * KQ_SIDE;
            const uint32_t x = tile.x * KQ_SIDE;
            kq_spot place;
            uint32_t i;
            place.to = run->output + (y * window->w_out + x) * window->c_out;
            place.rows = window->h_out - y < KQ_SIDE ? window->h_out - y : KQ_SIDE;
            place.cols = window->w_out - x < KQ_SIDE ? window->w_out - x : KQ_SIDE;
            if (j == 0) {
                if (patch_group < 4u) {
                    kq_products(kernels, patches, run->words, KQ_POSITIONS, run->sums);
                } else {
                    kq_products(patches, kernels, run->words, KQ_POSITIONS, run->sums);
                }
                patches += KQ_POSITIONS * run->words * patch_group;
            }
            for (i = 0; i < kernel_group && k + i < channels; ++i) {
                const uint32_t at = patch_group < 4u ? i * patch_group + j : j * kernel_group + i;
                store_tile(run, run->sums + at, first + k + i, &place);
            }
            tile = kq_next_pixel(tile, tiles_w);
        }
        kernels += KQ_POSITIONS * run->words * kernel_group;
    }
}

/* Transforms `tiles` patches from the tile at `tile` on; gives the tile after them. */
KQGEN_CODE static KQ_NOINLINE kq_pixel kq_transform_strip(const kq_winograd *run, kq_pixel tile, uint32_t tiles)
{
    const uint32_t patch_group = run->patch_group;
    const uint32_t tiles_w = (run->conv->window.w_out + KQ_SIDE - 1u) >> (KQ_SIDE >> 1);
    uint32_t *to = run->patches;
    uint32_t t;
    for (t = 0; t < tiles; ++t) {
        kq_transform_patch(run, tile, to);
        tile = kq_next_pixel(tile, tiles_w);
        ++to;
        if (((t + 1u) & (patch_group - 1u)) == 0) {
            to += (KQ_POSITIONS * run->words - 1u) * patch_group;
        }
    }
    return tile;
}

/* The whole layer. Strips of patches or tiles of kernels are the outer loop, whichever makes for less to transform again: kernels, c_out to
 * a strip more, or patches, one to a tile of the map and a tile of output channels more.
 */
KQGEN_CODE static void kq_winograd_run(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t tile = window->tile;
    const uint32_t strip = conv->strip & ~(uint32_t)1u;
    const uint32_t tiles_w = (window->w_out + KQ_SIDE - 1u) >> (KQ_SIDE >> 1);
    const uint32_t tiles = ((window->h_out + KQ_SIDE - 1u) >> (KQ_SIDE >> 1)) * tiles_w;
    kq_winograd run;
    uint32_t strips_outside;
    uint32_t first = 0, at = 0;
    kq_pixel start = {0, 0}, next = {0, 0};
    uint32_t kernels_first = c_out, patches_at = tiles;
    const kq_requant *requant = &conv->requant;
    const kq_add *sum = requant->sum;
    run.bounded = requant->lo > -128 || requant->hi < 127 || (sum != NULL && (sum->lo > -128 || sum->hi < 127));
    run.conv = conv;
    run.input = input;
    run.output = output;
    run.words = ((window->c_in + 3u) >> 2) << 1;
    run.kernel_group = tile < 4u ? 2u : KQ_KERNEL_GROUP;
    run.patch_group = tile < 4u ? KQ_KERNEL_GROUP : 2u;
    run.kernels = scratch;
    run.patches = run.kernels + KQ_POSITIONS * run.words * tile;
    run.sums = run.patches + KQ_POSITIONS * run.words * strip;
    run.book = NULL;
    run.direct = 0;
    run.second = conv->codewords;
    run.aligned = (window->c_in & 3u) == 0 && (KQ_ANY_ADDRESS || ((uintptr_t)input & 3u) == 0);
    if (conv->strip != strip) {
        int8_t *to = (int8_t *)(run.sums + KQ_POSITIONS * 8u);
        const uint32_t codes = (uint32_t)1 << (((uint32_t)conv->index_bits - conv->sign) >> (conv->stages - 1u));
        uint32_t stage, i;
        run.direct = conv->stages != 2u;
        run.book = to;
        run.second = codes < conv->codewords ? codes : conv->codewords;
        for (stage = 0; stage < conv->stages; ++stage) {
            for (i = 0; i < run.second; ++i) {
                kq_read_codeword(conv->codebook, stage * conv->codewords + i, to);
                to += KQ_TAPS;
            }
        }
    }
    strips_outside = c_out * tile * (tiles > strip ? tiles - strip : 0) <= tiles * strip * (c_out > tile ? c_out - tile : 0);
    while (first < c_out && at < tiles) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        const uint32_t patches = tiles - at < strip ? tiles - at : strip;
        if (kernels_first != first) {
            kq_transform_kernels(&run, first, channels);
            kernels_first = first;
        }
        if (patches_at != at) {
            next = kq_transform_strip(&run, start, patches);
            patches_at = at;
        }
        kq_multiply(&run, first, channels, start, patches);
        if (strips_outside) {
            first += tile;
            if (first >= c_out) {
                first = 0;
                at += strip;
                start = next;
            }
        } else {
            at += strip;
            start = next;
            if (at >= tiles) {
                at = 0;
                start.x = 0;
                start.y = 0;
                first += tile;
            }
        }
    }
}

#endif
