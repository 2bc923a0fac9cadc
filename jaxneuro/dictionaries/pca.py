# SPDX-License-Identifier: Apache-2.0
"""Principal components of a stream, as a Method: the baseline every sparse dictionary is compared with."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ..axes import aligned
from ..errors import UserError
from ..protocols import Method
from ..taps import reprs
from .parts.moments import Scatter, Summary, nothing_yet, row_count, summary, with_rows
from .parts.numbers import numbers_checked
from .parts.untargeted import check_first, read_x
from .shapes import apart, joined, of_width

LARGEST = 8192
"""Widest input whose scatter matrix is held: 2 x 256 MiB, and an eigendecomposition of minutes."""
_NEGLIGIBLE = 1e-7
"""Variances below this share of the largest are rounding in float32 data: not whitened."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PCADictionary:
    """Principal components. A pytree of arrays. Latents are signed: variance has no direction.

        z = (x - b_dec) W_enc;   x_hat = z W_dec + b_dec

    Unwhitened W_enc = W_dec^T with orthonormal rows in W_dec; whitened, latents have variance 1 and row i of W_dec has
    length sqrt(variance_i). Accumulated in float32; what comes out has the dtype of what went in.

    Example:
      >>> d = PCADictionary(W_enc=jnp.eye(2), W_dec=jnp.eye(2), b_dec=jnp.ones(2), variance=jnp.array([3.0, 1.0]),
      ...                   total_variance=jnp.float32(8))
      >>> d.encode(jnp.array([2.0, 0.0])).tolist(), d.explained_variance_ratio.tolist()
      ([1.0, -1.0], [0.375, 0.125])
    """

    W_enc: Float[Array, "d_in n_latents"]
    W_dec: Float[Array, "n_latents d_in"]
    b_dec: Float[Array, "d_in"]
    """Mean of the stream."""
    variance: Float[Array, "n_latents"]
    """Population variance along each component, descending."""
    total_variance: Float[Array, ""]
    """Of all d_in directions together."""

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
        """Number of components."""
        return self.W_dec.shape[0]

    @property
    def explained_variance_ratio(self) -> Float[Array, "n_latents"]:
        """Share of the total variance along each component; 1 minus their sum is the FVU."""
        return self.variance / self.total_variance

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Coordinates of x, signed, in x's dtype.

        Raises:
          UserError: values of another width.
        """
        x = joined(x, self.d_in)
        wide = x.astype(jnp.float32)
        centred = wide - aligned(self.b_dec.astype(jnp.float32), wide)
        return (centred @ self.W_enc.astype(jnp.float32)).astype(x.dtype)

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_in"]:
        """The reconstruction from coordinates, in z's dtype.

        Raises:
          UserError: another number of latents.
        """
        z = of_width(z, self.n_latents, what="latents to decode")
        x_hat = z.astype(jnp.float32) @ self.W_dec.astype(jnp.float32)
        return (x_hat + aligned(self.b_dec.astype(jnp.float32), x_hat)).astype(z.dtype)

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """decode(encode(x)), in x's dtype."""
        shape, x = jnp.shape(x), joined(x, self.d_in)
        return apart(self.decode(self.encode(x.astype(jnp.float32))).astype(x.dtype), shape)


class PCAState(NamedTuple):
    """What the next step needs."""

    scatter: Scatter
    skipped: Int[Array, ""]
    """Batches without a valid token."""


@numbers_checked
def pca(n_latents: int, *, whiten: bool = False, sketch: int | None = None) -> Method:
    """The n_latents directions of largest variance of batches {"x": [n, d], "mask": bool [n], optional}.

        C = sum_n (x_n - mean)(x_n - mean)^T / N = V diag(variance) V^T

    Exact: mean and scatter matrix are merged batch by batch (Chan) with their rounding errors carried along, so that
    neither the order nor the number of batches nor a mean far from zero costs digits; eigenvectors in float64 at the
    end. State: 8 d^2 bytes. Each component's sign makes its largest entry positive.

    `sketch` = w: the state is C Omega for a random orthonormal Omega [d, w], 12 d w bytes, and C is replaced by its
    Nystroem approximation C Omega (Omega^T C Omega)^-1 Omega^T C. One pass, any d; good if the variance beyond w / 2
    components is small, and never more variance per component than there is.

    Tokens with NaN or infinity are left out and counted in `info["nonfinite_tokens"]`.

    Args:
      n_latents: components.
      whiten: latents of variance 1; components without variance (below 1e-7 of the largest) give latents 0.
      sketch: width of Omega, at least n_latents; twice that is a good choice. None: exact.
    Returns:
      A Method; info: tokens (of this batch), variance (so far, summed over dimensions), nonfinite_tokens,
      skipped_batches. `finish` gives a `PCADictionary`.
    Raises:
      UserError: n_latents or sketch out of range; from `init`, more latents than dimensions or an input too wide for
        the exact way; from `finish`, no more tokens than latents.
    Source: Chan, Golub and LeVeque 1983; sketch: arXiv:1706.05736, algorithm 3 (Tropp, Yurtsever, Udell, Cevher).
    Example:
      >>> method = pca(n_latents=1)
      >>> batch = {"x": jnp.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])}
      >>> state, info = method.step(method.init(jax.random.key(0), batch), batch)
      >>> method.finish(state).W_dec.tolist(), float(info["variance"]).__round__(3)
      ([[1.0, 0.0]], 2.667)
    """
    if n_latents < 1:
        raise UserError(f"pca: n_latents = {n_latents} is below 1.")
    if sketch is not None and sketch < n_latents:
        raise UserError(f"pca: sketch = {sketch} is below n_latents = {n_latents}; {2 * n_latents} is a good choice.")

    def init(key: Key[Array, ""], batch: Any) -> PCAState:
        check_first(batch, "pca")
        d = batch["x"].shape[1]
        _check(d)
        return PCAState(nothing_yet(d, None if sketch is None else _orthonormal(key, d, sketch)), jnp.int32(0))

    def _check(d: int) -> None:
        if max(n_latents, sketch or 0) > d:
            raise UserError(f"pca: n_latents = {n_latents}, sketch = {sketch}, but the input has {d} dimensions.")
        if sketch is None and d > LARGEST:
            raise UserError(
                f"pca: {d} dimensions need a scatter matrix of {8 * d * d / 2**30:.1f} GiB (exact: d <= {LARGEST}). "
                f"Use sketch = {min(d, 2 * n_latents)}: {12 * d * min(d, 2 * n_latents) / 2**30:.2f} GiB."
            )

    def step(state: PCAState, batch: Any) -> tuple[PCAState, dict[str, Array]]:
        inputs = read_x(batch, "pca")
        scatter = with_rows(state.scatter, inputs.x, inputs.valid)
        new = PCAState(scatter, state.skipped + (inputs.tokens == 0).astype(jnp.int32))
        return new, {
            "tokens": inputs.tokens,
            "variance": scatter.total[0] / row_count(scatter),
            "nonfinite_tokens": inputs.broken,
            "skipped_batches": new.skipped,
        }

    def finish(state: PCAState) -> PCADictionary:
        found = summary(state.scatter)
        if found.count <= n_latents:
            raise UserError(f"pca: {found.count} tokens span no {n_latents} components. Stream more tokens.")
        omega = state.scatter.omega
        variance, rows = _eigh(found) if omega is None else _nystroem(found, np.asarray(omega, np.float64))
        return _dictionary(found, variance[:n_latents], rows[:n_latents], whiten)

    return Method(init, step, finish)


def _orthonormal(key: Key[Array, ""], d: int, width: int) -> Float[Array, "d w"]:
    return jnp.linalg.qr(jax.random.normal(key, (d, width), jnp.float32))[0]


def _eigh(found: Summary) -> tuple[np.ndarray, np.ndarray]:
    """(variances descending, directions as rows)."""
    values, vectors = np.linalg.eigh((found.covariance + found.covariance.T) / 2)
    return values[::-1], vectors.T[::-1]


def _nystroem(found: Summary, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of the Nystroem approximation, shifted while it is factorised so that a low rank does no harm."""
    shift = np.sqrt(len(omega)) * np.finfo(np.float32).eps * np.linalg.norm(found.covariance)
    y = found.covariance + shift * omega
    core = omega.T @ y
    root = np.linalg.cholesky((core + core.T) / 2)
    rows, values, _ = np.linalg.svd(np.linalg.solve(root, y.T).T, full_matrices=False)
    return values**2 - shift, rows.T


def _dictionary(found: Summary, variance: np.ndarray, rows: np.ndarray, whiten: bool) -> PCADictionary:
    variance = np.maximum(variance, 0)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)
    rows = rows * np.where(largest < 0, -1, 1)
    size = np.sqrt(np.where(variance > _NEGLIGIBLE * variance[0], variance, 0)) if whiten else np.ones(len(rows))
    inverse = np.divide(1, size, out=np.zeros_like(size), where=size > 0)
    arrays = {
        "W_enc": rows.T * inverse,
        "W_dec": rows * size[:, None],
        "b_dec": found.mean,
        "variance": variance,
        "total_variance": np.asarray(found.variance),
    }
    return PCADictionary(**{name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()})
