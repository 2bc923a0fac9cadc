# SPDX-License-Identifier: Apache-2.0
"""GroupMax: the strongest of each of k runs of latents (EleutherAI's sparsify)."""

from ..errors import UserError
from ..protocols import Method
from .activations import GroupMax
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, selecting
from .parts.training import Training


@numbers_checked
def group_max(n_latents: int, k: int, *, auxk: AuxK | None = AuxK(), training: Training = Training()) -> Method:
    """A GroupMax dictionary: as `topk`, but every latent competes only with its n_latents / k neighbours.

        z = relu(pre) at the largest pre of each of k runs of n_latents / k latents

    The selection needs no sort, and fewer latents die.

    Args, Raises: see `topk`; n_latents is a multiple of k.
    Source: sparsify 1.3 (activation "groupmax").
    Example:
      >>> import jax
      >>> method = group_max(n_latents=16, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> z = method.finish(state).encode(x)
      >>> bool(((z[:, :8] > 0).sum(1) <= 1).all())
      True
    """
    if k < 1 or n_latents % k:
        raise UserError(f"group_max: n_latents = {n_latents} is no multiple of k = {k}.")
    activation = lambda memory, scales: GroupMax(k)  # noqa: E731
    return selecting("group_max", n_latents, k, rule="group_max", activation=activation, training=training, auxk=auxk)
