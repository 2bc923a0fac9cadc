# SPDX-License-Identifier: Apache-2.0
"""The cross-layer transcoder: latents read one layer and write to it and all layers above."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..axes import aligned
from ..taps import reprs
from .activations import Activation
from .shapes import of_width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossLayerTranscoder:
    """L encoders, and a decoder from every layer to each layer that is not below it. A pytree of its arrays.

        z_l = activation(x_l W_enc[l] + b_enc[l]);   y_l = b_dec[l] + sum over s <= l of z_s W_dec[s][l - s]

    x_l is what layer l's MLP reads and y_l stands for what it writes. Accumulated in float32; what comes out has the
    dtype of what went in.

    Source: Ameisen et al., "Circuit Tracing" (transformer-circuits.pub, 2025), section 2; circuit-tracer 0.5.
    Example:
      >>> from jaxneuro.dictionaries import Relu
      >>> t = CrossLayerTranscoder(W_enc=jnp.ones((2, 3, 4)), b_enc=jnp.zeros((2, 4)), b_dec=jnp.zeros((2, 3)),
      ...                          W_dec=(jnp.ones((2, 4, 3)), jnp.ones((1, 4, 3))), activation=Relu())
      >>> t(jnp.ones((2, 3))).tolist()
      [[12.0, 12.0, 12.0], [24.0, 24.0, 24.0]]
    """

    W_enc: Float[Array, "n_layers d_in n_latents"]
    b_enc: Float[Array, "n_layers n_latents"]
    W_dec: tuple[Float[Array, "to_layers n_latents d_out"], ...]
    """Of layer s: [n_layers - s, n_latents, d_out], the layers it writes to in order, from s itself."""
    b_dec: Float[Array, "n_layers d_out"]
    activation: Activation
    """With a threshold [n_layers, n_latents] if it has one."""

    def __repr__(self) -> str:
        return reprs.sizes(self)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.W_enc.shape[0]

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.b_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents of one layer."""
        return self.W_enc.shape[2]

    def encode(self, x: Float[Array, "*batch n_layers d_in"]) -> Float[Array, "*batch n_layers n_latents"]:
        """Latents of every layer.

        Raises:
          UserError: values of other layers or of another width.
        """
        x = of_width(x, self.n_layers, self.d_in, what="values of a cross-layer transcoder")
        pre = _einsum("...ld,ldm->...lm", x, self.W_enc)
        pre = pre + aligned(self.b_enc.astype(jnp.float32), pre)
        return self.activation(pre).astype(x.dtype)

    def decode(self, z: Float[Array, "*batch n_layers n_latents"]) -> Float[Array, "*batch n_layers d_out"]:
        """What the latents write to every layer.

        Raises:
          UserError: another number of latents.
        """
        z = of_width(z, self.n_layers, self.n_latents, what="latents to decode")
        y = jnp.broadcast_to(self.b_dec.astype(jnp.float32), (*z.shape[:-1], self.d_out))
        for s, w in enumerate(self.W_dec):
            y = y.at[..., s:, :].add(_einsum("...m,lmd->...ld", z[..., s, :], w))
        return y.astype(z.dtype)

    def __call__(self, x: Float[Array, "*batch n_layers d_in"]) -> Float[Array, "*batch n_layers d_out"]:
        """What stands for every layer's output."""
        return self.decode(self.encode(x))


def _einsum(spec: str, a: Array, b: Array) -> Array:
    dtype = a.dtype if a.dtype == b.dtype else jnp.dtype(jnp.float32)
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
