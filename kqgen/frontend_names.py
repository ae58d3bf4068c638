"""Names for C: identifiers derived from PyTorch module paths, unique and no keyword of C or C++."""

from __future__ import annotations

import re

# fmt: off
_KEYWORDS = frozenset((
    "alignas", "alignof", "and", "and_eq", "asm", "asm_", "atomic_cancel", "atomic_commit", "atomic_noexcept", "auto", "bitand",
    "bitor", "bool", "break", "case", "catch", "char", "char16_t", "char32_t", "char8_t", "class", "co_await", "co_return",
    "co_yield", "compl", "concept", "const", "const_cast", "consteval", "constexpr", "constinit", "continue", "decltype", "default",
    "delete", "do", "double", "dynamic_cast", "else", "enum", "errno", "explicit", "export", "extern", "false", "float", "for",
    "fortran", "friend", "goto", "if", "inline", "int", "long", "main", "mutable", "namespace", "new", "noexcept", "not", "not_eq",
    "nullptr", "operator", "or", "or_eq", "private", "protected", "public", "reflexpr", "register", "reinterpret_cast", "requires",
    "restrict", "return", "short", "signed", "sizeof", "static", "static_assert", "static_cast", "struct", "switch", "synchronized",
    "template", "this", "thread_local", "throw", "true", "try", "typedef", "typeid", "typename", "typeof", "typeof_unqual", "union",
    "unsigned", "using", "virtual", "void", "volatile", "wchar_t", "while", "xor", "xor_eq", "NULL",
))
# fmt: on
_PATH_NOISE = re.compile(r"^(L\['self'\]\.?|L__self__\.?)|@\d+")


def c_identifier(text: str, prefix: str = "net") -> str:
    """A C identifier made of `text`: other characters become one underscore, `prefix` goes before a digit, keywords get an underscore.

    Underscores at the ends go (names with a leading one are reserved in C); an empty rest gives `prefix`.
    """
    name = re.sub(r"_*[^0-9A-Za-z_]+_*", "_", text).strip("_")
    if not name or name[0].isdigit():
        name = f"{prefix}_{name}".rstrip("_")
    return f"{name}_" if name in _KEYWORDS else name


def module_path(raw: str) -> str:
    """The dotted path as the user would write it: torch.export's marks for the root and for repeated calls are taken off."""
    return _PATH_NOISE.sub("", raw)


def unique(wanted: str, taken: set[str]) -> str:
    """`wanted`, or it with _1, _2, ... such that no name in `taken` differs from it in case only."""
    lower = {name.lower() for name in taken}
    name, count = wanted, 0
    while name.lower() in lower:
        count += 1
        name = f"{wanted}_{count}"
    return name
