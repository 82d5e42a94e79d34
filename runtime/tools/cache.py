"""What ``python -m skimattn cache`` says of the kernels that were compiled on first use."""

from __future__ import annotations

import time

from skimattn.codegen import cache

_MIB = 1 << 20


def summary() -> list[str]:
    """Folder, number of kernels, MiB, the bound, and one line per kernel, that used last first.

    Raises:
        BuildError: the cache folder is not known or not trusted.
        OSError: it cannot be read.
    """
    folder = cache.default_folder()
    kept = [entry for entry in cache.entries(folder) if entry.complete]
    size = sum(entry.size for entry in kept) / _MIB
    lines = [f"{folder}: {len(kept)} kernels, {size:.1f} MiB of at most {cache.MAX_BYTES // _MIB} MiB"]
    for entry in kept:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        lines.append(f"{used}  {entry.size / _MIB:6.2f} MiB  {entry.name}")
    return lines


def clear() -> str:
    """Remove them all; returns what was done. Raises as :func:`summary`."""
    folder = cache.default_folder()
    return f"{cache.clear(folder)} kernels removed from {folder}"
