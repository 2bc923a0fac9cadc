# SPDX-License-Identifier: Apache-2.0
"""A model with a mixer, continued from a state: any number of tokens at a time, one for generation."""

from jaxtyping import Array, Bool, Float, Int

from .config import Config
from .layout import Weights
from .mixers import MixerState, empty_state
from .transformer import forward


def step(
    weights: Weights,
    tokens: Int[Array, "batch pos"],
    state: MixerState | None = None,
    *,
    cfg: Config,
    mask: Bool[Array, "batch pos"] | None = None,
) -> tuple[Float[Array, "batch pos d_out"], MixerState]:
    """Logits of the next tokens, and the state after them: `forward` with a state from the first token on.

    Steps over the parts of a text give what `forward` gives for the whole of it. Start with the prompt and no state,
    then go on token by token: a step costs the same however long the text is.

    Args:
      state: of the tokens before, as a step gave it back; None: there are none. See `empty_state`.
      mask: True at real tokens. A row goes on behind its last one.
    Returns:
      What `forward` gives for these tokens, and the state.
    Raises:
      UserError: the model has attention, not a mixer.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneuro.models import Config, init
      >>> from jaxneuro.models.mixers import Mamba
      >>> cfg = Config(n_layers=2, d_model=8, d_vocab=32, mixer=Mamba(d_inner=16, d_state=4, dt_rank=1))
      >>> weights = init(cfg, jax.random.key(0))
      >>> logits, state = step(weights, jnp.zeros((1, 5), "int32"), cfg=cfg)
      >>> logits, state = step(weights, jnp.ones((1, 1), "int32"), state, cfg=cfg)
      >>> logits.shape
      (1, 1, 32)
    """
    state = empty_state(cfg, tokens.shape[0], weights["embed"]["tok"].dtype) if state is None else state
    return forward(weights, tokens, cfg=cfg, mask=mask, cache=state)
