# SPDX-License-Identifier: Apache-2.0
"""Two models whose pooled outputs meet in one space: CLIP's and SigLIP's pictures and texts."""

import json
import os
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError, shown, unknown
from ..io.fields import TEXT, Fields, null_or, number, whole
from ..io.files import read_json, write_json
from ..io.safetensors import Tensors, read_checkpoint, write_safetensors
from ..io.sources import resolve
from ..taps.compiled import compiled
from .checkpoint import REPLACED, from_tensors, stored_dtype, to_tensors
from .config import Config
from .families import PAIRS
from .hf_config import config_to_hf
from .layout import Weights
from .match import listed
from .module import Transformer
from .pooling import check_projection, pooled


@compiled
def embedding(
    weights: Weights, inputs: Array, cfg: Config, mask: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "batch d_projection"]:
    """The pooled, projected output of one model of a pair, of length 1.

    Args:
      inputs: tokens, or pictures as `forward` takes them. SigLIP reads texts padded to `n_ctx`, padding and all, which
        `load_tokenizer(folder).batch` makes.
      mask: True at real tokens; of SigLIP's padded texts everywhere.
    Raises:
      UserError: the model has no projection; what `forward` raises.
    Example:
      >>> cfg = Config(n_layers=1, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=8, d_vocab=9, n_ctx=7,
      ...              has_head=False, pool_from="last", d_projection=4)
      >>> embedding(init(cfg, jax.random.key(0)), jnp.ones((2, 7), "int32"), cfg).shape
      (2, 4)
    """
    if cfg.pool_from != "attention":  # SigLIP's pictures are in the shared space as they are pooled
        check_projection(weights)
    x = pooled(weights, inputs, cfg, mask)
    x32 = x.astype(jnp.float32)
    return (x32 / jnp.linalg.norm(x32, axis=-1, keepdims=True)).astype(x.dtype)


@compiled
def similarity(
    weights: Weights,
    pixels: Float[Array, "picture row column channel"],
    tokens: Int[Array, "text pos"],
    mask: Bool[Array, "text pos"] | None = None,
    *,
    image: Config,
    text: Config,
) -> Float[Array, "picture text"]:
    """How well each picture fits each text: exp(logit_scale) * cosine (+ logit_bias), transformers' logits_per_image.

    CLIP takes softmax over texts, SigLIP the logistic function of each.

    Args:
      weights: {"image": ..., "text": ..., "logit_scale": ..., SigLIP also "logit_bias": ...}, as `Pair.weights`.
    Source: arXiv:2103.00020 (CLIP), 2303.15343 (SigLIP); parity with transformers at 1e-5.
    Example:
      >>> sizes = dict(n_layers=1, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=8)
      >>> sizes |= dict(d_projection=4, has_head=False)
      >>> image = Config(**sizes, d_vocab=0, n_ctx=5, image=Image(size=4, patch=2), pool_from="first")
      >>> text = Config(**sizes, d_vocab=9, n_ctx=7, pool_from="last")
      >>> weights = {"image": init(image, jax.random.key(0)), "text": init(text, jax.random.key(1))}
      >>> weights |= {"logit_scale": jnp.float32(2.7)}
      >>> similarity(weights, jnp.ones((3, 4, 4, 3)), jnp.ones((2, 7), "int32"), image=image, text=text).shape
      (3, 2)
    """
    pictures, texts = embedding(weights["image"], pixels, image), embedding(weights["text"], tokens, text, mask)
    # SigLIP's files hold these numbers as arrays of one.
    scale, *bias = (weights[name].reshape(()) for name in ("logit_scale", "logit_bias") if name in weights)
    logits = pictures @ texts.T * jnp.exp(scale).astype(texts.dtype)
    return logits + bias[0].astype(logits.dtype) if bias else logits


class Pair(nnx.Module):
    """A model of pictures and one of text that were trained to agree. `similarity` is the pure function.

    `image` and `text` are ordinary models: capture, edit and probe each as any other.
    """

    def __init__(self, image: Transformer, text: Transformer, scalars: dict[str, Array], hf_config: str = "{}"):
        """hf_config: the Hugging Face config it came with, as JSON, kept for `save_pair`."""
        self.image, self.text = image, text
        self.hf_config = hf_config
        self.scalars = nnx.data({name: nnx.Param(a) for name, a in scalars.items()})

    @property
    def weights(self) -> Weights:
        """The weights of both, and the scalars, as a nested dict of arrays (the arrays themselves, not copies)."""
        scalars = {name: p.get_value() for name, p in self.scalars.items()}
        return {"image": self.image.weights, "text": self.text.weights, **scalars}

    def __call__(self, pixels: Array, tokens: Array, mask: Array | None = None) -> Float[Array, "picture text"]:
        """Logits of every picture with every text; see `similarity`."""
        return similarity(self.weights, pixels, tokens, mask, image=self.image.cfg, text=self.text.cfg)


_PREFIXES: Final = {"text": ("text_model.", "text_projection."), "image": ("vision_model.", "visual_projection.")}
_SCALARS: Final = {"clip": ("logit_scale",), "siglip": ("logit_scale", "logit_bias")}
_SUBCONFIG: Final = {"text": "text_config", "image": "vision_config"}


def load_pair(
    name: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    allow_nonfinite: bool = False,
) -> Pair:
    """Load a CLIP or SigLIP from a folder or a Hub name; arguments as in `load`.

    Raises:
      UserError: the folder holds no pair, or its tensors do not fit its config.
    """
    folder = resolve(name, revision=revision)
    hf, tensors = read_json(folder / "config.json"), read_checkpoint(folder)
    kind = hf.get("model_type") if isinstance(hf, dict) else None
    if not isinstance(kind, str) or kind not in PAIRS:
        raise unknown(
            "pair of models", shown(kind), PAIRS, where=str(folder), hint="One model is opened by models.load."
        )
    try:
        kept = json.dumps(hf, sort_keys=True, allow_nan=False)
    except ValueError:
        raise UserError(f"{folder / 'config.json'} holds NaN or infinity, which no field of a pair may be.") from None
    part = {"dtype": dtype, "mesh": mesh, "allow_nonfinite": allow_nonfinite}
    image, text = (
        from_tensors(folder, _tower_config(hf, tower), tensors.starting(*_PREFIXES[tower]), **part)
        for tower in ("image", "text")
    )
    return Pair(image, text, _scalars(folder, tensors, _SCALARS[kind], dtype), kept)


def is_pair(name: str | os.PathLike) -> bool:
    """Whether a folder or a Hub name holds a CLIP or a SigLIP, which `load_pair` opens.

    Raises:
      UserError: nothing is there.
    """
    hf = read_json(resolve(name) / "config.json")
    return isinstance(hf, dict) and hf.get("model_type") in tuple(PAIRS)


def _tower_config(hf: dict[str, Any], tower: str) -> dict[str, Any]:
    """The config of one model, as it would have it alone."""
    with Fields(hf, "config.json") as fields:
        own = fields.group(_SUBCONFIG[tower])
        own.read("model_type", TEXT, "")
        fields.read("logit_scale_init_value", number(low=-100, high=100), 0.0)  # the weight is read, this is kept
        width = fields.read("projection_dim", null_or(whole()), None) or 512
    of_the_pair = {"projection_dim": width} if hf["model_type"] == "clip" else {}
    architectures = ["WithProjection"] if of_the_pair else []
    return {**own, "model_type": PAIRS[hf["model_type"]][tower], **of_the_pair, "architectures": architectures}


def _scalars(folder: Path, tensors: Tensors, names: tuple[str, ...], dtype: Any) -> dict[str, jax.Array]:
    expected = sum(_PREFIXES.values(), ())
    extra = [n for n in tensors if n not in names and not n.startswith(expected)]
    missing = [n for n in names if n not in tensors]
    odd = [n for n in names if n in tensors and (tensors.shape(n) not in ((), (1,)) or not _finite(tensors[n]))]
    if odd:
        raise UserError(f"{folder}: {listed(odd)} should be one finite number each.")
    if extra or missing:
        wrong = [f"{what}: {listed(n)}" for what, n in (("missing", missing), ("not part of a pair", extra)) if n]
        raise UserError(f"{folder}: the weights do not fit their config.json; {'; '.join(wrong)}.")
    return {n: jnp.asarray(np.array(tensors[n], dtype or tensors.dtype(n))) for n in names}


def _finite(a: np.ndarray) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating) and bool(np.isfinite(a).all())


def save_pair(pair: Pair, folder: str | os.PathLike) -> None:
    """Write config.json and model.safetensors as transformers reads them: what was loaded comes out byte for byte.

    Raises:
      UserError: transformers' class cannot express one of the models, or the disk is full.
    """
    folder, towers = Path(folder), {"text": pair.text, "image": pair.image}
    (kind,) = [k for k, rows in PAIRS.items() if rows == {t: m.cfg.family for t, m in towers.items()}]
    old = {k: v for k, v in json.loads(pair.hf_config).items() if k not in REPLACED}
    config = {"model_type": kind, "architectures": [_CLASSES[kind]], "torch_dtype": stored_dtype(pair.image)}
    for tower, model in towers.items():
        own = {k: v for k, v in config_to_hf(model.cfg).items() if k not in _OF_THE_PAIR}
        config[_SUBCONFIG[tower]] = {**(old.get(_SUBCONFIG[tower]) or {}), **own}
    if kind == "clip":
        config["projection_dim"] = pair.image.cfg.d_projection
    scalars = {name: np.asarray(p.get_value()) for name, p in pair.scalars.items()}
    tensors = {**to_tensors(pair.text), **to_tensors(pair.image), **scalars}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {**old, **config})


_OF_THE_PAIR: Final = ("architectures", "projection_dim")
"""Keys that a model alone has, and in a pair the pair."""
_CLASSES: Final = {"clip": "CLIPModel", "siglip": "SiglipModel"}
