"""Files that survive ``kill -9`` and each other: everything is written aside and renamed into place."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".skimattn-tmp"  # suffix of files that are being written; a later writer sweeps what a killed one left


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; readers see the old bytes or the new ones, never a part.

    The file is its owner's to write and everybody's to read; the folder decides who gets that far. An ``OSError``
    names a file, also one that comes while writing, such as of a full disk.
    """
    descriptor, temporary = tempfile.mkstemp(TEMPORARY, f"{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(data)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_if_changed(path: Path, text: str) -> bool:
    """Write ``text`` atomically, and only if the file differs, so that timestamps mean change."""
    data = text.encode()
    try:
        if path.read_bytes() == data:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return True


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold an exclusive lock and yield its descriptor; ``waiting`` is called once if someone else has it.

    The kernel drops the lock when the last process that inherited the descriptor has ended, however it ended.
    A child that is given the descriptor therefore keeps the lock for as long as it writes.
    """
    # Note: others must not be able to open it: whoever can may hold the lock for ever.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
