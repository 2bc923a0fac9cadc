# SPDX-License-Identifier: Apache-2.0
"""Communities of a weighted graph by description length: a stochastic block model says how many there are.

Own formulas from the likelihoods (microcanonical block models, exponential weights with a conjugate prior); the authors
of arXiv:2402.14102 use graph-tool's nested model, with which this was not compared.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln

from ..errors import UserError

STARTS = (1, 2, 3, 5, 8, 12, 18, 27)
"""Blocks to begin with: merging finds the numbers between."""
LARGEST_GRAPH = 400
"""Nodes. One pass over a graph of n nodes with B blocks takes n B (n + B^2) steps on the host."""


class Blocks(NamedTuple):
    """What `block_model` found."""

    label: Int[np.ndarray, "nodes"]
    """0 is the block with the largest mean weight inside, then the next."""
    description_length: float
    """Nats that say the graph and its weights; lower is better."""
    one_block: float
    """The same with all nodes in one block: what is gained is the difference."""
    corrected: bool
    """Whether the model in which nodes differ in degree was the shorter one."""


def block_model(graph: Float[np.ndarray, "nodes nodes"], *, most: int = 12, seed: int = 0) -> Blocks:
    """The partition of a graph's nodes that describes edges and weights in the fewest nats.

        L = L(partition) + L(edges per pair of blocks) + L(which edges | their numbers) + L(weights | blocks)
        L(weights) of e edges with sum w:  -ln Gamma(e + 1) + (e + 1) ln(w + m) - ln m,     m the mean weight

    An edge is a weight above 0. Weights are exponential with one rate per pair of blocks, whose prior is exponential
    with the mean 1 / m. Edges are placed uniformly between blocks, or, where that is shorter, by degree. Starts:
    spectral clusters of 1, 2, 3, 5, 8 ... parts; then single nodes move and blocks merge as long as L falls.

    Args:
      graph: symmetric, non-negative, zeros on the diagonal.
      most: blocks to begin with, at most.
      seed: of the order in which nodes are tried.
    Raises:
      UserError: no such graph, or one of more than 400 nodes.
    Source: Peixoto 2017 (arXiv:1705.10225) for the terms of the edges, equations 9, 31, 40, 47; weights: conjugate
      integral, ours.
    Example:
      >>> two = np.kron(np.eye(2), np.ones((4, 4))) * 5 + 0.1
      >>> block_model(two - np.diag(np.diag(two))).label.tolist()
      [0, 0, 0, 0, 1, 1, 1, 1]
    """
    graph = _checked(graph)
    order = np.random.default_rng(seed).permutation(len(graph))
    starts = [_spectral(graph, b) for b in STARTS if b <= min(most, len(graph))]
    found = [_descended(graph, start, corrected, order) for corrected in (False, True) for start in starts]
    length, corrected, label = min(found, key=lambda f: f[0])
    alone = min(_nats(_sums(graph, starts[0]), graph, corrected) for corrected in (False, True))
    return Blocks(_by_weight(graph, label), length, alone, corrected)


def communities_of(graph: Float[np.ndarray, "nodes nodes"], **options: int) -> Int[np.ndarray, "nodes"]:
    """Communities by number, from 1; 0 for nodes of a block no denser inside than the graph is on average.

    Example:
      >>> dense = np.full((8, 8), 0.1)
      >>> dense[:4, :4] = 5
      >>> communities_of(dense - np.diag(np.diag(dense))).tolist()
      [1, 1, 1, 1, 0, 0, 0, 0]
    """
    found = block_model(graph, **options)
    inside, whole = _inside(np.asarray(graph, np.float64), found.label), _mean(np.asarray(graph, np.float64))
    number = np.cumsum(inside > whole) * (inside > whole)
    return number[found.label].astype(np.int32) if len(inside) > 1 else np.zeros(len(found.label), np.int32)


def _checked(graph: np.ndarray) -> np.ndarray:
    graph = np.asarray(graph, np.float64)
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or not 2 <= len(graph) <= LARGEST_GRAPH:
        raise UserError(
            f"block_model: a graph of shape {graph.shape}; it must be square, of 2 to {LARGEST_GRAPH} nodes."
        )
    if not np.isfinite(graph).all() or graph.min() < 0 or graph.diagonal().any() or not np.allclose(graph, graph.T):
        raise UserError("block_model: the graph must be finite, symmetric, not negative, and 0 on its diagonal.")
    return graph


def _spectral(graph: np.ndarray, blocks: int) -> np.ndarray:
    """A start: k-means of the rows of the normalised graph's leading eigenvectors, from centres far apart."""
    degree = graph.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    vectors = np.linalg.eigh(scale[:, None] * graph * scale)[1][:, -blocks:]
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centres = rows[[int(np.argmax(degree))]]
    while len(centres) < blocks:
        apart = np.square(rows[:, None] - centres).sum(-1).min(1)
        centres = np.concatenate([centres, rows[[int(np.argmax(apart))]]])
    for _ in range(20):
        label = _nearest(rows, centres)
        centres = np.stack([rows[label == b].mean(0) if (label == b).any() else centres[b] for b in range(blocks)])
    return _numbered(_nearest(rows, centres))


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.square(rows[:, None] - centres).sum(-1).argmin(1)


def _numbered(label: np.ndarray) -> np.ndarray:
    return np.unique(label, return_inverse=True)[1]


class _Sums(NamedTuple):
    """What a description needs of a partition: nodes per block, edges and weight between blocks (inside one: twice)."""

    size: np.ndarray
    edges: np.ndarray
    weight: np.ndarray


def _sums(graph: np.ndarray, label: np.ndarray) -> _Sums:
    member = np.eye(label.max() + 1)[label]
    return _Sums(member.sum(0), member.T @ (graph > 0) @ member, member.T @ graph @ member)


def _descended(
    graph: np.ndarray, label: np.ndarray, corrected: bool, order: np.ndarray
) -> tuple[float, bool, np.ndarray]:
    """Moves of single nodes, then merges of blocks, until neither shortens the description."""
    length = _nats(_sums(graph, label), graph, corrected)
    while True:
        label = _merged(graph, _moved(graph, label, corrected, order), corrected)
        before, length = length, _nats(_sums(graph, label), graph, corrected)
        if length >= before - _LEAST:
            return length, corrected, label


_LEAST = 1e-9


def _moved(graph: np.ndarray, label: np.ndarray, corrected: bool, order: np.ndarray) -> np.ndarray:
    label, sums = label.copy(), _sums(graph, label)
    best = _nats(sums, graph, corrected)
    for node in order:
        options = [_with_move(sums, graph, label, node, block) for block in range(len(sums.size))]
        lengths = [_nats(option, graph, corrected) for option in options]
        if lengths[block := int(np.argmin(lengths))] < best - _LEAST:
            best, sums, label[node] = lengths[block], options[block], block
    return _numbered(label)


def _with_move(sums: _Sums, graph: np.ndarray, label: np.ndarray, node: int, block: int) -> _Sums:
    """The sums after one node has gone to a block."""
    change = np.zeros(len(sums.size))
    change[label[node]] -= 1
    change[block] += 1

    def moved(between: np.ndarray, row: np.ndarray) -> np.ndarray:
        to = np.bincount(label, row, len(change))
        return between + np.outer(change, to) + np.outer(to, change)

    row = graph[node]
    return _Sums(sums.size + change, moved(sums.edges, row > 0), moved(sums.weight, row))


def _merged(graph: np.ndarray, label: np.ndarray, corrected: bool) -> np.ndarray:
    best = _nats(_sums(graph, label), graph, corrected)
    while (n := label.max() + 1) > 1:
        tried = [_numbered(np.where(label == r, s, label)) for r in range(n) for s in range(r)]
        lengths = [_nats(_sums(graph, t), graph, corrected) for t in tried]
        if min(lengths) >= best - _LEAST:
            break
        best, label = min(lengths), tried[int(np.argmin(lengths))]
    return label


def _nats(sums: _Sums, graph: np.ndarray, corrected: bool) -> float:
    """Description length in nats; see `block_model`. Empty blocks are none."""
    some = sums.size > 0.5
    size, edges, weight = sums.size[some], sums.edges[np.ix_(some, some)], sums.weight[np.ix_(some, some)]
    n, upper = len(graph), np.triu_indices(len(size))
    halves = np.where(np.equal(*upper), 0.5, 1.0)  # inside a block each edge is met twice
    e, w = edges[upper] * halves, np.maximum(weight[upper] * halves, 0)
    total = e.sum()
    partition = math.log(n) + _ln_choose(n - 1, len(size) - 1) + gammaln(n + 1) - gammaln(size + 1).sum()
    numbers = _ln_choose(len(e) + total - 1, total)
    if corrected:
        placed = _placed_by_degree(size, edges, (graph > 0).sum(1))
    else:
        room = (size[:, None] * size - np.diag(size))[upper] * halves
        placed = _ln_choose(room, e).sum()
    mean = w.sum() / total if total else 1.0
    weights = (-gammaln(e + 1) + (e + 1) * np.log(w + mean) - math.log(mean))[e > 0].sum()
    return float(partition + numbers + placed + weights)


def _placed_by_degree(size: np.ndarray, edges: np.ndarray, degree: np.ndarray) -> float:
    """Where the edges are, given their numbers and every node's degree; and the degrees, uniform in each block."""
    ends, inside = edges.sum(1), np.diag(edges) / 2
    across = gammaln(edges[np.triu_indices(len(size), 1)] + 1).sum()
    within = (inside * math.log(2) + gammaln(inside + 1)).sum()
    placed = gammaln(ends + 1).sum() - across - within - gammaln(degree + 1).sum()
    return placed + _ln_choose(size + ends - 1, ends).sum()


def _ln_choose(n, k):
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _by_weight(graph: np.ndarray, label: np.ndarray) -> np.ndarray:
    rank = np.argsort(-_inside(graph, label), kind="stable")
    return np.argsort(rank)[label].astype(np.int32)


def _inside(graph: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Mean weight between nodes of each block; 0 for one node."""
    return np.array([_mean(graph[np.ix_(label == b, label == b)]) for b in range(label.max() + 1)])


def _mean(graph: np.ndarray) -> float:
    n = len(graph)
    return float(graph.sum() / (n * (n - 1))) if n > 1 else 0.0
