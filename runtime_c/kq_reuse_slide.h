/* Form `reuse`: tables of dot products with eight 3x3 windows side by side. */
#ifndef KQ_REUSE_SLIDE_H
#define KQ_REUSE_SLIDE_H

#include "kq_reuse.h"
#include "kq_window.h"

/* A codeword's record (kq_reuse.h) from its nine values plus 32. */
KQGEN_CODE static void make_record(const uint8_t *kernel, uint32_t *record)
{
    uint32_t i;
    for (i = 0; i < 3u; ++i) {
        record[i] = (((uint32_t)kernel[i] - KQ_WEIGHT_OFFSET) & 0xFFFFu) | ((uint32_t)kernel[i + 3u] - KQ_WEIGHT_OFFSET) << 16;
    }
    record[3] = (((uint32_t)kernel[6] - KQ_WEIGHT_OFFSET) & 0xFFFFu) | ((uint32_t)kernel[7] - KQ_WEIGHT_OFFSET) << 16;
    record[4] = ((uint32_t)kernel[8] - KQ_WEIGHT_OFFSET) & 0xFFFFu;
}

/* Eight windows side by side: where the three rows they cover lie, and whether the outer two of their ten columns are on the map. */
typedef struct {
    uint32_t rows[3];  /* offset of the second column's first channel in the input */
    uint32_t steps[3]; /* from one column to the next; 0 where the row is padded */
    uint32_t left, right;
} slide_view;

/* The windows of eight pixels from `pixel` on, side by side. */
KQGEN_CODE static slide_view slide_view_at(const kq_window *window, kq_pixel pixel)
{
    slide_view slide;
    const kq_pixel last = {pixel.y, pixel.x + KQ_REUSE_PIXELS - 1u};
    const kq_view view = kq_view_at(window, pixel);
    const kq_view end = kq_view_at(window, last);
    uint32_t offset = view.base + window->c_in;
    uint32_t row;
    for (row = 0; row < 3u; ++row) {
        slide.rows[row] = offset;
        slide.steps[row] = row - view.row_lo < view.row_hi - view.row_lo ? window->c_in : 0;
        offset += (uint32_t)window->w_in * window->c_in;
    }
    slide.left = view.col_lo == 0;
    slide.right = end.col_hi == 3u;
    return slide;
}

/* Two int16 in a word, the first in the low half. */
KQGEN_CODE static inline uint32_t halves(int8_t low, int8_t high)
{
    return ((uint32_t)low & 0xFFFFu) | (uint32_t)high << 16;
}

/* Window words (kq_reuse.h) of one input channel, at which `input` points for the first position. */
KQGEN_CODE static KQ_NOINLINE void fill_window(const slide_view *slide, const int8_t *input, int8_t pad, uint32_t *words)
{
    const uint32_t step0 = slide->steps[0];
    const uint32_t step1 = slide->steps[1];
    const uint32_t step2 = slide->steps[2];
    const int8_t *row0 = step0 != 0 ? input + slide->rows[0] : &pad;
    const int8_t *row1 = step1 != 0 ? input + slide->rows[1] : &pad;
    const int8_t *row2 = step2 != 0 ? input + slide->rows[2] : &pad;
    const uint32_t *const last = words + 18;
    int8_t before = pad;
    words[0] = halves(pad, pad);
    if (slide->left != 0) {
        words[0] = halves(*(row0 - step0), *(row1 - step1));
        before = *(row2 - step2);
    }
    do {
        words[1] = halves(before, row2[0]);
        words[2] = halves(row0[0], row1[0]);
        row0 += step0;
        row1 += step1;
        words[3] = halves(row2[0], row2[step2]);
        words[4] = halves(row0[0], row1[0]);
        row2 += step2;
        before = *row2;
        row0 += step0;
        row1 += step1;
        row2 += step2;
        words += 4;
    } while (words + 2 != last);
    if (slide->right != 0) {
        words[1] = halves(before, *row2);
        words[2] = halves(*row0, *row1);
    } else {
        words[1] = halves(before, pad);
        words[2] = halves(pad, pad);
    }
    words[3] = 0;
}

/* The table of all codewords for eight 3x3 windows side by side: entry i of codeword i, and of minus it where `negative` is not NULL.
 * `records` and `window` as above.
 *
 * 95 cycles a codeword on a Cortex-M4, 40 of them SMLAD and SMLABT; the window lies on the stack meanwhile.
 */
KQGEN_CODE static KQ_NOINLINE void kq_reuse_slide(
    const uint32_t *records, uint32_t codewords, const uint32_t *window, uint32_t *positive, uint32_t *negative)
{
#if defined(__ARM_FEATURE_DSP)
    register const uint32_t *from __asm__("r0") = records;
    register const uint32_t *end __asm__("r1") = records + codewords * KQ_REUSE_RECORD;
    register const uint32_t *x __asm__("r2") = window;
    register uint32_t *plus __asm__("r3") = positive;
    register uint32_t *minus __asm__("r4") = negative == NULL ? positive : negative; /* positive entries are stored after negative ones */
    __asm__ volatile(
        ".syntax unified\n"
        "push {r7}\n"
        "sub sp, #88\n"
        "str r0, [sp, #80]\n"
        "str r1, [sp, #84]\n"
        "mov r0, r3\n"
        "mov r1, r4\n"
        "ldm r2!, {r3-r12}\n"
        "stm sp, {r3-r12}\n"
        "ldm r2!, {r3-r12}\n"
        "add r2, sp, #40\n"
        "stm r2, {r3-r12}\n"
        "ldr r8, [sp, #80]\n"
        ".p2align 2\n"
        "1:\n"
        "ldm r8!, {r9-r12, lr}\n"
        "str r8, [sp, #80]\n"
        "ldr r2, [sp, #0]\n"
        "ldr r6, [sp, #4]\n"
        "ldr r3, [sp, #8]\n"
        "ldr r7, [sp, #12]\n"
        "ldr r4, [sp, #16]\n"
        "ldr r8, [sp, #20]\n"
        "ldr r5, [sp, #24]\n"
        "smuad r2, r9, r2\n"
        "smlad r2, r10, r3, r2\n"
        "smlad r2, r11, r4, r2\n"
        "smlad r2, r12, r6, r2\n"
        "smlabt r2, lr, r7, r2\n"
        "smuad r3, r9, r3\n"
        "smlad r3, r10, r4, r3\n"
        "smlad r3, r11, r5, r3\n"
        "smlad r3, r12, r7, r3\n"
        "smlabt r3, lr, r8, r3\n"
        "add.w r2, r2, r3, lsl #16\n"
        "rsb.w r3, r2, #0x8000\n"
        "str r3, [r1], #4\n"
        "add.w r2, r2, #0x8000\n"
        "str r2, [r0], #4\n"
        "ldr r6, [sp, #28]\n"
        "ldr r2, [sp, #32]\n"
        "ldr r7, [sp, #36]\n"
        "ldr r3, [sp, #40]\n"
        "smuad r4, r9, r4\n"
        "smlad r4, r10, r5, r4\n"
        "smlad r4, r11, r2, r4\n"
        "smlad r4, r12, r8, r4\n"
        "smlabt r4, lr, r6, r4\n"
        "smuad r5, r9, r5\n"
        "smlad r5, r10, r2, r5\n"
        "smlad r5, r11, r3, r5\n"
        "smlad r5, r12, r6, r5\n"
        "smlabt r5, lr, r7, r5\n"
        "add.w r4, r4, r5, lsl #16\n"
        "rsb.w r5, r4, #0x8000\n"
        "str r5, [r1], #4\n"
        "add.w r4, r4, #0x8000\n"
        "str r4, [r0], #4\n"
        "ldr r8, [sp, #44]\n"
        "ldr r4, [sp, #48]\n"
        "ldr r6, [sp, #52]\n"
        "ldr r5, [sp, #56]\n"
        "smuad r2, r9, r2\n"
        "smlad r2, r10, r3, r2\n"
        "smlad r2, r11, r4, r2\n"
        "smlad r2, r12, r7, r2\n"
        "smlabt r2, lr, r8, r2\n"
        "smuad r3, r9, r3\n"
        "smlad r3, r10, r4, r3\n"
        "smlad r3, r11, r5, r3\n"
        "smlad r3, r12, r8, r3\n"
        "smlabt r3, lr, r6, r3\n"
        "add.w r2, r2, r3, lsl #16\n"
        "rsb.w r3, r2, #0x8000\n"
        "str r3, [r1], #4\n"
        "add.w r2, r2, #0x8000\n"
        "str r2, [r0], #4\n"
        "ldr r7, [sp, #60]\n"
        "ldr r2, [sp, #64]\n"
        "ldr r8, [sp, #68]\n"
        "ldr r3, [sp, #72]\n"
        "smuad r4, r9, r4\n"
        "smlad r4, r10, r5, r4\n"
        "smlad r4, r11, r2, r4\n"
        "smlad r4, r12, r6, r4\n"
        "smlabt r4, lr, r7, r4\n"
        "smuad r5, r9, r5\n"
        "smlad r5, r10, r2, r5\n"
        "smlad r5, r11, r3, r5\n"
        "smlad r5, r12, r7, r5\n"
        "smlabt r5, lr, r8, r5\n"
        "add.w r4, r4, r5, lsl #16\n"
        "rsb.w r5, r4, #0x8000\n"
        "str r5, [r1], #4\n"
        "add.w r4, r4, #0x8000\n"
        "str r4, [r0], #4\n"
        "ldr r8, [sp, #80]\n"
        "ldr r2, [sp, #84]\n"
        "cmp r8, r2\n"
        "bne.w 1b\n"
        "add sp, #88\n"
        "pop {r7}\n"
        : "+r"(from), "+r"(end), "+r"(x), "+r"(plus), "+r"(minus)
        :
        : "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
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
                dot += (uint32_t)((int32_t)(int16_t)(records[4] & 0xFFFFu) * kq_shift_down(kq_signed(x[3]), 16));
                dots[i] = dot;
            }
            positive[pair] = 0x8000u + dots[0] + (dots[1] << 16);
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
