/* Helium: whether there is any, and copies by vectors (SPEC 6.7). */
#ifndef KQ_MVE_COPY_H
#define KQ_MVE_COPY_H

#include "kq_types.h"

#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>
#define KQ_MVE 1
#else
#define KQ_MVE 0
#endif

#define KQ_MVE_BYTES 16u /* of a vector */

/* Copies `bytes` values (at least 1) `times` times, the places from and to which stepping on; exactly these are read and written. */
KQGEN_CODE static KQ_NOINLINE void kq_mve_copy(
    int8_t *to, uint32_t to_step, const int8_t *from, uint32_t from_step, uint32_t bytes, uint32_t times)
{
    while (bytes != 0 && times != 0) {
#if KQ_MVE
        const uint32_t part = bytes < KQ_MVE_BYTES ? bytes : KQ_MVE_BYTES;
        const int8_t *source = from;
        int8_t *target = to;
        uint32_t left = times;
        if (part == KQ_MVE_BYTES) {
            do {
                vst1q_s8(target, vld1q_s8(source));
                source += from_step;
                target += to_step;
                --left;
            } while (left != 0);
        } else {
            const mve_pred16_t some = vctp8q(part);
            do {
                vst1q_p_s8(target, vld1q_z_s8(source, some), some);
                source += from_step;
                target += to_step;
                --left;
            } while (left != 0);
        }
#else
        const uint32_t part = 1;
        uint32_t i;
        for (i = 0; i < times; ++i) {
            to[i * to_step] = from[i * from_step];
        }
#endif
        to += part;
        from += part;
        bytes -= part;
    }
}

#endif
