# SPDX-License-Identifier: Apache-2.0
"""Site strings: `blocks.5.mlp.post`, `blocks.2,5.mlp.post`, `blocks.*.mlp.post`, and TransformerLens' spellings."""

import re
from typing import NamedTuple

from ..errors import UserError

_LAYERS = re.compile(r"\*|\d+(,\d+)*")
_TAGS = ("", "grad", "tangent")
# TransformerLens names that are not ours with `hook_` in front.
_OTHER_SPELLINGS = {"attn.attn_scores": "attn.scores"}
# Sites that TransformerLens has too, without their layer. It has no hook at the others (mlp.gate, logits).
_OF_A_BLOCK = (
    *("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn.in", "mlp.in"),
    *(f"attn.{name}" for name in ("q", "k", "v", "scores", "pattern", "z", "result")),
    *(f"mlp.{name}" for name in ("pre", "pre_linear", "post")),
    *(f"{norm}.{part}" for norm in ("ln1", "ln1_post", "ln2", "ln2_post") for part in ("scale", "normalized")),
)
_WITHOUT_LAYER = ("embed", "pos_embed", "ln_final.scale", "ln_final.normalized", "unembed.in")


class SiteName(NamedTuple):
    """A site string, read: the name the model gave the site, and which layers of it are meant."""

    name: str
    """Canonical name without the layer, with its tag if it has one: `blocks.mlp.post`, `blocks.mlp.post@grad`."""
    layers: tuple[int, ...] | None
    """The layer numbers written in the string; None where it says `*` or nothing."""
    single: bool
    """One number was written: the result has no layer axis."""

    @property
    def base(self) -> str:
        """The name without `@grad`."""
        return self.name.partition("@")[0]


def parse(site: str) -> SiteName:
    """Read a site string.

    The layer is the first dotted part that is a number, numbers with commas, or `*`. `hook_` is dropped, so what
    TransformerLens calls `blocks.5.mlp.hook_post` is `blocks.5.mlp.post`.

    Raises:
      UserError: not a string, empty, or with a tag other than `@grad` and `@tangent`.
    Example:
      >>> parse("blocks.2,5.mlp.hook_post@grad")
      SiteName(name='blocks.mlp.post@grad', layers=(2, 5), single=False)
    """
    if not isinstance(site, str) or not site:
        raise UserError(f"a site is named by a string such as 'blocks.5.mlp.post', not {site!r}.")
    path, _, tag = site.partition("@")
    if tag not in _TAGS:
        raise UserError(f"site {site!r} has the unknown tag '@{tag}'. A site's gradient is {path + '@grad'!r}.")
    parts = path.replace("hook_", "").split(".")
    at = next((i for i, p in enumerate(parts) if _LAYERS.fullmatch(p)), None)
    written = "*" if at is None else parts.pop(at)
    name = ".".join(parts)
    for theirs, ours in _OTHER_SPELLINGS.items():
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + ours
    layers = None if written == "*" else tuple(int(n) for n in written.split(","))
    return SiteName(name + (f"@{tag}" if tag else ""), layers, layers is not None and len(layers) == 1)


def hook_name(site: str) -> str | None:
    """TransformerLens' name of a site of one layer, in either spelling; None where it has no hook.

    Raises:
      UserError: as `parse`.
    Example:
      >>> hook_name("blocks.5.resid_post"), hook_name("blocks.0.attn.scores"), hook_name("blocks.0.mlp.gate")
      ('blocks.5.hook_resid_post', 'blocks.0.attn.hook_attn_scores', None)
    """
    name, layers, single = parse(site)
    if name in _WITHOUT_LAYER and layers is None:
        return _hooked(name)
    inner = name.removeprefix("blocks.")
    if not (single and layers and inner != name and inner in _OF_A_BLOCK):
        return None
    theirs = {ours: theirs for theirs, ours in _OTHER_SPELLINGS.items()}
    return f"blocks.{layers[0]}.{_hooked(theirs.get(inner, inner))}"


def _hooked(name: str) -> str:
    owner, dot, last = name.rpartition(".")
    return f"{owner}{dot}hook_{last}"
