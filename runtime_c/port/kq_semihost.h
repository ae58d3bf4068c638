/* Semihosting calls of the emulator harness: files and exit, through BKPT 0xAB.
 * Source: Arm, Semihosting for AArch32 and AArch64 (numbers and parameter blocks).
 * Only images that kqgen builds to prove a network hold this; firmware does not.
 */
#ifndef KQ_SEMIHOST_H
#define KQ_SEMIHOST_H

#include <stdint.h>

#define KQ_SH_OPEN 0x01u
#define KQ_SH_CLOSE 0x02u
#define KQ_SH_WRITE0 0x04u
#define KQ_SH_WRITE 0x05u
#define KQ_SH_READ 0x06u
#define KQ_SH_EXIT_EXTENDED 0x20u

#define KQ_SH_MODE_READ 1u  /* "rb" */
#define KQ_SH_MODE_WRITE 5u /* "wb" */

#define KQ_SH_APPLICATION_EXIT 0x20026u

/* Exit statuses of the harness; the model's own failure is in stats.bin. */
#define KQ_HARNESS_OK 0u
#define KQ_HARNESS_MODEL_FAILED 3u
#define KQ_HARNESS_FILE_FAILED 4u
#define KQ_HARNESS_FAULT 5u

/* Performs one call; block points to its parameters or is the parameter itself. Any result, per call. */
static inline uint32_t kq_sh_call(uint32_t operation, const volatile void *block)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const volatile void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* Leaves the emulator with that status. */
static inline _Noreturn void kq_sh_exit(uint32_t status)
{
    const volatile uint32_t block[2] = {KQ_SH_APPLICATION_EXIT, status};
    for (;;) {
        (void)kq_sh_call(KQ_SH_EXIT_EXTENDED, block);
    }
}

/* Prints a text that ends in a zero byte. */
static inline void kq_sh_print(const void *text)
{
    (void)kq_sh_call(KQ_SH_WRITE0, text);
}

/* Opens a file; name_bytes is the length of the name without its zero. Ends the program when it cannot. */
static inline uint32_t kq_sh_open(const void *name, uint32_t name_bytes, uint32_t mode)
{
    const volatile uint32_t block[3] = {(uint32_t)(uintptr_t)name, mode, name_bytes};
    const uint32_t handle = kq_sh_call(KQ_SH_OPEN, block);
    if (handle == UINT32_MAX) {
        kq_sh_print("harness: cannot open a file\n");
        kq_sh_exit(KQ_HARNESS_FILE_FAILED);
    }
    return handle;
}

/* Reads up to size_bytes; the result is the number of bytes that could not be read (0: all were). */
static inline uint32_t kq_sh_read(uint32_t handle, void *data, uint32_t size_bytes)
{
    const volatile uint32_t block[3] = {handle, (uint32_t)(uintptr_t)data, size_bytes};
    return kq_sh_call(KQ_SH_READ, block);
}

/* Writes size_bytes. Ends the program when not all could be written. */
static inline void kq_sh_write(uint32_t handle, const void *data, uint32_t size_bytes)
{
    const volatile uint32_t block[3] = {handle, (uint32_t)(uintptr_t)data, size_bytes};
    if (kq_sh_call(KQ_SH_WRITE, block) != 0u) {
        kq_sh_print("harness: cannot write a file\n");
        kq_sh_exit(KQ_HARNESS_FILE_FAILED);
    }
}

/* Closes a file, which puts what was written on disk. */
static inline void kq_sh_close(uint32_t handle)
{
    const volatile uint32_t block[1] = {handle};
    (void)kq_sh_call(KQ_SH_CLOSE, block);
}

#endif
