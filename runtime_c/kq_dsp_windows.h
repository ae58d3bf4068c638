/* Windows of the forms for cores with the DSP extension (SPEC 6.5): their values widened to int16, padded taps filled in. */
#ifndef KQ_DSP_WINDOWS_H
#define KQ_DSP_WINDOWS_H

#include "kq_dsp.h"
#include "kq_fixed.h"
#include "kq_window.h"

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
    uint32_t group_words; /* of a group: 4 biases, 8 words a quad, 4 multipliers, and rule_words */
    int ready;            /* the multipliers of the tile's groups hold */
#if KQ_WITH_TFLITE
    uint32_t rule_words; /* 4 where results are rounded twice (SPEC 3.5): of a group, shifts behind the multipliers; else 0 */
#endif
} dsp_layer;

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

#endif
