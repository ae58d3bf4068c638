/* Convolution on cores with the DSP extension (SPEC 6.5): weights of a tile of output channels widened to int16 once, then four output
 * channels by two pixels at a time. Both ways of storing weights are here because they share all but the widening of the weights.
 *
 * The file that includes this gets a copy of its own of what follows; DSP_DUAL, defined before, chooses the order of instructions for cores
 * that issue two at once.
 */
#ifndef KQ_DSP_CONV_H
#define KQ_DSP_CONV_H

#include "kq_bits.h"
#include "kq_dsp.h"
#include "kq_fixed.h"
#include "kq_window.h"

#define DSP_GROUP 4u /* output channels of a group */
#define DSP_EIGHT 8u
#define DSP_CODEBOOK_BITS 6u

/* For functions that are not called often: as little code as can be. */
#if defined(__GNUC__)
#define DSP_SMALL __attribute__((cold, noinline))
#else
#define DSP_SMALL
#endif

/* A layer, and where the parts of its scratch lie. Values of a window are laid out as SPEC 6.5 says: of each row the whole quads, then what
 * is left of all rows.
 */
typedef struct {
    const kq_window *window;
    const kq_requant *requant;
    const int8_t *input;
    int8_t *output;
    int8_t *pad_row;      /* what a row of a window reads in the padding */
    int8_t *edge_row;     /* a row of a window of which some taps are padded */
    int8_t *rows;         /* results of a tile, of two pixels */
    int8_t *rests;        /* what is left of the rows of a window; the bytes behind it up to a whole quad stay 0 */
    uint32_t *x;          /* two windows, widened */
    const uint32_t *x_last;
    const uint32_t *x_eights; /* as dsp_groups has them */
    uint32_t *groups;     /* weights of a tile */
    uint32_t row_values;  /* of a window: k_w * c_in */
    uint32_t row_quads;   /* whole quads of these */
    uint32_t rest;        /* and what is left: 0..3 */
    uint32_t rest_quads;  /* quads of what is left of all rows */
    uint32_t quads;       /* of a window */
    uint32_t group_words; /* of a group: 4 biases, 8 words a quad, 4 multipliers */
    int ready;            /* the multipliers of the tile's groups hold */
} dsp_layer;

#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)

/* Four channels (r4, r5, then other words in the same) by two windows (r2, r3). */
#define DSP_FIRST_CHANNEL "smlad r6, r4, r2, r6\n smlad r7, r4, r3, r7\n"
#define DSP_SECOND_CHANNEL "smlad r8, r5, r2, r8\n smlad r9, r5, r3, r9\n"
#define DSP_THIRD_CHANNEL "smlad r10, r4, r2, r10\n smlad r11, r4, r3, r11\n"

/* Steps: two values of two windows by four channels. r0 and r1 point one word before x and weights; the arguments say where words lie off
 * them. DSP_LOOP is `steps` steps from label `start` on, until r0 reaches what the stack holds at `end`.
 */
#if defined(DSP_DUAL)

/* In the order of the multiplications, each word loaded right after the last use of its register, two multiplications at least before the
 * next: 8 cycles on a Cortex-M7, whose loads pair with multiplications. x and weights of a step are loaded in the step before it, those of
 * a first step by DSP_AHEAD; the last step so loads words behind its operands, which lie in the scratch too.
 */
#define DSP_AHEAD "ldr r2, [r0, #4]\n ldr r3, [r0, #8]\n ldr r4, [r1, #4]\n ldr r5, [r1, #8]\n"
#define DSP_FRONT(w2, w3) \
    DSP_FIRST_CHANNEL "ldr r4, [r1, #" w2 "]\n" DSP_SECOND_CHANNEL "ldr r5, [r1, #" w3 "]\n" DSP_THIRD_CHANNEL
#define DSP_STEPS(numbers) \
    ".irp k, " numbers "\n" \
    DSP_FRONT("(16 * \\k + 12)", "(16 * \\k + 16)") \
    "ldr r4, [r1, #(16 * \\k + 20)]\n smlad r12, r5, r2, r12\n ldr r2, [r0, #(8 * \\k + 12)]\n smlad lr, r5, r3, lr\n" \
    "ldr r3, [r0, #(8 * \\k + 16)]\n ldr r5, [r1, #(16 * \\k + 24)]\n" \
    ".endr\n"
#define DSP_LAST_STEP(w2, w3, w0, x_bytes, w_bytes, start, end) \
    DSP_FRONT(w2, w3) \
    "ldr r4, [r1, #" w0 "]\n smlad r12, r5, r2, r12\n ldr r2, [sp, #" end "]\n add r0, #" x_bytes "\n smlad lr, r5, r3, lr\n" \
    "add r1, #" w_bytes "\n cmp r0, r2\n ldr r2, [r0, #4]\n ldr r3, [r0, #8]\n ldr r5, [r1, #8]\n bne " start "\n"
#define DSP_EIGHT_STEPS \
    DSP_AHEAD \
    ".p2align 2\n" \
    "2:\n" \
    DSP_STEPS("0, 1, 2, 3, 4, 5, 6") \
    DSP_LAST_STEP("124", "128", "132", "64", "128", "2b", "52")
#define DSP_TWO_STEPS \
    DSP_AHEAD \
    ".p2align 2\n" \
    "4:\n" \
    DSP_STEPS("0") \
    DSP_LAST_STEP("28", "32", "36", "16", "32", "4b", "56")

#else

/* Loads side by side: 16 cycles on a Cortex-M4, 14 on an M33. */
#define DSP_STEP(x0, x1, w0, w1, w2, w3) \
    "ldr r2, [r0, #" x0 "\n ldr r3, [r0, #" x1 "\n ldr r4, [r1, #" w0 "\n ldr r5, [r1, #" w1 "\n" \
    DSP_FIRST_CHANNEL DSP_SECOND_CHANNEL \
    "ldr r4, [r1, #" w2 "\n ldr r5, [r1, #" w3 "\n" \
    DSP_THIRD_CHANNEL "smlad r12, r5, r2, r12\n smlad lr, r5, r3, lr\n"
#define DSP_STEPS(numbers) \
    ".irp k, " numbers "\n" \
    DSP_STEP("(8 * \\k + 4)]", "(8 * \\k + 8)]", "(16 * \\k + 4)]", "(16 * \\k + 8)]", "(16 * \\k + 12)]", "(16 * \\k + 16)]") \
    ".endr\n"
#define DSP_EIGHT_STEPS \
    ".p2align 2\n" \
    "2:\n" \
    DSP_STEPS("0, 1, 2, 3, 4, 5, 6") \
    DSP_STEP("60]", "64]!", "116]", "120]", "124]", "128]!") \
    "ldr r4, [sp, #52]\n" \
    "cmp r0, r4\n" \
    "bne 2b\n"
#define DSP_TWO_STEPS \
    ".p2align 2\n" \
    "4:\n" \
    DSP_STEPS("0") \
    DSP_STEP("12]", "16]!", "20]", "24]", "28]", "32]!") \
    "ldr r4, [sp, #56]\n" \
    "cmp r0, r4\n" \
    "bne 4b\n"

#endif

/* A parameter that assembly alone uses. */
#define DSP_UNSEEN __attribute__((unused))

/* The dot products of groups of four output channels with the windows of two pixels.
 *
 * A group of `weights` is four biases, then for each step (two values of a window) a word a channel, then four multipliers. `x` holds for
 * each step a word a pixel; steps are an even number, at least 2. `x_last` is the last word of x, `x_eights` the last word of its whole
 * eights of steps (the word before x where there is none), `w_last` the last word of the last group.
 * to0 and to1 get four int8 a group: int8 saturation of zero_point + (acc * multiplier + 2^31) / 2^32 rounded down, multiplier 0..2^31-1.
 * Where to1 is NULL one group is computed and its accumulators go to to0 as eight int32, a channel's two pixels side by side.
 * Sums are modulo 2^32.
 * Fourteen registers are in use, so the arguments stay on the stack: x, weights, to0, to1 at 0..12, the others from 52 on. */
KQGEN_CODE static __attribute__((naked, noinline, used)) void dsp_groups(
    DSP_UNSEEN const uint32_t *x, DSP_UNSEEN const uint32_t *weights, DSP_UNSEEN void *to0, DSP_UNSEEN int8_t *to1,
    DSP_UNSEEN const uint32_t *x_eights, DSP_UNSEEN const uint32_t *x_last, DSP_UNSEEN const uint32_t *w_last,
    DSP_UNSEEN int32_t zero_point)
{
    __asm__ volatile(
        "push {r0-r11, lr}\n"
        "subs r0, #4\n"
        "str r0, [sp]\n"
        "subs r1, #4\n"
        "1:\n" /* a group: biases */
        "ldr r0, [sp]\n"
        "ldr r4, [sp, #52]\n"
        "ldr r6, [r1, #4]\n"
        "ldr r8, [r1, #8]\n"
        "ldr r10, [r1, #12]\n"
        "ldr r12, [r1, #16]!\n"
        "mov r7, r6\n"
        "mov r9, r8\n"
        "mov r11, r10\n"
        "mov lr, r12\n"
        "cmp r0, r4\n"
        "beq 3f\n"
        DSP_EIGHT_STEPS
        "3:\n"
        "ldr r4, [sp, #56]\n"
        "cmp r0, r4\n"
        "beq 5f\n"
        DSP_TWO_STEPS
        "5:\n" /* requantisation */
        "ldr r2, [sp, #8]\n"
        "ldr r3, [sp, #12]\n"
        "ldr r4, [sp, #64]\n"
        "ldr r0, [r1, #4]\n"
        "ldr r5, [r1, #8]\n"
        "cmp r3, #0\n"
        "beq 6f\n"
        "smmlar r6, r6, r0, r4\n"
        "smmlar r7, r7, r0, r4\n"
        "smmlar r8, r8, r5, r4\n"
        "smmlar r9, r9, r5, r4\n"
        "ldr r0, [r1, #12]\n"
        "ldr r5, [r1, #16]!\n"
        "smmlar r10, r10, r0, r4\n"
        "smmlar r11, r11, r0, r4\n"
        "smmlar r12, r12, r5, r4\n"
        "smmlar lr, lr, r5, r4\n"
        "ssat r6, #8, r6\n"
        "ssat r7, #8, r7\n"
        "ssat r8, #8, r8\n"
        "ssat r9, #8, r9\n"
        "ssat r10, #8, r10\n"
        "ssat r11, #8, r11\n"
        "ssat r12, #8, r12\n"
        "ssat lr, #8, lr\n"
        "strb r8, [r2, #1]\n"
        "strb r10, [r2, #2]\n"
        "strb r12, [r2, #3]\n"
        "strb r6, [r2], #4\n"
        "strb r9, [r3, #1]\n"
        "strb r11, [r3, #2]\n"
        "strb lr, [r3, #3]\n"
        "strb r7, [r3], #4\n"
        "str r2, [sp, #8]\n"
        "str r3, [sp, #12]\n"
        "ldr r4, [sp, #60]\n"
        "cmp r1, r4\n"
        "bne 1b\n"
        "add sp, #16\n"
        "pop {r4-r11, pc}\n"
        "6:\n" /* accumulators alone */
        "stm r2, {r6-r12, lr}\n"
        "add sp, #16\n"
        "pop {r4-r11, pc}\n");
}

#else

/* The sum of two products of int16, modulo 2^32: |product| <= 2^30. */
KQGEN_CODE static uint32_t two_products(uint32_t a, uint32_t b)
{
    const int32_t low = (int16_t)(a & 0xFFFFu) * (int16_t)(b & 0xFFFFu);
    const int32_t high = (int16_t)(a >> 16) * (int16_t)(b >> 16);
    return (uint32_t)low + (uint32_t)high;
}

/* floor((acc * multiplier + 2^31) / 2^32) from halves; multiplier 0..2^31-1. |high * any half| <= 2^15 * 65535 < 2^31. */
KQGEN_CODE static int32_t multiply_high(uint32_t acc, uint32_t multiplier)
{
    const int32_t high = kq_shift_down(kq_signed(acc), 16);
    const uint32_t low = acc & 0xFFFFu;
    const uint32_t m_high = multiplier >> 16;
    const uint32_t m_low = multiplier & 0xFFFFu;
    const uint32_t across = (uint32_t)high * m_low;
    const uint32_t along = low * m_high;
    const uint32_t carry = ((low * m_low) >> 16) + (across & 0xFFFFu) + (along & 0xFFFFu) + 0x8000u;
    return kq_signed((uint32_t)high * m_high + (uint32_t)kq_shift_down(kq_signed(across), 16) + (along >> 16) + (carry >> 16));
}

/* As above. */
KQGEN_CODE static KQ_NOINLINE void dsp_groups(
    const uint32_t *x, const uint32_t *weights, void *to0, int8_t *to1, const uint32_t *x_eights, const uint32_t *x_last,
    const uint32_t *w_last, int32_t zero_point)
{
    const uint32_t *w_end = w_last + 1;
    int8_t *to = to0;
    (void)x_eights;
    do {
        uint32_t acc[8];
        const uint32_t *from = x;
        uint32_t i;
        for (i = 0; i < 8u; ++i) {
            acc[i] = weights[i >> 1];
        }
        weights += 4;
        while (from != x_last + 1) {
            for (i = 0; i < 8u; ++i) {
                acc[i] += two_products(weights[i >> 1], from[i & 1u]);
            }
            from += 2;
            weights += 4;
        }
        for (i = 0; i < 8u; ++i) {
            if (to1 == NULL) {
                ((int32_t *)to0)[i] = kq_signed(acc[i]);
            } else {
                const int32_t value = kq_clamped(zero_point + multiply_high(acc[i], weights[i >> 1]), -128, 127);
                ((i & 1u) != 0 ? to1 : to)[i >> 1] = (int8_t)value;
            }
        }
        if (to1 == NULL) {
            return;
        }
        weights += 4;
        to += 4;
        to1 += 4;
    } while (weights != w_end);
}

#endif

/* The next multiple of 4. */
KQGEN_CODE static uint32_t round_up(uint32_t size)
{
    return (size + 3u) & ~(uint32_t)3u;
}

/* Widens a quad of one pixel; words of one pixel lie 2 apart. */
static KQ_INLINE void widen(uint32_t *to, uint32_t quad)
{
    to[0] = kq_even_values(quad);
    to[2] = kq_odd_values(quad);
}

/* Widens `quads` quads from each of `rows` places, at least 1, that lie `row_step` apart. Returns where the next go. */
KQGEN_CODE static KQ_NOINLINE uint32_t *widen_rows(uint32_t *to, const int8_t *from, uint32_t quads, uint32_t rows, uint32_t row_step)
{
    do {
        const int8_t *at = from;
        uint32_t left = quads;
        while (left >= 4u) {
            const uint32_t quad0 = kq_quad_at(at);
            const uint32_t quad1 = kq_quad_at(at + 4);
            const uint32_t quad2 = kq_quad_at(at + 8);
            const uint32_t quad3 = kq_quad_at(at + 12);
            widen(to, quad0);
            widen(to + 4, quad1);
            widen(to + 8, quad2);
            widen(to + 12, quad3);
            to += 16;
            at += 16;
            left -= 4u;
        }
        if ((left & 2u) != 0) {
            const uint32_t quad0 = kq_quad_at(at);
            const uint32_t quad1 = kq_quad_at(at + 4);
            widen(to, quad0);
            widen(to + 4, quad1);
            to += 8;
            at += 8;
        }
        if ((left & 1u) != 0) {
            widen(to, kq_quad_at(at));
            to += 4;
        }
        from += row_step;
        --rows;
    } while (rows != 0);
    return to;
}

/* A row of a window of which the values first..end-1 lie on the map, from `from` on; the others are padded. */
KQGEN_CODE static const int8_t *edge_row(const dsp_layer *layer, const int8_t *from, uint32_t first, uint32_t end)
{
    int8_t *row = layer->edge_row;
    const int8_t *pads = layer->pad_row;
    const int8_t *pads_end = pads + layer->row_values;
    int8_t *to = row;
    do {
        *to = *pads;
        ++to;
        ++pads;
    } while (pads != pads_end);
    to = row + end;
    row += first;
    from += end - first;
    while (to != row) {
        --to;
        --from;
        *to = *from;
    }
    return layer->edge_row;
}

/* Widens the window of one pixel, of which some taps may be padded: rows as `view` says, columns by where its leftmost one lies. */
KQGEN_CODE static KQ_NOINLINE void widen_edge(const dsp_layer *layer, const kq_view *view, int32_t left, uint32_t *to)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    uint32_t first;
    uint32_t end;
    uint32_t offset = view->base;
    int8_t *rests = layer->rests;
    uint32_t row;
    kq_valid_taps(left, window->k_w, window->w_in, &first, &end);
    first *= c_in;
    end *= c_in;
    offset += first;
    for (row = 0; row < window->k_h; ++row) {
        const int8_t *from = layer->pad_row;
        uint32_t quads = layer->row_quads;
        uint32_t i;
        if (end > first && row - view->row_lo < view->row_hi - view->row_lo) {
            const int8_t *inside = layer->input + offset;
            if ((c_in & 3u) != 0) {
                from = edge_row(layer, inside, first, end);
            } else {
                to = widen_rows(to, from, first >> 2, 1, 0);
                to = widen_rows(to, inside, (end - first) >> 2, 1, 0);
                quads -= end >> 2;
            }
        }
        to = widen_rows(to, from, quads, 1, 0);
        from += quads << 2;
        for (i = 0; i < layer->rest; ++i) {
            *rests = from[i];
            ++rests;
        }
        offset += (uint32_t)window->w_in * c_in;
    }
    widen_rows(to, layer->rests, layer->rest_quads, 1, 0);
}

/* Widens a window of three rows of nine values, that of a 3x3 kernel on three channels. */
KQGEN_CODE static KQ_NOINLINE void widen_nines(uint32_t *to, const int8_t *from, uint32_t row_step)
{
    const int8_t *second = from + row_step;
    const int8_t *third = second + row_step;
    const uint32_t quad0 = kq_quad_at(from);
    const uint32_t quad1 = kq_quad_at(from + 4);
    const uint32_t quad2 = kq_quad_at(second);
    const uint32_t quad3 = kq_quad_at(second + 4);
    const uint32_t quad4 = kq_quad_at(third);
    const uint32_t quad5 = kq_quad_at(third + 4);
    const uint32_t rest0 = (uint32_t)from[8];
    const uint32_t rest1 = (uint32_t)second[8];
    const uint32_t rest2 = (uint32_t)third[8];
    widen(to, quad0);
    widen(to + 4, quad1);
    widen(to + 8, quad2);
    widen(to + 12, quad3);
    widen(to + 16, quad4);
    widen(to + 20, quad5);
    to[24] = kq_low_halves(rest0, rest2);
    to[26] = rest1 & 0xFFFFu;
}

/* Limits `channels` results of one pixel that `row` holds, adds them to what `to` holds where the layer sums, and stores them there. */
KQGEN_CODE static KQ_NOINLINE void settle_row(const kq_requant *requant, const int8_t *row, uint32_t channels, int8_t *to)
{
    const int32_t lo = requant->lo;
    const int32_t hi = requant->hi;
    const int8_t *end = row + channels;
    if (requant->sum == NULL) {
        while (row != end) {
            *to = (int8_t)kq_clamped(*row, lo, hi);
            ++row;
            ++to;
        }
    } else {
        const kq_add sum = *requant->sum;
        while (row != end) {
            *to = (int8_t)kq_summed(&sum, kq_clamped(*row, lo, hi), *to);
            ++row;
            ++to;
        }
    }
}

/* Output channels first..first+channels-1 of `pixels` pixels, 2 or 1, whose windows are widened, by way of two rows in scratch; `to` is
 * where the first pixel's first result goes.
 */
KQGEN_CODE static DSP_SMALL void convolve_by_rows(
    const dsp_layer *layer, uint32_t first, uint32_t channels, uint32_t pixels, int8_t *to)
{
    const kq_requant *requant = layer->requant;
    const uint32_t *weights = layer->groups;
    const uint32_t whole = round_up(channels);
    int8_t *row = layer->rows;
    uint32_t done = 0;
    if (layer->ready) {
        dsp_groups(
            layer->x, weights, row, row + whole, layer->x_eights, layer->x_last, weights + (whole >> 2) * layer->group_words - 1,
            requant->zero_point);
        done = channels;
    }
    while (done < channels) {
        uint32_t acc[2u * DSP_GROUP];
        uint32_t i;
        dsp_groups(layer->x, weights, acc, NULL, layer->x_eights, layer->x_last, weights, 0);
        weights += layer->group_words;
        for (i = 0; i < 2u * DSP_GROUP && done + (i >> 1) < channels; ++i) {
            row[done + (i >> 1) + ((i & 1u) != 0 ? whole : 0)] = kq_requantise(acc[i], requant, first + done + (i >> 1));
        }
        done += DSP_GROUP;
    }
    do {
        settle_row(requant, row, channels, to);
        row += whole;
        to += layer->window->c_out;
        --pixels;
    } while (pixels != 0);
}

/* Output channels first..first+channels-1 of all pixels by the groups in scratch. */
KQGEN_CODE static KQ_NOINLINE void convolve(const dsp_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_window *window = layer->window;
    const kq_requant *requant = layer->requant;
    const uint32_t c_out = window->c_out;
    const uint32_t row_step = (uint32_t)window->w_in * window->c_in;
    const uint32_t *w_last = layer->groups + (channels >> 2) * layer->group_words - 1;
    const int straight = layer->ready && (channels & 3u) == 0 && requant->sum == NULL && requant->hi - requant->lo == INT8_MAX - INT8_MIN;
    const int nines = layer->row_values == 9u && window->k_h == 3;
    int8_t *to = layer->output + first;
    uint32_t waiting = 0;
    kq_pixel pixel;
    for (pixel.y = 0; pixel.y < window->h_out; ++pixel.y) {
        kq_view view;
        int32_t left = -(int32_t)window->pad_left;
        int whole;
        pixel.x = 0;
        view = kq_view_at(window, pixel);
        whole = view.row_hi - view.row_lo == window->k_h && (nines || layer->rest == 0);
        for (; pixel.x < window->w_out; ++pixel.x) {
            uint32_t *words = layer->x + waiting;
            const int8_t *from = layer->input + view.base;
            if (!whole || left < 0 || left + window->k_w > window->w_in) {
                widen_edge(layer, &view, left, words);
            } else if (nines) {
                widen_nines(words, from, row_step);
            } else {
                widen_rows(words, from, layer->row_quads, window->k_h, row_step);
            }
            left += window->stride_w;
            view.base += (uint32_t)window->stride_w * window->c_in;
            waiting ^= 1u;
            if (waiting == 0) {
                if (straight) {
                    dsp_groups(layer->x, layer->groups, to, to + c_out, layer->x_eights, layer->x_last, w_last, requant->zero_point);
                } else {
                    convolve_by_rows(layer, first, channels, 2, to);
                }
                to += 2u * c_out;
            }
        }
    }
    if (waiting != 0) {
        convolve_by_rows(layer, first, channels, 1, to);
    }
}

/* Writes biases and multipliers of the groups of output channels first..first+channels-1, and zeros as weights of a group that is not full
 * or whose windows may not fill their quads. `ready`: SPEC 3.2 is one multiplication by m * 2^(16 + acc_shift - shift) wherever that is an
 * integer below 2^31.
 */
KQGEN_CODE static DSP_SMALL void prepare_groups(dsp_layer *layer, uint32_t first, uint32_t channels)
{
    const kq_requant *requant = layer->requant;
    const uint32_t base = 16u + requant->acc_shift;
    uint32_t *group = layer->groups;
    uint32_t o = 0;
    layer->ready = 1;
    while (o < channels) {
        uint32_t *multipliers = group + layer->group_words - 4;
        uint32_t i;
        if (channels - o < DSP_GROUP || layer->rest != 0) {
            uint32_t *word = group;
            while (word != multipliers) {
                *word = 0;
                ++word;
            }
        }
        for (i = 0; i < DSP_GROUP && o < channels; ++i) {
            const uint32_t channel = first + o;
            const uint32_t up = base - requant->shift[channel];
            group[i] = (uint32_t)requant->bias[channel];
            multipliers[i] = (uint32_t)requant->multiplier[channel] << (up & 31u);
            if (up > 16u) {
                layer->ready = 0;
            }
            ++o;
        }
        group += layer->group_words;
    }
}

/* Fills a layer but for what `groups` holds, with the parts of scratch up to the groups laid out from `scratch` on. */
KQGEN_CODE static DSP_SMALL void lay_out(dsp_layer *layer, const int8_t *pad_values, int8_t pad_value, int8_t *scratch)
{
    const kq_window *window = layer->window;
    const uint32_t c_in = window->c_in;
    const uint32_t row_values = c_in * window->k_w;
    const uint32_t rest = row_values & 3u;
    const uint32_t row_bytes = round_up(row_values);
    const uint32_t rests = rest * window->k_h;
    uint32_t channel = 0;
    uint32_t i;
    layer->row_values = row_values;
    layer->row_quads = row_values >> 2;
    layer->rest = rest;
    layer->rest_quads = round_up(rests) >> 2;
    layer->quads = layer->row_quads * window->k_h + layer->rest_quads;
    layer->group_words = 8u + (layer->quads << 3);
    layer->pad_row = scratch;
    layer->edge_row = layer->pad_row + row_bytes;
    layer->rows = layer->edge_row + row_bytes;
    layer->rests = layer->rows + 2u * round_up(window->tile);
    layer->x = (uint32_t *)(void *)(layer->rests + round_up(rests));
    layer->groups = layer->x + (layer->quads << 2);
    layer->x_last = layer->groups - 1;
    layer->x_eights = layer->x_last - ((layer->quads << 2) & (2u * DSP_EIGHT - 1u));
    for (i = 0; i < row_values; ++i) {
        layer->pad_row[i] = kq_pad(pad_values, pad_value, channel);
        ++channel;
        if (channel == c_in) {
            channel = 0;
        }
    }
    for (i = rests; i < round_up(rests); ++i) {
        layer->rests[i] = 0;
    }
}

/* The words of channel `channel` of a tile in its group: the first of them, others lie 4 apart. */
KQGEN_CODE static uint32_t *channel_words(const dsp_layer *layer, uint32_t channel)
{
    return layer->groups + (channel >> 2) * layer->group_words + 4 + (channel & 3u);
}

/* The next `count` weights of a table, 0 to 4, as a quad; those that are missing are 0. */
KQGEN_CODE static DSP_SMALL uint32_t next_weights(kq_bit_reader *reader, uint32_t bits, uint32_t count)
{
    uint32_t quad = 0;
    uint32_t at;
    for (at = 0; at < count << 3; at += 8u) {
        quad |= ((uint32_t)kq_sign_extend(kq_bits_next(reader, bits), bits) & 0xFFu) << at;
    }
    return quad;
}

/* Widens the uniform weights of `channels` output channels, which `reader` stands at. */
KQGEN_CODE static DSP_SMALL void widen_uniform(const dsp_layer *layer, kq_bit_reader *reader, uint32_t bits, uint32_t channels)
{
    uint32_t o;
    for (o = 0; o < channels; ++o) {
        uint32_t *to = channel_words(layer, o);
        int8_t *rests = layer->rests;
        uint32_t row;
        uint32_t i;
        for (row = 0; row < layer->window->k_h; ++row) {
            uint32_t rest;
            for (i = layer->row_quads; i != 0; --i) {
                uint32_t quad;
                if (bits == 4u && reader->held_bits == 0) {
                    const uint32_t packed = reader->next[0] | (uint32_t)reader->next[1] << 8;
                    reader->next += 2;
                    quad = (packed & 0xFu) | (packed & 0xF0u) << 4 | (packed & 0xF00u) << 8 | (packed & 0xF000u) << 12;
                    quad = kq_signed_quad(quad, 4u);
                } else {
                    quad = next_weights(reader, bits, 4);
                }
                to[0] = kq_even_values(quad);
                to[4] = kq_odd_values(quad);
                to += 8;
            }
            rest = next_weights(reader, bits, layer->rest);
            for (i = layer->rest; i != 0; --i) {
                *rests = (int8_t)(rest & 0xFFu);
                ++rests;
                rest >>= 8;
            }
        }
        rests = layer->rests;
        for (i = layer->rest_quads; i != 0; --i) {
            const uint32_t quad = kq_quad_at(rests);
            to[0] = kq_even_values(quad);
            to[4] = kq_odd_values(quad);
            to += 8;
            rests += 4;
        }
    }
}

/* Uniform weights (SPEC 6.5); scratch as SPEC 6.4. window.tile: output channels, at least 1. */
KQGEN_CODE static void dsp_uniform(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t tile = window->tile;
    kq_bit_reader reader = kq_bits_at(conv->weights, 0, conv->bits);
    dsp_layer layer;
    uint32_t first;
    layer.window = window;
    layer.requant = &conv->requant;
    layer.input = input;
    layer.output = output;
    lay_out(&layer, conv->pad_values, conv->pad_value, scratch);
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        prepare_groups(&layer, first, channels);
        widen_uniform(&layer, &reader, conv->bits, channels);
        convolve(&layer, first, channels);
    }
}

/* How the kernels of a layer are read. */
typedef struct {
    const kq_conv2d_kq *conv;
    const int8_t *book;        /* the codewords that indices can name as bytes, or NULL: they are unpacked where they are used */
    const int8_t *second_book; /* those of the second stage, or NULL */
    int8_t *own;               /* room for two kernels */
    int8_t *addend;            /* and for a codeword */
    uint32_t n;
    uint32_t code_bits;
} dsp_kernels;

/* Unpacks the codebook's `count` values from number `entry` on, and zeros up to a whole quad. */
KQGEN_CODE static KQ_NOINLINE void unpack_values(const uint8_t *codebook, uint32_t entry, uint32_t count, int8_t *to)
{
    uint32_t *quads = (uint32_t *)(void *)to;
    kq_bit_reader reader = kq_bits_at(codebook, entry, DSP_CODEBOOK_BITS);
    if (reader.held_bits == 0) {
        /* Behind three bytes of four values the next one has its byte, so that a whole word can be read. */
        while (count > 4u) {
            *quads = kq_quad_of_6_bits(kq_quad_at((const int8_t *)reader.next));
            ++quads;
            reader.next += 3;
            count -= 4u;
        }
    }
    while (count >= 4u) {
        *quads = next_weights(&reader, DSP_CODEBOOK_BITS, 4);
        ++quads;
        count -= 4u;
    }
    if (count != 0) {
        *quads = next_weights(&reader, DSP_CODEBOOK_BITS, count);
    }
}

/* Codeword `code` of a stage as bytes, where the book holds it, or in `own`; the stage's first is number `start` of the codebook. */
KQGEN_CODE static const int8_t *codeword_bytes(const dsp_kernels *kernels, const int8_t *book, uint32_t start, uint32_t code, int8_t *own)
{
    const uint32_t n = kernels->n;
    if (book != NULL) {
        return book + code * n;
    }
    unpack_values(kernels->conv->codebook, (start + code) * n, n, own);
    return own;
}

/* The kernel that an index names, its sign left out, as bytes: where the book holds it, or in `own`. */
KQGEN_CODE static KQ_NOINLINE const int8_t *kernel_bytes(const dsp_kernels *kernels, uint32_t index, int8_t *own)
{
    const kq_conv2d_kq *conv = kernels->conv;
    const uint32_t stage_bits = kernels->code_bits >> (conv->stages - 1u);
    const uint32_t stage_mask = ((uint32_t)1 << stage_bits) - 1u;
    const int8_t *first = codeword_bytes(kernels, kernels->book, 0, index & stage_mask, own);
    if (conv->stages == 2u) {
        const int8_t *second =
            codeword_bytes(kernels, kernels->second_book, conv->codewords, (index >> stage_bits) & stage_mask, kernels->addend);
        uint32_t t;
        for (t = 0; t < kernels->n; ++t) {
            own[t] = (int8_t)(first[t] + second[t]);
        }
        return own;
    }
    return first;
}

/* Widens two kernels of one output channel, of input channels two apart in a quad: their words of tap after tap lie `step` apart. Flips:
 * all bits set to negate.
 */
static KQ_INLINE void widen_kernels(
    uint32_t *to, uint32_t step, const int8_t *low, const int8_t *high, uint32_t n, uint32_t low_flip, uint32_t high_flip)
{
    const int8_t *end = low + n;
    while (low + 3 < end) {
        const uint32_t low_quad = kq_flipped_quad(kq_quad_at(low), low_flip);
        const uint32_t high_quad = kq_flipped_quad(kq_quad_at(high), high_flip);
        const uint32_t low_even = kq_even_values(low_quad);
        const uint32_t low_odd = kq_odd_values(low_quad);
        const uint32_t high_even = kq_even_values(high_quad);
        const uint32_t high_odd = kq_odd_values(high_quad);
        *to = kq_low_halves(low_even, high_even);
        to += step;
        *to = kq_low_halves(low_odd, high_odd);
        to += step;
        *to = kq_high_halves(low_even, high_even);
        to += step;
        *to = kq_high_halves(low_odd, high_odd);
        to += step;
        low += 4;
        high += 4;
    }
    while (low != end) {
        *to = kq_low_halves(((uint32_t)*low ^ low_flip) - low_flip, ((uint32_t)*high ^ high_flip) - high_flip);
        to += step;
        ++low;
        ++high;
    }
}

/* Puts a reader before index number `entry`. */
KQGEN_CODE static KQ_NOINLINE void start_indices(kq_bit_reader *reader, const kq_conv2d_kq *conv, uint32_t entry)
{
    *reader = kq_bits_at(conv->indices, entry, conv->index_bits);
}

/* Reads the next `count` indices: kq_bits_next, in line in every build. */
KQGEN_CODE static KQ_NOINLINE void read_indices(kq_bit_reader *reader, uint32_t bits, uint32_t count, uint32_t *indices)
{
    const uint32_t mask = ((uint32_t)1 << bits) - 1u;
    const uint8_t *next = reader->next;
    uint32_t held = reader->held;
    uint32_t held_bits = reader->held_bits;
    const uint32_t *end = indices + count;
    while (indices != end) {
        while (held_bits < bits) {
            held |= (uint32_t)*next << held_bits;
            ++next;
            held_bits += 8u;
        }
        *indices = held & mask;
        ++indices;
        held >>= bits;
        held_bits -= bits;
    }
    reader->next = next;
    reader->held = held;
    reader->held_bits = held_bits;
}

/* Widens the kernels of output channels first..first+channels-1 where input channels fill whole quads. */
KQGEN_CODE static KQ_NOINLINE void widen_quads_of_kernels(
    const dsp_layer *layer, const dsp_kernels *kernels, uint32_t first, uint32_t channels)
{
    const kq_conv2d_kq *conv = kernels->conv;
    const uint32_t bits = conv->index_bits;
    const uint32_t c_in = layer->window->c_in;
    const uint32_t c_out = layer->window->c_out;
    const uint32_t n = kernels->n;
    const uint32_t code_bits = kernels->code_bits;
    const uint32_t code_mask = ((uint32_t)1 << code_bits) - 1u;
    const int ready_made = kernels->book != NULL && conv->stages != 2u;
    uint32_t pair;
    for (pair = 0; pair < c_in >> 1; ++pair) {
        const uint32_t channel = ((pair & ~(uint32_t)1u) << 1) + (pair & 1u);
        uint32_t *group = layer->groups + 4 + (pair << 2);
        uint32_t left = channels;
        kq_bit_reader low;
        kq_bit_reader high;
        start_indices(&low, conv, channel * c_out + first);
        start_indices(&high, conv, (channel + 2u) * c_out + first);
        do {
            const uint32_t count = left < DSP_GROUP ? left : DSP_GROUP;
            uint32_t indices[2u * DSP_GROUP];
            uint32_t i;
            read_indices(&low, bits, count, indices);
            read_indices(&high, bits, count, indices + DSP_GROUP);
            for (i = 0; i < count; ++i) {
                const uint32_t low_index = indices[i];
                const uint32_t high_index = indices[i + DSP_GROUP];
                const int8_t *low_kernel = kernels->book + (low_index & code_mask) * n;
                const int8_t *high_kernel = kernels->book + (high_index & code_mask) * n;
                if (!ready_made) {
                    low_kernel = kernel_bytes(kernels, low_index, kernels->own);
                    high_kernel = kernel_bytes(kernels, high_index, kernels->own + round_up(n));
                }
                widen_kernels(
                    group + i, c_in << 1, low_kernel, high_kernel, n, 0u - (low_index >> code_bits), 0u - (high_index >> code_bits));
            }
            group += layer->group_words;
            left -= count;
        } while (left != 0);
    }
}

/* As widen_quads_of_kernels for any number of input channels: value by value, to the place SPEC 6.5 gives it. */
KQGEN_CODE static DSP_SMALL void widen_single_kernels(
    const dsp_layer *layer, const dsp_kernels *kernels, uint32_t first, uint32_t channels)
{
    const kq_conv2d_kq *conv = kernels->conv;
    const kq_window *window = layer->window;
    const uint32_t bits = conv->index_bits;
    const uint32_t row_whole = layer->row_quads << 2;
    uint32_t channel;
    for (channel = 0; channel < window->c_in; ++channel) {
        kq_bit_reader reader;
        uint32_t o;
        start_indices(&reader, conv, channel * window->c_out + first);
        for (o = 0; o < channels; ++o) {
            uint32_t index;
            const int8_t *kernel;
            int16_t *to = (int16_t *)(void *)channel_words(layer, o);
            uint32_t row;
            read_indices(&reader, bits, 1, &index);
            kernel = kernel_bytes(kernels, index, kernels->own);
            for (row = 0; row < window->k_h; ++row) {
                uint32_t in_row;
                for (in_row = channel; in_row < layer->row_values; in_row += window->c_in) {
                    const uint32_t rests = row_whole * window->k_h + layer->rest * row - row_whole;
                    const uint32_t place = in_row + (in_row < row_whole ? row_whole * row : rests);
                    const uint32_t half = ((place >> 2) << 4) + ((place & 1u) << 3) + ((place >> 1) & 1u);
                    to[half] = (int16_t)(index >> kernels->code_bits != 0 ? -*kernel : *kernel);
                    ++kernel;
                }
            }
        }
    }
}

/* Indexed kernels (SPEC 6.5); scratch as SPEC 6.4. window.tile: output channels, at least 1; strip: 1 unpacks the codebook first. */
KQGEN_CODE static void dsp_indexed(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    const kq_window *window = &conv->window;
    const uint32_t c_out = window->c_out;
    const uint32_t tile = window->tile;
    const uint32_t n = (uint32_t)window->k_h * window->k_w;
    int8_t *own = scratch;
    dsp_layer layer;
    dsp_kernels kernels;
    uint32_t first;
    layer.window = window;
    layer.requant = &conv->requant;
    layer.input = input;
    layer.output = output;
    kernels.conv = conv;
    kernels.book = NULL;
    kernels.second_book = NULL;
    kernels.own = own;
    kernels.addend = own + 2u * round_up(n);
    kernels.n = n;
    kernels.code_bits = (uint32_t)conv->index_bits - conv->sign;
    lay_out(&layer, conv->pad_values, conv->pad_value, kernels.addend + round_up(n));
    if (conv->strip != 0) {
        const uint32_t named = (uint32_t)1 << (kernels.code_bits >> (conv->stages - 1u));
        const uint32_t values = (named < conv->codewords ? named : conv->codewords) * n;
        int8_t *book = (int8_t *)(layer.groups + (round_up(tile) >> 2) * layer.group_words);
        int8_t *second_book = book + round_up(values);
        unpack_values(conv->codebook, 0, values, book);
        kernels.book = book;
        if (conv->stages == 2u) {
            unpack_values(conv->codebook, conv->codewords * n, values, second_book);
            kernels.second_book = second_book;
        }
    }
    for (first = 0; first < c_out; first += tile) {
        const uint32_t channels = c_out - first < tile ? c_out - first : tile;
        prepare_groups(&layer, first, channels);
        if ((window->c_in & 3u) == 0) {
            widen_quads_of_kernels(&layer, &kernels, first, channels);
        } else {
            widen_single_kernels(&layer, &kernels, first, channels);
        }
        convolve(&layer, first, channels);
    }
}

#endif
