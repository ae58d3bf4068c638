"""What torch.export gives becomes the float graph; what kqgen does not compile is refused with its place and the way out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from floatnets import Lambda, check, images, let, randomise
from torch import nn

from kqgen import ir
from kqgen.errors import InputError, UnsupportedError
from kqgen.frontend import import_exported, import_module
from kqgen.frontend_names import c_identifier, unique
from kqgen.frontend_table import HANDLERS, HINTS, SUPPORTED

MAP = (2, 3, 12, 10)


def conv(c_in: int = 3, c_out: int = 5, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, **({"kernel_size": 3} | options))


GOOD: dict[str, Callable[[], nn.Module]] = {
    "conv": conv,
    "conv without bias": lambda: conv(bias=False),
    "conv 1x1": lambda: conv(kernel_size=1),
    "conv 5x5 stride 2": lambda: conv(kernel_size=5, stride=2, padding=2),
    "conv 7x7": lambda: conv(kernel_size=7, padding=3),
    "conv 10x4 stride 2x1": lambda: conv(kernel_size=(10, 4), stride=(2, 1), padding=(4, 1)),
    "conv same, even kernel": lambda: conv(kernel_size=(4, 2), padding="same"),
    "conv valid": lambda: conv(padding="valid"),
    "conv and batch norm": lambda: nn.Sequential(conv(), nn.BatchNorm2d(5)),
    "batch norm without affine": lambda: nn.Sequential(conv(), nn.BatchNorm2d(5, affine=False)),
    "relu in place": lambda: nn.Sequential(conv(), nn.ReLU(inplace=True)),
    "relu6": lambda: nn.Sequential(conv(), nn.ReLU6()),
    "functional relu6": lambda: Lambda(lambda m, x: F.relu6(m.conv(x)), conv=conv()),
    "hardtanh": lambda: nn.Sequential(conv(), nn.Hardtanh(-0.5, 0.75)),
    "clamps": lambda: Lambda(lambda m, x: m.conv(x).clamp(-1, 1).clamp_min(-0.5).clamp_max(0.25), conv=conv()),
    "max pool": lambda: nn.Sequential(conv(), nn.MaxPool2d(3, 2, 1)),
    "max pool, ceil that changes nothing": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "avg pool with padding": lambda: nn.AvgPool2d(3, 2, 1),
    "avg pool uneven": lambda: nn.AvgPool2d((2, 5), (1, 5), count_include_pad=False),
    "adaptive avg pool": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d((4, 1)),
    "mean, axes kept": lambda: Lambda(lambda m, x: x.mean((2, 3), keepdim=True)),
    "mean, axes dropped": lambda: Lambda(lambda m, x: x.mean((-1, -2))),
    "mean of rows": lambda: Lambda(lambda m, x: x.mean(2, keepdim=True)),
    "mean of a flattened map": lambda: Lambda(lambda m, x: x.flatten(2).mean(-1)),
    "amax": lambda: Lambda(lambda m, x: x.amax((2, 3))),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(360, 7)),
    "linear without bias after a pool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7, bias=False)),
    "linear after view": lambda: Lambda(lambda m, x: m.fc(x.view(x.size(0), -1)), fc=nn.Linear(360, 4)),
    "linear after reshape and relu": lambda: Lambda(lambda m, x: m.fc(F.relu(x.reshape(-1, 360))), fc=nn.Linear(360, 4)),
    "linear after squeeze": lambda: Lambda(lambda m, x: m.fc(x.mean((2, 3), True).squeeze(-1).squeeze(-1)), fc=nn.Linear(3, 4)),
    "matrix product": lambda: Lambda(lambda m, x: x.mean((2, 3)) @ m.weight, weight=images(3, 4)),
    "linear, batch norm, relu, linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(360, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)
    ),
    "dropout": lambda: nn.Sequential(conv(), nn.Dropout(), nn.Dropout2d(), nn.Identity()),
    "clone, contiguous, detach, float": lambda: Lambda(lambda m, x: m.conv(x.clone().contiguous().detach().float()), conv=conv()),
    "add": lambda: Lambda(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv()),
    "add twice the same": lambda: Lambda(lambda m, x: let(m.a(x), lambda y: y + y), a=conv()),
    "add in place": lambda: Lambda(lambda m, x: F.relu_(m.a(x).add_(m.b(x))), a=conv(), b=conv()),
    "relu in place on a shared tensor": lambda: Lambda(lambda m, x: let(m.a(x), lambda y: F.relu_(y) + y), a=conv()),
    "zero pad": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), conv(padding=1)),
    "functional pad": lambda: Lambda(lambda m, x: m.conv(F.pad(x, (1, 0))), conv=conv()),
    "pad before avg pool": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(3, 2)),
    "pad before max pool of positive values": lambda: nn.Sequential(conv(), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)),
    "option A": lambda: Lambda(lambda m, x: m.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)), conv=conv(stride=2, padding=1)),
    "channels and rows padded": lambda: Lambda(lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1, 2, 0))), conv=conv(c_in=5)),
    "crop": lambda: Lambda(lambda m, x: m.conv(x[:, :, 1:-2, -7:9]), conv=conv()),
    "input scaling by numbers": lambda: Lambda(lambda m, x: m.conv((x / 255 - 0.5) * 2), conv=conv(padding=1)),
    "input scaling by buffers": lambda: Lambda(
        lambda m, x: m.conv((x - m.mean) / m.std),
        conv=conv(padding=1),
        mean=images(3, 1, 1),
        std=torch.tensor([0.5, 2.0, 3.0])[None, :, None, None],
    ),
    "input scaling, negated": lambda: Lambda(lambda m, x: m.conv(1 - (-x) * m.k), conv=conv(padding=1), k=torch.full((1, 1, 1, 1), 0.25)),
    "input scaling before flatten and linear": lambda: nn.Sequential(Lambda(lambda m, x: x * 2 - 1), nn.Flatten(), nn.Linear(360, 3)),
    "scaled weight": lambda: Lambda(lambda m, x: F.conv2d(x, m.w * m.s.view(-1, 1, 1, 1)), w=images(4, 3, 3, 3), s=images(4)),
    "unsqueezed vector": lambda: Lambda(lambda m, x: m.conv(x.mean((2, 3))[:, :, None, None]), conv=conv(kernel_size=1)),
    "two outputs": lambda: Lambda(lambda m, x: let(m.conv(x), lambda y: (y.mean((2, 3)), F.relu(y))), conv=conv()),
    "flattened map as output": lambda: nn.Sequential(conv(), nn.ReLU(), nn.Flatten()),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    check(randomise(GOOD[name]()), [images(*MAP)])


def test_weight_norm_is_computed_at_compile_time() -> None:
    check(randomise(nn.utils.parametrizations.weight_norm(conv())), [images(*MAP)])


def test_pixels_come_as_uint8() -> None:
    module = randomise(Lambda(lambda m, x: m.conv(x.float() / 255), conv=conv(padding=1)))
    pixels = torch.randint(0, 256, MAP, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    graph, _ = check(module, [pixels])
    assert graph.inputs[0].uint8


def test_arithmetic_on_raw_uint8_is_refused() -> None:
    module = Lambda(lambda m, x: m.conv((x - 3).float()), conv=conv())
    with pytest.raises(UnsupportedError, match=r"torch\.uint8"):
        import_module(module, [torch.zeros(MAP, dtype=torch.uint8)], "net")


def test_several_inputs_and_a_vector_input() -> None:
    module = Lambda(lambda m, x, v: m.a(x.mean((2, 3))) + m.b(v), a=nn.Linear(3, 4), b=nn.Linear(6, 4))
    graph, _ = check(randomise(module), [images(*MAP), images(2, 6)])
    assert [node.shape for node in graph.inputs] == [(3, 12, 10), (6, 1, 1)]


def test_the_users_module_is_not_changed() -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(5), nn.Dropout()).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    import_module(module, [images(*MAP)], "net")
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("lowered", [False, True], ids=["aten", "core aten"])
@pytest.mark.parametrize("batch", [torch.export.Dim("batch"), None], ids=["symbolic", "fixed"])
def test_any_batch_and_level_of_an_exported_program(lowered: bool, batch: Any) -> None:
    module = randomise(
        nn.Sequential(
            conv(padding="same"),
            nn.BatchNorm2d(5),
            nn.ReLU6(),
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 4),
        )
    )
    program = torch.export.export(module, (images(*MAP),), dynamic_shapes=({0: batch},) if batch else None)
    graph = import_exported(program.run_decompositions() if lowered else program, "net")
    assert [type(node) for node in graph] == [ir.Input, ir.Conv2d, ir.ChannelAffine, ir.Clamp, ir.MaxPool, ir.AvgPool, ir.Linear]
    assert [node.path for node in graph] == ["", "0", "1", "2", "3", "5", "7"]
    assert graph.node("addmm_7" if lowered else "linear_7").shape == (4, 1, 1)


class Block(nn.Module):
    """Repeats its layers, as real networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.register = conv(3, 3, padding=1), nn.Sequential(conv(3, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv1(self.register(self.conv1(x))) + x)


def test_names_come_from_module_paths_and_are_unique() -> None:
    module = Lambda(lambda m, x: (m.layer1(x) + x + m.layer1(x)).mean((2, 3)), layer1=nn.Sequential(Block()))
    graph, _ = check(randomise(module), [images(*MAP)])
    assert [(node.name, node.path) for node in graph][:10] == [
        ("inputs_0", ""),
        ("layer1_0_conv1", "layer1.0.conv1"),
        ("layer1_0_register_0", "layer1.0.register.0"),
        ("layer1_0_register_1", "layer1.0.register.1"),
        ("layer1_0_conv1_1", "layer1.0.conv1"),
        ("layer1_0_add", "layer1.0"),
        ("layer1_0_relu", "layer1.0"),
        ("add", ""),
        ("layer1_0_conv1_2", "layer1.0.conv1"),
        ("layer1_0_register_0_1", "layer1.0.register.0"),
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("layer1.0.conv1", "layer1_0_conv1"),
        ("0", "net_0"),
        ("register", "register_"),
        ("class", "class_"),
        ("_x__", "x"),
        ("", "net"),
        ("é-ü", "net"),
    ],
)
def test_identifiers(text: str, name: str) -> None:
    assert c_identifier(text) == name


def test_names_that_differ_in_case_alone_are_told_apart() -> None:
    assert unique("Conv", {"conv", "conv_1"}) == "Conv_2"


BAD: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "reflected padding": (lambda: conv(padding=1, padding_mode="reflect"), "reflect", "zeros"),
    "max pool dilation": (lambda: nn.MaxPool2d(2, dilation=2), "dilation", "larger window"),
    "avg pool ceil": (lambda: nn.AvgPool2d(5, 3, ceil_mode=True), "ceil_mode", "ceil_mode=False"),
    "avg pool divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), "divisor_override 3", "scale a layer"),
    "avg pool without padding in the count": (
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "count_include_pad",
        "count_include_pad=True",
    ),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(7), r"\(7, 7\)", r"another output size \(6 or 12 fits\)"),
    "adaptive pool of a sequence": (lambda: Lambda(lambda m, x: F.adaptive_max_pool1d(x[:, :, 0], 3)), r"\(1, 3\)", "2 or 5 fits"),
    "indices of max pool": (lambda: Lambda(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[1].float()), "result 1", "kqgen ops"),
    "layer norm": (lambda: nn.LayerNorm(10), "layer_norm", "BatchNorm2d"),
    "instance norm": (lambda: nn.InstanceNorm2d(3), "instance_norm|batch_norm", "BatchNorm2d|track_running_stats"),
    "constant per pixel": (lambda: Lambda(lambda m, x: x + m.k, k=images(12, 10)), r"constant \(12, 10\)", "kqgen ops"),
    "batch dropped": (lambda: Lambda(lambda m, x: x.flatten()), "output", r"torch\.flatten\(x, 1\)"),
    "double precision": (lambda: Lambda(lambda m, x: x.double() * 2), "float64", "float"),
    "attention": (lambda: Lambda(lambda m, x: x.flatten(2) @ x.flatten(2).transpose(1, 2)), "transpose|product|matmul|bmm|expand", "."),
    "linear on rows": (lambda: nn.Linear(10, 4), "last axis", r"torch\.flatten"),
    "convolution of a view": (
        lambda: Lambda(lambda m, x: m.conv(F.relu(x).reshape(-1, 10, 12, 3)), conv=conv(10, 4)), "view", "leave out the permute"
    ),
    "rows as channels": (
        lambda: Lambda(lambda m, x: m.conv(F.relu(x).transpose(1, 2)), conv=conv(12, 4, kernel_size=1)), "view", "permute"
    ),
    "many flipped rows": (lambda: Lambda(lambda m, x: m.conv(x.repeat(1, 1, 2, 1).flip(2)), conv=conv()), "view", "permute"),
    "softmax over rows": (lambda: nn.Softmax(2), "axis 2", "kqgen ops"),
    "log softmax": (lambda: nn.LogSoftmax(1), "log_softmax", "does not change the order"),
    "largest of all": (lambda: Lambda(lambda m, x: x.argmax().reshape(1, 1).float()), "all numbers", "dim=1"),
    "enlarging by one and a half": (lambda: nn.Upsample(scale_factor=1.5), "from", "whole scale factor"),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "bilinear", "nearest"),
    "padding by infinity": (lambda: nn.ConstantPad2d(1, -math.inf), "value -inf", "MaxPool2d"),
    "division of two tensors": (lambda: Lambda(lambda m, x: x / F.relu(x)), "division by a computed", "BatchNorm2d"),
    "a constant in a concatenation": (
        lambda: Lambda(lambda m, x: torch.cat([x, m.k.expand(x.shape[0], 3, 12, 10)], 1), k=images(1, 3, 12, 10)), "constant", "F.pad"
    ),
    "cube": (lambda: Lambda(lambda m, x: x**3), "exponent 3", r"x \* x"),
    "16 bits of fake quantisation": (
        lambda: Lambda(lambda m, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -32768, 32767)), "65|32767|levels", "8 bits"
    ),
    "recurrent": (lambda: Lambda(lambda m, x: m.rnn(x.mean(3).transpose(1, 2))[0], rnn=nn.LSTM(3, 4, batch_first=True)), ".", "."),
    "input as output": (lambda: Lambda(lambda m, x: (x, F.relu(x))), ".", "return it no more"),
    "output twice": (lambda: Lambda(lambda m, x: let(F.relu(x), lambda y: (y, y))), ".", "return it once"),
    "mean over channels and rows": (lambda: Lambda(lambda m, x: x.mean((1, 2))), "channels and positions", "one mean after"),
    "constant output": (lambda: Lambda(lambda m, x: (F.relu(x), m.k * 2), k=torch.ones(3)), ".", "."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_compiled_is_refused_with_the_way_out(name: str) -> None:
    make, found, do = BAD[name]
    with pytest.raises(UnsupportedError, match=r"^cannot compile ") as caught:
        import_module(make().eval(), [images(2, 3, 12, 10)], "net")
    assert re.search(found, str(caught.value))
    assert re.search(do, str(caught.value))


def test_a_refusal_names_module_operator_and_shapes() -> None:
    module = nn.Sequential(conv(), nn.Sequential(nn.ReLU(), nn.Softsign()))
    with pytest.raises(UnsupportedError) as caught:
        import_module(module, [images(*MAP)], "net")
    lines = caught.value.render().splitlines()
    assert lines[0] == "cannot compile layer 1.1 (torch.ops.aten.div)"
    assert lines[1] == "  found    div, input (N, 5, 10, 8) and (N, 5, 10, 8), a division by a computed tensor"
    assert [line.split()[0] for line in lines[2:]] == ["wanted", "do"]


def test_all_that_does_not_compile_is_told_at_once() -> None:
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.LogSigmoid()) for _ in range(6)]
    module = nn.Sequential(*blocks, nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, dilation=2))
    with pytest.raises(UnsupportedError) as caught:
        import_module(module, [images(*MAP)], "net")
    error = caught.value
    assert error.what.startswith("cannot compile 14 operations of net: group_norm, log_sigmoid")
    assert "group_norm (6x): layer 0.1, layer 1.1, layer 2.1, layer 3.1 and 2 more" in error.found
    assert "upsample_bilinear2d (1x): layer 6" in error.found
    assert "max_pool2d (1x): layer 8\n  max_pool2d, input (N, 4, 22, 18), dilation" in error.found
    assert error.do.count("BatchNorm2d") == 1


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout()], ids=["batch norm", "dropout"])
def test_a_program_in_training_mode_is_refused(layer: nn.Module) -> None:
    program = torch.export.export(layer.train(), (images(*MAP),))
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\)"):
        import_exported(program, "net")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weight", "bias", "running_mean", "running_var"])
def test_weights_that_are_no_numbers_are_refused_by_path(value: float, part: str) -> None:
    module = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(5)))
    module.state_dict()[f"0.1.{part}"][2] = value
    with pytest.raises(InputError, match=rf"layer 0\.1 holds NaN or infinity in its {part}"):
        import_module(module, [images(*MAP)], "net")


def test_a_negative_variance_is_refused() -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(5))
    module.state_dict()["1.running_var"][0] = -1.0
    with pytest.raises(InputError, match="scales by NaN"):
        import_module(module, [images(*MAP)], "net")


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (torch.zeros(12), r"unsqueeze\(0\)|batch"),
        (torch.zeros(1, 0, 12, 10), "0"),
        (torch.zeros(1, 1, 3, 12, 10), r"\(N, C, H, W\)"),
        (torch.zeros(MAP).double(), "float32 or uint8"),
    ],
    ids=["rank 1", "no channels", "rank 5", "double"],
)
def test_inputs_of_other_forms_are_refused(example: torch.Tensor, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        import_module(nn.ReLU(), [example], "net")


def test_a_symbolic_side_is_refused() -> None:
    program = torch.export.export(conv(), (images(*MAP),), dynamic_shapes=({2: torch.export.Dim("rows", min=4)},))
    with pytest.raises(UnsupportedError, match="other than the batch"):
        import_exported(program, "net")


def test_inputs_of_different_batches_are_refused() -> None:
    module = Lambda(lambda m, x, y: x.mean((2, 3)) + y.mean((2, 3)).mean(0, keepdim=True))
    with pytest.raises(UnsupportedError, match="batch differs"):
        import_module(module, [images(2, 3, 4, 4), images(3, 3, 4, 4)], "net")


def test_a_forward_that_depends_on_the_data_gives_one_clear_error() -> None:
    module = Lambda(lambda m, x: x if float(x.sum()) > 0 else -x)
    with pytest.raises(InputError, match=r"torch\.export cannot follow"):
        import_module(module, [images(*MAP)], "net")


def test_each_supported_operator_has_a_handler_and_is_exercised() -> None:
    listed = [name for row in SUPPORTED for name in row.aten]
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(HANDLERS)
    assert not set(HINTS) & set(listed)
    assert all(hasattr(torch.ops.aten, name) for name in HANDLERS)
    assert all(row.operator and row.note is not None for row in SUPPORTED)
