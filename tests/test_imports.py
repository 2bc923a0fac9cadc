# SPDX-License-Identifier: Apache-2.0
"""The house: rooms import downwards only, and `import jaxneuro` is light."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxneuro"

# Each room and what it may import, besides itself. Doors (axes, errors, console, docs, excerpts, protocols, sums,
# versions, io) are open to all above.
MAY_IMPORT = {
    "axes": {"errors"},
    "errors": set(),
    "console": set(),
    "docs": set(),
    "excerpts": set(),
    "left_out": {"errors", "protocols"},
    "protocols": set(),
    "sums": set(),
    "stats": {"docs", "errors"},
    "versions": set(),
    "io": {"docs", "errors"},
    "taps": {"docs", "axes", "errors"},
    "models": {"docs", "axes", "console", "errors", "io", "taps"},
    "data": {"docs", "errors", "io", "stats"},
    "activations": {"docs", "axes", "errors", "console", "protocols", "sums", "io", "taps", "models", "data"},
    "dictionaries": {"docs", "axes", "errors", "excerpts", "left_out", "protocols", "sums", "io", "taps", "models"},
    "neurons": {"docs", "axes", "errors", "excerpts", "protocols", "sums", "stats", "io", "taps", "models"},
    "reports": {"docs", "errors", "io"},
    "parallel": {"errors", "protocols"},
    "study": {
        "axes",
        "docs",
        "excerpts",
        "errors",
        "console",
        "protocols",
        "versions",
        "io",
        "left_out",
        "taps",
        "models",
        "data",
        "activations",
        "dictionaries",
        "neurons",
        "stats",
        "reports",
    },
    "training": {
        "errors",
        "console",
        "docs",
        "protocols",
        "versions",
        "io",
        "left_out",
        "taps",
        "models",
        "data",
        "activations",
        "dictionaries",
    },
    "inference": {"docs", "errors", "taps", "models", "data"},
    "__main__": {"cli"},
    "cli": {
        "errors",
        "console",
        "docs",
        "versions",
        "io",
        "left_out",
        "taps",
        "models",
        "data",
        "activations",
        "study",
        "training",
        "inference",
    },
}


def room_of(path: pathlib.Path) -> str:
    """The room a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Every module a file imports, absolute names, wherever the import stands."""
    package = ("jaxneuro", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {f"{module}.{a.name}" for a in node.names} | {module}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_room_is_in_the_table():
    assert {room_of(p) for p in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_downwards_only(room):
    for path in FILES:
        if room_of(path) != room:
            continue
        rooms = {m.split(".")[1] for m in imported(path) if m.startswith("jaxneuro.")} - {"__version__"}
        assert rooms <= MAY_IMPORT[room] | {room}, f"{path} imports {rooms - MAY_IMPORT[room] - {room}}"


def test_learners_take_arrays_and_functions_never_a_model_class():
    for path in FILES:
        if room_of(path) in ("dictionaries", "neurons"):
            assert not imported(path) & {"jaxneuro.models.Transformer", "jaxneuro.models.load"}, path


def test_torch_nowhere_and_transformers_in_data_only():
    for path in FILES:
        tops = {m.split(".")[0] for m in imported(path)}
        assert "torch" not in tops, path
        assert "transformers" not in tops or room_of(path) == "data", path


def test_kernels_know_jax_only():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in {"jax", "numpy", "jaxtyping"} or top in sys.stdlib_module_names, f"{path}: {name}"


def test_kernels_folder_is_not_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the PyPI package `kernels`"


def test_import_is_light():
    code = "import sys, jaxneuro; print(sorted({'transformers', 'torch', 'jax', 'flax', 'orbax'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_every_public_name_exists_and_has_a_docstring():
    import jaxneuro

    for name in jaxneuro.__all__:
        value = getattr(jaxneuro, name)
        assert name.startswith("__") or re.match(r"\S", value.__doc__ or ""), f"{name} has no docstring"


def test_every_room_is_there_after_one_import():
    rooms = {room for room in MAY_IMPORT if (PACKAGE / room / "__init__.py").exists()} - {"cli"}
    code = f"import jaxneuro; print(all(getattr(jaxneuro, r).__name__ == 'jaxneuro.' + r for r in {sorted(rooms)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_unknown_public_name_suggests():
    import jaxneuro

    with pytest.raises(AttributeError, match="Did you mean 'capture'"):
        jaxneuro.captur  # noqa: B018
