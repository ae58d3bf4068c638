"""A hand-made model with the interface of generated ones: four calls to a little runtime, outputs known in closed form."""

from __future__ import annotations

from pathlib import Path

from kqgen.harness import IoBuffer, ModelApi

API = ModelApi("tiny", (IoBuffer("x", 48),), (IoBuffer("y", 16),))

HEADER = """
#ifndef TINY_H
#define TINY_H
#include "kq_tiny.h"
#define TINY_INPUT_BYTES 48u
#define TINY_INPUT_OFFSET 48u
#define TINY_OUTPUT_BYTES 16u
#define TINY_ARENA_BYTES 96u
#define TINY_ARENA_ALIGN 4u
kq_status tiny_run(void *arena, const int8_t *input, int8_t *output);
#endif
"""

RUNTIME_HEADER = """
#ifndef KQ_TINY_H
#define KQ_TINY_H
#include <stddef.h>
#include <stdint.h>
typedef enum { KQ_OK = 0, KQ_ERR_NULL = -1 } kq_status;
struct kq_table { uint32_t count; uint8_t weights[20]; };
extern const struct kq_table tiny_table;
void kq_negate(const int8_t *in, int8_t *out, uint32_t count);
void kq_weigh(const struct kq_table *table, const int8_t *in, int8_t *out, uint32_t count);
void kq_fold(const int8_t *in, int8_t *out, uint32_t count);
#endif
"""

RUNTIME = """
#include "kq_tiny.h"

void kq_negate(const int8_t *in, int8_t *out, uint32_t count)
{
    for (uint32_t i = 0u; i < count; i++) {
        out[i] = (int8_t)~in[i];
    }
}

void kq_weigh(const struct kq_table *table, const int8_t *in, int8_t *out, uint32_t count)
{
    uint32_t at = 0u;
    for (uint32_t i = 0u; i < count; i++) {
        const int32_t product = (int32_t)in[i] * (int32_t)table->weights[at];
        out[i] = (int8_t)(product >> 5);
        at++;
        if (at == table->count) {
            at = 0u;
        }
    }
}

void kq_fold(const int8_t *in, int8_t *out, uint32_t count)
{
    volatile int8_t row[64];
    for (uint32_t i = 0u; i < 3u * count; i++) {
        row[i] = in[i];
    }
    for (uint32_t i = 0u; i < count; i++) {
        const int32_t sum = row[i] + row[i + count] + row[i + 2u * count];
        out[i] = sum > 127 ? (int8_t)127 : sum < -128 ? (int8_t)-128 : (int8_t)sum;
    }
}
"""

TABLES = """
#include "kq_tiny.h"
const struct kq_table tiny_table = {20u, {3u, 1u, 4u, 1u, 5u, 9u, 2u, 6u, 5u, 3u, 5u, 8u, 9u, 7u, 9u, 3u, 2u, 3u, 8u, 4u}};
"""

MODEL = """
#include "tiny.h"

#ifdef KQGEN_TAP
void tiny_tap(uint32_t step, const int8_t *data, uint32_t size_bytes);
#define TAP(step, data, size) tiny_tap(step, data, size)
#else
#define TAP(step, data, size) ((void)0)
#endif

kq_status tiny_run(void *arena, const int8_t *input, int8_t *output)
{
    if (arena == NULL || input == NULL || output == NULL) {
        return KQ_ERR_NULL;
    }
    int8_t *const a = arena;
    int8_t *const b = a + 48;
    kq_negate(input, a, 48u);
    TAP(0u, a, 48u);
    kq_weigh(&tiny_table, a, b, 48u);
    TAP(1u, b, 48u);
    kq_weigh(&tiny_table, b, a, 48u);
    TAP(2u, a, 48u);
    kq_fold(a, output, 16u);
    TAP(3u, output, 16u);
    return KQ_OK;
}
"""

WEIGHTS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4)
STEPS = 4


def write_sources(folder: Path, **replaced: str) -> Path:
    """Writes the model's files into `folder`; `replaced` gives other text for model, runtime, tables, header or runtime_header."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "tiny.h": replaced.get("header", HEADER),
        "tiny.c": replaced.get("model", MODEL),
        "tiny_tables.c": replaced.get("tables", TABLES),
        "kq_tiny.h": replaced.get("runtime_header", RUNTIME_HEADER),
        "kq_tiny.c": replaced.get("runtime", RUNTIME),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def image(seed: int) -> bytes:
    """48 input bytes from a fixed linear congruential generator."""
    state, out = seed & 0xFFFFFFFF, bytearray()
    for _ in range(48):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(state >> 24)
    return bytes(out)


def _signed(value: int) -> int:
    return (value & 0xFF) - 256 if value & 0x80 else value & 0xFF


def steps(data: bytes) -> list[bytes]:
    """What each step must write, computed without the C."""
    weigh = [WEIGHTS[i % 20] for i in range(48)]
    first = [~_signed(value) for value in data]
    second = [_signed(value * weight >> 5) for value, weight in zip(first, weigh, strict=True)]
    third = [_signed(value * weight >> 5) for value, weight in zip(second, weigh, strict=True)]
    fourth = [max(-128, min(127, third[i] + third[i + 16] + third[i + 32])) for i in range(16)]
    return [bytes(value & 0xFF for value in row) for row in (first, second, third, fourth)]
