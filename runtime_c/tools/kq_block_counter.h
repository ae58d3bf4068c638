/* The block counter that kqgen's two emulators share: its structures and hooks. kqgen/blockcount_native.py mirrors them. */
#ifndef KQ_BLOCK_COUNTER_H
#define KQ_BLOCK_COUNTER_H

#include <stdint.h>

#define KQ_MAX_RANGES 8u
#define KQ_MAX_HELPERS 8u
#define KQ_MAX_LAYERS 4096u
#define KQ_START UINT64_MAX
#define KQ_END (UINT64_MAX - 1u)

/* Times control went from one block to the next within a layer; times 0 marks a free slot. */
typedef struct {
    uint64_t previous;
    uint64_t block;
    uint64_t times;
    uint64_t layer;
} kq_edge;

typedef struct {
    kq_edge *edges;
    uint64_t slots; /* a power of two */
    uint64_t used;
    uint64_t previous;
    uint32_t layer;
    uint32_t inside;
    uint32_t called;
    uint32_t full; /* not 0: the table or the layers did not suffice and the counts are worthless */
    uint32_t range_count;
    uint32_t helper_count;
    uint32_t low[KQ_MAX_RANGES];
    uint32_t high[KQ_MAX_RANGES];
    uint32_t helpers[KQ_MAX_HELPERS];
    uint64_t reads[KQ_MAX_LAYERS];
} kq_counter;

void kq_count_edge(kq_counter *counter, uint64_t block);
void kq_on_block(void *engine, uint64_t address, uint32_t size, void *data);
void kq_on_read(void *engine, int32_t access, uint64_t address, int32_t size, int64_t value, void *data);

#endif
