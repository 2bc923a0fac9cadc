# SPDX-License-Identifier: Apache-2.0
"""Semi-NMF, x ~ G W with G >= 0 and W of free sign: its two updates, winner-take-all, and guards against huge tokens.

W is the transpose of the papers' F, one latent per row; tokens are the rows of x and G.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import lax
from jaxtyping import Array, Float

from ...errors import UserError, unknown
from .decoder import unit_rows

EPS: Final = 1e-6
"""Ridge of the basis (relative to the mean of diag(G^T G)) and floor of the update's denominator, as the authors'."""
NEGLIGIBLE: Final = 1e-3
"""A multiplicative update only approaches 0: coefficients below this share of the token's largest are off."""
_CLIP: Final = 4.0

GUARDS: Final[Mapping[str, Callable[[Array, Array], Array]]] = {
    "none": lambda norm, typical: jnp.ones_like(norm),
    "clip": lambda norm, typical: jnp.minimum(1, _CLIP * typical / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)),
    "unit": lambda norm, typical: jnp.where(norm > 0, 1 / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny), 0),
}
"""(norm of each token, median norm) -> factor of each token: as it is; at most 4 medians long; all of length 1."""


def dot(a: Float[Array, "n m"], b: Float[Array, "m k"], dtype: str = "float32") -> Float[Array, "n k"]:
    """a b with inputs of `dtype` and float32 sums (no TF32: the normal equations are ill-conditioned)."""
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def winners(w: Float[Array, "n_latents d"], share: float) -> Float[Array, "n_latents d"]:
    """Each row's ceil(share d) entries of largest size (and their equals); 0 elsewhere.

    Example:
      >>> winners(jnp.array([[3.0, -4.0, 1.0]]), 0.5).tolist()
      [[3.0, -4.0, 0.0]]
    """
    kept = max(1, math.ceil(share * w.shape[-1] - 1e-9))  # 0.07 x 100 is 7
    if kept >= w.shape[-1]:
        return w
    size = jnp.abs(w)
    least, at = lax.top_k(size, kept)
    # By index too: compiled, `size` may be computed twice, an ulp apart, and the least winner lose against itself.
    chosen = jnp.put_along_axis(jnp.zeros(w.shape, bool), at, True, axis=-1, inplace=False)
    return jnp.where(chosen | (size >= least[..., -1:]), w, 0)


def basis(cross: Float[Array, "n_latents d"], gram: Float[Array, "n_latents n_latents"]) -> Float[Array, "n_latents d"]:
    """(G^T G + eps I)^-1 G^T x from the two products: the least-squares W.

    Where float32 cannot factorise the matrix (latents that are copies of one another), with a ridge that it can.
    """
    eye = jnp.eye(gram.shape[0], dtype=jnp.float32)
    mean = jnp.maximum(jnp.trace(gram) / gram.shape[0], jnp.finfo(jnp.float32).tiny)

    def root(ridge: float) -> Array:
        return jnp.linalg.cholesky(gram + jnp.float32(ridge) * mean * eye)

    exact = root(EPS)
    safe = lax.cond(jnp.isfinite(exact).all(), lambda: exact, lambda: root(1e-6 * gram.shape[0]))
    return jsl.cho_solve((safe, True), cross)


def descended(
    w: Float[Array, "n_latents d"],
    cross: Float[Array, "n_latents d"],
    gram: Float[Array, "n_latents n_latents"],
    share: float,
) -> Float[Array, "n_latents d"]:
    """w_k = winners(w_k + (cross_k - gram_k W) / gram_kk), one latent after the other.

    Each is the best sparse row given the others, so |x - G W|^2 never rises, winner-take-all included; `basis` with
    `winners` does not have that, and without a best iterate to go back to it loses what it had found. A latent with
    less than 1e-6 of the mean use stays: there is nothing to learn it from.
    """
    least = jnp.float32(EPS) * jnp.trace(gram) / gram.shape[0]

    def row(k: Array, w: Array) -> Array:
        used = gram[k, k] > least
        slack = cross[k] - dot(gram[k][None], w)[0]
        best = winners((w[k] + slack / jnp.where(used, gram[k, k], 1))[None], share)[0]
        return w.at[k].set(jnp.where(used, best, w[k]))

    return lax.fori_loop(0, gram.shape[0], row, w)


def improved(
    g: Float[Array, "n n_latents"], p: Float[Array, "n n_latents"], q: Float[Array, "n_latents n_latents"]
) -> Float[Array, "n n_latents"]:
    """G sqrt((P+ + G Q-) / (P- + G Q+ + eps)) with P = x W^T, Q = W W^T: |x - G W|^2 does not rise, G stays >= 0.

    Source: Ding, Li and Jordan 2010, doi:10.1109/TPAMI.2008.277, equation 11.
    """
    rise = jnp.maximum(p, 0) + dot(g, jnp.maximum(-q, 0))
    fall = jnp.maximum(-p, 0) + dot(g, jnp.maximum(q, 0))
    return g * jnp.sqrt(rise / (fall + jnp.float32(EPS)))


def coefficients(x: Float[Array, "n d"], w: Float[Array, "n_latents d"], steps: int) -> Float[Array, "n n_latents"]:
    """Non-negative G for given W with unit rows, by `steps` updates from relu(P) + 1/100 on tokens of length 1.

    The same for a token whatever batch it stands in, and proportional to its length.
    """
    norm = jnp.sqrt(jnp.sum(jnp.square(x), 1, keepdims=True))
    p, q = dot(unit_rows(x), w.T), dot(w, w.T)
    g = lax.fori_loop(0, steps, lambda _, g: improved(g, p, q), jnp.maximum(p, 0) + jnp.float32(0.01))
    return norm * jnp.where(g > NEGLIGIBLE * jnp.max(g, 1, keepdims=True), g, 0)


def checked(sparsity: float, guard: str, where: str) -> None:
    """Refuse a share of neurons outside (0, 1] and an unknown guard."""
    if not 0 < sparsity <= 1:
        raise UserError(f"{where}: sparsity = {sparsity} is the share of neurons kept in each latent, in (0, 1].")
    if guard not in GUARDS:
        raise unknown("guard", guard, GUARDS, where=where)
