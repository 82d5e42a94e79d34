"""Compiles a kernel on first use, in this process, into a cache that all processes of the user share.

Entries are named by content key, written aside and renamed, so readers, writers and killed processes do not
disturb each other; a lock per entry only keeps two of them from doing the same work.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from . import ptxas
from .compile import compile_kernel, key_of, read_report, stale_reason, write_result
from .errors import BuildError
from .files import locked
from .metadata import Kernel, kernel_of, read_cubin
from .pipeline import Sources
from .spec import KernelSpec
from .toolchain import Toolchain, find_toolchain
from .unit import Unit

LOGGER = logging.getLogger("skimattn")
CACHE_VARIABLE = "SKIMATTN_CACHE"  # folder of the cache


def cache_folder() -> Path:
    """``SKIMATTN_CACHE``, or ``skimattn`` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skimattn"


def compile_spec(spec: KernelSpec, cache: Path | None = None) -> tuple[Kernel, bytes]:
    """The kernel of ``spec`` from the cache, compiled with NVRTC if it is not there yet.

    Args:
        spec: an accepted spec of the matrix.
        cache: folder of the cache; default :func:`cache_folder`.
    Returns:
        The kernel's row, with ``cubin`` relative to the cache folder, and the cubin.
    Raises:
        BuildError: NVRTC is missing, refuses the source, or ptxas reports spills and the like.
    """
    folder = cache_folder() if cache is None else cache
    unit, toolchain = Sources().unit(spec), find_toolchain("nvrtc")
    stem = folder / f"{spec.name}-{key_of(unit, toolchain, ptxas.allowed(spec))[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(stem.with_suffix(".lock")):
            if stale_reason(stem, unit, toolchain, ptxas.allowed(spec)):
                _compile(spec, unit, toolchain, stem)
            return _read(spec, stem)
    except OSError as error:
        raise BuildError(
            f"{spec.name}: the cache folder {folder} cannot be used ({error}); {CACHE_VARIABLE} names another"
        ) from error


def _compile(spec: KernelSpec, unit: Unit, toolchain: Toolchain, stem: Path) -> None:
    LOGGER.info("compiling %s with %s", spec.name, toolchain.id)
    cubin, report = compile_kernel(unit, toolchain, ptxas.allowed(spec))
    write_result(stem, cubin, report)
    LOGGER.info("compiled %s in %.1f s into %s", spec.name, report.seconds, stem.parent)


def _read(spec: KernelSpec, stem: Path) -> tuple[Kernel, bytes]:
    report = read_report(stem.with_suffix(".json"))
    assert report is not None, stem
    kernel = kernel_of(spec, report, stem.with_suffix(".cubin").name)
    return kernel, read_cubin(kernel, stem.parent)
