/* Form `reuse`, the plainest way (SPEC 5.1, 6.3): for one output pixel at a time and each input channel, the dot products of all
 * codewords are computed, and each output channel adds or subtracts the one it names.
 */
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* Dot products of all codewords with the window of one pixel in channel i. */
KQGEN_CODE static void dot_codewords(const kq_conv2d_kq *conv, const int8_t *input, const kq_view *view, uint32_t i, int32_t *dots)
{
    const kq_window *window = &conv->window;
    uint32_t entry = 0;
    uint32_t code;
    for (code = 0; code < conv->codewords; ++code) {
        uint32_t row;
        dots[code] = 0;
        for (row = 0; row < window->k_h; ++row) {
            uint32_t column;
            for (column = 0; column < window->k_w; ++column) {
                const uint32_t offset = view->base + (row * window->w_in + column) * window->c_in + i;
                const int32_t x = kq_on_map(view, row, column) ? input[offset] : kq_pad(conv->pad_values, conv->pad_value, i);
                dots[code] += kq_sign_extend(kq_bits_entry(conv->codebook, entry, 6), 6) * x;
                ++entry;
            }
        }
    }
}

/* As kq_conv2d_reuse_s8; of its scratch, c_out accumulators and one sum a codeword are used. */
KQGEN_CODE void kq_conv2d_reuse_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    uint32_t *acc = scratch;
    int32_t *dots = (int32_t *)(acc + c_out);
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            uint32_t entry = 0;
            uint32_t o;
            uint32_t i;
            for (o = 0; o < c_out; ++o) {
                acc[o] = (uint32_t)conv->requant.bias[o];
            }
            for (i = 0; i < window->c_in; ++i) {
                dot_codewords(conv, input, &view, i, dots);
                for (o = 0; o < c_out; ++o) {
                    const uint32_t index = kq_bits_entry(conv->indices, entry, conv->index_bits);
                    const int32_t dot = dots[index & code_mask];
                    acc[o] += (uint32_t)(index > code_mask ? -dot : dot);
                    ++entry;
                }
            }
            for (o = 0; o < c_out; ++o) {
                kq_store(acc[o], &conv->requant, o, output);
                ++output;
            }
        }
    }
}
