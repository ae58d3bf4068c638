/* What the functions of engine `mve` share (SPEC 6.7): Helium, Armv8.1-M's integer vectors, with a plain twin of every step beside it.
 *
 * A strip of columns holds the input rows that one output row needs, padding included, as [column][k_h][c_in]: the window of an output
 * pixel is then one run of taps = k_w * k_h * c_in values. Weights lie in the same order, filled up with zeros to whole vectors of 16, two
 * output channels taking turns vector by vector. Two pixels by two channels share all they load: four VMLADAVA (16 multiply-accumulates
 * each) to four loads, which take turns so that a vector unit of two beats is always busy with both.
 * Vectors may read behind the values they need, never behind the scratch: where weights are 0 it does not matter what they read.
 */
#ifndef KQ_MVE_H
#define KQ_MVE_H

#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>
#define KQ_MVE 1
#else
#define KQ_MVE 0
#endif

#define KQ_MVE_BYTES 16u /* of a vector */
#define KQ_MVE_SLACK 32u /* bytes behind the columns that may be read */

/* A layer's tile at work: parameters of the layer, and the parts of scratch in their order. `lanes` is the tile rounded up to whole vectors
 * of int32.
 */
typedef struct {
    const kq_window *window;
    const kq_requant *requant;
    const int8_t *pads; /* c_in values */
    int32_t *sums;      /* [2][lanes] accumulators of two pixels */
    int32_t *params;    /* [3][lanes] biases; with Helium also multipliers * 2^16 and negated shifts */
    int8_t *weights;    /* [pairs of channels][steps][2][16] */
    int8_t *columns;
    uint32_t lanes;
    uint32_t steps;       /* vectors that a window takes */
    uint32_t slide_bytes; /* what the columns move by from one output row to the next; 0: they are written anew */
} kq_mve_tile;

/* x rounded up to a multiple of `unit`, a power of two. */
KQGEN_CODE static inline uint32_t kq_mve_round(uint32_t x, uint32_t unit)
{
    return (x + unit - 1u) & ~(unit - 1u);
}

/* Place of value j of a window among the weights of its channel. */
KQGEN_CODE static inline uint32_t kq_mve_place(uint32_t j)
{
    return ((j & ~(KQ_MVE_BYTES - 1u)) << 1) + (j & (KQ_MVE_BYTES - 1u));
}

/* Sets `size_bytes` values to 0; Helium: and up to 15 more. */
KQGEN_CODE static inline void kq_mve_clear(int8_t *to, uint32_t size_bytes)
{
    uint32_t i;
#if KQ_MVE
    for (i = 0; i < size_bytes; i += KQ_MVE_BYTES) {
        vst1q_s8(to + i, vdupq_n_s8(0));
    }
#else
    for (i = 0; i < size_bytes; ++i) {
        to[i] = 0;
    }
#endif
}

/* Copies `bytes` values (at least 1) `times` times, the places from and to which stepping on; exactly these are read and written. */
KQGEN_CODE static KQ_NOINLINE void kq_mve_copy(
    int8_t *to, uint32_t to_step, const int8_t *from, uint32_t from_step, uint32_t bytes, uint32_t times)
{
    while (bytes != 0 && times != 0) {
#if KQ_MVE
        const uint32_t part = bytes < KQ_MVE_BYTES ? bytes : KQ_MVE_BYTES;
        const int8_t *source = from;
        int8_t *target = to;
        uint32_t left = times;
        if (part == KQ_MVE_BYTES) {
            do {
                vst1q_s8(target, vld1q_s8(source));
                source += from_step;
                target += to_step;
                --left;
            } while (left != 0);
        } else {
            const mve_pred16_t some = vctp8q(part);
            do {
                vst1q_p_s8(target, vld1q_z_s8(source, some), some);
                source += from_step;
                target += to_step;
                --left;
            } while (left != 0);
        }
#else
        const uint32_t part = 1;
        uint32_t i;
        for (i = 0; i < times; ++i) {
            to[i * to_step] = from[i * from_step];
        }
#endif
        to += part;
        from += part;
        bytes -= part;
    }
}

/* Entries `first`..`first`+count-1 of a table of signed numbers of `bits` bits, 4, 6 or 8, as bytes. */
KQGEN_CODE static KQ_NOINLINE void kq_mve_expand(const uint8_t *table, uint32_t first, uint32_t bits, uint32_t count, int8_t *to)
{
    kq_bit_reader reader;
#if KQ_MVE
    /* Eight entries take `bits` whole bytes: offsets of their first and last byte, and where in these 16 bits they begin, repeat. */
    for (; count != 0 && (first & 7u) != 0; --count) {
        *to = (int8_t)kq_sign_extend(kq_bits_entry(table, first, bits), bits);
        ++to;
        ++first;
    }
    if (count >= 8u) {
        const uint16x8_t begin = vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)bits);
        const uint16x8_t low = vshrq_n_u16(begin, 3);
        const uint16x8_t high = vshrq_n_u16(vaddq_n_u16(begin, (uint16_t)(bits - 1u)), 3);
        const int16x8_t up = vreinterpretq_s16_u16(vsubq_u16(vdupq_n_u16((uint16_t)(16u - bits)), vandq_u16(begin, vdupq_n_u16(7))));
        const int32_t down = (int32_t)bits - 16;
        const uint8_t *from = table + (size_t)(first >> 3) * bits;
        do {
            const uint16x8_t both = vsliq_n_u16(vldrbq_gather_offset_u16(from, low), vldrbq_gather_offset_u16(from, high), 8);
            vstrbq_s16(to, vshlq_r_s16(vreinterpretq_s16_u16(vshlq_u16(both, up)), down));
            from += bits;
            to += 8;
            first += 8u;
            count -= 8u;
        } while (count >= 8u);
    }
#endif
    reader = kq_bits_at(table, first, bits);
    for (; count != 0; --count) {
        *to = (int8_t)kq_sign_extend(kq_bits_next(&reader, bits), bits);
        ++to;
    }
}

/* The tile of `channels` output channels from `first` on: fills its biases, multipliers and shifts, up to whole vectors. */
KQGEN_CODE static void kq_mve_fill_params(const kq_mve_tile *tile, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = tile->requant;
    int32_t *params = tile->params;
    uint32_t i;
    for (i = 0; i < tile->lanes; ++i) {
        const uint32_t channel = first + (i < channels ? i : 0);
        params[i] = requant->bias[channel];
#if KQ_MVE
        params[tile->lanes + i] = requant->multiplier[channel] * 65536;
        params[2u * tile->lanes + i] = -(int32_t)requant->shift[channel];
#endif
    }
}

#if KQ_MVE

/* Accumulators of two pixels by `pairs` pairs of output channels, to sums0 and sums1: bias plus dot product over `steps` vectors. */
KQGEN_CODE static KQ_INLINE void kq_mve_dots(
    const int8_t *x0, const int8_t *x1, const int8_t *weights, const int32_t *bias, uint32_t steps, uint32_t pairs, int32_t *sums0,
    int32_t *sums1)
{
    const uint32_t window_bytes = KQ_MVE_BYTES * steps;
    int32_t acc00;
    int32_t acc01;
    int32_t acc10;
    int32_t acc11;
    /* The loop runs 8 cycles for 64 multiply-accumulates; it loads the next step's operands where this step's are no longer needed. */
    __asm__ volatile(
        "vldrb.u8 q2, [%[weights]], #16\n"
        "1:\n\t"
        "ldrd %[acc00], %[acc01], [%[bias]], #8\n\t"
        "dls lr, %[steps]\n\t"
        "mov %[acc10], %[acc00]\n\t"
        "mov %[acc11], %[acc01]\n\t"
        "vldrb.u8 q0, [%[x0]]\n"
        "2:\n\t"
        "vmladava.s8 %[acc00], q0, q2\n\t"
        "vldrb.u8 q3, [%[weights]], #16\n\t"
        "vmladava.s8 %[acc01], q0, q3\n\t"
        "vldrb.u8 q1, [%[x1]], #16\n\t"
        "vmladava.s8 %[acc10], q1, q2\n\t"
        "vldrb.u8 q0, [%[x0], #16]!\n\t"
        "vmladava.s8 %[acc11], q1, q3\n\t"
        "vldrb.u8 q2, [%[weights]], #16\n\t"
        "le lr, 2b\n\t"
        "sub %[x0], %[x0], %[size]\n\t"
        "sub %[x1], %[x1], %[size]\n\t"
        "strd %[acc00], %[acc01], [%[sums0]], #8\n\t"
        "strd %[acc10], %[acc11], [%[sums1]], #8\n\t"
        "subs %[pairs], %[pairs], #1\n\t"
        "bne 1b\n"
        : [acc00] "=&Te"(acc00), [acc01] "=&Te"(acc01), [acc10] "=&Te"(acc10), [acc11] "=&Te"(acc11), [x0] "+&r"(x0), [x1] "+&r"(x1),
          [weights] "+&r"(weights), [bias] "+&r"(bias), [sums0] "+&r"(sums0), [sums1] "+&r"(sums1), [pairs] "+&r"(pairs)
        : [steps] "r"(steps), [size] "r"(window_bytes)
        : "q0", "q1", "q2", "q3", "lr", "cc", "memory");
}

/* The int8 results, as int32, of one vector of accumulators, which are already shifted up by acc_shift: VMULH gives
 * floor(acc * multiplier * 2^16 / 2^32), VRSHL by -shift rounds as SPEC 3.3 does.
 */
KQGEN_CODE static KQ_INLINE int32x4_t kq_mve_scaled(
    int32x4_t acc, const int32_t *multipliers, const int32_t *shifts, int32_t zero_point, int32x4_t lo, int32x4_t hi)
{
    const int32x4_t high = vmulhq_s32(acc, vldrwq_s32(multipliers));
    const int32x4_t scaled = vaddq_n_s32(vrshlq_s32(high, vldrwq_s32(shifts)), zero_point);
    return vminq_s32(vmaxq_s32(scaled, lo), hi);
}

/* Requantises `channels` accumulators of one pixel and stores them from `to` on, `first` being the number of the first one's channel. */
KQGEN_CODE static KQ_NOINLINE void kq_mve_put(const kq_mve_tile *tile, int32_t *sums, uint32_t first, uint32_t channels, int8_t *to)
{
    const kq_requant *requant = tile->requant;
    const kq_add *sum = requant->sum;
    const int32_t *multipliers = tile->params + tile->lanes;
    const int32_t *shifts = multipliers + tile->lanes;
    const int32_t zero_point = requant->zero_point;
    const int32x4_t lo = vdupq_n_s32(requant->lo);
    const int32x4_t hi = vdupq_n_s32(requant->hi);
    uint32_t left = channels;
    (void)first;
    if (requant->acc_shift != 0) {
        uint32_t i;
        for (i = 0; i < channels; i += 4u) {
            vstrwq_s32(sums + i, vshlq_r_s32(vldrwq_s32(sums + i), requant->acc_shift));
        }
    }
    if (sum == NULL) {
        for (; left >= 4u; left -= 4u) {
            vstrbq_s32(to, kq_mve_scaled(vldrwq_s32(sums), multipliers, shifts, zero_point, lo, hi));
            sums += 4;
            multipliers += 4;
            shifts += 4;
            to += 4;
        }
        if (left != 0) {
            vstrbq_p_s32(to, kq_mve_scaled(vldrwq_s32(sums), multipliers, shifts, zero_point, lo, hi), vctp32q(left));
        }
    } else {
        const int32_t multiplier_a = sum->multiplier_a;
        const int32_t multiplier_b = sum->multiplier_b;
        const int32_t bias = sum->bias;
        const int32_t down = -(int32_t)sum->shift;
        const int32x4_t sum_lo = vdupq_n_s32(sum->lo);
        const int32x4_t sum_hi = vdupq_n_s32(sum->hi);
        for (;;) {
            const mve_pred16_t some = vctp32q(left);
            const int32x4_t result = kq_mve_scaled(vldrwq_s32(sums), multipliers, shifts, zero_point, lo, hi);
            int32x4_t total = vmulq_n_s32(vldrbq_z_s32(to, some), multiplier_b);
            total = vaddq_n_s32(vmlaq_n_s32(total, result, multiplier_a), bias);
            total = vshlq_r_s32(total, down);
            vstrbq_p_s32(to, vminq_s32(vmaxq_s32(total, sum_lo), sum_hi), some);
            if (left <= 4u) {
                break;
            }
            left -= 4u;
            sums += 4;
            multipliers += 4;
            shifts += 4;
            to += 4;
        }
    }
}

#else

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

/* Requantises `channels` accumulators of one pixel and stores them from `to` on, `first` being the number of the first one's channel. */
KQGEN_CODE static void kq_mve_put(const kq_mve_tile *tile, const int32_t *sums, uint32_t first, uint32_t channels, int8_t *to)
{
    uint32_t i;
    for (i = 0; i < channels; ++i) {
        kq_store((uint32_t)sums[i], tile->requant, first + i, to + i);
    }
}

#endif

/* Accumulators of two pixels, whose windows begin at x0 and x1, by the tile's channels, rounded up to pairs: to tile->sums. */
KQGEN_CODE static KQ_NOINLINE void kq_mve_accumulate(const kq_mve_tile *tile, const int8_t *x0, const int8_t *x1, uint32_t channels)
{
    const uint32_t pairs = (channels + 1u) >> 1;
#if KQ_MVE
    kq_mve_dots(x0, x1, tile->weights, tile->params, tile->steps, pairs, tile->sums, tile->sums + tile->lanes);
#else
    const kq_window *window = tile->window;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * window->c_in;
    const int8_t *weights = tile->weights;
    uint32_t i;
    for (i = 0; i < channels; ++i) {
        const uint32_t bias = (uint32_t)tile->params[i];
        const int8_t *own = weights + (i & 1u) * KQ_MVE_BYTES;
        tile->sums[i] = kq_signed(kq_mve_dot(x0, own, bias, taps));
        tile->sums[tile->lanes + i] = kq_signed(kq_mve_dot(x1, own, bias, taps));
        weights += (i & 1u) * 2u * KQ_MVE_BYTES * tile->steps;
    }
    (void)pairs;
#endif
}

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

/* Output channels first..first+channels-1 of all pixels by the tile's weights. */
KQGEN_CODE static void kq_mve_convolve(const kq_mve_tile *tile, const int8_t *input, int8_t *output, uint32_t first, uint32_t channels)
{
    const kq_window *window = tile->window;
    const uint32_t w_out = window->w_out;
    const uint32_t c_out = window->c_out;
    const uint32_t row_bytes = window->c_in;
    const uint32_t pixel_bytes = window->stride_w * window->k_h * row_bytes;
    int32_t top = -(int32_t)window->pad_top;
    int8_t *columns = tile->columns;
    int8_t *to = output + first;
    uint32_t held = 0; /* rows of the window that the columns hold already */
    uint32_t y;
    kq_mve_fill_params(tile, first, channels);
    for (y = 0; y < window->h_out; ++y) {
        const int8_t *x0 = columns;
        uint32_t row;
        uint32_t x;
        for (row = held; row < window->k_h; ++row) {
            kq_mve_fill_row(tile, input, top + (int32_t)row, columns + row * row_bytes);
        }
        for (x = 0; x + 1u < w_out; x += 2u) {
            kq_mve_accumulate(tile, x0, x0 + pixel_bytes, channels);
            kq_mve_put(tile, tile->sums, first, channels, to);
            kq_mve_put(tile, tile->sums + tile->lanes, first, channels, to + c_out);
            x0 += 2u * pixel_bytes;
            to += 2u * c_out;
        }
        if (x < w_out) {
            kq_mve_accumulate(tile, x0, x0, channels);
            kq_mve_put(tile, tile->sums, first, channels, to);
            to += c_out;
        }
        top += window->stride_h;
        columns += tile->slide_bytes;
        held = tile->slide_bytes != 0 ? (uint32_t)window->k_h - window->stride_h : 0;
    }
}

/* A tile of up to `tile_channels` channels, whose weights are kept for `weight_channels` (even, and no fewer), in `scratch` as SPEC 6.7 lays
 * it out; its pads are filled in.
 */
KQGEN_CODE static kq_mve_tile kq_mve_tile_at(
    const kq_window *window, const kq_requant *requant, const int8_t *pad_values, int8_t pad_value, uint32_t tile_channels,
    uint32_t weight_channels, void *scratch)
{
    kq_mve_tile tile;
    const uint32_t c_in = window->c_in;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * c_in;
    int8_t *pads;
    uint32_t i;
    tile.window = window;
    tile.requant = requant;
    tile.lanes = kq_mve_round(tile_channels, 4);
    tile.steps = kq_mve_round(taps, KQ_MVE_BYTES) >> 4;
    tile.slide_bytes = window->stride_h < window->k_h ? (uint32_t)window->stride_h * c_in : 0;
    tile.sums = scratch;
    tile.params = tile.sums + 2u * tile.lanes;
    pads = (int8_t *)(tile.params + 3u * tile.lanes);
    for (i = 0; i < c_in; ++i) {
        pads[i] = kq_pad(pad_values, pad_value, i);
    }
    tile.pads = pads;
    tile.weights = pads + kq_mve_round(c_in, 4);
    tile.columns = tile.weights + weight_channels * KQ_MVE_BYTES * tile.steps;
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
