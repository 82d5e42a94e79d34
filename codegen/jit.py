"""Compiles a kernel on first use, in this process, into a cache that all processes of the user share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from . import cache, ptxas
from .compile import compile_kernel, key_of
from .errors import BuildError
from .files import locked
from .metadata import Kernel, kernel_of
from .pipeline import Sources
from .report import Report
from .spec import KernelSpec
from .toolchain import Toolchain, find_toolchain
from .unit import Unit

LOGGER = logging.getLogger("skimattn")


def compile_spec(spec: KernelSpec, folder: Path | None = None) -> tuple[Kernel, bytes]:
    """The kernel of ``spec`` from the cache, compiled with NVRTC if it is not there yet.

    A kernel that is there is read without a lock, so the folder may be read-only. Findings of ptxas that would fail a
    build are warnings here: a compiler that users have must not keep them from running.

    Args:
        spec: an accepted spec of the matrix.
        folder: folder of the cache; default :func:`skimattn.codegen.cache.default_folder`.
    Returns:
        The kernel's row, with ``cubin`` relative to the cache folder, and the cubin.
    Raises:
        BuildError: NVRTC is missing or refuses the source, or the cache cannot be used.
    """
    folder = cache.default_folder() if folder is None else folder
    unit, toolchain = Sources().unit(spec), find_toolchain("nvrtc")
    key = key_of(unit, toolchain, ptxas.allowed(spec))
    name = f"{spec.name}-{key[:16]}"
    try:
        report, cubin = cache.read(folder, name, key) or _fill(folder, name, spec, unit, toolchain)
    except OSError as error:
        raise BuildError(
            f"{spec.name}: it is not in the cache folder {folder}, which cannot be used to compile it into ({error}); "
            f"set {cache.VARIABLE} to a folder that can be written, or fill this one as a user who can"
        ) from error
    return kernel_of(spec, report, f"{name}.cubin"), cubin


def _fill(folder: Path, name: str, spec: KernelSpec, unit: Unit, toolchain: Toolchain) -> tuple[Report, bytes]:
    cache.prepare(folder)
    with locked(folder / f"{name}.lock"):  # only keeps two from doing the same work
        allowed = ptxas.allowed(spec)
        if found := cache.read(folder, name, key_of(unit, toolchain, allowed)):
            return found
        LOGGER.info("compiling %s with %s", spec.name, toolchain.id)
        cubin, report = compile_kernel(unit, toolchain, allowed, _warn)
        cache.write(folder, name, report, cubin)
        LOGGER.info("compiled %s in %.1f s into %s", spec.name, report.seconds, folder)
        return report, cubin


def _warn(unit: Unit, findings: Sequence[str], _log: str) -> None:
    LOGGER.warning(
        "%s: it runs, perhaps slower than it should, since this compiler's ptxas reports %s",
        unit.name,
        "; ".join(findings),
    )
