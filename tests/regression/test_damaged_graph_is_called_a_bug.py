"""A graph file whose parts do not belong together is refused on reading, by layer and field; it once ended in a traceback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqgen import store
from kqgen.errors import InputError
from kqgen.intgraph import IntConv2d, IntGraph, KqWeights, QTensor, Requant, UniformWeights

NODE = IntConv2d(
    name="conv", path="conv", sources=("conv",), inputs=("x",), output=QTensor("conv", 3, 3, 2, 0.5, 0), lo=-128, hi=127, dense=False,
    in_shape=(5, 5, 1), kernel=(3, 3), stride=(1, 1), padding=(0, 0, 0, 0), pad_values=np.zeros(1, np.int8),
    weights=UniformWeights(8, np.ones((2, 3, 3, 1), np.int8)),
    requant=Requant(np.zeros(2, np.int32), np.full(2, 20000, np.int16), np.full(2, 9, np.uint8)),
    weight_scale=np.ones(2, np.float32), reason="",
)  # fmt: skip
GRAPH = IntGraph("net", (QTensor("x", 5, 5, 1, 0.5, 0),), (NODE,), ("conv",), frozenset(), (), compression="int8")


def reread(graph: IntGraph, folder: Path) -> IntGraph:
    path = folder / "net.kqgen.safetensors"
    path.write_bytes(store.to_bytes(graph))
    return store.read(path)[0]


def test_the_sound_graph_is_read(tmp_path: Path) -> None:
    assert reread(GRAPH, tmp_path).nodes[0].name == "conv"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"requant": replace(NODE.requant, bias=np.zeros(1, np.int32))}, "bias"),
        ({"requant": replace(NODE.requant, bias=np.zeros(2, np.float32))}, "bias"),
        ({"requant": replace(NODE.requant, acc_shift=77)}, "requant"),
        ({"requant": replace(NODE.requant, shift=np.zeros(2, np.uint8))}, "requant"),
        ({"kernel": (5, 5)}, "output"),
        ({"stride": (0, 1)}, "window"),
        ({"inputs": ("nowhere",)}, "inputs"),
        ({"lo": 5, "hi": 4}, "clamp"),
        ({"output": replace(NODE.output, scale=0.0)}, "scale"),
        ({"weights": UniformWeights(8, np.ones((2, 3, 3, 4), np.int8))}, "weights"),
        ({"weights": UniformWeights(4, np.full((2, 3, 3, 1), 9, np.int8))}, "weights"),
        ({"weights": KqWeights("none", 3, np.zeros((2, 1), np.int16), np.zeros((2, 1), np.bool_))}, "codebook"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_by_name(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^layer conv: {field} "):
        reread(replace(GRAPH, nodes=(replace(NODE, **change),)), tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"output": NODE.weights}, "UniformWeights where"),
        ({"weights": NODE.requant}, "Requant where"),
        ({"lo": np.zeros(1, np.int8)}, "an array where"),
    ],
)
def test_a_part_of_another_kind_is_refused(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"cannot be read(.|\n)*{word}"):
        reread(replace(GRAPH, nodes=(replace(NODE, **change),)), tmp_path)


def test_an_output_that_nothing_makes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the network: outputs "):
        reread(replace(GRAPH, outputs=("other",)), tmp_path)
