# SPDX-License-Identifier: Apache-2.0
"""Cross-layer transcoders: all MLPs of a model from one set of sparse latents (Ameisen et al., "Circuit Tracing")."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxneuro_kernels import jumprelu as above
from jaxtyping import Array, Bool, Float, Key

from ..errors import UserError
from ..protocols import Method
from .activations import Activation, JumpReLU, TopK
from .cross_layer import CrossLayerTranscoder
from .parts import start
from .parts.autoencode import Select, autoencode
from .parts.inputs import Inputs
from .parts.learner import Now, Outcome, Parameters, Recipe, Scales, learner
from .parts.numbers import numbers_checked
from .parts.optimise import ramp
from .parts.silence import fired
from .parts.training import Training

NAMES = ("w_enc", "b_enc", "w_dec", "log_threshold")
"""Parameters that every layer has, with latents first: "w_enc.0", "w_enc.1" ..."""


class Written(NamedTuple):
    """What one layer's latents do, on this device."""

    y: Float[Array, "n to_layers*d_out"]
    """Written to this layer and those above, of all devices' latents."""
    fired: Bool[Array, "n_latents"]
    active: Array
    """Latents above 0, of all devices."""
    penalty: Array
    """Of this device's latents and tokens."""


type Layer = Callable[[Parameters, Array, Inputs, Now, Bool[Array, "n_latents"]], Written]
"""(one layer's parameters, its x, all inputs, now, which of its latents are dead) -> `Written`."""


@numbers_checked
def cross_layer_transcoder(
    n_latents: int,
    n_layers: int,
    *,
    sparsity: float | None = None,
    k: int | None = None,
    tanh_scale: float = 4.0,
    bandwidth: float = 2.0,
    threshold_start: float = 0.1,
    revive: float = 3e-6,
    sparsity_warmup_steps: int = 0,
    training: Training = Training(),
) -> Method:
    """A cross-layer transcoder of batches {"x": [n, n_layers d_in], "y": [n, n_layers d_out]}, layers joined in order.

        pre_l = x_l W_enc[l] + b_enc[l];   z_l = pre_l where pre_l > theta_l, else 0             (k: the k largest)
        y_hat_l = b_dec[l] + sum over s <= l of z_s W_dec[s][l - s]
        loss = (mean_n [sum_l |y_l - y_hat_l|^2
                        + sparsity sum_(l,i) tanh(tanh_scale |W_dec[l]_i| z_li)
                        + revive sum_(l,i dead) max(theta_li - pre_li, 0) |W_dec[l]_i|]) / V

    x_l is what layer l's MLP reads, y_l what it writes. |W_dec[l]_i|: norm of a latent's decoders to all layers
    together. V: see `topk`. theta = exp(log theta) learns by `jaxneuro_kernels.jumprelu`. With k there is no penalty:
    each layer keeps its k largest, decoders keep norm 1, and no [n, n_latents] array exists.

    Every layer's x and y is scaled on its own (`Training.normalise`), folded into what `finish` returns. Silence is
    counted for every layer's latents; l0 is the sum over layers.

    Args:
      n_latents: latents of each layer.
      n_layers: layers.
      sparsity: coefficient of the tanh penalty, or
      k: active latents per token and layer. One of the two.
      tanh_scale, bandwidth, threshold_start, revive: see above; all, like sparsity, in scaled units.
      sparsity_warmup_steps: coefficient from 0, linear, over so many steps (published: the whole run).
      training: see `Training`, without widths.
    Returns:
      A Method; `finish` gives a `CrossLayerTranscoder`. Info: see `learner`.
    Raises:
      UserError: neither or both of sparsity and k; numbers out of range; batches without y, or whose widths the layers
        do not divide.
    Source: transformer-circuits.pub/2025/attribution-graphs (model, loss; the norm of joined decoders), and its January
      2025 update on dictionaries (c, bandwidth, threshold, revival); top-k as in circuit-tracer's checkpoints.
    Example:
      >>> method = cross_layer_transcoder(n_latents=8, n_layers=2, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x, "y": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x, "y": x})
      >>> state.silent.shape, method.finish(state)(x.reshape(64, 2, 2)).shape
      ((8, 2), (64, 2, 2))
    """
    _check(n_latents, n_layers, sparsity, k, tanh_scale, bandwidth, threshold_start, revive, sparsity_warmup_steps)
    if training.widths:
        raise UserError("cross_layer_transcoder: n_layers says how x and y are divided: leave out Training.widths.")
    if k is None:
        weight = ramp(0.0, sparsity or 0.0, sparsity_warmup_steps)
        layer = _jumping(weight, tanh_scale, bandwidth, revive, training)
    else:
        layer = _selecting(k, training)
    layers = range(n_layers)

    def begin(key: Key[Array, ""], inputs: Inputs, tied: bool) -> Parameters:
        del tied
        (d_in, d_out), p = (a.shape[1] // n_layers for a in (inputs.x, inputs.y)), {}
        for at, layer_key in enumerate(jax.random.split(key, n_layers)):
            enc_key, dec_key = jax.random.split(layer_key)
            p[f"w_enc.{at}"] = start.random_rows(enc_key, n_latents, d_in)
            p[f"b_enc.{at}"] = jnp.zeros(n_latents, jnp.float32)
            p[f"w_dec.{at}"] = start.random_rows(dec_key, n_latents, (n_layers - at) * d_out)
            if k is None:
                p[f"w_dec.{at}"] *= jnp.float32(0.1)  # what is written at random is soon penalised away
                p[f"log_threshold.{at}"] = jnp.full(n_latents, jnp.log(jnp.float32(threshold_start)))
        return p | {"b_dec": start.CENTRES[training.b_dec_start](inputs.y, inputs.valid)}

    def loss(p: Parameters, inputs: Inputs, now: Now) -> tuple[Array, Outcome]:
        x, d_out = jnp.split(inputs.x, n_layers, axis=1), inputs.y.shape[1] // n_layers
        written = [layer(_of(p, at), x[at], inputs, now, now.dead[:, at]) for at in layers]
        y_hat = p["b_dec"][None] + sum(jnp.pad(out.y, ((0, 0), (at * d_out, 0))) for at, out in enumerate(written))
        error = jnp.where(inputs.valid[:, None], inputs.y - y_hat, jnp.float32(0))
        penalty = training.axes.over_latents(sum(out.penalty for out in written))
        return (jnp.sum(jnp.square(error)) + penalty) / (now.divisor * now.variance), Outcome(
            error=error,
            fired=jnp.stack([out.fired for out in written], axis=1),
            active=sum((out.active for out in written), start=jnp.int32(0)),
            memory=now.memory,
            info={},
        )

    def finish(p: Parameters, memory: dict[str, Array], scales: Scales) -> CrossLayerTranscoder:
        del memory
        return _raw([_of(p, at) for at in layers], p["b_dec"], scales, k)

    recipe = Recipe(
        begin=begin,
        loss=loss,
        finish=finish,
        on_sphere=() if k is None else tuple(f"w_dec.{at}" for at in layers),
        needs_y=True,
        layers=n_layers,
    )
    return learner(recipe, n_latents, training)


def _check(n_latents: int, n_layers: int, sparsity: float | None, k: int | None, *numbers: float) -> None:
    if (sparsity is None) == (k is None):
        raise UserError(
            f"cross_layer_transcoder: sparsity = {sparsity}, k = {k}: give a coefficient of the penalty, or the number"
            " of active latents per layer."
        )
    if n_layers < 1 or (k is not None and not 1 <= k <= n_latents):
        raise UserError(f"cross_layer_transcoder: n_layers = {n_layers} >= 1 and 1 <= k = {k} <= {n_latents} latents.")
    names = ("tanh_scale", "bandwidth", "threshold_start", "revive", "sparsity_warmup_steps")
    for name, value in zip(names, numbers, strict=True):
        if value < 0 or (value == 0 and name in names[:3]):
            raise UserError(f"cross_layer_transcoder: {name} = {value} is too small.")


def _of(p: Parameters, at: int) -> Parameters:
    """One layer's parameters, without its number."""
    return {name: p[f"{name}.{at}"] for name in NAMES if f"{name}.{at}" in p}


def _jumping(weight: Callable, tanh_scale: float, bandwidth: float, revive: float, training: Training) -> Layer:
    """Latents above learned thresholds, with the tanh penalty."""
    cast, axes = jnp.dtype(training.dtype), training.axes

    def product(a: Array, b: Array) -> Array:
        return jnp.dot(a.astype(cast), b.astype(cast), preferred_element_type=jnp.float32)

    def layer(p: Parameters, x: Array, inputs: Inputs, now: Now, dead: Array) -> Written:
        on, theta = inputs.valid[:, None], jnp.exp(p["log_threshold"])[None]
        pre = product(x, p["w_enc"].T) + p["b_enc"][None]
        z = jnp.where(on, above(pre, theta, bandwidth), jnp.float32(0))
        norm = jnp.sqrt(jnp.sum(jnp.square(p["w_dec"]), axis=1))[None]
        size = jnp.sum(jnp.tanh(jnp.float32(tanh_scale) * norm * z))
        short = jnp.sum(jnp.where(on & dead[None], jax.nn.relu(theta - pre) * norm, jnp.float32(0)))
        return Written(
            y=axes.over_latents(product(z, p["w_dec"])),
            fired=jnp.any(z > 0, axis=0),
            active=axes.over_latents(jnp.sum(z > 0, dtype=jnp.int32)),
            penalty=weight(now.step) * size + jnp.float32(revive) * short,
        )

    return layer


def _selecting(k: int, training: Training) -> Layer:
    """The k largest latents of the layer."""
    select, axes = Select(k=k, **training.kernel), training.axes

    def layer(p: Parameters, x: Array, inputs: Inputs, now: Now, dead: Array) -> Written:
        del now, dead
        here = p["b_enc"].shape[0]
        code = autoencode(x, p["w_enc"], p["b_enc"], p["w_dec"], inputs.valid, jnp.int32(k), select)
        local = code.idx - (lax.axis_index(axes.latent) * here if axes.latent else 0)
        return Written(
            y=code.x_hat[0],
            fired=fired(code.vals, jnp.where(local < 0, here, local), here),
            active=jnp.sum(code.vals > 0, dtype=jnp.int32),
            penalty=jnp.float32(0),
        )

    return layer


def _raw(layers: list[Parameters], b_dec: Array, scales: Scales, k: int | None) -> CrossLayerTranscoder:
    """What takes and gives raw activations: x_l was trained on times s_l, y_l times t_l; latents are divided by s_l."""
    n = len(layers)
    s, t = (a.reshape(n, -1)[:, 0] for a in (scales.x, scales.y))
    activation: Activation = (
        TopK(k)
        if k is not None
        else JumpReLU(jnp.stack([jnp.exp(p["log_threshold"]) / s[at] for at, p in enumerate(layers)]))
    )
    w_dec = tuple(
        jnp.moveaxis(p["w_dec"].reshape(p["w_dec"].shape[0], n - at, -1), 1, 0) * (s[at] / t[at:, None, None])
        for at, p in enumerate(layers)
    )
    return CrossLayerTranscoder(
        W_enc=jnp.stack([p["w_enc"].T for p in layers]),
        b_enc=jnp.stack([p["b_enc"] / s[at] for at, p in enumerate(layers)]),
        W_dec=w_dec,
        b_dec=b_dec.reshape(n, -1) / t[:, None],
        activation=activation,
    )
