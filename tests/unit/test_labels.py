"""Labels beside the images of an .npz: read for accuracy, no input of the network, and refused when they cannot be right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kqgen import ir
from kqgen.errors import InputError
from kqgen.samples import read_labels, read_samples

ONE = ir.Graph("net", (ir.Input("x", "", (), (3, 4, 5)),), ("x",))
NAMED = ir.Graph("net", (ir.Input("labels", "", (), (3, 4, 5)),), ("labels",))
IMAGES = np.arange(360, dtype=np.float32).reshape(6, 3, 4, 5)


def saved(folder: Path, **arrays: object) -> Path:
    path = folder / "a.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_labels_are_read_and_are_no_input(tmp_path: Path, dtype: str) -> None:
    path = saved(tmp_path, labels=np.array([0, 4, 1, 2, 3, 0], dtype), anything=IMAGES)
    labels = read_labels(path, 5, limit=4)
    assert labels is not None
    assert (labels.dtype, labels.tolist()) == (np.dtype(np.int64), [0, 4, 1, 2])
    assert np.array_equal(read_samples(path, ONE).arrays[0], IMAGES)


def test_an_npz_without_labels_has_none(tmp_path: Path) -> None:
    assert read_labels(saved(tmp_path, images=IMAGES), 5) is None


def test_an_input_of_that_name_stays_an_input(tmp_path: Path) -> None:
    assert np.array_equal(read_samples(saved(tmp_path, labels=IMAGES), NAMED).arrays[0], IMAGES)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0, 1, 2, 3, 4, 5]), ("label 5 of image 5; 1 such labels", "0 to 4", "5 outputs")),
        (np.array([0, -1, 2, -3, 4, 4]), ("label -1 of image 1; 2 such labels",)),
        (np.zeros(5, np.int64), ("5 labels, 6 images", "one label an image")),
        (np.zeros(6), ("float64 (6,)", "whole numbers (N,)")),
        (np.zeros((6, 5), np.int64), ("int64 (6, 5)", "argmax")),
        (np.int64(3), ("int64 ()",)),
    ],
)
def test_labels_that_cannot_be_right(tmp_path: Path, labels: object, says: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        read_labels(saved(tmp_path, images=IMAGES, labels=labels), 5, limit=6)
    assert [text for text in says if text not in str(raised.value)] == []


def test_labels_beyond_the_limit_are_not_judged(tmp_path: Path) -> None:
    labels = read_labels(saved(tmp_path, images=IMAGES, labels=np.array([0, 1, 2, 9, 9, 9])), 5, limit=3)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]
