"""What `prepare` and `save` take and refuse, modules that nobody wrote for us, and labelled files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from trainnets import Batches, LeNet, Residual, Small, UNet, make, maps, one_thread, outputs_of_c, pixels, plain_loop, state_of

from kqgen import training
from kqgen.errors import InputError, UnsupportedError
from kqgen.intgraph import IntConv2d, KqWeights
from kqgen.options import Codebook
from kqgen.train_blueprint import Blueprint, draw
from kqgen.train_data import ArrayLoader, Labelled, read_labelled
from kqgen.train_modules import IndexedWeight, UniformWeight

_one_thread = one_thread


def said(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


@cache
def blueprint() -> Blueprint:
    return draw(make(Small), (maps(1)[0],), "model")


def small(**options: Any) -> training.KqModule:
    """`Small`, prepared; that torch.export is asked once saves a second each time."""
    with mock.patch.object(training, "draw", return_value=blueprint()):
        return training.prepare(make(Small), **options)


# Modules unseen by us


def test_a_plain_lenet_learns_digits_and_compiles(tmp_path: Path) -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images[:, None].astype(np.float32))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    torch.manual_seed(0)
    module = make(LeNet)
    float_losses = plain_loop(module, Batches(images[:1200] / 16, labels[:1200], 50), 6 * 24, rate=0.1)
    assert float_losses[-1] < 1.0
    model = training.prepare(module, example_inputs=(images[:1],), codebook=Codebook("layer", 16))
    told: list[training.Progress] = []
    end = training.finetune(
        model, Batches(images[:1200] / 16, labels[:1200], 50), teacher=module, epochs=3, report=told.append,
        validation=Batches(images[1200:] / 16, labels[1200:], 100),
    )  # fmt: skip
    assert told[-1].loss < 0.5 * told[0].loss
    assert end.validation is not None
    assert end.validation > 0.6
    found = model(images[1200:] / 16)
    assert np.array_equal(outputs_of_c(model, tmp_path, images[1200:] / 16), found.numpy())
    kernels = {parameter: made.book.values.shape for parameter, made, _ in model.indexed()}
    assert kernels == {"conv2.weight": (16, 25), "fc1.weight": (16, 2), "fc2.weight": (16, 2)}


def weight_of(model: training.KqModule, path: str) -> torch.Tensor:
    weight = model.net.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def test_a_unet_trains_in_its_own_loop_and_cannot_be_saved(tmp_path: Path) -> None:
    """It learns to smooth; every kernel it computes with is a codeword, and the operator that does not compile has its name told."""
    generator = torch.Generator().manual_seed(0)
    clean = F.interpolate(torch.randn((32, 1, 4, 4), generator=generator), scale_factor=4.0, mode="bilinear")
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    model = training.prepare(make(UNet), example_inputs=(noisy[:1],), codebook=Codebook("network", 32), keep=(("bottom.0", 4),))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        for start in range(0, 32, 8):
            loss = F.mse_loss(model(noisy[start : start + 8]), clean[start : start + 8])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.3 * np.mean(losses[:4])
    model.eval()
    with torch.no_grad():
        made = model(noisy)
        assert made.shape == (32, 1, 16, 16)
        assert torch.equal(made[:5], model(noisy[:5]))
        assert float(F.mse_loss(made, clean)) < 0.5 * losses[0]

    assert set(model.books) == {f"{path}.0.weight" for path in ("down2", "up2", "up1")}
    for parameter, layer, _ in model.indexed():
        assert isinstance(layer, IndexedWeight)
        rows = {tuple(row) for row in layer.book.integers().detach().int().tolist()}
        assert max(abs(value) for row in rows for value in row) <= 31
        scaled = weight_of(model, parameter.removesuffix(".weight")) / (layer.output_scale()[:, None, None, None] * layer.book.step)
        kernels = scaled.reshape(-1, 9)
        assert torch.allclose(kernels, kernels.round(), atol=1e-3)
        assert all(tuple(row) in rows or tuple(-value for value in row) in rows for row in kernels.round().int().tolist())
    for path, levels, axis in (("rise", 255, 1), ("bottom.0", 15, 0), ("head", 255, 0), ("down1.0", 255, 0)):
        original = weight_of(model, path)
        entry = cast(Any, model.net.get_submodule(path)).parametrizations.weight[0]
        assert isinstance(entry, UniformWeight)
        steps = original / entry.log_scale.detach().exp()
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert int(steps.abs().max().round()) <= levels // 2
        assert entry.log_scale.shape[axis] == entry.log_scale.numel() == original.shape[axis]

    with pytest.raises(UnsupportedError, match="upsample_bilinear2d"):
        training.save(model, tmp_path / "net.kq.safetensors")
    with pytest.raises(UnsupportedError, match="upsample_bilinear2d"):
        training.integers(model)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_program_is_prepared_as_its_module_is() -> None:
    images, labels = pixels(8)
    module = make(Residual).eval()
    program = torch.export.export(module, (images[:1],))
    direct, loaded = training.prepare(module, example_inputs=(images[:1],)), training.prepare(program)
    states = state_of(direct), state_of(loaded)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for model in (direct, loaded):
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(direct.eval()(images), loaded.eval()(images))


def test_the_float_twin_is_the_float_module() -> None:
    images, _ = pixels(8)
    module = make(Residual)
    model = training.prepare(module, example_inputs=(images[:1],))
    plain_loop(model, Batches(*pixels(8), 8), 2)
    twin = training.float_twin(model)
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert torch.allclose(twin(images)[0], module.eval()(images), atol=1e-5)


def test_calibration_gives_the_ranges_of_the_compiler() -> None:
    """Compiled with nothing but uniform weights, a prepared network is what the compiler makes."""
    images, _ = pixels(32)
    module = make(Residual).eval()
    model = training.prepare(module, example_inputs=(images[:1],), calibration=images.numpy(), weights="int8")
    with torch.no_grad():
        wanted, found = module(images), model.eval()(images)
    assert float((wanted - found).square().mean()) < 0.01 * float(wanted.var())
    assert model.books == {}


class Half(nn.Module):
    """A parameter that nothing reads, one weight that two layers share, and a fixed filter."""

    blur: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.twin = nn.Conv2d(4, 4, 3, padding=1)
        self.twin.weight = self.conv.weight
        self.unused = nn.Conv2d(4, 9, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.twin(torch.relu(self.conv(x))))
        return cast(torch.Tensor, self.head(x.mean((2, 3))))


def test_shared_and_unused_weights() -> None:
    """What two layers share stays one; what nothing reads is not trained, since an exchange of gradients would wait for it."""
    inputs = torch.randn((8, 4, 6, 6), generator=torch.Generator().manual_seed(0))
    model = training.prepare(make(Half), example_inputs=(inputs[:1],), codebook=Codebook("network", 4))
    F.cross_entropy(model(inputs), torch.arange(8) % 3).backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None] == []
    assert len(list(model.indexed())) == 1
    first, second = (cast(IntConv2d, node).weights for node in training.integers(model).nodes[:2])
    assert isinstance(first, KqWeights)
    assert isinstance(second, KqWeights)
    assert np.array_equal(first.codes, second.codes)
    model.eval()
    assert model(inputs).shape == (8, 3)
    assert float((model.simulate(inputs) - model(inputs)).detach().abs().max()) < 0.1


# What cannot be prepared


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def _normed_by_weight(kind: type[nn.Module], path: str) -> nn.Module:
    module = make(kind)
    nn.utils.parametrizations.weight_norm(module.get_submodule(path))
    return module


def _two_devices() -> nn.Module:
    module = make(Small)
    module.get_submodule("head").to("meta")
    return module


def _not_finite() -> nn.Module:
    module = make(Small)
    with torch.no_grad():
        module.get_parameter("second.weight")[1, 2, 0, 0] = torch.nan
    return module


IMAGE = torch.zeros(1, 2, 6, 6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: training.prepare(cast(Any, "net.pt2"), example_inputs=(IMAGE,)), ("no module to prepare", "str", "torch.nn.Module")),
        (lambda: training.prepare(_two_devices(), example_inputs=(IMAGE,)), ("lies on several devices", "cpu, meta", "one device")),
        (lambda: training.prepare(make(Small).to("meta"), example_inputs=(IMAGE,)), ("the model has no values", "device meta")),
        (lambda: training.prepare(make(Small)), ("torch.export cannot follow Small.forward()",)),
        (lambda: training.prepare(make(Small), example_inputs=cast(Any, IMAGE)), ("no tuple of tensors", "Tensor")),
        (lambda: training.prepare(make(Small), example_inputs=(torch.zeros(1, 3, 6, 6),)), ("torch.export cannot follow", "(1, 3, 6, 6)")),
        (lambda: training.prepare(Branching(), example_inputs=(IMAGE,)), ("torch.export cannot follow Branching.forward()",)),
        (lambda: training.prepare(_normed_by_weight(Small, "second"), example_inputs=(IMAGE,)),
         ("the weight of layer second is computed of other tensors", "remove weight_norm")),
        (lambda: training.prepare(_normed_by_weight(UNet, "up2.0"), example_inputs=(torch.zeros(1, 1, 16, 16),)),
         ("the weight of layer up2.0 is computed of other tensors",)),
        (lambda: training.prepare(_not_finite(), example_inputs=(IMAGE,)), ("second.weight", "1 of 324")),
        (lambda: small(keep=(("thrid", 8),)), ("thrid",)),
        (lambda: small(widths=(("third", 3),)), ("third",)),
        (lambda: small(groups=(("first", "third"),)), ("third",)),
        (lambda: small(target_bits=0.05), ("no allocation reaches 0.05 bits a weight", "at the least")),
        (lambda: small(target_bytes=3), ("no allocation reaches 3 bytes of tables", "bytes at the least")),
        (lambda: small(target_bits=1.0, widths=(("first", 3),)), ("--width would decide it too",)),
        (lambda: small(calibration=np.zeros((4, 3, 6, 6), np.float32)), ("calibration", "(4, 3, 6, 6)")),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared(call: Callable[[], object], says: tuple[str, ...]) -> None:
    found = said(call)
    assert [text for text in says if text not in found] == [], found


def test_the_nearest_target_that_can_be_reached_is_named_and_can_be_reached() -> None:
    images, _ = pixels(4)

    def residual(bits: float) -> training.KqModule:
        return training.prepare(make(Residual), example_inputs=(images[:1],), target_bits=bits)

    found = said(lambda: residual(0.01))
    nearest = float(found.split("bits a weight at the least")[0].split()[-1])
    model = residual(nearest + 0.001)
    model(images)
    assert training.bits_per_weight(training.integers(model)) <= nearest + 0.001


@pytest.mark.parametrize("name", ["net.safetensors", "net.kq", "net", "net.kq.safetensors.bak"])
def test_files_are_called_by_what_they_are(name: str, tmp_path: Path) -> None:
    model = small()
    model(maps(4)[0])
    assert f"{name} does not end in .kq.safetensors" in said(lambda: training.save(model, tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    model, file = small(), tmp_path / "net.kq.safetensors"
    inputs, labels = maps(8)
    plain_loop(model, [(inputs, labels)], 1)
    training.save(model, file)
    before = file.read_bytes()
    training.save(model, str(file))
    assert file.read_bytes() == before
    with pytest.raises(OSError, match="No such file"):
        training.save(model, tmp_path / "none" / "net.kq.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


# Labelled files


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


IMAGES, LABELS = np.ones((3, 2, 4, 4), np.float32), np.array([0, 1, 2])
GOOD = npz(images=IMAGES, labels=LABELS)


def _damaged() -> bytes:
    content = bytearray(npz(images=np.arange(96, dtype=np.float32).reshape(IMAGES.shape), labels=LABELS))
    content[content.index(np.arange(48, 52, dtype=np.float32).tobytes())] ^= 0xFF
    return bytes(content)


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


def _archive(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, ("no such file", "check the path")),
        (b"", ("cannot read",)),
        (b"PK nothing of the kind", ("cannot read",)),
        (GOOD[:-30], ("cannot read",)),
        (GOOD[:300], ("cannot read",)),
        (_damaged(), ("cannot read", "CRC")),
        (_npy(), ("cannot read",)),
        (_archive("labels.npy", b"not an array"), ("cannot read",)),
        (npz(images=IMAGES, labels=np.array([object()] * 3)), ("cannot read", "allow_pickle")),
        (npz(images=IMAGES), ("is no labelled set", "found    images")),
        (npz(labels=LABELS), ("is no labelled set", "no inputs")),
        (npz(images=IMAGES, more=IMAGES, labels=LABELS), ("is no labelled set", "images, more")),
        (npz(images=IMAGES, labels=LABELS.astype(np.float32)), ("labels do not belong to images", "float32 (3,)")),
        (npz(images=IMAGES, labels=LABELS[:2]), ("labels do not belong to images", "labels int64 (2,), images (3, 2, 4, 4)")),
        (npz(images=IMAGES, labels=LABELS[:, None]), ("labels do not belong to images", "(3, 1)")),
        (npz(images=IMAGES[:0], labels=LABELS[:0]), ("labels do not belong to images", "(0,)")),
        (npz(images=np.float32(3), labels=LABELS), ("labels do not belong to images", "images ()")),
        (npz(images=IMAGES.astype(np.float64), labels=LABELS), ("images has the wrong dtype", "float64", "float32 or uint8")),
        (npz(images=IMAGES * np.nan, labels=LABELS), ("images holds NaN or infinity",)),
    ],
)
def test_labelled_files_that_cannot_be_right(content: bytes | None, says: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    if content is not None:
        path.write_bytes(content)
    found = said(lambda: read_labelled(path))
    assert str(path) in found
    assert [text for text in says if text not in found] == [], found


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_labelled_file_is_read_as_it_is(dtype: type[np.generic], tmp_path: Path) -> None:
    images = np.arange(96).reshape(3, 2, 4, 4).astype(dtype)
    np.savez(tmp_path / "a.npz", x=images, labels=LABELS.astype(np.uint8))
    data = read_labelled(tmp_path / "a.npz")
    assert np.array_equal(data.inputs.numpy(), images)
    assert data.labels.tolist() == [0, 1, 2]
    assert data.labels.dtype == torch.int64


# The loader


def numbered(count: int, side: int = 10) -> Labelled:
    """Every pixel of every image has a number of its own."""
    return Labelled(torch.arange(1, count * side * side + 1).reshape(count, 1, side, side).float(), torch.arange(count))


def test_an_epoch_has_an_order_of_its_own_and_the_same_again() -> None:
    loader = ArrayLoader(numbered(10), 4, seed=3)
    assert len(loader) == 2
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert all(torch.equal(inputs, loader.data.inputs[labels]) for inputs, labels in batches)
        orders.append([label for _, labels in batches for label in labels.tolist()])
    assert orders[0] == orders[2] != orders[1]
    assert len(set(orders[0])) == 8
    assert [labels.tolist() for _, labels in ArrayLoader(numbered(10), 4, seed=4)] != [orders[0][:4], orders[0][4:]]


@pytest.mark.parametrize("augment", [("flip",), ("crop",), ("crop", "flip")])
def test_augmentation_shifts_and_turns(augment: tuple[str, ...]) -> None:
    """Each image by its own draw: every pixel is one of the padded original's, moved as a whole."""
    data = numbered(40)
    seen = set()
    for inputs, labels in ArrayLoader(data, 20, augment=augment):
        for image, label in zip(inputs[:, 0], labels.tolist(), strict=True):
            padded = F.pad(data.inputs[label, 0], (4, 4, 4, 4))
            views = {
                (turned, y, x): torch.equal(image, (padded.flip(1) if turned else padded)[y : y + 10, x : x + 10])
                for turned in (False, True) for y in range(9) for x in range(9)
            }  # fmt: skip
            seen.add(next(view for view, equal in views.items() if equal))
    assert {turned for turned, _, _ in seen} == ({False, True} if "flip" in augment else {False})
    assert len(seen) > (20 if "crop" in augment else 1)
    assert ("crop" in augment) or {(y, x) for _, y, x in seen} == {(4, 4)}


def test_processes_share_every_batch() -> None:
    data = numbered(24)
    whole = [labels.tolist() for _, labels in ArrayLoader(data, 9, augment=("crop", "flip"))]
    assert len(whole[0]) == 9
    parts = [list(ArrayLoader(data, 8, augment=("crop", "flip"), rank=rank, world=2)) for rank in (0, 1)]
    together = list(ArrayLoader(data, 8, augment=("crop", "flip")))
    for left, right, both in zip(*parts, together, strict=True):
        assert len(left[1]) == len(right[1]) == 4
        assert torch.equal(torch.stack([left[0], right[0]], 1).flatten(0, 1), both[0])
        assert torch.equal(torch.stack([left[1], right[1]], 1).flatten(), both[1])
    assert ArrayLoader(data, 9, world=2).batch == 8
    assert "fewer samples a step than processes" in said(lambda: ArrayLoader(data, 1, world=2))
    assert "fewer samples a step than processes" in said(lambda: ArrayLoader(numbered(0), 4))


def test_what_cannot_be_augmented() -> None:
    assert "unknown augmentation 'rotate'" in said(lambda: ArrayLoader(numbered(4), 2, augment=("rotate",)))
    vectors = Labelled(torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64))
    assert "only maps can be cropped or flipped" in said(lambda: ArrayLoader(vectors, 2, augment=("flip",)))


def test_a_split_is_drawn_by_its_seed() -> None:
    data = numbered(20)
    rest, held = data.split(5, 1)
    assert sorted([*rest.labels.tolist(), *held.labels.tolist()]) == list(range(20))
    assert len(held) == 5
    assert torch.equal(held.inputs, data.inputs[held.labels])
    assert data.split(5, 1)[1].labels.tolist() == held.labels.tolist() != data.split(5, 2)[1].labels.tolist()
