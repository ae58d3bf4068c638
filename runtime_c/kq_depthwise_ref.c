/* Depthwise convolution, the plainest way (SPEC 4, 5.1, 5.17): every tap is looked up on the map, every weight where it is used. */
#include "kq.h"
#include "kq_bits.h"
#include "kq_fixed.h"
#include "kq_window.h"

/* Weight t of output channel o, indexed; one of `uniform` and `indexed` is NULL. */
KQGEN_CODE static int32_t weight_at(const kq_conv2d *uniform, const kq_conv2d_kq *indexed, uint32_t o, uint32_t t, uint32_t taps)
{
    uint32_t code_bits;
    uint32_t index;
    int32_t weight;
    if (uniform != NULL) {
        return kq_sign_extend(kq_bits_entry(uniform->weights, o * taps + t, uniform->bits), uniform->bits);
    }
    code_bits = (uint32_t)indexed->index_bits - indexed->sign;
    index = kq_bits_entry(indexed->indices, o, indexed->index_bits);
    if (indexed->stages == 2u) {
        const uint32_t stage_bits = code_bits >> 1;
        const uint32_t mask = ((uint32_t)1 << stage_bits) - 1u;
        const uint32_t second = indexed->codewords + ((index >> stage_bits) & mask);
        weight = kq_sign_extend(kq_bits_entry(indexed->codebook, (index & mask) * taps + t, 6), 6);
        weight += kq_sign_extend(kq_bits_entry(indexed->codebook, second * taps + t, 6), 6);
    } else {
        const uint32_t mask = ((uint32_t)1 << code_bits) - 1u;
        weight = kq_sign_extend(kq_bits_entry(indexed->codebook, (index & mask) * taps + t, 6), 6);
    }
    return (index >> code_bits) != 0 ? -weight : weight;
}

/* Both ways of storing weights; pads as kq_pad has them. */
KQGEN_CODE static void convolve(
    const kq_conv2d *uniform, const kq_conv2d_kq *indexed, const int8_t *pad_values, int8_t pad_value, const int8_t *input, int8_t *output)
{
    const kq_window *window = uniform != NULL ? &uniform->window : &indexed->window;
    const kq_requant *requant = uniform != NULL ? &uniform->requant : &indexed->requant;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w;
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        for (pixel.x = 0; pixel.x < window->w_out; ++pixel.x) {
            const kq_view view = kq_view_at(window, pixel);
            uint32_t channel = 0;
            uint32_t part = 0;
            uint32_t o;
            for (o = 0; o < window->c_out; ++o) {
                uint32_t acc = (uint32_t)requant->bias[o];
                uint32_t t = 0;
                uint32_t row;
                for (row = 0; row < window->k_h; ++row) {
                    uint32_t column;
                    for (column = 0; column < window->k_w; ++column) {
                        const uint32_t offset = view.base + (row * window->w_in + column) * window->c_in + channel;
                        const int32_t x = kq_on_map(&view, row, column) ? input[offset] : kq_pad(pad_values, pad_value, channel);
                        acc += (uint32_t)(weight_at(uniform, indexed, o, t, taps) * x);
                        ++t;
                    }
                }
                kq_store(acc, requant, o, output);
                ++output;
                /* c_out / c_in results, then the next input channel. */
                part += window->c_in;
                if (part == window->c_out) {
                    part = 0;
                    ++channel;
                }
            }
        }
    }
}

/* As kq_depthwise_s8; scratch is not used, and the output lies apart. */
KQGEN_CODE void kq_depthwise_s8_ref(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    (void)scratch;
    convolve(conv, NULL, conv->pad_values, conv->pad_value, input, output);
}

/* As kq_depthwise_decode_s8; scratch is not used, and the output lies apart. */
KQGEN_CODE void kq_depthwise_decode_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    (void)scratch;
    convolve(NULL, conv, conv->pad_values, conv->pad_value, input, output);
}
