"""What kqgen compiles of PyTorch, as users read it, and which handler takes which operator of an exported program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kqgen import frontend_activations as activations
from kqgen import frontend_arithmetic as arithmetic
from kqgen import frontend_layers as layers
from kqgen import frontend_maps as maps
from kqgen import frontend_moves as moves
from kqgen.frontend_call import Call, Operand

Handler = Callable[[Call], Operand]


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One row of `kqgen ops`.

    Attributes:
        source: where the operator comes from: PyTorch, ONNX, TFLite.
        operator: as the users of that write it.
        conditions: what must hold for it to compile.
        note: what becomes of it.
    """

    source: str
    operator: str
    conditions: str
    note: str


@dataclass(frozen=True, slots=True)
class Supported:
    """What is supported of PyTorch.

    Attributes:
        operator, conditions, note: as in `OperatorRow`.
        aten: the operators of an exported program behind it, without torch.ops.aten. and overload.
        handler: reads them.
    """

    operator: str
    conditions: str
    note: str
    aten: tuple[str, ...]
    handler: Handler

    @property
    def row(self) -> OperatorRow:
        """This as a row of the table of all sources."""
        return OperatorRow("PyTorch", self.operator, self.conditions, self.note)


_TABLE = "a table of 256 bytes; folded where a known function is written out"
_CONSTANT = "a number, or one per channel"
_FOLDED = "folded into convolutions, else a depthwise 1x1 convolution"

SUPPORTED: tuple[Supported, ...] = (
    Supported(
        "nn.Conv2d, nn.Conv1d",
        "any kernel, stride, dilation, groups and zero padding ('same', 'valid')",
        "codebook of kernels, or uniform weights; groups: depthwise, else one convolution a group",
        ("conv1d", "conv2d", "convolution"),
        layers.convolution,
    ),
    Supported(
        "nn.ConvTranspose2d, nn.ConvTranspose1d",
        "any kernel, stride, padding, output padding, dilation and groups",
        "convolutions, their results put between each other",
        ("conv_transpose1d", "conv_transpose2d"),
        layers.transposed,
    ),
    Supported(
        "nn.Linear",
        "on a vector (N, n), or over channels as the last axis",
        "a convolution whose kernel is the whole map, or a 1x1 convolution",
        ("linear",),
        layers.linear,
    ),
    Supported("torch.addmm", "as nn.Linear lowers to it: beta and alpha 1", "as nn.Linear", ("addmm",), layers.addmm),
    Supported("x @ weight", "weight is a parameter or buffer (in, out)", "as nn.Linear without bias", ("mm", "matmul"), layers.matmul),
    Supported(
        "nn.BatchNorm2d, nn.BatchNorm1d", "in eval mode", "folded into convolutions, else a depthwise 1x1 convolution",
        ("batch_norm",), layers.batch_norm,
    ),
    Supported(
        "batch norm of lowered programs", "as nn.BatchNorm2d", "as nn.BatchNorm2d",
        ("_native_batch_norm_legit_no_training",), layers.batch_norm_results,
    ),
    Supported("nn.ReLU, F.relu", "", "folded into the layer before", ("relu",), arithmetic.relu),
    Supported("nn.ReLU6", "", "folded into the layer before", ("relu6",), arithmetic.relu6),
    Supported("nn.Hardtanh", "", "folded into the layer before", ("hardtanh",), arithmetic.hardtanh),
    Supported("torch.clamp", "bounds are numbers", "folded into the layer before", ("clamp", "clamp_min", "clamp_max"), arithmetic.clamp),
    Supported("nn.Sigmoid", "", _TABLE, ("sigmoid",), activations.function("sigmoid")),
    Supported("nn.Tanh", "", _TABLE, ("tanh",), activations.function("tanh")),
    Supported("nn.Hardsigmoid", "", _TABLE, ("hardsigmoid",), activations.function("hardsigmoid")),
    Supported("nn.Hardswish", "", _TABLE, ("hardswish",), activations.function("hardswish")),
    Supported("nn.SiLU", "", _TABLE, ("silu",), activations.function("silu")),
    Supported("nn.GELU", "both forms", _TABLE, ("gelu",), activations.gelu),
    Supported("nn.LeakyReLU", "", _TABLE, ("leaky_relu",), activations.function("leaky_relu", negative_slope=0.01)),
    Supported("nn.PReLU", "one slope, or one per channel", "a table, or one a channel", ("prelu", "_prelu_kernel"), activations.prelu),
    Supported("nn.ELU", "", _TABLE, ("elu",), activations.function("elu", alpha=1.0, scale=1.0, input_scale=1.0)),
    Supported("nn.CELU", "", _TABLE, ("celu",), activations.celu),
    Supported("nn.SELU", "", _TABLE, ("selu",), activations.selu),
    Supported("nn.Softplus", "", _TABLE, ("softplus",), activations.function("softplus", beta=1.0, threshold=20.0)),
    Supported("nn.Mish", "", _TABLE, ("mish",), activations.function("mish")),
    Supported("torch.abs", "", _TABLE, ("abs",), activations.function("abs")),
    Supported("torch.square", "", _TABLE, ("square",), activations.function("square")),
    Supported("torch.exp", "", _TABLE, ("exp",), activations.function("exp")),
    Supported("x ** 2", "exponent 1 or 2", _TABLE, ("pow",), arithmetic.power),
    Supported("nn.Softmax", "over the channels of a map or vector", "a softmax in integers", ("softmax", "_softmax"), activations.softmax),
    Supported("torch.argmax", "over at most 256 channels", "the first of the largest", ("argmax",), activations.argmax),
    Supported(
        "x + y", "two tensors of one shape or that repeat along whole axes; " + _CONSTANT, "an addition; constants: " + _FOLDED,
        ("add",), arithmetic.add,
    ),
    Supported("x - y", "as x + y", "as x + y", ("sub",), arithmetic.subtract),
    Supported("constant - x", _CONSTANT, _FOLDED, ("rsub",), arithmetic.reversed_subtract),
    Supported(
        "x * y", "two tensors of one shape or that repeat along whole axes (squeeze-excite); " + _CONSTANT,
        "a product; constants: " + _FOLDED, ("mul",), arithmetic.multiply,
    ),
    Supported("x / constant", _CONSTANT, _FOLDED, ("div",), arithmetic.divide),
    Supported("-x", "", _FOLDED, ("neg",), arithmetic.negate),
    Supported(
        "nn.MaxPool2d, nn.MaxPool1d", "dilation 1; indices are not read", "padding never wins", ("max_pool1d", "max_pool2d"), maps.max_pool,
    ),
    Supported(
        "nn.MaxPool2d of lowered programs", "as nn.MaxPool2d", "as nn.MaxPool2d",
        ("max_pool1d_with_indices", "max_pool2d_with_indices"), maps.max_pool_with_indices,
    ),
    Supported(
        "nn.AvgPool2d, nn.AvgPool1d",
        "no divisor_override; padding only with count_include_pad; ceil_mode only where it changes nothing",
        "",
        ("avg_pool1d", "avg_pool2d"),
        maps.avg_pool,
    ),
    Supported(
        "nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d", "output size divides the map", "an average over a fixed window",
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), maps.adaptive_avg_pool,
    ),
    Supported(
        "nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool1d", "output size divides the map", "a maximum over a fixed window",
        ("adaptive_max_pool1d", "adaptive_max_pool2d"), maps.adaptive_max_pool,
    ),
    Supported("x.mean((2, 3))", "over rows, columns or both; over all channels", "an average, or a 1x1 convolution", ("mean",), maps.mean),
    Supported("x.sum((2, 3))", "over rows, columns or both; over all channels", "as x.mean((2, 3)), scaled", ("sum",), maps.add_up),
    Supported("x.amax((2, 3))", "over rows, columns or both", "a maximum over the whole map", ("amax",), maps.amax),
    Supported("x.max(dim)", "over rows or columns; indices are not read", "as x.amax", ("max",), maps.max_of_axis),
    Supported(
        "nn.ZeroPad2d, nn.ConstantPad2d, F.pad", "a constant, anywhere; by negative numbers a crop", "zeros: folded into the reader",
        ("pad", "constant_pad_nd"), maps.pad,
    ),
    Supported("torch.cat", "channels, rows or columns", "parts are copied into place", ("cat",), maps.concatenate),
    Supported(
        "nn.Upsample, F.interpolate", "nearest, by whole factors", "values are copied",
        ("upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"), maps.upsample_nearest,
    ),
    Supported("x[:, a:b], x[:, :, ::2]", "any axis but the batch", "a slice; of a concatenation its parts", ("slice",), moves.slice_axis),
    Supported("x[:, 0], x.select", "any axis but the batch", "a slice", ("select",), moves.select),
    Supported("torch.split, torch.chunk", "any axis but the batch", "slices", ("split", "split_with_sizes", "chunk"), moves.split),
    Supported("torch.unbind", "any axis but the batch", "slices", ("unbind",), moves.unbind),
    Supported("torch.index_select", "a constant list", "as a shuffle of channels", ("index_select",), moves.index_select),
    Supported("x[:, list]", "a constant list of places of one axis", "as a shuffle of channels", ("index",), moves.index),
    Supported("torch.flip", "channels, or up to 16 rows or columns", "slices put together", ("flip",), moves.flip),
    Supported("nn.PixelShuffle", "", "slices put between each other", ("pixel_shuffle",), moves.pixel_shuffle),
    Supported("nn.PixelUnshuffle", "", "slices one behind the other", ("pixel_unshuffle",), moves.pixel_unshuffle),
    Supported(
        "nn.ChannelShuffle", "also written by view and transpose", "folded into weights or a concatenation",
        ("channel_shuffle", "native_channel_shuffle"), moves.channel_shuffle,
    ),
    Supported(
        "nn.Flatten, view, reshape, squeeze, unsqueeze",
        "the batch axis stays first",
        "nothing",
        ("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy", "flatten", "unflatten", "squeeze", "unsqueeze"),
        moves.reshape,
    ),
    Supported(
        "permute, transpose",
        "shuffles of channels; channels last at an output or before nn.Linear; what later views undo",
        "nothing, or as a shuffle of channels",
        ("permute", "transpose", "t"),
        moves.permute,
    ),
    Supported("expand", "", "values are copied, or read again", ("expand",), moves.expand),
    Supported("repeat", "any axis but the batch", "values are copied", ("repeat",), moves.repeat),
    Supported(
        "fake quantisation per tensor", "at most 256 levels", "scale and zero point of the tensor before it",
        ("fake_quantize_per_tensor_affine",), activations.pin,
    ),
    Supported(
        "fake quantisation of lowered programs", "as fake quantisation per tensor", "as fake quantisation per tensor",
        ("fake_quantize_per_tensor_affine_cachemask", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"),
        activations.pin_results,
    ),
    Supported("nn.Dropout", "in eval mode", "nothing", ("dropout", "feature_dropout"), moves.dropout),
    Supported("nn.Dropout of lowered programs", "in eval mode", "nothing", ("native_dropout",), moves.native_dropout),
    Supported(
        "clone, contiguous, detach, to(float32)",
        "pixels may come as uint8",
        "nothing",
        ("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "positive"),
        moves.identity,
    ),
)  # fmt: skip

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
    "ones_like", "mm", "matmul", "arange", "flip", "repeat", "index_select", "round", "floor", "sigmoid", "tanh", "softplus",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
))
# fmt: on
"""Operators that may be computed at compile time when every operand is a weight, a buffer or a number."""

_LOGITS = ("logits or nn.Softmax as the output", "leave it out: it does not change the order of the outputs")
_NORM = ("nn.BatchNorm2d", "replace it by nn.BatchNorm2d and fine-tune")
_NEAREST = ("mode='nearest' and a whole scale factor", "use nearest upsampling and a convolution after it, and fine-tune")
_RECURRENT = ("convolutions over time (nn.Conv1d)", "replace it by dilated nn.Conv1d layers and train again")
_ATTENTION = ("convolutions and squeeze-excite (x * y)", "attention is not supported; use convolutions")

HINTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    dict.fromkeys(("log_softmax", "_log_softmax", "topk", "log_sigmoid", "log_sigmoid_forward"), _LOGITS)
    | dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "local_response_norm"), _NORM)
    | dict.fromkeys(("upsample_bilinear2d", "upsample_linear1d", "upsample_bicubic2d", "grid_sampler", "grid_sampler_2d"), _NEAREST)
    | dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"), _RECURRENT)
    | dict.fromkeys(("bmm", "scaled_dot_product_attention", "einsum", "baddbmm"), _ATTENTION)
    | {
        "conv3d": ("nn.Conv2d", "use nn.Conv2d"),
        "maximum": ("torch.clamp or nn.MaxPool2d", "rewrite it with these"),
        "minimum": ("torch.clamp", "rewrite it with it"),
        "stack": ("torch.cat", "x.unsqueeze(...) is not needed for channels: use torch.cat"),
        "roll": ("slices and torch.cat", "write it as torch.cat of two slices"),
    }
)
"""For operators that users often meet: what would be accepted, and what to do."""
