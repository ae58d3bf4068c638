/* Depthwise convolution on cores with Helium (SPEC 6.9): sixteen channels at a time, int8 side by side. As many rows of the map as a kernel has
 * lie in scratch, padding laid in; the oldest makes room for the next.
 *
 * VMULLB and VMULLT multiply the even and the odd channels to int16. Two products of weights within +-127 fit int16, and so does a sum over
 * taps whose absolute weights sum to at most 255. Such sums are widened to int32 in four vectors: channels 0, 4, 8, 12; 2, 6, 10, 14; and
 * the odd ones likewise.
 */
#include "kq.h"
#include "kq_depthwise.h"
#include "kq_depthwise_nines.h"
#include "kq_mve_copy.h"

#define MVE_BLOCK 16u /* channels */
#define MVE_SUM 255u
#define MVE_PARAMS 48u /* words of parameters, and of those with the limits behind them */
#define MVE_LIMITS 56u

/* How sums are widened. */
#define MVE_EVERY_TAP 0u
#define MVE_EVERY_TWO 1u
#define MVE_AT_THE_END 2u

/* Input channels first..first+channels-1, and of their output channels the one numbered `turn` of each. */
typedef struct {
    const depthwise_layer *layer;
    const int8_t *input;
    uint32_t first;
    uint32_t channels;
    uint32_t turn;
    uint32_t widening;
    int32_t *params;  /* [3][16]: biases, multipliers * 2^16, negated shifts, in the order of the vectors; then 16 bytes lo and 16 bytes hi */
    uint32_t *places; /* [k_h]: where the rows of the window at work lie in `rows` */
    int8_t *pads;     /* [16] */
    int8_t *weights;  /* [taps][16] */
    int8_t *rows;     /* [k_h][columns][16] */
    int8_t *room;     /* two kernels as bytes */
} mve_block;

/* Where the parameters of channel i of a block lie. */
KQGEN_CODE static uint32_t mve_place_of(uint32_t i)
{
    return 8u * (i & 1u) + 4u * ((i >> 1) & 1u) + (i >> 2);
}

/* The output channel of input channel number i of a block. */
KQGEN_CODE static uint32_t mve_output(const mve_block *block, uint32_t i)
{
    return (block->first + i) * block->layer->each + block->turn;
}

/* How sums of a layer are widened: by the largest weights there may be (SPEC 4.3, 4.4). */
KQGEN_CODE static uint32_t mve_widening(const depthwise_layer *layer)
{
    const uint32_t largest = layer->uniform != NULL ? ((uint32_t)1 << (layer->uniform->bits - 1u)) - 1u : 0;
    if (kq_rounds_as_tflite(layer->requant->acc_shift)) {
        return MVE_EVERY_TAP; /* weights of -128 */
    }
    return largest * layer->taps > MVE_SUM ? MVE_EVERY_TWO : MVE_AT_THE_END;
}

/* Fills in weights and parameters of a block. */
KQGEN_CODE static KQ_NOINLINE void mve_fill(const mve_block *block)
{
    const depthwise_layer *layer = block->layer;
    const kq_requant *requant = layer->requant;
    const uint32_t taps = layer->taps;
    uint32_t i;
#if KQ_MVE
    if (block->channels == MVE_BLOCK && layer->each == 1u && block->widening == MVE_EVERY_TWO && layer->uniform->bits == 8u && taps < 18u) {
        const uint8x16_t apart = vmulq_n_u8(vidupq_n_u8(0, 1), (uint8_t)taps);
        const int8_t *kernels = (const int8_t *)layer->uniform->weights + block->first * taps;
        for (i = 0; i < taps; ++i) {
            vst1q_s8(block->weights + i * MVE_BLOCK, vldrbq_gather_offset_s8(kernels + i, apart));
        }
        for (i = 0; i < 4u; ++i) {
            const uint32x4_t at = vaddq_n_u32(vidupq_n_u32(0, 4), block->first + ((i & 1u) << 1) + (i >> 1));
            int32_t *params = block->params + 4u * i;
            vst1q_s32(params, vldrwq_gather_shifted_offset_s32(requant->bias, at));
            vst1q_s32(params + MVE_BLOCK, vshlq_n_s32(vldrhq_gather_shifted_offset_s32(requant->multiplier, at), 16));
            vst1q_s32(params + 2u * MVE_BLOCK, vnegq_s32(vreinterpretq_s32_u32(vldrbq_gather_offset_u32(requant->shift, at))));
        }
        return;
    }
#endif
    for (i = 0; i < block->channels; ++i) {
        const uint32_t o = mve_output(block, i);
        const int8_t *kernel = depthwise_kernel(layer, o, block->room);
        int32_t *params = block->params + mve_place_of(i);
        int8_t *to = block->weights + i;
        uint32_t t;
        for (t = 0; t < taps; ++t) {
            *to = kernel[t];
            to += MVE_BLOCK;
        }
        params[0] = requant->bias[o];
        params[MVE_BLOCK] = kq_signed((uint32_t)kq_multiplier(requant, o) << 16);
        params[2u * MVE_BLOCK] = -(int32_t)requant->shift[o];
    }
}

/* Writes row `row` of the map into scratch, to `to`, whose padded columns are laid in already; or a whole row of padding. */
KQGEN_CODE static KQ_NOINLINE void mve_fill_row(const mve_block *block, uint32_t row, int8_t *to)
{
    const kq_window *window = block->layer->window;
    const uint32_t columns = block->layer->columns;
    const uint32_t left = window->pad_left;
    if (row >= window->h_in || left >= columns) {
        kq_mve_copy(to, MVE_BLOCK, block->pads, 0, block->channels, columns);
    } else {
        const int8_t *from = block->input + row * window->w_in * window->c_in + block->first;
        const uint32_t inside = columns - left < window->w_in ? columns - left : window->w_in;
        kq_mve_copy(to + left * MVE_BLOCK, MVE_BLOCK, from, window->c_in, block->channels, inside);
    }
}

/* Stores the results of a pixel one by one from its accumulators, in the order of the vectors: by any rule, added to what is there. */
KQGEN_CODE static KQ_NOINLINE void mve_store(const mve_block *block, const int32_t *acc, int8_t *to)
{
    const depthwise_layer *layer = block->layer;
    uint32_t i;
    for (i = 0; i < block->channels; ++i) {
        kq_store((uint32_t)acc[mve_place_of(i)], layer->requant, mve_output(block, i), to);
        to += layer->each;
    }
}

#if KQ_MVE

/* Sums of a pixel. */
typedef struct {
    int32x4_t even0, even1, odd0, odd1;
} mve_sums;

/* Adds sums of even and odd channels. */
static KQ_INLINE mve_sums mve_widened(mve_sums sums, int16x8_t even, int16x8_t odd)
{
    sums.even0 = vaddq_s32(sums.even0, vmovlbq_s16(even));
    sums.even1 = vaddq_s32(sums.even1, vmovltq_s16(even));
    sums.odd0 = vaddq_s32(sums.odd0, vmovlbq_s16(odd));
    sums.odd1 = vaddq_s32(sums.odd1, vmovltq_s16(odd));
    return sums;
}

/* The biases of a block. */
static KQ_INLINE mve_sums mve_biases(const mve_block *block)
{
    const mve_sums sums = {
        vld1q_s32(block->params), vld1q_s32(block->params + 4), vld1q_s32(block->params + 8), vld1q_s32(block->params + 12)};
    return sums;
}

/* A row of results of a 3x3 kernel, sums widened every two taps or at the end. */
KQGEN_CODE static KQ_NOINLINE void mve_nines(const mve_block *block, int8_t *to)
{
    const kq_window *window = block->layer->window;
    const uint32_t step = window->stride_w * MVE_BLOCK;
    const uint32_t apart = window->c_out;
    const int8_t *row0 = block->rows + block->places[0];
    const int8_t *row1 = block->rows + block->places[1];
    const int8_t *row2 = block->rows + block->places[2];
    const int8_t *weights = block->weights;
    const int32_t *params = block->params;
    const int32_t zero_point = block->layer->requant->zero_point;
    uint32_t count = window->w_out;
    if (block->widening == MVE_EVERY_TWO) {
        MVE_NINES(MVE_TWOS);
    } else {
        MVE_NINES(MVE_WHOLE);
    }
}

/* A row of results of any kernel, by any rule. */
KQGEN_CODE static KQ_NOINLINE void mve_any(const mve_block *block, int8_t *to)
{
    const kq_window *window = block->layer->window;
    uint32_t at = 0;
    uint32_t pixel;
    for (pixel = 0; pixel < window->w_out; ++pixel) {
        const int8_t *weight = block->weights;
        mve_sums sums = mve_biases(block);
        int32_t acc[MVE_BLOCK];
        uint32_t row;
        for (row = 0; row < window->k_h; ++row) {
            const int8_t *from = block->rows + block->places[row] + at;
            uint32_t left;
            for (left = window->k_w; left != 0; --left) {
                const int8x16_t x = vld1q_s8(from);
                const int8x16_t w = vld1q_s8(weight);
                sums = mve_widened(sums, vmullbq_int_s8(x, w), vmulltq_int_s8(x, w));
                from += MVE_BLOCK;
                weight += MVE_BLOCK;
            }
        }
        vst1q_s32(acc, sums.even0);
        vst1q_s32(acc + 4, sums.even1);
        vst1q_s32(acc + 8, sums.odd0);
        vst1q_s32(acc + 12, sums.odd1);
        mve_store(block, acc, to);
        at += window->stride_w * MVE_BLOCK;
        to += window->c_out;
    }
}

/* A row of results of a block. */
KQGEN_CODE static void mve_row(const mve_block *block, int8_t *to)
{
    const kq_window *window = block->layer->window;
    const kq_requant *requant = block->layer->requant;
    const int general = requant->sum != NULL || block->layer->each != 1u || requant->acc_shift != 0;
    if (window->k_h != 3 || window->k_w != 3 || general || block->widening == MVE_EVERY_TAP) {
        mve_any(block, to);
    } else {
        mve_nines(block, to);
    }
}

#else

/* A row of results of a block. */
KQGEN_CODE static void mve_row(const mve_block *block, int8_t *to)
{
    const kq_window *window = block->layer->window;
    uint32_t at = 0;
    uint32_t pixel;
    for (pixel = 0; pixel < window->w_out; ++pixel) {
        int32_t acc[MVE_BLOCK];
        uint32_t i;
        for (i = 0; i < block->channels; ++i) {
            const int8_t *weight = block->weights + i;
            uint32_t sum = (uint32_t)block->params[mve_place_of(i)];
            uint32_t row;
            for (row = 0; row < window->k_h; ++row) {
                const int8_t *from = block->rows + block->places[row] + at + i;
                uint32_t left;
                for (left = window->k_w; left != 0; --left) {
                    sum += (uint32_t)(*from * *weight);
                    from += MVE_BLOCK;
                    weight += MVE_BLOCK;
                }
            }
            acc[mve_place_of(i)] = kq_signed(sum);
        }
        mve_store(block, acc, to);
        at += window->stride_w * MVE_BLOCK;
        to += window->c_out;
    }
}

#endif

/* All rows of a block. */
KQGEN_CODE static KQ_NOINLINE void mve_convolve(const mve_block *block, int8_t *to)
{
    const kq_window *window = block->layer->window;
    const uint32_t row_bytes = block->layer->columns * MVE_BLOCK;
    const uint32_t k_h = window->k_h;
    uint32_t next = 0u - window->pad_top; /* the next row of the map to be read */
    uint32_t wanted = k_h;
    uint32_t y;
    uint32_t i;
    for (i = 0; i < k_h; ++i) {
        block->places[i] = i * row_bytes;
    }
    kq_mve_copy(block->rows, MVE_BLOCK, block->pads, 0, block->channels, k_h * block->layer->columns);
    for (y = 0; y < window->h_out; ++y) {
        while (wanted > k_h) {
            ++next;
            --wanted;
        }
        for (; wanted != 0; --wanted) {
            const uint32_t oldest = block->places[0];
            for (i = 1; i < k_h; ++i) {
                block->places[i - 1u] = block->places[i];
            }
            block->places[k_h - 1u] = oldest;
            mve_fill_row(block, next, block->rows + oldest);
            ++next;
        }
        mve_row(block, to);
        to += (uint32_t)window->w_out * window->c_out;
        wanted = window->stride_h;
    }
}

/* All channels, sixteen input channels at a time. */
KQGEN_CODE static KQ_NOINLINE void mve_depthwise(const depthwise_layer *layer, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = layer->window;
    mve_block block;
    int8_t *limits;
    uint32_t at;
    block.layer = layer;
    block.input = input;
    block.params = scratch;
    block.places = (uint32_t *)(void *)(block.params + MVE_LIMITS);
    block.pads = (int8_t *)(block.places + window->k_h);
    block.weights = block.pads + MVE_BLOCK;
    block.rows = block.weights + layer->taps * MVE_BLOCK;
    block.room = block.rows + window->k_h * layer->columns * MVE_BLOCK;
    limits = (int8_t *)(block.params + MVE_PARAMS);
    for (at = 0; at < MVE_BLOCK; ++at) {
        limits[at] = layer->requant->lo;
        limits[MVE_BLOCK + at] = layer->requant->hi;
    }
    block.widening = mve_widening(layer);
    for (block.first = 0; block.first < window->c_in; block.first += MVE_BLOCK) {
        uint32_t i;
        block.channels = window->c_in - block.first < MVE_BLOCK ? window->c_in - block.first : MVE_BLOCK;
        for (i = 0; i < block.channels; ++i) {
            block.pads[i] = kq_pad(layer->pad_values, (int8_t)layer->pad_value, block.first + i);
        }
        for (block.turn = 0; block.turn < layer->each; ++block.turn) {
            mve_fill(&block);
            mve_convolve(&block, output + mve_output(&block, 0));
        }
    }
}

/* Uniform weights; scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_mve_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = conv;
    layer.indexed = NULL;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    mve_depthwise(&layer, input, output, scratch);
}

/* Indexed kernels; scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_decode_mve_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = NULL;
    layer.indexed = conv;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    mve_depthwise(&layer, input, output, scratch);
}
