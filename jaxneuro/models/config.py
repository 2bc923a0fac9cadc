# SPDX-License-Identifier: Apache-2.0
"""The switches of the one generic transformer: what changes its mathematics, and nothing else."""

import dataclasses
from typing import Annotated, Final, Literal

from ..errors import UserError, quoted
from ..io.fields import whole
from ..taps import reprs
from .mixers import Mixer
from .ranges import CONTEXT, EPS, LAYERS, SCALE, check_fields
from .relative import RelativeBias
from .rope import Rope

_SIDE: Final = whole(1, 100_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """How a picture becomes a sequence: square patches in reading order, with learned tokens before them."""

    size: Annotated[int, _SIDE]
    """Pixels of each side."""
    patch: Annotated[int, _SIDE]
    """Pixels of each side of a patch."""
    channels: Annotated[int, whole()] = 3
    prefix: tuple[str, ...] = ("cls",)
    """Learned tokens in front of the patches, which have positions of their own: "cls", "distillation"."""
    registers: int = 0
    """Learned tokens between those and the patches, without positions (arXiv:2309.16588)."""
    patch_bias: bool = True
    mask_token: bool = False
    """There is a vector that stands for hidden patches (`forward`'s hidden_patches)."""
    antialias: bool = False
    """How `resized` stretches positions: torch's bicubic with antialias (DINOv2 with registers)."""

    def __post_init__(self):
        check_fields(self, "image.")
        if self.size % self.patch:
            raise UserError(f"pictures of {self.size} pixels do not divide into patches of {self.patch}.")

    @property
    def positions(self) -> int:
        """Tokens that have a position."""
        return (self.size // self.patch) ** 2 + len(self.prefix)


_OF_TOKENS = ("d_embed", "embed_scale", "masked_positions", "position_offset", "n_token_types", "tied", "head_scale")
# How a model with an encoder is; nothing else is known of cross-attention.
_OF_DECODERS: Final = {
    **dict.fromkeys(("parallel", "qk_norm", "layer_scale", "learned_positions", "embed_norm"), False),
    **dict.fromkeys(("attn_softcap", "image"), None),
    "causal": True,
    "norm_placement": "pre",
    "n_token_types": 0,
}
_OF_ATTENTION: Final = ("n_heads", "n_kv_heads", "d_head", "d_mlp", "n_ctx")
# What a model with a mixer may still choose: everything before, between and after its layers.
_OF_MIXERS: Final = (
    "mixer", "family", "n_layers", "d_model", "d_vocab", "d_embed", "embed_scale", "embed_norm", "act", "norm",
    "norm_eps", "norm_placement", "rope", "has_head", "tied", "head_bias", "logit_softcap",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of gated MLPs instead of one; a router sends every token to a few of them."""

    n: Annotated[int, whole(1, 65_536)]
    """Experts in a layer, each with d_mlp neurons."""
    per_token: Annotated[int, whole()]
    """How many of them a token goes through."""
    renormalise: bool = True
    """The shares of the chosen sum to one; False: they are the softmax over all experts."""
    dense: tuple[int, ...] = ()
    """Layers that have one MLP of d_dense neurons instead."""
    d_dense: Annotated[int, whole()] | None = None

    def __post_init__(self):
        check_fields(self, "experts.")
        if self.dense and not self.d_dense:
            raise UserError(f"experts.d_dense={self.d_dense} is not a positive whole number.")
        if self.per_token > self.n:
            raise UserError(f"a token cannot go through {self.per_token} of {self.n} experts.")
        if self.d_dense is not None and not self.dense:
            raise UserError(f"experts.d_dense={self.d_dense} is the width of layers that experts.dense does not name.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A transformer's architecture: frozen, hashable, without weights, tokenizer or file names.

    The defaults are Llama's layout. Which leaves the weights have follows from it (`layout`), and `forward`
    reads nothing else. `config_from_hf` builds one from a Hugging Face config.

    Example:
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> cfg.family, cfg.n_layers, cfg.window(0)
      ('llama', 2, None)
    """

    family: str = "llama"
    """Row of the family table: the names that its tensors and config keys have in a Hugging Face folder."""
    n_layers: Annotated[int, LAYERS]
    d_model: int
    n_heads: int = 0
    n_kv_heads: int = 0
    """Key/value heads: n_heads (MHA), 1 (MQA) or a divisor of n_heads (GQA)."""
    d_head: int = 0
    d_mlp: int = 0
    d_vocab: int
    n_ctx: Annotated[int, CONTEXT] = 0
    """Longest text of training; a limit only where positions are a table (`longest`)."""
    mixer: Mixer | None = None
    """What every layer is instead of attention and MLP, with its own sizes: the five above it are then 0, their
    switches as they are by default, and rope None."""
    image: Image | None = None
    """What comes in is a picture, [batch, row, column, channel], not tokens; d_vocab is then the number of classes, 0
    without a classifier."""

    act: Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"] = "silu"
    gated: bool = True
    """mlp = down(act(gate x) * up x) instead of down(act(up x))."""
    experts: Experts | None = None
    """A mixture of experts in every layer or in some (Mixtral, Qwen3-MoE), d_mlp being the width of one; see `moe`."""
    norm: Literal["rms", "gemma_rms", "layer", "plain"] = "rms"
    """gemma_rms: RMSNorm whose gain is 1 + scale, multiplied in float32. plain: LayerNorm without gain and bias."""
    norm_eps: Annotated[float, EPS] = 1e-6
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """pre: x + f(norm x), with a final norm. post: norm(x + f(x)), without one. sandwich: x + norm(f(norm x)), with one
    (Gemma 2 and 3)."""
    parallel: bool = False
    """x + attention(ln1 x) + mlp(ln2 x): the MLP does not see what attention wrote (GPT-NeoX, GPT-J, Phi)."""
    one_norm: bool = False
    """In a parallel block ln1 feeds the MLP as well; there is no ln2 (GPT-J, Phi)."""
    causal: bool = True
    attn_scale: Annotated[float, SCALE] | None = None
    """Factor on q.k; None is d_head ** -0.5."""
    attn_scale_by_layer: bool = False
    """Divide the factor by the layer's number, counted from 1 (GPT-2's scale_attn_by_inverse_layer_idx)."""
    attn_softcap: Annotated[float, SCALE] | None = None
    """Scores become cap * tanh(scores / cap) (Gemma 2)."""
    windows: tuple[int | None, ...] = ()
    """Per layer, how many keys a query sees (itself included); None: all. () is None everywhere."""
    rope: Rope | None = dataclasses.field(default_factory=Rope)
    local_rope: Rope | None = None
    """Of the layers with a window, where it is another one (Gemma 3); None: `rope`."""
    relative: RelativeBias | None = None
    """Positions are a learned number per distance, added to the scores (T5; see `RelativeBias`)."""
    encoder: "Config | None" = None
    """The stack whose last hidden state every layer also attends to, between attention and MLP: its weights are under
    "encoder", its token embedding is this model's (T5)."""
    learned_positions: bool = False
    position_offset: int = 0
    """Rows of the position table before that of position 0 (OPT 2, RoBERTa 2)."""
    masked_positions: bool = False
    """Learned positions count real tokens only, not those that a mask leaves out between them (OPT, RoBERTa)."""
    d_embed: Annotated[int, whole()] | None = None
    """Width of the token embedding where it is not d_model: projected in and, before the head, out (OPT 350m)."""
    embed_scale: bool = False
    """Token embeddings are multiplied by sqrt(d_model), rounded to their dtype (Gemma)."""
    n_token_types: int = 0
    embed_norm: bool = False
    layer_scale: bool = False
    """What attention and MLP write is multiplied by a learned vector each (DINOv2)."""
    norm_pooled: bool = False
    """The final norm is that of the pooled token alone; hidden states come out as they are (CLIP's vision)."""
    qk_norm: bool = False
    """The model's kind of norm over each head of q and k, before rope."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    has_head: bool = True
    """False: the model ends in its last hidden state (an encoder, a base model)."""
    tied: bool = False
    """The unembedding is the transposed token embedding."""
    head_scale: bool = False
    """The last hidden state is divided by sqrt(d_model) before the unembedding (T5 1.0)."""
    head_transform: bool = False
    """BERT's masked-token head: dense, act, LayerNorm before the unembedding."""
    head_act: Literal["gelu"] | None = None
    """Of the head's transform, where it is not `act` (RoBERTa)."""
    head_bias: bool = False
    """A bias after the unembedding."""
    logit_softcap: Annotated[float, SCALE] | None = None
    """Logits become cap * tanh(logits / cap) (Gemma 2)."""
    pooler: bool = False
    """Learned weights make the one vector of a sequence: BERT's tanh(W x[0] + b), SigLIP's attention; see `pool`."""
    pool_from: Literal["first", "last", "eos", "attention"] | None = None
    """Where that vector comes from; None: the first position, and only through a `pooler`."""
    eos: int | None = None
    """The id whose first position is pooled; 2: the first position of the largest id, as early CLIP files mean it."""
    d_projection: Annotated[int, whole()] | None = None
    """Width of a linear map of the pooled vector (CLIP's and SigLIP's embedding); None: there is none."""
    projection_bias: bool = False
    classify: Literal["cls", "cls_and_patches", "distilled"] | None = None
    """Logits are one row per picture, from its cls token; from that and the mean patch (DINOv2); or the average of two
    classifiers, of the cls and the distillation token (DeiT). None: one row per position."""

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __post_init__(self):
        sizes = ("n_layers", "d_model", "d_vocab")
        for size in sizes if self.mixer else (*sizes, *_OF_ATTENTION):
            value = getattr(self, size)
            if type(value) is not int or value < (0 if size == "d_vocab" and self.image else 1):
                raise UserError(f"{size}={quoted(value)} is not a positive whole number.")
        check_fields(self)
        if self.mixer is not None:
            self._check_mixer(self.mixer)
        elif self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}.")
        for rope in (self.rope, self.local_rope):
            if rope is not None and (rope.dims or self.d_head) % 2:
                size = f"d_head={self.d_head}" if rope.dims is None else f"rope.dims={rope.dims}"
                raise UserError(f"rope turns pairs of coordinates, so {size} must be even.")
            if rope is not None and rope.dims is not None and not 0 < rope.dims <= self.d_head:
                raise UserError(f"rope cannot turn {rope.dims} coordinates of heads of {self.d_head}.")
        one, other = self.rope, self.local_rope
        if other is not None and (one is None or (one.dims, one.interleaved) != (other.dims, other.interleaved)):
            raise UserError("local_rope turns the same coordinates as rope: give both the same dims and interleaved.")
        if self.d_embed == self.d_model:
            object.__setattr__(self, "d_embed", None)
        if self.image is not None and (odd := [name for name in _OF_TOKENS if getattr(self, name)]):
            raise UserError(f"{', '.join(odd)}: of models that read tokens; this one reads pictures.")
        if self.image is not None and self.has_head and not self.d_vocab:
            raise UserError("a model of pictures with a head needs d_vocab, its number of classes.")
        if self.image is None and self.classify is not None:
            raise UserError("classify is a switch of models of pictures: set image too.")
        if self.pool_from == "eos" and self.eos is not None and self.eos >= self.d_vocab:
            raise UserError(f"eos={self.eos}, from which a text is pooled, is none of the {self.d_vocab} tokens.")
        if self.norm_pooled and self.norm_placement == "post":
            raise UserError("norm_pooled moves the final norm, which a post-norm stack has not.")
        if self.d_embed is not None and self.head_transform:
            raise UserError("head_transform has d_model coordinates, the unembedding d_embed: one of them.")
        if self.experts is not None and (not self.gated or self.mlp_bias):
            raise UserError("experts are gated MLPs without biases: set gated=True and mlp_bias=False.")
        if self.encoder is not None:
            self._check_encoder(self.encoder)
        if self.experts is not None and not {*self.experts.dense} < {*range(self.n_layers)}:
            raise UserError(
                f"experts.dense={self.experts.dense}: some of the layers 0 to {self.n_layers - 1}, not all."
            )
        if self.one_norm and not self.parallel:
            raise UserError("one_norm is a switch of parallel blocks: set parallel=True too.")
        if self.parallel and self.norm_placement != "pre":
            raise UserError(f"a parallel block has its norms before, not {self.norm_placement!r}.")
        if bad := [w for w in self.windows if w is not None and (type(w) is not int or w < 1)]:
            raise UserError(f"a window of {bad[0]!r} keys: it is a positive whole number, or None for no window.")
        if not any(self.windows):
            object.__setattr__(self, "windows", ())
        elif len(self.windows) != self.n_layers:
            raise UserError(f"windows has {len(self.windows)} entries for {self.n_layers} layers.")
        elif not self.causal:
            raise UserError("windows look back from a query, so they need causal=True.")

    def _check_encoder(self, encoder: "Config") -> None:
        if encoder.causal or encoder.has_head or encoder.image or encoder.mixer or encoder.encoder:
            raise UserError("an encoder reads tokens, both ways, and ends in its hidden state: causal, has_head False.")
        if odd := [name for name, usual in _OF_DECODERS.items() if getattr(self, name) != usual]:
            raise UserError(f"a model with an encoder has {odd[0]}={_OF_DECODERS[odd[0]]!r}.")
        shared = ("d_model", "d_vocab", "d_embed", "learned_positions", "n_token_types", "embed_norm")
        if odd := [name for name in shared if getattr(self, name) != getattr(encoder, name)]:
            raise UserError(f"a model and its encoder share the embedding, so they have one {odd[0]}.")

    def _check_mixer(self, mixer: Mixer) -> None:
        object.__setattr__(self, "rope", None)
        usual = {field.name: field.default for field in dataclasses.fields(self) if field.name not in _OF_MIXERS}
        if other := [name for name, value in usual.items() if getattr(self, name) != value]:
            kind = type(mixer).__name__
            raise UserError(
                f"{other[0]} belongs to attention and MLP; a model with mixer={kind}(...) has none of them."
            )
        if other := [f"{name}={value!r}" for name, value in mixer.needs.items() if getattr(self, name) != value]:
            raise UserError(f"a model with mixer={type(mixer).__name__}(...) has {' and '.join(other)}.")

    @property
    def longest(self) -> int | None:
        """Positions that a text can have: the rows of a table of learned ones. None: rotary and relative ones go on."""
        return self.n_ctx if self.learned_positions else None

    def window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, itself included; None: all that the mask allows."""
        return self.windows[layer] if self.windows else None
