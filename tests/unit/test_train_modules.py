"""The parts that make a network train with codewords: gradients, bounds, nearest codes, revival, soft choice, ranges, batch norms."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from trainnets import Batches, Residual, Small, differing, make, maps, one_thread, pixels, plain_loop, state_of

from kqgen import training
from kqgen.errors import InputError
from kqgen.options import Codebook
from kqgen.train_assign import nearest, reassign, revive, soften
from kqgen.train_model import KqModule, Tempo
from kqgen.train_modules import BatchNormSwitch, FakeQuant, IndexedWeight, KernelLayout, LearnedCodebook, UniformWeight

_one_thread = one_thread


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def book_of(codewords: int, taps: int = 9, *, sign: bool = True, additive: bool = False, seed: int = 0) -> LearnedCodebook:
    values = 8 * draw(codewords * (2 if additive else 1), taps, seed=seed)
    return LearnedCodebook(values, 0.1, sign=sign, additive=additive)


def layer_of(book: LearnedCodebook, c_out: int = 6, c_in: int = 4, count: int | None = None) -> tuple[IndexedWeight, torch.Tensor]:
    """A layer with 3x3 kernels next to its codewords, and their latents."""
    layout = KernelLayout(torch.Size((c_out, c_in, 3, 3)), (c_out, c_in, 3, 3))
    layer = IndexedWeight(book, count, layout, torch.full((c_out,), 0.5), torch.ones(c_in), gain=True)
    return layer, draw(c_out, c_in, 3, 3, seed=5).requires_grad_()


@cache
def once(codewords: int, additive: bool) -> KqModule:
    return training.prepare(make(Small), example_inputs=(maps(1)[0],), codebook=Codebook("network", codewords, additive=additive))


def prepared(codewords: int = 8, additive: bool = False) -> KqModule:
    """`Small`, freshly prepared."""
    return copy.deepcopy(once(codewords, additive))


# Gradients


def test_gradients_reach_latents_codewords_and_scales() -> None:
    """Of a kernel: its own gradient times the scale, as if it were not rounded. Of a codeword: the sum over the kernels that use it."""
    book = book_of(5)
    layer, latent = layer_of(book)
    reassign(layer, latent)
    assert layer.log_gain is not None
    upstream = draw(6, 4, 3, 3, seed=9)
    (layer(latent) * upstream).sum().backward()
    assert latent.grad is not None
    assert torch.allclose(latent.grad, upstream * 0.5)
    wanted = torch.zeros_like(book.values).index_add_(0, layer.codes, (upstream * 0.5).reshape(-1, 9) * layer.signs[:, None])
    assert book.values.grad is not None
    # Codewords count in steps; a value clamped to the bounds has none.
    inside = book.values.detach().abs() <= 31
    assert torch.allclose(book.values.grad[inside], (wanted * book.step)[inside], atol=1e-6)
    assert layer.log_gain.grad is not None
    assert torch.allclose(layer.log_gain.grad, (layer(latent) * upstream).sum((1, 2, 3), keepdim=True), atol=1e-5)


def test_a_uniform_weight_has_gradients_of_weight_and_scale() -> None:
    made = UniformWeight(4, torch.tensor([[0.5], [0.25]]), torch.ones(1, 1))
    weight = torch.tensor([[0.8, -1.3, 9.0], [0.1, 0.3, -0.6]], requires_grad=True)
    assert torch.equal(made.integers(weight), torch.tensor([[2.0, -3.0, 7.0], [0.0, 1.0, -2.0]]))
    made(weight).sum().backward()
    assert torch.equal(cast(torch.Tensor, weight.grad), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    assert float(cast(torch.Tensor, made.log_scale.grad)[0, 0]) != 0


def test_training_moves_latents_codewords_and_gains() -> None:
    model = prepared()
    before = state_of(model)
    plain_loop(model, Batches(*maps(32), 8), 3)
    moved = set(differing(before, state_of(model)))
    for part in ("first.parametrizations.weight.original", "second.parametrizations.weight.original", "log_gain", "log_scale", ".values"):
        assert any(part in name for name in moved), part


# Integers


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("taps", [9, 25])
def test_codewords_are_integers_within_the_bounds(taps: int, additive: bool) -> None:
    """However far training drives them; those already inside are only rounded."""
    values = torch.cat([draw(12, taps) * size for size in (0.6, 5.0, 40.0, 1e4)])
    book = LearnedCodebook(values, 0.1, sign=True, additive=additive)
    whole = book.integers().detach()
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) <= 31
    limit = 127 if additive else 255
    assert float(whole.abs().sum(1).max()) <= limit
    small = (values.abs() <= 31).all(1) & (values.round().abs().sum(1) <= limit)
    assert int(small.sum()) >= 12
    assert torch.equal(whole[small], values[small].round())
    if taps == 25:
        assert float(whole.abs().sum(1).max()) > limit - 25


def test_pairs_are_numbered_first_plus_second_times_count() -> None:
    book = book_of(4, additive=True)
    words = book.integers() * book.step
    table = book.table(3)
    assert table.shape == (9, 9)
    for first in range(3):
        for second in range(3):
            assert torch.equal(table[first + 3 * second], words[first] + words[4 + second])


# Codes


@pytest.mark.parametrize("sign", [True, False])
def test_nearest_against_brute_force(sign: bool) -> None:
    vectors, table = draw(200, 9, seed=1), draw(13, 9, seed=2)
    signed = torch.cat([table, -table]) if sign else table
    distances = (vectors[:, None, :] - signed[None]).square().sum(2)
    codes, signs, costs = nearest(vectors, table, sign, 3)
    best, place = distances.topk(3, largest=False)
    assert torch.equal(codes[:, 0], place[:, 0] % 13)
    assert torch.equal(signs[:, 0], torch.where(place[:, 0] < 13, 1.0, -1.0))
    assert torch.allclose(costs[:, 0], best[:, 0], atol=1e-5)
    if not sign:
        assert torch.equal(codes, place)
        assert torch.allclose(costs, best, atol=1e-5)
    one = nearest(vectors, table, sign)
    assert all(torch.equal(alone[:, 0], several[:, 0]) for alone, several in zip(one[:2], (codes, signs), strict=True))


def test_ties_go_to_the_lower_code_and_the_positive_sign() -> None:
    table = torch.tensor([[3.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [0.0, 3.0]])
    vectors = torch.tensor([[1.0, 1.0], [0.9, 1.1], [-2.0, -2.0], [1.0, -1.0]])
    codes, signs, _ = nearest(vectors, table, True)
    assert codes[:, 0].tolist() == [1, 1, 1, 1]
    assert signs[:, 0].tolist() == [1.0, 1.0, -1.0, 1.0]
    assert nearest(vectors[2:3], table, False)[0].item() == 2


def test_at_most_the_cap_of_a_layer_is_renewed_and_that_which_gains_most() -> None:
    layer, latent = layer_of(book_of(9))
    vectors = latent.detach().reshape(-1, 9)
    before = (vectors - layer.hard().detach()).square().sum(1)
    codes, signs, costs = (each[:, 0] for each in nearest(vectors, layer.book.table().detach(), True))
    wanted = (codes != layer.codes) | (signs != layer.signs)
    assert int(wanted.sum()) > 6
    assert float(reassign(layer, latent, cap=0.25)) == 6 / 24
    changed = (layer.codes != 0) | (layer.signs != 1)
    assert set(changed.nonzero()[:, 0].tolist()) == set((before - costs).topk(6).indices.tolist())
    assert float(reassign(layer, latent)) == (int(wanted.sum()) - 6) / 24
    assert torch.equal(layer.codes, codes)
    assert float(reassign(layer, latent)) == 0


def test_a_layer_of_narrow_indices_takes_the_first_codewords_only() -> None:
    layer, latent = layer_of(book_of(9), count=4)
    reassign(layer, latent)
    assert int(layer.codes.max()) < 4
    assert len(set(layer.codes.tolist())) > 2


def test_dead_codewords_get_the_kernels_that_are_served_worst() -> None:
    """Those beyond what a layer may name go to another layer of the codebook."""
    book = book_of(8)
    narrow, narrow_latent = layer_of(book, count=4)
    wide, wide_latent = layer_of(book)
    narrow_latent, wide_latent = 1.2 * narrow_latent.detach(), wide_latent.detach()
    for layer in (narrow, wide):
        layer.codes.copy_(torch.arange(24) % 3)
        layer.signs.fill_(1)
    kept = book.values[:3].detach().clone()

    def errors(layer: IndexedWeight, latent: torch.Tensor) -> torch.Tensor:
        return (latent.reshape(-1, 9) - layer.hard().detach()).square().sum(1)

    before = {"narrow": errors(narrow, narrow_latent), "wide": errors(wide, wide_latent)}
    assert float(before["narrow"].max()) > float(before["wide"].max())
    assert revive(book, [(narrow, narrow_latent), (wide, wide_latent)]) == 5
    assert int(narrow.codes[before["narrow"].argmax()]) == 3
    assert sorted(set(narrow.codes.tolist())) == [0, 1, 2, 3]
    assert sorted(set(wide.codes.tolist())) == [0, 1, 2, 4, 5, 6, 7]
    for name, layer, latent in (("narrow", narrow, narrow_latent), ("wide", wide, wide_latent)):
        revived = layer.codes > 2
        assert bool((errors(layer, latent)[revived] < 0.5 * before[name][revived]).all())
    assert torch.equal(book.values[:3], kept)
    assert float(book.values.detach()[3:].abs().max()) <= 31


def test_the_soft_choice_becomes_the_hard_one() -> None:
    layer, latent = layer_of(book_of(9))
    reassign(layer, latent)
    hard = layer(latent).detach()
    far = []
    for temperature in (1.0, 1e-1, 1e-2, 1e-4):
        soften(layer, latent, temperature)
        far.append(float((layer(latent) - hard).detach().abs().max()))
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.05
    assert far[-1] < 1e-6
    soften(layer, latent, 0.0)
    assert torch.equal(layer(latent), hard)


def test_the_soft_phase_ends_in_hard_codes() -> None:
    model = prepared()
    model.tempo = Tempo(total_steps=8, soft_part=0.5, frozen_part=0.25, settled_part=0.125)
    seen, temperatures = [], []
    loader = Batches(*maps(64), 8)
    for inputs, labels in loader:
        seen.append(model.phase())
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        temperatures.append(next(made.temperature for _, made, _ in model.indexed()))
    assert seen == ["soft"] * 4 + ["hard"] * 2 + ["frozen", "settled"]
    assert temperatures[:4] == pytest.approx([0.01 ** (step / 4) for step in range(4)])
    assert temperatures[4:] == [0.0] * 4
    assert all(not latent.requires_grad for _, _, latent in model.indexed())


# Maps


@pytest.mark.parametrize(("top", "scale"), [(255.0, 1.0), (1.0, 1 / 255)])
def test_pixels_keep_their_step(top: float, scale: float) -> None:
    """Even when the brightest pixel of the first batches is not the brightest there is."""
    quant = FakeQuant(pixels=True)
    codes = torch.arange(0, 250).float()
    quant(codes * scale)
    assert float(quant.hi) == top
    assert float(quant.scale) == pytest.approx(scale, rel=1e-7)
    assert int(quant.zero_point) == -128
    every = torch.arange(256).float() * scale
    assert torch.allclose(quant(every), every, rtol=1e-6, atol=0)


def test_inputs_that_are_no_pixels_keep_their_range_from_the_first_look() -> None:
    quant = FakeQuant(pixels=True)
    values = draw(4000)
    quant(values)
    first = (float(quant.lo), float(quant.hi))
    assert first == (float(values.min()), float(values.max()))
    quant(values * 9)
    assert (float(quant.lo), float(quant.hi)) == first


def test_ranges_follow_and_hold_zero() -> None:
    quant = FakeQuant()
    quant(torch.tensor([2.0, 10.0]))
    assert (float(quant.lo), float(quant.hi)) == (0.0, 10.0)
    quant.momentum = 0.5
    quant(torch.tensor([-4.0, 20.0]))
    assert (float(quant.lo), float(quant.hi)) == (-2.0, 15.0)
    assert float(quant.scale) == pytest.approx(17 / 255)
    assert int(quant.zero_point) == -98
    held = quant.lo.clone()
    quant.observing = False
    assert float(quant(torch.zeros(1))) == 0.0
    quant(torch.full((3,), 99.0))
    quant.observing = True
    quant.eval()(torch.full((3,), -99.0))
    assert torch.equal(quant.lo, held)
    assert float(quant(torch.tensor([99.0]))) == pytest.approx((127 + 98) * 17 / 255)


def test_a_map_of_zeros_gives_no_step_of_zero() -> None:
    quant = FakeQuant()
    assert torch.equal(quant(torch.zeros(5)), torch.zeros(5))
    assert float(quant.scale) > 0


def test_in_the_last_phase_ranges_and_statistics_stay() -> None:
    model = prepared()
    model.tempo = Tempo(total_steps=4, frozen_part=0.5, settled_part=0.5)
    model.step = 0
    loader = list(Batches(*maps(64), 16))
    states = []
    for inputs, labels in loader:
        torch.nn.functional.cross_entropy(model(inputs * (1 + model.step)), labels).backward()  # type: ignore[no-untyped-call]
        states.append(state_of(model))
    moving = {name for name in states[0] if name.endswith((".lo", ".hi", "running_mean", "running_var"))}
    assert moving & set(differing(states[0], states[1]))
    assert differing(states[2], states[3]) == []
    assert differing(states[1], states[2]) == []


# Batch norms


def test_statistics_are_the_mean_over_batches_when_asked() -> None:
    norm = BatchNormSwitch(1e-5, 0.1)
    mean, variance = torch.zeros(3), torch.ones(3)
    batches = [draw(16, 3, 2, 2, seed=seed) * (seed + 1) for seed in range(4)]
    norm.averaged = 0
    for batch in batches:
        norm(batch, None, None, mean, variance)
    assert torch.allclose(mean, torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0), atol=1e-6)
    assert torch.allclose(variance, torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0), rtol=1e-5)
    norm.averaged, norm.frozen = None, True
    kept = mean.clone()
    norm(batches[0], None, None, mean, variance)
    assert torch.equal(mean, kept)


@pytest.mark.parametrize("settled_part", [0.25, 0.05], ids=["before its last phase", "at the end of a run too short for one"])
def test_our_loop_estimates_statistics(settled_part: float) -> None:
    """A moving average over so few steps would still hold much of the float network's statistics; the estimate holds none of them."""
    inputs, labels = maps(64)
    inputs += 2.0
    model = training.prepare(make(Small), example_inputs=(inputs[:1],), codebook=Codebook("network", 16))
    settings = training.Settings(2, rate=1e-4, tempo=Tempo(frozen_part=0.5, settled_part=settled_part))
    training.finetune(model, Batches(inputs, labels, 16), epochs=2, settings=settings)
    found = dict(model.net.named_buffers())["norm.running_mean"]
    weight = cast(nn.Module, model.net.first).weight
    assert isinstance(weight, torch.Tensor)
    mean = torch.nn.functional.conv2d(inputs, weight.detach(), padding=1).mean((0, 2, 3))
    assert torch.allclose(found, mean, atol=0.02)
    assert float(found.abs().max()) > 0.1


# Modules


def test_a_prepared_model_is_copied_whole() -> None:
    """In the middle of training too; the copy shares nothing, and its layers still share their codebook."""
    model = prepared()
    inputs, labels = maps(32)
    plain_loop(model, Batches(inputs, labels, 8), 2)
    twin = copy.deepcopy(model)
    before = state_of(model)
    assert differing(before, state_of(twin)) == []
    assert twin.step == 2
    assert len(twin.codebooks()) == 1
    assert len({id(made.book) for _, made, _ in twin.indexed()}) == 1
    torch.manual_seed(3)
    plain_loop(twin, Batches(inputs, labels, 8), 2, rate=0.5)
    assert differing(before, state_of(model)) == []
    assert differing(before, state_of(twin)) != []
    torch.manual_seed(3)
    plain_loop(model, Batches(inputs, labels, 8), 2, rate=0.5)
    assert differing(state_of(model), state_of(twin)) == []


def test_averaged_models_of_torch_work() -> None:
    model = prepared()
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=False)
    inputs, labels = maps(32)
    for _ in range(2):
        plain_loop(model, Batches(inputs, labels, 8), 2)
        average.update_parameters(model)
    assert average.eval()(inputs).shape == (32, 3)


@pytest.mark.parametrize("additive", [False, True])
def test_a_state_dict_brings_a_fresh_model_to_the_same_integers(additive: bool) -> None:
    inputs, labels = maps(32)
    model, fresh = prepared(4, additive), prepared(4, additive)
    plain_loop(model, Batches(inputs, labels, 8), 5, rate=0.2)
    fresh(inputs)
    assert not torch.equal(model.eval()(inputs), fresh.eval()(inputs))
    fresh.load_state_dict(model.state_dict())
    assert fresh.step == 5
    assert torch.equal(model.eval()(inputs), fresh.eval()(inputs))
    assert torch.equal(model.simulate(inputs), fresh.simulate(inputs))


def test_a_simulation_sees_the_codewords_as_they_are_now() -> None:
    """With gradients on too: what one pass computed of the codebook serves no later one."""
    model = prepared()
    inputs, labels = maps(16)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for book in model.codebooks().values():
            book.values.add_(5.0)
        wanted = model.simulate(inputs)
    found = model.simulate(inputs)
    assert torch.equal(found, wanted)
    found.sum().backward()
    model.simulate(inputs).sum().backward()


def test_the_users_module_is_left_as_it_was() -> None:
    module = make(Residual).train()
    images, labels = pixels(16)
    before = copy.deepcopy(module.state_dict())
    model = training.prepare(module, example_inputs=(images[:1],))
    plain_loop(model, Batches(images, labels, 8), 2)
    assert module.training
    assert differing(dict(before), dict(module.state_dict())) == []
    assert all(parameter.grad is None for parameter in module.parameters())


def test_dropout_is_active_in_training_alone() -> None:
    model = prepared()
    inputs, _ = maps(16)
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [drop.p for drop in drops] == [0.1]
    model(inputs)
    model.tempo = Tempo(total_steps=1)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))
    assert torch.equal(model.simulate(inputs), model.simulate(inputs))
    assert not model.simulate(inputs).isnan().any()


def test_parameters_that_the_user_froze_stay() -> None:
    module = make(Small)
    for parameter in (cast(Small, module).norm.weight, cast(Small, module).head.bias):
        parameter.requires_grad_(False)
    inputs, labels = maps(16)
    model = training.prepare(module, example_inputs=(inputs[:1],))
    before = state_of(model)
    plain_loop(model, Batches(inputs, labels, 8), 3, rate=0.3)
    moved = differing(before, state_of(model))
    assert not {"net.norm.weight", "net.head.bias"} & set(moved)
    assert "net.norm.bias" in moved


def test_before_any_range_is_known_nothing_is_computed_with_integers(tmp_path: Path) -> None:
    model = prepared()
    inputs, _ = maps(16)
    with pytest.raises(InputError, match=r"ranges of the maps are not known(.|\n)*calibration="):
        model.eval()(inputs)
    with pytest.raises(InputError, match="ranges of the maps are not known"):
        training.save(model, tmp_path / "net.kq.safetensors")
    assert list(tmp_path.iterdir()) == []
    calibrated = training.prepare(make(Small), example_inputs=(inputs[:1],), calibration=inputs.numpy())
    assert len({tuple(row) for row in calibrated.eval()(inputs).tolist()}) > 8
    model.train()(inputs)
    assert model.eval()(inputs).shape == (16, 3)
