# SPDX-License-Identifier: Apache-2.0
"""`help(package)` lists what the package is for, of every public package."""

import ast
import importlib
import pathlib
import pydoc

import jaxneuro_kernels
import pytest

import jaxneuro

PRIVATE = {"jaxneuro.cli", "jaxneuro.models.families", "jaxneuro.dictionaries.parts"}
"""The command's, and tables of the rooms above them."""


def packages(root):
    folder = pathlib.Path(root.__file__).parent
    for file in sorted(folder.rglob("__init__.py")):
        yield ".".join((root.__name__, *file.parent.relative_to(folder).parts)), file


ROOMS = {name: file for name, file in packages(jaxneuro) if name not in PRIVATE and name != "jaxneuro"}
ROOMS["jaxneuro_kernels"] = pathlib.Path(jaxneuro_kernels.__file__)


def exported(file):
    """Names that a file imports as themselves."""
    tree = ast.parse(file.read_text())
    return {a.asname for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names if a.asname}


@pytest.mark.parametrize("name", ROOMS)
def test_help_lists_every_name(name):
    room, wanted = importlib.import_module(name), {n for n in exported(ROOMS[name]) if not n.startswith("_")}
    assert wanted
    assert wanted <= set(room.__all__)
    assert all(getattr(room, n).__module__ == name for n in set(room.__all__) - wanted), "its own"
    assert all(pydoc.visiblename(n, room.__all__, getattr(room, n)) for n in wanted)


def test_help_of_one_room_is_read():
    said = pydoc.plain(pydoc.render_doc(jaxneuro.taps))
    functions = said.partition("\nFUNCTIONS\n")[2]
    assert all(f"    {name}(" in functions for name in ("capture", "intervene", "sweep", "zero", "tap"))
    assert "list_names" not in said
    assert set(jaxneuro.__all__) > {"capture", "load", "run_study"}
