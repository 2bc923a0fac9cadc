# SPDX-License-Identifier: Apache-2.0
"""Matching-pursuit autoencoders: each latent is found in what those before it leave (arXiv:2506.03093)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxneuro_kernels import sparse_decode
from jaxtyping import Array, Float, Int, Key

from ..axes import aligned
from ..errors import UserError
from ..protocols import Method
from ..taps import reprs
from .activations import Code, dense
from .dictionary import INPUT_NORMS
from .parts import start
from .parts.autoencode import Select
from .parts.inputs import Inputs
from .parts.learner import Now, Outcome, Parameters, Recipe, Scales, learner
from .parts.numbers import numbers_checked
from .parts.pursuit import Pursuit, Until, merged, pursue
from .parts.silence import fired
from .parts.training import Training
from .shapes import apart, code, joined, of_width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingPursuit:
    """Unit directions, and a code found greedily. A pytree of its arrays: pass it through jit, vmap and grad.

        r = x - b_dec;   at most max_steps times:  j = argmax_i <W_dec,i, r>,  c = max(<W_dec,j, r>, 0)
                                                   z_j += c,  r <- r - c W_dec,j
        x_hat = z W_dec + b_dec

    After every round r is orthogonal to the direction just found and no longer than before, so any max_steps will do:
    `dataclasses.replace(d, max_steps=8)` is the beginning of the same code. A direction can be found again, when later
    ones are not orthogonal to it: a token has at most max_steps active latents. r is float32 throughout.

    Where training keeps rows at norm 1, other libraries' files need not: the formula is used as it stands, in which a
    row of another norm takes |W_dec,j|^2 times the projection away from r. SAELens computes the same.

    Example:
      >>> d = MatchingPursuit(W_dec=jnp.array([[1.0, 0.0], [0.6, 0.8]]), b_dec=jnp.zeros(2), max_steps=2)
      >>> d.encode(jnp.array([2.0, -1.0])).tolist()  # nothing points along what is left, (0, -1)
      [2.0, 0.0]
    """

    W_dec: Float[Array, "n_latents d_in"]
    """Directions: rows of norm 1 if `matching_pursuit` learned them."""
    b_dec: Float[Array, "d_in"]
    max_steps: int = dataclasses.field(metadata={"static": True})
    """Rounds."""
    tolerance: float = dataclasses.field(default=0.0, metadata={"static": True})
    """Above 0: a token is done after the first round that leaves |r| below it, in units of x, up to max_steps."""
    stop_on_repeat: bool = dataclasses.field(default=False, metadata={"static": True})
    """A token is done after the first round that finds no new latent: one of an earlier round again, or none."""
    input_norm: str = dataclasses.field(default="none", metadata={"static": True})
    """As in `SparseCoder`: x is then the normalised token, and calling the dictionary reconstructs the token."""

    def __repr__(self) -> str:
        return reprs.sizes(self)

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.W_dec.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def k(self) -> int:
        """Most latents active at one token."""
        return self.max_steps

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Latents of x, in x's dtype.

        Raises:
          UserError: values of another width.
        """
        x = joined(x, self.d_in)
        found = self._pursued(x)
        return dense(found.vals, found.idx, self.n_latents).astype(x.dtype)

    def encode_sparse(self, x: Float[Array, "*batch d_in"]) -> Code:
        """(values, indices) of the active latents, float32 and int32: each latent once, unused entries 0.

        Rounds are compared with each other: of hundreds, `encode` needs less memory.

        Raises:
          UserError: values of another width.
        """
        found = self._pursued(joined(x, self.d_in))
        return merged(found.vals, found.idx, self.n_latents)

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_in"]:
        """The reconstruction from latents, in z's dtype.

        Raises:
          UserError: another number of latents.
        """
        z = of_width(z, self.n_latents, what="latents to decode")
        x_hat = jnp.dot(z.astype(jnp.float32), self.W_dec.astype(jnp.float32))
        return (x_hat + aligned(self.b_dec.astype(jnp.float32), x_hat)).astype(z.dtype)

    def decode_sparse(self, vals: Float[Array, "*batch k"], idx: Int[Array, "*batch k"]) -> Float[Array, "*batch d_in"]:
        """The reconstruction from what `encode_sparse` returned, float32.

        Raises:
          UserError: no such code, or an index of no latent.
        """
        return self._decoded(*code(vals, idx, self.n_latents))

    def _decoded(self, vals: Array, idx: Array) -> Array:
        x_hat = sparse_decode(vals, idx, self.W_dec.astype(jnp.float32))
        return x_hat + aligned(self.b_dec.astype(jnp.float32), x_hat)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """The reconstruction of x, in x's dtype."""
        shape, x = jnp.shape(x), joined(x, self.d_in)
        _, back = INPUT_NORMS[self.input_norm](x.astype(jnp.float32))
        found = self._pursued(x)
        return apart(back(self._decoded(found.vals, found.idx)).astype(x.dtype), shape)

    def _pursued(self, x: Array) -> Pursuit:
        x = INPUT_NORMS[self.input_norm](x.astype(jnp.float32)).x
        r, w = x - aligned(self.b_dec.astype(jnp.float32), x), self.W_dec.astype(jnp.float32)
        return pursue(r, w, Select(k=self.max_steps), Until(self.tolerance, self.stop_on_repeat))


@numbers_checked
def matching_pursuit(n_latents: int, k: int, *, training: Training = Training()) -> Method:
    """A matching-pursuit dictionary of batches {"x": [n, d_in]}: k rounds, each in what the last has left over.

        r_0 = x - b_dec;   j_t = argmax_i <D_i, r_t>,  c_t = max(<D_j, r_t>, 0),  r_(t+1) = r_t - c_t D_j
        loss = mean_n |r_k|^2 / V

    One set of unit rows D encodes and decodes; gradients go through all rounds. Latents of one level may resemble each
    other and still be told apart, if what they have in common is found first: hierarchies, which a single linear look
    at x (`topk`) does not see. A signed argmax as published; where even the largest product is negative, a round does
    nothing (published code would add a negative latent). Activity, `info["l0"]` and dead latents count a latent that
    was found twice as one. Start and scale: as `topk`, with one number for all of x.

    Args:
      n_latents: latents.
      k: rounds per token.
      training: see `Training`; its dtype is that of the products that choose, residuals are float32.
    Returns:
      A Method; `finish` gives a `MatchingPursuit`. Info: as `topk`, without auxk.
    Raises:
      UserError: k below 1; `training.widths`; batches with y: it reconstructs its input.
    Source: arXiv:2506.03093 and KempnerInstitute/overcomplete, sae/mp_sae.py.
    Example:
      >>> method = matching_pursuit(n_latents=16, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> method.finish(state).encode(x).shape, float(info["l0"]) <= 2
      ((64, 16), True)
    """
    if k < 1:
        raise UserError(f"matching_pursuit: k = {k} rounds find nothing; at least 1.")
    if training.widths:
        raise UserError("matching_pursuit: one set of rows reads and writes, so x has one scale: leave out widths.")
    select, axes = Select(k=k, **training.kernel), training.axes

    def begin(key: Key[Array, ""], inputs: Inputs, tied: bool) -> Parameters:
        if not tied:
            raise UserError("matching_pursuit reconstructs x from its own directions: leave y out of the batches.")
        b_dec = start.CENTRES[training.b_dec_start](inputs.x, inputs.valid)
        return {"w_dec": start.random_rows(key, n_latents, inputs.x.shape[1]), "b_dec": b_dec}

    def loss(p: Parameters, inputs: Inputs, now: Now) -> tuple[Array, Outcome]:
        r = jnp.where(inputs.valid[:, None], inputs.x - p["b_dec"][None], jnp.float32(0))
        found = pursue(r, p["w_dec"], select)
        vals, idx = merged(found.vals, found.idx, n_latents)
        here = p["w_dec"].shape[0]
        local = idx - (lax.axis_index(axes.latent) * here if axes.latent else 0)
        return jnp.sum(jnp.square(found.residual)) / (now.divisor * now.variance), Outcome(
            error=found.residual,
            fired=fired(vals, jnp.where(local < 0, here, local), here),
            active=jnp.sum(vals > 0, dtype=jnp.int32),
            memory=now.memory,
            info={},
        )

    def finish(p: Parameters, memory: dict[str, Array], scales: Scales) -> MatchingPursuit:
        del memory
        return MatchingPursuit(W_dec=p["w_dec"], b_dec=p["b_dec"] / scales.x, max_steps=k)

    return learner(Recipe(begin=begin, loss=loss, finish=finish), n_latents, training)
