/* What kq_qemu_counter.c uses of QEMU's TCG plugin interface: distributions package QEMU without its qemu-plugin.h.
 * KQ_PLUGIN_API is the version QEMU is told: 1 (QEMU 6.0 to 8.2), 2 (9.0 to 10.2), 6 (11.0) or 7 (11.1 on). Among the functions
 * here only the registration of translations differs: from version 7 on every callback takes user data.
 * Source: QEMU's documentation of TCG plugins and its list of API versions.
 */
#ifndef KQ_QEMU_PLUGIN_H
#define KQ_QEMU_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KQ_EXPORT __attribute__((visibility("default")))

enum { KQ_QEMU_NO_REGISTERS = 0, KQ_QEMU_READS_AND_WRITES = 3 };

typedef struct kq_qemu_block kq_qemu_block;
typedef struct kq_qemu_insn kq_qemu_insn;
typedef void (*kq_qemu_on_block)(unsigned int core, void *data);
typedef void (*kq_qemu_on_access)(unsigned int core, uint32_t access, uint64_t address, void *data);

#if KQ_PLUGIN_API >= 7
typedef void (*kq_qemu_on_translation)(kq_qemu_block *block, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t plugin, kq_qemu_on_translation callback, void *data);
#else
typedef void (*kq_qemu_on_translation)(uint64_t plugin, kq_qemu_block *block);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t plugin, kq_qemu_on_translation callback);
#endif

void qemu_plugin_register_vcpu_tb_exec_cb(kq_qemu_block *block, kq_qemu_on_block callback, int registers, void *data);
void qemu_plugin_register_vcpu_mem_cb(kq_qemu_insn *insn, kq_qemu_on_access callback, int registers, int kind, void *data);
size_t qemu_plugin_tb_n_insns(const kq_qemu_block *block);
kq_qemu_insn *qemu_plugin_tb_get_insn(const kq_qemu_block *block, size_t index);
uint64_t qemu_plugin_tb_vaddr(const kq_qemu_block *block);
uint64_t qemu_plugin_insn_vaddr(const kq_qemu_insn *insn);
size_t qemu_plugin_insn_size(const kq_qemu_insn *insn);
unsigned int qemu_plugin_mem_size_shift(uint32_t access);
bool qemu_plugin_mem_is_store(uint32_t access);

/* What QEMU looks for in the plugin. */
extern KQ_EXPORT int qemu_plugin_version;
KQ_EXPORT int qemu_plugin_install(uint64_t plugin, const void *info, int argument_count, char **arguments);

#endif
