# SPDX-License-Identifier: Apache-2.0
"""What each site of the library's models is: eight words, a formula, and TransformerLens' name where it has the value.

Layer by layer, in the order of a pre-norm block (x: the residual stream; W, b: matrices and biases of the layer):

    x = resid_pre                                          h = ln2.normalized * gain + bias = mlp.in
    ln1.scale = rms(x - mean)      ln1.normalized = (x - mean) / ln1.scale       (no mean under RMSNorm)
    attn.in = ln1.normalized * gain + bias                 attn.q, k, v = attn.in W_q + b_q, ...     (before rope)
    attn.scores = q k^T / sqrt(d_head), capped, masked     attn.pattern = softmax(attn.scores)
    attn.z = attn.pattern v                                attn.result = z W_o per head
    attn_out = sum over heads of attn.result + b_o         resid_mid = resid_pre + attn_out
    mlp.pre = h W_up + b                                   mlp.post = act(mlp.pre)
    gated: mlp.pre = h W_gate, mlp.gate = act(mlp.pre), mlp.pre_linear = h W_up, mlp.post = mlp.gate * mlp.pre_linear
    mlp_out = mlp.post W_down + b                          resid_post = resid_mid + mlp_out
    unembed.in = ln_final.normalized * gain + bias         logits = softcap(unembed.in W_U + b)

Where a query does not see a key (a later position of a causal model, one beyond a window, padding) attn.scores holds
one finite number, -0.7 * the largest float32 = -2.38e38 (`jaxneuro.models.attention.MASKED`), not -inf; attn.pattern is
exactly 0 there. Statistics of attn.scores leave such places out: where(scores > -1e38, ...). A query that sees no key
at all (padding) has an even pattern.

Other placements of norms: post (BERT) reads attn.in = resid_pre and mlp.in = resid_mid, and ln1 and ln2 make resid_mid
and resid_post. Sandwich (Gemma 2) norms once more before adding: attn_out and mlp_out are what ln1_post and ln2_post
give. Parallel blocks have no resid_mid, and mlp.in = attn.in where both read one norm.

An edit of resid_mid changes the stream: the MLP and all that comes after. In TransformerLens' bridge (3.9, with which
SAELens splices) hook_resid_mid is another name of ln2.hook_in: it reads the same value, but an edit there reaches the
MLP alone, and the stream goes on without it. Its HookedTransformer edits the stream.
"""

import re
from typing import Final, NamedTuple

from .names import parse


class Definition(NamedTuple):
    """What a site is."""

    what: str
    """About eight words."""
    formula: str = ""
    theirs: str = ""
    """TransformerLens' name of the same value, with L for the layer; "": it has none."""


def _norm(name: str, of: str, theirs: bool = True) -> dict[str, Definition]:
    place, hook = f"{name}.", f"{name.replace('blocks.', 'blocks.L.')}.hook_"
    return {
        f"{place}scale": Definition(
            f"what {of} divides by", "sqrt(mean((x - mean)^2) + eps)", f"{hook}scale" if theirs else ""
        ),
        f"{place}normalized": Definition(
            f"{of}, before gain and bias", "(x - mean) / scale", f"{hook}normalized" if theirs else ""
        ),
    }


def _attention(name: str, keys: str, values: str, theirs: str = "") -> dict[str, Definition]:
    rows = {
        "q": ("queries per head, before rope and q/k norm", "in W_q + b_q", "q"),
        "k": (keys, "W_k, b_k", "k"),
        "v": (values, "W_v, b_v", "v"),
        "scores": ("scaled query-key products, capped; masked: -2.4e38", "q k^T scale", "attn_scores"),
        "pattern": ("attention of each query to each key", "softmax(scores)", "pattern"),
        "z": ("values mixed by attention, per head", "pattern v", "z"),
        "result": ("what each head writes to the residual stream", "z W_o", "result"),
    }
    return {
        f"{name}.{part}": Definition(what, formula, theirs and f"{theirs}.hook_{hook}")
        for part, (what, formula, hook) in rows.items()
    }


_D = Definition
_STACK: Final[dict[str, Definition]] = {
    "embed": _D("token embedding; of pictures, that of patches", "W_E[token]", "hook_embed"),
    "pos_embed": _D("learned position embedding, added to embed", "W_pos[pos]", "hook_pos_embed"),
    "blocks.resid_pre": _D("residual stream entering the layer", "resid_post of L-1", "blocks.L.hook_resid_pre"),
    **_norm("blocks.ln1", "the first norm"),
    "blocks.attn.in": _D("what attention reads, after gain and bias", "normed resid_pre", "blocks.L.attn.hook_in"),
    **_attention("blocks.attn", "keys per key head, before rope and q/k norm", "values per key head", "blocks.L.attn"),
    **_norm("blocks.ln1_post", "the norm after attention"),
    "blocks.attn_out": _D(
        "what attention adds to the residual stream", "sum_h result_h + b_o", "blocks.L.hook_attn_out"
    ),
    "blocks.resid_mid": _D(
        "residual stream between attention and MLP", "resid_pre + attn_out", "blocks.L.hook_resid_mid"
    ),
    **_norm("blocks.ln_cross", "the norm before cross-attention", False),
    "blocks.cross_attn.in": _D("what cross-attention's queries read", "normed resid_mid"),
    **_attention("blocks.cross_attn", "keys of the encoder's tokens", "values of the encoder's tokens"),
    "blocks.cross_attn_out": _D("what cross-attention adds to the residual stream", "sum_h result_h"),
    "blocks.resid_mid_cross": _D("residual stream between cross-attention and MLP", "resid_mid + cross_attn_out"),
    **_norm("blocks.ln2", "the second norm"),
    "blocks.mlp.in": _D("what the MLP reads, after gain and bias", "normed resid_mid", "blocks.L.mlp.hook_in"),
    "blocks.mlp.pre": _D("neurons before activation; gated: the gate's", "in W + b", "blocks.L.mlp.hook_pre"),
    "blocks.mlp.gate": _D("the gate after activation", "act(pre)"),
    "blocks.mlp.pre_linear": _D("what the gate multiplies", "in W_up", "blocks.L.mlp.hook_pre_linear"),
    "blocks.mlp.post": _D(
        "neurons, as the output matrix reads them", "act(pre) or gate * pre_linear", "blocks.L.mlp.hook_post"
    ),
    "blocks.moe.router": _D("router's logits, one per expert", "mlp.in W_router"),
    "blocks.moe.weights": _D("each expert's share, 0 if not chosen", "softmax over the chosen"),
    "blocks.moe.pre": _D("every expert's gate before activation", "mlp.in W_gate"),
    "blocks.moe.pre_linear": _D("what every expert's gate multiplies", "mlp.in W_up"),
    "blocks.moe.post": _D("every expert's neurons, chosen or not", "act(pre) * pre_linear"),
    **_norm("blocks.ln2_post", "the norm after the MLP"),
    "blocks.mlp_out": _D("what the MLP adds to the residual stream", "post W_down + b", "blocks.L.hook_mlp_out"),
    "blocks.resid_post": _D("residual stream leaving the layer", "resid_mid + mlp_out", "blocks.L.hook_resid_post"),
    **_norm("ln_final", "the final norm"),
    "unembed.in": _D("what the unembedding or classifier reads", "normed last resid_post", "unembed.hook_in"),
    "logits": _D("logits, after bias and soft-cap", "softcap(unembed.in W_U + b)", "unembed.hook_out"),
    "pooled": _D("one vector per text or picture"),
    "projected": _D("pooled, in the space of the pair", "pooled W"),
    "pooler.pattern": _D("attention of the learned query to tokens", "softmax(probe k^T scale)"),
    "pooler.z": _D("tokens mixed by the pooler, per head", "pattern v"),
    "pooler.mlp.post": _D("neurons of the pooler's MLP"),
}
_MIXERS: Final[dict[str, Definition]] = {
    "blocks.mixer.in": _D("what the mixer reads, after gain", "normed resid_pre"),
    "blocks.mixer.x": _D("channels before convolution; BDH: sparse neurons", "in W_x; BDH: act(in E)"),
    "blocks.mixer.conv": _D("channels after convolution and activation", "act(conv(x))"),
    "blocks.mixer.dt": _D("time step of each channel or head", "softplus(rate)"),
    "blocks.mixer.B": _D("how a token writes to the state", "x W_B"),
    "blocks.mixer.C": _D("how a token reads the state", "x W_C"),
    "blocks.mixer.state": _D("the state that each token reads", "decay * before + write"),
    "blocks.mixer.a": _D("what BDH's neurons read of their synapses", "S^T r"),
    "blocks.mixer.y": _D("read of the state; BDH: gating neurons", "state C + D x; BDH: act(LN(a) E_v)"),
    "blocks.mixer.xy": _D("BDH's neurons, gated", "x * y"),
    "blocks.mixer.gate": _D("the output's gate after activation", "silu(in W_z)"),
    "blocks.mixer.out": _D("what the mixer adds to the residual stream", "(y * gate) W_o"),
}
_CONVOLUTIONS: Final[dict[str, Definition]] = {
    "stem.conv": _D("first convolution of the pixels"),
    "stem.norm": _D("stem.conv, normed", "stem.conv * gain + shift"),
    "stem.act": _D("stem.norm after activation"),
    "stem": _D("what enters the first stage", "max-pooled stem.act"),
    "stageN.blocks.pre": _D("map entering the block"),
    "stageN.blocks.sum": _D("shortcut plus branch, before activation", "shortcut + last norm"),
    "stageN.blocks.shortcut": _D("input projected to the block's shape", "norm(conv(pre))"),
    "stageN.blocks.post": _D("map leaving the block", "act(sum); DenseNet: [pre, new maps]"),
    **{f"stageN.blocks.conv{n}": _D(f"convolution {n} of the block") for n in (1, 2, 3)},
    **{f"stageN.blocks.norm{n}": _D(f"norm {n} of the block, gain included") for n in (1, 2, 3)},
    **{f"stageN.blocks.act{n}": _D(f"activation {n} of the block") for n in (1, 2)},
    "stageN.transition": _D("map between stages, halved", "mean-pooled conv"),
    "final": _D("last map, before pooling"),
}
DEFINITIONS: Final[dict[str, Definition]] = {**_STACK, **_MIXERS, **_CONVOLUTIONS}
"""Site without its layer -> what it is. An encoder's sites are those of any stack, under `encoder.`; a convolutional
network's stages are numbered in place of N."""
LAST_SITES: Final = ("ln_final.scale", "ln_final.normalized", "unembed.in", "logits")
"""Sites of a model of text above its last layer."""
OTHERS: Final[dict[str, str]] = {
    "mlp_in": "TransformerLens' hook_mlp_in is the residual stream before the norm, 'resid_mid'",
    "attn_in": "TransformerLens' hook_attn_in is the residual stream before the norm, 'resid_pre'",
    "ln1.out": "what attention reads after the norm's gain and bias is 'attn.in'",
    "ln2.out": "what the MLP reads after the norm's gain and bias is 'mlp.in'",
    "ln_final.out": "what the unembedding reads after the norm's gain and bias is 'unembed.in'",
    "unembed.out": "'logits' are after the soft-cap, where a model has one",
    "mlp.out": "what the MLP adds to the residual stream is 'mlp_out', after a post-norm where a model has one",
    "attn.out": "what attention adds to the residual stream is 'attn_out', after a post-norm where a model has one",
}
"""Ends of names of other libraries that look like a site and are another value, with what to ask for."""


def definition(site: str) -> Definition | None:
    """What a site is, however it is spelled; None if no model of the library has one of that name.

    Example:
      >>> definition("blocks.3.mlp.hook_in").what
      'what the MLP reads, after gain and bias'
      >>> definition("encoder.blocks.*.attn.z") == definition("blocks.attn.z"), definition("blocks.3.mlp.posts")
      (True, None)
    """
    name = parse(site).base.removeprefix("encoder.")
    return DEFINITIONS.get(re.sub(r"^stage\d+\.", "stageN.", name))
