"""MobileNetV1-0.25 of MLPerf Tiny (visual wake words): five sixths of its weights are dead, and leave it without a bit of difference.

No images of its data set are here. Codes that are equal for every input need none; ranges come from CIFAR-10 images enlarged to 96x96.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import require_data, require_tool
from resnets import cifar10, loaders

from kqgen import oracle, pipeline
from kqgen.board import load_board
from kqgen.deliver import deliver, drawn_inputs
from kqgen.frontend import export_module, import_exported
from kqgen.options import Compression
from kqgen.prune_record import without_dead
from kqgen.samples import read_samples
from kqgen.simplify import simplify
from kqgen.toolchain import find_toolchain

WEIGHTS = "mlperf_tiny/pytorch/mobilenetv1_025_vww.pt"
CALIBRATION_IMAGES = 16
MOST_FLASH_BYTES = 48 * 1024
MOST_WEIGHTS = 30_000


def test_mobilenet_without_its_dead_channels(tmp_path: Path) -> None:
    """All outputs equal on images, noise and extremes; the whole network, code counted, in less than 48 KB."""
    require_tool("gcc")
    require_data(WEIGHTS)
    kit = loaders()
    module = kit.load(kit.MobileNetV1VWW(), WEIGHTS)
    pixels = kit.nchw(cifar10("train")[0][:CALIBRATION_IMAGES]) / 255
    images = torch.nn.functional.interpolate(pixels, size=(96, 96), mode="bilinear").numpy()
    graph = simplify(import_exported(export_module(module, (torch.from_numpy(images[:1]),)), "vww"))
    samples = read_samples(images, graph)
    integers, _ = pipeline.compress(graph, samples, Compression("int8"))
    slim, dead = without_dead(integers)
    codes = np.concatenate([
        oracle.input_codes(integers.inputs[0], images[:4]),
        np.random.default_rng(0).integers(-128, 128, (4, 96, 96, 3), dtype=np.int8),
        np.full((1, 96, 96, 3), -128, np.int8), np.full((1, 96, 96, 3), 127, np.int8),
    ])  # fmt: skip
    name, output = integers.inputs[0].name, integers.outputs[0]
    assert np.array_equal(oracle.run(integers, {name: codes})[output], oracle.run(slim, {name: codes})[output])
    assert dead.padded_weights - dead.removed.weights <= MOST_WEIGHTS
    board = load_board("nucleo-g0b1re")
    made = deliver(
        integers, board, drawn_inputs(integers), "", None, tmp_path / "out", find_toolchain("gcc"), lambda label, fraction: None, True
    )
    flash = made.report.flash_bytes.total
    assert flash is not None
    assert flash <= MOST_FLASH_BYTES
    assert made.report.dead is not None
    assert made.report.dead.int8_tables_bytes * 6 < made.report.dead.padded_int8_tables_bytes
