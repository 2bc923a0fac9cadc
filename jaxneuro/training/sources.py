# SPDX-License-Identifier: Apache-2.0
"""Where activations come from: a model that runs, a store, an array; each as a stream that a method can be run on."""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ..activations import array_batches, at_site, open_activations
from ..activations.buffer import shuffled
from ..activations.patterns import no_pattern
from ..activations.site import at_sites, by_text, check_answers, reached, several
from ..activations.text import model_and_tokenizer, read_windows
from ..data import Subset, Windows, batches
from ..dictionaries import Placement, Recovered, kl_divergence, next_token_loss, recovered
from ..errors import UserError
from ..io import read_safetensors
from ..io.npy import read_npy, read_npz
from ..left_out import leaving_out, told
from ..models import Transformer
from ..protocols import Method
from ..taps.names import parse
from .config import Array, Live, Store, TrainConfig
from .sweep import Place, places

type Batches = Iterable[Mapping[str, Any]]
_JUDGES: Final = {"ce": next_token_loss, "kl": kl_divergence}
"""What a model loses, by the name it has in results.json."""
BLOCKS: Final = 64
"""Parts of a file that its fingerprint reads, of BLOCK bytes each."""
BLOCK: Final = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """An open source."""

    stream: Callable[[], Any]
    """Batches to train on, from the start."""
    epoch_tokens: int
    """Tokens of one pass over them."""
    fingerprint: str
    """What they are, by content."""
    judged: Callable[[str], Batches] | None
    """Place -> batches {"x", "y" if there, "mask"} to judge on; None: nothing is judged."""
    held_out: bool = True
    """Whether these are not trained on."""
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attach: Callable[[Mapping[str, Method]], Method] = lambda methods: methods[""]
    """Methods over rows, by place -> one method over the stream's batches."""
    extra_steps: int = 0
    """Before a method's first step: a buffer fills."""
    first: Callable[[str], Mapping[str, Any]] = lambda place: {}
    """Place -> the first batch that its method sees."""
    recover: Callable[[str, Any, np.ndarray], dict[str, Recovered]] = lambda place, dictionary, mean: {}
    """(place, dictionary, mean of the site) -> what the model loses, where that has a meaning."""
    belongs: Callable[[str], Placement | None] = lambda place: None
    """Place -> what a dictionary's files say of it; None: a file of rows does not say."""


def open_source(config: TrainConfig) -> Data:
    """Open what the configuration names.

    Raises:
      UserError: what is wrong with the model, the text, the site or the file, and what to do.
    """
    return _OPEN[type(config.source)](config.source, config)


def _live(source: Live, config: TrainConfig) -> Data:
    model, rows = _model_and_windows(source)
    kept = math.ceil(config.evaluate_tokens / source.context)
    if kept and len(rows) < 2 * kept:
        raise UserError(
            f"evaluate_tokens = {config.evaluate_tokens} would hold out {kept} of {len(rows)} windows: at most half. "
            "Ask for fewer, or give more text."
        )
    held = np.linspace(0, len(rows) - 1, kept).round().astype(int)
    studied = Subset(rows, np.setdiff1d(np.arange(len(rows)), held)) if kept else rows
    at = places(config)
    _check_sites([site for place in at.values() for site in (*place.site, *place.target)])
    without = leaving_out(source.without_ids, source.without_positions, model.cfg.d_vocab)
    apply = _function(model, [site for place in at.values() for site in (*place.site, *place.target)])
    size = config.batch // source.context
    if not without(next(iter(batches(studied, batch_size=size, seed=config.seed, epochs=None))))["counted"].any():
        raise UserError(
            f"without_ids = {list(source.without_ids)[:5]}... and without_positions = "
            f"{list(source.without_positions)[:5]}... leave no token of the first batch. Leave out fewer."
        )

    @functools.cache
    def reading(place: str) -> Callable[..., Mapping[str, Any]]:
        """(key, batch) -> the rows of the place, as a method's init would see them."""
        rows_of = Method(init=lambda key, rows: rows, step=lambda state, rows: (state, {}), finish=lambda state: state)
        return at_site(apply, _sites(at[place]), rows_of).init

    def read(place: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        found = reading(place)(None, {**batch, "weights": model.weights})
        return {name: a for name, a in found.items() if name in _ROWS}

    def judged(place: str) -> Batches:
        return (read(place, batch) for batch in _held(size))

    def stream() -> Any:
        return batches(studied, batch_size=size, seed=config.seed, epochs=None)

    def _held(size: int) -> Iterable[dict[str, Any]]:
        return (without(batch) for batch in batches(Subset(rows, held), batch_size=min(size, kept)))

    def recover(place: str, dictionary: Any, mean: np.ndarray) -> dict[str, Recovered]:
        site = at[place].site[0]
        one = len(at[place].site) == 1 and not at[place].target and len(parse(site).layers or ()) == 1
        if not (one and model.cfg.causal and model.cfg.has_head and model.cfg.encoder is None):
            return {}
        return recovered(apply, model.weights, site, dictionary, mean, _held(min(size, 16)), judge=_JUDGES)

    def belongs(place: str) -> Placement:
        options = config.method
        return Placement(
            site=at[place].site,
            target=at[place].target,
            widths=getattr(options, "widths", ()) or getattr(getattr(options, "training", None), "widths", ()),
            model=source.model,
            family=model.cfg.family,
            context=source.context,
            prepend_bos=bool(rows.tokenizer.prefix),
        )

    return Data(
        stream=stream,
        first=lambda place: read(place, without(next(iter(stream())))),
        epoch_tokens=int(studied.tokens_per_group.sum()),
        fingerprint=rows.fingerprint,
        judged=judged if kept else None,
        constants={"weights": model.weights},
        attach=lambda methods: told(without, _attached(apply, at, source, config.seed, methods)),
        extra_steps=math.ceil(source.buffer_tokens / config.batch),
        recover=recover,
        belongs=belongs,
    )


_ROWS: Final = ("x", "y", "mask")


def _sites(place: Place) -> dict[str, tuple[str, ...]]:
    return {"x": place.site} | ({"y": place.target} if place.target else {})


def _check_sites(sites: Sequence[str]) -> None:
    no_pattern(sites)
    for site in filter(several, sites):
        one = parse(site).name.replace("blocks.", "blocks.3.", 1)
        raise UserError(
            f"{site!r} stands for several layers, and a dictionary learns from one site: one layer, such as {one}; "
            "several: crosscoder, with a list of sites; one dictionary for each: --sweep site=..."
        )


def _function(model: Transformer, sites: Sequence[str]) -> Callable[..., Any]:
    """Of a text, with these sites in it."""
    if pooled := sorted(filter(by_text, sites)):
        raise UserError(
            f"{', '.join(pooled)} has one row per text, not per token. Store it first (jaxneuro capture), then train "
            "from the store."
        )
    check_answers(model, sites, there=False)
    return reached(model, sites)


def _attached(
    apply: Callable[..., Any], at: Mapping[str, Place], source: Live, seed: int, methods: Mapping[str, Method]
) -> Method:
    """One pass of the model for all places, up to the highest site; a buffer for each."""
    ready = {
        name: (_sites(at[name]), shuffled(method, source.buffer_tokens, seed=seed) if source.buffer_tokens else method)
        for name, method in methods.items()
    }
    return at_sites(apply, ready) if len(ready) > 1 else at_site(apply, *ready.popitem()[1])


def _model_and_windows(source: Live) -> tuple[Transformer, Windows]:
    model, tokenizer = model_and_tokenizer(source.model, dtype=jnp.dtype(source.dtype), bos=source.bos)
    return model, read_windows(
        model,
        tokenizer,
        source.groups,
        length=source.context,
        max_tokens_per_group=source.max_tokens_per_group,
        fields=source.text,
    )


def _store(source: Store, config: TrainConfig) -> Data:
    acts = open_activations(source.path)
    judge = acts if source.held_out is None else open_activations(source.held_out)
    if judge.x.shape[1] != acts.x.shape[1]:
        raise UserError(f"{source.held_out} has width {judge.x.shape[1]}, {source.path} {acts.x.shape[1]}.")

    def judged(place: str) -> Batches:
        del place
        size = min(config.batch, config.evaluate_tokens, len(judge))
        steps = max(1, min(config.evaluate_tokens, len(judge)) // size)
        for _, batch in zip(range(steps), judge.batches(batch_size=size, seed=None, epochs=1), strict=False):
            yield {"x": batch["x"], "mask": batch["mask"]}

    return Data(
        stream=lambda: acts.batches(batch_size=config.batch, seed=config.seed),
        first=lambda place: next(iter(acts.batches(batch_size=config.batch, seed=config.seed))),
        epoch_tokens=len(acts),
        fingerprint=_digest(repr((acts.layout, sorted(acts.meta.items()))).encode()),
        judged=judged if config.evaluate_tokens else None,
        held_out=source.held_out is not None,
    )


def _array(source: Array, config: TrainConfig) -> Data:
    found = _arrays(source.path)
    n, kept = len(found["x"]), config.evaluate_tokens
    if kept and n < 2 * kept:
        raise UserError(
            f"evaluate_tokens = {kept} of the {n} rows of {source.path} would be held out: at most half. Ask for "
            "fewer, or for 0."
        )
    train, held = ({name: a[part] for name, a in found.items()} for part in (slice(0, n - kept), slice(n - kept, n)))

    def stream(arrays: Mapping[str, Any], size: int, **how: Any) -> Any:
        extra = {name: a for name, a in arrays.items() if name != "x"}
        return array_batches(arrays["x"], extra=extra, batch_size=size, file=source.path, **how)

    return Data(
        stream=lambda: stream(train, config.batch, seed=config.seed),
        first=lambda place: next(iter(stream(train, config.batch, seed=config.seed))),
        epoch_tokens=n - kept,
        fingerprint=_file_digest(source.path),
        judged=(lambda place: stream(held, min(config.batch, kept), seed=None, epochs=1)) if kept else None,
    )


def _arrays(path: Path) -> dict[str, Any]:
    """x, and y if it is there, checked; a large .npy or .safetensors is mapped."""
    if path.suffix not in _FILES:
        raise UserError(f"{path} is no activation array: a file ends in {', '.join(_FILES)}.")
    try:
        arrays = _FILES[path.suffix](path)
    except (OSError, ValueError, EOFError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"cannot read {path}: {e}.") from e
    arrays = {name: a for name, a in arrays.items() if name in ("x", "y")}
    shown = {name: f"{a.dtype}{list(a.shape)}" for name, a in arrays.items()}
    good = all(a.ndim == 2 and jnp.issubdtype(a.dtype, jnp.floating) for a in arrays.values())
    if "x" not in arrays or not good or len({len(a) for a in arrays.values()}) > 1 or not len(arrays["x"]):
        raise UserError(f"{path} holds {shown or 'neither x nor y'}: x [n, d_in], and y [n, d_out] if any, floating.")
    return arrays


_FILES: Final[dict[str, Callable[[Path], Any]]] = {
    ".npy": lambda path: {"x": read_npy(path)},
    ".npz": lambda path: read_npz(path, ("x", "y")),
    ".safetensors": read_safetensors,
}


def _file_digest(path: Path) -> str:
    """Of a file's size and of BLOCKS parts spread evenly over it: cheap, and notices another file of that name."""
    size = os.path.getsize(path)
    hashed = hashlib.sha256(str(size).encode())
    with open(path, "rb") as f:
        for start in sorted({size * i // BLOCKS for i in range(BLOCKS)}):
            f.seek(start)
            hashed.update(f.read(BLOCK))
    return hashed.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_OPEN: Final[dict[type, Callable[[Any, TrainConfig], Data]]] = {Live: _live, Store: _store, Array: _array}
