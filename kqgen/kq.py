"""Kernel Quantization as users call it: `from kqgen import kq`.

    prepare, finetune, save      training with learned codebooks, in a user's own loop or in ours
    accuracy, integers, bits_per_weight, float_twin, fidelity      what came of it
    quantise                     after training, from calibration images alone; `kqgen.compile` calls it
"""

from __future__ import annotations

from kqgen.options import Codebook, Compression
from kqgen.post_training import quantise
from kqgen.train_fidelity import fidelity
from kqgen.train_loop import Progress, Settings
from kqgen.train_model import KqModule, Tempo
from kqgen.training import accuracy, bits_per_weight, finetune, float_twin, integers, prepare, save

__all__ = [
    "Codebook", "Compression", "KqModule", "Progress", "Settings", "Tempo", "accuracy", "bits_per_weight", "fidelity", "finetune",
    "float_twin", "integers", "prepare", "quantise", "save",
]  # fmt: skip
