"""Runs the user's float model itself, as PyTorch has it, for comparison with the integers."""

from __future__ import annotations

import numpy as np
import torch
from torch.export import ExportedProgram

from kqgen.intgraph import IntGraph
from kqgen.ir import Float32
from kqgen.samples import Samples

FREE_BATCH = 64
"""Images at a time where the program's batch axis has no fixed size."""


def float_outputs(program: ExportedProgram, samples: Samples, count: int) -> tuple[Float32, ...]:
    """The float model's outputs for the first `count` images, each (count, ...) float32.

    A program of fixed batch size is run with as many images at a time, the last of them repeated to fill it.
    """
    users = set(program.graph_signature.user_inputs)
    metas = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    first = metas[0].shape[0]
    batch = int(first) if isinstance(first, int) else FREE_BATCH
    module = program.module()
    parts: list[list[Float32]] = []
    with torch.no_grad():
        for start in range(0, count, batch):
            chosen = np.minimum(np.arange(start, start + (batch if isinstance(first, int) else min(batch, count - start))), count - 1)
            inputs = [
                torch.from_numpy(array[chosen]).to(meta.dtype).reshape(len(chosen), *meta.shape[1:])
                for array, meta in zip(samples.arrays, metas, strict=True)
            ]
            result = module(*inputs)
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            parts.append([output.float().numpy()[: count - start] for output in outputs])
    return tuple(np.concatenate([part[number] for part in parts]) for number in range(len(parts[0])))


def as_maps(graph: IntGraph, outputs: tuple[Float32, ...]) -> tuple[Float32, ...]:
    """The float model's outputs, each (N, ...) in PyTorch's order, as maps (N, c, h, w)."""
    maps = []
    for name, output in zip(graph.outputs, outputs, strict=True):
        tensor = graph.tensor(name)
        if name in graph.channels_last:
            maps.append(np.ascontiguousarray(output.reshape(-1, tensor.h, tensor.w, tensor.c).transpose(0, 3, 1, 2)))
        else:
            maps.append(output.reshape(-1, tensor.c, tensor.h, tensor.w))
    return tuple(maps)
