/* Layers that run some rows at a time: their parameters for one job, and rows on their way to the front of a buffer (SPEC 6.8). */
#include "kq.h"

/* Sets the fields of a window in which a job differs from the whole map. */
KQGEN_CODE static void set_rows(const kq_rows *job, kq_window *window)
{
    window->pad_top = job->pad_top;
    window->h_in = job->h_in;
    window->h_out = job->h_out;
}

/* The parameters of a convolution by uniform weights for one job. */
KQGEN_CODE void kq_rows_conv2d(const kq_rows *job, const kq_conv2d *whole, kq_conv2d *part)
{
    *part = *whole;
    set_rows(job, &part->window);
}

/* The parameters of a convolution by lookup for one job. */
KQGEN_CODE void kq_rows_conv2d_kq(const kq_rows *job, const kq_conv2d_kq *whole, kq_conv2d_kq *part)
{
    *part = *whole;
    set_rows(job, &part->window);
}

/* The parameters of a pool for one job. */
KQGEN_CODE void kq_rows_pool(const kq_rows *job, const kq_pool *whole, kq_pool *part)
{
    *part = *whole;
    set_rows(job, &part->window);
}

/* Moves size_bytes bytes from input down to output, in rising order, so that the two may overlap: by words where both are aligned to 4. */
KQGEN_CODE void kq_rows_move(const int8_t *input, int8_t *output, uint32_t size_bytes)
{
    const uint32_t words_bytes = (((uintptr_t)input | (uintptr_t)output) & 3u) == 0u ? size_bytes & ~(uint32_t)3u : 0u;
    uint32_t i = 0;
    for (; i < words_bytes; i += 4u) {
        *(int32_t *)(void *)&output[i] = *(const int32_t *)(const void *)&input[i];
    }
    for (; i < size_bytes; i++) {
        output[i] = input[i];
    }
}
