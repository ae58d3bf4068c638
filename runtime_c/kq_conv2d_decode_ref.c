/* Convolution by lookup, the plainest way (SPEC 4.2, 4.3, 5.1): every weight is looked up where it is used. */
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* The dot product of one codeword with the window of one pixel in channel i; within +-32640 by SPEC 4.3. */
KQGEN_CODE static int32_t dot_codeword(const kq_conv2d_kq *conv, uint32_t codeword, const int8_t *input, const kq_view *view, uint32_t i)
{
    const kq_window *window = &conv->window;
    uint32_t entry = codeword * window->k_h * window->k_w;
    int32_t dot = 0;
    uint32_t row;
    for (row = 0; row < window->k_h; ++row) {
        uint32_t column;
        for (column = 0; column < window->k_w; ++column) {
            const uint32_t offset = view->base + (row * window->w_in + column) * window->c_in + i;
            const int32_t x = kq_on_map(view, row, column) ? input[offset] : kq_pad(conv->pad_values, conv->pad_value, i);
            dot += kq_sign_extend(kq_bits_entry(conv->codebook, entry, 6), 6) * x;
            ++entry;
        }
    }
    return dot;
}

/* As kq_conv2d_decode_s8; scratch is not used. */
KQGEN_CODE void kq_conv2d_decode_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    kq_pixel pixel;
    (void)scratch;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            uint32_t o;
            for (o = 0; o < c_out; ++o) {
                uint32_t acc = (uint32_t)conv->requant.bias[o];
                uint32_t i;
                for (i = 0; i < window->c_in; ++i) {
                    const uint32_t index = kq_bits_entry(conv->indices, i * c_out + o, conv->index_bits);
                    const int32_t dot = dot_codeword(conv, index & code_mask, input, &view, i);
                    acc += (uint32_t)(index > code_mask ? -dot : dot);
                }
                kq_store(acc, &conv->requant, o, output);
                ++output;
            }
        }
    }
}
