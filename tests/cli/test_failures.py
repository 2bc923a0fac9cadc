# SPDX-License-Identifier: Apache-2.0
"""No command ends in a traceback for a fault of its surroundings: one line, exit code 2; advice is in flags."""

import dataclasses
import errno
import functools
import re
import signal
import subprocess
import sys
from typing import Literal

import jax
import pytest

from jaxneuro import cli
from jaxneuro.activations.lock import exclusive
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
    "a program that XLA cannot run": (
        jax.errors.JaxRuntimeError("INTERNAL: operation failed: error\nmore"),
        "XLA cannot run this: INTERNAL: operation failed: error. Where memory is short",
    ),
    "a number too large": (OverflowError("Python int too large"), "--seed 1180591620717411303424 is too large"),
    "a request": (UserError("use packing='documents', not n=3"), "use --packing documents, not n=3"),
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
    assert flags["packing"] == flags["text.packing"] == "--packing"
    assert in_flags('packing="documents" or text.window=64, max_tokens=5.', StudyConfig()).startswith(
        "--packing documents or --window 64,"
    )
    assert in_flags("see x.packing=3, b=packing", StudyConfig()) == "see x.packing=3, b=packing"
    capture = Capture(model="m", site=("a",), out="o")
    assert in_flags("dtype='float32' of model='b'", capture) == "--dtype float32 of MODEL b"

    @dataclasses.dataclass
    class Job:
        keep: bool = False

    assert in_flags("pass keep=True or keep=False", Job()) == "pass --keep or --no-keep"


def test_a_value_is_taken_by_the_flag_that_has_it_of_two_of_one_name():
    @dataclasses.dataclass
    class Inner:
        kind: Literal["b"] = "b"

    @dataclasses.dataclass
    class Job:
        kind: Literal["a"] = "a"
        inner: Inner = dataclasses.field(default_factory=Inner)

    said = in_flags("kind='a', kind='b', inner.kind='b', inner.kind='a'", Job())
    assert said == "--kind a, kind='b', --inner.kind b, inner.kind='a'"


def test_a_name_that_the_locale_cannot_spell_is_said(capsys):
    assert main(["sites", "caf\udcc3\udca9"]) == 2
    assert "Set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sites", "bundled", "--pos", "0"], "--pos 0 is not a positive whole number"),
        (["sites", "bundled", "--pos", "-1"], "--pos -1 is not a positive whole number"),
        (["sites", "bundled", "--pos", str(2**62)], f"--pos {2**62} is above {2**31 - 1}"),
        (["generate", "bundled", "--prompt", "a", "--top-k", str(2**70)], f"--top-k {2**70} is above"),
        (["capture", "bundled", "--site", "embed", "--batch", str(10**12)], f"--batch {10**12} is above"),
        (["capture", "bundled", "--site", "embed", "--devices.data", str(2**31)], "--devices.data 2147483648 is above"),
        (["show-dictionary", "none", "--window", str(2**31)], "--window 2147483648 is above"),
        (["study", "--seed", str(2**32)], f"--seed {2**32} is above {2**32 - 1}"),
        (["study", "--dictionary.latents", str(2**31)], "--dictionary.latents 2147483648 is above"),
        (["train-dictionary", "--seed", str(2**70), "array", "--path", "a.npy", "topk", "--n-latents", "8", "--k", "2"],
         f"--seed {2**70} is above {2**32 - 1}"),
    ],
)  # fmt: skip
def test_numbers_that_no_run_has_are_refused_by_every_command(words, said, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"jaxneuro: {said}")


def test_sigterm_unwinds_as_ctrl_c_does(monkeypatch, capsys, tmp_path):
    """The lock goes; a second signal acts at once, and afterwards everything is as it was."""

    def job():
        with exclusive(tmp_path):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli, "_job", lambda words: job)
    assert main(["study"]) == 128 + signal.SIGTERM
    assert "Run the same command again to go on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_with_a_handler_of_somebody_else(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    try:
        monkeypatch.setattr(cli, "_job", lambda words: lambda: signal.raise_signal(signal.SIGTERM))
        assert main(["study"]) == 0
        assert seen == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">/dev/full", 2, "jaxneuro: cannot write the output: No space left on device. Free some space"),
        (">&-", 0, ""),
        ("2>/dev/full", 0, ""),
    ],
)
def test_streams_that_take_nothing(redirected, code, said):
    """A full disk behind the output is one line; a closed output is nobody's fault."""
    command = f"{sys.executable} -W ignore -m jaxneuro --version {redirected}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def test_a_reader_that_goes_is_no_error():
    code = "import sys; from jaxneuro.cli import main; sys.exit(main(['capture', '--help']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.wait(timeout=60)
    child.stderr.close()
    assert child.returncode in (0, 1)
