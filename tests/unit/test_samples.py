"""Calibration images: what is read, and how each kind of wrong input is told."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kqgen import ir
from kqgen.errors import InputError
from kqgen.samples import Samples, misgivings, npz_shapes, read_samples

ONE = ir.Graph("net", (ir.Input("x", "", (), (3, 4, 5)),), ("x",))
PIXELS = ir.Graph("net", (ir.Input("x", "", (), (3, 4, 5), uint8=True),), ("x",))
TWO = ir.Graph("net", (ir.Input("x", "", (), (3, 4, 5)), ir.Input("v", "", (), (2, 1, 1))), ("x", "v"))


def numbers(*shape: int) -> ir.Float32:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_an_npz_with_one_array_of_any_name(tmp_path: Path) -> None:
    samples = read_samples(saved(tmp_path / "a.npz", images=numbers(6, 3, 4, 5)), ONE)
    assert isinstance(samples, Samples)
    assert (samples.names, samples.count) == (("x",), 6)
    assert np.array_equal(samples.array("x"), numbers(6, 3, 4, 5))
    assert not samples.array("x").flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
def test_only_the_first_images_are_taken(tmp_path: Path, order: str) -> None:
    path = saved(tmp_path / "a.npz", images=np.array(numbers(6, 3, 4, 5), order="F" if order == "F" else "C"))
    assert np.array_equal(read_samples(path, ONE, limit=4).array("x"), numbers(6, 3, 4, 5)[:4])
    assert read_samples(str(path), ONE, limit=None).count == 6


def test_compressed_and_uint8(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=numbers(2, 3, 4, 5).astype(np.uint8))
    samples = read_samples(tmp_path / "a.npz", PIXELS)
    assert samples.array("x").dtype == np.float32
    assert np.array_equal(samples.array("x"), numbers(2, 3, 4, 5))


def test_several_inputs_by_name_else_by_order(tmp_path: Path) -> None:
    by_name = read_samples(saved(tmp_path / "a.npz", v=numbers(6, 2), other=numbers(1), x=numbers(6, 3, 4, 5)), TWO)
    by_order = read_samples(saved(tmp_path / "b.npz", first=numbers(6, 3, 4, 5), second=numbers(6, 2, 1, 1)), TWO)
    for samples in (by_name, by_order):
        assert samples.array("v").shape == (6, 2, 1, 1)
        assert samples.array("x").shape == (6, 3, 4, 5)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in (0, 4):
        yield torch.from_numpy(numbers(8, 3, 4, 5)[start : start + 4].copy()), torch.zeros(4)


@pytest.mark.parametrize(
    "source",
    [
        torch.from_numpy(numbers(8, 3, 4, 5)),
        numbers(8, 3, 4, 5),
        {"x": numbers(8, 3, 4, 5)},
        [numbers(8, 3, 4, 5)[:3], numbers(8, 3, 4, 5)[3:]],
        [{"x": torch.from_numpy(numbers(8, 3, 4, 5))}],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(numbers(8, 3, 4, 5)), torch.zeros(8)), batch_size=3),
        "generator",
    ],
    ids=["tensor", "array", "mapping", "list of arrays", "list of mappings", "DataLoader", "generator"],
)
def test_batches_of_every_form(source: object) -> None:
    samples = read_samples(batches() if isinstance(source, str) else source, ONE)
    assert np.array_equal(samples.array("x"), numbers(8, 3, 4, 5))


def test_tuples_for_several_inputs_with_and_without_label() -> None:
    pair = (numbers(2, 3, 4, 5), numbers(2, 2))
    for source in ([pair], [(*pair, np.zeros(2))], [(pair, np.zeros(2))]):
        assert read_samples(source, TWO).array("v").shape == (2, 2, 1, 1)


def test_no_more_batches_are_drawn_than_needed() -> None:
    drawn = []

    def endless() -> Iterator[ir.Float32]:
        while True:
            drawn.append(1)
            yield numbers(4, 3, 4, 5)

    assert read_samples(endless(), ONE, limit=10).count == 10
    assert len(drawn) == 3


def test_batches_are_copies_in_order() -> None:
    samples = read_samples(numbers(5, 3, 4, 5), ONE)
    parts = [batch["x"] for batch in samples.batches(2)]
    assert [len(part) for part in parts] == [2, 2, 1]
    parts[0].zero_()
    assert np.array_equal(samples.array("x"), numbers(5, 3, 4, 5))


def test_shapes_are_read_from_the_headers(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", a=numbers(6, 3, 4, 5), b=np.zeros((2, 7), np.uint8))
    assert npz_shapes(path) == (("a", (6, 3, 4, 5)), ("b", (2, 7)))


def broken(values: ir.Float32, index: tuple[int, ...], value: float) -> ir.Float32:
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("graph", "source", "parts"),
    [
        (ONE, numbers(2, 4, 5, 3), ["(2, 4, 5, 3)", "(N, 3, 4, 5)", "transpose(0, 3, 1, 2)"]),
        (ONE, numbers(3, 4, 5), ["(3, 4, 5)", "(N, 3, 4, 5)", "array[None]"]),
        (ONE, numbers(2, 3, 4, 6), ["(2, 3, 4, 6)", "(N, 3, 4, 5)"]),
        (ONE, np.zeros((), np.float32), ["()", "(N, 3, 4, 5)"]),
        (ONE, numbers(2, 3, 4, 5).astype(np.float64), ["float64", "float32", "astype"]),
        (ONE, numbers(2, 3, 4, 5).astype(np.int32), ["int32"]),
        (ONE, numbers(0, 3, 4, 5), ["holds no image"]),
        (ONE, [], ["holds no image"]),
        (ONE, broken(numbers(4, 3, 4, 5), (2, 0, 0, 0), float("nan")), ["NaN or infinity", "1 of 4", "number 2"]),
        (ONE, broken(numbers(4, 3, 4, 5), (3, 0, 0, 0), float("-inf")), ["NaN or infinity", "number 3"]),
        (PIXELS, numbers(2, 3, 4, 5) / 255, ["takes uint8 pixels", "0 to 0.4"]),
        (TWO, numbers(2, 3, 4, 5), ["has 2 inputs"]),
        (TWO, [(numbers(2, 3, 4, 5),)], ["too few entries"]),
        (TWO, {"x": numbers(2, 3, 4, 5), "v": numbers(3, 2)}, ["different numbers of images", "x 2, v 3"]),
        (TWO, {"x": numbers(2, 3, 4, 5), "w": numbers(2, 2), "u": numbers(1)}, ["do not match", "'x', 'v'"]),
        (ONE, ["image"], ["no array", "str"]),
        (ONE, 3, ["cannot read calibration data", "int"]),
    ],
)
def test_wrong_data_give_one_clear_error(graph: ir.Graph, source: object, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_samples(source, graph)
    for part in parts:
        assert part in caught.value.render()


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="no images were asked for"):
        read_samples(numbers(2, 3, 4, 5), ONE, limit=0)


def test_wrong_files_give_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_samples(tmp_path / "none.npz", ONE)
    with pytest.raises(InputError, match="cannot read"):
        read_samples(tmp_path, ONE)
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(InputError, match="cannot read"):
        read_samples(tmp_path / "text.npz", ONE)
    whole = saved(tmp_path / "cut.npz", x=numbers(2, 3, 4, 5)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read"):
        read_samples(tmp_path / "cut.npz", ONE)
    with zipfile.ZipFile(tmp_path / "empty.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(InputError, match="holds no array"):
        read_samples(tmp_path / "empty.npz", ONE)


class Hostile:
    """Writes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    np.savez(tmp_path / "a.npz", x=np.array([Hostile(marker)], dtype=object))
    with pytest.raises(InputError, match="holds Python objects"):
        read_samples(tmp_path / "a.npz", ONE)
    assert not marker.exists()


def test_an_array_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3, 4, 5)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(InputError, match="more than the"):
        read_samples(tmp_path / "a.npz", ONE, limit=None)


def test_a_sequence_comes_without_its_one_row() -> None:
    sequence = ir.Graph("net", (ir.Input("x", "", (), (3, 1, 5)),), ("x",))
    assert np.array_equal(read_samples(numbers(6, 3, 5), sequence).array("x")[:, :, 0], numbers(6, 3, 5))
    with pytest.raises(InputError, match=r"\(N, 3, 1, 5\) or \(N, 3, 5\)"):
        read_samples(numbers(6, 5, 3), sequence)


def test_few_images_and_constant_inputs_are_told() -> None:
    assert misgivings(read_samples(numbers(40, 3, 4, 5), ONE)) == ()
    few, constant = misgivings(read_samples(np.full((2, 3, 4, 5), 0.5, np.float32), ONE))
    assert few.startswith("2 calibration images: ")
    assert constant.startswith("input x is 0.5 everywhere")
