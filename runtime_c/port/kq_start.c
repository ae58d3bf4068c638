/* Start-up of the emulator harness on any Cortex-M: vector table, .data and .bss, faults.
 * Source: Armv6-M, Armv7-M and Armv8-M Architecture Reference Manuals (vector table, exception frame, CPACR).
 */
#include "kq_semihost.h"

/* Set by the linker script; only their addresses mean something. */
extern uint32_t kq_stack_top[];
extern uint32_t kq_data_load[];
extern uint32_t kq_data_start[];
extern uint32_t kq_data_end[];
extern uint32_t kq_bss_start[];
extern uint32_t kq_bss_end[];

int main(void);
_Noreturn void kq_reset(void);
void kq_fault(void);
_Noreturn void kq_fault_report(const uint32_t *frame);

/* Prints the return address of the exception frame (word 6: the instruction that faulted) and leaves. */
_Noreturn void kq_fault_report(const uint32_t *frame)
{
    static const uint8_t digits[16] = {'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'};
    uint8_t text[9];
    uint32_t pc = frame[6];
    for (uint32_t i = 0u; i < 8u; i++) {
        text[i] = digits[pc >> 28];
        pc <<= 4;
    }
    text[8] = 0u;
    kq_sh_print("harness: fault at pc 0x");
    kq_sh_print(text);
    kq_sh_print("\n");
    kq_sh_exit(KQ_HARNESS_FAULT);
}

/* Every exception comes here; interrupts are never enabled. */
__attribute__((naked)) void kq_fault(void)
{
    __asm__ volatile("mrs r0, msp\n\tbl kq_fault_report");
}

_Noreturn void kq_reset(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    /* CPACR: full access to CP10 and CP11, else the first FPU or MVE instruction faults. */
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    const uint32_t *from = kq_data_load;
    for (volatile uint32_t *to = kq_data_start; to != kq_data_end; to++) {
        *to = *from;
        from++;
    }
    for (volatile uint32_t *to = kq_bss_start; to != kq_bss_end; to++) {
        *to = 0u;
    }
    kq_sh_exit((uint32_t)main());
}

/* Initial stack pointer, reset, then the 14 system exceptions. */
typedef void (*kq_vector)(void);
__attribute__((section(".vectors"), used)) static const kq_vector kq_vectors[16] = {
    (kq_vector)(uintptr_t)kq_stack_top, kq_reset, kq_fault, kq_fault, kq_fault, kq_fault, kq_fault, kq_fault,
    kq_fault, kq_fault, kq_fault, kq_fault, kq_fault, kq_fault, kq_fault, kq_fault,
};
