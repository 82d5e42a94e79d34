"""Where kernels are found: the build's output folder, then the cache of kernels compiled on first use."""

from __future__ import annotations

import logging
import stat
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from skimattn.codegen import metadata, places, sets, variables
from skimattn.codegen.errors import MetadataError
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.report import Report, read_report
from skimattn.codegen.spec import KernelSpec

from .nearest import not_built

if TYPE_CHECKING:
    from skimattn.codegen.pipeline import Sources

LOGGER = logging.getLogger("skimattn")
FOLDER_VARIABLE = places.VARIABLE
JIT_VARIABLE = "SKIMATTN_JIT"  # off = never compile while running
_METADATA = "metadata.json"
_UNBUILT = Report("", "", "", "", 0, 0, 0.0, 0)


@dataclass(frozen=True)
class Located:
    """A kernel's row, and the folder that its ``cubin`` path starts from."""

    kernel: Kernel
    folder: Path


def unbuilt_row(spec: KernelSpec) -> Kernel:
    """A kernel's row with everything known before it is built; hashes are empty, registers 0."""
    return metadata.kernel_of(spec, _UNBUILT, cubin="")


def built() -> dict[KernelSpec, Located]:
    """What ``metadata.json`` of the folder holds now; it is read again only when a build has replaced it.

    Raises:
        ArgumentError: ``SKIMATTN_KERNELS`` names a folder that is not there.
        MetadataError: the file is damaged, truncated or foreign, cannot be read, or everybody can write it.
    """
    place = places.folder()
    return {} if place is None else _read(place, _state(place))


def _state(place: Path) -> tuple[int, ...] | None:
    """Tells the metadata of one build from the next's, which is another file; None if there is none.

    Whose the files are is not asked: who names the folder, or runs from its checkout, takes code from there anyway.
    """
    try:
        file, above = (place / _METADATA).stat(), place.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MetadataError(f"{place / _METADATA}: cannot be read: {error.strerror}") from error
    for path, status in ((place, above), (place / _METADATA, file)):
        if status.st_mode & stat.S_IWOTH:
            raise MetadataError(f"{path}: every user can write to it, so no kernel is loaded from it; chmod o-w {path}")
    return file.st_ino, file.st_mtime_ns, file.st_size


@lru_cache(maxsize=4)
def _read(place: Path, state: tuple[int, ...] | None) -> dict[KernelSpec, Located]:
    if state is None:
        return {}
    return {row.spec: Located(row, place) for row in metadata.load(place / _METADATA)}


def find(spec: KernelSpec) -> Located | None:
    """The built kernel, if there is one."""
    return built().get(spec)


def is_stale(kernel: Kernel) -> bool:
    """Whether a built kernel was made from other sources than those installed. Costs milliseconds: never per launch."""
    from skimattn.codegen import emit, pipeline  # renders, which most processes never need

    return pipeline.is_stale(kernel, _sources(emit.templates_root()))


@cache
def _sources(_root: Path) -> Sources:
    from skimattn.codegen.pipeline import Sources

    return Sources()


def jit_enabled() -> bool:
    """Whether missing kernels may be compiled on first use."""
    return variables.switch(JIT_VARIABLE, default=True)


def _from_build(spec: KernelSpec) -> tuple[Located, bytes] | None:
    """The built kernel and its checked cubin, also while a build replaces them."""
    located = find(spec)
    if located is None:
        return None
    try:
        return located, metadata.read_cubin(located.kernel, located.folder)
    except MetadataError:
        renewed = _renewed(located) or find(spec)
        if renewed is None or renewed == located:
            raise
        return renewed, metadata.read_cubin(renewed.kernel, renewed.folder)


def _renewed(located: Located) -> Located | None:
    """The kernel as its own report tells it, which a build writes long before the metadata of the whole folder."""
    cubin = located.kernel.cubin
    report = read_report((located.folder / cubin).with_suffix(".json"))
    row = None if report is None else metadata.kernel_of(located.kernel.spec, report, cubin)
    return None if row is None or row == located.kernel else Located(row, located.folder)


def obtain(spec: KernelSpec) -> tuple[Kernel, bytes]:
    """A kernel's row and its checked cubin; compiled now if it was never built.

    A kernel that was built from other sources than those of now is used all the same, with a warning.

    Raises:
        ArgumentError: an environment variable cannot be understood.
        NoKernelError: it is not built and ``SKIMATTN_JIT=0``.
        BuildError: compiling it failed, or its files are damaged.
    """
    found = _from_build(spec)
    if found is not None:
        located, cubin = found
        if is_stale(located.kernel):
            LOGGER.warning(
                "%s: %s holds it as other sources than those of now made it, and that is what runs; to renew it: %s",
                spec.name,
                located.folder,
                sets.build_command(spec),
            )
        return located.kernel, cubin
    if not jit_enabled():
        raise not_built(spec, built(), f"and {JIT_VARIABLE}=0 forbids compiling it now")
    from skimattn.codegen.jit import compile_spec  # imports the compiler, which most processes never need

    return compile_spec(spec)
