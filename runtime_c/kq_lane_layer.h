/* A layer by two output channels in a word (SPEC 6.2), however its weights are stored: its scratch, the window of each output pixel laid out
 * as words, and all pixels of a tile of output channels, eight channels at a time.
 */
#ifndef KQ_LANE_LAYER_H
#define KQ_LANE_LAYER_H

#include "kq_fixed.h"
#include "kq_lane_words.h"
#include "kq_lanes.h"
#include "kq_window.h"

/* A layer, however its weights are stored. */
typedef struct {
    const kq_window *window;
    const kq_requant *requant;
    const int8_t *input;
    int8_t *output;
    uint32_t by_channel; /* 1: a group is the kernel of an input channel; 0: taps come in the order of the map, cut into groups */
    uint32_t groups;
    uint32_t taps; /* of a group; the last group may have fewer */
    uint32_t span; /* words of a group's taps: `taps`, or one more so that it is even; 9 stays 9 */
    uint32_t octets; /* of a tile */
    uint32_t row_step;  /* bytes from one row of the input to the next */
    uint32_t gap_bytes; /* behind each row of a window laid along, where groups end with rows, or there is but one */
    uint32_t columns;   /* places of a window between both ends of a row, 0 where lay_inside does not serve */
    uint32_t *stream;
    uint32_t *weights;
    uint32_t *tables;
    int8_t *pads; /* [k_w][c_in]: what a row of padded positions reads */
#if KQ_WITH_TFLITE
    int twice; /* kq_lane_octets_twice serves the layer */
#endif
} packed_layer;

/* Where the next value of a window goes when taps come in the order of the map. */
typedef struct {
    uint32_t *to;
    uint32_t room; /* taps left in this group, at least 1 */
} packed_cursor;

/* Words of the taps of a group. */
KQGEN_CODE static inline uint32_t span_of(uint32_t taps)
{
    return taps == 9u ? taps : (taps + 1u) & ~(uint32_t)1u;
}

/* Words of packed weights of eight channels. */
KQGEN_CODE static inline uint32_t octet_words(const packed_layer *layer)
{
    return layer->groups * layer->span * KQ_LANE_WORDS;
}

/* The fewest groups, as even as can be, of `taps` taps whose weights of at most `largest` cannot sum to more than 255. */
KQGEN_CODE static KQ_NOINLINE void cut_taps(packed_layer *layer, uint32_t taps, uint32_t largest)
{
    uint32_t groups = 1;
    uint32_t each = taps;
    while (each * largest > KQ_LANE_SUM) {
        ++groups;
        while ((each - 1u) * groups >= taps) {
            --each;
        }
    }
    layer->groups = groups;
    layer->taps = each;
    layer->span = span_of(each);
}

#if KQ_WITH_TFLITE
/* Whether a layer rounds twice (SPEC 3.5), by shifts that leave at least 1 behind the product. */
KQGEN_CODE static int puts_twice(const packed_layer *layer)
{
    const kq_requant *requant = layer->requant;
    uint32_t o;
    for (o = 0; o < layer->window->c_out; ++o) {
        if (requant->acc_shift != KQ_ROUND_TWICE || requant->shift[o] < 32u) {
            return 0;
        }
    }
    return requant->sum == NULL;
}
#endif

/* A layer with its scratch divided: window, weights and tables of the octets of a tile, padded positions. `room` is the end. */
KQGEN_CODE static KQ_NOINLINE int8_t *split_scratch(packed_layer *layer, const int8_t *pad_values, int8_t pad_value, void *scratch)
{
    const uint32_t c_in = layer->window->c_in;
    int8_t *pad;
    uint32_t column;
    const uint32_t row = layer->window->k_w * c_in;
    const uint32_t w_in = layer->window->w_in;
    const uint32_t k_w = layer->window->k_w;
    const int plain = layer->by_channel != 0 ? k_w == 3u : layer->taps == row || layer->groups == 1u;
    layer->octets = (layer->window->tile + 7u) >> 3;
    layer->row_step = w_in * c_in;
    layer->gap_bytes = layer->taps == row ? 4u * (layer->span - row + KQ_LANE_WORDS) : 0;
    layer->columns = plain && w_in >= k_w ? w_in - k_w + 1u : 0;
#if KQ_WITH_TFLITE
    layer->twice = puts_twice(layer);
#endif
    layer->stream = scratch;
    layer->weights = layer->stream + layer->groups * (layer->span + KQ_LANE_WORDS);
    layer->tables = layer->weights + layer->octets * octet_words(layer);
    layer->pads = (int8_t *)(layer->tables + layer->octets * KQ_LANE_TABLE);
    pad = layer->pads;
    for (column = 0; column < k_w; ++column) {
        uint32_t i;
        for (i = 0; i < c_in; ++i) {
            *pad = kq_pad(pad_values, pad_value, i);
            ++pad;
        }
    }
    return layer->pads + ((row + 3u) & ~(uint32_t)3u);
}

/* Where the totals of output channels first..first+channels-1 start, and how they are requantised. A total of S starts from both biases
 * of a pair, packed like weights but to 32 bits, so that it ends as the even channel's sum after the odd one's is taken out.
 */
KQGEN_CODE static void fill_tables(const packed_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = layer->requant;
    uint32_t *table = layer->tables;
    uint32_t o;
    for (o = 0; o < 8u * layer->octets; ++o) {
        const uint32_t channel = o < channels ? first + o : first;
        const uint32_t bias = o < channels ? (uint32_t)requant->bias[channel] : 0;
        uint32_t *start = table + ((o >> 1) & 3u);
        uint32_t *entry = table + 10u + 6u * ((o >> 1) & 3u) + 2u * (o & 1u);
        start[0] = (o & 1u) != 0 ? start[0] + (bias << 16) : bias;
        start[KQ_LANE_WORDS] = bias; /* the odd channel's, which comes last */
        entry[0] = kq_multiplier(requant, channel);
        entry[1] = requant->shift[channel] - (kq_rounds_as_tflite(requant->acc_shift) ? 31u : 0u);
        if ((o & 7u) == 7u) {
            table += KQ_LANE_TABLE;
        }
    }
}

/* Lays out a window by channel: [c_in][span + 4], taps of a channel in the order of the kernel. */
KQGEN_CODE static KQ_NOINLINE void lay_by_channel(const packed_layer *layer, const kq_view *view)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    const uint32_t k_w = window->k_w;
    const uint32_t k_h = window->k_h;
    const uint32_t apart = layer->span + KQ_LANE_WORDS;
    uint32_t *to = layer->stream;
    uint32_t row;
    for (row = 0; row < k_h; ++row) {
        uint32_t at = view->base + row * layer->row_step;
        uint32_t column;
        for (column = 0; column < k_w; ++column) {
            const int8_t *values = kq_on_map(view, row, column) ? layer->input + at : layer->pads;
            uint32_t *word = to;
            uint32_t i;
            for (i = 0; i < c_in; ++i) {
                *word = (uint32_t)values[i];
                word += apart;
            }
            at += c_in;
            ++to;
        }
    }
}

/* kq_widen as one function for both ways to lay a window along. */
KQGEN_CODE static KQ_NOINLINE uint32_t *widen_rows(
    uint32_t *to, const int8_t *from, uint32_t count, uint32_t rows, uint32_t row_step, uint32_t gap_bytes)
{
    return kq_widen(to, from, count, rows, row_step, gap_bytes);
}

/* Appends `count` bytes to a window. */
KQGEN_CODE static KQ_NOINLINE void widen_along(const packed_layer *layer, packed_cursor *cursor, const int8_t *from, uint32_t count)
{
    while (count != 0) {
        const uint32_t part = count < cursor->room ? count : cursor->room;
        cursor->to = widen_rows(cursor->to, from, part, 1, 0, 0);
        from += part;
        count -= part;
        cursor->room -= part;
        if (cursor->room == 0) {
            cursor->room = layer->taps;
            cursor->to += layer->span - layer->taps + KQ_LANE_WORDS;
        }
    }
}

/* Lays out a window in the order of the map: a row of the kernel that lies on it is one run of bytes. */
KQGEN_CODE static KQ_NOINLINE void lay_along(const packed_layer *layer, const kq_view *view)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    const uint32_t k_h = window->k_h;
    const uint32_t whole = window->k_w * c_in;
    const uint32_t left = view->col_lo * c_in;
    const uint32_t run = view->col_hi * c_in - left;
    packed_cursor cursor = {layer->stream, layer->taps};
    uint32_t at = view->base + left;
    uint32_t row;
    for (row = 0; row < k_h; ++row) {
        if (row - view->row_lo < view->row_hi - view->row_lo && run != 0) {
            widen_along(layer, &cursor, layer->pads, left);
            widen_along(layer, &cursor, layer->input + at, run);
            widen_along(layer, &cursor, layer->pads, whole - left - run);
        } else {
            widen_along(layer, &cursor, layer->pads, whole);
        }
        at += layer->row_step;
    }
}

/* Lays out a window that lies on the map, its first value at `from`, where the layer allows that without looking (`columns`). */
KQGEN_CODE static KQ_NOINLINE void lay_inside(const packed_layer *layer, const int8_t *from)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    if (layer->by_channel != 0) {
        kq_widen_threes(layer->stream, 4u * (layer->span + KQ_LANE_WORDS), from, c_in, window->k_h, layer->row_step);
    } else {
        (void)widen_rows(layer->stream, from, window->k_w * c_in, window->k_h, layer->row_step, layer->gap_bytes);
    }
}

/* Requantises up to eight channels, from `channel` on, whose totals a table holds, and adds them to what is there if the layer sums. */
KQGEN_CODE static KQ_NOINLINE void put_channels(
    const kq_requant *requant, const uint32_t *entry, uint32_t channel, uint32_t channels, int8_t *to)
{
    uint32_t i;
    for (i = 0; i < channels; ++i) {
        const uint32_t acc = (i & 1u) != 0 ? entry[1] : entry[0] - (entry[1] << 16);
        kq_store(acc, requant, channel + i, to + i);
        entry += 6u * (i & 1u);
    }
}

/* Whether octets are stored as they come. */
static KQ_INLINE int puts_octets(const packed_layer *layer)
{
#if KQ_WITH_TFLITE
    if (kq_rounds_as_tflite(layer->requant->acc_shift)) {
        return layer->twice;
    }
#endif
    return layer->requant->sum == NULL;
}

/* The octets of a job by the layer's rule. */
static KQ_INLINE void run_octets(const packed_layer *layer, kq_lane_job *job)
{
#if KQ_WITH_TFLITE
    if (layer->twice) {
        kq_lane_octets_twice(job);
        return;
    }
#else
    (void)layer;
#endif
    kq_lane_octets(job);
}

/* Output channels first..first+channels-1 of the pixel whose window is laid out; `to` takes the first of them. Octets that are whole and
 * not summed are stored on the way, the others one by one, and those of layers that do not round by one shift down.
 */
KQGEN_CODE static KQ_NOINLINE void convolve_pixel(const packed_layer *layer, kq_lane_job *job, uint32_t first, uint32_t channels, int8_t *to)
{
    job->weights = layer->weights;
    job->table = layer->tables;
    job->to = to;
    job->octets = puts_octets(layer) ? channels >> 3 : 0;
    job->puts = job->octets;
    while (channels != 0) {
        run_octets(layer, job);
        if (job->puts != 0) {
            first += 8u * job->puts;
            channels -= 8u * job->puts;
            job->puts = 0;
        } else {
            const uint32_t part = channels < KQ_LANE_CHANNELS ? channels : KQ_LANE_CHANNELS;
            put_channels(layer->requant, job->table + 8, first, part, job->to);
            job->table += KQ_LANE_TABLE;
            job->to += part;
            first += part;
            channels -= part;
        }
    }
}

/* Output channels first..first+channels-1 of all pixels, by expanded weights. */
KQGEN_CODE static KQ_NOINLINE void convolve_tile(const packed_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_window *window = layer->window;
    const kq_requant *requant = layer->requant;
    int8_t *to = layer->output + first;
    int32_t top = 0 - (int32_t)window->pad_top;
    kq_lane_job job;
    uint32_t y;
    job.stream = layer->stream;
    job.end = layer->weights;
    job.span_bytes = 4u * layer->span;
    job.below = requant->lo - requant->hi;
    job.hi = requant->hi;
    job.above_lo = requant->zero_point - requant->lo;
    job.acc_shift = requant->acc_shift;
    fill_tables(layer, first, channels);
    for (y = 0; y < window->h_out; ++y) {
        int32_t left = 0 - (int32_t)window->pad_left;
        kq_view view;
        uint32_t inside;
        uint32_t x;
        kq_valid_taps(top, window->k_h, window->h_in, &view.row_lo, &view.row_hi);
        inside = view.row_hi - view.row_lo == window->k_h;
        view.base = ((uint32_t)top * window->w_in + (uint32_t)left) * window->c_in;
        for (x = 0; x < window->w_out; ++x) {
            if (inside != 0 && (uint32_t)left < layer->columns) {
                lay_inside(layer, layer->input + view.base);
            } else {
                kq_valid_taps(left, window->k_w, window->w_in, &view.col_lo, &view.col_hi);
                if (layer->by_channel != 0) {
                    lay_by_channel(layer, &view);
                } else {
                    lay_along(layer, &view);
                }
            }
            convolve_pixel(layer, &job, first, channels, to);
            to += window->c_out;
            left += window->stride_w;
            view.base += (uint32_t)window->stride_w * window->c_in;
        }
        top += window->stride_h;
    }
}

#endif
