/* Depthwise convolution on cores with Helium (SPEC 6.9): sixteen channels at a time, int8 side by side. As many rows of the map as a kernel has
 * lie in scratch, padding laid in; the oldest makes room for the next.
 *
 * VMULLB and VMULLT multiply the even and the odd channels to int16. Two products of weights within +-127 fit int16, and so does a sum over
 * taps whose absolute weights sum to at most 255. Such sums are widened to int32 in four vectors: channels 0, 4, 8, 12; 2, 6, 10, 14; and
 * the odd ones likewise.
 */
#include "kq.h"
#include "kq_depthwise.h"
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

/* The products of the tap in x0 and w0 are added to sums of even and odd channels, q0 and q1, while the next tap is loaded to x1 and w1. Loads,
 * products and sums take turns, which keeps both beats of the vector unit busy.
 */
#define MVE_TAP(x0, w0, x1, w1, row, at) \
    "vmullb.s8 q4, " x0 ", " w0 "\n\t" \
    "vldrb.u8 " x1 ", [%[" row "], #" at "]\n\t" \
    "vadd.i16 q0, q0, q4\n\t" \
    "vmullt.s8 q5, " x0 ", " w0 "\n\t" \
    "vldrb.u8 " w1 ", [%[weights]], #16\n\t" \
    "vadd.i16 q1, q1, q5\n\t"

/* Sums of nine taps, then biases and these in q4-q7. */
#define MVE_WHOLE \
    "vldrb.u8 q2, [%[row0]]\n\t" \
    "vldrb.u8 q3, [%[weights]], #16\n\t" \
    "vmullb.s8 q0, q2, q3\n\t" \
    "vldrb.u8 q6, [%[row0], #16]\n\t" \
    "vmullt.s8 q1, q2, q3\n\t" \
    "vldrb.u8 q7, [%[weights]], #16\n\t" \
    MVE_TAP("q6", "q7", "q2", "q3", "row0", "32") \
    MVE_TAP("q2", "q3", "q6", "q7", "row1", "0") \
    MVE_TAP("q6", "q7", "q2", "q3", "row1", "16") \
    MVE_TAP("q2", "q3", "q6", "q7", "row1", "32") \
    MVE_TAP("q6", "q7", "q2", "q3", "row2", "0") \
    MVE_TAP("q2", "q3", "q6", "q7", "row2", "16") \
    MVE_TAP("q6", "q7", "q2", "q3", "row2", "32") \
    "vmullb.s8 q6, q2, q3\n\t" \
    "vldrw.u32 q4, [%[params]]\n\t" \
    "vadd.i16 q0, q0, q6\n\t" \
    "vmullt.s8 q7, q2, q3\n\t" \
    "vldrw.u32 q5, [%[params], #16]\n\t" \
    "vmovlb.s16 q2, q0\n\t" \
    "vldrw.u32 q6, [%[params], #32]\n\t" \
    "vadd.i16 q1, q1, q7\n\t" \
    "vldrw.u32 q7, [%[params], #48]\n\t" \
    "vmovlt.s16 q3, q0\n\t" \
    "vadd.i32 q4, q4, q2\n\t" \
    "vmovlb.s16 q2, q1\n\t" \
    "vadd.i32 q5, q5, q3\n\t" \
    "vmovlt.s16 q3, q1\n\t" \
    "vadd.i32 q6, q6, q2\n\t" \
    "vadd.i32 q7, q7, q3\n\t"

/* The products of two taps in e and o: the first is in x and w, the second at `at`. */
#define MVE_TWO(e, o, x, w, row, at) \
    "vmullb.s8 " e ", " x ", " w "\n\t" \
    "vmullt.s8 " o ", " x ", " w "\n\t" \
    "vldrb.u8 " x ", [%[" row "], #" at "]\n\t" \
    "vldrb.u8 " w ", [%[weights]], #16\n\t" \
    "vmullt.s8 " w ", " x ", " w "\n\t" \
    "vadd.i16 " o ", " o ", " w "\n\t" \
    "vldrb.u8 " w ", [%[weights], #-16]\n\t" \
    "vmullb.s8 " x ", " x ", " w "\n\t" \
    "vadd.i16 " e ", " e ", " x "\n\t"

/* Sums in e and o widened into q4-q7 while the next tap is loaded to them. */
#define MVE_WIDEN(e, o, a, b, row, at) \
    "vmovlb.s16 " a ", " e "\n\t" \
    "vmovlt.s16 " b ", " e "\n\t" \
    "vldrb.u8 " e ", [%[" row "], #" at "]\n\t" \
    "vadd.i32 q4, q4, " a "\n\t" \
    "vmovlb.s16 " a ", " o "\n\t" \
    "vadd.i32 q5, q5, " b "\n\t" \
    "vmovlt.s16 " b ", " o "\n\t" \
    "vldrb.u8 " o ", [%[weights]], #16\n\t" \
    "vadd.i32 q6, q6, " a "\n\t" \
    "vadd.i32 q7, q7, " b "\n\t"

/* Biases and sums of nine taps in q4-q7, two taps at a time. What the last MVE_WIDEN loads is not used; it lies in scratch. */
#define MVE_TWOS \
    "vldrb.u8 q2, [%[row0]]\n\t" \
    "vldrb.u8 q3, [%[weights]], #16\n\t" \
    "vldrw.u32 q4, [%[params]]\n\t" \
    "vldrw.u32 q5, [%[params], #16]\n\t" \
    "vldrw.u32 q6, [%[params], #32]\n\t" \
    "vldrw.u32 q7, [%[params], #48]\n\t" \
    MVE_TWO("q0", "q1", "q2", "q3", "row0", "16") \
    MVE_WIDEN("q0", "q1", "q2", "q3", "row0", "32") \
    MVE_TWO("q2", "q3", "q0", "q1", "row1", "0") \
    MVE_WIDEN("q2", "q3", "q0", "q1", "row1", "16") \
    MVE_TWO("q0", "q1", "q2", "q3", "row1", "32") \
    MVE_WIDEN("q0", "q1", "q2", "q3", "row2", "0") \
    MVE_TWO("q2", "q3", "q0", "q1", "row2", "16") \
    MVE_WIDEN("q2", "q3", "q0", "q1", "row2", "32") \
    "vmullb.s8 q0, q2, q3\n\t" \
    "vmullt.s8 q1, q2, q3\n\t" \
    "vmovlb.s16 q2, q0\n\t" \
    "vmovlt.s16 q3, q0\n\t" \
    "vadd.i32 q4, q4, q2\n\t" \
    "vmovlb.s16 q2, q1\n\t" \
    "vadd.i32 q5, q5, q3\n\t" \
    "vmovlt.s16 q3, q1\n\t" \
    "vadd.i32 q6, q6, q2\n\t" \
    "vadd.i32 q7, q7, q3\n\t"

/* Requantises a vector of accumulators (SPEC 3.3): VMULH gives floor(acc * m * 2^16 / 2^32), VRSHL by -s rounds. */
#define MVE_SCALE(acc, multiplier, shift) \
    "vldrw.u32 q0, [%[params], #" multiplier "]\n\t" \
    "vmulh.s32 " acc ", " acc ", q0\n\t" \
    "vldrw.u32 q1, [%[params], #" shift "]\n\t" \
    "vrshl.s32 " acc ", " acc ", q1\n\t"

/* A row of results of a 3x3 kernel: saturation to int16 before the zero point is added changes nothing that int8 can show. */
#define MVE_NINES(sums) \
    __asm__ volatile( \
        "vctp.8 %[channels]\n" \
        "1:\n\t" sums \
        MVE_SCALE("q4", "64", "128") \
        MVE_SCALE("q5", "80", "144") \
        MVE_SCALE("q6", "96", "160") \
        MVE_SCALE("q7", "112", "176") \
        "vqmovnb.s32 q0, q4\n\t" \
        "vldrw.u32 q4, [%[params], #192]\n\t" \
        "vqmovnt.s32 q0, q5\n\t" \
        "vldrw.u32 q5, [%[params], #208]\n\t" \
        "vqmovnb.s32 q1, q6\n\t" \
        "add %[row0], %[row0], %[step]\n\t" \
        "vqmovnt.s32 q1, q7\n\t" \
        "add %[row1], %[row1], %[step]\n\t" \
        "vqadd.s16 q0, q0, %[zero_point]\n\t" \
        "add %[row2], %[row2], %[step]\n\t" \
        "vqadd.s16 q1, q1, %[zero_point]\n\t" \
        "sub %[weights], %[weights], #144\n\t" \
        "vqmovnb.s16 q2, q0\n\t" \
        "vqmovnt.s16 q2, q1\n\t" \
        "vmax.s8 q2, q2, q4\n\t" \
        "vmin.s8 q2, q2, q5\n\t" \
        "vpst\n\t" \
        "vstrbt.8 q2, [%[to]]\n\t" \
        "add %[to], %[to], %[apart]\n\t" \
        "subs %[count], %[count], #1\n\t" \
        "bne 1b\n" \
        : [row0] "+&r"(row0), [row1] "+&r"(row1), [row2] "+&r"(row2), [weights] "+&r"(weights), [to] "+&r"(to), [count] "+&r"(count) \
        : [params] "r"(params), [step] "r"(step), [apart] "r"(apart), [zero_point] "r"(zero_point), [channels] "r"(block->channels) \
        : "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "cc", "memory")

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
