"""Where a network in training loses accuracy: the waterfall, with the step from real codewords to 6-bit ones, which no file keeps."""

from __future__ import annotations

import numpy as np
import torch

from kqgen.deliver import quantised_inputs
from kqgen.errors import InputError
from kqgen.fidelity import Waterfall, waterfall
from kqgen.samples import read_samples
from kqgen.train_model import KqModule
from kqgen.training import float_twin
from kqgen.verify import reference_outputs

_BATCH = 250


def fidelity(model: KqModule, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Waterfall:
    """Accuracy, SQNR and bytes of a prepared model after each step from float to integers, and layer by layer.

    Args:
        inputs: (N, C, H, W) or (N, n), as the model takes them; networks of one input.
        labels: (N,) classes of the first output.

    Raises:
        UnsupportedError: the model holds operators that do not compile.
        InputError: labels and inputs differ in number.
    """
    if labels is not None and len(labels) != len(inputs):
        raise InputError("labels do not belong to the inputs", found=f"{len(labels)} labels, {len(inputs)} inputs", wanted="as many")
    trained = model.trained()
    original = model.blueprint.graph
    array = inputs.detach().float().cpu().numpy()
    samples = read_samples(array, original, limit=None)
    twin = float_twin(model).cpu()
    with torch.no_grad():
        parts = [twin(torch.from_numpy(array[start : start + _BATCH])) for start in range(0, len(array), _BATCH)]
    expected = tuple(np.concatenate([part[number].numpy() for part in parts]) for number in range(len(parts[0])))
    codes = quantised_inputs(trained.integers, samples)
    outputs = reference_outputs(trained.integers, codes)
    classes = None if labels is None else labels.cpu().numpy().astype(np.int64)
    return waterfall(original, trained.integers, samples, expected, outputs, by_c=False, labels=classes, codewords=dict(trained.codewords))
