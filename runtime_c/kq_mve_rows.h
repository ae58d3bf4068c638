/* Engine `mve` at work (SPEC 6.7): rows of output pixels from expanded weights, two pixels by two channels at a time. */
#ifndef KQ_MVE_ROWS_H
#define KQ_MVE_ROWS_H

#include "kq_mve.h"

#if KQ_MVE

/* Four equal words. */
KQGEN_CODE static int32_t *kq_mve_put_words(int32_t *to, int32_t value)
{
    vstrwq_s32(to, vdupq_n_s32(value));
    return to + 4;
}

/* Vectors that kq_mve_group reads: places of a group's four results (set by kq_mve_row), zero point, lo, hi, acc_shift, then the layer's
 * sum: multiplier of the result, of the other, bias, negated shift, lo, hi. A layer that does not sum gets 1, 0, 0, 0, which changes nothing.
 */
KQGEN_CODE static void kq_mve_fill_constants(const kq_mve_tile *tile)
{
    const kq_requant *requant = tile->requant;
    const kq_add *sum = requant->sum;
    int32_t *to = tile->constants + 4;
    to = kq_mve_put_words(to, requant->zero_point);
    to = kq_mve_put_words(to, requant->lo);
    to = kq_mve_put_words(to, requant->hi);
    to = kq_mve_put_words(to, requant->acc_shift);
    to = kq_mve_put_words(to, sum != NULL ? sum->multiplier_a : 1);
    to = kq_mve_put_words(to, sum != NULL ? sum->multiplier_b : 0);
    to = kq_mve_put_words(to, sum != NULL ? sum->bias : 0);
    to = kq_mve_put_words(to, sum != NULL ? -(int32_t)sum->shift : 0);
    to = kq_mve_put_words(to, sum != NULL ? sum->lo : requant->lo);
    kq_mve_put_words(to, sum != NULL ? sum->hi : requant->hi);
}

/* The multiplier of a channel as VMULH takes it (SPEC 3.2), or VQRDMULH (SPEC 3.5). */
static KQ_INLINE int32_t kq_mve_multiplier(const kq_requant *requant, uint32_t channel)
{
    return kq_rounds_as_tflite(requant->acc_shift) ? requant->multiplier_q31[channel] : requant->multiplier[channel] * 65536;
}

/* How far VRSHL shifts up what that leaves: a number below 0; by SPEC 3.5 the shift behind the product alone. */
static KQ_INLINE int32_t kq_mve_shift(const kq_requant *requant, uint32_t channel)
{
    return (kq_rounds_as_tflite(requant->acc_shift) ? 31 : 0) - (int32_t)requant->shift[channel];
}

/* Parameters of output channels first..first+channels-1; an odd last one fills its pair. */
KQGEN_CODE static void kq_mve_fill_params(const kq_mve_tile *tile, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = tile->requant;
    int32_t *to = tile->params;
    uint32_t o;
    for (o = 0; o < channels; o += 2u) {
        uint32_t i;
        for (i = 0; i < 2u; ++i) {
            const uint32_t channel = first + (o + i < channels ? o + i : o);
            const int32_t multiplier = kq_mve_multiplier(requant, channel);
            const int32_t shift = kq_mve_shift(requant, channel);
            to[i] = requant->bias[channel];
            to[2u + i] = multiplier;
            to[4u + i] = multiplier;
            to[6u + i] = shift;
            to[8u + i] = shift;
        }
        to += KQ_MVE_PARAMS;
    }
}

/* The accumulators of two pixels by two channels: bias plus dot product. 8 cycles for 64 multiply-accumulates; the next step's operands are
 * loaded where this step's are no longer needed, those of the first step of the next group's weights too.
 */
#define KQ_MVE_DOTS \
    "ldrd %[acc00], %[acc01], [%[params]], #8\n\t" \
    "dls lr, %[steps]\n\t" \
    "mov %[acc10], %[acc00]\n\t" \
    "mov %[acc11], %[acc01]\n\t" \
    "vldrb.u8 q0, [%[x0]]\n" \
    "2:\n\t" \
    "vmladava.s8 %[acc00], q0, q2\n\t" \
    "vldrb.u8 q3, [%[weights]], #16\n\t" \
    "vmladava.s8 %[acc01], q0, q3\n\t" \
    "vldrb.u8 q1, [%[x1]], #16\n\t" \
    "vmladava.s8 %[acc10], q1, q2\n\t" \
    "vldrb.u8 q0, [%[x0], #16]!\n\t" \
    "vmladava.s8 %[acc11], q1, q3\n\t" \
    "vldrb.u8 q2, [%[weights]], #16\n\t" \
    "le lr, 2b\n\t"

/* Requantisation of four accumulators (SPEC 3.3): VMULH gives floor(acc * m * 2^16 / 2^32), VRSHL by -s rounds. Constants are loaded where
 * they are used: between two operations of the vector unit a load costs nothing.
 */
#define KQ_MVE_SCALE(shift_up, multiply, away) \
    "vmov q0[2], q0[0], %[acc00], %[acc10]\n\t" \
    "vldrw.u32 q3, [%[constants]]\n\t" \
    "vmov q0[3], q0[1], %[acc01], %[acc11]\n\t" shift_up \
    "vldrw.u32 q1, [%[params]], #16\n\t" \
    multiply " q0, q0, q1\n\t" \
    "vldrw.u32 q1, [%[params]], #16\n\t" \
    away \
    "vrshl.s32 q0, q0, q1\n\t" \
    "vldrw.u32 q1, [%[constants], #16]\n\t" \
    "vadd.i32 q0, q0, q1\n\t" \
    "vldrw.u32 q1, [%[constants], #32]\n\t" \
    "vmax.s32 q0, q0, q1\n\t" \
    "vldrw.u32 q1, [%[constants], #48]\n\t" \
    "vmin.s32 q0, q0, q1\n\t"

/* Makes what is below 0 smaller by one where it is shifted down, so that halves go away from zero (SPEC 3.5). */
#define KQ_MVE_AWAY \
    "vand q4, q0, q1\n\t" \
    "vshr.s32 q4, q4, #31\n\t" \
    "vadd.i32 q0, q0, q4\n\t"

#define KQ_MVE_SHIFT_UP \
    "vldrw.u32 q1, [%[constants], #64]\n\t" \
    "vshl.s32 q0, q0, q1\n\t"

/* What the places hold, times its multiplier, is added to the results times theirs (SPEC 5.2). */
#define KQ_MVE_SUM \
    "vldrw.u32 q1, [%[constants], #80]\n\t" \
    "vmul.i32 q0, q0, q1\n\t" \
    "vldrb.s32 q1, [%[to], q3]\n\t" \
    "vldrw.u32 q4, [%[constants], #96]\n\t" \
    "vmul.i32 q1, q1, q4\n\t" \
    "vldrw.u32 q4, [%[constants], #112]\n\t" \
    "vadd.i32 q0, q0, q1\n\t" \
    "vldrw.u32 q1, [%[constants], #128]\n\t" \
    "vadd.i32 q0, q0, q4\n\t" \
    "vldrw.u32 q4, [%[constants], #144]\n\t" \
    "vshl.s32 q0, q0, q1\n\t" \
    "vldrw.u32 q1, [%[constants], #160]\n\t" \
    "vmax.s32 q0, q0, q4\n\t" \
    "vmin.s32 q0, q0, q1\n\t"

/* All groups of two pixels, one after the other: four results each to the four places behind `to`. */
#define KQ_MVE_GROUPS(shift_up, multiply, away, sum) \
    __asm__ volatile( \
        "vldrb.u8 q2, [%[weights]], #16\n" \
        "1:\n\t" KQ_MVE_DOTS KQ_MVE_SCALE(shift_up, multiply, away) sum \
        "vstrb.32 q0, [%[to], q3]\n\t" \
        "sub %[x0], %[x0], %[steps], lsl #4\n\t" \
        "sub %[x1], %[x1], %[steps], lsl #4\n\t" \
        "add %[to], %[to], #2\n\t" \
        "subs %[pairs], %[pairs], #1\n\t" \
        "bne 1b\n" \
        : [acc00] "=&r"(acc00), [acc01] "=&r"(acc01), [acc10] "=&r"(acc10), [acc11] "=&r"(acc11), [x0] "+&r"(first), \
          [x1] "+&r"(second), [weights] "+&r"(weights), [params] "+&r"(params), [to] "+&r"(place), [pairs] "+&r"(count) \
        : [steps] "r"(steps), [constants] "r"(constants) \
        : "q0", "q1", "q2", "q3", "q4", "lr", "cc", "memory")

/* A row of output pixels by `channels` channels (an even number, or one): columns begin at x, weights and parameters at those of channel
 * number `from` of the tile, results go to `to`. Odd ends are computed twice and stored to one place.
 */
KQGEN_CODE static KQ_NOINLINE void kq_mve_row(const kq_mve_tile *tile, const int8_t *x, uint32_t from, uint32_t channels, int8_t *to)
{
    const kq_window *window = tile->window;
    const uint32_t pixel_bytes = window->stride_w * window->k_h * (uint32_t)window->c_in;
    const int general = tile->requant->sum != NULL || tile->requant->acc_shift != 0;
    const int32_t next = channels > 1u;
    const uint32_t pairs = (channels + 1u) >> 1;
    const uint32_t step_out = 2u * window->c_out;
    const int8_t *own_weights = tile->weights + from * KQ_MVE_BYTES * tile->steps;
    const int32_t *own_params = tile->params + (from >> 1) * KQ_MVE_PARAMS;
    int32_t *places = tile->constants;
    uint32_t left = window->w_out;
    places[0] = 0;
    places[1] = next;
    places[2] = left > 1u ? window->c_out : 0;
    places[3] = places[2] + next;
    while (left != 0) {
        /* VMLADAVA accumulates in even registers alone; the others are named too, since nearly all are taken. */
        register int32_t acc00 __asm__("r0");
        register int32_t acc01 __asm__("r2");
        register int32_t acc10 __asm__("r4");
        register int32_t acc11 __asm__("r6");
        register const int8_t *first __asm__("r1") = x;
        register const int8_t *second __asm__("r3") = left > 1u ? x + pixel_bytes : x;
        register const int8_t *weights __asm__("r5") = own_weights;
        register const int32_t *params __asm__("r8") = own_params;
        register int8_t *place __asm__("r10") = to;
        register uint32_t count __asm__("r12") = pairs;
        register uint32_t steps __asm__("r11") = tile->steps;
        register int32_t *constants __asm__("r9") = tile->constants;
#if KQ_WITH_TFLITE
        if (tile->requant->acc_shift == KQ_ROUND_TWICE) {
            KQ_MVE_GROUPS("", "vqrdmulh.s32", KQ_MVE_AWAY, "");
        } else if (tile->requant->acc_shift == KQ_ROUND_ONCE) {
            KQ_MVE_GROUPS("", "vqdmulh.s32", "", "");
        } else
#endif
        if (general) {
            KQ_MVE_GROUPS(KQ_MVE_SHIFT_UP, "vmulh.s32", "", KQ_MVE_SUM);
        } else {
            KQ_MVE_GROUPS("", "vmulh.s32", "", "");
        }
        x += 2u * pixel_bytes;
        to += step_out;
        left = left > 1u ? left - 2u : 0;
        if (left == 1u) {
            places[2] = 0;
            places[3] = next;
        }
    }
}

#endif

#if !KQ_MVE || KQ_WITH_TFLITE

/* The sum of `start` and the dot product of one window with the weights of one channel. */
KQGEN_CODE static uint32_t kq_mve_dot(const int8_t *x, const int8_t *weights, uint32_t start, uint32_t taps)
{
    uint32_t acc = start;
    uint32_t j;
    for (j = 0; j < taps; ++j) {
        acc += (uint32_t)(x[j] * weights[kq_mve_place(j)]);
    }
    return acc;
}

#endif

/* Writes input row `row` (outside the map: padding) into the columns, from `to` on. */
KQGEN_CODE static void kq_mve_fill_row(const kq_mve_tile *tile, const int8_t *input, int32_t row, int8_t *to)
{
    const kq_window *window = tile->window;
    const uint32_t c_in = window->c_in;
    const uint32_t step = window->k_h * c_in;
    const uint32_t columns = (window->w_out - 1u) * window->stride_w + window->k_w;
    uint32_t left = columns;
    uint32_t middle = 0;
    if (row >= 0 && row < window->h_in && window->pad_left < columns) {
        left = window->pad_left;
        middle = columns - left < window->w_in ? columns - left : window->w_in;
        kq_mve_copy(to + left * step, step, input + (uint32_t)row * window->w_in * c_in, c_in, c_in, middle);
    }
    kq_mve_copy(to, step, tile->pads, 0, c_in, left);
    kq_mve_copy(to + (left + middle) * step, step, tile->pads, 0, c_in, columns - left - middle);
}

#if !KQ_MVE || KQ_WITH_TFLITE

/* One row of output pixels, value by value. */
KQGEN_CODE static void kq_mve_plain_row(const kq_mve_tile *tile, const int8_t *x, uint32_t first, uint32_t channels, int8_t *to)
{
    const kq_window *window = tile->window;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * window->c_in;
    uint32_t pixel;
    for (pixel = 0; pixel < window->w_out; ++pixel) {
        uint32_t o;
        for (o = 0; o < channels; ++o) {
            const int8_t *weights = tile->weights + kq_mve_channel(tile, o);
            kq_store(kq_mve_dot(x, weights, (uint32_t)tile->requant->bias[first + o], taps), tile->requant, first + o, to + o);
        }
        x += window->stride_w * window->k_h * (uint32_t)window->c_in;
        to += window->c_out;
    }
}

#endif

#if KQ_MVE && KQ_WITH_TFLITE
/* Whether vectors give a channel's results by SPEC 3.5: all shifts leave at least 1 behind the product. */
KQGEN_CODE static int kq_mve_shifts_down(const kq_requant *requant, uint32_t first, uint32_t channels)
{
    uint32_t o;
    for (o = first; o < first + channels; ++o) {
        if (kq_rounds_as_tflite(requant->acc_shift) && requant->shift[o] < 32u) {
            return 0;
        }
    }
    return 1;
}
#endif

/* One row of output pixels, whose columns begin at x, by the tile's channels first..first+channels-1, to `to`. */
KQGEN_CODE static void kq_mve_convolve_row(const kq_mve_tile *tile, const int8_t *x, uint32_t first, uint32_t channels, int8_t *to)
{
#if KQ_MVE
    const uint32_t even = channels & ~(uint32_t)1u;
    (void)first;
#if KQ_WITH_TFLITE
    if (!kq_mve_shifts_down(tile->requant, first, channels)) {
        kq_mve_plain_row(tile, x, first, channels, to);
        return;
    }
#endif
    if (even != 0) {
        kq_mve_row(tile, x, 0, even, to);
    }
    if (even != channels) {
        kq_mve_row(tile, x, even, 1, to + even);
    }
#else
    kq_mve_plain_row(tile, x, first, channels, to);
#endif
}

/* Output channels first..first+channels-1 of all pixels by the tile's weights. */
KQGEN_CODE static void kq_mve_convolve(const kq_mve_tile *tile, const int8_t *input, int8_t *output, uint32_t first, uint32_t channels)
{
    const kq_window *window = tile->window;
    int32_t top = -(int32_t)window->pad_top;
    int8_t *columns = tile->columns;
    int8_t *to = output + first;
    uint32_t held = 0; /* rows of the window that the columns hold already */
    uint32_t y;
#if KQ_MVE
    kq_mve_fill_params(tile, first, channels);
    if ((channels & 1u) != 0) {
        int8_t *last = tile->weights + kq_mve_channel(tile, channels - 1u);
        kq_mve_copy(last + KQ_MVE_BYTES, 2u * KQ_MVE_BYTES, last, 2u * KQ_MVE_BYTES, KQ_MVE_BYTES, tile->steps);
    }
#endif
    for (y = 0; y < window->h_out; ++y) {
        uint32_t row;
        for (row = held; row < window->k_h; ++row) {
            kq_mve_fill_row(tile, input, top + (int32_t)row, columns + row * window->c_in);
        }
        kq_mve_convolve_row(tile, columns, first, channels, to);
        to += (uint32_t)window->w_out * window->c_out;
        top += window->stride_h;
        columns += tile->slide_bytes;
        held = tile->slide_bytes != 0 ? (uint32_t)window->k_h - window->stride_h : 0;
    }
}

/* A tile of up to `tile_channels` channels, whose weights are kept for `weight_channels` (even, and no fewer), in `scratch` as SPEC 6.7 lays
 * it out; what all tiles share is filled in.
 */
KQGEN_CODE static kq_mve_tile kq_mve_tile_at(
    const kq_window *window, const kq_requant *requant, const int8_t *pad_values, int8_t pad_value, uint32_t tile_channels,
    uint32_t weight_channels, void *scratch)
{
    kq_mve_tile tile;
    const uint32_t c_in = window->c_in;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * c_in;
    uint32_t i;
    tile.window = window;
    tile.requant = requant;
    tile.steps = kq_mve_round(taps, KQ_MVE_BYTES) >> 4;
    tile.slide_bytes = window->stride_h < window->k_h ? (uint32_t)window->stride_h * c_in : 0;
    tile.constants = scratch;
    tile.params = tile.constants + KQ_MVE_CONSTANTS;
    tile.pads = (int8_t *)(tile.params + ((tile_channels + 1u) >> 1) * KQ_MVE_PARAMS);
    tile.weights = tile.pads + kq_mve_round(c_in, 4);
    tile.columns = tile.weights + weight_channels * KQ_MVE_BYTES * tile.steps;
    for (i = 0; i < c_in; ++i) {
        tile.pads[i] = kq_pad(pad_values, pad_value, i);
    }
#if KQ_MVE
    kq_mve_fill_constants(&tile);
#endif
    return tile;
}

/* Bytes of the columns with all that may be read behind them. */
KQGEN_CODE static inline uint32_t kq_mve_columns_bytes(const kq_mve_tile *tile)
{
    const kq_window *window = tile->window;
    const uint32_t columns = (window->w_out - 1u) * window->stride_w + window->k_w;
    const uint32_t slides = (window->h_out - 1u) * tile->slide_bytes;
    return kq_mve_round(columns * window->k_h * window->c_in + slides + KQ_MVE_SLACK, 4);
}

#endif
