# SPDX-License-Identifier: Apache-2.0
"""What a pass of a model must multiply, from its configuration alone."""

from jaxneuro.models import Config


def model_flops(
    cfg: Config, batch: int, pos: int, *, first: int = 0, layers: range | None = None, logits: int | None = None
) -> float:
    """Multiplications and additions of the matrices and of the visible pairs of attention: the F of MFU.

        2 tokens (parameters of the layers' matrices + logits' share of the unembedding) + 4 pairs n_heads d_head

    Norms, activations, rope and softmax count as nothing, and so do pairs that the mask hides: a program that computes
    them has a lower share, as it should.

    Args:
      pos: tokens of a row.
      first: these are known already (a cache); the rest is computed.
      layers: which of them; None: all.
      logits: positions of a row of which logits are made; None: of all that are computed.
    Example:
      >>> cfg = Config(n_layers=1, d_model=8, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=16, d_vocab=32, n_ctx=8)
      >>> model_flops(cfg, 1, 1, logits=0) == 2 * (8 * 4 * 6 + 3 * 8 * 16) + 4 * 8
      True
    """
    layers, new = range(cfg.n_layers) if layers is None else layers, pos - first
    logits = new if logits is None else logits
    attention = cfg.d_model * cfg.d_head * 2 * (cfg.n_heads + cfg.n_kv_heads)
    mlp = cfg.d_model * cfg.d_mlp * (3 if cfg.gated else 2)
    pairs = sum(_pairs(cfg, layer, first, pos) for layer in layers)
    head = cfg.d_model * cfg.d_vocab * logits if cfg.has_head else 0
    matrices = new * len(layers) * (attention + mlp) + head
    return float(batch * (2 * matrices + 4 * pairs * cfg.n_heads * cfg.d_head))


def _pairs(cfg: Config, layer: int, first: int, pos: int) -> int:
    window = cfg.window(layer) or pos
    return sum(min(at + 1 if cfg.causal else pos, window) for at in range(first, pos))
