# SPDX-License-Identifier: Apache-2.0
"""A model and the text it reads, opened together: what does not fit is known before anything is computed."""

from typing import Any

from jax.sharding import Mesh

from ..console import say
from ..data import BOS, Paired, TextFields, Tokenizer, Windows, load_tokenizer, read_groups, windows
from ..errors import UserError, shown, unknown
from ..models import Transformer, load, load_pair
from ..models.inputs import check_length
from ..models.pair import is_pair


def model_and_tokenizer(
    name: str, *, dtype: Any = None, mesh: Mesh | None = None, bos: str = "auto", tower: str | None = None
) -> tuple[Transformer, Tokenizer]:
    """Both of one folder or name, as `load` and `load_tokenizer` know them.

    Args:
      bos: a word of `data.BOS`: whether texts begin with the begin token.
      tower: of two models in one folder that which is meant: "text".
    Raises:
      UserError: as these; a model of pictures; two models, of which none is chosen; the model has no embedding for what
        stands around every text.
    """
    pair = check_tower(name, tower, "text")
    model = load_pair(name, dtype=dtype, mesh=mesh).text if pair else load(name, dtype=dtype, mesh=mesh)
    if not isinstance(model, Transformer) or model.cfg.image is not None:
        raise UserError(
            f"{name} holds a model of pictures, which reads no text: give it pictures with --pictures FOLDER (commands "
            "study and capture), or choose a model of text."
        )
    if bos not in BOS:
        raise unknown("bos", bos, BOS)
    tokenizer = load_tokenizer(name, bos=BOS[bos])
    tokenizer.check_vocabulary(model.cfg.d_vocab)
    return model, tokenizer


def check_tower(name: str, tower: str | None, reads: str) -> bool:
    """Whether a folder holds two models, of pictures ("image") and of text ("text").

    Args:
      tower: which of them was asked for; None: that of pictures.
      reads: which of them what is given is for.
    Raises:
      UserError: one is asked for where there are not two, or another one than reads this.
    """
    pair = is_pair(name)
    if tower is not None and not pair:
        raise UserError(f"{shown(name)} holds one model, so there is no tower to choose. Leave --tower out.")
    if pair and (tower or "image") != reads:
        raise UserError(
            f"{shown(name)} holds two models, of pictures and of text. For study and capture, give it pictures with "
            "--pictures FOLDER (--tower image) or text with --tower text. For other commands, choose a model of text."
        )
    return pair


def read_windows(
    model: Transformer,
    tokenizer: Tokenizer,
    groups: str,
    *,
    length: int,
    packing: str = "auto",
    max_tokens_per_group: int | None = None,
    fields: TextFields = TextFields(),
) -> Windows:
    """Text as rows of `length` tokens that the model can take.

    Args:
      groups: as `jaxneuro.data.read_groups` has it.
      packing: see `jaxneuro.data.windows`; "auto": "windows" for a causal model, "documents" for an encoder, also that
        of a model with one, which is what reads the text.
      fields: what in the files is text. Text that names no groups is one group.
    Raises:
      UserError: more tokens than a table of learned positions has; a token without an embedding; as `read_groups`
        and `windows`.
    """
    check_length(model.cfg, length, f"rows of {length} positions are asked for", "Choose a smaller `length`.")
    if packing == "auto":
        packing = "windows" if model.cfg.causal and model.cfg.encoder is None else "documents"
    texts = read_groups(groups, one_group=True, **fields.arguments())
    if note := texts.skipped_note():
        say(note)
    rows = windows(texts, tokenizer, length=length, packing=packing, max_tokens_per_group=max_tokens_per_group)
    rows.check_vocabulary(model.cfg.d_vocab)
    return rows


def read_pairs(
    model: Transformer,
    tokenizer: Tokenizer,
    groups: str,
    answers: str,
    *,
    length: int,
    fields: TextFields = TextFields(),
) -> Paired:
    """Texts for a model's encoder, and answers to them for its decoder, both as rows of `length` tokens.

    Args:
      groups, answers: as `groups` of `read_windows`, of the same groups and numbers of documents.
    Raises:
      UserError: the model has no encoder, or does not say how answers begin; as `read_windows` and `Paired`.
    """
    if model.cfg.encoder is None:
        raise UserError(f"this {model.cfg.family} model has no encoder and decoder that read different texts.")
    texts, said = (read_windows(model, tokenizer, name, length=length, fields=fields) for name in (groups, answers))
    return Paired(texts, said, model.start_token)
