# SPDX-License-Identifier: Apache-2.0
"""The `jaxneuro` command: one sub-command per job, each a typed dataclass and one function.

    jaxneuro study --model PATH_OR_HUB_NAME --groups FOLDER_OR_JSONL --out DIR
    jaxneuro study --model PATH_OR_HUB_NAME --pictures FOLDER --out DIR
    jaxneuro train-dictionary --out DIR live --site blocks.3.resid_post topk --n-latents 4096 --k 32
    jaxneuro show-dictionary FOLDER --model PATH_OR_HUB_NAME --groups FOLDER_OR_JSONL --latents 0,7,12 --out DIR
    jaxneuro capture PATH_OR_HUB_NAME --site "blocks.*.resid_post" --groups FOLDER_OR_JSONL --out DIR
    jaxneuro generate PATH_OR_HUB_NAME --prompt TEXT --max-new 64 --steer VECTOR.npz --site blocks.3.resid_post
    jaxneuro sites PATH_OR_HUB_NAME
    jaxneuro --version                     (also `python -m jaxneuro`)

Every command takes `--quiet`: no progress, only results and errors. `jaxneuro --tyro-print-completion bash` (or zsh)
prints a script that completes options with the tab key.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | a request that cannot be met: one line on standard error says what was asked, what exists, what to do |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM; the same command goes on where it stopped |
"""

import contextlib
import dataclasses
import errno
import functools
import io
import operator
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import tyro

from .. import __version__
from ..console import quietly
from ..docs import doc
from ..errors import UserError, shown
from ..io.fields import check_counts, whole
from .flags import current, in_flags
from .words import Part, command_of, parsed

TRAIN: Final = "train-dictionary"
ABOUT: Final = "Open up pretrained networks. Every command takes --quiet: no progress, only results and errors."
_MOST: Final = {"max_tokens": 2**40}
"""Of whole numbers; all others have 32 bits."""
QUIET: Final = "--quiet"
"""Of every command: no progress, only results and errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sites:
    """List the named values inside a model: layers, axes, shapes for one batch, what each is, TransformerLens' name."""

    model: Annotated[str, tyro.conf.Positional] = "bundled"
    """A folder in Hugging Face layout, a name on the Hub, or `bundled`."""
    pos: int = 8
    """Positions of the example batch, for models of text."""
    dtype: Literal["float32", "bfloat16"] = "float32"


def _sites(config: Sites) -> None:
    from ..models import Transformer, load, load_pair
    from ..models.pair import is_pair

    whole().of(config.pos, "pos")
    if is_pair(config.model):
        pair = load_pair(config.model, dtype=config.dtype)
        print(f"Of pictures:\n{pair.image.sites()}\n\nOf text:\n{pair.text.sites(pair.text.example(config.pos))}")
        return
    model = load(config.model, dtype=config.dtype)
    print(model.sites(model.example(config.pos)) if isinstance(model, Transformer) else model.sites())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainDictionary:
    """Train sparse dictionaries on a model's activations: see `jaxneuro train-dictionary --help`."""


def _job(argv: Sequence[str]) -> Callable[[], object]:
    """What the command line asks for; its code is loaded here."""
    if argv == ["--version"]:
        return functools.partial(print, f"jaxneuro {__version__}")
    from ..study import ShowDictionary, StudyConfig, run_study, show_dictionary
    from ..study.config import preset_of
    from .capture import Capture, run_capture
    from .generate import Generate
    from .generate import run as run_generate

    if argv and argv[0] == TRAIN:
        from ..training import train_dictionary
        from .train import config_of_words

        return functools.partial(train_dictionary, config_of_words(argv[1:]))
    jobs: dict[str, tuple[type, Callable[[Any], object]]] = {
        "study": (StudyConfig, run_study),
        TRAIN: (TrainDictionary, lambda config: None),
        "show-dictionary": (ShowDictionary, show_dictionary),
        "capture": (Capture, run_capture),
        "generate": (Generate, run_generate),
        "sites": (Sites, _sites),
    }
    how: dict[str, dict[str, Any]] = {"study": {"default": preset_of(argv)}}
    commands = [
        Annotated[kind, tyro.conf.subcommand(name, description=doc(kind), **how.get(name, {}))]
        for name, (kind, _) in jobs.items()
    ]
    parts = []
    if not (argv and argv[0].startswith(_OF_ALL)):
        name = command_of(argv, list(jobs))
        parts = [Part(name, jobs[name][0], argv[1:])]
    config = parsed(functools.reduce(operator.or_, commands), argv, parts, description=ABOUT)
    if isinstance(config, StudyConfig):  # its preset is in the defaults
        config = dataclasses.replace(config, preset="default")
    return functools.partial(_checked, config, next(job for kind, job in jobs.values() if kind is type(config)))


_OF_ALL: Final = ("-h", "--help", "--tyro-")
"""How words begin that are of no one command."""


def _checked(config: Any, job: Callable[[Any], object]) -> object:
    """Here, where messages are put into the command's flags."""
    check_counts(config, _MOST)
    return job(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. JAXNEURO_TRACEBACK=1 shows where an error comes from."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file that cannot show a character shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminated_like_interrupted():
            code = _run(words)
    except BrokenPipeError:  # `| head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: its locks and temporary files go. A handler of somebody else stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one acts at once
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(words: list[str]) -> int:
    job: Any = None
    try:
        _check_words(words)
        with quietly(QUIET in words):
            job = _job(current([w for w in words if w != QUIET]))
            job()
        sys.stdout.flush()  # here: a full disk is an error like any other
    except KeyboardInterrupt as e:
        number = signal.SIGTERM if isinstance(e, _Terminated) else signal.SIGINT
        return _failed("interrupted. Run the same command again to go on where it stopped.", 128 + number)
    except SystemExit:  # tyro's, after --help or a wrong option
        sys.stdout.flush()
        raise
    except BrokenPipeError:
        raise
    except Exception as e:
        if os.environ.get("JAXNEURO_TRACEBACK") or (text := _said(e, words)) is None:
            raise
        configs = getattr(job, "args", ())
        return _failed(in_flags(text, configs[0]) if configs and dataclasses.is_dataclass(configs[0]) else text, 2)
    return 0


def _failed(text: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the exit code says it where the stream cannot
        print(f"jaxneuro: {text}", file=sys.stderr)
    return code


def _check_words(words: list[str]) -> None:
    """Names beyond what the locale can spell are not taken as other names."""
    for text in (*words, os.getcwd()):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{shown(text)} is not spelled in this locale's encoding ({sys.getfilesystemencoding()}). "
                "Set LC_ALL=C.UTF-8 or PYTHONUTF8=1."
            ) from None


def _said(e: Exception, words: list[str]) -> str | None:
    """What a person is told; None: a fault of this program, which shows where it is."""
    if isinstance(e, UserError):
        return str(e)
    if isinstance(e, OSError):
        what = f"{e.strerror or e}{_TOO_LONG if e.errno == errno.ENAMETOOLONG else ''}"
        path = "the output" if e.filename is None else shown(os.fspath(e.filename), 400)
        verb = "read" if e.errno in _OF_READING else "use" if e.errno == errno.ENAMETOOLONG else "write"
        return f"cannot {verb} {path}: {what}.{_GO_ON if verb == 'write' else ''}"
    if isinstance(e, MemoryError) or "RESOURCE_EXHAUSTED" in (text := str(e)[:2000]):
        detail = shown(str(e).partition("\n")[0], 300)
        return f"not enough memory{f' ({detail})' if detail else ''}. Ask for less: a smaller batch, fewer tokens."
    if isinstance(e, OverflowError) or "int too large" in text or "out of bounds for" in text:
        large = [f"{flag} {w}" for flag, w in zip(["", *words], words, strict=False) if re.fullmatch(r"-?\d{10,}", w)]
        return f"{shown(', '.join(large)) or 'a number'} is too large ({shown(str(e), 200)})."
    if type(e).__name__ == "JaxRuntimeError" and "Traceback" not in text:  # else of Python code that XLA calls
        return (
            f"XLA cannot run this: {shown(text.partition(chr(10))[0], 300)}. Where memory is short, ask for less: a "
            "smaller batch, fewer tokens. JAXNEURO_TRACEBACK=1 shows where it was."
        )
    return None


_TOO_LONG: Final = ": a name may have 255 bytes, a path 4,096"
_OF_READING: Final = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
_GO_ON: Final = " Free some space or choose another folder, then run the same command again to go on."
