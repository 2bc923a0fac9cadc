# SPDX-License-Identifier: Apache-2.0
"""One run per folder: a lock file that says who holds it and that the kernel releases when its holder dies."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError, shown
from ..io import json_text
from ..io.files import clear_temporary

NAME = "run.lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike, name: str = NAME) -> Iterator[None]:
    """Hold a folder for this run; a second run that wants it is told who has it.

    The file `name` in it names process, host and start; `flock` on it is the lock itself, so that a run that was
    killed leaves no lock behind, only a stale text, which the next run takes over and mentions in the log. On file
    systems without `flock` the text decides: a live process on this host, or any process on another host, holds it.

    Raises:
      UserError: another run holds the folder, or the folder cannot be made.
    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with exclusive(folder): sorted(os.listdir(folder))
      ['run.lock']
      >>> os.listdir(folder)
      []
    """
    path = Path(folder) / name
    fd = _take(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def _take(path: Path) -> int:
    while True:
        fd = _open(path)
        try:
            owner = _owner(fd)
            if not _lock(fd, owner):
                raise _held(path, owner)
            if _same_file(fd, path):  # otherwise its last holder removed it between our open and our lock
                return _sign(fd, path, owner)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise UserError(f"cannot use {shown(path, 400)}: the name is too long. Choose a shorter one.") from e
        raise UserError(f"cannot use the folder {path.parent}: {e.strerror or e}. Choose another one.") from e


def _lock(fd: int, owner: dict) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno in _UNSUPPORTED and not _alive(owner)
    return True


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _sign(fd: int, path: Path, owner: dict) -> int:
    who = (owner.get("pid"), owner.get("host"))
    if owner and who not in _mentioned:  # a run holds a folder and its checkpoints: two locks, one message
        _mentioned.add(who)
        _log.warning("%s: took over the lock that %s left behind", path, _name(owner))
    text = json_text({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T%z")})
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)
    except OSError as e:
        path.unlink(missing_ok=True)  # it is ours by now, and nobody would remove it
        raise UserError(f"cannot write {path}: {e.strerror or e}. Choose another folder.") from e
    clear_temporary(path.parent)
    return fd


_mentioned: set[tuple[object, object]] = set()


def _owner(fd: int) -> dict:
    try:
        owner = json.loads(os.pread(fd, 4096, 0))
        return owner if isinstance(owner, dict) else {}
    except (ValueError, RecursionError):  # empty, or its writer died within the write
        return {}


def _alive(owner: dict) -> bool:
    if not owner:
        return False
    if owner.get("host") != socket.gethostname():
        return True  # nobody here can know
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _name(owner: dict) -> str:
    if not owner:
        return "another process"
    return f"process {shown(owner.get('pid'))} on {shown(owner.get('host'))} (since {shown(owner.get('since'))})"


def _held(path: Path, owner: dict) -> UserError:
    return UserError(
        f"{path.parent} is being written by {_name(owner)}, which holds {path.name}. Two runs cannot write one place: "
        f"wait for it, stop it, or choose another name. If that run is surely gone, delete {path}."
    )
