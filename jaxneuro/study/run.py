# SPDX-License-Identifier: Apache-2.0
"""The study itself: every step in order, those already done left out."""

import dataclasses
from pathlib import Path
from typing import Any

from ..console import say
from ..errors import pictures, shown
from ..io import read_json
from .config import StudyConfig
from .folder import RunFolder


def run_study(config: StudyConfig) -> Path:
    """Run a study, or go on with one; the folder with its results.

    Args:
      config: see `StudyConfig`; the command line's flags are its fields.
    Raises:
      UserError: what cannot be done, before anything is written where possible.
    Example:
      >>> run_study(StudyConfig(out=Path("study"), preset="small"))                             # doctest: +SKIP
      PosixPath('study')
    """
    config = with_begin(config.resolved())
    with RunFolder(config.out, config.identity()).opened() as folder:
        say(f"loading {shown(config.model)}")
        from .inputs import load_inputs  # heavy: after the folder is known to be ours
        from .results import title
        from .steps import STEPS

        inputs = load_inputs(config)
        folder.same_inputs(inputs.fingerprint())
        for line in inputs.said():
            say(line)
        if _title(folder) != title(config, inputs.groups):
            folder.forget("report")
        for number, step in enumerate(STEPS, 1):
            if folder.done(step.name):
                say(f"{number}/{len(STEPS)} {step.title}: done before")
                continue
            say(f"{number}/{len(STEPS)} {step.title}")
            folder.step(step.name, step.leaves(inputs), lambda step=step: step.function(inputs, folder))
        if folder.done("report"):
            print("\n".join(summary(read_json(folder / "results.json"))))
    print(f"report:  {config.out / 'report.html'}\nresults: {config.out / 'results.json'}")
    return config.out


def with_begin(config: StudyConfig) -> StudyConfig:
    """The study with `text.bos` decided: as it says, else as its given dictionary was trained, else "auto"."""
    bos = config.text.bos or "auto"
    if config.text.bos is None and config.dictionary.path is not None:
        from .given import begin_of

        bos = begin_of(config.dictionary.path, config.dictionary.subfolder)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, bos=bos))


def _title(folder: RunFolder) -> str | None:
    """The heading of the report that is there."""
    return read_json(folder / "results.json").get("title") if folder.done("report") else None


def summary(results: dict[str, Any], *, details: bool = False) -> list[str]:
    """The findings of results.json as lines for a terminal, each with its verdict where there is one.

    Args:
      details: also the numbers behind each.

    Example:
      >>> summary({"title": "t", "findings": [{"claim": "All is so.", "detail": "", "holds": True}]})
      ['t', '  ✓ All is so.']
    """
    sign = {True: "✓", False: "✗", None: "·"}
    claims = [f"  {sign[f['holds']]} {f['claim']}" for f in results.get("findings", [])]
    if details:
        claims = [line for c, f in zip(claims, results["findings"], strict=True) for line in (c, f"    {f['detail']}")]
    return [pictures(results.get("title", "")), *claims]
