# SPDX-License-Identifier: Apache-2.0
"""The study itself: every step in order, those already done left out."""

import sys
from pathlib import Path

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
    config = config.resolved()
    with RunFolder(config.out, config.identity()).opened() as folder:
        print(f"loading {config.model}", file=sys.stderr)
        from .inputs import load_inputs  # heavy: after the folder is known to be ours
        from .steps import STEPS

        inputs = load_inputs(config)
        folder.same_inputs(inputs.fingerprint())
        for number, step in enumerate(STEPS, 1):
            if folder.done(step.name):
                print(f"{number}/{len(STEPS)} {step.title}: done before", file=sys.stderr)
                continue
            print(f"{number}/{len(STEPS)} {step.title}", file=sys.stderr)
            folder.step(step.name, step.files, lambda step=step: step.function(inputs, folder))
    print(f"report:  {config.out / 'report.html'}\nresults: {config.out / 'results.json'}")
    return config.out
