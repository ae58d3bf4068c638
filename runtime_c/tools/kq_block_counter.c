/* Counts executed blocks inside kqgen itself: unicorn's hooks in C, because hooks in Python are some fifty times slower.
 * Compiled for the host; kqgen/blockcount_native.py fills the structures and reads them, kq_qemu_counter.c feeds them under
 * QEMU, kqgen/blockcount.py holds the same algorithm in Python and says what it means. A block is its address times 2^16 plus
 * its size in bytes.
 */
#include "kq_block_counter.h"

/* Adds one to the edge from the previous block to `block`; open addressing, at most 3/4 full. */
void kq_count_edge(kq_counter *counter, uint64_t block)
{
    const uint64_t mask = counter->slots - 1u;
    uint64_t at = ((counter->previous * 0x9E3779B97F4A7C15u) ^ (block * 0xC2B2AE3D27D4EB4Fu) ^ counter->layer) * 0x9E3779B97F4A7C15u;
    for (at >>= 20;; at++) {
        kq_edge *const edge = &counter->edges[at & mask];
        if (edge->times == 0u) {
            if (counter->used >= counter->slots / 4u * 3u) {
                counter->full = 1u;
                return;
            }
            counter->used++;
            edge->previous = counter->previous;
            edge->block = block;
            edge->layer = counter->layer;
            edge->times = 1u;
            return;
        }
        if (edge->block == block && edge->previous == counter->previous && edge->layer == counter->layer) {
            edge->times++;
            return;
        }
    }
}

static uint32_t is_inside(const kq_counter *counter, uint64_t address)
{
    for (uint32_t i = 0u; i < counter->range_count; i++) {
        if (address >= counter->low[i] && address < counter->high[i]) {
            return 1u;
        }
    }
    return 0u;
}

static uint32_t is_helper(const kq_counter *counter, uint64_t address)
{
    for (uint32_t i = 0u; i < counter->helper_count; i++) {
        if (address == counter->helpers[i]) {
            return 1u;
        }
    }
    return 0u;
}

/* unicorn's uc_cb_hookcode_t. */
void kq_on_block(void *engine, uint64_t address, uint32_t size, void *data)
{
    (void)engine;
    kq_counter *const counter = data;
    const uint64_t block = address << 16 | size;
    const uint32_t inside = is_inside(counter, address);
    if (inside != 0u && counter->inside == 0u && counter->called != 0u) {
        counter->called = 0u;
        kq_count_edge(counter, KQ_END);
        counter->previous = KQ_START;
        if (counter->layer + 1u < KQ_MAX_LAYERS) {
            counter->layer++;
        } else {
            counter->full = 1u;
        }
    } else if (inside == 0u && counter->inside != 0u && is_helper(counter, address) == 0u) {
        counter->called = 1u;
    }
    counter->inside = inside;
    kq_count_edge(counter, block);
    counter->previous = block;
}

/* unicorn's uc_cb_hookmem_t; the hook is set on the flash's addresses alone. */
void kq_on_read(void *engine, int32_t access, uint64_t address, int32_t size, int64_t value, void *data)
{
    (void)engine;
    (void)access;
    (void)address;
    (void)size;
    (void)value;
    kq_counter *const counter = data;
    counter->reads[counter->layer]++;
}
