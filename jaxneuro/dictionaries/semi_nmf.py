# SPDX-License-Identifier: Apache-2.0
"""Semi-NMF of a stream: sparse combinations of co-active neurons, as a Method."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from ..errors import UserError
from ..protocols import Method
from ..taps import reprs
from ..taps.compiled import compiled
from .factorise import factorise
from .parts.decoder import unit_rows
from .parts.inputs import Inputs
from .parts.multiplicative import GUARDS, checked, coefficients, descended, dot, winners
from .parts.numbers import numbers_checked
from .parts.reseed import drawn_tokens, step_key
from .parts.silence import silent_tokens
from .parts.start import deviation
from .parts.untargeted import check_first, read_x
from .shapes import apart, joined, of_width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiNMFDictionary:
    """Directions of free sign that are only ever added.

        z = argmin_{z >= 0} |x - z W_dec|^2, by `steps` multiplicative updates from a fixed start;   x_hat = z W_dec

    Latents below a thousandth of the token's largest are 0. Accumulated in float32; what comes out has the dtype of
    what went in.

    Example:
      >>> d = SemiNMFDictionary(W_dec=jnp.array([[1.0, 0.0], [0.0, -1.0]]))
      >>> d.encode(jnp.array([2.0, 1.0])).round(2).tolist()
      [2.0, 0.0]
    """

    W_dec: Float[Array, "n_latents d_in"]
    """Unit rows."""
    steps: int = dataclasses.field(default=100, metadata={"static": True})
    """Updates that encode makes."""

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
        """Number of directions."""
        return self.W_dec.shape[0]

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Non-negative coefficients of x, in x's dtype.

        Raises:
          UserError: values of another width.
        """
        x = joined(x, self.d_in)
        rows = x.reshape(-1, self.d_in).astype(jnp.float32)
        z = coefficients(rows, self.W_dec.astype(jnp.float32), self.steps)
        return z.reshape(*x.shape[:-1], self.n_latents).astype(x.dtype)

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_in"]:
        """The reconstruction from coefficients, in z's dtype.

        Raises:
          UserError: another number of latents.
        """
        z = of_width(z, self.n_latents, what="latents to decode")
        return (z.astype(jnp.float32) @ self.W_dec.astype(jnp.float32)).astype(z.dtype)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """decode(encode(x)), in x's dtype."""
        shape, x = jnp.shape(x), joined(x, self.d_in)
        return apart(self.decode(self.encode(x.astype(jnp.float32))).astype(x.dtype), shape)


class SemiNMFState(NamedTuple):
    """What the next step needs."""

    w: Float[Array, "n_latents d"]
    """Unit rows."""
    cross: Float[Array, "n_latents d"]
    """Decayed sum of G^T x."""
    gram: Float[Array, "n_latents n_latents"]
    """Decayed sum of G^T G."""
    typical: Float[Array, ""]
    """Median norm of the first batch's tokens, for the guard."""
    silent: Int[Array, "n_latents"]
    """Tokens since each latent was above 0."""
    seed: UInt32[Array, ""]
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    """Batches without a valid token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SemiNMF:
    n_latents: int
    sparsity: float
    decay: float
    coefficient_steps: int
    start_steps: int
    guard: str
    dead_after_tokens: int

    def init(self, key: Key[Array, ""], batch: Any) -> SemiNMFState:
        check_first(batch, "semi_nmf", self.n_latents)
        inputs = read_x(batch, "semi_nmf")
        norm = jnp.where(inputs.valid, jnp.linalg.norm(inputs.x, axis=1), jnp.nan)
        typical = jnp.nanmedian(norm)
        start_key, seed_key = jax.random.split(key)
        options: Any = {"sparsity": self.sparsity, "guard": self.guard, "steps": self.start_steps}
        rows = factorise(inputs.x, self.n_latents, key=start_key, mask=inputs.valid, **options).w
        return SemiNMFState(
            w=rows,
            cross=jnp.zeros_like(rows),
            gram=jnp.zeros((self.n_latents, self.n_latents), jnp.float32),
            typical=typical,
            silent=jnp.zeros(self.n_latents, jnp.int32),
            seed=jax.random.bits(seed_key),
            step=jnp.int32(0),
            skipped=jnp.int32(0),
        )

    def step(self, state: SemiNMFState, batch: Any) -> tuple[SemiNMFState, dict[str, Array]]:
        inputs = read_x(batch, "semi_nmf")
        x = inputs.x * GUARDS[self.guard](jnp.linalg.norm(inputs.x, axis=1), state.typical)[:, None]
        g = coefficients(x, state.w, self.coefficient_steps)
        error = x - dot(g, state.w)
        ok = inputs.tokens > 0
        new = lax.cond(ok, lambda s: self._learned(s, x, g), lambda s: s, state)
        new = new._replace(
            silent=silent_tokens(state.silent, jnp.any(g > 0, 0), inputs.tokens),
            step=state.step + ok.astype(jnp.int32),
            skipped=state.skipped + (~ok).astype(jnp.int32),
        )
        squares = jnp.sum(jnp.square(error), 1)
        dead = new.silent >= self.dead_after_tokens
        again, token = drawn_tokens(step_key(state.seed, state.step), dead, squares)
        return self._revived(new, again, error[token]), self._info(inputs, x, g, squares, dead, again, new.skipped)

    def finish(self, state: SemiNMFState) -> SemiNMFDictionary:
        return SemiNMFDictionary(W_dec=state.w, steps=max(100, self.coefficient_steps))

    def _learned(self, s: SemiNMFState, x: Array, g: Array) -> SemiNMFState:
        """Statistics with this batch, and W from them; rescaled with the coefficients so that rows are of norm 1."""
        cross = self.decay * s.cross + dot(g.T, x)
        gram = self.decay * s.gram + dot(g.T, g)
        w = descended(s.w, cross, gram, self.sparsity)
        size = jnp.linalg.norm(w, axis=1)
        kept = size > 0
        size = jnp.where(kept, size, 1)
        return s._replace(
            w=jnp.where(kept[:, None], w / size[:, None], s.w),
            cross=cross * size[:, None],
            gram=gram * size[:, None] * size[None],
        )

    def _revived(self, s: SemiNMFState, again: Array, rows: Array) -> SemiNMFState:
        """Latents that begin again at these rows, with no past."""
        rows = unit_rows(winners(rows, self.sparsity))
        return s._replace(
            w=jnp.where(again[:, None], rows, s.w),
            cross=jnp.where(again[:, None], 0, s.cross),
            gram=jnp.where(again[:, None] | again[None], 0, s.gram),
            silent=jnp.where(again, 0, s.silent),
        )

    def _info(
        self, inputs: Inputs, x: Array, g: Array, squares: Array, dead: Array, again: Array, skipped: Array
    ) -> dict[str, Array]:
        loss = jnp.sum(squares) / inputs.divisor
        return {
            "loss": loss,
            "fvu": loss / deviation(x, inputs.valid),
            "l0": jnp.sum(g > 0, dtype=jnp.int32).astype(jnp.float32) / inputs.divisor,
            "dead_fraction": jnp.mean(dead.astype(jnp.float32)),
            "reseeded": jnp.sum(again, dtype=jnp.int32),
            "tokens": inputs.tokens,
            "nonfinite_tokens": inputs.broken,
            "skipped_batches": skipped,
        }


@numbers_checked
def semi_nmf(
    n_latents: int,
    *,
    sparsity: float = 0.01,
    decay: float = 0.95,
    coefficient_steps: int = 50,
    start_steps: int = 200,
    guard: Literal["none", "clip", "unit"] = "none",
    dead_after_tokens: int = 1_000_000,
) -> Method:
    """Semi-NMF of batches {"x": [n, d], "mask": bool [n], optional}: x ~ z W_dec with z >= 0 and sparse rows in W_dec.

        z = argmin_{z >= 0} |x - z W|^2 per batch, `coefficient_steps` multiplicative updates from a fixed start
        C = decay C + z^T x;   B = decay B + z^T z
        w_k = winners(w_k + (C_k - B_k W) / B_kk), one k after the other; then |w_k| = 1

    `winners` keeps the ceil(sparsity d) largest entries of each row: the few neurons that make up a latent. Memory is
    that of C and B. This is the *online* form of the published full-batch algorithm, which is `factorise`: use that
    where the activations fit in memory, this where they do not. Both are non-convex, and winner-take-all interrupts
    their descent: compare seeds (`jax.vmap` over init's key and over states).

    Start: `factorise` of the first batch, from pooled starts: the larger that batch, the better. A latent
    above 0 on none of `dead_after_tokens` tokens begins
    again at the residual of a badly explained token. Tokens with NaN or infinity are left out and counted.

    Args:
      n_latents: directions; at most the tokens of the first batch.
      sparsity: share of the d neurons in each latent, in (0, 1]. Not below the true share: see `factorise`.
      decay: of the statistics per batch; 1 keeps all of the past, codes by early W included.
      coefficient_steps: see above.
      start_steps: iterations on the first batch.
      guard: "clip": tokens beyond 4 median norms (of the first batch) are shortened to that; "unit": every token has
        length 1. One massive activation otherwise outweighs thousands of tokens in a squared error.
      dead_after_tokens: see above.
    Returns:
      A Method; info: loss (squared error per guarded token, before the update), fvu, l0, dead_fraction, reseeded,
      tokens, nonfinite_tokens, skipped_batches. `finish` gives a `SemiNMFDictionary` for raw activations.
    Raises:
      UserError: numbers out of range; from `init`, fewer valid tokens than latents.
    Source: semi-NMF: Ding, Li and Jordan 2010, doi:10.1109/TPAMI.2008.277; winner-take-all on MLP activations: the code
      released as ordavid-s/snmf-mlp-decomposition; statistics and descent row by row: Mairal et al., arXiv:0908.0050.
    Example:
      >>> method = semi_nmf(n_latents=2, sparsity=0.5)
      >>> x = jnp.array([[1.0, -1.0, 0, 0], [0, 0, 2.0, 2.0], [3.0, -3.0, 1.0, 1.0]])
      >>> state, info = method.step(method.init(jax.random.key(0), {"x": x}), {"x": x})
      >>> (method.finish(state).W_dec != 0).sum(1).tolist()
      [2, 2]
    """
    for name, value, low, high in (
        *(("n_latents", n_latents, 1, 2**30), ("coefficient_steps", coefficient_steps, 1, 2**30)),
        ("start_steps", start_steps, 1, 2**30),
        *(("dead_after_tokens", dead_after_tokens, 1, 2**30), ("decay", decay, 0, 1)),
    ):
        if not low <= value <= high:
            raise UserError(f"semi_nmf: {name} = {value} is not between {low} and {high}.")
    checked(sparsity, guard, "semi_nmf")
    method = _SemiNMF(
        n_latents=n_latents,
        sparsity=sparsity,
        decay=decay,
        coefficient_steps=coefficient_steps,
        start_steps=start_steps,
        guard=guard,
        dead_after_tokens=dead_after_tokens,
    )
    return Method(init=method.init, step=compiled(method.step), finish=method.finish)
