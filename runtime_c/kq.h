/* kqgen runtime: the operators that generated networks call (SPEC 5, 6, 8).
 *
 * Every function is re-entrant, allocates nothing and keeps no state. Pointers are not checked: the generated <model>_run does that
 * once. `scratch` is aligned to 4 bytes and as large as SPEC 6.4 says for the form; its contents need not survive. Inputs, outputs,
 * scratch and tables do not overlap, except where a function says so below: kq_add_s8 may write over a or b, kq_clamp_s8 over its input.
 * Twins ending in _ref compute the same by the plainest loops; they take the same scratch.
 */
#ifndef KQ_H
#define KQ_H

#include "kq_status.h"
#include "kq_types.h"

#define KQ_RUNTIME_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

/* Convolution or fully connected layer by uniform weights: forms `direct` (8 bits) and `unpack` (6 and 4 bits). SPEC 5.1, 6.1. */
void kq_conv2d_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_s8_ref(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);

/* As kq_conv2d_s8 with two output channels in a word, for cores without SIMD. SPEC 5.1, 6.2. */
void kq_conv2d_packed_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);

/* Convolution by lookup, kernels expanded for a tile of output channels. SPEC 5.1, 6.2. */
void kq_conv2d_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_decode_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* As kq_conv2d_decode_s8 by an additive codebook: a kernel is the sum of two codewords, one of each stage. SPEC 4.2, 5.1, 6.2. */
void kq_conv2d_decode_additive_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_decode_additive_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* As kq_conv2d_s8 and kq_conv2d_decode_s8 (codebooks of one stage or two) for cores with the DSP extension. SPEC 5.1, 6.5. */
void kq_conv2d_dsp_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_decode_dsp_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* The same in the order of instructions for cores that issue two at once. SPEC 5.1, 6.5. */
void kq_conv2d_dual_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_decode_dual_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* Convolution by lookup, each codeword's dot product computed once for a tile of output pixels. SPEC 5.1, 6.3. */
void kq_conv2d_reuse_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_reuse_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* Engine `mve`, for cores with Helium; elsewhere plain C that computes the same the same way. SPEC 5.1, 6.7. */
void kq_conv2d_mve_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_decode_mve_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* Convolution by lookup, 3x3 kernels and stride 1, by Winograd's F(2x2,3x3) and F(4x4,3x3) on integers. SPEC 5.1, 6.5. */
void kq_conv2d_winograd2_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_winograd4_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* Depthwise convolution: output channel o reads input channel o / (c_out / c_in) alone. Where both maps have the same shape, strides
 * are 1 and nothing is added, the output may be the input; not so in the twins. SPEC 5.17, 6.9.
 */
void kq_depthwise_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_s8_ref(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_decode_s8_ref(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* The same for cores with the DSP extension, and for those with Helium. SPEC 6.9. */
void kq_depthwise_dsp_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_decode_dsp_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_mve_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_decode_mve_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* Convolution, also depthwise, whose taps lie apart: window.tile is 256 * dilation_h + dilation_w. SPEC 5.17, 6.9. */
void kq_conv2d_dilated_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_conv2d_decode_dilated_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_dilated_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch);
void kq_depthwise_decode_dilated_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch);

/* Sum of two maps in their own quantisations. SPEC 5.2. */
void kq_add_s8(const kq_add *add, const int8_t *a, const int8_t *b, int8_t *output);

/* Mean over windows, padded positions counted. SPEC 5.3. */
void kq_avg_pool_s8(const kq_pool *pool, const int8_t *input, int8_t *output);

/* Maximum over windows, padded positions left out. SPEC 5.4. */
void kq_max_pool_s8(const kq_pool *pool, const int8_t *input, int8_t *output);

/* Clamp. SPEC 5.5. */
void kq_clamp_s8(const kq_clamp *clamp, const int8_t *input, int8_t *output);

/* Strided slice, cropped or padded on any side. SPEC 5.6. */
void kq_slice_pad_s8(const kq_slice_pad *slice, const int8_t *input, int8_t *output);

/* A result for every value, from one table or from one a channel; output may be the input. SPEC 5.9. */
void kq_lookup_s8(const kq_lookup *lookup, const int8_t *input, int8_t *output);

/* Product of two maps, or of a map and a value a channel; output may be a, and b where it has as many values. SPEC 5.10. */
void kq_mul_s8(const kq_mul *mul, const int8_t *a, const int8_t *b, int8_t *output);

/* One part of a map that is put together of several, copied or brought to the output's quantisation. SPEC 5.11. */
void kq_place_s8(const kq_place *place, const int8_t *input, int8_t *output);

/* size_bytes times `value`. SPEC 5.11. */
void kq_fill_s8(int8_t *output, uint32_t size_bytes, int8_t value);

/* Softmax over the channels of each position; output may be the input. SPEC 5.12. */
void kq_softmax_s8(const kq_softmax *softmax, const int8_t *input, int8_t *output);

/* The number of the largest channel of each position, the first of equals, minus 128. SPEC 5.13. */
void kq_argmax_s8(const kq_argmax *argmax, const int8_t *input, int8_t *output);

/* Sum or difference as TFLite's reference kernels round it; output may be a, and b where it has as many values. SPEC 5.14. */
void kq_rescaled_add_s8(const kq_rescaled_add *add, const int8_t *a, const int8_t *b, int8_t *output);

/* Mean of codes, padded positions left out, halves away from zero. SPEC 5.15. */
void kq_mean_window_s8(const kq_pool *pool, const int8_t *input, int8_t *output);

#if KQ_WITH_TFLITE
/* Read by generated code of rule `tflite`: an undefined reference to it says that the runtime was compiled without KQ_WITH_TFLITE=1. SPEC 3.5. */
extern const uint8_t kq_built_with_KQ_WITH_TFLITE;
#endif

/* The parameters of a layer for the rows of one job: those of the whole map but for pad_top, h_in and h_out. SPEC 6.8. */
void kq_rows_conv2d(const kq_rows *job, const kq_conv2d *whole, kq_conv2d *part);
void kq_rows_conv2d_kq(const kq_rows *job, const kq_conv2d_kq *whole, kq_conv2d_kq *part);
void kq_rows_pool(const kq_rows *job, const kq_pool *whole, kq_pool *part);

/* Rows moved to the front of the buffer they lie in: output is below input, and the two may overlap. SPEC 6.8. */
void kq_rows_move(const int8_t *input, int8_t *output, uint32_t size_bytes);

/* CRC-32 as of zlib and Ethernet; crc is that of the bytes before, 0 where there are none. SPEC 7.4. */
uint32_t kq_crc32(uint32_t crc, const int8_t *data, uint32_t size_bytes);

#ifdef __cplusplus
}
#endif

#endif
