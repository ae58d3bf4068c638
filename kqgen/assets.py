"""Where kqgen's own files lie: Jinja templates, the C runtime and the board descriptions.

The only module that knows. In a source checkout (and an editable install) they stand beside the package; in an installed
wheel they are inside it, under `_assets/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kqgen.errors import InternalError

AssetKind = Literal["templates", "runtime_c", "boards"]

_PACKAGE = Path(__file__).resolve().parent


def asset_dir(kind: AssetKind) -> Path:
    """The folder that holds one kind of asset.

    Raises: InternalError when neither the checkout nor the installed package has it.
    """
    places = (_PACKAGE / "_assets" / kind, _PACKAGE.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise InternalError(
        f"kqgen's own folder {kind}/ is missing",
        found="neither in the package nor beside it",
        wanted=" or ".join(str(place) for place in places),
        do="install kqgen again",
    )


def templates_dir() -> Path:
    """The Jinja templates, one per generated file, named <output>.j2."""
    return asset_dir("templates")


def runtime_dir() -> Path:
    """The hand-written C: kq_*.c and kq_*.h, and port/ with start-up code and semihosting."""
    return asset_dir("runtime_c")


def boards_dir() -> Path:
    """The board descriptions, one <name>.toml each."""
    return asset_dir("boards")
