"""Tensors that are computed twice: the same operation with the same numbers on the same inputs."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import numpy as np

from kqgen.ir import Graph, Input, Node
from kqgen.simplify_rewrite import is_output, rewrite

_LABELS = ("name", "path", "sources", "value", "parameter", "inputs")


def merge_twins(graph: Graph) -> Graph:
    """`graph` with one node in place of several that make the same tensor; outputs stay apart."""
    rename: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for node in graph:
        if isinstance(node, Input):
            continue
        key = (type(node), tuple(rename.get(name, name) for name in node.inputs), *_numbers(node))
        other = first.setdefault(key, node.name)
        if other != node.name and not is_output(graph, node.name):
            rename[node.name] = other
    return rewrite(graph, drop=set(rename), rename=rename) if rename else graph


def _numbers(node: Node) -> tuple[Any, ...]:
    values = (getattr(node, field.name) for field in fields(node) if field.name not in _LABELS)
    return tuple((each.shape, hashlib.sha256(each.tobytes()).digest()) if isinstance(each, np.ndarray) else each for each in values)
