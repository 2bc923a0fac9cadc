# SPDX-License-Identifier: Apache-2.0
"""What top-k methods learn: four arrays, one number, and how to use them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxneuro_kernels import encode_topk, sparse_decode
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKDictionary:
    """A TopK autoencoder or transcoder. A pytree of its four arrays: pass it through jit, vmap and grad as it is.

        z = relu(topk((x - [b_dec]) W_enc + b_enc, k));   x_hat = z W_dec + b_dec

    Accumulated in float32; what comes out has the dtype of what went in. Leading axes are of any rank.

    Example:
      >>> d = TopKDictionary(W_enc=jnp.eye(2), W_dec=jnp.eye(2), b_enc=jnp.zeros(2), b_dec=jnp.zeros(2), k=1)
      >>> d.encode(jnp.array([[1.0, 3.0]])).tolist()
      [[0.0, 3.0]]
    """

    W_enc: Float[Array, "d_in n_latents"]
    W_dec: Float[Array, "n_latents d_out"]
    b_enc: Float[Array, "n_latents"]
    b_dec: Float[Array, "d_out"]
    k: int = dataclasses.field(metadata={"static": True})
    apply_b_dec_to_input: bool = dataclasses.field(default=True, metadata={"static": True})
    """Subtract b_dec from the input: an autoencoder does, a transcoder does not."""

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

    def encode_sparse(self, x: Float[Array, "*batch d_in"]) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
        """(values, indices) of the k strongest latents, descending, float32; a value of 0 is off."""
        dtype = _common(x, self.W_enc)
        x = x.astype(dtype)
        if self.apply_b_dec_to_input:
            x = x - self.b_dec.astype(dtype)
        return encode_topk(x, self.W_enc.T.astype(dtype), self.b_enc, self.k)

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Latents of x, at most k of each row nonzero, in x's dtype. Holds [batch, n_latents]; see `encode_sparse`."""
        vals, idx = self.encode_sparse(x)
        flat = idx.reshape(-1, self.k)
        z = jnp.zeros((flat.shape[0], self.n_latents), x.dtype)
        tokens = jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None]
        z = z.at[tokens, flat].set(vals.reshape(flat.shape).astype(x.dtype), unique_indices=True)
        return z.reshape(*x.shape[:-1], self.n_latents)

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction from latents, in z's dtype."""
        dtype = _common(z, self.W_dec)
        x_hat = jnp.dot(z.astype(dtype), self.W_dec.astype(dtype), preferred_element_type=jnp.float32)
        return (x_hat + self.b_dec.astype(jnp.float32)).astype(z.dtype)

    def decode_sparse(
        self, vals: Float[Array, "*batch k"], idx: Int[Array, "*batch k"]
    ) -> Float[Array, "*batch d_out"]:
        """The reconstruction from what `encode_sparse` returned, float32."""
        return sparse_decode(vals, idx, self.W_dec) + self.b_dec.astype(jnp.float32)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """decode(encode(x)) without the latents in between, in x's dtype."""
        return self.decode_sparse(*self.encode_sparse(x)).astype(x.dtype)


def _common(a: Array, b: Array) -> jnp.dtype:
    """What two arrays are computed in: their dtype if they agree, else float32."""
    return a.dtype if a.dtype == b.dtype else jnp.dtype(jnp.float32)
