# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro capture`: values of a model's sites over text or pictures, to disk; or their moments, which never do."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from ..console import say
from ..data import Bos, PictureFields, TextFields
from ..errors import UserError, shown, unknown

if TYPE_CHECKING:
    from jax.sharding import Mesh as DeviceMesh

    from ..activations import Moments
    from ..data import Paired, PictureRows, Windows

MOMENTS: Final = "moments.npz"
SETTINGS: Final = "capture.json"
NAMES: Final = "pictures.json"
"""Of pictures: {"pictures": [{path, group, document}, ...]}; entry i is what a store calls window i."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Over how many devices the model and its batches are spread."""

    data: int = 1
    """Parts of a batch."""
    model: int = 1
    """Parts of every layer (heads, neurons, vocabulary)."""
    fsdp: int = 1
    """Parts of the weights, which are gathered layer by layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapturedPictures(PictureFields):
    """Which pictures, and which of their positions."""

    positions: Literal["patches", "first", "all"] = "patches"
    """What is kept: patches; the first position, a class token where there is one; all, with class token and
    registers. A convolutional network has patches only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capture:
    """Read a model's sites over text or pictures and keep the values at every token or patch, or their mean, variance
    and range."""

    model: Annotated[str, tyro.conf.Positional] = "bundled"
    """A folder in Hugging Face layout, a name on the Hub, or `bundled`."""
    site: tuple[str, ...]
    """Such as blocks.3.mlp.post; blocks.*.resid_post or blocks.2,5.resid_post are several, "blocks.*.mlp.*" all that
    match, "*" every site with a row for each token. See `jaxneuro sites`.
    pooled and projected are one row per text; encoder.blocks.3.mlp.post is of a T5's encoder, which reads the text."""
    out: Path = Path("jaxneuro-activations")
    """Folder: OUT/SITE is a store for each. An interrupted run goes on in it."""
    keep: Literal["values", "moments"] = "values"
    """moments: of every coordinate, in OUT/moments.npz (SITE/mean, /variance, /min, /max, /count)."""
    groups: str = "bundled"
    """Text: a folder, a file, `hub:NAME` or `bundled`, as for `jaxneuro study`. All groups are used."""
    text: Annotated[TextFields, tyro.conf.OmitArgPrefixes] = TextFields()
    """What in these files is text."""
    pictures: str | None = None
    """Instead of text: a folder with a sub-folder of pictures per group, a folder of pictures, or a table with the
    fields path and group. A store's window is the picture (OUT/pictures.json has the names), its pos the patch."""
    picture: CapturedPictures = CapturedPictures()
    """Which of these pictures, and which of their positions."""
    tower: Literal["image", "text"] | None = None
    """Of a folder with two models (CLIP, SigLIP): that of pictures or that of text. None: that of pictures."""
    answers: str | None = None
    """Text that the decoder of a T5 reads, document by document beside that of --groups: for sites of the decoder."""
    without_ids: tuple[int, ...] = ()
    """Of moments: token ids that do not count, beside special tokens: a sink's, say."""
    without_positions: tuple[int, ...] = ()
    """Of moments: positions that do not count, 0 being the first token of each window."""
    max_norm: float | None = None
    """Of moments: tokens longer than so many times the median norm of the site's first batch do not count."""
    max_tokens: int | None = None
    """Of all groups together, drawn at random, the same number of each; moments are of the whole windows drawn.
    None: all of the text, once."""
    context: Annotated[int, tyro.conf.arg(name="window")] = 128
    """Tokens per window."""
    bos: Bos = "auto"
    """Whether windows begin with the begin token: as the tokenizer's own convention has it, always (GPT-2, Pythia, for
    dictionaries trained with `prepend_bos`) or never."""
    batch: int = 32
    """Windows per pass of the model."""
    seed: int = 0
    """Of the drawing."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model."""
    store: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the values on disk; int8 has a scale per token beside it."""
    devices: Mesh = Mesh()
    """Over how many devices the model and its batches are spread."""


def sites_of(asked: Sequence[str], stacks: Mapping[str, int]) -> tuple[str, ...]:
    """Every site with one layer, in order, once.

    Args:
      stacks: {what stands before "blocks.": number of its layers}: "", "encoder.", "stage2.".
    Raises:
      UserError: no site at all, a gradient.
    Example:
      >>> sites_of(["embed", "blocks.*.mlp_out", "blocks.1.mlp_out"], {"": 2})
      ('embed', 'blocks.0.mlp_out', 'blocks.1.mlp_out')
      >>> sites_of(["stage1.blocks.*.post"], {"stage0.": 1, "stage1.": 2})
      ('stage1.blocks.0.post', 'stage1.blocks.1.post')
    """
    from ..activations.site import stack_of
    from ..taps.names import parse

    found: dict[str, None] = {}
    for site in asked:
        name, layers, _ = parse(site)
        if (stack := stack_of(name)) is None:
            found[name] = None
            continue
        if stack not in stacks:
            hint = "Name another one; see `jaxneuro sites`."
            raise unknown("stack of layers", f"{stack}blocks", [f"{s}blocks" for s in stacks], hint=hint)
        rest = name.removeprefix(f"{stack}blocks.")
        found |= dict.fromkeys(
            f"{stack}blocks.{i}.{rest}" for i in (range(stacks[stack]) if layers is None else layers)
        )
    if not found:
        raise UserError("--site names nothing. Name a site, such as blocks.3.resid_post; see `jaxneuro sites`.")
    return tuple(found)


def run_capture(config: Capture) -> Path:
    """Do it, or go on with it; the folder.

    Raises:
      UserError: what cannot be done, before anything is computed where possible.
    Example:
      >>> run_capture(Capture(site=("blocks.*.mlp.post",), keep="moments"))        # doctest: +SKIP
      PosixPath('jaxneuro-activations')
    """
    from ..io.files import before, clear_temporary, nothing_left
    from ..models.sharding import device_mesh

    for name, least in {"context": 2, "batch": 1, "seed": 0}.items():
        if (value := getattr(config, name)) < least:
            raise UserError(f"{name} = {value} is below {least}.")
    if (config.without_ids or config.without_positions) and (config.keep != "moments" or config.pictures is not None):
        raise UserError(f"`without_ids` and `without_positions` are of --keep moments of text. {_LATER}")
    if config.max_norm is not None and config.keep != "moments":
        raise UserError(f"`max_norm` is of --keep moments. {_LATER}")
    if config.out.exists():  # an impossible name is refused here
        clear_temporary(config.out, deep=True)
    mesh = device_mesh(dataclasses.asdict(config.devices))
    if config.batch % config.devices.data:
        raise UserError(f"batch = {config.batch} windows cannot be dealt to devices.data = {config.devices.data}.")
    with nothing_left(config.out, before(config.out)):
        _capture(config, mesh)
    say(f"{config.out} is complete")
    return config.out


def _capture(config: Capture, mesh: "DeviceMesh | None") -> None:
    from jax.sharding import NamedSharding, PartitionSpec

    from ..io import write_json
    from ..versions import versions

    spread = None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))
    model, parts = _of_text(config, mesh) if config.pictures is None else _of_pictures(config, mesh)
    settings = dataclasses.asdict(config) | {"out": str(config.out)}
    names = None if config.pictures is None else {"pictures": parts[0][1].named()}  # type: ignore[union-attr]
    _check_before(config, settings, names)
    _KEEP[config.keep](config, model, parts, spread)
    write_json(config.out / SETTINGS, {"config": settings, "versions": versions()})
    if names is not None:
        write_json(config.out / NAMES, names)


_LATER: Final = "Values are stored with their window and position (labels), by which they can be left out later."
_HOW: Final = {"out", "batch", "devices", "progress"}
"""Options that say how, not what is captured."""


def _check_before(config: Capture, settings: dict[str, Any], names: dict[str, Any] | None) -> None:
    """Pictures by whose numbers stores go, and moments, are not replaced by those of another capture."""
    from ..io.files import read_json

    def same(path: Path, now: Any) -> bool:
        return read_json(path) == json.loads(json.dumps(now))

    if names is not None and (config.out / NAMES).exists() and not same(config.out / NAMES, names):
        raise UserError(
            f"{shown(config.out)} holds activations of other pictures, by whose numbers its stores go ({NAMES}). "
            "Choose another --out, or give the same pictures and --seed."
        )
    if config.keep == "moments" and (config.out / MOMENTS).exists() and (config.out / SETTINGS).exists():
        before, now = read_json(config.out / SETTINGS).get("config", {}), json.loads(json.dumps(settings))
        if other := [name for name in now if name not in _HOW and before.get(name) != now[name]]:
            raise UserError(
                f"{shown(config.out)} holds the moments of another capture: {', '.join(other)} were others. Choose "
                "another --out."
            )


def _of_text(config: Capture, mesh: "DeviceMesh | None") -> tuple[Any, "Parts"]:
    import jax.numpy as jnp

    from ..activations.patterns import spelled_out
    from ..activations.site import check_answers, of_encoder, passes
    from ..activations.text import model_and_tokenizer, read_pairs, read_windows

    model, tokenizer = model_and_tokenizer(
        config.model, dtype=jnp.dtype(config.dtype), mesh=mesh, bos=config.bos, tower=config.tower
    )
    encoder = model.cfg.encoder
    asked = spelled_out(config.site, model)
    sites = sites_of(asked, {"": model.cfg.n_layers} | ({"encoder.": encoder.n_layers} if encoder else {}))
    if config.answers is None:
        texts = rows = read_windows(model, tokenizer, config.groups, length=config.context, fields=config.text)
    else:
        rows = read_pairs(model, tokenizer, config.groups, config.answers, length=config.context, fields=config.text)
        texts = rows.texts
    parts: Parts = [(alike, texts if of_encoder(alike[0]) else rows) for alike in passes(sites)]
    for alike, _ in parts:
        check_answers(model, alike, config.answers is not None)
    return model, parts


def _of_pictures(config: Capture, mesh: "DeviceMesh | None") -> tuple[Any, "Parts"]:
    import jax.numpy as jnp

    from ..activations.patterns import spelled_out
    from ..activations.pictures import (
        Convolutional,
        alike,
        model_and_processor,
        picture_groups,
        picture_rows,
        stacks_of,
    )

    if config.groups != Capture.groups or config.answers is not None:
        raise UserError("--pictures and text (--groups, --answers) are both given. Leave one of them out.")
    model, processor = model_and_processor(config.model, dtype=jnp.dtype(config.dtype), mesh=mesh, tower=config.tower)
    asked = spelled_out(config.site, model.model if isinstance(model, Convolutional) else model)
    sites = sites_of(asked, stacks_of(model))
    pictures = picture_groups(config.pictures or "", config.picture, config.seed)
    first = picture_rows(model, processor, pictures, sites[0], config.picture.positions)
    parts: Parts = [
        (some, picture_rows(model, processor, pictures, some[0], config.picture.positions))
        for some in alike(model, sites, first.shape)
    ]
    return model, parts


type Parts = list[tuple[tuple[str, ...], "Windows | Paired | PictureRows"]]
"""Sites of one pass of the model, and what it reads."""


def _values(config: Capture, model: Any, parts: Parts, spread: Any) -> None:
    from ..activations import harvest_sites, rich_progress

    for sites, rows in parts:
        with rich_progress("capture") as progress:
            harvest_sites(
                *(model, rows, sites, config.out),
                max_tokens=config.max_tokens,
                batch_size=config.batch,
                seed=config.seed,
                dtype=config.store,
                sharding=spread,
                progress=progress,
            )


def _moments(config: Capture, model: Any, parts: Parts, spread: Any) -> None:
    import numpy as np

    from ..io.files import atomic_write

    found = {site: m for sites, rows in parts for site, m in _moments_of(config, model, rows, sites, spread).items()}
    with atomic_write(config.out / MOMENTS) as f:
        np.savez(f, allow_pickle=False, **{f"{s}/{name}": a for s, m in found.items() for name, a in _named(m)})


def _moments_of(config: Capture, model: Any, rows: Any, sites: tuple[str, ...], spread: Any) -> dict[str, "Moments"]:
    import jax
    import numpy as np

    from ..activations import at_sites, moments, rich_progress, run
    from ..activations.harvest import draw, rows_of
    from ..activations.site import reached
    from ..data import Subset, batches
    from ..left_out import leaving_out, told, within_norm

    kept = moments() if config.max_norm is None else within_norm(config.max_norm, moments())
    if config.max_tokens is not None:
        rows = Subset(rows, np.sort(draw(rows_of(rows, sites), config.max_tokens, config.seed)[0]))
    method = at_sites(reached(model, sites), {site: (site, kept) for site in sites})
    if config.without_ids or config.without_positions:
        method = told(leaving_out(config.without_ids, config.without_positions, model.cfg.d_vocab), method)
    with rich_progress("capture") as progress:
        return run(
            method,
            batches(rows, batch_size=config.batch),
            constants={"weights": model.weights},
            key=jax.random.key(config.seed),
            sharding=spread,
            progress=progress,
        )


def _named(m: "Moments") -> list[tuple[str, Any]]:
    return [(name, getattr(m, name)) for name in ("count", "mean", "variance", "min", "max")]


_KEEP: Final = {"values": _values, "moments": _moments}
