"""The folder of kernels that were compiled on first use: whose files are trusted, and how many are kept.

Entries are named by content key, written aside and renamed, so readers, writers and killed processes do not disturb
each other. Machine code from here runs with the rights of the process: only what this user or root wrote, and nobody
else can write, is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from . import variables
from .errors import BuildError
from .files import TEMPORARY
from .report import Report, parse_report, write_result

VARIABLE = "SKIMATTN_CACHE"  # folder of the cache
MAX_BYTES = 512 << 20  # kept, those used last; a cubin has about 100 KB, so this is several times the full set
LEFTOVER_SECONDS = 3600.0  # after which a lock or a half-written file has no owner: compiling takes seconds
_ENTRY = re.compile(r"(skim_\w+-[0-9a-f]{16})\.(?:cubin|json|lock)(?:\.\w+" + re.escape(TEMPORARY) + ")?")


def default_folder() -> Path:
    """``SKIMATTN_CACHE``, or ``skimattn`` in the user's cache folder.

    Raises:
        BuildError: neither that variable nor a home folder is known.
    """
    if named := variables.path(VARIABLE):
        return named
    if os.path.isabs(shared := os.environ.get("XDG_CACHE_HOME", "")):  # relative ones are to be ignored
        return Path(shared) / "skimattn"
    try:
        return Path.home() / ".cache" / "skimattn"
    except RuntimeError as error:
        raise BuildError(
            f"no folder for kernels that are compiled on first use: uid {os.getuid()} has no home folder and HOME is "
            f"not set; set {VARIABLE} to a folder"
        ) from error


def prepare(folder: Path) -> None:
    """Make the folder if it is not there.

    It is private. Only where root makes the folder that ``SKIMATTN_CACHE`` names can others read it: nobody trusts
    what another user wrote, but everybody what root did, and so a container's root can fill it for the users.
    """
    shared = os.geteuid() == 0 and folder == variables.path(VARIABLE)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(0o755 if shared else 0o700)


def distrust(status: os.stat_result) -> str:
    """Why a file or folder could be another user's work; empty if it cannot."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to uid {status.st_uid}, which is neither this user ({os.geteuid()}) nor root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others than its owner may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder, checked once and then held, so that it cannot be exchanged between check and use."""
    if folder.is_symlink():
        raise _refused(folder, "it is a symbolic link")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if why := distrust(os.fstat(descriptor)):
            raise _refused(folder, why)
        yield descriptor
    finally:
        os.close(descriptor)


def _refused(folder: Path, why: str) -> BuildError:
    return BuildError(
        f"the cache folder {folder} is not trusted: {why}; set {VARIABLE} to a folder that only this user or root "
        "writes to, or correct owner and mode"
    )


def _content(directory: int, name: str) -> bytes | None:
    """A file's bytes; None if it is not there, or is a link or another user's, which is to be replaced."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError:
        if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return None
        raise
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        return None if not stat.S_ISREG(status.st_mode) or distrust(status) else file.read()


def read(folder: Path, name: str, content_key: str) -> tuple[Report, bytes] | None:
    """The entry ``name`` and its cubin; None if it is not there, damaged, or not this content. Takes no lock.

    Raises:
        BuildError: the folder is not trusted.
        OSError: it cannot be read.
    """
    try:
        with _opened(folder) as directory:
            text, cubin = (_content(directory, f"{name}.{suffix}") for suffix in ("json", "cubin"))
            report = None if text is None else parse_report(text)
            if report is None or cubin is None or report.content_key != content_key:
                return None
            if hashlib.sha256(cubin).hexdigest() != report.cubin_sha256:
                return None
            with suppress(OSError):  # of a folder that is only read
                os.utime(f"{name}.json", dir_fd=directory)  # when it was used last
            return report, cubin
    except FileNotFoundError:
        return None


def write(folder: Path, name: str, report: Report, cubin: bytes) -> None:
    """Keep a kernel, and drop what was used longest ago beyond :data:`MAX_BYTES`."""
    write_result(folder / name, cubin, report)
    trim(folder)


@dataclass(frozen=True)
class Entry:
    """The files of one kernel: their bytes together, and when it was used last, in seconds since 1970."""

    name: str
    files: tuple[str, ...]
    size: int
    used: float

    @property
    def complete(self) -> bool:
        """Whether there is a kernel, not only what a killed process left."""
        return {f"{self.name}.json", f"{self.name}.cubin"} <= {*self.files}


def entries(folder: Path) -> list[Entry]:
    """What the cache holds, that used last first. Files of other kinds do not count.

    Raises:
        BuildError: the folder is not trusted.
    """
    found: dict[str, list[tuple[str, os.stat_result]]] = {}
    try:
        with _opened(folder) as directory, os.scandir(directory) as files:
            for file in files:
                if match := _ENTRY.fullmatch(file.name):
                    with suppress(FileNotFoundError):  # another process removes it
                        found.setdefault(match.group(1), []).append((file.name, file.stat(follow_symlinks=False)))
    except FileNotFoundError:
        return []
    return sorted((_entry(name, parts) for name, parts in found.items()), key=lambda entry: entry.used, reverse=True)


def _entry(name: str, parts: list[tuple[str, os.stat_result]]) -> Entry:
    size, used = sum(status.st_size for _, status in parts), max(status.st_mtime for _, status in parts)
    return Entry(name, tuple(file for file, _ in parts), size, used)


def trim(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Remove what was used longest ago, so that ``max_bytes`` stay, and what killed processes left."""
    kept, now = 0, time.time()
    for entry in entries(folder):
        kept += entry.size
        stale = now - entry.used > LEFTOVER_SECONDS
        if kept > max_bytes or (stale and not entry.complete):
            _remove(folder, entry.files)
        elif stale:
            _remove(folder, [file for file in entry.files if file.endswith(TEMPORARY)])


def clear(folder: Path) -> int:
    """Remove every entry; returns how many kernels there were. What else lies in the folder stays."""
    gone = entries(folder)
    for entry in gone:
        _remove(folder, entry.files)
    return sum(entry.complete for entry in gone)


def _remove(folder: Path, names: list[str] | tuple[str, ...]) -> None:
    with _opened(folder) as directory:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
