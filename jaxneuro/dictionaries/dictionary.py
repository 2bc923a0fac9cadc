# SPDX-License-Identifier: Apache-2.0
"""What most methods learn and most files hold: an encoder, an activation, a decoder, and how to use them."""

import dataclasses
from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxneuro_kernels import sparse_decode
from jaxtyping import Array, Float

from ..axes import aligned
from ..errors import UserError
from ..taps import reprs
from .activations import Activation, Bounded, Code, dense
from .shapes import apart, code, joined, of_width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseCoder:
    """A sparse autoencoder, transcoder or crosscoder. A pytree of its arrays: pass it through jit, vmap and grad.

        pre = (x - [b_dec]) W_enc + b_enc;   z = activation(pre);   x_hat = z W_dec + b_dec + [x W_skip^T]

    Accumulated in float32; what comes out has the dtype of what went in. Leading axes are of any rank.

    Example:
      >>> from jaxneuro.dictionaries import TopK
      >>> d = SparseCoder(W_enc=jnp.eye(2), W_dec=jnp.eye(2), b_enc=jnp.zeros(2), b_dec=jnp.zeros(2),
      ...                 activation=TopK(1))
      >>> d.encode(jnp.array([[1.0, 3.0]])).tolist()
      [[0.0, 3.0]]
    """

    W_enc: Float[Array, "d_in n_latents"]
    W_dec: Float[Array, "n_latents d_out"]
    b_enc: Float[Array, "n_latents"]
    b_dec: Float[Array, "d_out"]
    activation: Activation
    W_skip: Float[Array, "d_out d_in"] | None = None
    """Skip transcoders add x W_skip^T (arXiv:2501.18823)."""
    apply_b_dec_to_input: bool = dataclasses.field(default=True, metadata={"static": True})
    """Subtract b_dec from the input: an autoencoder does, a transcoder does not."""
    input_norm: str = dataclasses.field(default="none", metadata={"static": True})
    """What is done to each token first and undone to its reconstruction: a key of INPUT_NORMS. Where it is not "none",
    `decode` gives the reconstruction of the normalised token; calling the dictionary gives that of the token."""

    def __repr__(self) -> str:
        return reprs.sizes(self)

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def k(self) -> int | None:
        """Most latents active at one token, if the activation knows."""
        return self.activation.k if isinstance(self.activation, Bounded) else None

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Latents of x, in x's dtype. Heads are joined in [batch, pos, n_heads, d_head].

        Raises:
          UserError: values of another width; heads without a batch, which could be tokens of another model.
        """
        x = joined(x, self.d_in)
        if isinstance(self.activation, Bounded):
            vals, idx = self.encode_sparse(x)
            return dense(vals.astype(x.dtype), idx, self.n_latents)
        centred, w = self._ready(x)
        pre = jnp.dot(centred, w, preferred_element_type=jnp.float32)
        pre = pre + aligned(self.b_enc.astype(jnp.float32), pre)
        return self.activation(pre).astype(x.dtype)

    def encode_sparse(self, x: Float[Array, "*batch d_in"]) -> Code:
        """(values, indices) of the active latents, float32 and int32; no [batch, n_latents] array is made.

        Raises:
          UserError: an activation that does not bound their number; use `encode`.
        """
        if not isinstance(self.activation, Bounded):
            name = type(self.activation).__name__
            raise UserError(f"{name} does not bound the active latents of a token: there is only `encode`.")
        centred, w = self._ready(joined(x, self.d_in))
        return self.activation.encode(centred, w.T, self.b_enc)

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction from latents, in z's dtype (without the skip, which is not a function of z).

        Raises:
          UserError: another number of latents.
        """
        z = of_width(z, self.n_latents, what="latents to decode")
        dtype = _common(z, self.W_dec)
        x_hat = jnp.dot(z.astype(dtype), self.W_dec.astype(dtype), preferred_element_type=jnp.float32)
        return (x_hat + aligned(self.b_dec.astype(jnp.float32), x_hat)).astype(z.dtype)

    def decode_sparse(self, vals: Float[Array, "*batch k"], idx: Array) -> Float[Array, "*batch d_out"]:
        """The reconstruction from what `encode_sparse` returned, float32.

        Raises:
          UserError: no such code, or an index of no latent.
        """
        return self._decoded(*code(vals, idx, self.n_latents))

    def _decoded(self, vals: Array, idx: Array) -> Array:
        x_hat = sparse_decode(vals, idx, self.W_dec)
        return x_hat + aligned(self.b_dec.astype(jnp.float32), x_hat)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction of x, in x's dtype; of values with a head axis with theirs, where widths are equal."""
        return apart(self._reconstruction(joined(x, self.d_in)), jnp.shape(x))

    def _reconstruction(self, x: Array) -> Array:
        if isinstance(self.activation, Bounded):
            x_hat = self._decoded(*self.encode_sparse(x))
        else:
            x_hat = self.decode(self.encode(x)).astype(jnp.float32)
        _, back = INPUT_NORMS[self.input_norm](x.astype(jnp.float32))
        x_hat = back(x_hat)
        if self.W_skip is not None:
            dtype = _common(x, self.W_skip)
            x_hat += jnp.dot(x.astype(dtype), self.W_skip.T.astype(dtype), preferred_element_type=jnp.float32)
        return x_hat.astype(x.dtype)

    def _ready(self, x: Array) -> tuple[Array, Array]:
        """What is multiplied: the normalised, centred input and W_enc, of one dtype."""
        dtype = _common(x, self.W_enc)
        if self.input_norm != "none":
            x = INPUT_NORMS[self.input_norm](x.astype(jnp.float32))[0]
        x = x.astype(dtype)
        return (x - aligned(self.b_dec.astype(dtype), x) if self.apply_b_dec_to_input else x), self.W_enc.astype(dtype)


class Normalised(NamedTuple):
    """A token as a dictionary sees it, and the way back for its reconstruction."""

    x: Array
    back: Callable[[Array], Array]


def _none(x: Array) -> Normalised:
    return Normalised(x, lambda y: y)


def _layer_norm(x: Array) -> Normalised:
    """(x - mean) / (std + 1e-5), the std with n - 1; back: y std + mean. OpenAI's and SAELens'."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    std = jnp.std(x, axis=-1, keepdims=True, ddof=1)
    return Normalised((x - mean) / (std + jnp.float32(1e-5)), lambda y: y * std + mean)


def _constant_norm(x: Array) -> Normalised:
    """Every token to norm sqrt(d); a token of zeros stays."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    scale = jnp.sqrt(jnp.float32(x.shape[-1])) / jnp.where(norm > 0, norm, jnp.float32(1))
    return Normalised(x * scale, lambda y: y / scale)


INPUT_NORMS: Final = {"none": _none, "layer_norm": _layer_norm, "constant_norm": _constant_norm}
"""Per-token normalisations that some files ask for at run time."""


def _common(a: Array, b: Array) -> jnp.dtype:
    """What two arrays are computed in: their dtype if they agree, else float32."""
    return a.dtype if a.dtype == b.dtype else jnp.dtype(jnp.float32)
