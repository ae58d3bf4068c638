/* Depthwise convolution for cores without SIMD, and for all others too (SPEC 5.17, 6.9): two output pixels in a word, one 32-bit multiply
 * for both. A word of a plane is x0 + x1 * 2^16 mod 2^32, x1 the value that the second pixel reads where the first reads x0. A product with a
 * weight is S = s0 + s1 * 2^16; as |s0| <= 2^15 - 1, s1 = floor((S + 2^15) / 2^16). So it is for the sum over several taps whose absolute
 * weights sum to at most 255. The sum of all S gives the first pixel once the sum of all s1 is known:
 *     sum s0 = sum S - 2^16 * sum s1 mod 2^32.
 *
 * The Thumb code takes instructions of ARMv6-M alone: the M3 runs it too. It saves r7 itself, which may be the frame pointer. Counts beside
 * it are cycles of a Cortex-M0+.
 */
#include "kq.h"
#include "kq_depthwise.h"

#define LANE_SUM 255u /* absolute weights of a row of a kernel, at most, where it is split as one */

/* Pairs of results of a 3x3 kernel on a plane. */
typedef struct {
    const uint32_t *weights;
    uint32_t total; /* where the sum of all S starts: the bias of both pixels */
    uint32_t high;  /* where the sum of all s1 starts: the bias */
    uint32_t row_gap;     /* bytes from the end of a window's row to its next row */
    uint32_t window_gap;  /* and from the end of a window to the next window */
    uint32_t multiplier;
    uint32_t shift;
    uint32_t acc_shift;
    uint32_t above_lo; /* zero_point - lo */
    uint32_t below;    /* lo - hi */
    uint32_t hi;
    int8_t *to;      /* where the first result goes; moves on */
    uint32_t second; /* from there to the second pixel's; 0: there is none */
    uint32_t step;   /* to the next pair */
    uint32_t pairs;  /* left of this row; counted down */
    uint32_t rows;   /* of pairs; counted down */
    uint32_t row_pairs;
    uint32_t x_gap;  /* bytes from the window after a row's last to the first of the next row */
    uint32_t to_gap; /* and where their results go */
} lane_job;
KQ_ASSERT_SIZE(lane_job, 76u);

/* A layer's plane in scratch, and how pixels are paired. */
typedef struct {
    const depthwise_layer *layer;
    uint32_t *plane;   /* [rows][columns] */
    uint32_t *weights; /* of the kernel at work */
    int8_t *room;      /* two kernels as bytes */
    uint32_t apart;    /* words from what the first pixel of a pair reads to what the second does */
    uint32_t upright;  /* 1: a pair is two rows, else two columns */
    uint32_t nines;    /* the kernel is 3x3, and nothing is added */
} lane_planes;

/* Copies input channel `channel` into the plane, what lies off the map filled with its padding value, and pairs its values. */
KQGEN_CODE static KQ_NOINLINE void lay_plane(const lane_planes *planes, const int8_t *input, uint32_t channel)
{
    const depthwise_layer *layer = planes->layer;
    const kq_window *window = layer->window;
    const uint32_t pad = (uint32_t)kq_pad(layer->pad_values, (int8_t)layer->pad_value, channel);
    const uint32_t step = window->c_in;
    const uint32_t columns = layer->columns;
    const uint32_t room = columns - window->pad_left;
    const uint32_t inside = columns < window->pad_left ? 0 : (room < window->w_in ? room : window->w_in);
    const uint32_t apart = planes->apart;
    const uint32_t *last = planes->plane + layer->rows * columns - apart;
    uint32_t *to = planes->plane;
    uint32_t row;
    input += channel;
    for (row = 0; row < layer->rows; ++row) {
        const uint32_t y = row - window->pad_top;
        const uint32_t *end = to + columns;
        if (y < window->h_in && inside != 0) {
            const int8_t *from = input;
            const uint32_t *middle = to + window->pad_left;
            while (to != middle) {
                *to = pad;
                ++to;
            }
            middle += inside;
            while (to != middle) {
                *to = (uint32_t)*from;
                from += step;
                ++to;
            }
            input += window->w_in * step;
        }
        while (to != end) {
            *to = pad;
            ++to;
        }
    }
    for (to = planes->plane; to < last; ++to) {
        *to += to[apart] << 16;
    }
}

/* s1 of a packed sum. */
static KQ_INLINE uint32_t high_of(uint32_t sum)
{
    return (uint32_t)kq_shift_down(kq_signed(sum + 0x8000u), 16);
}

#if defined(__GNUC__) && defined(__thumb__) && !defined(__ARM_FEATURE_DSP)
#define LANE_NINES 1

/* Three taps of a window, their products in r2-r4. 11 cycles. */
#define LANE_THREE "ldm r0!, {r2-r4}\n ldm r1!, {r5-r7}\n muls r2, r5, r2\n muls r3, r6, r3\n muls r4, r7, r4\n"

/* A sum into the totals. 4 cycles. */
#define LANE_SPLIT(sum) "add r8, " sum "\n add " sum ", r10\n asrs " sum ", " sum ", #16\n add r9, " sum "\n"

/* A row of a window, split as one sum or tap by tap. */
#define LANE_ROW_OF_ONE LANE_THREE "adds r2, r2, r3\n adds r2, r2, r4\n" LANE_SPLIT("r2")
#define LANE_ROW_OF_TAPS LANE_THREE LANE_SPLIT("r2") LANE_SPLIT("r3") LANE_SPLIT("r4")

/* Requantises r0 (SPEC 3.2): multiplier r2, shift r3, acc_shift r5, above_lo r6, below r8, hi r9. 16 cycles. */
#define LANE_PUT \
    "lsls r0, r0, r5\n asrs r7, r0, #16\n uxth r0, r0\n" \
    "muls r7, r2, r7\n muls r0, r2, r0\n" \
    "lsrs r0, r0, #16\n adds r0, r0, r7\n" \
    "asrs r0, r0, r3\n adcs r0, r6\n" \
    "asrs r7, r0, #31\n bics r0, r7\n" \
    "add r0, r8\n asrs r7, r0, #31\n ands r0, r7\n add r0, r9\n"

/* The same by SPEC 3.5, rounding twice: r3 is how far the product is shifted down, at least 1. The product is kq_scaled_q31's; ASRS leaves
 * the bit that rounds in the carry. 38 cycles.
 */
#define LANE_PUT_TWICE \
    "mov r2, r12\n ldr r2, [r2, #20]\n" \
    "sxth r7, r0\n subs r0, r0, r7\n asrs r0, r0, #16\n" \
    "uxth r5, r2\n lsrs r2, r2, #16\n" \
    "movs r3, r5\n muls r3, r7, r3\n asrs r3, r3, #16\n" \
    "muls r5, r0, r5\n adds r5, r5, r3\n" \
    "muls r7, r2, r7\n adds r5, r5, r7\n" \
    "muls r0, r2, r0\n lsls r0, r0, #1\n asrs r5, r5, #15\n adcs r0, r5\n" \
    "asrs r7, r0, #31\n adds r0, r0, r7\n" \
    "mov r3, r12\n ldr r3, [r3, #24]\n asrs r0, r0, r3\n adcs r0, r6\n" \
    "asrs r7, r0, #31\n bics r0, r7\n" \
    "add r0, r8\n asrs r7, r0, #31\n ands r0, r7\n add r0, r9\n"

/* A job whose first window is at x, rows of windows split as `row` does it. The second pixel is stored first: where there is none, the first
 * one takes its place. About 135 cycles a pair where rows are split as one, 153 where taps are.
 */
#define LANE_PAIRS(row, put) \
    __asm__ volatile( \
        ".syntax unified\n" \
        "push {r7}\n" \
        "mov r12, r1\n" \
        "ldr r2, [r1, #12]\n mov r11, r2\n" \
        "movs r2, #1\n lsls r2, r2, #15\n mov r10, r2\n" \
        "1:\n" \
        "mov r4, r12\n" \
        "ldm r4!, {r1-r3}\n" \
        "mov r8, r2\n mov r9, r3\n" \
        row "add r0, r11\n" row "add r0, r11\n" row \
        "mov r1, r12\n" \
        "adds r1, #16\n" \
        "ldm r1!, {r2-r6}\n" \
        "adds r0, r0, r2\n mov lr, r0\n" \
        "mov r2, r3\n mov r3, r4\n" \
        "mov r0, r9\n lsls r7, r0, #16\n mov r4, r8\n subs r4, r4, r7\n" \
        "ldm r1!, {r7}\n mov r8, r7\n" \
        "ldm r1!, {r7}\n mov r9, r7\n" \
        put \
        "ldr r7, [r1]\n ldr r1, [r1, #4]\n" \
        "strb r0, [r7, r1]\n" \
        "mov r1, r7\n" \
        "mov r0, r4\n" \
        put \
        "strb r0, [r1]\n" \
        "mov r4, r12\n" \
        "mov r0, lr\n" \
        "ldr r2, [r4, #52]\n adds r1, r1, r2\n" \
        "ldr r2, [r4, #56]\n subs r2, r2, #1\n" \
        "beq 2f\n" \
        "str r1, [r4, #44]\n" \
        "str r2, [r4, #56]\n" \
        "b 1b\n" \
        "2:\n" \
        "ldr r2, [r4, #64]\n str r2, [r4, #56]\n" \
        "ldr r2, [r4, #68]\n adds r0, r0, r2\n" \
        "ldr r2, [r4, #72]\n adds r1, r1, r2\n str r1, [r4, #44]\n" \
        "ldr r2, [r4, #60]\n subs r2, r2, #1\n str r2, [r4, #60]\n" \
        "beq 3f\n" \
        "b 1b\n" \
        "3:\n" \
        "pop {r7}\n" \
        : "+r"(at), "+r"(held) \
        : \
        : "r2", "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory")

/* Does a job whose first window is at x; taps: split the sums tap by tap. */
KQGEN_CODE static KQ_NOINLINE void lane_pairs(const uint32_t *x, lane_job *job, uint32_t taps)
{
    register const uint32_t *at __asm__("r0") = x;
    register lane_job *held __asm__("r1") = job;
#if KQ_WITH_TFLITE
    if (kq_rounds_as_tflite(job->acc_shift)) {
        /* 18 cycles a pair more than need be where rows could be split as one, for less code. */
        LANE_PAIRS(LANE_ROW_OF_TAPS, LANE_PUT_TWICE);
        return;
    }
#endif
    if (taps != 0) {
        LANE_PAIRS(LANE_ROW_OF_TAPS, LANE_PUT);
    } else {
        LANE_PAIRS(LANE_ROW_OF_ONE, LANE_PUT);
    }
}

#else
#define LANE_NINES 0

/* There is no such code for this core. */
KQGEN_CODE static void lane_pairs(const uint32_t *x, lane_job *job, uint32_t taps)
{
    (void)x;
    (void)job;
    (void)taps;
}

#endif

/* A job by any kernel and any rule: output channel o. */
KQGEN_CODE static KQ_NOINLINE void any_pairs(const depthwise_layer *layer, const uint32_t *x, const lane_job *job, uint32_t o)
{
    const uint32_t k_w = layer->window->k_w;
    int8_t *to = job->to;
    uint32_t rows;
    for (rows = job->rows; rows != 0; --rows) {
        uint32_t pairs;
        for (pairs = job->row_pairs; pairs != 0; --pairs) {
            const uint32_t *weight = job->weights;
            uint32_t total = job->total;
            uint32_t high = job->high;
            uint32_t row = layer->window->k_h;
            for (;;) {
                uint32_t column;
                for (column = k_w; column != 0; --column) {
                    const uint32_t product = *x * *weight;
                    total += product;
                    high += high_of(product);
                    ++x;
                    ++weight;
                }
                --row;
                if (row == 0) {
                    break;
                }
                x += kq_signed(job->row_gap) >> 2;
            }
            x += kq_signed(job->window_gap) >> 2;
            if (job->second != 0) {
                kq_store(high, layer->requant, o, to + job->second);
            }
            kq_store(total - (high << 16), layer->requant, o, to);
            to += job->step;
        }
        x += kq_signed(job->x_gap) >> 2;
        to += job->to_gap;
    }
}

/* Whether the loop of 3x3 kernels rounds as output channel o does: by SPEC 3.2, or by 3.5 with a shift behind the product. */
KQGEN_CODE static inline int rounds_in_loop(const kq_requant *requant, uint32_t o)
{
    return !kq_rounds_as_tflite(requant->acc_shift) || (requant->acc_shift == KQ_ROUND_TWICE && requant->shift[o] >= 32u);
}

/* Rows of pairs: `rows` times `pairs` windows from word `first` of the plane on, results from `to` on. */
KQGEN_CODE static void convolve_pairs(
    const lane_planes *planes, lane_job *job, uint32_t o, uint32_t taps, uint32_t first, uint32_t pairs, uint32_t rows, int8_t *to)
{
    const kq_window *window = planes->layer->window;
    const uint32_t columns = planes->layer->columns;
    const uint32_t across = (2u - planes->upright) * window->stride_w;
    const uint32_t down = (1u + planes->upright) * window->stride_h * columns;
    if (pairs == 0 || rows == 0) {
        return;
    }
    job->row_gap = 4u * (columns - window->k_w);
    job->window_gap = 4u * (across - (window->k_h - 1u) * columns - window->k_w);
    job->step = (2u - planes->upright) * window->c_out;
    job->pairs = pairs;
    job->row_pairs = pairs;
    job->rows = rows;
    job->x_gap = 4u * (down - pairs * across);
    job->to_gap = (1u + planes->upright) * window->w_out * window->c_out - pairs * job->step;
    job->to = to;
    if (planes->nines != 0 && rounds_in_loop(planes->layer->requant, o)) {
        lane_pairs(planes->plane + first, job, taps);
    } else {
        any_pairs(planes->layer, planes->plane + first, job, o);
    }
}

/* Output channel o from the plane of its input channel. */
KQGEN_CODE static KQ_NOINLINE void convolve_plane(const lane_planes *planes, uint32_t o, int8_t *to)
{
    const depthwise_layer *layer = planes->layer;
    const kq_window *window = layer->window;
    const kq_requant *requant = layer->requant;
    const int8_t *kernel = depthwise_kernel(layer, o, planes->room);
    const uint32_t bias = (uint32_t)requant->bias[o];
    const uint32_t row_bytes = window->w_out * (uint32_t)window->c_out;
    uint32_t taps = 0;
    uint32_t row_sum = 0;
    uint32_t column = 0;
    uint32_t t;
    lane_job job;
    for (t = 0; t < layer->taps; ++t) {
        const int32_t weight = kernel[t];
        planes->weights[t] = (uint32_t)weight;
        row_sum += (uint32_t)(weight < 0 ? -weight : weight);
        taps |= row_sum > LANE_SUM;
        ++column;
        if (column == window->k_w) {
            column = 0;
            row_sum = 0;
        }
    }
    job.weights = planes->weights;
    job.total = bias + (bias << 16);
    job.high = bias;
    job.multiplier = kq_multiplier(requant, o);
    job.shift = requant->shift[o] - (kq_rounds_as_tflite(requant->acc_shift) ? 31u : 0u);
    job.acc_shift = requant->acc_shift;
    job.above_lo = (uint32_t)(requant->zero_point - requant->lo);
    job.below = (uint32_t)(requant->lo - requant->hi);
    job.hi = (uint32_t)requant->hi;
    if (planes->upright != 0) {
        const uint32_t last = window->h_out - 1u;
        job.second = row_bytes;
        convolve_pairs(planes, &job, o, taps, 0, window->w_out, (uint32_t)window->h_out >> 1, to);
        job.second = 0;
        convolve_pairs(planes, &job, o, taps, last * window->stride_h * layer->columns, window->w_out, window->h_out & 1u, to + last * row_bytes);
    } else {
        const uint32_t last = window->w_out - 1u;
        job.second = window->c_out;
        convolve_pairs(planes, &job, o, taps, 0, (uint32_t)window->w_out >> 1, window->h_out, to);
        job.second = 0;
        convolve_pairs(planes, &job, o, taps, last * window->stride_w, window->w_out & 1u, window->h_out, to + last * window->c_out);
    }
}

/* Divides the scratch, and chooses how pixels are paired and by which loop. */
KQGEN_CODE static KQ_NOINLINE void prepare(lane_planes *planes, const depthwise_layer *layer, void *scratch)
{
    const kq_window *window = layer->window;
    const kq_requant *requant = layer->requant;
    planes->layer = layer;
    planes->plane = scratch;
    planes->weights = planes->plane + layer->rows * layer->columns;
    planes->room = (int8_t *)(planes->weights + layer->taps);
    /* The way with fewer words of which one half is wasted. */
    planes->upright = (window->h_out & 1u) * (uint32_t)window->w_out <= (window->w_out & 1u) * (uint32_t)window->h_out;
    planes->apart = planes->upright != 0 ? window->stride_h * layer->columns : window->stride_w;
    planes->nines = LANE_NINES != 0 && window->k_h == 3 && window->k_w == 3 && requant->sum == NULL;
}

/* All channels, one after the other. */
KQGEN_CODE static KQ_NOINLINE void convolve(const depthwise_layer *layer, const int8_t *input, int8_t *output, void *scratch)
{
    lane_planes planes;
    uint32_t o = 0;
    uint32_t channel;
    prepare(&planes, layer, scratch);
    for (channel = 0; channel < layer->window->c_in; ++channel) {
        uint32_t left;
        lay_plane(&planes, input, channel);
        for (left = layer->each; left != 0; --left) {
            convolve_plane(&planes, o, output + o);
            ++o;
        }
    }
}

/* Uniform weights; scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_s8(const kq_conv2d *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = conv;
    layer.indexed = NULL;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    convolve(&layer, input, output, scratch);
}

/* Indexed kernels, of plain and of additive codebooks; scratch as SPEC 6.4. */
KQGEN_CODE void kq_depthwise_decode_s8(const kq_conv2d_kq *conv, const int8_t *input, int8_t *output, void *scratch)
{
    depthwise_layer layer;
    layer.uniform = NULL;
    layer.indexed = conv;
    depthwise_measure(&layer, &conv->window, &conv->requant, conv->pad_values, conv->pad_value);
    convolve(&layer, input, output, scratch);
}
