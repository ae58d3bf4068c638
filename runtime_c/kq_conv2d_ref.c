/* Convolution by uniform weights, the plainest way (SPEC 4.4, 5.1). */
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* As kq_conv2d_s8; scratch is not used. */
KQGEN_CODE void kq_conv2d_s8_ref(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_in = window->c_in;
    const uint32_t c_out = window->c_out;
    kq_pixel pixel;
    (void)scratch;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            uint32_t o;
            for (o = 0; o < c_out; ++o) {
                uint32_t acc = (uint32_t)conv->requant.bias[o];
                uint32_t row;
                for (row = 0; row < window->k_h; ++row) {
                    uint32_t column;
                    for (column = 0; column < window->k_w; ++column) {
                        const uint32_t entry = ((o * window->k_h + row) * window->k_w + column) * c_in;
                        const uint32_t offset = view.base + (row * window->w_in + column) * c_in;
                        const int on_map = kq_on_map(&view, row, column);
                        uint32_t i;
                        for (i = 0; i < c_in; ++i) {
                            const int32_t weight = kq_sign_extend(kq_bits_entry(conv->weights, entry + i, conv->bits), conv->bits);
                            const int32_t x = on_map ? input[offset + i] : kq_pad(conv->pad_values, conv->pad_value, i);
                            acc += (uint32_t)(weight * x);
                        }
                    }
                }
                kq_store(acc, &conv->requant, o, output);
                ++output;
            }
        }
    }
}
