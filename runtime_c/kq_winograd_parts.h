/* Parts of the Winograd forms that know nothing of their loops: kernels by index, bytes to words, requantisation (see kq_winograd.h). */
#ifndef KQ_WINOGRAD_PARTS_H
#define KQ_WINOGRAD_PARTS_H

#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_products.h"
#include "kq_window.h"

#define KQ_PATCH (KQ_SIDE + 2u)                   /* input pixels of a tile along each axis */
#define KQ_POSITIONS (KQ_PATCH * KQ_PATCH)        /* products of one kernel and one patch */
#define KQ_TAPS 9u
#define KQ_LANES 0x80008000u

/* Whether four channels of a map are read as one word: on cores that read words at any address, and where a map is aligned. */
#if defined(__ARM_FEATURE_UNALIGNED)
#define KQ_ANY_ADDRESS 1
#else
#define KQ_ANY_ADDRESS 0
#endif

/* A layer on its way; the parts of scratch as SPEC 6.4. Words hold two int16: channels c and c + 2 of four in a row, then c + 1 and c + 3.
 */
typedef struct {
    const kq_conv2d_kq *conv;
    const int8_t *input;
    int8_t *output;
    uint32_t *kernels; /* of `tile` output channels: [tile / kernel_group][position][words][kernel_group] */
    uint32_t *patches; /* of `strip` tiles of pixels: [strip / patch_group][position][words][patch_group] */
    uint32_t *sums;    /* of one group of kernels with one of patches: [position][KQ_SUMS] */
    int8_t *book;      /* codewords as int8, or NULL */
    uint32_t words;    /* of one pixel: 2 * ceil(c_in / 4) */
    uint32_t kernel_group, patch_group;
    uint32_t aligned; /* four channels of a pixel may be read as one word */
    uint32_t bounded; /* some result is clamped to less than int8 */
    uint32_t direct;  /* kernels are codewords of the expanded codebook */
    uint32_t second;  /* where the second stage begins in what codewords are read from */
} kq_winograd;

/* The output pixels of a tile: the first one's first channel, and how many rows and columns of them lie on the map, 1..KQ_SIDE. */
typedef struct {
    int8_t *to;
    uint32_t rows, cols;
} kq_spot;

/* Four bytes at a multiple of 4, or where KQ_ANY_ADDRESS anywhere. */
KQGEN_CODE static inline uint32_t kq_word_at(const int8_t *at)
{
#if defined(__GNUC__)
    typedef struct {
#if KQ_ANY_ADDRESS
        uint32_t word __attribute__((packed, may_alias));
#else
        uint32_t word __attribute__((may_alias));
#endif
    } word_at;
    return ((const word_at *)(const void *)at)->word;
#else
    const uint8_t *bytes = (const uint8_t *)at;
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
#endif
}

/* Four bytes at any address, the first lowest. */
static KQ_INLINE uint32_t kq_word_anywhere(const int8_t *at)
{
#if KQ_ANY_ADDRESS
    return kq_word_at(at);
#else
    const uint8_t *bytes = (const uint8_t *)at;
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
#endif
}

/* The number in the 6 bits of `stream` from `bit` on, -32..31; bit 0..26. */
static KQ_INLINE int8_t kq_six_bits(uint32_t stream, uint32_t bit)
{
    return (int8_t)kq_shift_down(kq_signed(stream << (26u - bit)), 26u);
}

/* The nine values of a codeword, -31..31. */
KQGEN_CODE static KQ_NOINLINE void kq_read_codeword(const uint8_t *codebook, uint32_t codeword, int8_t *values)
{
    /* The 54 bits begin at an even bit of a byte, lie in 7 bytes or 8, and are read as two words. */
    const uint32_t bit = codeword * KQ_TAPS * 6u;
    const uint32_t rest = bit & 7u;
    const int8_t *at = (const int8_t *)codebook + (bit >> 3);
    const uint32_t first = kq_word_anywhere(at);
    const uint32_t low = first >> rest;
    const uint32_t high = rest > 2u ? first >> (24u + rest) | kq_word_anywhere(at + 4) << (8u - rest) : kq_word_anywhere(at + 3) >> rest;
    values[0] = kq_six_bits(low, 0);
    values[1] = kq_six_bits(low, 6);
    values[2] = kq_six_bits(low, 12);
    values[3] = kq_six_bits(low, 18);
    values[4] = kq_six_bits(high, 0);
    values[5] = kq_six_bits(high, 6);
    values[6] = kq_six_bits(high, 12);
    values[7] = kq_six_bits(high, 18);
    values[8] = kq_six_bits(high, 24);
}

/* A kernel of one input channel, and by what to multiply it: its sign times its place in a word, or 0 where there is no such channel. */
typedef struct {
    const int8_t *values;
    uint32_t factor;
} kq_kernel;

/* The values of the kernel that an index names, its sign left out, -62..62: in the expanded codebook, or read into `buffer`. */
KQGEN_CODE static KQ_NOINLINE const int8_t *kq_read_kernel(const kq_winograd *run, uint32_t code, int8_t *buffer)
{
    const kq_conv2d_kq *conv = run->conv;
    const uint32_t stage_bits = ((uint32_t)conv->index_bits - conv->sign) >> 1;
    uint32_t t;
    int8_t other[KQ_TAPS];
    const int8_t *second = other;
    const int8_t *first = buffer;
    uint32_t first_code = code;
    uint32_t second_code;
    if (conv->stages == 2u) {
        first_code = code & (((uint32_t)1 << stage_bits) - 1u);
    }
    second_code = run->second + (code >> stage_bits);
    if (run->book != NULL) {
        first = run->book + first_code * KQ_TAPS;
        second = run->book + second_code * KQ_TAPS;
    } else {
        kq_read_codeword(conv->codebook, first_code, buffer);
    }
    if (conv->stages != 2u) {
        return first;
    }
    if (run->book == NULL) {
        kq_read_codeword(conv->codebook, second_code, other);
    }
    for (t = 0; t < KQ_TAPS; ++t) {
        buffer[t] = (int8_t)(first[t] + second[t]);
    }
    return buffer;
}

/* Reads `count` indices of input channel `channel` from output channel `first` on. */
KQGEN_CODE static KQ_NOINLINE void kq_read_indices(
    const kq_conv2d_kq *conv, uint32_t channel, uint32_t first, uint32_t count, uint16_t *indices)
{
    const uint32_t bits = conv->index_bits;
    kq_bit_reader reader = kq_bits_at(conv->indices, channel * conv->window.c_out + first, bits);
    uint32_t i;
    for (i = 0; i < count; ++i) {
        indices[i] = (uint16_t)kq_bits_next(&reader, bits);
    }
}

/* The kernel that an index names, in the place `lane` (1, 2^16, or 0 for none) of a word. */
static KQ_INLINE kq_kernel kq_kernel_of(const kq_winograd *run, uint32_t index, uint32_t lane, int8_t *buffer)
{
    const uint32_t code_bits = (uint32_t)run->conv->index_bits - run->conv->sign;
    const uint32_t flip = (uint32_t)0 - (index >> code_bits); /* all bits set where the sign bit is */
    const uint32_t code = index & (((uint32_t)1 << code_bits) - 1u);
    kq_kernel kernel;
    kernel.factor = (lane ^ flip) - flip;
    kernel.values = run->direct != 0 ? run->book + code * KQ_TAPS : kq_read_kernel(run, code, buffer);
    return kernel;
}

/* One value of two kernels as a word of a transform. */
static KQ_INLINE uint32_t kq_tap(const kq_kernel *low, const kq_kernel *high, uint32_t tap)
{
    return (uint32_t)low->values[tap] * low->factor + (uint32_t)high->values[tap] * high->factor;
}

/* Four channels at any address, the first lowest; those beyond `channels` (1 or more) are 0. */
KQGEN_CODE static KQ_NOINLINE uint32_t kq_bytes_at(const int8_t *at, uint32_t channels)
{
    const uint32_t count = channels < 4u ? channels : 4u;
    uint32_t word = 0;
    uint32_t i;
    for (i = count; i != 0; --i) {
        word = word << 8 | (uint8_t)at[i - 1u];
    }
    return word;
}

/* Channels 0 and 2 of four in a word, each plus 128. */
static KQ_INLINE uint32_t kq_even_bytes(uint32_t word)
{
#if defined(__ARM_FEATURE_DSP)
    uint32_t halves;
    __asm__("sxtab16 %0, %1, %2" : "=r"(halves) : "r"(0x00800080u), "r"(word));
    return halves;
#else
    return (word ^ 0x80808080u) & 0x00FF00FFu;
#endif
}

/* Channels 1 and 3 of four in a word, each plus 128. */
static KQ_INLINE uint32_t kq_odd_bytes(uint32_t word)
{
#if defined(__ARM_FEATURE_DSP)
    uint32_t halves;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(halves) : "r"(0x00800080u), "r"(word));
    return halves;
#else
    return ((word ^ 0x80808080u) >> 8) & 0x00FF00FFu;
#endif
}

/* kq_summed where the sum is clamped to int8 as a whole. */
static KQ_INLINE int32_t kq_whole_sum(const kq_add *sum, int32_t result, int32_t other)
{
    return kq_int8(kq_shift_down(result * sum->multiplier_a + sum->bias + other * sum->multiplier_b, sum->shift));
}

/* Stores the pixels of a tile that lie on the map, one output channel, from values within int8: rows of KQ_SIDE of them. */
KQGEN_CODE static KQ_NOINLINE void kq_store_values(
    const kq_winograd *run, const uint32_t *values, uint32_t channel, const kq_spot *place)
{
    const kq_window *window = &run->conv->window;
    const kq_add *sum = run->conv->requant.sum;
    const uint32_t step = window->c_out;
    const uint32_t row_bytes = window->w_out * step;
    const uint32_t *const last = values + place->rows * KQ_SIDE;
    int8_t *row = place->to + channel;
    do {
        const uint32_t *const end = values + place->cols;
        const uint32_t *value = values;
        int8_t *at = row;
        if (sum == NULL) {
            do {
                *at = (int8_t)kq_signed(*value++);
                at += step;
            } while (value != end);
        } else {
            const int32_t multiplier_a = sum->multiplier_a;
            const int32_t multiplier_b = sum->multiplier_b;
            const int32_t bias = sum->bias;
            const uint32_t shift = sum->shift;
            do {
                int32_t total = kq_int8(kq_shift_down(kq_signed(*value++) * multiplier_a + bias + *at * multiplier_b, shift));
                if (run->bounded != 0) {
                    total = kq_clamped(total, sum->lo, sum->hi);
                }
                *at = (int8_t)total;
                at += step;
            } while (value != end);
        }
        values += KQ_SIDE;
        row += row_bytes;
    } while (values != last);
}

/* Requantises the pixels of a tile, one output channel, and stores those that lie on the map; where the layer sums, adds what is there
 * (SPEC 3.2, 5.8). `totals`, KQ_SIDE rows of as many, times `inverse` modulo 2^32 are the pixels' sums without the bias. The rounding takes the
 * zero point along: |acc * multiplier / 2^16| <= 2^30, rounding and zero point stay within 2^29 + 2^21.
 */
static KQ_INLINE void kq_store_pixels(const kq_winograd *run, uint32_t *totals, uint32_t channel, const kq_spot *place, uint32_t inverse)
{
    const kq_conv2d_kq *conv = run->conv;
    const kq_requant *requant = &conv->requant;
    const uint32_t factor = inverse << requant->acc_shift;
    const uint32_t bias = (uint32_t)requant->bias[channel] << requant->acc_shift;
    const uint32_t multiplier = (uint32_t)requant->multiplier[channel];
    const uint32_t shift = requant->shift[channel];
    const uint32_t rounding = (((uint32_t)1 << shift) >> 1) + ((uint32_t)requant->zero_point << shift);
    uint32_t left;
    if (KQ_SIDE == 4u && run->bounded == 0 && place->cols == KQ_SIDE) {
        const kq_add *sum = requant->sum;
        const uint32_t step = conv->window.c_out;
        const uint32_t row_bytes = conv->window.w_out * step;
        int8_t *at = place->to + channel;
        for (left = place->rows; left != 0; --left) {
            int8_t *const far = at + 2u * step;
            const uint32_t acc0 = totals[0] * factor + bias;
            const uint32_t acc1 = totals[1] * factor + bias;
            const uint32_t acc2 = totals[KQ_SIDE - 2u] * factor + bias;
            const uint32_t acc3 = totals[KQ_SIDE - 1u] * factor + bias;
            int32_t q0 = kq_int8(kq_shift_down(kq_times_high(acc0, multiplier, rounding), shift));
            int32_t q1 = kq_int8(kq_shift_down(kq_times_high(acc1, multiplier, rounding), shift));
            int32_t q2 = kq_int8(kq_shift_down(kq_times_high(acc2, multiplier, rounding), shift));
            int32_t q3 = kq_int8(kq_shift_down(kq_times_high(acc3, multiplier, rounding), shift));
            if (sum != NULL) {
                q0 = kq_whole_sum(sum, q0, at[0]);
                q1 = kq_whole_sum(sum, q1, at[step]);
                q2 = kq_whole_sum(sum, q2, far[0]);
                q3 = kq_whole_sum(sum, q3, far[step]);
            }
            at[0] = (int8_t)q0;
            at[step] = (int8_t)q1;
            far[0] = (int8_t)q2;
            far[step] = (int8_t)q3;
            totals += KQ_SIDE;
            at += row_bytes;
        }
    } else {
        uint32_t *total = totals;
        for (left = KQ_SIDE * KQ_SIDE; left != 0; --left) {
            const uint32_t acc = *total * factor + bias;
            int32_t result = kq_int8(kq_shift_down(kq_times_high(acc, multiplier, rounding), shift));
            if (run->bounded != 0) {
                result = kq_clamped(result, requant->lo, requant->hi);
            }
            *total++ = (uint32_t)result;
        }
        kq_store_values(run, totals, channel, place);
    }
}

#endif
