"""The Jinja environment: prints views through templates. Knows nothing about networks."""

from __future__ import annotations

from functools import cache

import jinja2

from kqgen.assets import templates_dir
from kqgen.errors import InternalError


@cache
def environment() -> jinja2.Environment:
    """Where templates come from and how they are read: an unknown name is an error, lines of block tags leave no trace."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_dir()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  the output is C, not HTML
    )


def render(template: str, view: object) -> str:
    """The text of `template` for `view`, which it knows as `m`.

    Raises: InternalError when the template is missing or asks for what the view does not have.
    """
    try:
        return environment().get_template(template).render(m=view)
    except jinja2.TemplateError as error:
        raise InternalError(f"template {template} cannot be printed", found=f"{type(error).__name__}: {error}") from error
