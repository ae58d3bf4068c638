"""What stands at the ends of a TFLite network for its caller's sake alone: quantisation of float inputs and outputs, orders of axes."""

from __future__ import annotations

from dataclasses import replace

from kqgen.tflite_read import Model, Operator

TO_CHANNELS_LAST = (0, 2, 3, 1)
TO_CHANNELS_FIRST = (0, 3, 1, 2)


def without_ends(model: Model, *, integers: bool) -> Model:
    """The network between its ends: inputs and outputs are then tensors inside.

    Operators that give a channels-first input channels last, and outputs the other way, go: C has channels last, PyTorch first.

    Args:
        integers: QUANTIZE and reshapes of inputs and DEQUANTIZE of outputs go too: bytes do not change by them.
    """
    found = True
    while found:
        model, found = _shorter(model, integers)
    return model


def _shorter(model: Model, integers: bool) -> tuple[Model, bool]:
    for operator in model.operators:
        source, made = operator.inputs[0], operator.outputs[0]
        readers = [each for each in model.operators if source in each.inputs]
        starts = _ends(model, operator, "QUANTIZE", integers, TO_CHANNELS_LAST) or (integers and _raises(model, operator))
        if starts and source in model.inputs and readers == [operator] and source not in model.outputs and made not in model.outputs:
            return replace(model, inputs=_renamed(model.inputs, source, made), operators=_without(model, operator)), True
        stops = _ends(model, operator, "DEQUANTIZE", integers, TO_CHANNELS_FIRST)
        inside = any(source in each.outputs for each in model.operators) and source not in model.outputs
        if stops and made in model.outputs and inside and not any(made in each.inputs for each in model.operators):
            return replace(model, outputs=_renamed(model.outputs, made, source), operators=_without(model, operator)), True
    return model, False


def _ends(model: Model, operator: Operator, kind: str, integers: bool, order: tuple[int, ...]) -> bool:
    if operator.kind == kind and integers:
        types = {model.tensors[operator.inputs[0]].dtype, model.tensors[operator.outputs[0]].dtype}
        return "float32" in types
    ordered = operator.kind == "TRANSPOSE" and len(operator.inputs) == 2 and operator.inputs[1] >= 0
    permutation = model.tensors[operator.inputs[1]].values if ordered else None
    return permutation is not None and tuple(permutation.ravel().tolist()) == order


def _raises(model: Model, operator: Operator) -> bool:
    """Whether it makes a map of a vector or sequence, whose bytes are the same."""
    source, made = model.tensors[operator.inputs[0]].shape, model.tensors[operator.outputs[0]].shape
    return operator.kind == "RESHAPE" and len(made) == 4 and len(source) < 4


def _renamed(numbers: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    return tuple(new if number == old else number for number in numbers)


def _without(model: Model, gone: Operator) -> tuple[Operator, ...]:
    return tuple(operator for operator in model.operators if operator is not gone)
