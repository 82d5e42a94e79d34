"""Files that survive ``kill -9`` and each other: everything is written aside and renamed into place."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"  # suffix of files that are being written; a build sweeps what a killed one left


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; readers see the old bytes or the new ones, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY}")
    temporary.write_bytes(data)
    temporary.replace(path)


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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
