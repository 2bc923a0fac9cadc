# SPDX-License-Identifier: Apache-2.0
"""Dynamic connectomes: an affinity tensor from activity traces, and communities from the loadings of its components.

Not a reproduction of arXiv:2402.14102. That paper's affinity formula, its regularisation and its choice of rank could
not be verified; what is here is a generic construction with the properties its abstract names (pairwise, non-linear,
local in time, non-negative, from concurrent changes). Communities are those of a stochastic block model
(`block_model.py`), as in the paper, or of spectral clustering where their number is given. How many components there
are is judged beside traces that are each rolled by a lag of its own (`cp_null.py`).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ..errors import UserError
from .block_model import block_model, communities_of
from .cp import CP
from .parts.clusters import lloyd
from .parts.decoder import unit_rows


def pair_index(n_neurons: int) -> Int[np.ndarray, "pairs 2"]:
    """The pairs (i, j), i < j, in the order of an affinity tensor's first axis.

    Example:
      >>> pair_index(3).tolist()
      [[0, 1], [0, 2], [1, 2]]
    """
    return np.stack(np.triu_indices(n_neurons, 1), 1).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("smooth", "window", "scale"))
def affinity(
    traces: Float[Array, "subjects time neurons"],
    *,
    smooth: float = 1.0,
    window: float = 2.0,
    scale: Literal["neuron", "global"] = "neuron",
) -> Float[Array, "pairs time subjects"]:
    """How much two traces change together at each time.

        d_i(t) = central difference of the smoothed trace, divided by a root mean square
        a_ij(t) = Gaussian average over t of sqrt(max(0, d_i d_j))

    Args:
      traces: activations over time (tokens, checkpoints) of subjects (layers, seeds, documents).
      smooth, window: standard deviations in time steps of the two Gaussians; 0: none.
      scale: "neuron": each trace's own root mean square, so that the noise of a silent neuron counts as much as the
        signal of a loud one; "global": that of all traces of the subject, so that amplitude counts.
    Returns:
      The tensor for `nonnegative_cp`: n (n - 1) / 2 pairs, so restrict it to some hundred neurons. A constant trace
      has affinity 0 with all.
    Example:
      >>> t = jnp.linspace(0, 6, 20)
      >>> x = jnp.stack([jnp.sin(t), jnp.sin(t), -jnp.sin(t)], 1)[None]
      >>> (affinity(x).mean((1, 2)) > 0.1).tolist()
      [True, False, False]
    """
    smoothed = _averaged(traces.astype(jnp.float32), smooth)
    rate = jnp.asarray(jnp.gradient(smoothed, axis=1))
    rms = jnp.sqrt(jnp.mean(jnp.square(rate), axis=1, keepdims=True))
    if scale == "global":
        rms = jnp.broadcast_to(jnp.sqrt(jnp.mean(jnp.square(rms), axis=2, keepdims=True)), rms.shape)
    moves = rms > jnp.float32(1e-6) * jnp.sqrt(jnp.mean(jnp.square(smoothed), axis=1, keepdims=True))  # not rounding
    rate = jnp.where(moves, rate / jnp.where(moves, rms, 1), 0)
    i, j = pair_index(traces.shape[2]).T
    together = jnp.sqrt(jnp.maximum(rate[..., i] * rate[..., j], 0))
    return jnp.moveaxis(_averaged(together, window), (0, 1, 2), (2, 1, 0))


def _averaged(x: Array, sd: float) -> Array:
    """Gaussian average along axis 1 over what is there: weights are renormalised at the ends."""
    t = jnp.arange(x.shape[1], dtype=jnp.float32)
    apart = t[:, None] - t[None]
    weight = jnp.exp(-jnp.square(apart / max(sd, 1e-6)) / 2)
    weight = weight / jnp.sum(weight, 1, keepdims=True)
    return jnp.einsum("tu,sun->stn", weight, x, precision=lax.Precision.HIGHEST)


def pair_mask(present: Bool[Array, "subjects neurons"]) -> Bool[Array, "pairs 1 subjects"]:
    """Mask of an affinity tensor: a pair counts in a subject that has both neurons.

    Example:
      >>> pair_mask(jnp.array([[True, True, False]]))[:, 0, 0].tolist()
      [True, False, False]
    """
    i, j = pair_index(present.shape[1]).T
    return (present[:, i] & present[:, j]).T[:, None, :]


def pair_matrix(loading: Float[Array, "pairs"], n_neurons: int) -> Float[Array, "neurons neurons"]:
    """A pair loading as a symmetric matrix with zeros on the diagonal.

    Raises:
      UserError: a loading that is not of n_neurons (n_neurons - 1) / 2 pairs.
    """
    pairs = pair_index(n_neurons)
    if loading.shape != (len(pairs),):
        raise UserError(f"a loading of {n_neurons} neurons has {len(pairs)} pairs; this one is {list(loading.shape)}.")
    i, j = pairs.T
    half = jnp.zeros((n_neurons, n_neurons), jnp.float32).at[i, j].set(loading.astype(jnp.float32))
    return half + half.T


def component_communities(cp: CP, n_neurons: int, *, mode: int = 0) -> Int[np.ndarray, "components neurons"]:
    """Communities of the neurons in every component: a neuron may belong to those of several.

    Args:
      cp: of an affinity tensor.
      n_neurons: how many neurons its pairs are of, at most 400.
      mode: the axis of pairs.
    Returns:
      int32: 0 for neurons of no community of that component, then from 1 by falling mean weight inside (`block_model`).
    Example:
      >>> both = [(pair_index(8) < 4).all(1), (pair_index(8) >= 4).all(1)]
      >>> loadings = jnp.asarray(np.where(both, 5.0, 0.1).T)
      >>> component_communities(CP((loadings,), jnp.ones(2), jnp.float32(0), jnp.int32(1)), 8).tolist()
      [[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]
    """
    graphs = [np.asarray(pair_matrix(loading, n_neurons)) for loading in cp.factors[mode].T]
    return np.stack([communities_of(graph) for graph in graphs])


def communities(
    loading: Float[Array, "pairs"],
    n_neurons: int,
    n_communities: int | None = None,
    *,
    key: Key[Array, ""] | None = None,
) -> Int[Array, "neurons"]:
    """Communities of neurons in one component, its pair loading being a weighted graph.

    Their number is chosen by description length (`block_model`), or given; then by spectral clustering:

        L = D^-1/2 A D^-1/2;  rows of its first n_communities eigenvectors, on the unit sphere, by k-means

    Args:
      loading: non-negative, e.g. `cp.factors[0][:, r]`.
      n_neurons: how many neurons the pairs are of.
      n_communities: how many to find; neurons without any weight end up anywhere. None: as many as describe the graph
        in the fewest nats, of at most 400 neurons; all are then in one of the blocks.
      key: of k-means, where the number is given.
    Raises:
      UserError: numbers that do not fit.
    Source: Peixoto 2017 (block model); Ng, Jordan and Weiss 2001 (normalised spectral clustering).
    Example:
      >>> A = jnp.zeros((4, 4)).at[0, 1].set(1.0).at[2, 3].set(1.0)
      >>> i, j = pair_index(4).T
      >>> label = communities(A[i, j], 4, 2, key=jax.random.key(0))
      >>> bool(label[0] == label[1]), bool(label[2] == label[3]), bool(label[0] == label[2])
      (True, True, False)
    """
    if n_communities is None:
        return jnp.asarray(block_model(np.asarray(pair_matrix(loading, n_neurons))).label)
    if key is None:
        raise UserError("communities: a number of communities needs a key, such as jax.random.key(0), for k-means.")
    if not 1 <= n_communities <= n_neurons:
        raise UserError(f"communities: {n_communities} communities of {n_neurons} neurons: between 1 and their number.")
    graph = pair_matrix(loading, n_neurons)
    degree = jnp.sum(graph, 1)
    scale = jnp.where(degree > 0, lax.rsqrt(jnp.where(degree > 0, degree, 1)), 0)
    vectors = jnp.linalg.eigh(scale[:, None] * graph * scale[None])[1][:, -n_communities:]
    return lloyd(unit_rows(vectors), n_communities, key=key, steps=50)[1]
