# SPDX-License-Identifier: Apache-2.0
"""No command ends in a traceback for a fault of its surroundings: one line, exit code 2; advice is in flags."""

import dataclasses
import errno
import functools
import re
import subprocess
import sys

import pytest

from jaxneuro import cli
from jaxneuro.cli import main
from jaxneuro.cli.capture import Capture
from jaxneuro.cli.flags import flags_of, in_flags
from jaxneuro.errors import UserError
from jaxneuro.study import StudyConfig


def failing(monkeypatch, error, config=None):
    def job(config=None):
        raise error

    monkeypatch.setattr(cli, "_job", lambda words: functools.partial(job, config))


SURROUNDINGS = {
    "a long name": (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "may have 255 bytes"),
    "a size limit": (OSError(errno.EFBIG, "File too large", "run.lock"), "cannot write run.lock: File too large"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), "Free some space"),
    "a missing file": (FileNotFoundError(errno.ENOENT, "No such file", "a.npz"), "cannot read a.npz: No such file."),
    "no memory": (MemoryError("Unable to allocate 7.28 TiB"), r"not enough memory \(Unable to allocate 7.28 TiB\)"),
    "no device memory": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes"), "not enough memory"),
    "a number too large": (OverflowError("Python int too large"), "--seed 1180591620717411303424 is too large"),
    "a request": (UserError("use packing='documents', not n=3"), "use --text.packing documents, not n=3"),
    "an escape": (UserError("no tensor '\x1b[2J'"), "no tensor '␛\\[2J'"),
}


@pytest.mark.parametrize(("error", "said"), SURROUNDINGS.values(), ids=list(SURROUNDINGS))
def test_faults_of_the_surroundings_are_one_line(error, said, monkeypatch, capsys):
    failing(monkeypatch, error, StudyConfig())
    assert main(["study", "--seed", str(2**70)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxneuro: ")
    assert err.count("\n") == 1
    assert re.search(said, err), err


def test_faults_of_the_program_show_where_they_are(monkeypatch):
    failing(monkeypatch, ZeroDivisionError("a mistake"))
    with pytest.raises(ZeroDivisionError):
        main(["study"])
    failing(monkeypatch, UserError("asked"))
    monkeypatch.setenv("JAXNEURO_TRACEBACK", "1")
    with pytest.raises(UserError):
        main(["study"])


def test_advice_is_in_the_commands_own_flags():
    flags = flags_of(StudyConfig())
    assert flags["packing"] == flags["text.packing"] == "--text.packing"
    assert in_flags('packing="documents" or text.window=64, max_tokens=5.', StudyConfig()).startswith(
        "--text.packing documents or --text.window 64,"
    )
    assert in_flags("see x.packing=3, b=packing", StudyConfig()) == "see x.packing=3, b=packing"
    capture = Capture(model="m", site=("a",), out="o")
    assert in_flags("dtype='float32' of model='b'", capture) == "--dtype float32 of MODEL b"

    @dataclasses.dataclass
    class Job:
        keep: bool = False

    assert in_flags("pass keep=True or keep=False", Job()) == "pass --keep or --no-keep"


def test_a_name_that_the_locale_cannot_spell_is_said(capsys):
    assert main(["sites", "caf\udcc3\udca9"]) == 2
    assert "Set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in capsys.readouterr().err


def test_a_reader_that_goes_is_no_error():
    code = "import sys; from jaxneuro.cli import main; sys.exit(main(['capture', '--help']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.wait(timeout=60)
    child.stderr.close()
    assert child.returncode in (0, 1)
