# SPDX-License-Identifier: Apache-2.0
"""One run per folder, whoever died before."""

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys

import pytest

from jaxneuro.activations import lock
from jaxneuro.activations.lock import exclusive
from jaxneuro.errors import UserError

HOLD = """
import sys, time
from jaxneuro.activations.lock import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def write(path, **owner):
    (path / "run.lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()} | owner))


def test_a_second_run_is_told_who_holds_it(tmp_path, holder):
    with pytest.raises(UserError, match=rf"being written by process {holder.pid} on {socket.gethostname()} \(since"):
        exclusive(tmp_path).__enter__()


def test_a_killed_run_leaves_no_lock(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run.lock").exists()
    with caplog.at_level(logging.WARNING), exclusive(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert f"took over the lock that process {holder.pid}" in caplog.text
    assert not (tmp_path / "run.lock").exists()


def test_released_after_an_error_and_taken_again(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path / "new"):
            raise KeyError


def test_a_lock_on_a_file_that_its_holder_removed_is_no_lock(tmp_path, monkeypatch):
    """Between our opening the file and our locking it the run before ended: the name is free for others."""
    real, removed = lock._lock, []

    def late(fd, owner):
        if not removed:
            removed.append((tmp_path / "run.lock").unlink())
        return real(fd, owner)

    monkeypatch.setattr(lock, "_lock", late)
    with exclusive(tmp_path), pytest.raises(UserError, match="is being written by"):
        exclusive(tmp_path).__enter__()


def test_two_names_in_one_folder_are_two_locks(tmp_path):
    with exclusive(tmp_path, ".a.lock"), exclusive(tmp_path, ".b.lock"):
        assert sorted(os.listdir(tmp_path)) == [".a.lock", ".b.lock"]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_cut_text_is_nobody(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    with exclusive(tmp_path):
        pass


def test_without_flock_the_text_decides(tmp_path, monkeypatch):
    def unsupported(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    write(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        exclusive(tmp_path).__enter__()
    write(tmp_path, host="elsewhere")
    with pytest.raises(UserError, match="on elsewhere"):
        exclusive(tmp_path).__enter__()
    write(tmp_path, pid=2**22 + 1)  # above Linux' largest
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the folder"):
        exclusive(tmp_path / "file").__enter__()


def test_a_lock_that_cannot_be_signed_is_not_left_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left"):
        exclusive(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_one_dead_run_is_mentioned_once_and_its_temporary_files_go(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    (tmp_path / "checkpoints").mkdir()
    write(tmp_path / "checkpoints", pid=holder.pid)
    left = [tmp_path / f".run.json.{holder.pid}.tmp", tmp_path / "checkpoints" / f".a.json.{holder.pid}.tmp"]
    kept = [tmp_path / f".run.json.{os.getpid()}.tmp", tmp_path / ".notes.tmp", tmp_path / "a.1.tmp"]
    for path in (*left, *kept):
        path.write_text("{")
    with caplog.at_level(logging.WARNING), exclusive(tmp_path), exclusive(tmp_path / "checkpoints"):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)
    assert caplog.text.count("took over the lock") == 1
