/* Counts, as a plugin of QEMU, the blocks that the first call of a network executes; kqgen/blockcount_qemu.py loads it.
 *   out=FILE         where the counts go when the call returns
 *   entry=ADDRESS    first instruction of the run function
 *   run=LOW:HIGH     the run function, and pieces the compiler split off it; HIGH is one past the last byte
 *   helper=ADDRESS   a function whose call is no step
 *   flash=LOW:HIGH   where data reads are counted; without it none are
 * Addresses are hexadecimal; run and helper may come several times. The file has one line a layer, "reads N", one an edge,
 * "edge LAYER PREVIOUS BLOCK TIMES", and last "end PREVIOUS CALLED": without that line it is worthless.
 * Only core 0 is counted: the second one of a machine that has two stays halted.
 */
#include "kq_block_counter.h"
#include "kq_qemu_plugin.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KQ_SLOTS (1u << 18)

_Static_assert(sizeof(void *) >= sizeof(uint64_t), "a block, 48 bits, travels as a pointer");

typedef enum { KQ_WAITING, KQ_COUNTING, KQ_DONE } kq_stage;

KQ_EXPORT int qemu_plugin_version = KQ_PLUGIN_API;

static kq_edge edges[KQ_SLOTS];
static kq_counter counter = {.edges = edges, .slots = KQ_SLOTS, .previous = KQ_START, .inside = 1u};
static const char *out_name;
static uint64_t entry;
static uint64_t return_address;
static uint32_t flash_low;
static uint32_t flash_high;
static kq_stage stage = KQ_WAITING;

/* 0 when every line was written. */
static int write_counts(FILE *out)
{
    for (uint32_t layer = 0u; layer <= counter.layer; layer++) {
        if (fprintf(out, "reads %" PRIu64 "\n", counter.reads[layer]) < 0) {
            return -1;
        }
    }
    for (uint32_t slot = 0u; slot < KQ_SLOTS; slot++) {
        const kq_edge *const edge = &edges[slot];
        if (edge->times != 0u && fprintf(out, "edge %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
                                         edge->layer, edge->previous, edge->block, edge->times) < 0) {
            return -1;
        }
    }
    return fprintf(out, "end %" PRIu64 " %" PRIu32 "\n", counter.previous, counter.called) < 0 ? -1 : 0;
}

/* What does not fit or cannot be written leaves a file without its last line. */
static void save_counts(void)
{
    FILE *const out = fopen(out_name, "w");
    if (out == NULL) {
        fprintf(stderr, "counter plugin: cannot open %s\n", out_name);
        return;
    }
    const int failed = counter.full != 0u ? fprintf(out, "full\n") < 0 : write_counts(out) != 0;
    if ((fclose(out) != 0) || failed) {
        fprintf(stderr, "counter plugin: cannot write %s\n", out_name);
    }
}

/* Before each execution of a block. A call ends its block, so the network returns to the end of the block before its entry. */
static void on_block(unsigned int core, void *data)
{
    const uint64_t block = (uint64_t)(uintptr_t)data;
    const uint64_t pc = block >> 16;
    const uint32_t size_bytes = (uint32_t)(block & 0xFFFFu);
    if (core != 0u || stage == KQ_DONE) {
        return;
    }
    if (stage == KQ_WAITING) {
        if (pc != entry) {
            return_address = pc + size_bytes;
            return;
        }
        stage = KQ_COUNTING;
    } else if (pc == return_address) {
        stage = KQ_DONE;
        save_counts();
        return;
    }
    kq_on_block(NULL, pc, size_bytes, &counter);
}

/* A read of more than a word counts once a word: versions of QEMU differ in whether LDRD is one access or two. */
static void on_access(unsigned int core, uint32_t access, uint64_t address, void *data)
{
    (void)data;
    if (core != 0u || stage != KQ_COUNTING || address < flash_low || address >= flash_high || qemu_plugin_mem_is_store(access)) {
        return;
    }
    const unsigned int shift = qemu_plugin_mem_size_shift(access);
    for (uint32_t word = 0u; word < (shift > 2u ? 1u << (shift - 2u) : 1u); word++) {
        kq_on_read(NULL, 0, address, 4, 0, &counter);
    }
}

static void instrument(kq_qemu_block *block)
{
    const size_t count = qemu_plugin_tb_n_insns(block);
    const kq_qemu_insn *const last = qemu_plugin_tb_get_insn(block, count - 1u);
    const uint64_t pc = qemu_plugin_tb_vaddr(block);
    const uint64_t size_bytes = qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) - pc;
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, KQ_QEMU_NO_REGISTERS, (void *)(uintptr_t)(pc << 16 | size_bytes));
    /* Reads and writes: asked for reads alone, QEMU 7.2 reports none. */
    for (size_t i = 0u; i < count && flash_high != 0u; i++) {
        kq_qemu_insn *const insn = qemu_plugin_tb_get_insn(block, i);
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, KQ_QEMU_NO_REGISTERS, KQ_QEMU_READS_AND_WRITES, NULL);
    }
}

#if KQ_PLUGIN_API >= 7
static void on_translation(kq_qemu_block *block, void *data)
{
    (void)data;
    instrument(block);
}
#else
static void on_translation(uint64_t plugin, kq_qemu_block *block)
{
    (void)plugin;
    instrument(block);
}
#endif

/* The value when `argument` is "key=value", else NULL. */
static const char *value_of(const char *argument, const char *key)
{
    const size_t length = strlen(key);
    return strncmp(argument, key, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

/* Reads "LOW:HIGH"; 0 when it is that. */
static int read_range(const char *text, uint32_t *low, uint32_t *high)
{
    char *middle = NULL;
    char *end = NULL;
    *low = (uint32_t)strtoul(text, &middle, 16);
    if (*middle != ':') {
        return -1;
    }
    *high = (uint32_t)strtoul(middle + 1, &end, 16);
    return *end == '\0' && *low < *high ? 0 : -1;
}

/* 0 when the argument is known and there is room for it. */
static int read_argument(const char *argument)
{
    const char *value = NULL;
    if ((value = value_of(argument, "out")) != NULL) {
        out_name = value;
        return 0;
    }
    if ((value = value_of(argument, "entry")) != NULL) {
        entry = strtoul(value, NULL, 16);
        return 0;
    }
    if ((value = value_of(argument, "run")) != NULL && counter.range_count < KQ_MAX_RANGES) {
        const uint32_t at = counter.range_count++;
        return read_range(value, &counter.low[at], &counter.high[at]);
    }
    if ((value = value_of(argument, "helper")) != NULL && counter.helper_count < KQ_MAX_HELPERS) {
        counter.helpers[counter.helper_count++] = (uint32_t)strtoul(value, NULL, 16);
        return 0;
    }
    if ((value = value_of(argument, "flash")) != NULL) {
        return read_range(value, &flash_low, &flash_high);
    }
    return -1;
}

int qemu_plugin_install(uint64_t plugin, const void *info, int argument_count, char **arguments)
{
    (void)info;
    for (int i = 0; i < argument_count; i++) {
        if (read_argument(arguments[i]) != 0) {
            fprintf(stderr, "counter plugin: cannot take %s\n", arguments[i]);
            return -1;
        }
    }
    if (out_name == NULL || counter.range_count == 0u) {
        fprintf(stderr, "counter plugin: out and run are missing\n");
        return -1;
    }
#if KQ_PLUGIN_API >= 7
    qemu_plugin_register_vcpu_tb_trans_cb(plugin, on_translation, NULL);
#else
    qemu_plugin_register_vcpu_tb_trans_cb(plugin, on_translation);
#endif
    return 0;
}
