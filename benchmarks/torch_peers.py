# SPDX-License-Identifier: Apache-2.0
"""PyTorch beside us: the same sparse work as a PyTorch user writes it, and with two published sets of Triton kernels.

Needs torch; runs on the GPU that JAX uses, else on the CPU. Gradients are written out, restricted to the chosen
entries, so that nothing of size [tokens, n_latents] exists after the selection. Eager, Adam fused.
"""

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .harness import Program, cores, told

warnings.filterwarnings("ignore", "Sparse CSC tensor support is in beta", UserWarning)


CHUNK_BYTES: Final = 1 << 28
"""Of products [entries, d], held at once on their way into `index_add_`."""
ON_GPU: Final = jax.default_backend() == "gpu" and torch.cuda.is_available()
PUBLISHED: Final = {"sparsify": ("fused_encoder", "xformers"), "sparse_autoencoder": ("kernels",)}
"""Importable package -> the modules that are called: EleutherAI's and OpenAI's."""


class Peak:
    """Most bytes allocated on the card beyond what was there at the last call."""

    def __init__(self) -> None:
        self.before = 0

    def __call__(self) -> int:
        most = torch.cuda.max_memory_allocated() - self.before
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        return most


def tensor(a: jax.Array) -> Tensor:
    """A JAX array's numbers; int64 where int32, which is what indices are in PyTorch."""
    jax.block_until_ready(a)
    out = torch.from_dlpack(a) if ON_GPU else torch.tensor(np.asarray(a))
    return out.long() if a.dtype == jnp.int32 else out


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest in any order, which is all that an autoencoder needs."""
    return torch.topk(x, k, sorted=False)


def encode(x: Tensor, w: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Linear, topk, relu of the k chosen; all in x's dtype, as under autocast."""
    vals, idx = topk(F.linear(x, w, b), k)
    return vals.relu_(), idx


def decode(vals: Tensor, idx: Tensor, w: Tensor) -> Tensor:
    """sum_j vals_j w[idx_j] without the gathered rows in memory."""
    return F.embedding_bag(idx, w, per_sample_weights=vals, mode="sum")


def back(vals: Tensor, idx: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of vals, gradient of w) of `decode`: those that embedding_bag has itself."""
    vals, w = vals.detach().requires_grad_(), w.detach().requires_grad_()
    with torch.enable_grad():
        out = decode(vals, idx, w)
    dvals, dw = torch.autograd.grad(out, (vals, w), g)
    return dvals, dw


def row_sum(vals: Tensor, idx: Tensor, x: Tensor, n: int) -> Tensor:
    """Per latent, the sum of vals x: `index_add_`, as sparsify's fused encoder has it, some tokens at a time."""
    total = torch.zeros(n, x.shape[1], dtype=vals.dtype, device=x.device)
    rows = max(1, CHUNK_BYTES // (vals.shape[1] * x.shape[1] * vals.element_size()))
    for v, i, part in zip(vals.split(rows), idx.split(rows), x.split(rows), strict=True):
        total.index_add_(0, i.flatten(), (v.unsqueeze(2) * part.unsqueeze(1)).flatten(0, 1))
    return total


def back_by_matrix(vals: Tensor, idx: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """`back`, the gradient of w as a sparse matrix's product."""
    vals = vals.detach().requires_grad_()
    with torch.enable_grad():
        out = decode(vals, idx, w.detach())
    (dvals,) = torch.autograd.grad(out, vals, g)
    return dvals, row_sum_by_matrix(vals.detach(), idx, g, w.shape[0])


def row_sum_by_matrix(vals: Tensor, idx: Tensor, x: Tensor, n: int) -> Tensor:
    """`row_sum` as the product of a compressed sparse matrix [n, tokens] and x."""
    tokens, k = vals.shape
    starts = torch.arange(0, tokens * k + 1, k, device=x.device)
    z = torch.sparse_csc_tensor(starts, idx.flatten(), vals.flatten(), (n, tokens), check_invariants=False)
    return z @ x


def program(like: Program, name: str, sets: list[tuple]) -> Program:
    """A function of PyTorch's as a program: called as it is, on as many threads as JAX has."""
    torch.set_num_threads(cores())
    first, *others = sets
    return dataclasses.replace(
        like,
        arguments=first,
        others=tuple(others),
        compiled=like.function,
        wait=lambda _: torch.cuda.synchronize() if ON_GPU else None,
        peak=Peak() if ON_GPU else None,
        columns={"implementation": name, "ours": False},
    )


class Pieces(NamedTuple):
    """The sparse products of a step. All tensors float32 but idx."""

    decode: Callable[[Tensor, Tensor, Tensor], Tensor] = decode
    back: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = back
    row_sum: Callable[[Tensor, Tensor, Tensor, int], Tensor] = row_sum


def backward(pieces: Pieces, vals: Tensor, idx: Tensor, g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """(dvals, dw_dec, dw_enc, db_enc), as `sae_backward`."""
    dvals, dw_dec = pieces.back(vals, idx, w, g)
    dvals = dvals * (vals > 0)
    db = torch.zeros(w.shape[0], device=x.device).index_add_(0, idx.flatten(), dvals.flatten())
    return dvals, dw_dec, pieces.row_sum(dvals, idx, x, w.shape[0]), db


class Step:
    """A training step: the matmul in bfloat16 on a GPU, decoder rows kept at norm 1 as in our steps."""

    def __init__(self, pieces: Pieces, w: jax.Array, k: int, learning_rate: float) -> None:
        """w: [n_latents, d], where encoder and decoder start."""
        start = tensor(w)
        self.pieces, self.k = pieces, k
        self.w_enc, self.w_dec = start.clone(), start.clone()
        self.b_enc, self.b_dec = (torch.zeros(size, device=start.device) for size in start.shape)
        self.dtype = torch.bfloat16 if ON_GPU else torch.float32
        self.optimiser = torch.optim.Adam([self.w_enc, self.b_enc, self.w_dec, self.b_dec], learning_rate, fused=True)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The loss before the step: the fraction of the batch's variance unexplained."""
        centred, low = x - self.b_dec, self.dtype
        vals, idx = encode(centred.to(low), self.w_enc.to(low), self.b_enc.to(low), self.k)
        vals = vals.float()
        error = self.pieces.decode(vals, idx, self.w_dec) - centred
        variance = (x - x.mean(0)).square().sum()
        g = error * (2 / variance)
        _, dw_dec, self.w_enc.grad, db = backward(self.pieces, vals, idx, g, centred, self.w_dec)
        along = (dw_dec * self.w_dec).sum(1, keepdim=True)
        self.w_dec.grad = dw_dec.addcmul_(self.w_dec, along, value=-1)
        self.b_enc.grad, self.b_dec.grad = db, g.sum(0) - db @ self.w_enc  # through the subtraction too
        self.optimiser.step()
        self.w_dec.div_(torch.linalg.vector_norm(self.w_dec, dim=1, keepdim=True))
        return error.square().sum() / variance


class Peers(NamedTuple):
    """What is here."""

    pieces: dict[str, Pieces]
    fused_encoder: Callable[..., Any] | None
    absent: list[str]
    """Why the others are not."""


def found() -> Peers:
    """PyTorch's own, and the published ones that can be imported; their Triton kernels on a GPU alone."""
    pieces = {"PyTorch": Pieces(), "PyTorch, sparse matrices": Pieces(decode, back_by_matrix, row_sum_by_matrix)}
    modules, absent = {}, []
    for package, name in ((p, m) for p, names in PUBLISHED.items() for m in names):
        try:
            modules[name] = _module(package, name)
        except Exception as e:
            absent.append(f"{package}.{name}: {told(e)}")
    if ON_GPU and (bag := modules.get("xformers")):
        pieces["sparsify"] = Pieces(
            lambda vals, idx, w: bag.embedding_bag_triton(idx, w, vals),
            lambda vals, idx, w, g: bag.embedding_bag_bw_rev_indices(idx, w, vals, g)[::-1],
        )
    if ON_GPU and (triton := modules.get("kernels")):
        pieces["OpenAI"] = Pieces(
            lambda vals, idx, w: triton.triton_sparse_dense_matmul(idx, vals, w),
            lambda vals, idx, w, g: (
                triton.triton_dense_dense_sparseout_matmul(g, w.T, idx),
                triton.triton_sparse_transpose_dense_matmul(idx, vals, g, w.shape[0]),
            ),
            lambda vals, idx, x, n: triton.triton_sparse_transpose_dense_matmul(idx, vals, x, n),
        )
    fused = modules.get("fused_encoder")
    return Peers(pieces, fused and fused.fused_encoder, absent)


def _module(package: str, name: str) -> ModuleType:
    """A module of a package that is installed, without the package's own imports (data sets, trainers)."""
    parent = importlib.util.find_spec(package)
    if parent is None or not parent.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}")
    path = Path(next(iter(parent.submodule_search_locations))) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{package}_{name}", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Call(NamedTuple):
    """A peer of an op."""

    name: str
    function: Callable[..., Any]
    sets: list[tuple]


def calls(op: str, sets: list[tuple], n: int, k: int, peers: Peers) -> Iterator[Call]:
    """Peers of an op of ours on the same operands, given several sets of these."""
    same = [tuple(map(tensor, a)) for a in sets] if op != "sae_adam" else []
    if op == "topk":
        yield Call("torch.topk", lambda x: topk(x, k), same)
    elif op.startswith("encode_topk"):
        low = [(x, w, b.to(x.dtype)) for x, w, b in same]
        yield Call("PyTorch", lambda x, w, b: encode(x, w, b, k), low)
        if (fused := peers.fused_encoder) is not None:
            yield Call("sparsify", lambda x, w, b: fused(x, w, b, k, "topk")[:2], low)
    wide = [tuple(a.float() if a.is_floating_point() else a for a in s) for s in same]
    for name, pieces in peers.pieces.items():
        if op == "sparse_decode" and name == "PyTorch":
            yield Call(name, decode, [(vals.to(w.dtype), idx, w) for vals, idx, w in same])
        elif op == "sparse_decode" and pieces.decode is not decode:
            yield Call(name, pieces.decode, wide)
        elif op == "row_sum" and (name == "PyTorch" or pieces.row_sum is not row_sum):
            yield Call(name, lambda vals, idx, x, f=pieces.row_sum: f(vals, idx, x, n), wide)
        elif op == "sae_backward":
            yield Call(name, lambda *a, pieces=pieces: backward(pieces, *a), wide)
