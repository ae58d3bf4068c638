"""What kqgen compiles, as users read it, and which handler takes which operator of an exported program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kqgen import frontend_layers as layers
from kqgen import frontend_maps as maps
from kqgen.frontend_call import Call, Operand

Handler = Callable[[Call], Operand]


@dataclass(frozen=True, slots=True)
class Supported:
    """One row of `kqgen ops`.

    Attributes:
        operator: as PyTorch's users write it.
        conditions: what must hold for it to compile.
        note: what becomes of it.
        aten: the operators of an exported program behind it, without torch.ops.aten. and overload.
        handler: reads them.
    """

    operator: str
    conditions: str
    note: str
    aten: tuple[str, ...]
    handler: Handler


SUPPORTED: tuple[Supported, ...] = (
    Supported(
        "nn.Conv2d",
        "any kernel, stride and zero padding ('same', 'valid'); dilation 1, groups 1",
        "codebook of kernels, or uniform weights",
        ("conv2d", "convolution"),
        layers.conv2d,
    ),
    Supported("nn.Linear", "on a vector (N, n)", "a convolution whose kernel is the whole map", ("linear",), layers.linear),
    Supported("torch.addmm", "as nn.Linear lowers to it: beta and alpha 1", "as nn.Linear", ("addmm",), layers.addmm),
    Supported("x @ weight", "weight is a parameter or buffer (in, out)", "as nn.Linear without bias", ("mm", "matmul"), layers.matmul),
    Supported(
        "nn.BatchNorm2d, nn.BatchNorm1d",
        "in eval mode; right after a convolution or linear layer, or right before unpadded ones",
        "folded into their weights",
        ("batch_norm",),
        layers.batch_norm,
    ),
    Supported(
        "batch norm of lowered programs",
        "as nn.BatchNorm2d",
        "folded into weights",
        ("_native_batch_norm_legit_no_training",),
        layers.batch_norm_results,
    ),
    Supported("nn.ReLU, F.relu", "", "folded into the layer before", ("relu",), layers.relu),
    Supported("nn.ReLU6", "", "folded into the layer before", ("relu6",), layers.relu6),
    Supported("nn.Hardtanh", "", "folded into the layer before", ("hardtanh",), layers.hardtanh),
    Supported(
        "torch.clamp", "bounds are numbers", "folded into the layer before", ("clamp", "clamp_min", "clamp_max"), layers.clamp
    ),
    Supported("x + y", "two tensors of one shape, or a constant per channel", "an addition; constants are folded", ("add",), layers.add),
    Supported("x - constant", "a number, or one per channel", "folded into convolutions", ("sub",), layers.subtract),
    Supported("constant - x", "a number, or one per channel", "folded into convolutions", ("rsub",), layers.reversed_subtract),
    Supported("x * constant", "a number, or one per channel", "folded into convolutions", ("mul",), layers.multiply),
    Supported("x / constant", "a number, or one per channel", "folded into convolutions", ("div",), layers.divide),
    Supported("-x", "", "folded into convolutions", ("neg",), layers.negate),
    Supported(
        "nn.MaxPool2d",
        "dilation 1; ceil_mode only where it changes nothing",
        "padding never wins",
        ("max_pool2d",),
        maps.max_pool2d,
    ),
    Supported(
        "nn.MaxPool2d of lowered programs",
        "as nn.MaxPool2d; indices are not read",
        "as nn.MaxPool2d",
        ("max_pool2d_with_indices",),
        maps.max_pool2d_with_indices,
    ),
    Supported(
        "nn.AvgPool2d",
        "no divisor_override; padding only with count_include_pad; ceil_mode only where it changes nothing",
        "",
        ("avg_pool2d",),
        maps.avg_pool2d,
    ),
    Supported(
        "nn.AdaptiveAvgPool2d",
        "output size divides the map",
        "an average over a fixed window",
        ("adaptive_avg_pool2d", "_adaptive_avg_pool2d"),
        maps.adaptive_avg_pool2d,
    ),
    Supported(
        "nn.AdaptiveMaxPool2d",
        "output size divides the map",
        "a maximum over a fixed window",
        ("adaptive_max_pool2d",),
        maps.adaptive_max_pool2d,
    ),
    Supported("x.mean((2, 3))", "over rows, columns or both", "an average over the whole map", ("mean",), maps.mean),
    Supported("x.amax((2, 3))", "over rows, columns or both", "a maximum over the whole map", ("amax",), maps.amax),
    Supported(
        "nn.ZeroPad2d, F.pad",
        "zeros; rows and columns before a convolution or pooling, channels anywhere",
        "folded into the reader, or zero channels",
        ("pad", "constant_pad_nd"),
        maps.pad,
    ),
    Supported("x[:, :, ::2, ::2]", "rows and columns, positive step", "the option-A shortcut of ResNet", ("slice",), maps.slice_axis),
    Supported(
        "nn.Flatten, view, reshape, squeeze, unsqueeze",
        "the batch axis stays",
        "nothing",
        ("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy", "flatten", "unflatten", "squeeze", "unsqueeze"),
        maps.reshape,
    ),
    Supported("permute, transpose", "only axes of size 1 move", "nothing", ("permute", "transpose", "t"), maps.permute),
    Supported("expand", "only to the shape that the tensor has", "nothing", ("expand",), maps.expand),
    Supported("nn.Dropout", "in eval mode", "nothing", ("dropout", "feature_dropout"), maps.dropout),
    Supported("nn.Dropout of lowered programs", "in eval mode", "nothing", ("native_dropout",), maps.native_dropout),
    Supported(
        "clone, contiguous, detach, to(float32)",
        "pixels may come as uint8",
        "nothing",
        ("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "positive"),
        maps.identity,
    ),
)

_REFUSED_NORMS = (
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "native_batch_norm",
    "_batch_norm_with_update_functional",
)

HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {name: row.handler for row in SUPPORTED for name in row.aten}
    | dict.fromkeys(_REFUSED_NORMS, layers.batch_norm_training)
)
"""Operator name, as in `Supported.aten`, to the handler that reads it; the batch norms of training are there to be refused well."""

IGNORED = frozenset({"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size", "sym_size"})
"""Checks and sizes that an exported program carries along and that make no tensor."""

# fmt: off
CONSTANT_OPERATORS = frozenset((
    "view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t",
    "expand", "slice", "select", "cat", "stack", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "to", "_to_copy",
    "positive", "add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "pow", "square", "sum",
    "mean", "var", "std", "amax", "amin", "maximum", "minimum", "norm", "linalg_vector_norm", "_weight_norm",
    "_weight_norm_interface", "clamp", "relu", "sign", "full", "zeros", "ones", "scalar_tensor", "full_like", "zeros_like",
    "ones_like", "mm", "matmul",
))
# fmt: on
"""Operators that may be computed at compile time when every operand is a weight, a buffer or a number."""

_ACTIVATION = ("nn.ReLU, nn.ReLU6 or nn.Hardtanh", "replace it by nn.ReLU and fine-tune")
_SOFTMAX = ("logits as the output", "leave it out and take the largest logit on the device; it does not change the order")
_NORM = ("nn.BatchNorm2d", "replace it by nn.BatchNorm2d and fine-tune")
_UPSAMPLE = ("a network without upsampling", "scale the map outside the network")

_ACTIVATIONS = (
    *("silu", "gelu", "hardswish", "hardsigmoid", "leaky_relu", "prelu", "elu", "selu", "celu", "mish", "tanh", "softplus"),
    "sigmoid",
)

HINTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    dict.fromkeys(_ACTIVATIONS, _ACTIVATION)
    | dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "argmax", "topk"), _SOFTMAX)
    | dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm"), _NORM)
    | dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "conv_transpose2d", "pixel_shuffle"), _UPSAMPLE)
    | {
        "cat": ("sums of branches (x + y)", "add the branches instead of concatenating them and fine-tune"),
        "conv1d": ("nn.Conv2d", "use nn.Conv2d with a kernel side of 1 on an input (N, C, H, 1)"),
        "conv3d": ("nn.Conv2d", "use nn.Conv2d"),
        "maximum": ("torch.clamp or nn.MaxPool2d", "rewrite it with these"),
        "sum": ("x.mean((2, 3))", "use the mean and scale the next layer's weights"),
    }
)
"""For operators that users often meet: what would be accepted, and what to do."""
