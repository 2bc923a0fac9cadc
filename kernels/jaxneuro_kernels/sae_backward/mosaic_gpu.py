# SPDX-License-Identifier: Apache-2.0
"""The backward pass on a Hopper GPU: one pass over the latents, rows of g and x the only sparse traffic."""

import jax.numpy as jnp
from jax import Array, lax

from ..hopper import fold, refuses_arrays, refuses_width, result
from ..sparse_decode.latents import Backward, Finish, latent_pass
from ..sparse_decode.segments import by_latent
from .adam import Rates, Rows, along_sphere, updated

WIDEST = 12288
"""Of a row of g and one of x together; wider ones spill registers."""


def refuses(vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, *_: Array) -> str | None:
    """Why this call cannot be taken, or None."""
    del vals, idx
    return refuses_arrays(g, x, w_dec) or refuses_width(WIDEST, d_out=g.shape[-1], d_in=x.shape[-1])


def sae_backward(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    extra: Array,
    relu: bool = True,
    *,
    slots: int | None = None,
    split: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """See reference.py. Two-dimensional vals, idx, g, x."""
    n = w_dec.shape[0]
    backward = Backward(w_dec, extra, relu)
    out = latent_pass(by_latent(idx, n), idx, vals, (g, x), backward=backward, slots=slots, split=split)
    dw_dec, dw_enc = out.outputs
    assert out.dvals is not None
    assert out.bias is not None
    return out.dvals, dw_dec.reshape(n, -1), dw_enc.reshape(n, -1), out.bias


def sae_adam(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    extra: Array,
    parameters: Rows,
    first: Rows,
    second: Rows,
    r: Rates,
    relu: bool = True,
    unit_norm: bool = False,
    *,
    slots: int | None = None,
    split: int | None = None,
) -> tuple[Rows, Rows, Rows, Array]:
    """See reference.py. The gradients of the weights never reach memory."""
    n = w_dec.shape[0]
    backward = Backward(w_dec, extra, relu)
    end = _step(parameters, first, second, r, unit_norm=unit_norm)
    order = by_latent(idx, n)
    out = latent_pass(order, idx, vals, (g, x), backward=backward, finish=end, slots=slots, split=split)
    dec, dec_m, dec_v, enc, enc_m, enc_v = (a.reshape(n, -1) for a in out.outputs)
    assert out.dvals is not None
    assert out.bias is not None
    bias, bias_m, bias_v = updated(parameters.b_enc, first.b_enc, second.b_enc, out.bias, r)
    return Rows(enc, bias, dec), Rows(enc_m, bias_m, dec_m), Rows(enc_v, bias_v, dec_v), out.dvals


def _step(parameters: Rows, first: Rows, second: Rows, r: Rates, *, unit_norm: bool) -> Finish:
    """Ends a pass over latents with a step of w_dec and w_enc. Outputs: both, then their moments, dec before enc."""

    def body(f, sums, w_row, inputs, outputs):
        del w_row  # it may be rounded
        numbers, *states = inputs
        now = Rates(*(numbers[i] for i in range(len(Rates._fields))))
        for i, g in enumerate(sums):
            p, m, v = (ref[f] for ref in states[3 * i : 3 * i + 3])
            sphere = unit_norm and i == 0
            if sphere:
                g = along_sphere(g, p, jnp.sum(g * p), jnp.sum(p * p))
            p, m, v = updated(p, m, v, g, now)
            if sphere:
                p = p * lax.rsqrt(jnp.maximum(jnp.sum(p * p), jnp.float32(1e-30)))
            for ref, a in zip(outputs[3 * i : 3 * i + 3], (p, m, v), strict=True):
                ref[f] = a

    states = [fold(getattr(rows, name)) for name in ("w_dec", "w_enc") for rows in (parameters, first, second)]
    return Finish(body, [jnp.stack(r), *states], [result(a.shape, jnp.float32) for a in states])
