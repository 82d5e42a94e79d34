"""The folder that builds write to: whether it is ours to write to, and how what builds made is removed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import emit, metadata, ninja_file
from .errors import BuildError, MetadataError, expected
from .features import BY_NAME
from .files import TEMPORARY, locked, write_if_changed

METADATA = "metadata.json"
LOG = "build_log.json"
LOCK = ".lock"
_NAMED = 4  # files of a long list that are named
_ARCHS = tuple(map(str, BY_NAME["arch"].values))
_KERNEL_FILES = (".cu", ".cubin", ".json")
# Files whose names others use too, and what is in those that builds wrote, from the first version on.
_MARKS = {
    METADATA: b'"package": "skimattn"',
    LOG: b'"median_seconds"',
    ninja_file.NAME: b"skimattn.codegen.compile",
}
_OWN_FILES = (*_MARKS, ".ninja_log", ".ninja_deps", LOCK)


def require_own(folder: Path) -> None:
    """Refuse a folder in which a build would overwrite, or ``--clean`` remove, what no build made. Writes nothing.

    Raises:
        ArgumentError: it is no folder, lies below a file, or holds such files.
        OSError: it cannot be looked into.
    """
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if place.exists() or place.is_symlink():
            raise expected("--out", "a folder, or the name of one to be made", f"{folder}: {place} is no folder")
    if foreign := _foreign(folder):
        names = [str(path.relative_to(folder)) for path in foreign]
        text = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise expected("--out", "a folder without files that a build would overwrite", f"{folder}: not ours: {text}")


def _foreign(folder: Path) -> list[Path]:
    """Files with the names of ours that are not."""
    made = _made(folder)  # Note: before the lock, which a build that begins meanwhile makes first
    locked_before = _is_lock(folder / LOCK)
    foreign = [folder / name for name, mark in _MARKS.items() if not _is_own(folder / name, mark, locked_before)]
    if foreign or locked_before or (folder / METADATA).exists():
        return foreign
    return [path for path in made if path.exists()]


def _is_lock(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _is_own(path: Path, mark: bytes, locked_before: bool) -> bool:
    """Whether a build wrote the file, or would not overwrite anything; in a folder of ours damaged ones are ours."""
    if not path.exists():
        return not path.is_symlink()
    if not path.is_file():
        return False
    data = path.read_bytes()
    return mark in data or (locked_before and path.suffix == ".json" and not _is_json(data))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def temporaries(folder: Path) -> list[Path]:
    """What killed builds left half written. Only where builds write: the folder may be one that holds other things."""
    places = (folder, folder / "include" / "skimattn", *(folder / arch for arch in _ARCHS))
    return [path for place in places for path in place.glob("*" + TEMPORARY)]


def _kernel_files(folder: Path, archs: Iterable[str]) -> list[Path]:
    """Everything of kernels of these architectures."""
    found = [path for arch in archs for path in (folder / arch).glob("skim_*")]
    return [path for path in found if path.suffix in (*_KERNEL_FILES, TEMPORARY)]


def _made(folder: Path) -> list[Path]:
    """All that builds made."""
    names = (*(f"include/skimattn/{name}" for name in emit.HEADERS), *_OWN_FILES)
    files = (*_kernel_files(folder, _ARCHS), *temporaries(folder), *(folder / name for name in names))
    return [path for path in dict.fromkeys(files) if path.exists()]


@dataclass(frozen=True)
class Removal:
    """What ``--clean`` is about to remove.

    Attributes:
        folder: the output folder.
        files: what goes, in order.
        kept: the rows that stay in ``metadata.json``; None: it goes as well.
    """

    folder: Path
    files: tuple[Path, ...]
    kept: tuple[metadata.Kernel, ...] | None

    def run(self) -> None:
        """Remove them, and the folders that are empty then."""
        if not self.files:
            return
        with locked(self.folder / LOCK):
            if self.kept is not None:
                _rewrite(self.folder, self.kept)
            for path in self.files:
                path.unlink(missing_ok=True)
        include = self.folder / "include"
        archs = [self.folder / arch for arch in _ARCHS]
        for empty in (*archs, include / "skimattn", include, self.folder):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


def removal(folder: Path, archs: Collection[str] = ()) -> Removal:
    """What builds made in ``folder`` and nothing else; of these architectures, or everything. Writes nothing.

    Raises:
        ArgumentError: it is no folder, or not ours.
        BuildError: no build was made there; with ``archs``, ``metadata.json`` is damaged.
    """
    require_own(folder)
    if not folder.is_dir():
        return Removal(folder, (), None)
    if any(folder.iterdir()) and not ((folder / LOCK).exists() or (folder / METADATA).exists()):
        raise BuildError(f"{folder}: no build was made here, nothing is removed")
    if not archs:
        return Removal(folder, tuple(_made(folder)), None)
    files = tuple(_kernel_files(folder, archs))
    try:
        rows = metadata.load(folder / METADATA)
    except FileNotFoundError:
        return Removal(folder, files, None)
    except MetadataError as error:
        raise BuildError(f"{error}; or remove everything with --clean alone") from error
    return Removal(folder, files, tuple(row for row in rows if row.arch not in archs))


def _rewrite(folder: Path, kept: tuple[metadata.Kernel, ...]) -> None:
    write_if_changed(folder / METADATA, metadata.dump(kept))
    names = {row.name for row in kept}
    try:
        measured = json.loads((folder / LOG).read_bytes())["kernels"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return  # the next build writes it anew
    write_if_changed(folder / LOG, log_text({name: measured[name] for name in measured if name in names}))


def log_text(kernels: Mapping[str, Mapping[str, float]]) -> str:
    """The text of ``build_log.json``, from seconds and MB by kernel name."""
    seconds = [kernel["seconds"] for kernel in kernels.values()]
    summary = {"median_seconds": statistics.median(seconds or [0.0]), "total_seconds": round(sum(seconds), 1)}
    return json.dumps({**summary, "kernels": dict(kernels)}, indent=1) + "\n"
