# SPDX-License-Identifier: Apache-2.0
"""Small pictures inside of a report: as the model sees them, so that its patches are where they are marked."""

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..data import PictureRows
from ..data.processor import pillow

SIDE: Final = 128
"""Pixels of the longer side, at most; smaller pictures stay as they are, in PNG, and are shown with sharp pixels."""


def thumbnails(rows: PictureRows, wanted: Iterable[int]) -> dict[str, dict[str, Any]]:
    """{number of a picture: its name, a data URI, and whether its pixels are few}.

    Example:
      >>> thumbnails(rows, [3])["3"]["src"][:22]                                                # doctest: +SKIP
      'data:image/jpeg;base64,'
    """
    return {str(i): _thumbnail(rows, i) for i in sorted(set(wanted))}


def _thumbnail(rows: PictureRows, i: int) -> dict[str, Any]:
    image, a = pillow("showing pictures"), rows.shown(i)
    picture = image.fromarray(a[..., 0] if a.shape[2] == 1 else a)
    few = max(picture.size) <= SIDE // 2
    kind = "png" if few else "jpeg"
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, kind, **({} if few else {"quality": 80}))
    data = base64.b64encode(out.getvalue()).decode()
    return {"name": rows.files[i].name, "src": f"data:image/{kind};base64,{data}", "few": few}


def shown_in(*cards: Iterable[Mapping[str, Any]] | None) -> set[int]:
    """Numbers of the pictures that stand on cards as examples."""
    return {e["window"] for some in cards for card in some or [] for e in card.get("examples") or []}
