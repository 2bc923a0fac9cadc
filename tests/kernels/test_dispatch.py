# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs, and what is said when none can."""

import jax.numpy as jnp
import jaxneuro_kernels as kernels
import pytest
from jaxneuro_kernels.dispatch import Backend, choose

X = jnp.zeros((2, 8), jnp.float32)
IDX = jnp.zeros((2, 1), jnp.int32)
CALLS = {
    "topk": lambda **kw: kernels.topk(X, 2, **kw),
    "encode_topk": lambda **kw: kernels.encode_topk(X, X, X[:, 0], 1, **kw),
    "sparse_decode": lambda **kw: kernels.sparse_decode(X[:, :1], IDX, X, **kw),
    "gather_dot": lambda **kw: kernels.gather_dot(X, IDX, X, **kw),
    "row_sum": lambda **kw: kernels.row_sum(X[:, :1], IDX, X, 8, **kw),
    "sae_backward": lambda **kw: kernels.sae_backward(X[:, :1], IDX, X, X, X, **kw),
    "topk_mask": lambda **kw: kernels.topk_mask(X, 2, **kw),
    "batch_topk": lambda **kw: kernels.batch_topk(X, 2, **kw),
    "encode_batch_topk": lambda **kw: kernels.encode_batch_topk(X, X, X[:, 0], 1, **kw),
    "group_max": lambda **kw: kernels.group_max(X, 2, **kw),
    "encode_group_max": lambda **kw: kernels.encode_group_max(X, X, X[:, 0], 1, **kw),
}
CHOOSES = {"batch_topk": "topk", "encode_batch_topk": "encode_topk"}
"""Ops that leave the choice to another."""


@pytest.mark.parametrize("op", CALLS)
def test_every_op_takes_an_implementation(op):
    CALLS[op](implementation="xla")
    CALLS[op](implementation=("xla",))
    with pytest.raises(
        ValueError, match=rf"{CHOOSES.get(op, op)} has no implementation 'xal'. Did you mean 'xla'\? There are: .*xla"
    ):
        CALLS[op](implementation="xal")
    with pytest.raises(ValueError, match="empty sequence"):
        CALLS[op](implementation=())


def test_the_first_that_can_runs_and_reasons_are_kept():
    backends = {
        "fast": Backend(len, refuses=lambda x: f"needs even rows, x has {x}" if x % 2 else None),
        "wide": Backend(len, refuses=lambda x: "needs a TPU"),
        "xla": Backend(len),
    }
    assert choose("op", backends, ("fast", "xla"), 2).name == "fast"
    assert choose("op", backends, ("fast", "xla"), 3).name == "xla"
    with pytest.raises(ExceptionGroup, match="no implementation of fast, wide can take this call") as caught:
        choose("op", backends, ("fast", "wide"), 3)
    reasons = [str(e) for e in caught.value.exceptions]
    assert reasons == ["op: fast cannot run here: needs even rows, x has 3", "op: wide cannot run here: needs a TPU"]
    assert all(isinstance(e, NotImplementedError) for e in caught.value.exceptions)
