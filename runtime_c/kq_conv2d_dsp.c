/* Convolution on cores with the DSP extension (SPEC 6.5). */
#include "kq.h"
#include "kq_dsp_conv.h"
#include "kq_dsp_kernels.h"

/* Uniform weights; scratch as SPEC 6.4. window.tile: output channels, at least 1. */
KQGEN_CODE void kq_conv2d_dsp_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    dsp_uniform(conv, input, output, scratch);
}

/* Indexed kernels; scratch as SPEC 6.4. window.tile: output channels, at least 1; strip: 1 where the codebook is unpacked first. */
KQGEN_CODE void kq_conv2d_decode_dsp_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    dsp_indexed(conv, input, output, scratch);
}
