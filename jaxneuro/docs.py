# SPDX-License-Identifier: Apache-2.0
"""Docstrings that a command shows: read from the source where `python -OO` has dropped them."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from typing import Annotated, Any, get_args, get_origin


def doc(of: Any) -> str:
    """The docstring of a class or function, without its indentation.

    Under `python -OO`, where a dataclass's own `__doc__` is its signature, it is put back, there and in the dataclasses
    of its fields.

    Example:
      >>> doc(doc).partition("\\n")[0]
      'The docstring of a class or function, without its indentation.'
    """
    if sys.flags.optimize < 2:
        return inspect.getdoc(of) or ""
    for field in dataclasses.fields(of) if dataclasses.is_dataclass(of) else ():
        kind = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
        if dataclasses.is_dataclass(kind):
            doc(kind)
    of.__doc__ = _in_source(of)
    return of.__doc__


def list_names(package: str) -> None:
    """Name what a package exports in its `__all__`, so that `help(package)` lists functions of its files too.

    Without it `help` leaves out whatever a package imports, which is all that a room is for.
    """
    module = sys.modules[package]
    public = (n for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v))
    module.__all__ = sorted(public)  # type: ignore[attr-defined]


def _in_source(of: Any) -> str:
    try:
        source = inspect.getsource(of)
    except (OSError, TypeError):  # made at run time, or a package without its source
        return f"{of.__name__}: python -OO leaves out what is said of it."
    return ast.get_docstring(ast.parse(textwrap.dedent(source)).body[0]) or ""  # type: ignore[arg-type]
