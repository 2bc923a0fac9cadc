# SPDX-License-Identifier: Apache-2.0
"""The `jaxneuro` command: one sub-command per job, each a typed dataclass and one function.

    jaxneuro study --model PATH_OR_HUB_NAME --groups FOLDER_OR_JSONL --out DIR
    jaxneuro train-dictionary --out DIR live --site blocks.3.resid_post topk --n-latents 4096 --k 32
    jaxneuro show-dictionary FOLDER --model PATH_OR_HUB_NAME --groups FOLDER_OR_JSONL --latents 0,7,12 --out DIR
    jaxneuro capture PATH_OR_HUB_NAME --site "blocks.*.resid_post" --groups FOLDER_OR_JSONL --out DIR
    jaxneuro generate PATH_OR_HUB_NAME --prompt TEXT --max-new 64 --steer VECTOR.npz --site blocks.3.resid_post
    jaxneuro sites PATH_OR_HUB_NAME

Every command takes `--quiet`: no progress, only results and errors. `jaxneuro --tyro-print-completion bash` (or zsh)
prints a script that completes options with the tab key.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | a request that cannot be met: one line on standard error says what was asked, what exists, what to do |
| 130 | interrupted; the same command goes on where it stopped |
"""

import dataclasses
import errno
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import tyro

from ..console import quietly
from ..errors import UserError

TRAIN: Final = "train-dictionary"
ABOUT: Final = "Open up pretrained networks. Every command takes --quiet: no progress, only results and errors."
QUIET: Final = "--quiet"
"""Of every command: no progress, only results and errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sites:
    """List the named values inside a model, with their shapes for one batch."""

    model: Annotated[str, tyro.conf.Positional] = "bundled"
    """A folder in Hugging Face layout, a name on the Hub, or `bundled`."""
    pos: int = 8
    """Positions of the example batch, for models of text."""


def _sites(config: Sites) -> None:
    from ..models import Transformer, load
    from ..models.pooling import has_pooled
    from ..taps import sites

    model = load(config.model)
    example = _example(model, config.pos)
    given = {"context": example} if getattr(model.cfg, "encoder", None) else {}
    run = model.pooled if isinstance(model, Transformer) and has_pooled(model.cfg) else model.apply
    print(sites(run, model.weights, example, **given))


def _example(model: Any, pos: int) -> Any:
    """A batch of one: tokens, or a picture."""
    import jax.numpy as jnp

    from ..models.convnet import ConvModel

    if isinstance(model, ConvModel):
        return model.example()
    image = model.cfg.image
    return jnp.zeros((1, pos), jnp.int32) if image is None else jnp.zeros((1, image.size, image.size, image.channels))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainDictionary:
    """Train sparse dictionaries on a model's activations: see `jaxneuro train-dictionary --help`."""


def _job(argv: Sequence[str]) -> Callable[[], object]:
    """What the command line asks for; its code is loaded here."""
    from ..study import ShowDictionary, StudyConfig, run_study, show_dictionary
    from .capture import Capture, run_capture
    from .generate import Generate
    from .generate import run as run_generate

    if argv and argv[0] == TRAIN:
        from ..training import train_dictionary
        from .train import parsed

        return functools.partial(train_dictionary, parsed(argv[1:]))
    jobs = {
        StudyConfig: run_study,
        ShowDictionary: show_dictionary,
        Capture: run_capture,
        Generate: run_generate,
        Sites: _sites,
    }
    command = (
        Annotated[StudyConfig, tyro.conf.subcommand("study", description=StudyConfig.__doc__)]
        | Annotated[TrainDictionary, tyro.conf.subcommand(TRAIN, description=TrainDictionary.__doc__)]
        | Annotated[ShowDictionary, tyro.conf.subcommand("show-dictionary", description=ShowDictionary.__doc__)]
        | Annotated[Capture, tyro.conf.subcommand("capture", description=Capture.__doc__)]
        | Annotated[Generate, tyro.conf.subcommand("generate", description=Generate.__doc__)]
        | Annotated[Sites, tyro.conf.subcommand("sites", description=Sites.__doc__)]
    )
    config = tyro.cli(
        command, args=argv, prog="jaxneuro", description=ABOUT, config=(tyro.conf.OmitSubcommandPrefixes,)
    )  # type: ignore[arg-type]
    return functools.partial(jobs[type(config)], config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with quietly(QUIET in words):
            _job([w for w in words if w != QUIET])()
    except UserError as e:
        print(f"jaxneuro: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        print(
            f"jaxneuro: cannot write {e.filename or 'the output'}: {e.strerror}. Free some space or choose another "
            "folder, then run the same command again to go on.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("jaxneuro: interrupted. Run the same command again to go on where it stopped.", file=sys.stderr)
        return 130
    return 0
