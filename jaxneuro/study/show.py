# SPDX-License-Identifier: Apache-2.0
"""One dictionary, trained anywhere, judged on a model and shown: its own page, without a study of neurons."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from ..console import say
from ..data import Bos, TextFields
from ..errors import UserError, quoted, shown
from ..io import read_json, write_json
from ..io.fields import check_counts
from .config import CardConfig, DictionaryConfig, EffectConfig, StudyConfig, TextConfig, check_ranges
from .folder import RunFolder
from .run import summary

_RANGES: Final = {
    "seed": (0, None),
    "n": (0, None),
    "window": (8, None),
    "max_tokens_per_group": (1, None),
    "max_norm": (1.01, None),
    "without_ids": (0, None),
}
"""As of a study."""
_TOKENS: Final = 4096
"""Of a forward pass: windows per pass are as many as hold them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowDictionary(TextFields):
    """Judge a dictionary on a model and show its latents: FVU, L0, loss recovered, examples, tokens, group rates."""

    path: Annotated[str, tyro.conf.Positional]
    """A folder, file or repository of the Hub, of any library that `jaxneuro.dictionaries.load_dictionary` reads; or
    the --out of `jaxneuro train-dictionary`."""
    model: str | None = None
    """A folder, a name on the Hub, or `bundled`; None: the model that the dictionary's files name."""
    groups: str = "bundled"
    """Text, as `jaxneuro study --groups` takes it; one group is enough."""
    out: Path = Path("jaxneuro-dictionary-report")
    """Folder for report.html and results.json."""
    site: str | None = None
    """One site of one layer; None: the one that the files name (TransformerLens' hook names too)."""
    subfolder: str | None = None
    """Of the folder or repository."""
    latents: str | None = None
    """Latents to show, such as 0,7,12; None: the most group-selective and the most active."""
    n: int = 60
    """Latents shown if none are named."""
    window: int | None = None
    """Tokens per window; None: the context that the files name, else 128."""
    bos: Bos | None = None
    """Whether windows begin with the begin token; None: as the files say, else by the tokenizer's convention."""
    packing: Literal["auto", "apart", "windows", "documents"] = "auto"
    """As in `jaxneuro study`. auto: apart for a decoder, documents for an encoder."""
    max_tokens_per_group: int | None = 16_384
    """Use at most this much of each group."""
    without_ids: tuple[int, ...] = ()
    """Token ids that are neither judged nor shown, beside special tokens: a sink's, say."""
    without_positions: tuple[int, ...] = ()
    """Positions that are not, 0 being the first token of each window."""
    max_norm: float | None = None
    """Nor tokens whose residual stream, after any layer, is longer than so many times the median norm there."""
    title: str | None = None
    """Heading of the page; None: the dictionary, the model and the groups."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"


def show_dictionary(asked: ShowDictionary) -> Path:
    """Judge and show; the folder with report.html, results.json and dictionary.json.

    Raises:
      UserError: what cannot be done, in flags, before anything is written.
    Example:
      >>> show_dictionary(ShowDictionary(path="study/dictionary", model="bundled"))             # doctest: +SKIP
      PosixPath('jaxneuro-dictionary-report')
    """
    config = study_of(asked)
    with RunFolder(config.out, {"command": "show-dictionary"} | config.identity()).opened() as folder:
        say(f"loading {shown(config.model)}")
        from .inputs import load_inputs
        from .judging import activations, judged_dictionary
        from .results import write_shown

        inputs = load_inputs(config, neurons=False)
        folder.same_inputs(inputs.fingerprint())
        say(f"judging {shown(asked.path)} at {inputs.dictionary_site}: {inputs.conventions}")

        def judge() -> None:
            found = judged_dictionary(inputs, folder, inputs.given, *activations(inputs, folder))
            write_json(folder / "dictionary.json", found)

        folder.step("dictionary", ("dictionary.json",), judge)
        folder.forget("report")
        folder.step("report", ("results.json", "report.html"), lambda: write_shown(inputs, folder))
        print("\n".join(summary(read_json(folder / "results.json"), details=True)))
    print(f"report:  {config.out / 'report.html'}\nresults: {config.out / 'results.json'}")
    return config.out


def study_of(asked: ShowDictionary) -> StudyConfig:
    """The settings of a study that does the same to the dictionary, with what the files say filled in.

    Raises:
      UserError: no model is named anywhere; latents that are no numbers; as `open_given`.
    """
    from .given import begins, open_given

    check_counts(asked)
    check_ranges(dataclasses.asdict(asked), _RANGES)
    latents = numbers(asked.latents)
    chosen = DictionaryConfig(path=asked.path, subfolder=asked.subfolder, site=asked.site, latents=latents)
    given = open_given(chosen)
    place = given.place if given else None
    model = asked.model or (place.model if place else None)
    if model is None:
        raise UserError(f"the files of {shown(asked.path, 200)} do not name a model. Give --model FOLDER_OR_HUB_NAME.")
    window = asked.window or (place.context if place else None) or TextConfig().window
    text = TextConfig(
        **{f.name: getattr(asked, f.name) for f in dataclasses.fields(TextFields)},
        window=window, bos=begins(asked.bos, place), packing=asked.packing,
        max_tokens_per_group=asked.max_tokens_per_group, without_ids=asked.without_ids,
        without_positions=asked.without_positions, max_norm=asked.max_norm,
    )  # fmt: skip
    return StudyConfig(
        model=model, groups=asked.groups, out=asked.out, title=asked.title, seed=asked.seed, dtype=asked.dtype,
        batch=max(1, _TOKENS // window), text=text, cards=CardConfig(latents=asked.n), dictionary=chosen,
        effect=EffectConfig(tokens_per_group=max(EffectConfig().tokens_per_group, 6 * window)),
    ).resolved()  # fmt: skip


def numbers(text: str | None) -> tuple[int, ...]:
    """The text "0,7,12" as numbers.

    Raises:
      UserError: something else.
    """
    words: list[Any] = [w.strip() for w in text.split(",")] if text else []
    if bad := [w for w in words if not w.isdecimal() or len(w) > 9]:
        raise UserError(f"--latents {shown(text)}: {quoted(bad[0])} is no number of a latent. Give 0,7,12, say.")
    return tuple(map(int, words))
