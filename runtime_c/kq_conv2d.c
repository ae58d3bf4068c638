/* Convolution by uniform weights (SPEC 4.4, 5.1, 6.1): two output pixels share each weight they load. */
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* What the windows of one pixel need at every pixel of a layer. */
typedef struct {
    const kq_conv2d *conv;
    const int8_t *input;
    uint32_t taps; /* values of a window: k_h * k_w * c_in */
    int in_place;  /* a window is c_in neighbouring values of the input and never padded */
} conv_source;

/* Writes what `positions` padded positions read. Returns the end of what it wrote. */
KQGEN_CODE static int8_t *put_pads(int8_t *to, const kq_conv2d *conv, uint32_t positions)
{
    const uint32_t c_in = conv->window.c_in;
    const int8_t *pad_values = conv->pad_values;
    const int8_t pad_value = conv->pad_value;
    uint32_t position;
    for (position = 0; position < positions; ++position) {
        uint32_t channel;
        for (channel = 0; channel < c_in; ++channel) {
            *to = kq_pad(pad_values, pad_value, channel);
            ++to;
        }
    }
    return to;
}

/* The window of one pixel as `taps` values in weight order, in `patch` or where they lie in the input. */
KQGEN_CODE static const int8_t *window_values(const conv_source *source, kq_pixel pixel, int8_t *patch)
{
    const kq_window *window = &source->conv->window;
    const kq_view view = kq_view_at(window, pixel);
    const uint32_t c_in = window->c_in;
    const uint32_t row_step = (uint32_t)window->w_in * c_in;
    const uint32_t left = view.col_lo;
    const uint32_t middle = (view.col_hi - view.col_lo) * c_in;
    const uint32_t right = window->k_w - view.col_hi;
    uint32_t offset = view.base + left * c_in;
    uint32_t row;
    int8_t *to = patch;
    if (source->in_place) {
        return source->input + view.base;
    }
    for (row = 0; row < window->k_h; ++row) {
        if (row < view.row_lo || row >= view.row_hi || middle == 0) {
            to = put_pads(to, source->conv, window->k_w);
        } else {
            const int8_t *from = source->input + offset;
            uint32_t i;
            to = put_pads(to, source->conv, left);
            for (i = 0; i < middle; ++i) {
                to[i] = from[i];
            }
            to = put_pads(to + middle, source->conv, right);
        }
        offset += row_step;
    }
    return patch;
}

/* Adds one product to the sums of two windows, |product| <= 2^14. */
static KQ_INLINE void add_product(const int8_t *weights, const int8_t *x0, const int8_t *x1, uint32_t at, uint32_t *acc0, uint32_t *acc1)
{
    const int32_t weight = weights[at];
    *acc0 += (uint32_t)(weight * x0[at]);
    *acc1 += (uint32_t)(weight * x1[at]);
    KQ_SIDE_BY_SIDE(*acc0, *acc1);
}

/* acc[0] and acc[1] become the dot products of `count` weights with two windows, modulo 2^32. */
KQGEN_CODE static KQ_NOINLINE void dot_two(const int8_t *weights, const int8_t *x0, const int8_t *x1, uint32_t count, uint32_t *acc)
{
    const uint32_t fours = count & ~(uint32_t)3u;
    uint32_t acc0 = 0;
    uint32_t acc1 = 0;
    uint32_t i = 0;
    while (i != fours) {
        add_product(weights, x0, x1, i, &acc0, &acc1);
        ++i;
        KQ_COUNTED(i);
        add_product(weights, x0, x1, i, &acc0, &acc1);
        ++i;
        KQ_COUNTED(i);
        add_product(weights, x0, x1, i, &acc0, &acc1);
        ++i;
        KQ_COUNTED(i);
        add_product(weights, x0, x1, i, &acc0, &acc1);
        ++i;
    }
    for (; i != count; ++i) {
        add_product(weights, x0, x1, i, &acc0, &acc1);
    }
    acc[0] = acc0;
    acc[1] = acc1;
}

/* The dot product of `count` weights with one window, modulo 2^32. */
KQGEN_CODE static KQ_NOINLINE uint32_t dot_one(const int8_t *weights, const int8_t *x, uint32_t count)
{
    uint32_t acc = 0;
    uint32_t i;
    for (i = 0; i < count; ++i) {
        acc += (uint32_t)(weights[i] * x[i]);
    }
    return acc;
}

/* Output channels first..first+channels-1 of all pixels; weights hold these channels, `patch` two windows. */
KQGEN_CODE static void convolve(
    const conv_source *source, const int8_t *weights, uint32_t first, uint32_t channels, int8_t *output, int8_t *patch)
{
    const kq_window *window = &source->conv->window;
    const kq_requant *requant = &source->conv->requant;
    const int32_t *bias = requant->bias + first;
    const uint32_t taps = source->taps;
    const uint32_t c_out = window->c_out;
    const uint32_t w_out = window->w_out;
    uint32_t pixels = (uint32_t)window->h_out * w_out;
    kq_pixel pixel = {0, 0};
    uint32_t at = first;
    while (pixels >= 2u) {
        const kq_pixel second = kq_next_pixel(pixel, w_out);
        const int8_t *x0 = window_values(source, pixel, patch);
        const int8_t *x1 = window_values(source, second, patch + taps);
        const int8_t *from = weights;
        uint32_t channel;
        for (channel = 0; channel < channels; ++channel) {
            int8_t *to = output + at + channel;
            uint32_t acc[2];
            dot_two(from, x0, x1, taps, acc);
            acc[0] += (uint32_t)bias[channel];
            acc[1] += (uint32_t)bias[channel];
            kq_store_two(acc[0], acc[1], requant, first + channel, to, to + c_out);
            from += taps;
        }
        at += 2u * c_out;
        pixel = kq_next_pixel(second, w_out);
        pixels -= 2u;
    }
    if (pixels != 0) {
        const int8_t *x = window_values(source, pixel, patch);
        uint32_t channel;
        for (channel = 0; channel < channels; ++channel) {
            const uint32_t acc = (uint32_t)bias[channel] + dot_one(weights, x, taps);
            kq_store(acc, requant, first + channel, output + at + channel);
            weights += taps;
        }
    }
}

/* A 1x1 kernel whose windows all lie on the map. */
KQGEN_CODE static int reads_in_place(const kq_window *window)
{
    return window->k_h == 1 && window->k_w == 1 && window->pad_top == 0 && window->pad_left == 0
        && (window->h_out - 1u) * window->stride_h < window->h_in && (window->w_out - 1u) * window->stride_w < window->w_in;
}

/* Forms `direct` and `unpack` (SPEC 6.1); scratch as SPEC 6.4: expanded weights (6 and 4 bits), then two windows. */
KQGEN_CODE void kq_conv2d_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * window->c_in;
    const conv_source source = {conv, input, taps, reads_in_place(window)};
    const uint32_t bits = conv->bits;
    const uint32_t c_out = window->c_out;
    if (bits == 8u) {
        convolve(&source, (const int8_t *)conv->weights, 0, c_out, output, scratch);
    } else {
        int8_t *expanded = scratch;
        const uint32_t tile = window->tile;
        int8_t *patch = expanded + ((tile * taps + 3u) & ~(uint32_t)3u);
        kq_bit_reader reader = kq_bits_at(conv->weights, 0, bits);
        uint32_t first;
        for (first = 0; first < c_out; first += tile) {
            const uint32_t channels = c_out - first < tile ? c_out - first : tile;
            const uint32_t count = channels * taps;
            uint32_t i;
            for (i = 0; i < count; ++i) {
                expanded[i] = (int8_t)kq_sign_extend(kq_bits_next(&reader, bits), bits);
            }
            convolve(&source, expanded, first, channels, output, patch);
        }
    }
}
