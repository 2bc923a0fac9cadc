# SPDX-License-Identifier: Apache-2.0
"""The Flax faces of the pure function: an nnx module that owns the weights, and a linen adapter."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError
from ..io.generation import GENERATION, ids_of
from ..taps import SiteTable, sites
from .cache import Carried
from .config import Config
from .half import check_finite
from .inputs import check_call
from .layout import Weights
from .owner import Owner
from .pooling import has_pooled, pooled
from .transformer import encode, forward


@functools.cache
def apply_fn(cfg: Config) -> Callable[..., Array]:
    """`forward` with the configuration bound: one function object per configuration, so jit caches are shared."""

    def apply(
        weights: Weights,
        tokens: Int[Array, "batch pos"],
        mask: Bool[Array, "batch pos"] | None = None,
        *,
        token_types: Int[Array, "batch pos"] | None = None,
        stop_at: int | None = None,
        start_at: int = 0,
        resid: Float[Array, "batch pos d_model"] | None = None,
        remat: str | None = None,
        cache: Carried | None = None,
        hidden_patches: Bool[Array, "batch patch"] | None = None,
        context: Array | None = None,
        context_mask: Bool[Array, "batch key"] | None = None,
        attention: str | None = None,
    ) -> Any:
        """See `jaxneuro.models.forward`."""
        part: dict[str, Any] = {
            "stop_at": stop_at,
            "start_at": start_at,
            "resid": resid,
            "remat": remat,
            "cache": cache,
            "hidden_patches": hidden_patches,
            "context": context,
            "context_mask": context_mask,
            "attention": attention,
        }
        return forward(weights, tokens, cfg=cfg, mask=mask, token_types=token_types, **part)

    apply.__qualname__ = "Transformer.apply"  # what shows of `model.apply`, and in a TypeError of Python's
    apply.__dict__["check"] = functools.partial(check_call, cfg)  # `capture` and `intervene` call it
    return apply


@functools.cache
def encode_fn(cfg: Config) -> Callable[..., Array]:
    """`encode` with the configuration bound, as `apply_fn` binds `forward`."""

    def run(weights: Weights, tokens: Array, mask: Array | None = None, *, stop_at: int | None = None) -> Array:
        """See `jaxneuro.models.encode`."""
        return encode(weights, tokens, cfg=cfg, mask=mask, stop_at=stop_at)

    run.__qualname__ = "Transformer.encode"
    run.__dict__["check"] = functools.partial(check_call, cfg.encoder or cfg)  # `capture` and `intervene` call it
    return run


@functools.cache
def pooled_fn(cfg: Config) -> Callable[..., Array]:
    """`pooled` with the configuration bound, as `apply_fn` binds `forward`."""

    def run(
        weights: Weights, inputs: Array, mask: Array | None = None, *, stop_at: int | None = None, **part: Any
    ) -> Array:
        """See `jaxneuro.models.pooled`."""
        return pooled(weights, inputs, cfg, mask, stop_at=stop_at, **part)

    run.__qualname__ = "Transformer.pooled"
    run.__dict__["check"] = functools.partial(check_call, cfg)  # `capture` and `intervene` call it
    return run


class Transformer(Owner):
    """A model: its configuration and its weights, as `nnx.Param` leaves.

    `nnx.split`, `merge`, `state`, `nnx.Optimizer` and passing it through `jax.jit` work as for any nnx module.
    The library's own transforms take the pure pair `model.apply`, `model.weights`.

    Example:
      >>> import jax
      >>> from jaxneuro.models import Config, Transformer, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> model = Transformer(cfg, init(cfg, jax.random.key(0)))
      >>> tokens = jax.numpy.zeros((1, 5), "int32")
      >>> bool((model(tokens) == model.apply(model.weights, tokens)).all())
      True
    """

    cfg: Config

    @property
    def apply(self) -> Callable[..., Array]:
        """The pure function (weights, tokens, mask=None, ...), the same object for equal configurations."""
        return apply_fn(self.cfg)

    @property
    def encode(self) -> Callable[..., Array]:
        """The pure function (weights, tokens, mask=None, *, stop_at=None) of its encoder, sites `encoder.*`."""
        return encode_fn(self.cfg)

    @property
    def pooled(self) -> Callable[..., Array]:
        """The pure function (weights, inputs, mask=None, *, stop_at=None) to one vector each, with its sites above."""
        return pooled_fn(self.cfg)

    @property
    def start_token(self) -> int:
        """What the decoder of a model with an encoder reads first: decoder_start_token_id of its config.json or
        generation_config.json, or else pad_token_id, T5's convention.

        Raises:
          UserError: they say neither.
        """
        found = [i for key in ("decoder_start_token_id", "pad_token_id") for i in self._ids(key)]
        if not found:
            raise UserError(
                f"this {self.cfg.family} model's config.json does not say what answers begin with: add "
                "decoder_start_token_id to it."
            )
        return found[0]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text, as its generation_config.json and config.json name them (eos_token_id)."""
        return self._ids("eos_token_id")

    def _ids(self, key: str) -> tuple[int, ...]:
        configs = {GENERATION: json.loads(self.generation_config), "config.json": json.loads(self.hf_config)}
        return ids_of(key, configs, f"this {self.cfg.family} model")

    def example(self, pos: int = 8) -> Array:
        """A batch of one, to list sites with: tokens, or a black picture."""
        image = self.cfg.image
        if image is None:
            return jax.numpy.zeros((1, pos), jax.numpy.int32)
        return jax.numpy.zeros((1, image.size, image.size, image.channels))

    def sites(self, inputs: Array | None = None, **part: Any) -> SiteTable:
        """All sites of the model, its pooling and its encoder; nothing runs.

        Args:
          inputs: tokens or pictures; None: `example()`.
          part: as in `forward`.
        Example:
          >>> from jaxneuro.models import Config, Transformer, init
          >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
          >>> Transformer(cfg, init(cfg, jax.random.key(0))).sites()["blocks.mlp.post"].shape
          (1, 8, 16)
        """
        inputs = self.example() if inputs is None else inputs
        if self.cfg.encoder is not None:
            part = {"context": inputs, **part}
        return sites(self.pooled if has_pooled(self.cfg) else self.apply, self.weights, inputs, **part)

    def __call__(self, tokens: Int[Array, "batch pos"], mask: Any = None, **part: Any) -> Array:
        """Logits, or the last hidden state of a model without a head; arguments as in `forward`."""
        out = self.apply(self.weights, tokens, mask, **part)
        if out.dtype == jnp.float16:
            check_finite(out, f"this {self.cfg.family} model")
        return out


def to_linen(cfg: Config) -> Any:
    """A `flax.linen` module of the same model, for training loops that speak linen.

    Its variables are `{"params": weights}`, so `to_linen(cfg).apply({"params": model.weights}, tokens)` is
    `model(tokens)`.
    """
    import flax.linen as nn

    from .layout import init

    class LinenTransformer(nn.Module):
        @nn.compact
        def __call__(self, tokens: Array, mask: Array | None = None, **part: Any) -> Array:
            names = jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))
            weights = {n: self.param(n, lambda key, n=n: init(cfg, key)[n]) for n in names}
            return forward(weights, tokens, cfg=cfg, mask=mask, **part)

    return LinenTransformer()
