"""What may stand in the JSON of a .pt2, so that loading it runs nothing that the file's author chose.

torch.export.load evaluates more of the file than its pickles: shape expressions go through sympy's parser and guards through
Python's compiler, names of operands become source text of the generated module, tree specifications may import modules. Each
is held to a grammar here, and what compiling does not need is dropped.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from kqgen.errors import InputError

_PLAIN = re.compile(r"[\w.+\-/]{0,300}", re.ASCII)
_NAME = re.compile(r"\w{1,300}", re.ASCII)
_STACK = re.compile(r"[^\x00-\x1f]{0,20000}")
_TARGET = re.compile(r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|(_operator|math)\.\w+|torch\.sym_\w+", re.ASCII)
_SYMBOL = re.compile(r"[a-z]+[0-9]+", re.ASCII)
_FILE_OPERATORS = ("torch.ops.aten.from_file",)
_EXPRESSIONS = frozenset(
    ("Symbol", "Integer", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing")
)
_RELATIONS = frozenset(("Eq", "Ne", "Le", "Lt", "Ge", "Gt", "And", "Or", "Not"))
_ASSUMPTIONS = frozenset(("positive", "integer", "nonnegative"))
_TREES = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", None))
_DEEPEST = 60
_LONGEST_EXPRESSION = 2000
_LARGEST_NUMBER = 1 << 63


def checked_model(path: Path, text: bytes) -> dict[str, Any]:
    """The program's JSON, harmless: guards, stack traces and custom metadata are dropped, tensors are put on the CPU.

    Raises:
        InputError: it is no JSON object, or a string in it could run code when it is loaded.
    """
    try:
        model = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged", found=f"models/model.json: {error}", wanted="what torch.export.save writes") from error
    if not isinstance(model, dict):
        raise InputError(f"{path} is damaged", found="models/model.json is no object", wanted="what torch.export.save writes")
    clean = _clean(path, "", model, 0)
    if not isinstance(clean, dict):
        raise suspicious(path, "model.json", "no object")
    return clean | {"guards_code": []}


def checked_config(path: Path, member: str, text: bytes) -> dict[str, Any]:
    """The list of stored tensors: name to where and how each is stored.

    Raises:
        InputError: it is no such list.
    """
    try:
        config = json.loads(text)["config"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged", found=f"{member}: {error}", wanted="what torch.export.save writes") from error
    clean = _clean(path, "", config, 0)
    if not isinstance(clean, dict) or not all(isinstance(entry, dict) for entry in clean.values()):
        raise suspicious(path, member, "entries that are no objects")
    return clean


def suspicious(path: Path, what: str, found: str) -> InputError:
    """The error for something in `path` that could run code, or that torch.export.save never writes."""
    return InputError(
        f"{path} is refused: loading it could run code that it brings along",
        found=f"{what}: {found[:120]}",
        wanted="a plain program as torch.export.save writes it",
        do="export the model again, or name it by package.module:factory with --state weights.safetensors",
    )


def _clean(path: Path, key: str, value: Any, depth: int) -> Any:
    """A checked copy of `value`, which stands under `key`."""
    if depth > _DEEPEST:
        raise suspicious(path, key, f"nesting deeper than {_DEEPEST}")
    if isinstance(value, dict):
        if key == "metadata":
            stack = value.get("nn_module_stack")
            return {"nn_module_stack": stack} if isinstance(stack, str) and _STACK.fullmatch(stack) else {}
        if key in ("device", "as_device"):
            return {"type": "cpu", "index": None}
        if key == "treespec_namedtuple_fields":
            return {}
        for name in value:
            if not _PLAIN.fullmatch(name):
                raise suspicious(path, key or "a key", repr(name))
        return {name: _clean(path, name, item, depth + 1) for name, item in value.items() if name != "guards_code"}
    if isinstance(value, list):
        return [_clean(path, key, item, depth + 1) for item in value]
    if isinstance(value, str):
        if not _allowed(key, value):
            raise suspicious(path, key, repr(value))
        return value
    return value


def _allowed(key: str, text: str) -> bool:
    if key == "expr_str":
        return _is_shape_expression(text)
    if key == "target":
        return bool(_TARGET.fullmatch(text)) and not text.startswith(_FILE_OPERATORS)
    if key in ("in_spec", "out_spec"):
        return _is_plain_tree(text)
    if key in ("name", "as_name", "path_name"):
        return not text or bool(_NAME.fullmatch(text))
    return bool(_PLAIN.fullmatch(text))


def _is_shape_expression(text: str) -> bool:
    """Whether `text` is arithmetic of symbols and whole numbers, as sympy prints it."""
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_arithmetic(tree.body)


def _is_arithmetic(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int(number)):
            return abs(number) < _LARGEST_NUMBER
        case ast.Name(id=name):
            return bool(_SYMBOL.fullmatch(name))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_arithmetic(inner)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv() | ast.Div(), right=right):
            return _is_arithmetic(left) and _is_arithmetic(right)
        case ast.Compare(left=left, comparators=rest):
            return all(_is_arithmetic(item) for item in (left, *rest))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            plain = all(word.arg in _ASSUMPTIONS and isinstance(word.value, ast.Constant) for word in keywords)
            return bool(_SYMBOL.fullmatch(name)) and plain
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return name in _EXPRESSIONS | _RELATIONS and all(_is_arithmetic(item) for item in args)
        case _:
            return False


def _is_plain_tree(text: str) -> bool:
    """Whether `text` describes nested tuples, lists and dicts alone."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(spec, list) and len(spec) == 2 and isinstance(spec[0], int) and _is_plain_branch(spec[1], 0)


def _is_plain_branch(branch: Any, depth: int) -> bool:
    if depth > _DEEPEST or not isinstance(branch, dict) or set(branch) != {"type", "context", "children_spec"}:
        return False
    context, children = branch["context"], branch["children_spec"]
    if not (branch["type"] is None or isinstance(branch["type"], str)) or branch["type"] not in _TREES:
        return False
    if not (context is None or (isinstance(context, str) and re.fullmatch(r'null|\[("[\w.]*"(, ?)?)*\]', context))):
        return False
    return isinstance(children, list) and all(_is_plain_branch(child, depth + 1) for child in children)
