# SPDX-License-Identifier: Apache-2.0
"""Mini-batch k-means (Sculley 2010) as a Method."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from ..axes import aligned
from ..errors import UserError
from ..protocols import Method
from ..taps import reprs
from ..taps.compiled import compiled
from .parts.clusters import cluster_sums, nearest, plus_plus
from .parts.decoder import unit_rows
from .parts.numbers import numbers_checked
from .parts.reseed import drawn_tokens, step_key
from .parts.silence import LONGEST, silent_tokens
from .parts.start import deviation, masked_mean
from .parts.untargeted import check_first, read_x
from .shapes import apart, code, joined, of_width

_EXACT = lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeansDictionary:
    """Centroids: one active latent per token.

        j = argmin_j |x - c_j|;   z_j = 1, or relu(x . c_j) if spherical;   x_hat = z W_dec

    Accumulated in float32; what comes out has the dtype of what went in.

    Example:
      >>> d = KMeansDictionary(W_dec=jnp.array([[0.0, 0.0], [4.0, 4.0]]))
      >>> d.encode(jnp.array([3.0, 5.0])).tolist(), d(jnp.array([3.0, 5.0])).tolist()
      ([0.0, 1.0], [4.0, 4.0])
    """

    W_dec: Float[Array, "n_latents d_in"]
    """The centroids; of norm 1 if spherical."""
    spherical: bool = dataclasses.field(default=False, metadata={"static": True})

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
        """Number of centroids."""
        return self.W_dec.shape[0]

    def encode_sparse(self, x: Float[Array, "*batch d_in"]) -> tuple[Float[Array, "*batch 1"], Int[Array, "*batch 1"]]:
        """(value, index) of the one active latent, float32.

        Raises:
          UserError: values of another width.
        """
        x = joined(x, self.d_in)
        rows, centroids = x.reshape(-1, self.d_in).astype(jnp.float32), self.W_dec.astype(jnp.float32)
        if self.spherical:
            index = nearest(unit_rows(rows), centroids)[1]
            value = jax.nn.relu(jnp.sum(rows * centroids[index], 1))
        else:
            centre = jnp.mean(centroids, 0, keepdims=True)
            index = nearest(rows - centre, centroids - centre)[1]
            value = jnp.ones_like(rows[:, 0])
        return value.reshape(*x.shape[:-1], 1), index.reshape(*x.shape[:-1], 1)

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Latents of x, one nonzero per token, in x's dtype. Holds [batch, n_latents]; see `encode_sparse`.

        Raises:
          UserError: values of another width.
        """
        x = joined(x, self.d_in)
        value, index = self.encode_sparse(x)
        every = jnp.arange(self.n_latents, dtype=jnp.int32)
        return jnp.where(index == aligned(every, index), value, jnp.float32(0)).astype(x.dtype)

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_in"]:
        """z W_dec, in z's dtype.

        Raises:
          UserError: another number of latents.
        """
        z = of_width(z, self.n_latents, what="latents to decode")
        return jnp.matmul(z.astype(jnp.float32), self.W_dec.astype(jnp.float32), precision=_EXACT).astype(z.dtype)

    def decode_sparse(self, vals: Float[Array, "*batch k"], idx: Int[Array, "*batch k"]) -> Float[Array, "*batch d_in"]:
        """The reconstruction from what `encode_sparse` returned, float32.

        Raises:
          UserError: no such code, or an index of no latent.
        """
        return self._decoded(*code(vals, idx, self.n_latents))

    def _decoded(self, vals: Array, idx: Array) -> Array:
        return jnp.sum(vals[..., None] * self.W_dec.astype(jnp.float32)[idx], -2)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """The nearest centroid (spherical: times the token's length along it), in x's dtype."""
        shape, x = jnp.shape(x), joined(x, self.d_in)
        return apart(self._decoded(*self.encode_sparse(x)).astype(x.dtype), shape)


class KMeansState(NamedTuple):
    """What the next step needs."""

    centroids: Float[Array, "n_latents d"]
    """Relative to `centre`."""
    centre: Float[Array, "d"]
    """Mean of the first batch (spherical: zeros): distances are computed from there."""
    counts: Int[Array, "n_latents"]
    """Tokens each centroid is the mean of, at most `memory_tokens`."""
    silent: Int[Array, "n_latents"]
    """Tokens since each was nearest to one."""
    seed: UInt32[Array, ""]
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    """Batches without a valid token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _KMeans:
    n_latents: int
    spherical: bool
    memory_tokens: int
    dead_after_tokens: int

    def init(self, key: Key[Array, ""], batch: Any) -> KMeansState:
        check_first(batch, "kmeans", self.n_latents)
        inputs = read_x(batch, "kmeans")
        mean = masked_mean(inputs.x, inputs.valid)
        centre = jnp.zeros_like(mean) if self.spherical else mean
        start_key, seed_key = jax.random.split(key)
        x = self._placed(inputs.x, inputs.valid, centre)
        return KMeansState(
            centroids=plus_plus(start_key, x, inputs.valid, self.n_latents),
            centre=centre,
            counts=jnp.zeros(self.n_latents, jnp.int32),
            silent=jnp.zeros(self.n_latents, jnp.int32),
            seed=jax.random.bits(seed_key),
            step=jnp.int32(0),
            skipped=jnp.int32(0),
        )

    def step(self, state: KMeansState, batch: Any) -> tuple[KMeansState, dict[str, Array]]:
        inputs = read_x(batch, "kmeans")
        x = self._placed(inputs.x, inputs.valid, state.centre)
        distance, index = nearest(x, state.centroids)
        distance = jnp.where(inputs.valid, distance, 0)
        index = jnp.where(inputs.valid, index, self.n_latents)
        sums, now = cluster_sums(x, index, self.n_latents)
        counts = jnp.minimum(state.counts + now, self.memory_tokens)
        silent = silent_tokens(state.silent, now > 0, inputs.tokens)
        dead = silent >= self.dead_after_tokens
        again, token = drawn_tokens(step_key(state.seed, state.step), dead, distance)
        new = KMeansState(
            centroids=jnp.where(again[:, None], x[token], self._moved(state.centroids, sums, now, counts)),
            centre=state.centre,
            counts=jnp.where(again, 0, counts),
            silent=jnp.where(again, 0, silent),
            seed=state.seed,
            step=state.step + 1,
            skipped=state.skipped + (inputs.tokens == 0).astype(jnp.int32),
        )
        loss = jnp.sum(distance) / inputs.divisor
        return new, {
            "loss": loss,
            "fvu": loss / deviation(x, inputs.valid),
            "dead_fraction": jnp.mean(dead.astype(jnp.float32)),
            "reseeded": jnp.sum(again, dtype=jnp.int32),
            "tokens": inputs.tokens,
            "nonfinite_tokens": inputs.broken,
            "skipped_batches": new.skipped,
        }

    def finish(self, state: KMeansState) -> KMeansDictionary:
        return KMeansDictionary(W_dec=state.centroids + state.centre[None], spherical=self.spherical)

    def _placed(self, x: Array, valid: Array, centre: Array) -> Array:
        """Tokens where distances are computed: centred, or on the unit sphere. Zeros where not valid."""
        return unit_rows(x) if self.spherical else jnp.where(valid[:, None], x - centre[None], 0)

    def _moved(self, centroids: Array, sums: Array, now: Array, counts: Array) -> Array:
        """c += (n_b / n)(mean_b - c): the mean of the tokens so far, or as it was; on the sphere, normalised."""
        n_b = now.astype(jnp.float32)[:, None]
        rate = jnp.minimum(n_b / jnp.maximum(counts, 1).astype(jnp.float32)[:, None], 1)
        moved = centroids + rate * (sums / jnp.maximum(n_b, 1) - centroids)
        return jnp.where(n_b > 0, unit_rows(moved) if self.spherical else moved, centroids)


@numbers_checked
def kmeans(
    n_latents: int, *, spherical: bool = False, memory_tokens: int = LONGEST, dead_after_tokens: int | None = None
) -> Method:
    """Centroids of batches {"x": [n, d], "mask": bool [n], optional}, each the mean of the tokens nearest to it.

        n_j += n_bj;   c_j += (n_bj / n_j)(mean_bj - c_j)                            for the n_bj tokens nearest to c_j

    Start: greedy k-means++ on the first batch (which is then learned from as well). A centroid that was nearest to no
    token for `dead_after_tokens` tokens begins again at a token of the batch, drawn with P proportional to its squared
    distance from its centroid. Distances exist for a bounded block of centroids at a time.

    Args:
      n_latents: centroids; at most the tokens of the first batch.
      spherical: tokens and centroids on the unit sphere, i.e. by cosine (Dhillon and Modha 2001).
      memory_tokens: n_j stops here, so that centroids forget their past at rate 1 / memory_tokens. Default: never.
      dead_after_tokens: see above. None: 100 n_latents.
    Returns:
      A Method; info: loss (mean squared distance, before the update), fvu (of the batch), dead_fraction, reseeded,
      tokens, nonfinite_tokens, skipped_batches. `finish` gives a `KMeansDictionary`.
    Raises:
      UserError: numbers out of range; from `init`, fewer valid tokens than centroids.
    Source: Sculley 2010, doi:10.1145/1772690.1772862 (its per-token rates, summed over the batch, are this formula).
    Example:
      >>> method = kmeans(n_latents=2)
      >>> batch = {"x": jnp.array([[0.0], [1.0], [8.0], [9.0]])}
      >>> state, info = method.step(method.init(jax.random.key(0), batch), batch)
      >>> sorted(method.finish(state).W_dec.ravel().tolist())
      [0.5, 8.5]
    """
    dead_after_tokens = 100 * n_latents if dead_after_tokens is None else dead_after_tokens
    asked = {"n_latents": n_latents, "memory_tokens": memory_tokens, "dead_after_tokens": dead_after_tokens}
    for name, value in asked.items():
        if not 1 <= value <= LONGEST:
            raise UserError(f"kmeans: {name} = {value} is not between 1 and 2^30.")
    method = _KMeans(
        n_latents=n_latents,
        spherical=spherical,
        memory_tokens=memory_tokens,
        dead_after_tokens=dead_after_tokens,
    )
    return Method(init=method.init, step=compiled(method.step), finish=method.finish)
