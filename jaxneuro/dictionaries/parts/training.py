# SPDX-License-Identifier: Apache-2.0
"""What every method that is trained by gradients may be told about its training."""

import dataclasses
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from jaxneuro_kernels.dispatch import Implementation

from ...errors import UserError, unknown
from ...left_out import check_max_norm
from .axes import Axes
from .numbers import check_fields
from .optimise import OPTIMISERS, Optimiser, Schedule, warm_then_decay
from .start import CENTRES, NORMS

DATA, LATENT = "data", "latent"
"""Names of a mesh's axes: tokens are split over the first, latents over the second. Either may be missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How parameters move: the same choices for every method.

    Example:
      >>> Training(steps=1000).axes
      Axes(data=None, latent=None)
    """

    learning_rate: float | Schedule | None = None
    """Peak, or a whole schedule of the step. None: the optimiser's own, scaled to the number of latents; Adam's, larger
    in runs below 65,536 `steps`."""
    steps: int | None = None
    """Length of the run, for the decay to 0 over its last fifth. None: no decay."""
    warmup_steps: int | None = None
    """Linear warm-up. None: 1,000, or a twentieth of `steps` if that is less."""
    optimiser: str | Optimiser = "adam"
    """A name in OPTIMISERS, or a function from a schedule to an optax transformation."""
    clip_norm: float | Literal["unit"] | None = "unit"
    """Largest norm of all gradients together. "unit": those of every step are brought to norm 1, so that Adam's running
    mean of squares does not hold back what follows the first, large ones (clipping a sum of squares at 1, as SAELens
    does, comes to the same). None: as they are."""
    accumulate: int = 1
    """Parts in which a batch is worked off, one after the other: less memory, the same gradient of every mean over
    tokens. (A choice over the batch, a target for L0 and AuxK's unit are those of each part.)"""
    dead_after_tokens: int = 10_000_000
    """A latent is dead when it was not above 0 for so many tokens."""
    normalise: Literal["sqrt_d", "unit", "none"] = "sqrt_d"
    """Inputs are scaled so that their mean norm is sqrt(d) (Anthropic, SAELens) or their mean squared norm 1 (Gemma
    Scope, dictionary_learning), measured on the first batch and folded into what `finish` returns."""
    widths: tuple[int, ...] = ()
    """Widths of the sites whose values a crosscoder's x (and y) joins: each is scaled on its own. (): one site."""
    b_dec_start: Literal["median", "mean", "zeros"] = "median"
    """Where b_dec starts, from the first batch."""
    max_norm: float | None = None
    """Tokens longer than so many times the median norm of the first batch's are left out: of the scale, the start, the
    loss and every number, like masked ones. A few massive activations (attention sinks) otherwise set the scale and
    take up latents. None: all tokens count."""
    dtype: str = "float32"
    """Of the matmuls' inputs ("bfloat16" on accelerators); parameters and sums are float32."""
    implementation: Implementation = None
    """Of the sparse products; see `jaxneuro_kernels`."""
    mesh: Mesh | None = None
    """Devices to spread one dictionary over, with an axis "data", "latent", or both."""
    data_axis: str | None = None
    """Name of the axis over which tokens are split, where the step is called inside one's own pmap or shard_map."""

    def __post_init__(self) -> None:
        check_fields(self, () if callable(self.learning_rate) else ("learning_rate",))
        least: dict[str, float] = {"steps": 1, "warmup_steps": 0, "accumulate": 1, "dead_after_tokens": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"Training: {name} = {value} is below {bound}.")
        if not (self.clip_norm in (None, "unit") or (not isinstance(self.clip_norm, str) and self.clip_norm > 0)):
            raise UserError(f"Training: clip_norm = {self.clip_norm!r} is neither above 0 nor 'unit'.")
        check_max_norm(self.max_norm, "Training: max_norm")
        for name, table in (("b_dec_start", CENTRES), ("normalise", NORMS)):
            if getattr(self, name) not in table:
                raise unknown(name, getattr(self, name), table, where="Training")
        if isinstance(self.optimiser, str) and self.optimiser not in OPTIMISERS:
            raise unknown("optimiser", self.optimiser, OPTIMISERS, where="Training")
        if self.mesh is not None and not set(self.mesh.axis_names) <= {DATA, LATENT}:
            raise UserError(f"Training: the mesh has axes {self.mesh.axis_names}; name them {DATA!r} and {LATENT!r}.")
        if self.mesh is not None and self.data_axis is not None:
            raise UserError("Training: mesh or data_axis: the step makes its own shard_map, or is called inside one.")

    @property
    def axes(self) -> Axes:
        """The axes that the step sees."""
        if self.mesh is None:
            return Axes(data=self.data_axis)
        return Axes(*(name if name in self.mesh.axis_names else None for name in (DATA, LATENT)))

    @property
    def kernel(self) -> dict[str, Any]:
        """What the sparse products are told: hashable, static."""
        names = self.implementation
        return {
            "dtype": str(jax.numpy.dtype(self.dtype)),
            "implementation": names if names is None or isinstance(names, str) else tuple(names),
            "axes": self.axes,
        }

    def rate(self, n_latents: int) -> Schedule:
        """The learning rate as a function of the step."""
        peak = self.learning_rate
        if peak is None:
            peak = OPTIMISERS[self.optimiser].rate(n_latents, self.steps) if isinstance(self.optimiser, str) else None
        if peak is None:
            raise UserError("Training: an optimiser of one's own needs a learning_rate.")
        if callable(peak):
            return peak
        warmup = self.warmup_steps
        if warmup is None:
            warmup = 1000 if self.steps is None else min(1000, self.steps // 20)
        return warm_then_decay(peak, warmup=warmup, steps=self.steps)

    def transformation(self, rate: Schedule) -> Any:
        """The optax transformation."""
        make = OPTIMISERS[self.optimiser].make if isinstance(self.optimiser, str) else self.optimiser
        return make(rate)
