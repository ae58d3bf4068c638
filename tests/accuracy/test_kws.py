"""Networks without 3x3 layers of many channels: the keyword spotter compressed after training and trained, the autoencoder's size."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import require_data, require_tool

from kqgen import pipeline
from kqgen.allocate import Target, allocate
from kqgen.board import load_board
from kqgen.calibrate import Ranges, calibrate
from kqgen.firmware import open_firmware
from kqgen.frontend import export_module, import_exported
from kqgen.hostlib import build_library
from kqgen.ir import Graph, frozen_array
from kqgen.options import Compression
from kqgen.oracle import input_codes
from kqgen.planned import planned_bytes
from kqgen.report import bits_per_weight
from kqgen.samples import Samples
from kqgen.simplify import simplify
from kqgen.verify import reference_outputs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from autoencoder.autoencoder import AutoEncoder  # noqa: E402
from kws.dscnn import CALIBRATION_CLIPS, clips, load, scores, weights_of  # noqa: E402
from kws.fsdd import digits  # noqa: E402

CLIPS = 1000
FLOAT_RIGHT = 823
"""Of the 900 clips that are judged, what the float network names rightly: 91.44 %."""


@cache
def spotter() -> tuple[Graph, Samples, Ranges, int]:
    """DS-CNN simplified, 100 clips to calibrate with, the ranges they give, and how many weights it has."""
    net = load(12, require_data("mlperf_tiny/pytorch/dscnn_kws.pt"))
    graph = simplify(import_exported(export_module(net, (torch.zeros(1, 1, 49, 10),)), "dscnn"))
    mfcc, _ = clips(require_data("mlperf_tiny/perf/kws01_1000.npz"))
    samples = Samples(tuple(node.name for node in graph.inputs), (frozen_array(mfcc[order()[:CALIBRATION_CLIPS]]),))
    return graph, samples, calibrate(graph, samples), weights_of(net)


def order() -> np.ndarray:
    return np.random.default_rng(0).permutation(CLIPS)


def right_of_900(compression: Compression) -> tuple[int, float]:
    """Clips named rightly of the 900 that did not calibrate, and bits a weight over all layers."""
    graph, samples, ranges, _ = spotter()
    integers, _ = pipeline.compress(graph, samples, compression, ranges=ranges)
    mfcc, words = clips(require_data("mlperf_tiny/perf/kws01_1000.npz"))
    judged = order()[CALIBRATION_CLIPS:]
    return int((scores(integers, mfcc[judged]).argmax(1) == words[judged]).sum()), bits_per_weight(integers).all or 0.0


def test_the_keyword_spotter_in_int8() -> None:
    right, bits = right_of_900(Compression("int8"))
    assert bits == 8.0
    assert right >= 0.90 * 900


def test_the_keyword_spotter_at_3_bits_without_training() -> None:
    graph, samples, ranges, weights = spotter()
    found = allocate(graph, Target(table_bytes=int(3.0 * weights / 8)), samples, ranges)
    assert found.compression.runs
    right, bits = right_of_900(found.compression)
    assert bits <= 3.0
    assert right >= FLOAT_RIGHT - 0.02 * 900


@pytest.mark.parametrize("bits", ["2.00"])
def test_the_c_of_the_trained_digits_is_the_reference_and_as_good_as_stated(bits: str, tmp_path: Path) -> None:
    require_tool("cc")
    _, _, inputs, labels = digits(require_data("fsdd/fsdd_mfcc_49x10_f16.npz"))
    file = EXAMPLES / "kws" / f"fsdd-{bits}.kq.safetensors"
    pipeline.compile_integers(file, board=load_board("host"), name=None, out=tmp_path / "out", build=False, toolchain=None)
    firmware = open_firmware(tmp_path / "out")
    assert (bits_per_weight(firmware.graph).all or 9.0) <= float(bits)
    codes = (input_codes(firmware.graph.inputs[0], inputs.numpy()),)
    (made,) = build_library(firmware.folder, firmware.graph).run(codes)
    assert np.array_equal(made, reference_outputs(firmware.graph, codes)[0])
    assert (made.reshape(len(labels), -1).argmax(1) == labels.numpy()).mean() >= 0.99


def test_the_autoencoder_fits_100_kilobytes_by_default() -> None:
    """What the default options store is known from shapes alone; 264 192 bytes in int8."""
    graph = simplify(import_exported(export_module(AutoEncoder().eval(), (torch.zeros(1, 640),)), "autoencoder"))
    planned = planned_bytes(graph, Compression())
    assert planned_bytes(graph, Compression("int8")).table_bytes == 264_192
    assert planned.table_bytes <= 76_000
    assert {layer.codebook for layer in planned.layers} <= {"", "codebook_run4"}
