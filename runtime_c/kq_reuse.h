/* Inner loops of form `reuse` (SPEC 6.3): tables of dot products, and lists of the entries that output channels add up.
 *
 * Eight output pixels are four pairs. A pair's dot products s0 and s1 with a codeword make the word
 *     S = 2^15 + s0 + s1 * 2^16 mod 2^32, -32640 <= s0, s1 <= 32640,
 * so s1 = floor(int32(S) / 2^16); minus the codeword has the word 2^16 - S. An entry of a table is four such words. An output channel has
 * eight accumulators, modulo 2^32: the sums of S of the four pairs, then the sums of s1; sum s0 = sum S - 2^16 * sum s1 - 2^15 * entries.
 */
#ifndef KQ_REUSE_H
#define KQ_REUSE_H

#include "kq_fixed.h"
#include "kq_types.h"

#define KQ_REUSE_PIXELS 8u
#define KQ_REUSE_PAIRS 4u
#define KQ_REUSE_ENTRY 4u   /* words of an entry */
#define KQ_REUSE_STRIP 8u   /* input channels added up at a time, at most */
#define KQ_REUSE_GROUP 32u  /* output channels that have lists at a time */
#define KQ_REUSE_COLUMNS 10u /* that eight 3x3 windows side by side cover */

/* What a codeword of 3x3 values w[row][column] becomes: {w00, w10}, {w01, w11}, {w02, w12}, {w20, w21}, two int16 in a word, the first in
 * the low half; w22; 2^15 - 128 * (2^16 + 1) * (w20 + w21 + w22), which holds S's constant and takes the 128 of the third row out again.
 * Window words in the same order: word 2j is {x[0][j], x[1][j]}, columns j = 0..9, word 2j + 1 is {x[2][j] + 128, x[2][j+1] + 128},
 * j = 0..8: halves without sign, so that w22 times the word is its product with both, 2^16 apart.
 * Records end with one whose last word is odd (KQ_REUSE_STOP).
 */
#define KQ_REUSE_RECORD 6u
#define KQ_REUSE_STOP 1u

/* A list is, for each output channel: its first entry, a word for the loop, its other entries. Entries are offsets in bytes from the tables;
 * where the loop is written in assembly they are addresses. On ARMv6-M the word for the loop comes last: a 0.
 */
#define KQ_REUSE_EXTRA 1u /* words of a channel's list besides its entries */
#define KQ_REUSE_CLOSE 2u /* words that close the lists */

/* Whether 3x3 windows side by side are built by kq_reuse_slide: on cores without DSP instructions packed pairs are faster. */
#if defined(__ARM_FEATURE_DSP) || !defined(__thumb__)
#define KQ_REUSE_SLIDES 1
#else
#define KQ_REUSE_SLIDES 0
#endif

#if defined(__GNUC__) && defined(__thumb__)
#define KQ_REUSE_ADDRESSES 1
#else
#define KQ_REUSE_ADDRESSES 0
#endif

/* Whether six entries a channel have a loop of their own; their lists are entries alone, closed by a 0. */
#if KQ_REUSE_ADDRESSES && defined(__thumb2__)
#define KQ_REUSE_SIXES 1
#else
#define KQ_REUSE_SIXES 0
#endif

/* The value itself, of which the compiler knows nothing: it would take apart what was put together. */
static KQ_INLINE uint32_t kq_opaque(uint32_t value)
{
#if KQ_REUSE_ADDRESSES
    __asm__("" : "+r"(value));
#endif
    return value;
}

/* What a list holds for the word at `to`. */
KQGEN_CODE static inline uint32_t kq_reuse_place(const uint32_t *from, const uint32_t *to)
{
#if KQ_REUSE_ADDRESSES
    (void)from;
    return (uint32_t)(uintptr_t)to;
#else
    return (uint32_t)((size_t)(to - from) * sizeof(uint32_t));
#endif
}

/* Where entry i of an output channel stands in its list. */
KQGEN_CODE static inline uint32_t kq_reuse_slot(uint32_t i)
{
#if KQ_REUSE_ADDRESSES && !defined(__thumb2__)
    return i;
#else
    return i == 0 ? 0 : i + 1u;
#endif
}

#endif
