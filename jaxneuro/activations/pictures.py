# SPDX-License-Identifier: Apache-2.0
"""A model and the pictures it reads, opened together, as `text.py` opens a model and its text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from ..console import say
from ..data import PictureFields, PictureRows, Pictures, Places, Processor, load_processor, read_pictures
from ..data.picture_rows import COUNTED
from ..errors import UserError, shown, unknown
from ..models import ConvModel, Transformer, load, load_pair
from ..taps import capture
from .site import by_text
from .text import check_tower

TAKES_TEXT: Final = "give it text with --groups, or choose a model of pictures"


@functools.cache
def with_mask(apply: Callable[..., Array]) -> Callable[..., Array]:
    """A convolutional network's function as statistics call every model: it has no use for a mask of positions."""

    def run(weights: Any, pixels: Array, mask: Array | None = None, *, stop_at: int | None = None) -> Array:
        del mask, stop_at  # one picture does not see another, and what nobody reads is not computed
        return apply(weights, pixels)

    return run


class Convolutional(NamedTuple):
    """A `ConvModel` with the interface that statistics and stores know."""

    model: ConvModel

    @property
    def cfg(self) -> Any:
        """Its configuration."""
        return self.model.cfg

    @property
    def weights(self) -> Any:
        """Its weights."""
        return self.model.weights

    @property
    def apply(self) -> Callable[..., Array]:
        """The pure function (weights, pixels, mask, *, stop_at); the last two change nothing."""
        return with_mask(self.model.apply)


type PictureModel = Transformer | Convolutional


def model_and_processor(
    name: str, *, dtype: Any = None, mesh: Mesh | None = None, tower: str | None = None
) -> tuple[PictureModel, Processor]:
    """Both of one folder or name, as `load` and `load_processor` know them; of a CLIP or SigLIP the picture's half.

    Raises:
      UserError: as these; a model of text; another `tower` than "image".
    """
    options = {"dtype": dtype, "mesh": mesh}
    model: Any = load_pair(name, **options).image if check_tower(name, tower, "image") else load(name, **options)
    if isinstance(model, Transformer) and model.cfg.image is None:
        raise UserError(f"{shown(name)} holds a model of text, which reads no pictures: {TAKES_TEXT}.")
    return (Convolutional(model) if isinstance(model, ConvModel) else model), load_processor(name)


def channels_of(model: PictureModel) -> int:
    """Of the pictures that it reads."""
    return model.cfg.channels if isinstance(model, Convolutional) else model.cfg.image.channels  # type: ignore[union-attr]


def stacks_of(model: PictureModel) -> dict[str, int]:
    """{what stands before "blocks.": number of blocks}."""
    if isinstance(model, Convolutional):
        return {f"stage{i}.": depth for i, depth in enumerate(model.cfg.depths)}
    return {"": model.cfg.n_layers}


def places_of(model: PictureModel, site: str, shape: Sequence[int], counted: str = "patches") -> Places:
    """Where in a picture the values of a site are.

    Args:
      shape: rows, columns and channels of the pictures.
      counted: a row of `jaxneuro.data.picture_rows.COUNTED`.
    Raises:
      UserError: pictures of another size than the model takes; no such site; a site without places.
    """
    if counted not in COUNTED:
        raise unknown("kind of position", counted, COUNTED)
    if isinstance(model, Convolutional):
        return Places(_grid(model, site, shape), 0, "patches")
    image = model.cfg.image
    assert image is not None
    if tuple(shape) != (image.size, image.size, image.channels):
        raise UserError(
            f"the model takes pictures of {image.size} x {image.size} pixels and {image.channels} channels; its "
            f"processor makes {' x '.join(map(str, shape))}. Mend preprocessor_config.json in the model's folder."
        )
    side = image.size // image.patch
    return Places((side, side), len(image.prefix) + image.registers, counted)


def _grid(model: Convolutional, site: str, shape: Sequence[int]) -> tuple[int, int]:
    pixels = jax.ShapeDtypeStruct((1, *shape), "float32")
    value = jax.eval_shape(capture(model.apply, [site]), model.weights, pixels)[1][site]
    if by_text(site):
        return 1, 1
    if len(value.shape) < 4:
        raise UserError(f"{site!r} has the shape {value.shape}: one value per picture, without rows and columns.")
    return value.shape[-3], value.shape[-2]


def picture_groups(path: str, fields: PictureFields, seed: int) -> Pictures:
    """`read_pictures` as a command asks for it; what was passed over is said. Pictures in no group are one group."""
    pictures = read_pictures(
        path,
        path_field=fields.path_field,
        group_field=fields.group_field,
        document_field=fields.document_field,
        most_per_group=fields.most_per_group,
        skip_bad=fields.skip_bad,
        seed=seed,
        one_group=True,
    )
    for note in filter(None, (pictures.skipped_note(), pictures.moving_note())):
        say(note)
    return pictures


def picture_rows(
    model: PictureModel, processor: Processor, pictures: Pictures, site: str, counted: str = "patches"
) -> PictureRows:
    """Pictures as rows of the site's places.

    Raises:
      UserError: as `places_of` and `PictureRows`.
    """
    first = next(files for files in pictures.values() if len(files))[0]
    channels = channels_of(model)
    shape = processor(first.convert("L" if channels == 1 else "RGB"))[0].shape
    return PictureRows(pictures, processor, places_of(model, site, shape, counted), channels=channels)


def alike(model: PictureModel, sites: Sequence[str], shape: Sequence[int]) -> list[tuple[str, ...]]:
    """The sites, apart by what they have rows of: patches of one grid, pictures."""
    found: dict[Any, list[str]] = {}
    for site in sites:
        found.setdefault((by_text(site), places_of(model, site, shape).grid), []).append(site)
    return [tuple(some) for some in found.values()]
