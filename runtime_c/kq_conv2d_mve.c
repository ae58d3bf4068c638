/* Convolution by uniform weights and by lookup, engine `mve` (SPEC 6.7): weights of a tile of output channels are expanded into vectors of
 * int8, then all output pixels are convolved with them.
 */
#include "kq.h"
#include "kq_mve_rows.h"

/* Expands the weights of channels first..first+channels-1. The columns, not in use yet, hold one channel's in stored order meanwhile. */
KQGEN_CODE static void arrange_weights(const kq_conv2d *conv, const kq_mve_tile *tile, uint32_t first, uint32_t channels)
{
    const kq_window *window = &conv->window;
    const uint32_t c_in = window->c_in;
    const uint32_t taps = (uint32_t)window->k_h * window->k_w * c_in;
    uint32_t o;
    kq_mve_clear(tile->weights, kq_mve_round(channels, 2) * KQ_MVE_BYTES * tile->steps);
    for (o = 0; o < channels; ++o) {
        const int8_t *from = tile->columns;
        int8_t *to = tile->weights + kq_mve_channel(tile, o);
        uint32_t row;
        if (conv->bits == 8u) {
            from = (const int8_t *)conv->weights + (first + o) * taps;
        } else {
            kq_mve_expand(conv->weights, (first + o) * taps, conv->bits, taps, tile->columns);
        }
        if (window->k_h == 1 || window->k_w == 1) {
            /* Stored order and window order are the same. */
            const uint32_t whole = taps & ~(KQ_MVE_BYTES - 1u);
            kq_mve_copy(to, 2u * KQ_MVE_BYTES, from, KQ_MVE_BYTES, KQ_MVE_BYTES, whole >> 4);
            kq_mve_copy(to + 2u * whole, 0, from + whole, 0, taps - whole, 1);
            continue;
        }
        for (row = 0; row < window->k_h; ++row) {
            uint32_t j = row * c_in;
            uint32_t column;
            for (column = 0; column < window->k_w; ++column) {
                uint32_t i;
                for (i = 0; i < c_in; ++i) {
                    to[kq_mve_place(j + i)] = *from;
                    ++from;
                }
                j += window->k_h * c_in;
            }
        }
    }
}

/* Engine `mve`, uniform weights; scratch as SPEC 6.7. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_mve_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const uint32_t c_out = conv->window.c_out;
    const uint32_t size = conv->window.tile < c_out ? conv->window.tile : c_out;
    const kq_mve_tile tile =
        kq_mve_tile_at(&conv->window, &conv->requant, conv->pad_values, conv->pad_value, size, kq_mve_round(size, 2), scratch);
    uint32_t first;
    for (first = 0; first < c_out; first += size) {
        const uint32_t channels = c_out - first < size ? c_out - first : size;
        arrange_weights(conv, &tile, first, channels);
        kq_mve_convolve(&tile, input, output, first, channels);
    }
}

/* Codewords of one stage that the indices can name. */
KQGEN_CODE static uint32_t named_codewords(const kq_conv2d_kq *conv)
{
    const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
    const uint32_t most = (uint32_t)1 << (conv->stages == 2u ? code_bits >> 1 : code_bits);
    return conv->codewords < most ? conv->codewords : most;
}

/* What every kernel of a tile needs: `book` holds the codewords that can be named as bytes, those of a second stage `stage_bytes` behind
 * those of the first; `additive` if there is one.
 */
typedef struct {
    const kq_conv2d_kq *conv;
    const kq_mve_tile *tile;
    const int8_t *book;
    uint32_t stage_bytes;
    uint32_t n;
    uint32_t code_bits;
    uint32_t stage_bits;
    int additive;
} kernel_source;

/* Expands the kernel of `index` for input channel i; `to` is where the weights of its output channel begin. */
KQGEN_CODE static void arrange_kernel(const kernel_source *source, uint32_t index, uint32_t i, int8_t *to)
{
    const kq_window *window = source->tile->window;
    const uint32_t mask = ((uint32_t)1 << source->stage_bits) - 1u;
    const int8_t *a = source->book + (index & mask) * source->n;
    const int8_t *b = source->book + source->stage_bytes + (index >> source->stage_bits & mask) * source->n;
    const int32_t sign = index >> source->code_bits != 0 ? -1 : 1;
    uint32_t row;
    uint32_t t = 0;
    for (row = 0; row < window->k_h; ++row) {
        uint32_t j = row * window->c_in + i;
        uint32_t column;
        for (column = 0; column < window->k_w; ++column) {
            const int32_t value = source->additive ? a[t] + b[t] : a[t];
            to[kq_mve_place(j)] = (int8_t)(sign * value);
            ++t;
            j += window->k_h * (uint32_t)window->c_in;
        }
    }
}

#if KQ_MVE

/* Eight indices from entry `entry` on, of which `left` are read (all, if there are as many); the others are 0. Lanes read the bytes that hold
 * their first bit, the next one and the one that holds their last bit.
 */
KQGEN_CODE static KQ_INLINE uint16x8_t eight_indices(const uint8_t *table, uint32_t entry, uint32_t bits, uint32_t left)
{
    const uint8_t *from = table + (size_t)(entry >> 3) * bits;
    const mve_pred16_t some = vctp16q(left);
    const uint16x8_t begin = vaddq_n_u16(vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)bits), (uint16_t)((entry & 7u) * bits));
    const uint16x8_t low = vshrq_n_u16(begin, 3);
    const uint16x8_t high = vshrq_n_u16(vaddq_n_u16(begin, (uint16_t)(bits - 1u)), 3);
    const int16x8_t down = vreinterpretq_s16_u16(vandq_u16(begin, vdupq_n_u16(7)));
    uint16x8_t both = vldrbq_gather_offset_z_u16(from, low, some);
    if (bits == 11u) { /* the only width whose entries reach over three bytes */
        const uint16x8_t middle = vminq_u16(vaddq_n_u16(low, 1), high);
        both = vsliq_n_u16(both, vldrbq_gather_offset_z_u16(from, middle, some), 8);
        both = vshlq_u16(both, vnegq_s16(down));
        both = vorrq_u16(both, vshlq_u16(vldrbq_gather_offset_z_u16(from, high, some), vsubq_s16(vdupq_n_s16(16), down)));
    } else {
        both = vsliq_n_u16(both, vldrbq_gather_offset_z_u16(from, high, some), 8);
        both = vshlq_u16(both, vnegq_s16(down));
    }
    return vandq_u16(both, vdupq_n_u16((uint16_t)(((uint32_t)1 << bits) - 1u)));
}

/* Expands the kernels of eight output channels from number `first` on, `left` of them, for all input channels; weights of the others become
 * those of codeword 0. `to` is where the weights of the first begin. Offsets fit 16 bits, as arrange_kernels has checked.
 */
KQGEN_CODE static KQ_NOINLINE void arrange_eight(const kernel_source *source, uint32_t first, uint32_t left, int8_t *to)
{
    const kq_conv2d_kq *conv = source->conv;
    const uint32_t bits = conv->index_bits;
    const uint32_t c_in = conv->window.c_in;
    const uint32_t c_out = conv->window.c_out;
    const uint32_t k_h = conv->window.k_h;
    const uint32_t k_w = conv->window.k_w;
    const uint32_t step = k_h * c_in;
    const uint16_t n = (uint16_t)source->n;
    const uint16_t pair_bytes = (uint16_t)(source->tile->steps * KQ_MVE_BYTES);
    const int32_t to_second = -(int32_t)source->stage_bits;
    const int32_t to_sign = -(int32_t)source->code_bits;
    const uint16x8_t lane = vidupq_n_u16(0, 1);
    const uint16x8_t odd = vandq_u16(lane, vdupq_n_u16(1));
    const uint16x8_t channel = vaddq_u16(vmulq_n_u16(vsubq_u16(lane, odd), pair_bytes), vshlq_n_u16(odd, 4));
    const uint16x8_t mask = vdupq_n_u16((uint16_t)(((uint32_t)1 << source->stage_bits) - 1u));
    uint32_t entry = first;
    uint32_t i;
    for (i = 0; i < c_in; ++i) {
        const uint16x8_t index = eight_indices(conv->indices, entry, bits, left);
        const uint16x8_t a = vmulq_n_u16(vandq_u16(index, mask), n);
        const int16x8_t negative = vreinterpretq_s16_u16(vshlq_n_u16(vshlq_r_u16(index, to_sign), 1));
        const int16x8_t sign = vaddq_n_s16(vnegq_s16(negative), 1);
        const int8_t *book = source->book;
        uint32_t row_place = i;
        uint32_t rows = k_h;
        if (source->additive) {
            const uint16x8_t b = vmulq_n_u16(vandq_u16(vshlq_r_u16(index, to_second), mask), n);
            const int8_t *second = book + source->stage_bytes;
            do {
                uint32_t j = row_place;
                uint32_t columns = k_w;
                do {
                    int8_t *place = to + kq_mve_place(j);
                    const int16x8_t value = vaddq_s16(vldrbq_gather_offset_s16(book, a), vldrbq_gather_offset_s16(second, b));
                    vstrbq_scatter_offset_s16(place, channel, vmulq_s16(value, sign));
                    ++book;
                    ++second;
                    j += step;
                    --columns;
                } while (columns != 0);
                row_place += c_in;
                --rows;
            } while (rows != 0);
        } else {
            do {
                uint32_t j = row_place;
                uint32_t columns = k_w;
                do {
                    int8_t *place = to + kq_mve_place(j);
                    vstrbq_scatter_offset_s16(place, channel, vmulq_s16(vldrbq_gather_offset_s16(book, a), sign));
                    ++book;
                    j += step;
                    --columns;
                } while (columns != 0);
                row_place += c_in;
                --rows;
            } while (rows != 0);
        }
        entry += c_out;
    }
}

#endif

/* Expands the kernels of channels first..first+channels-1. */
KQGEN_CODE static void arrange_kernels(const kernel_source *source, uint32_t first, uint32_t channels)
{
    const kq_conv2d_kq *conv = source->conv;
    const kq_mve_tile *tile = source->tile;
    uint32_t i;
#if KQ_MVE
    if (source->stage_bytes <= 0xFFFFu && 8u * KQ_MVE_BYTES * tile->steps <= 0xFFFFu) {
        uint32_t o;
        for (o = 0; o < channels; o += 8u) {
            arrange_eight(source, first + o, channels - o, tile->weights + o * KQ_MVE_BYTES * tile->steps);
        }
        return;
    }
#endif
    for (i = 0; i < conv->window.c_in; ++i) {
        kq_bit_reader reader = kq_bits_at(conv->indices, i * conv->window.c_out + first, conv->index_bits);
        uint32_t o;
        for (o = 0; o < channels; ++o) {
            arrange_kernel(source, kq_bits_next(&reader, conv->index_bits), i, tile->weights + kq_mve_channel(tile, o));
        }
    }
}

/* Engine `mve`, indexed kernels; scratch as SPEC 6.7. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_decode_mve_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    const uint32_t c_out = window->c_out;
    const uint32_t size = window->tile < c_out ? window->tile : c_out;
    const uint32_t weight_channels = kq_mve_round(size, 8);
    const kq_mve_tile tile =
        kq_mve_tile_at(window, &conv->requant, conv->pad_values, conv->pad_value, size, weight_channels, scratch);
    int8_t *book = tile.columns + kq_mve_columns_bytes(&tile);
    const uint32_t stage_bytes = named_codewords(conv) * n;
    const uint32_t code_bits = (uint32_t)conv->index_bits - conv->sign;
    const int additive = conv->stages == 2u;
    const kernel_source source = {conv, &tile, book, stage_bytes, n, code_bits, additive ? code_bits >> 1 : code_bits, additive};
    uint32_t first;
    kq_mve_expand(conv->codebook, 0, 6, stage_bytes, book);
    if (additive) {
        kq_mve_expand(conv->codebook, conv->codewords * n, 6, stage_bytes, book + stage_bytes);
    }
    for (first = 0; first < c_out; first += size) {
        const uint32_t channels = c_out - first < size ? c_out - first : size;
        kq_mve_clear(tile.weights, weight_channels * KQ_MVE_BYTES * tile.steps);
        arrange_kernels(&source, first, channels);
        kq_mve_convolve(&tile, input, output, first, channels);
    }
}
