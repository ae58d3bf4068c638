/* The loop over a row of results of a 3x3 depthwise kernel in Helium (SPEC 6.9), for kq_depthwise_mve.c, which names the operands: sixteen channels
 * at a time. q4-q7 take the accumulators: even channels 0, 4, 8, 12 and 2, 6, 10, 14, then the odd ones likewise.
 */
#ifndef KQ_DEPTHWISE_NINES_H
#define KQ_DEPTHWISE_NINES_H

/* The products of the tap in x0 and w0 are added to sums of even and odd channels, q0 and q1, while the next tap is loaded to x1 and w1. Loads,
 * products and sums take turns, which keeps both beats of the vector unit busy.
 */
#define MVE_TAP(x0, w0, x1, w1, row, at) \
    "vmullb.s8 q4, " x0 ", " w0 "\n\t" \
    "vldrb.u8 " x1 ", [%[" row "], #" at "]\n\t" \
    "vadd.i16 q0, q0, q4\n\t" \
    "vmullt.s8 q5, " x0 ", " w0 "\n\t" \
    "vldrb.u8 " w1 ", [%[weights]], #16\n\t" \
    "vadd.i16 q1, q1, q5\n\t"

/* Sums of nine taps, then biases and these in q4-q7. */
#define MVE_WHOLE \
    "vldrb.u8 q2, [%[row0]]\n\t" \
    "vldrb.u8 q3, [%[weights]], #16\n\t" \
    "vmullb.s8 q0, q2, q3\n\t" \
    "vldrb.u8 q6, [%[row0], #16]\n\t" \
    "vmullt.s8 q1, q2, q3\n\t" \
    "vldrb.u8 q7, [%[weights]], #16\n\t" \
    MVE_TAP("q6", "q7", "q2", "q3", "row0", "32") \
    MVE_TAP("q2", "q3", "q6", "q7", "row1", "0") \
    MVE_TAP("q6", "q7", "q2", "q3", "row1", "16") \
    MVE_TAP("q2", "q3", "q6", "q7", "row1", "32") \
    MVE_TAP("q6", "q7", "q2", "q3", "row2", "0") \
    MVE_TAP("q2", "q3", "q6", "q7", "row2", "16") \
    MVE_TAP("q6", "q7", "q2", "q3", "row2", "32") \
    "vmullb.s8 q6, q2, q3\n\t" \
    "vldrw.u32 q4, [%[params]]\n\t" \
    "vadd.i16 q0, q0, q6\n\t" \
    "vmullt.s8 q7, q2, q3\n\t" \
    "vldrw.u32 q5, [%[params], #16]\n\t" \
    "vmovlb.s16 q2, q0\n\t" \
    "vldrw.u32 q6, [%[params], #32]\n\t" \
    "vadd.i16 q1, q1, q7\n\t" \
    "vldrw.u32 q7, [%[params], #48]\n\t" \
    "vmovlt.s16 q3, q0\n\t" \
    "vadd.i32 q4, q4, q2\n\t" \
    "vmovlb.s16 q2, q1\n\t" \
    "vadd.i32 q5, q5, q3\n\t" \
    "vmovlt.s16 q3, q1\n\t" \
    "vadd.i32 q6, q6, q2\n\t" \
    "vadd.i32 q7, q7, q3\n\t"

/* The products of two taps in e and o: the first is in x and w, the second at `at`. */
#define MVE_TWO(e, o, x, w, row, at) \
    "vmullb.s8 " e ", " x ", " w "\n\t" \
    "vmullt.s8 " o ", " x ", " w "\n\t" \
    "vldrb.u8 " x ", [%[" row "], #" at "]\n\t" \
    "vldrb.u8 " w ", [%[weights]], #16\n\t" \
    "vmullt.s8 " w ", " x ", " w "\n\t" \
    "vadd.i16 " o ", " o ", " w "\n\t" \
    "vldrb.u8 " w ", [%[weights], #-16]\n\t" \
    "vmullb.s8 " x ", " x ", " w "\n\t" \
    "vadd.i16 " e ", " e ", " x "\n\t"

/* Sums in e and o widened into q4-q7 while the next tap is loaded to them. */
#define MVE_WIDEN(e, o, a, b, row, at) \
    "vmovlb.s16 " a ", " e "\n\t" \
    "vmovlt.s16 " b ", " e "\n\t" \
    "vldrb.u8 " e ", [%[" row "], #" at "]\n\t" \
    "vadd.i32 q4, q4, " a "\n\t" \
    "vmovlb.s16 " a ", " o "\n\t" \
    "vadd.i32 q5, q5, " b "\n\t" \
    "vmovlt.s16 " b ", " o "\n\t" \
    "vldrb.u8 " o ", [%[weights]], #16\n\t" \
    "vadd.i32 q6, q6, " a "\n\t" \
    "vadd.i32 q7, q7, " b "\n\t"

/* Biases and sums of nine taps in q4-q7, two taps at a time. What the last MVE_WIDEN loads is not used; it lies in scratch. */
#define MVE_TWOS \
    "vldrb.u8 q2, [%[row0]]\n\t" \
    "vldrb.u8 q3, [%[weights]], #16\n\t" \
    "vldrw.u32 q4, [%[params]]\n\t" \
    "vldrw.u32 q5, [%[params], #16]\n\t" \
    "vldrw.u32 q6, [%[params], #32]\n\t" \
    "vldrw.u32 q7, [%[params], #48]\n\t" \
    MVE_TWO("q0", "q1", "q2", "q3", "row0", "16") \
    MVE_WIDEN("q0", "q1", "q2", "q3", "row0", "32") \
    MVE_TWO("q2", "q3", "q0", "q1", "row1", "0") \
    MVE_WIDEN("q2", "q3", "q0", "q1", "row1", "16") \
    MVE_TWO("q0", "q1", "q2", "q3", "row1", "32") \
    MVE_WIDEN("q0", "q1", "q2", "q3", "row2", "0") \
    MVE_TWO("q2", "q3", "q0", "q1", "row2", "16") \
    MVE_WIDEN("q2", "q3", "q0", "q1", "row2", "32") \
    "vmullb.s8 q0, q2, q3\n\t" \
    "vmullt.s8 q1, q2, q3\n\t" \
    "vmovlb.s16 q2, q0\n\t" \
    "vmovlt.s16 q3, q0\n\t" \
    "vadd.i32 q4, q4, q2\n\t" \
    "vmovlb.s16 q2, q1\n\t" \
    "vadd.i32 q5, q5, q3\n\t" \
    "vmovlt.s16 q3, q1\n\t" \
    "vadd.i32 q6, q6, q2\n\t" \
    "vadd.i32 q7, q7, q3\n\t"

/* Requantises a vector of accumulators (SPEC 3.3): VMULH gives floor(acc * m * 2^16 / 2^32), VRSHL by -s rounds. */
#define MVE_SCALE(acc, multiplier, shift) \
    "vldrw.u32 q0, [%[params], #" multiplier "]\n\t" \
    "vmulh.s32 " acc ", " acc ", q0\n\t" \
    "vldrw.u32 q1, [%[params], #" shift "]\n\t" \
    "vrshl.s32 " acc ", " acc ", q1\n\t"

/* A row of results of a 3x3 kernel: saturation to int16 before the zero point is added changes nothing that int8 can show. */
#define MVE_NINES(sums) \
    __asm__ volatile( \
        "vctp.8 %[channels]\n" \
        "1:\n\t" sums \
        MVE_SCALE("q4", "64", "128") \
        MVE_SCALE("q5", "80", "144") \
        MVE_SCALE("q6", "96", "160") \
        MVE_SCALE("q7", "112", "176") \
        "vqmovnb.s32 q0, q4\n\t" \
        "vldrw.u32 q4, [%[params], #192]\n\t" \
        "vqmovnt.s32 q0, q5\n\t" \
        "vldrw.u32 q5, [%[params], #208]\n\t" \
        "vqmovnb.s32 q1, q6\n\t" \
        "add %[row0], %[row0], %[step]\n\t" \
        "vqmovnt.s32 q1, q7\n\t" \
        "add %[row1], %[row1], %[step]\n\t" \
        "vqadd.s16 q0, q0, %[zero_point]\n\t" \
        "add %[row2], %[row2], %[step]\n\t" \
        "vqadd.s16 q1, q1, %[zero_point]\n\t" \
        "sub %[weights], %[weights], #144\n\t" \
        "vqmovnb.s16 q2, q0\n\t" \
        "vqmovnt.s16 q2, q1\n\t" \
        "vmax.s8 q2, q2, q4\n\t" \
        "vmin.s8 q2, q2, q5\n\t" \
        "vpst\n\t" \
        "vstrbt.8 q2, [%[to]]\n\t" \
        "add %[to], %[to], %[apart]\n\t" \
        "subs %[count], %[count], #1\n\t" \
        "bne 1b\n" \
        : [row0] "+&r"(row0), [row1] "+&r"(row1), [row2] "+&r"(row2), [weights] "+&r"(weights), [to] "+&r"(to), [count] "+&r"(count) \
        : [params] "r"(params), [step] "r"(step), [apart] "r"(apart), [zero_point] "r"(zero_point), [channels] "r"(block->channels) \
        : "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "cc", "memory")

#endif
