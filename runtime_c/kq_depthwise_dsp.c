/* Depthwise convolution on cores with the DSP extension (SPEC 6.9): planes of int16, two neighbouring columns in a word, two products an
 * instruction. Four input channels are laid out at a time where scratch has room for them: their words take turns.
 */
#include "kq.h"
#include "kq_depthwise.h"
#include "kq_depthwise_dsp_nines.h"
#include "kq_dsp.h"

#define DSP_FOUR 4u

/* A layer's planes in scratch, and the output channel at work. */
typedef struct {
    const depthwise_layer *layer;
    uint32_t turns;     /* channels whose words take turns: 1 or 4 */
    uint32_t row_words; /* of a row of a plane, two columns each */
    uint32_t row_taps;  /* of a row of weights */
    uint32_t *words;    /* [rows][row_words][turns] */
    uint32_t *weights;  /* [2][k_h][row_taps]: for windows that begin at an even column, and at an odd one */
    int8_t *row;        /* results that are limited or added afterwards */
    int8_t *room;       /* two kernels as bytes */
    uint32_t nines;     /* the kernel is 3x3, the stride of columns 1 or 2, the rule SPEC 3.2 */
    uint32_t plain;     /* results need no more than saturation */
    dsp_nines_job job;
} dsp_planes;

/* Lays out a row of one channel, whose first value is at `from`. */
KQGEN_CODE static KQ_NOINLINE void dsp_lay_row(const dsp_planes *planes, const int8_t *from, uint32_t pad, uint32_t *to)
{
    const kq_window *window = planes->layer->window;
    const uint32_t step = window->c_in;
    uint32_t column = 0u - window->pad_left;
    uint32_t left;
    from -= window->pad_left * step;
    for (left = planes->row_words; left != 0; --left) {
        const uint32_t low = column < window->w_in ? (uint32_t)from[0] : pad;
        const uint32_t high = column + 1u < window->w_in ? (uint32_t)from[step] : pad;
        *to = kq_low_halves(low, high);
        to += planes->turns;
        from += 2u * step;
        column += 2u;
    }
}

/* Four words: two columns of four channels each, the first column of each in the low half. */
static KQ_INLINE void dsp_put_fours(uint32_t *to, uint32_t quad0, uint32_t quad1)
{
    const uint32_t even0 = kq_even_values(quad0);
    const uint32_t even1 = kq_even_values(quad1);
    const uint32_t odd0 = kq_odd_values(quad0);
    const uint32_t odd1 = kq_odd_values(quad1);
    to[0] = kq_low_halves(even0, even1);
    to[1] = kq_low_halves(odd0, odd1);
    to[2] = kq_high_halves(even0, even1);
    to[3] = kq_high_halves(odd0, odd1);
}

/* Lays out four channels of rows of the map, the first value of them at `from`. */
KQGEN_CODE static KQ_NOINLINE void dsp_lay_fours(const dsp_planes *planes, const int8_t *from, uint32_t rows, uint32_t pads, uint32_t *to)
{
    const kq_window *window = planes->layer->window;
    const uint32_t step = window->c_in;
    const uint32_t late = window->pad_left & 1u;
    const uint32_t room = 2u * planes->row_words - window->pad_left;
    const uint32_t columns = window->w_in < room ? window->w_in : room;
    const uint32_t pairs = (columns - late) >> 1;
    const uint32_t row_bytes = window->w_in * step;
    to += (window->pad_left >> 1) * DSP_FOUR;
    for (; rows != 0; --rows) {
        const int8_t *at = from;
        uint32_t *word = to;
        uint32_t left;
        if (late != 0) {
            dsp_put_fours(word, pads, kq_quad_at(at));
            word += DSP_FOUR;
            at += step;
        }
        for (left = pairs; left != 0; --left) {
            dsp_put_fours(word, kq_quad_at(at), kq_quad_at(at + step));
            word += DSP_FOUR;
            at += 2u * step;
        }
        if (((columns - late) & 1u) != 0) {
            dsp_put_fours(word, kq_quad_at(at), pads);
        }
        from += row_bytes;
        to += planes->row_words * DSP_FOUR;
    }
}

/* Lays out input channels first..first+channels-1, `turns` of them at most. What no row of the map reaches is padding; where all channels
 * have the same it stays from one call to the next.
 */
KQGEN_CODE static KQ_NOINLINE void dsp_lay(const dsp_planes *planes, const int8_t *input, uint32_t first, uint32_t channels)
{
    const depthwise_layer *layer = planes->layer;
    const kq_window *window = layer->window;
    const uint32_t row_step = planes->row_words * planes->turns;
    const uint32_t above = window->pad_top < layer->rows ? window->pad_top : layer->rows;
    const uint32_t inside = layer->rows - above < window->h_in ? layer->rows - above : window->h_in;
    uint32_t pads[DSP_FOUR];
    uint32_t i;
    input += first;
    for (i = 0; i < channels; ++i) {
        pads[i] = (uint32_t)kq_pad(layer->pad_values, (int8_t)layer->pad_value, first + i);
    }
    if (first == 0 || layer->pad_values != NULL) {
        const uint32_t *end = planes->words + layer->rows * row_step;
        uint32_t *to;
        for (i = 0; i < channels; ++i) {
            for (to = planes->words + i; to < end; to += planes->turns) {
                *to = kq_low_halves(pads[i], pads[i]);
            }
        }
    }
    if (2u * planes->row_words > window->pad_left) {
        uint32_t *to = planes->words + above * row_step;
        if (channels == DSP_FOUR) {
            const uint32_t low = (pads[0] & 0xFFu) | (pads[1] & 0xFFu) << 8;
            dsp_lay_fours(planes, input, inside, low | (pads[2] & 0xFFu) << 16 | pads[3] << 24, to);
        } else {
            uint32_t left;
            for (left = inside; left != 0; --left) {
                for (i = 0; i < channels; ++i) {
                    dsp_lay_row(planes, input + i, pads[i], to + i);
                }
                input += (uint32_t)window->w_in * window->c_in;
                to += row_step;
            }
        }
    }
}

/* Limits a row of results in scratch, adds them to what is there where the layer sums, and stores them. */
KQGEN_CODE static KQ_NOINLINE void dsp_settle(const dsp_planes *planes, int8_t *to)
{
    const kq_requant *requant = planes->layer->requant;
    const uint32_t step = planes->layer->window->c_out;
    const int8_t *row = planes->row;
    uint32_t left;
    for (left = planes->layer->window->w_out; left != 0; --left) {
        *to = (int8_t)kq_summed(requant->sum, kq_clamped(*row, requant->lo, requant->hi), *to);
        to += step;
        ++row;
    }
}

/* Widens a kernel as the general loop takes it: rows of words, for windows that begin at an even column, then for others. */
KQGEN_CODE static KQ_NOINLINE void dsp_widen_kernel(const dsp_planes *planes, const int8_t *kernel)
{
    const kq_window *window = planes->layer->window;
    uint32_t *to = planes->weights;
    uint32_t late;
    for (late = 0; late < 2u; ++late) {
        const int8_t *from = kernel;
        uint32_t row;
        for (row = 0; row < window->k_h; ++row) {
            uint32_t column = 0u - late;
            uint32_t left;
            for (left = planes->row_taps; left != 0; --left) {
                const uint32_t is_low = column < window->k_w;
                const uint32_t is_high = column + 1u < window->k_w;
                /* Loads that always happen: emulators that watch reads lose the condition of others. */
                const uint32_t low = (uint32_t)from[is_low ? column : 0u] & (0u - is_low);
                const uint32_t high = (uint32_t)from[is_high ? column + 1u : 0u] & (0u - is_high);
                *to = kq_low_halves(low, high);
                ++to;
                column += 2u;
            }
            from += window->k_w;
        }
    }
}

/* Output channel o by any kernel, one result after the other; `words` is its plane. */
KQGEN_CODE static KQ_NOINLINE void dsp_convolve_any(const dsp_planes *planes, uint32_t o, const uint32_t *words, int8_t *to)
{
    const kq_window *window = planes->layer->window;
    const kq_requant *requant = planes->layer->requant;
    const uint32_t turns = planes->turns;
    const uint32_t row_step = planes->row_words * turns;
    const uint32_t rest = row_step - planes->row_taps * turns;
    uint32_t y;
    for (y = 0; y < window->h_out; ++y) {
        uint32_t column = 0;
        uint32_t x;
        for (x = 0; x < window->w_out; ++x) {
            const uint32_t *from = words + (column >> 1) * turns;
            const uint32_t *weight = planes->weights + (column & 1u) * window->k_h * planes->row_taps;
            uint32_t acc = (uint32_t)requant->bias[o];
            uint32_t rows;
            for (rows = window->k_h; rows != 0; --rows) {
                uint32_t taps = planes->row_taps;
                do {
                    acc = kq_two_products(*from, *weight, acc);
                    from += turns;
                    ++weight;
                    --taps;
                } while (taps != 0);
                from += rest;
            }
            kq_store(acc, requant, o, to);
            to += window->c_out;
            column += window->stride_w;
        }
        words += window->stride_h * row_step;
    }
}

/* What the jobs of a layer's 3x3 kernels share: rows at once, or one after the other by way of scratch. */
KQGEN_CODE static void dsp_prepare_nines(dsp_planes *planes)
{
    const kq_window *window = planes->layer->window;
    const uint32_t pairs = window->stride_w == 1 ? (uint32_t)window->w_out >> 1 : 0;
    const uint32_t odd = window->w_out - 2u * pairs;
    dsp_nines_job *job = &planes->job;
    job->turn_bytes = 4u * planes->turns;
    job->row_bytes = planes->row_words * job->turn_bytes;
    job->zero_point = planes->layer->requant->zero_point;
    job->step = planes->plain ? window->c_out : 1u;
    job->pairs_bytes = pairs * job->turn_bytes;
    job->odd_bytes = odd * job->turn_bytes;
    job->gap_bytes = window->stride_h * job->row_bytes - job->pairs_bytes - job->odd_bytes;
    job->rows = planes->plain ? window->h_out : 1u;
}

/* Output channel o by a 3x3 kernel; 0, and nothing done, where its rule is no single product: SPEC 3.2 by an integer
 * below 2^31, SPEC 3.5 with a shift behind it.
 */
KQGEN_CODE static KQ_NOINLINE uint32_t dsp_convolve_nines(
    dsp_planes *planes, uint32_t o, const int8_t *kernel, const uint32_t *words, int8_t *to)
{
    const kq_window *window = planes->layer->window;
    const kq_requant *requant = planes->layer->requant;
    dsp_nines_job *job = &planes->job;
    uint32_t rows;
    if (!dsp_rule(requant, o, job)) {
        return 0;
    }
    job->weights[0] = kq_low_halves((uint32_t)kernel[0], (uint32_t)kernel[1]);
    job->weights[1] = kq_low_halves((uint32_t)kernel[1], (uint32_t)kernel[2]);
    job->weights[2] = kq_low_halves((uint32_t)kernel[3], (uint32_t)kernel[4]);
    job->weights[3] = kq_low_halves((uint32_t)kernel[4], (uint32_t)kernel[5]);
    job->weights[4] = kq_low_halves((uint32_t)kernel[6], (uint32_t)kernel[7]);
    job->weights[5] = kq_low_halves((uint32_t)kernel[7], (uint32_t)kernel[8]);
    job->bias = (uint32_t)requant->bias[o];
    job->x = words;
    job->to = planes->plain ? to : planes->row;
    dsp_do_nines(job, requant);
    for (rows = window->h_out; !planes->plain; dsp_do_nines(job, requant)) {
        dsp_settle(planes, to);
        to += (uint32_t)window->w_out * window->c_out;
        job->x += (window->stride_h * job->row_bytes) >> 2;
        --rows;
        if (rows == 0) {
            break;
        }
    }
    return 1;
}

/* Output channel o; `words` is the plane of its input channel. */
KQGEN_CODE static void dsp_convolve(dsp_planes *planes, uint32_t o, const uint32_t *words, int8_t *to)
{
    const int8_t *kernel = depthwise_kernel(planes->layer, o, planes->room);
    if (planes->nines == 0 || !dsp_convolve_nines(planes, o, kernel, words, to)) {
        dsp_widen_kernel(planes, kernel);
        dsp_convolve_any(planes, o, words, to);
    }
}

/* All channels, `tile` input channels at a time, 1 or 4. */
KQGEN_CODE static KQ_NOINLINE void dsp_depthwise(const depthwise_layer *layer, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = layer->window;
    const kq_requant *requant = layer->requant;
    dsp_planes planes;
    uint32_t first = 0;
    planes.layer = layer;
    planes.turns = window->tile;
    planes.row_taps = ((uint32_t)window->k_w >> 1) + 1u;
    planes.row_words = (((window->w_out - 1u) * window->stride_w) >> 1) + planes.row_taps;
    planes.words = scratch;
    planes.weights = planes.words + layer->rows * planes.row_words * planes.turns;
    planes.row = (int8_t *)(planes.weights + 2u * planes.row_taps * window->k_h);
    planes.room = planes.row + window->w_out;
    planes.nines = window->k_h == 3 && window->k_w == 3 && window->stride_w <= 2;
    planes.plain = requant->sum == NULL && requant->hi - requant->lo == INT8_MAX - INT8_MIN;
    dsp_prepare_nines(&planes);
    while (first < window->c_in) {
        const uint32_t channels = window->c_in - first < planes.turns ? window->c_in - first : planes.turns;
        uint32_t i;
        dsp_lay(&planes, input, first, channels);
        for (i = 0; i < channels; ++i) {
            uint32_t o = (first + i) * layer->each;
            uint32_t left;
            for (left = layer->each; left != 0; --left) {
                dsp_convolve(&planes, o, planes.words + i, output + o);
                ++o;
            }
        }
        first += channels;
    }
}

/* Uniform weights; scratch as SPEC 6.4. window.tile: input channels, 1 or 4. */
KQGEN_CODE void kq_depthwise_dsp_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = conv;
    layer.indexed = NULL;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    dsp_depthwise(&layer, input, output, scratch);
}

/* Indexed kernels; scratch as SPEC 6.4. window.tile: input channels, 1 or 4. */
KQGEN_CODE void kq_depthwise_decode_dsp_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = NULL;
    layer.indexed = conv;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    dsp_depthwise(&layer, input, output, scratch);
}
