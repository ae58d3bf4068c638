/* Form `reuse`: tables of dot products with eight 3x3 windows side by side. */
#ifndef KQ_REUSE_SLIDE_H
#define KQ_REUSE_SLIDE_H

#include "kq_reuse.h"
#include "kq_window.h"

/* A codeword's record (kq_reuse.h) from its nine values plus 32. */
KQGEN_CODE static void make_record(const uint8_t *kernel, uint32_t *record)
{
    const uint32_t last_row = (uint32_t)kernel[6] + kernel[7] + kernel[8] - 3u * KQ_WEIGHT_OFFSET;
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        record[i] = (((uint32_t)kernel[i] - KQ_WEIGHT_OFFSET) & 0xFFFFu) | ((uint32_t)kernel[i + 3u] - KQ_WEIGHT_OFFSET) << 16;
    }
    record[3] = (((uint32_t)kernel[6] - KQ_WEIGHT_OFFSET) & 0xFFFFu) | ((uint32_t)kernel[7] - KQ_WEIGHT_OFFSET) << 16;
    record[4] = (uint32_t)kernel[8] - KQ_WEIGHT_OFFSET;
    record[5] = KQ_LANE_OFFSET - last_row * (128u + (128u << 16));
}

/* Eight windows side by side: where the three rows they cover lie, and whether the outer two of their ten columns are on the map. */
typedef struct {
    uint32_t rows[3]; /* offset of the second column's first channel in the input; where a row is padded, of the map's first row's */
    uint32_t padded;  /* bit r: row r is */
    uint32_t step;    /* from one column to the next */
    uint32_t left, right;
} slide_view;

/* The windows of eight pixels from `pixel` on, side by side. */
KQGEN_CODE static slide_view slide_view_at(const kq_window *window, kq_pixel pixel)
{
    slide_view slide;
    const kq_pixel last = {pixel.y, pixel.x + KQ_REUSE_PIXELS - 1u};
    const kq_view view = kq_view_at(window, pixel);
    const kq_view end = kq_view_at(window, last);
    const uint32_t step = window->c_in;
    uint32_t offset = view.base + step;
    uint32_t row;
    slide.padded = 0;
    for (row = 0; row < 3u; ++row) {
        slide.rows[row] = offset;
        if (row - view.row_lo >= view.row_hi - view.row_lo) {
            slide.rows[row] = (pixel.x + 1u - window->pad_left) * step;
            slide.padded |= (uint32_t)1 << row;
        }
        offset += window->w_in * step;
    }
    slide.step = step;
    slide.left = view.col_lo == 0;
    slide.right = end.col_hi == 3u;
    return slide;
}

/* Two int16 in a word, the first in the low half. */
KQGEN_CODE static inline uint32_t halves(int8_t low, int8_t high)
{
    return ((uint32_t)low & 0xFFFFu) | (uint32_t)high << 16;
}

/* x + 128. */
KQGEN_CODE static inline uint32_t plus_128(int8_t x)
{
    return (uint8_t)x ^ 0x80u;
}

/* Replaces halves of ten columns' words, every second word from `words` on, by `value`: those whose bits `keep` lacks. */
static KQ_INLINE void pad_row(uint32_t *words, uint32_t keep, uint32_t value)
{
    uint32_t *const stop = words + 2u * KQ_REUSE_COLUMNS;
    value &= ~keep;
    do {
        words[0] = (words[0] & keep) | value;
        words[2] = (words[2] & keep) | value;
        words[4] = (words[4] & keep) | value;
        words[6] = (words[6] & keep) | value;
        words[8] = (words[8] & keep) | value;
        words += 10;
    } while (words != stop);
}

/* Window words (kq_reuse.h) of one input channel, at which `input` points for the first position. 190 cycles on a Cortex-M4. */
KQGEN_CODE static KQ_NOINLINE void fill_window(const slide_view *slide, const int8_t *input, int8_t pad, uint32_t *words)
{
    const int8_t *const row0 = input + slide->rows[0];
    const int8_t *const row1 = input + slide->rows[1];
    const int8_t *const row2 = input + slide->rows[2];
    const uint32_t step = slide->step;
    uint32_t *const first = words;
    uint32_t *const last = words + 16;
    uint32_t at = 0;
    uint32_t before = plus_128(pad);
    words[0] = halves(pad, pad);
    if (slide->left != 0) {
        words[0] = halves(*(row0 - step), *(row1 - step));
        before = plus_128(*(row2 - step));
    }
    do {
        const uint32_t x2 = plus_128(row2[at]);
        words[2] = halves(row0[at], row1[at]);
        words[1] = before | x2 << 16;
        at += step;
        before = plus_128(row2[at]);
        words[4] = halves(row0[at], row1[at]);
        words[3] = x2 | before << 16;
        at += step;
        words += 4;
    } while (words != last);
    words[2] = halves(pad, pad);
    words[1] = before | plus_128(pad) << 16;
    if (slide->right != 0) {
        words[2] = halves(row0[at], row1[at]);
        words[1] = before | plus_128(row2[at]) << 16;
    }
    if (slide->padded != 0) {
        if ((slide->padded & 1u) != 0) {
            pad_row(first, 0xFFFF0000u, halves(pad, pad));
        }
        if ((slide->padded & 2u) != 0) {
            pad_row(first, 0x0000FFFFu, halves(pad, pad));
        }
        if ((slide->padded & 4u) != 0) {
            pad_row(first + 1, 0, plus_128(pad) * 0x10001u);
        }
    }
}

/* The table of all codewords for eight 3x3 windows side by side: entry i of codeword i, and of minus it where `negative` is not NULL.
 * `records` and `window` as in kq_reuse.h.
 *
 * 87 cycles a codeword on a Cortex-M4, 36 of them products: four SMLAD for each of eight pixels, and MLA for the ninth tap of two at once,
 * which their words' unsigned halves allow. The window lies on the stack meanwhile.
 */
KQGEN_CODE static KQ_NOINLINE void kq_reuse_slide(
    const uint32_t *records, uint32_t codewords, const uint32_t *window, uint32_t *positive, uint32_t *negative)
{
#if defined(__ARM_FEATURE_DSP)
    register const uint32_t *from __asm__("r0") = records;
    register const uint32_t *x __asm__("r2") = window;
    register uint32_t *plus __asm__("r3") = positive;
    register uint32_t *minus __asm__("r4") = negative == NULL ? positive : negative; /* positive entries are stored after negative ones */
    (void)codewords;
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "sub sp, #80\n"
        "str r0, [sp, #76]\n"
        "mov r0, r3\n"
        "mov r1, r4\n"
        "ldm r2!, {r3-r12}\n"
        "stm sp, {r3-r12}\n"
        "ldm r2!, {r3-r11}\n"
        "add r2, sp, #40\n"
        "stm r2, {r3-r11}\n"
        "ldr r4, [sp, #76]\n"
        "ldr r2, [sp, #0]\n"
        "ldr r3, [sp, #8]\n"
        "ldr r6, [sp, #4]\n"
        "ldr.w r10, [r4, #4]\n"
        "ldr.w r11, [r4, #8]\n"
        "ldr.w r12, [r4, #12]\n"
        "ldr.w lr, [r4, #16]\n"
        "ldr.w r8, [r4, #20]\n"
        "ldr.w r9, [r4], #24\n"
        "str r4, [sp, #76]\n"
        ".p2align 2\n"
        "1:\n"
        "smlad r2, r9, r2, r8\n"
        "smlad r2, r12, r6, r2\n"
        "ldr r4, [sp, #16]\n"
        "ldr r5, [sp, #24]\n"
        "ldr r7, [sp, #12]\n"
        "ldr r6, [sp, #20]\n"
        "smlad r2, r10, r3, r2\n"
        "smlad r2, r11, r4, r2\n"
        "smuad r3, r9, r3\n"
        "smlad r3, r10, r4, r3\n"
        "smlad r3, r11, r5, r3\n"
        "smlad r3, r12, r7, r3\n"
        "add.w r2, r2, r3, lsl #16\n"
        "mla r2, lr, r6, r2\n"
        "rsb.w r3, r2, #0x10000\n"
        "str.w r3, [r1], #4\n"
        "str.w r2, [r0], #4\n"
        "smlad r4, r9, r4, r8\n"
        "smlad r4, r12, r6, r4\n"
        "ldr r2, [sp, #32]\n"
        "ldr r3, [sp, #40]\n"
        "ldr r7, [sp, #28]\n"
        "ldr r6, [sp, #36]\n"
        "smlad r4, r10, r5, r4\n"
        "smlad r4, r11, r2, r4\n"
        "smuad r5, r9, r5\n"
        "smlad r5, r10, r2, r5\n"
        "smlad r5, r11, r3, r5\n"
        "smlad r5, r12, r7, r5\n"
        "add.w r4, r4, r5, lsl #16\n"
        "mla r4, lr, r6, r4\n"
        "rsb.w r5, r4, #0x10000\n"
        "str.w r5, [r1], #4\n"
        "str.w r4, [r0], #4\n"
        "smlad r2, r9, r2, r8\n"
        "smlad r2, r12, r6, r2\n"
        "ldr r4, [sp, #48]\n"
        "ldr r5, [sp, #56]\n"
        "ldr r7, [sp, #44]\n"
        "ldr r6, [sp, #52]\n"
        "smlad r2, r10, r3, r2\n"
        "smlad r2, r11, r4, r2\n"
        "smuad r3, r9, r3\n"
        "smlad r3, r10, r4, r3\n"
        "smlad r3, r11, r5, r3\n"
        "smlad r3, r12, r7, r3\n"
        "add.w r2, r2, r3, lsl #16\n"
        "mla r2, lr, r6, r2\n"
        "rsb.w r3, r2, #0x10000\n"
        "str.w r3, [r1], #4\n"
        "str.w r2, [r0], #4\n"
        "smlad r4, r9, r4, r8\n"
        "smlad r4, r12, r6, r4\n"
        "ldr r2, [sp, #64]\n"
        "ldr r3, [sp, #72]\n"
        "ldr r7, [sp, #60]\n"
        "ldr r6, [sp, #68]\n"
        "smlad r4, r10, r5, r4\n"
        "smlad r4, r11, r2, r4\n"
        "smuad r5, r9, r5\n"
        "smlad r5, r10, r2, r5\n"
        "smlad r5, r11, r3, r5\n"
        "smlad r5, r12, r7, r5\n"
        "add.w r4, r4, r5, lsl #16\n"
        "mla r4, lr, r6, r4\n"
        "rsb.w r5, r4, #0x10000\n"
        "str.w r5, [r1], #4\n"
        "str.w r4, [r0], #4\n"
        "ldr r4, [sp, #76]\n"
        "ldr r2, [sp, #0]\n"
        "ldr r3, [sp, #8]\n"
        "ldr r6, [sp, #4]\n"
        "ldr.w r10, [r4, #4]\n"
        "ldr.w r11, [r4, #8]\n"
        "ldr.w r12, [r4, #12]\n"
        "ldr.w lr, [r4, #16]\n"
        "ldr.w r8, [r4, #20]\n"
        "ldr.w r9, [r4], #24\n"
        "str r4, [sp, #76]\n"
        "lsls r5, r8, #31\n"
        "beq.w 1b\n"
        "add sp, #80\n"
        "pop {r7}\n"
        : "+r"(from), "+r"(x), "+r"(plus), "+r"(minus)
        :
        : "r1", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    uint32_t code;
    for (code = 0; code < codewords; ++code) {
        uint32_t pair;
        for (pair = 0; pair < KQ_REUSE_PAIRS; ++pair) {
            uint32_t dots[2];
            uint32_t i;
            for (i = 0; i < 2u; ++i) {
                const uint32_t *x = window + 4u * pair + 2u * i;
                uint32_t dot = 0;
                uint32_t column;
                for (column = 0; column < 3u; ++column) {
                    dot += (uint32_t)((int32_t)(int16_t)(records[column] & 0xFFFFu) * (int16_t)(x[2u * column] & 0xFFFFu));
                    dot += (uint32_t)(kq_shift_down(kq_signed(records[column]), 16) * kq_shift_down(kq_signed(x[2u * column]), 16));
                }
                dot += (uint32_t)((int32_t)(int16_t)(records[3] & 0xFFFFu) * (int16_t)(x[1] & 0xFFFFu));
                dot += (uint32_t)(kq_shift_down(kq_signed(records[3]), 16) * kq_shift_down(kq_signed(x[1]), 16));
                dots[i] = dot;
            }
            positive[pair] = records[5] + dots[0] + (dots[1] << 16) + records[4] * window[4u * pair + 5u];
            if (negative != NULL) {
                negative[pair] = 0x10000u - positive[pair];
            }
        }
        records += KQ_REUSE_RECORD;
        positive += KQ_REUSE_ENTRY;
        negative = negative == NULL ? NULL : negative + KQ_REUSE_ENTRY;
    }
#endif
}

#endif
