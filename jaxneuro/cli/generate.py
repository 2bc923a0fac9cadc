# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro generate`: a model goes on with texts, steered by a vector or with a study's neurons silenced."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from ..data import Bos
from ..errors import UserError, shown, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Go on with texts, or answer them (T5), as the model is or under an intervention; printed as it comes."""

    model: Annotated[str, tyro.conf.Positional] = "bundled"
    """A folder in Hugging Face layout, a name on the Hub, or `bundled`."""
    prompt: tuple[str, ...]
    """One or more texts."""
    max_new: int = 64
    """Tokens, at most."""
    temperature: float = 0.0
    """0: always the most likely token."""
    top_k: int | None = None
    """Draw from so many of the most likely tokens."""
    top_p: float | None = None
    """Draw from the fewest most likely tokens with this much probability."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Strings at which a text ends; they are not printed."""
    steer: Path | None = None
    """A file (npz, npy or safetensors) with a vector that is added at --site."""
    tensor: str | None = None
    """Which array of that file; not needed if there is one."""
    site: str | None = None
    """Where the vector is added, such as blocks.3.resid_post or encoder.blocks.3.resid_post."""
    strength: float = 1.0
    """The vector is multiplied by this."""
    silence: Path | None = None
    """Folder of a finished `jaxneuro study` of this model, whose chosen neurons are set to 0."""
    groups: tuple[str, ...] = ()
    """Of which groups of the study; none: of all."""
    bos: Bos = "auto"
    """Whether a prompt begins with the begin token: as the tokenizer's own convention has it, always or never. A prompt
    that spells it out does not get a second one."""
    dtype: Literal["float32", "bfloat16"] = "float32"


def run(config: Generate) -> None:
    """Generate and print.

    Raises:
      UserError: what is wrong with the model, the prompts, the numbers or the files.
    """
    import jax

    from ..activations.text import model_and_tokenizer
    from ..inference import complete

    model, tokenizer = model_and_tokenizer(config.model, dtype=jax.numpy.dtype(config.dtype), bos=config.bos)
    how: dict[str, Any] = {
        "sampler": sampler(config),
        "edits": [*steering(config, model.cfg.d_model), *silencing(config, model.cfg)],
    }
    single = len(config.prompt) == 1
    gap = "" if model.cfg.encoder is None else "\n"  # an answer stands below what it answers

    begun: list[bool] = []  # the prompt is printed with its first piece, when everything was checked

    def show(_: int, piece: str) -> None:
        print(piece if begun else config.prompt[0] + gap + piece, end="", flush=True)
        begun.append(True)

    found = complete(
        model,
        tokenizer,
        config.prompt,
        max_new=config.max_new,
        key=jax.random.key(config.seed),
        **how,
        stop=config.stop,
        on_text=show if single else None,
    )
    if single and not begun:
        show(0, "")
    print("" if single else "\n\n".join(c.prompt + gap + c.text for c in found))


def sampler(config: Generate) -> Any:
    """The sampler that the numbers stand for."""
    from ..inference import Sampler, greedy

    if config.temperature == 0:
        if config.top_k is not None or config.top_p is not None:
            raise UserError("--top-k and --top-p need a --temperature above 0; at 0 the most likely token is taken.")
        return greedy
    return Sampler(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)


def steering(config: Generate, width: int) -> list[Any]:
    """The edit of --steer."""
    from ..activations.patterns import no_pattern
    from ..taps import add

    if config.steer is None:
        if config.site is not None:
            raise UserError("--site says where a vector is added: name its file with --steer.")
        return []
    if config.site is None:
        raise UserError(f"--steer {config.steer} needs --site, such as blocks.3.resid_post.")
    no_pattern([config.site])
    vector = read_vector(config.steer, config.tensor)
    if config.site.rpartition(".")[2].startswith("resid") and vector.shape != (width,):
        raise UserError(f"{config.steer}: the vector has shape {list(vector.shape)}; {config.site} has width {width}.")
    return [add(config.site, np.float32(config.strength) * vector)]


def read_vector(path: Path, name: str | None) -> np.ndarray:
    """An array of a npz, npy or safetensors file, as float32.

    Raises:
      UserError: no such file or array, several arrays and no name, Python objects, numbers that are not finite.
    """
    from jax import numpy as jnp

    arrays = _arrays(path)
    if name is None and len(arrays) != 1:
        raise UserError(f"{path} has the arrays {', '.join(arrays) or 'none'}: choose one with --tensor.")
    if name is not None and name not in arrays:
        raise unknown("array", name, arrays, where=str(path))
    found = np.asarray(arrays[name or next(iter(arrays))])
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
        raise UserError(f"{path}: {name or 'its array'} is {found.dtype}: a vector of real numbers is added.")
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"{path}: {name or 'its array'} has values that are not finite.")
    return found


def _arrays(path: Path) -> dict[str, Any]:
    from ..io import read_safetensors
    from ..io.npy import read_npy, read_npz

    readers = {".safetensors": read_safetensors, ".npz": read_npz, ".npy": lambda path: {path.stem: read_npy(path)}}
    if path.suffix not in readers:
        raise UserError(f"{path} is not a npz, npy or safetensors file.")
    return dict(readers[path.suffix](path))


def silencing(config: Generate, cfg: Any) -> list[Any]:
    """The edit of --silence: every chosen neuron of the groups times 0."""
    from ..io import read_json
    from ..study.sources import neuron_site
    from ..taps import scale

    if config.silence is None:
        if config.groups:
            raise UserError("--groups chooses among a study's groups: name its folder with --silence.")
        return []
    results = read_json(config.silence / "results.json")
    chosen = _arrays(config.silence / "neurons.npz")["chosen"]
    names = results["groups"]
    for group in config.groups:
        if group not in names:
            raise unknown("group", group, names, where=os.fspath(config.silence))
    site = neuron_site(results["config"]["select.site"], cfg)
    if chosen.shape[0] != cfg.n_layers:
        raise UserError(f"{config.silence} is a study of {chosen.shape[0]} layers, {config.model} has {cfg.n_layers}.")
    off = chosen[:, :, [names.index(g) for g in config.groups or names]].any(-1)
    if not off.any():
        of = f" for {', '.join(map(shown, config.groups))}" if config.groups else ""
        raise UserError(
            f"the study {shown(config.silence)} chose no neurons{of}: there is nothing to silence. Leave --silence "
            "out, or run the study with more text."
        )
    return [scale(site, np.where(off, np.float32(0), np.float32(1)), per_layer=True)]
