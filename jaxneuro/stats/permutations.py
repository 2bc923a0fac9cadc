# SPDX-License-Identifier: Apache-2.0
"""Labels permuted between whole blocks (documents), and how many different labellings that allows."""

import math

import numpy as np

from ..errors import UserError


def permuted_labels(label: np.ndarray, n: int, seed: int, *, block: np.ndarray | None = None) -> np.ndarray:
    """The true labels of items and n permutations of them that move whole blocks.

    All items of a block get the label of one block, so every group keeps its number of blocks. Where blocks are of
    unequal length a group does not keep its number of items: compare statistics that allow for that (average precision
    above its chance level, rates). The permutation test is exact if blocks, their lengths included, are exchangeable
    between groups when labels mean nothing.

    Args:
      label: integers [n_items].
      n: permutations, at least 0. They are drawn with replacement, and may repeat the truth: counted with the truth,
        as (1 + number at least as large) / (1 + n), their p-values are valid (Phipson and Smyth 2010).
      seed: column s depends on seed and s alone, so more permutations keep the first ones.
      block: integers [n_items], equal for items that are not independent (windows of a document). None: every item is
        a block of its own; right only if items are independent.
    Returns:
      int32 [n_items, 1 + n], column 0 the true labels.
    Raises:
      UserError: n or seed is negative, lengths differ, or a block has items of several labels.
    Example:
      >>> permuted_labels(np.array([0, 0, 1]), 2, seed=0, block=np.array([5, 5, 6]))[:, 1:].T.tolist()
      [[0, 0, 1], [0, 0, 1]]
    """
    if n < 0 or seed < 0:
        raise UserError(f"n_shuffles={n}, seed={seed}: both must be at least 0.")
    label = np.asarray(label, np.int32)
    mine, of_block = labels_of_blocks(label, block)
    columns = (of_block, *(np.random.default_rng([seed, s]).permutation(of_block) for s in range(n)))
    return np.stack(columns, 1)[mine]


def labels_of_blocks(label: np.ndarray, block: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every item's block as a number 0 .. n_blocks - 1, in order of first appearance, and every block's label.

    Raises:
      UserError: lengths differ, or a block has items of several labels.
    Example:
      >>> number, labels = labels_of_blocks(np.array([2, 2, 0]), np.array([9, 9, 4]))
      >>> number.tolist(), labels.tolist()
      ([0, 0, 1], [2, 0])
    """
    label = np.asarray(label)
    block = np.arange(len(label)) if block is None else np.asarray(block)
    if block.shape != label.shape or label.ndim != 1:
        raise UserError(f"labels {label.shape} and blocks {block.shape}: one block per item is needed.")
    _, first, number = np.unique(block, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number, of_block = np.argsort(order, kind="stable")[number], label[first[order]]
    if (bad := np.flatnonzero(of_block[number] != label)).size:
        i = bad[0]
        raise UserError(
            f"block {block[i]} has items of the groups {of_block[number[i]]} and {label[i]}. Labels move between whole "
            "blocks, so a block must lie in one group; a document that is in two groups tells them not apart."
        )
    return number, of_block


def merged_blocks(label: np.ndarray, block: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` blocks per group, so that counts per block stay small however many documents there are.

    Blocks of one group are dealt out in turn, the largest first, so that the merged ones are of similar size. A union
    of independent blocks is one too: permutations of merged blocks are a valid null, with fewer labellings.

    Args:
      label, block: integers [n_items].
      most: blocks per group, at least 1.
    Returns:
      int32 [n_items], numbers 0 .. D - 1, and int32 [D], every merged block's label.
    Example:
      >>> number, labels = merged_blocks(np.array([0, 0, 0, 1]), np.array([4, 5, 6, 7]), 2)
      >>> number.tolist(), labels.tolist()
      ([0, 1, 0, 2], [0, 0, 1])
    """
    mine, of_block = labels_of_blocks(label, block)
    size, place, labels = np.bincount(mine), np.zeros(len(of_block), np.int32), []
    for k in np.unique(of_block):
        here = np.flatnonzero(of_block == k)
        n = min(most, len(here))
        place[here[np.argsort(-size[here], kind="stable")]] = len(labels) + np.arange(len(here)) % n
        labels += [k] * n
    return place[mine], np.array(labels, np.int32)


def counted_labellings(blocks: np.ndarray) -> float:
    """Different labellings of all blocks that keep every group's number: D! / prod_k D_k!, inf beyond 1e308.

    Example:
      >>> counted_labellings(np.array([2, 2])), counted_labellings(np.array([1, 1, 1]))
      (6.0, 6.0)
    """
    log = math.lgamma(sum(blocks) + 1) - sum(math.lgamma(int(b) + 1) for b in blocks)
    return float(round(math.exp(log))) if log < 35 else math.exp(log) if log < 709 else math.inf


def smallest_p(blocks: np.ndarray) -> np.ndarray:
    """The smallest p-value that each group can reach against all others: 1 / C(D, D_k), whatever its neurons do.

    Args:
      blocks: integers [K], blocks (documents) per group.
    Returns:
      float64 [K]
    Example:
      >>> smallest_p(np.array([2, 2])).round(3).tolist()
      [0.167, 0.167]
    """
    every = int(np.sum(blocks))
    return np.array([1 / math.comb(every, int(b)) if every < 10_000 else 0.0 if b else 1.0 for b in blocks])
