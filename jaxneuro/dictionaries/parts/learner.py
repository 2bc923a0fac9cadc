# SPDX-License-Identifier: Apache-2.0
"""From a method's own mathematics (where it starts, its loss, what it becomes) to a `Method`: everything shared."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxneuro_kernels.vary import axes_of, vary
from jaxtyping import Array, Bool, Float, Int, Key

from ...axes import aligned
from ...errors import UserError
from ...left_out import norm_limit
from ...protocols import Method
from ...taps.compiled import compiled
from . import start
from .axes import Axes
from .decoder import along_the_sphere, unit_rows
from .inputs import Inputs, check_start, given, read
from .optimise import clipped, evaluated, settled
from .silence import silent_tokens
from .training import DATA, LATENT, Training

type Parameters = dict[str, Array]
"""Trained arrays, float32, one latent per row, in units of the scaled input: w_enc, b_enc, w_dec, b_dec ..."""


class Now(NamedTuple):
    """What a loss may read beside parameters and inputs."""

    step: Int[Array, ""]
    dead: Bool[Array, "n_latents *layers"]
    memory: dict[str, Array]
    """What the method itself keeps from step to step."""
    divisor: Float[Array, ""]
    """Valid tokens of the whole batch, on all devices."""
    variance: Float[Array, ""]
    """Mean squared deviation of the first batch's scaled targets: the unit of the loss."""
    tied: bool
    """An autoencoder: y is x."""


class Outcome(NamedTuple):
    """What a loss says beside its value, of this device's tokens and latents."""

    error: Float[Array, "n d_out"]
    """y - y_hat, 0 where a token is not valid."""
    fired: Bool[Array, "n_latents *layers"]
    active: Int[Array, ""]
    """How often a latent was above 0, all latents."""
    memory: dict[str, Array]
    """As it will be; the same on all devices."""
    info: dict[str, Array]
    """Further numbers to show: this device's part of a mean over tokens."""
    code: Any = None
    """For `Recipe.more`."""


class Recipe(NamedTuple):
    """One method's own mathematics."""

    begin: Callable[[Key[Array, ""], Inputs, bool], Parameters]
    """(key, scaled first batch, is it an autoencoder) -> parameters."""
    loss: Callable[[Parameters, Inputs, Now], tuple[Array, Outcome]]
    """This device's part of a mean over tokens. Where `through_centre` is given, b_dec's way through the input is left
    out (`centred`)."""
    finish: Callable[[Parameters, dict[str, Array], "Scales"], Any]
    """(parameters, memory, scales) -> dictionary of raw activations."""
    memory: Callable[[], dict[str, Array]] = dict
    """What it remembers at first."""
    more: Callable[..., tuple[Parameters, Array, dict[str, Array]]] | None = None
    """(gradients, parameters, inputs, now, outcome) -> gradients with those of a further loss, that loss, info."""
    through_centre: Callable[[Parameters, Parameters], Array] | None = None
    """(gradients, parameters) -> [n_latents], the gradient of all pre-activations' common offset: with it b_dec's
    gradient through x - b_dec is one product, and not a pass over the tokens."""
    on_sphere: tuple[str, ...] = ("w_dec",)
    """Parameters whose rows keep norm 1."""
    needs_y: bool = False
    """A transcoder: batches must have targets of their own."""
    layers: int | None = None
    """x and y join the activations of so many layers, of which each is scaled on its own (instead of
    `Training.widths`) and has n_latents latents: what is said of latents is [n_latents, layers]."""


class Scales(NamedTuple):
    """What turned raw activations into what was trained on."""

    x: Float[Array, "*d_in"]
    y: Float[Array, "*d_out"]
    tied: bool
    """An autoencoder: b_dec is subtracted from the input."""

    @property
    def unit(self) -> Float[Array, ""]:
        """What latents are divided by to be in raw units; 1 where every site has its own scale: they stay scaled."""
        return self.x if self.x.ndim == 0 else jnp.float32(1)


class TrainingState(NamedTuple):
    """What the next step needs."""

    parameters: Parameters
    optimiser: Any
    memory: dict[str, Array]
    silent: Int[Array, "n_latents *layers"]
    """Tokens since each latent fired."""
    step: Int[Array, ""]
    """Updates made; schedules read it."""
    skipped: Int[Array, ""]
    """Batches without an update: no valid token, or a loss that is not finite."""
    scale_x: Float[Array, "*d_in"]
    scale_y: Float[Array, "*d_out"]
    variance: Float[Array, ""]
    tied: Bool[Array, ""]
    """An autoencoder: b_dec is subtracted from the input."""
    limit: Float[Array, ""]
    """Longest token that counts, raw; see `Training.max_norm`."""


def centred(inputs: Inputs, b_dec: Array, tied: bool) -> Array:
    """The encoder's input: x - b_dec of an autoencoder, x of a transcoder; a constant to the gradient."""
    if not tied:
        return inputs.x
    return jnp.where(inputs.valid[:, None], inputs.x - lax.stop_gradient(b_dec)[None], jnp.float32(0))


REPLICATED = ("b_dec", "w_skip", "theta")
"""Parameters without an axis of latents: the same on all devices. Of all others it is the first."""


def _spec(name: str, axes: Axes) -> PartitionSpec:
    return PartitionSpec() if name in REPLICATED else PartitionSpec(axes.latent)


class _Sums(NamedTuple):
    """What is added up over parts of a batch and over devices."""

    loss: Array
    squared_error: Array
    active: Array
    info: dict[str, Array]


class _Given(NamedTuple):
    """What the first batch has settled."""

    x: Array
    y: Array
    variance: Array
    limit: Array


@dataclasses.dataclass(frozen=True)
class _Learner:
    """init, step and finish of one recipe."""

    recipe: Recipe
    n_latents: int
    training: Training

    def init(self, key: Key[Array, ""], batch: Any) -> TrainingState:
        batch = given(batch)
        self._check(batch)
        if self.training.mesh is None:
            return self._begin(key, batch)
        shapes = jax.eval_shape(self._begin, key, batch)
        return jax.jit(self._begin, out_shardings=jax.tree.map_with_path(self._placed, shapes))(key, batch)

    def _placed(self, path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        """Whatever has an axis of latents first is split over it: parameters, moments, counters."""
        mesh, names = self.training.mesh, {getattr(p, "key", None) for p in path}
        assert mesh is not None
        split = leaf.ndim and leaf.shape[0] == self.n_latents and names.isdisjoint(REPLICATED)
        return NamedSharding(mesh, PartitionSpec(self.training.axes.latent) if split else PartitionSpec())

    def _begin(self, key: Key[Array, ""], batch: Any) -> TrainingState:
        t = self.training
        tied = "y" not in batch
        widths = self._widths(batch["x"]), self._widths(batch["x" if tied else "y"])
        inputs, scale_x, scale_y, variance, limit = _measured(batch, t.normalise, widths, t.max_norm)
        parameters = self.recipe.begin(key, inputs, tied)
        each = (self.n_latents,) if self.recipe.layers is None else (self.n_latents, self.recipe.layers)
        return TrainingState(
            parameters=parameters,
            optimiser=t.transformation(t.rate(self.n_latents)).init(parameters),
            memory=self.recipe.memory(),
            silent=jnp.zeros(each, jnp.int32),
            step=jnp.int32(0),
            skipped=jnp.int32(0),
            scale_x=scale_x,
            scale_y=scale_y,
            variance=variance,
            tied=jnp.array(tied),
            limit=limit,
        )

    def _check(self, batch: Any) -> None:
        t, axes = self.training, self.training.axes
        check_start(batch)
        x, y = batch["x"], batch.get("y", batch["x"])
        if self.recipe.needs_y and "y" not in batch:
            raise UserError("a transcoder learns y from x: batches need {'x': [n, d_in], 'y': [n, d_out]}.")
        n, sizes = x.shape[0], dict(t.mesh.shape) if t.mesh is not None else {}
        for what, size, by in (
            ("a batch's tokens", n, sizes.get(DATA, 1) * t.accumulate),
            ("n_latents", self.n_latents, sizes.get(LATENT, 1) if axes.latent else 1),
        ):
            if size % by:
                raise UserError(f"{what} ({size}) cannot be cut into {by} equal parts (mesh {sizes}, accumulate).")
        for name, a in (("x", x), ("y", y)):
            widths = self._widths(a)
            if widths and sum(widths) != a.shape[1]:
                raise UserError(f"widths {widths} make {sum(widths)}, but {name} is {list(a.shape)}.")

    def _widths(self, a: Array) -> tuple[int, ...]:
        """Of the parts of x or y that are scaled each on its own; (): there is but one."""
        layers = self.recipe.layers
        return self.training.widths if layers is None else (a.shape[1] // layers,) * layers

    def step(self, state: TrainingState, batch: Any) -> tuple[TrainingState, dict[str, Array]]:
        grads, sums, seen, memory, fired = self._gradients(state, given(batch))
        new = self._updated(state, grads, jnp.isfinite(sums.loss) & (seen["tokens"] > 0))
        new = new._replace(
            memory=jax.tree.map(lambda a, b: jnp.where(new.step > state.step, a, b), memory, state.memory),
            silent=silent_tokens(state.silent, fired, seen["tokens"]),
        )
        divisor = jnp.maximum(seen["tokens"], 1).astype(jnp.float32)
        info = {
            "loss": sums.loss,
            "fvu": sums.squared_error / (divisor * seen["deviation"]),
            "l0": sums.active.astype(jnp.float32) / divisor,
            "dead_fraction": jnp.mean((state.silent >= self.training.dead_after_tokens).astype(jnp.float32)),
            "learning_rate": jnp.asarray(self.training.rate(self.n_latents)(state.step), jnp.float32),
            "tokens": seen["tokens"],
            "nonfinite_tokens": seen["broken"],
            "skipped_batches": new.skipped,
        }
        shown = {name: value for name, value in new.memory.items() if value.ndim == 0}
        return new, info | sums.info | shown

    def finish(self, state: TrainingState) -> Any:
        p = evaluated(state.optimiser, state.parameters)
        p = p | {name: unit_rows(p[name]) for name in self.recipe.on_sphere}
        p = jax.device_get(p) if self.training.mesh is not None else p
        scales = Scales(jnp.asarray(state.scale_x), jnp.asarray(state.scale_y), bool(state.tied))
        return self.recipe.finish(jax.tree.map(jnp.asarray, p), state.memory, scales)

    def _gradients(self, state: TrainingState, batch: Any) -> tuple[Parameters, _Sums, dict, dict, Array]:
        """Of the whole batch, whatever it is split over."""
        mesh, axes = self.training.mesh, self.training.axes
        dead = state.silent >= self.training.dead_after_tokens
        scales = _Given(state.scale_x, state.scale_y, state.variance, state.limit)
        whole = (state.parameters, dead, state.memory, state.step, scales, batch)
        if mesh is None:
            return self._local(*whole)
        here, latents = PartitionSpec(), PartitionSpec(axes.latent)
        p = {name: _spec(name, axes) for name in state.parameters}
        return jax.shard_map(
            self._local,
            mesh=mesh,
            in_specs=(p, latents, here, here, here, PartitionSpec(axes.data)),
            out_specs=(p, here, here, here, latents),
        )(*whole)

    def _local(
        self, p: Parameters, dead: Array, memory: dict, step: Array, scales: "_Given", batch: Any
    ) -> tuple[Parameters, _Sums, dict, dict, Array]:
        """Gradients and sums from this device's tokens and latents, added up over all devices' tokens."""
        axes, parts = self.training.axes, self.training.accumulate
        inputs = read(batch, scales.x, scales.y, scales.limit if self.training.max_norm else None)
        tokens, broken = axes.over_tokens((inputs.tokens, inputs.broken))
        divisor = jnp.maximum(tokens, 1).astype(jnp.float32)
        seen = {"tokens": tokens, "broken": broken, "deviation": _deviation(inputs, divisor, axes)}
        own = axes.own(p)
        now = Now(step, dead, memory, divisor, scales.variance, "y" not in batch)

        def one(inputs: Inputs, memory: dict) -> tuple[Parameters, _Sums, dict, Array]:
            return self._part(own, inputs, now._replace(memory=memory))

        if parts == 1:
            grads, sums, memory, fired = one(inputs, memory)
        else:
            grads, sums, memory, fired = _one_by_one(one, inputs, memory, parts)
        grads, sums = axes.over_tokens((grads, sums))
        fired = axes.over_tokens(fired.astype(jnp.int32)) > 0
        return grads, sums, seen, memory, fired

    def _part(self, p: Parameters, inputs: Inputs, now: Now) -> tuple[Parameters, _Sums, dict, Array]:
        recipe = self.recipe
        (loss, out), grads = jax.value_and_grad(recipe.loss, has_aux=True)(p, inputs, now)
        if now.tied and recipe.through_centre is not None:
            through = self.training.axes.over_latents(recipe.through_centre(grads, p) @ p["w_enc"])
            grads = grads | {"b_dec": grads["b_dec"] - through}
        more, info = jnp.zeros_like(loss), out.info
        if recipe.more is not None:
            grads, more, shown = recipe.more(grads, p, inputs, now, out)
            info = info | shown
        sums = _Sums(loss + more, jnp.sum(jnp.square(out.error)), out.active, info)
        return grads, sums, out.memory, out.fired

    def _updated(self, state: TrainingState, grad: Parameters, ok: Array) -> TrainingState:
        """One optimiser step with unit decoder rows; all as it was where not `ok`."""
        t, sphere = self.training, self.recipe.on_sphere
        transformation = t.transformation(t.rate(self.n_latents))

        def move(old: tuple[Parameters, Any]) -> tuple[Parameters, Any]:
            p, optimiser = old
            ready = grad | {name: along_the_sphere(grad[name], p[name]) for name in sphere}
            if t.clip_norm is not None:
                ready = clipped(ready, t.clip_norm)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, optimiser = transformation.update(settled(ready), optimiser, p)
            moved: Any = settled(optax.apply_updates(p, updates))
            return moved | {name: unit_rows(moved[name]) for name in sphere}, optimiser

        parameters, optimiser = lax.cond(ok, move, lambda old: old, (state.parameters, state.optimiser))
        return state._replace(
            parameters=parameters,
            optimiser=optimiser,
            step=state.step + ok.astype(jnp.int32),
            skipped=state.skipped + (~ok).astype(jnp.int32),
        )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))  # one program for all methods
def _measured(
    batch: Any, norm: str, widths: tuple[tuple[int, ...], ...], most: float | None
) -> tuple[Inputs, Array, Array, Array, Array]:
    """(the scaled first batch, scale of x, scale of y, variance of y, longest token that counts)."""
    raw = read(batch, jnp.float32(1), jnp.float32(1))
    limit = norm_limit(raw.x, raw.valid, most)
    if most is not None:
        raw = read(batch, jnp.float32(1), jnp.float32(1), limit)
    scale_x, scale_y = (start.norm_scale(a, raw.valid, norm, w) for a, w in zip(raw[:2], widths, strict=True))
    inputs = raw._replace(x=raw.x * aligned(scale_x, raw.x), y=raw.y * aligned(scale_y, raw.y))
    return inputs, scale_x, scale_y, start.deviation(inputs.y, raw.valid), limit


def _deviation(inputs: Inputs, divisor: Array, axes: Axes) -> Array:
    """Mean squared distance of the whole batch's targets from their mean."""
    mean = axes.over_tokens(jnp.sum(inputs.y, axis=0)) / divisor
    off = jnp.where(inputs.valid[:, None], inputs.y - mean[None], jnp.float32(0))
    return axes.over_tokens(jnp.sum(jnp.square(off))) / divisor


def _one_by_one(one: Callable, inputs: Inputs, memory: dict, parts: int) -> tuple[Parameters, _Sums, dict, Array]:
    """Parts of the batch in turn; gradients and sums are added up."""

    def split(a: Array) -> Array:
        return a.reshape(parts, a.shape[0] // parts, *a.shape[1:])

    arrays = split(inputs.x), split(inputs.y), split(inputs.valid)
    like = jax.eval_shape(one, inputs._replace(x=arrays[0][0], y=arrays[1][0], valid=arrays[2][0]), memory)
    grads, sums, _, fired = jax.tree.map(lambda s: vary(jnp.zeros(s.shape, s.dtype), axes_of(s)), like)

    def step(carry: Any, part: tuple[Array, Array, Array]) -> tuple[Any, None]:
        grads, sums, memory, fired = carry
        g, s, memory, f = one(inputs._replace(x=part[0], y=part[1], valid=part[2]), memory)
        return (*jax.tree.map(jnp.add, (grads, sums), (g, s)), memory, fired | f), None

    (grads, sums, memory, fired), _ = lax.scan(step, (grads, sums, memory, fired), arrays)
    return grads, sums, memory, fired


def learner(recipe: Recipe, n_latents: int, training: Training) -> Method:
    """The `Method` of a recipe.

    Inputs are read (masked, NaN left out and counted), scaled, and given to the recipe's loss; gradients are summed
    over parts of the batch and devices, projected for rows of norm 1, and handed to the optimiser. A batch with no
    valid token, or whose loss is not finite, changes nothing but `info["skipped_batches"]`.

    Info: loss, fvu, l0, dead_fraction, learning_rate, tokens, nonfinite_tokens, skipped_batches, and the recipe's own.
    """
    if n_latents < 1:
        raise UserError(f"n_latents = {n_latents}; a dictionary has at least one latent.")
    parts = _Learner(recipe, n_latents, training)
    return Method(init=parts.init, step=compiled(parts.step), finish=parts.finish)
