/* Convolution by lookup, form `decode` (SPEC 6.2): the kernels of a tile of output channels are expanded once, then all output pixels
 * are convolved with them, two pixels to a multiply.
 */
#include "kq.h"
#include "kq_packed.h"
#include "kq_window.h"

/* Expands the kernels of output channels first..first+channels-1 into [channels][c_in][n] bytes. */
static void expand_kernels(const kq_conv2d_kq *conv, uint32_t n, uint32_t first, uint32_t channels, uint8_t *kernels)
{
    const uint32_t c_in = conv->window.c_in;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t bits = conv->index_bits;
    const uint32_t code_bits = bits - conv->sign;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    const uint32_t channel_bytes = c_in * n;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        kq_bit_reader reader = kq_bits_at(conv->indices, i * c_out + first, bits);
        uint32_t kernel = i * n;
        uint32_t o;
        for (o = 0; o < channels; ++o) {
            const uint32_t index = kq_bits_next(&reader, bits);
            kq_expand_codeword(conv->codebook, index & code_mask, index >> code_bits, kernels + kernel, n);
            kernel += channel_bytes;
        }
    }
}

/* Packs one tap of all channels: `x0` and `x1` point at the two pixels' values, `step` words lie between channels. */
static inline void pack_tap(uint32_t *taps, uint32_t step, const int8_t *x0, const int8_t *x1, uint32_t c_in)
{
    uint32_t at = 0;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        taps[at] = (uint32_t)x0[i] + ((uint32_t)x1[i] << 16);
        at += step;
    }
}

/* As pack_tap where one pixel's tap is padded by the same value in all channels: word = constant + x * 2^shift, shift 0 or 16. */
static inline void pack_tap_half(uint32_t *taps, uint32_t step, uint32_t constant, const int8_t *x, uint32_t shift, uint32_t c_in)
{
    uint32_t at = 0;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        taps[at] = constant + ((uint32_t)x[i] << shift);
        at += step;
    }
}

/* As pack_tap where both taps are padded by the same value in all channels. */
static inline void pack_tap_none(uint32_t *taps, uint32_t step, uint32_t constant, uint32_t c_in)
{
    uint32_t at = 0;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        taps[at] = constant;
        at += step;
    }
}

/* Packs the windows of two pixels as [c_in][n + 1] words. */
static void pack_windows(const kq_conv2d_kq *conv, const int8_t *input, kq_pixel pixel0, kq_pixel pixel1, uint32_t n, uint32_t *taps)
{
    const kq_window *window = &conv->window;
    const kq_view view0 = kq_view_at(window, pixel0);
    const kq_view view1 = kq_view_at(window, pixel1);
    const uint32_t c_in = window->c_in;
    const uint32_t step = n + 1u;
    const uint32_t pad = (uint32_t)conv->pad_value;
    uint32_t *tap = taps;
    uint32_t row_offset = 0;
    uint32_t row;
    uint32_t i;
    for (row = 0; row < window->k_h; ++row) {
        uint32_t offset = row_offset;
        uint32_t column;
        for (column = 0; column < window->k_w; ++column) {
            const int8_t *x0 = kq_on_map(&view0, row, column) ? input + (uint32_t)(view0.base + offset) : conv->pad_values;
            const int8_t *x1 = kq_on_map(&view1, row, column) ? input + (uint32_t)(view1.base + offset) : conv->pad_values;
            if (x0 != NULL && x1 != NULL) {
                pack_tap(tap, step, x0, x1, c_in);
            } else if (x0 != NULL) {
                pack_tap_half(tap, step, pad << 16, x0, 0, c_in);
            } else if (x1 != NULL) {
                pack_tap_half(tap, step, pad, x1, 16, c_in);
            } else {
                pack_tap_none(tap, step, pad + (pad << 16), c_in);
            }
            ++tap;
            offset += c_in;
        }
        row_offset += (uint32_t)window->w_in * c_in;
    }
    for (i = 0; i < c_in; ++i) {
        kq_close_taps(taps, n);
        taps += step;
    }
}

/* Sums of one output channel over all input channels, added to *acc0 and *acc1 modulo 2^32; *acc0 gains 2^15 a channel besides. */
static inline void sum_kernels_9(const uint8_t *kernels, const uint32_t *taps, uint32_t c_in, uint32_t *acc0, uint32_t *acc1)
{
    uint32_t a0 = *acc0;
    uint32_t a1 = *acc1;
    uint32_t left;
    for (left = c_in; left != 0; --left) {
        const uint32_t sum = kq_packed_sum_9(kernels, taps);
        a0 += kq_lane0_plus(sum);
        a1 += kq_high_half(sum);
        kernels += 9;
        taps += 10;
    }
    *acc0 = a0;
    *acc1 = a1;
}

/* As sum_kernels_9 for kernels of n taps. */
static inline void sum_kernels(const uint8_t *kernels, const uint32_t *taps, uint32_t c_in, uint32_t n, uint32_t *acc0, uint32_t *acc1)
{
    uint32_t a0 = *acc0;
    uint32_t a1 = *acc1;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        const uint32_t sum = kq_packed_sum(kernels, taps, n);
        a0 += kq_lane0_plus(sum);
        a1 += kq_high_half(sum);
        kernels += n;
        taps += n + 1u;
    }
    *acc0 = a0;
    *acc1 = a1;
}

/* Output channels first..first+channels-1 of all pixels from their expanded kernels. */
static void convolve(
    const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, uint32_t n, uint32_t first, uint32_t channels, const uint8_t *kernels,
    uint32_t *taps)
{
    const kq_requant *requant = &conv->requant;
    const uint32_t c_in = conv->window.c_in;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t w_out = conv->window.w_out;
    const uint32_t pixels = (uint32_t)conv->window.h_out * w_out;
    const uint32_t excess = KQ_LANE_OFFSET * c_in;
    kq_pixel pixel = {0, 0};
    uint32_t at = first;
    uint32_t done;
    for (done = 0; done < pixels; done += 2u) {
        const int paired = pixels - done > 1u;
        const kq_pixel second = paired ? kq_next_pixel(pixel, w_out) : pixel;
        const uint8_t *kernel = kernels;
        uint32_t o;
        pack_windows(conv, input, pixel, second, n, taps);
        for (o = 0; o < channels; ++o) {
            uint32_t acc1 = (uint32_t)requant->bias[first + o];
            uint32_t acc0 = acc1 - excess;
            if (n == 9u) {
                sum_kernels_9(kernel, taps, c_in, &acc0, &acc1);
            } else {
                sum_kernels(kernel, taps, c_in, n, &acc0, &acc1);
            }
            output[at + o] = kq_requantise(acc0, requant, first + o);
            if (paired) {
                output[at + c_out + o] = kq_requantise(acc1, requant, first + o);
            }
            kernel += c_in * n;
        }
        at += 2u * c_out;
        pixel = kq_next_pixel(second, w_out);
    }
}

/* Form `decode` (SPEC 6.2); scratch as SPEC 6.4: packed taps, then kernels. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t n = (uint32_t)conv->window.k_h * conv->window.k_w;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t tile = conv->window.tile;
    uint32_t *taps = scratch;
    uint8_t *kernels = (uint8_t *)(taps + (n + 1u) * conv->window.c_in);
    uint32_t first;
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        expand_kernels(conv, n, first, channels, kernels);
        convolve(conv, input, output, n, first, channels, kernels, taps);
    }
}
