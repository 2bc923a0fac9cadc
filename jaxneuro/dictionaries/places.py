# SPDX-License-Identifier: Apache-2.0
"""Where a dictionary belongs, in our words, and in the words of other libraries' files.

Their hooks are named as TransformerLens names them. What they have no word for is kept beside, under the key
"jaxneuro": our names of the sites, and of a model that the Hub does not have.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Final

from ..errors import UserError
from ..io.fields import FLAG, TEXT, Fields, Kind, many, null_or, whole
from ..io.sources import hub_name
from ..taps.names import hook_name, parse

OURS: Final = "jaxneuro"
"""The key under which another library's metadata keeps our words."""
_TEXTS: Final = {"model": "model_name", "context": "context_size", "prepend_bos": "prepend_bos"}
_SITES: Final = many(TEXT, most=10_000)
_KINDS: Final[dict[str, Kind[Any]]] = {
    "site": _SITES,
    "target": _SITES,
    "widths": many(whole(), most=10_000),
    "model": TEXT,
    "family": TEXT,
    "context": whole(),
    "prepend_bos": FLAG,
}
_HOOKS: Final = {"site": ("hook_name", "hook_names"), "target": ("hook_name_out", "hook_names_out")}
"""Our field -> the key of one hook, and the key of several that are joined, which SAELens does not have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a dictionary reads and writes, and the texts it was trained on.

    Example:
      >>> place = Placement(site=("blocks.1.attn.z",), model="gpt2", context=128, prepend_bos=False)
      >>> saelens_words(place)["hook_name"], saelens_words(place)["model_name"]
      ('blocks.1.attn.hook_z', 'gpt2')
    """

    site: tuple[str, ...]
    """What it reads: one site of one layer, or several side by side."""
    target: tuple[str, ...] = ()
    """What it writes, if not the site."""
    widths: tuple[int, ...] = ()
    """Of the sites of several, in their order."""
    model: str | None = None
    """As `jaxneuro.load` was given it."""
    family: str | None = None
    """Of the model, as its config says: "llama"."""
    context: int | None = None
    """Tokens per row of text."""
    prepend_bos: bool | None = None
    """Whether a row begins with the tokenizer's begin token."""


def saelens_words(place: Placement) -> dict[str, Any]:
    """The metadata of SAELens: hooks, model, text; model_name only where the Hub has the model.

    A site at which TransformerLens has no hook, and sites that are joined, have no hook_name: SAELens says so when it
    is asked to splice them in, and a name that it cannot find would be passed over. Joined sites are listed under
    hook_names.
    """
    words: dict[str, Any] = {}
    for field, (one, several) in _HOOKS.items():
        sites = getattr(place, field)
        hooks = [hook_name(site) for site in sites]
        if len(hooks) == 1 and hooks[0]:
            words[one] = hooks[0]
        elif len(hooks) > 1:
            words[several] = [hook or site for hook, site in zip(hooks, sites, strict=True)]
    if model := place.model and hub_name(place.model):
        # What the model's own weights compute; TransformerLens would centre what is written to the residual stream.
        kwargs = {"center_writing_weights": False}
        words |= {"model_name": model, "model_class_name": "HookedTransformer", "model_from_pretrained_kwargs": kwargs}
    text = {"context_size": place.context, "prepend_bos": place.prepend_bos}
    return {**words, **{key: value for key, value in text.items() if value is not None}, OURS: own_words(place)}


def of_saelens(metadata: Mapping[str, Any], where: str | os.PathLike) -> Placement | None:
    """The place that SAELens' metadata name: ours, where we wrote them; else by their hooks.

    Raises:
      UserError: a model, a context or a begin token of another type.
    """
    if OURS in metadata:
        return own_place(metadata[OURS], where)
    site, target = (_sites(metadata, *keys) for keys in _HOOKS.values())
    if not site:
        return None
    with Fields(metadata, where) as fields:
        read = {name: fields.read(key, null_or(_KINDS[name]), None) for name, key in _TEXTS.items()}
    known = {name: value for name, value in read.items() if value is not None}
    return Placement(site=site, target=target, **known)


def _sites(metadata: Mapping[str, Any], one: str, several: str) -> tuple[str, ...]:
    found = metadata.get(several, [metadata.get(one)])
    return tuple(our_site(hook) for hook in found if hook) if _SITES.fits(found) else ()


def our_site(hook: str) -> str:
    """A hook that is a site of ours, in our spelling; any other as it is.

    Example:
      >>> our_site("blocks.1.attn.hook_attn_scores"), our_site("model.layers.1")
      ('blocks.1.attn.scores', 'model.layers.1')
    """
    if hook_name(hook) is None:
        return hook
    name, layers, _ = parse(hook)
    return name if layers is None else f"blocks.{layers[0]}.{name.removeprefix('blocks.')}"


def own_place(value: Any, where: str | os.PathLike) -> Placement | None:
    """The place that `own_words` wrote; None where there is none.

    Raises:
      UserError: something else stands there.
    """
    if value is None:
        return None
    with Fields(value, where) as fields:
        fields.only(*_KINDS)
        given = {name: fields.read(name, kind) for name, kind in _KINDS.items() if name in fields or name == "site"}
    return Placement(**given)


def own_words(place: Placement) -> dict[str, Any]:
    """Our names, as JSON: what is unset is left out."""
    return {name: value for name, value in dataclasses.asdict(place).items() if value not in (None, ())}


def sparsify_hookpoint(place: Placement) -> str | None:
    """The module of the Hugging Face model after which sparsify names a dictionary's folder; None where it has none.

    sparsify reads what the module returns or, for a transcoder, learns that from what the module is given.

    Example:
      >>> sparsify_hookpoint(Placement(site=("blocks.1.mlp.in",), target=("blocks.1.mlp_out",), family="llama"))
      'layers.1.mlp'
      >>> sparsify_hookpoint(Placement(site=("blocks.1.attn.z",), family="llama")) is None
      True
    """
    modules = _MODULES.get(place.family or "")
    if modules is None or len(place.site) != 1 or len(place.target) > 1:
        return None
    site, target = (parse(name) for name in (place.site[0], (place.target or place.site)[0]))
    if site.layers is None or len(site.layers) != 1 or site.layers != target.layers:
        return None
    reads, writes = (name.name.removeprefix("blocks.") for name in (site, target))
    module = modules.get(writes) if reads == writes else modules.get(f"{reads} {writes}")
    return module and module.format(site.layers[0])


def _modules(block: str, mlp: str, attention: str, *, pair: bool = True) -> dict[str, str]:
    """Site, or "site target" -> the module that computes it; `pair`: the MLP's module reads mlp.in, writes mlp_out."""
    own = {"resid_post": block, "mlp_out": f"{block}.{mlp}", "attn_out": f"{block}.{attention}"}
    return {**own, "resid_pre resid_post": block, **({"mlp.in mlp_out": f"{block}.{mlp}"} if pair else {})}


_PLAIN: Final = _modules("layers.{}", "mlp", "self_attn")
_SANDWICH: Final = _modules("layers.{}", "post_feedforward_layernorm", "post_attention_layernorm", pair=False)
_MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3"), _PLAIN),
    **dict.fromkeys(("gemma2", "gemma3_text"), _SANDWICH),
    **dict.fromkeys(("gpt2", "gptj"), _modules("h.{}", "mlp", "attn")),
    "gpt_neox": _modules("layers.{}", "mlp", "attention"),
}
"""Family -> module below transformers' `base_model` that returns a site's value. Where a norm follows the MLP and the
attention, the site is that norm's output, and no module reads mlp.in and writes mlp_out."""


def spelled(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A person's metadata for SAELens, hooks in TransformerLens' spelling; names of no site of ours stay as they are.

    Sites joined by "+" become the list that `saelens_words` writes.

    Raises:
      UserError: a hook name that is no text.
    Example:
      >>> spelled({"hook_name": "blocks.1.resid_post", "model_name": "tiny"})
      {'hook_name': 'blocks.1.hook_resid_post', 'model_name': 'tiny'}
      >>> spelled({"hook_name": "model.layers.1"})
      {'hook_name': 'model.layers.1'}
    """
    out: dict[str, Any] = {}
    several = dict(_HOOKS.values())
    for key, value in metadata.items():
        if key not in several or value in (None, ""):
            out[key] = value
        elif not isinstance(value, str):
            raise UserError(f"{key} = {value!r} is no name of a site: a text such as 'blocks.1.hook_resid_post'.")
        elif "+" in value:
            out[several[key]] = [hook_name(part) or part for part in value.split("+")]
        else:
            out[key] = hook_name(value) or value
    return out
