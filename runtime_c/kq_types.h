/* Parameters of the runtime's functions (SPEC 8): constant data that generated code points at.
 *
 * Layout on cores with 32-bit pointers is asserted below; fields stand in an order that leaves no hidden padding there.
 */
#ifndef KQ_TYPES_H
#define KQ_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* Placement of functions and of constant tables, e.g. __attribute__((section(".itcm"))); nothing unless the user defines it. */
#ifndef KQGEN_CODE
#define KQGEN_CODE
#endif
#ifndef KQGEN_TABLE
#define KQGEN_TABLE
#endif

/* KQ_NOINLINE keeps a hot loop in a function of its own: merged into a large one, its values lose their registers on small cores.
 * KQ_INLINE is for a step of such a loop, which must not become a call even where code is compiled for size.
 */
#if defined(__GNUC__)
#define KQ_NOINLINE __attribute__((noinline))
#define KQ_INLINE inline __attribute__((always_inline))
#else
#define KQ_NOINLINE
#define KQ_INLINE inline
#endif

/* Help for compilers on ARMv6-M, which computes in eight registers; other cores have registers enough and get none. KQ_SIDE_BY_SIDE lets
 * two sums grow together: compilers would finish one before they begin the next and hold all weights meanwhile. KQ_COUNTED keeps an index
 * a register that counts up: they would make every step of an unrolled loop an address of its own. Neither emits an instruction.
 */
#if defined(__GNUC__) && defined(__thumb__) && !defined(__thumb2__)
#define KQ_SIDE_BY_SIDE(sum0, sum1) __asm__("" : "+r"(sum0), "+r"(sum1))
#define KQ_COUNTED(index) __asm__("" : "+r"(index))
#else
#define KQ_SIDE_BY_SIDE(sum0, sum1) ((void)0)
#define KQ_COUNTED(index) ((void)0)
#endif

#ifdef __cplusplus
#define KQ_STATIC_ASSERT(condition, message) static_assert(condition, message)
#else
#define KQ_STATIC_ASSERT(condition, message) _Static_assert(condition, message)
#endif

/* A size holds where pointers have 32 bits; a host's pointers are wider. */
#define KQ_ASSERT_SIZE(type, size_bytes) KQ_STATIC_ASSERT(sizeof(void *) != 4u || sizeof(type) == (size_bytes), #type " size")

/* A window sliding over a map (SPEC 5): output (y, x) covers rows from y * stride_h - pad_top and columns from x * stride_w - pad_left.
 * Maps are (row, column, channel), channel fastest, and below 2^31 bytes. Padding below and to the right follows from the output's size.
 */
typedef struct {
    uint16_t h_in, w_in, c_in;
    uint16_t h_out, w_out, c_out;
    uint8_t k_h, k_w;
    uint8_t stride_h, stride_w;
    uint8_t pad_top, pad_left;
    uint16_t tile; /* output channels (unpack, decode) or output pixels (reuse, even) at a time; 0 where nothing is tiled */
} kq_window;
KQ_ASSERT_SIZE(kq_window, 20u);

/* Sum of two maps (SPEC 5.2). */
typedef struct {
    uint32_t count;
    int32_t multiplier_a, multiplier_b, bias;
    uint8_t shift; /* 1..20 */
    int8_t lo, hi;
    uint8_t reserved;
} kq_add;
KQ_ASSERT_SIZE(kq_add, 20u);

/* In the place of `acc_shift`: SPEC 3.5 with two roundings, and with one. Runtimes know them when compiled with KQ_WITH_TFLITE=1. */
#define KQ_ROUND_TWICE 0x80u
#define KQ_ROUND_ONCE 0x81u
#ifndef KQ_WITH_TFLITE
#define KQ_WITH_TFLITE 0
#endif

/* From int32 accumulators to int8, one entry an output channel (SPEC 3.2, 3.5); then, where `sum` is given, each result (as a) is added to
 * what its place in the output holds (as b): SPEC 5.8. sum->count is not read.
 */
typedef struct {
    const int32_t *bias;
    union {
        const int16_t *multiplier;     /* 0..32767 */
        const int32_t *multiplier_q31; /* by SPEC 3.5: 0..2^31-1 */
    };
    const uint8_t *shift; /* 1..22; by SPEC 3.5 1..62 */
    const kq_add *sum;    /* NULL: nothing is added */
    uint8_t acc_shift;    /* 0..15, or one of the two above */
    int8_t zero_point;
    int8_t lo, hi; /* lo <= hi */
} kq_requant;
KQ_ASSERT_SIZE(kq_requant, 20u);

/* Convolution by weights stored one by one (SPEC 4.4, 5.1). */
typedef struct {
    kq_window window;
    kq_requant requant;
    const int8_t *pad_values; /* c_in of them; NULL: every channel's is pad_value */
    const uint8_t *weights;
    int8_t pad_value;
    uint8_t bits; /* 8, 6 or 4 */
    uint8_t reserved[2];
} kq_conv2d;
KQ_ASSERT_SIZE(kq_conv2d, 52u);

/* Convolution by kernels stored as indices into a codebook (SPEC 4.2, 4.3, 5.1). */
typedef struct {
    kq_window window;
    kq_requant requant;
    const int8_t *pad_values; /* c_in of them; NULL: every channel's is pad_value */
    const uint8_t *indices;
    const uint8_t *codebook;
    uint16_t codewords; /* additive: of the codebook's first stage; else: of the codebook, from the first on, as many as indices can name */
    uint16_t strip;     /* winograd2, winograd4: tiles of pixels transformed at a time; else 0 */
    uint8_t index_bits; /* 1..12, the sign bit counted */
    uint8_t sign;       /* 1: the top bit of an index negates the codeword, or the sum of two */
    int8_t pad_value;
    uint8_t stages; /* 2: additive; else 1 */
} kq_conv2d_kq;
KQ_ASSERT_SIZE(kq_conv2d_kq, 60u);

/* Mean or maximum over windows (SPEC 5.3, 5.4, 5.15); c_out is c_in. A maximum, and a mean of codes, use lo and hi alone of the fields after
 * the window.
 */
typedef struct {
    kq_window window;
    union {
        int32_t bias;
        int32_t multiplier_q31; /* by SPEC 3.5; the bias is then minus the window's size times pad_value */
    };
    int16_t multiplier;
    uint8_t shift;
    uint8_t acc_shift;
    int8_t zero_point;
    int8_t lo, hi;
    int8_t pad_value;
} kq_pool;
KQ_ASSERT_SIZE(kq_pool, 32u);

/* Clamp of a map (SPEC 5.5). */
typedef struct {
    uint32_t count;
    int8_t lo, hi;
    uint8_t reserved[2];
} kq_clamp;
KQ_ASSERT_SIZE(kq_clamp, 8u);

/* Every step-th row and column of a map from `start`, channels added or dropped (SPEC 5.6); negative: pad_value comes first. */
typedef struct {
    uint16_t h_in, w_in, c_in;
    uint16_t h_out, w_out, c_out;
    int16_t start_h, start_w;
    uint8_t step_h, step_w; /* 1..255 */
    int16_t c_before;       /* output channels before the input's first; below 0: input channels dropped */
    int8_t pad_value;
    uint8_t reserved;
} kq_slice_pad;
KQ_ASSERT_SIZE(kq_slice_pad, 22u);

/* A result for every value (SPEC 5.9). */
typedef struct {
    const int8_t *table; /* 256 results from that of -128 on, for each of `channels` */
    uint32_t count;
    uint16_t channels; /* with tables of their own; 1: one table serves all */
    uint8_t reserved[2];
} kq_lookup;
KQ_ASSERT_SIZE(kq_lookup, 12u);

/* Product of two maps (SPEC 5.10). */
typedef struct {
    uint32_t count;   /* values of a and of the output */
    uint32_t count_b; /* values of b: as many, or the channels where b serves every position */
    int32_t multiplier;
    uint8_t shift, acc_shift;
    int8_t zero_point_a, zero_point_b;
    int8_t zero_point;
    int8_t lo, hi;
    uint8_t reserved;
} kq_mul;
KQ_ASSERT_SIZE(kq_mul, 20u);

/* Sum or difference of two maps as TFLite's reference kernels round it (SPEC 5.14). */
typedef struct {
    uint32_t count;   /* values of a and of the output */
    uint32_t count_b; /* values of b: as many, or the channels where b serves every position */
    int32_t multiplier_a, multiplier_b, multiplier;
    uint8_t shift_a, shift_b, shift; /* 31..62 */
    uint8_t minus;                   /* 1: b is subtracted */
    int8_t zero_point_a, zero_point_b;
    int8_t zero_point;
    int8_t lo, hi;
    uint8_t reserved[3];
} kq_rescaled_add;
KQ_ASSERT_SIZE(kq_rescaled_add, 32u);

/* Where a map goes in a larger one, and in which quantisation (SPEC 5.11). */
typedef struct {
    uint32_t start;                 /* bytes before its first value in the output */
    uint32_t row_step, column_step; /* bytes from row to row and from column to column there */
    int32_t multiplier, bias;
    uint16_t h, w, c; /* of the map placed */
    uint8_t shift;    /* 0 with multiplier 1 and bias 0: bytes are copied */
    uint8_t reserved;
} kq_place;
KQ_ASSERT_SIZE(kq_place, 28u);

/* Softmax over the channels of each position (SPEC 5.12). */
typedef struct {
    const int32_t *exponentials; /* exp(-d * scale) in units of 2^-31, by the difference d from the largest */
    uint32_t positions;
    uint16_t channels; /* 1..4095 */
    uint16_t count;    /* of exponentials, 1..256; beyond them they are 0 */
} kq_softmax;
KQ_ASSERT_SIZE(kq_softmax, 12u);

/* The number of the largest channel of each position (SPEC 5.13). */
typedef struct {
    uint32_t positions;
    uint16_t channels; /* 1..256 */
    uint8_t reserved[2];
} kq_argmax;
KQ_ASSERT_SIZE(kq_argmax, 8u);

/* A piece of several layers that run some rows at a time (SPEC 6.8): which call it is of those that the generated code chooses from, and
 * of a layer's window the fields that differ from those of the whole map. A move has h_out rows, h_in and pad_top are 0.
 */
typedef struct {
    uint32_t input, output; /* bytes from the start of the buffer to the first row read, and to the first written */
    uint8_t call;
    uint8_t pad_top;
    uint8_t h_in, h_out;
} kq_rows;
KQ_ASSERT_SIZE(kq_rows, 12u);

#endif
