# SPDX-License-Identifier: Apache-2.0
"""A dictionary whose decoder is a matrix: what measures of directions need beyond the protocol."""

from typing import Protocol

from jaxtyping import Array, Float

from ..errors import UserError
from ..protocols import Dictionary


class LinearDictionary(Dictionary, Protocol):
    """x_hat = z W_dec + anything that does not depend on z."""

    @property
    def W_dec(self) -> Float[Array, "n_latents d_out"]:
        """One direction per latent."""
        ...


def decoder(dictionary: LinearDictionary, width: int, *, where: str) -> Float[Array, "n_latents d"]:
    """The decoder's rows, checked.

    Raises:
      UserError: the dictionary has no W_dec [n_latents, width].
    """
    rows = getattr(dictionary, "W_dec", None)
    if rows is None or rows.ndim != 2 or rows.shape[1] != width:
        has = f"W_dec {list(rows.shape)}" if rows is not None else "no W_dec"
        raise UserError(
            f"{where}: a {type(dictionary).__name__} with {has} has no direction in R^{width} per latent. Give an "
            f"autoencoder with W_dec [n_latents, {width}]."
        )
    return rows
