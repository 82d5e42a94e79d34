"""Where kernels are found: the build's output folder, then the cache of kernels compiled on first use."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from skimattn.codegen import matrix, metadata
from skimattn.codegen.compile import Report
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.spec import KernelSpec

from .nearest import not_built

if TYPE_CHECKING:
    from skimattn.codegen.pipeline import Sources

LOGGER = logging.getLogger("skimattn")
FOLDER_VARIABLE = "SKIMATTN_KERNELS"  # a folder with metadata.json
JIT_VARIABLE = "SKIMATTN_JIT"  # 0 = never compile while running
_UNBUILT = Report("", "", "", "", 0, 0, 0.0, 0)


@dataclass(frozen=True)
class Located:
    """A kernel's row, and the folder that its ``cubin`` path starts from."""

    kernel: Kernel
    folder: Path


def describe(spec: KernelSpec) -> Kernel:
    """A kernel's row with everything known before it is built; hashes are empty, registers 0."""
    return metadata.kernel_of(spec, _UNBUILT, cubin="")


def folder() -> Path | None:
    """The folder of built kernels: ``SKIMATTN_KERNELS``, or ``generated`` of the checkout that this runs from."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "generated" if (checkout / "build.py").is_file() else None


def built() -> dict[KernelSpec, Located]:
    """What ``metadata.json`` of the folder holds, read once per folder and process.

    Raises:
        MetadataError: the file is damaged, truncated or foreign.
    """
    place = folder()
    return {} if place is None else _read(place)


@cache
def _read(place: Path) -> dict[KernelSpec, Located]:
    try:
        rows = metadata.load(place / "metadata.json")
    except FileNotFoundError:
        return {}
    return {row.spec: Located(row, place) for row in rows}


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
    return os.environ.get(JIT_VARIABLE, "1") != "0"


def obtain(spec: KernelSpec) -> tuple[Kernel, bytes]:
    """A kernel's row and its checked cubin; compiled now if it was never built.

    A kernel that was built from other sources than those of now is used all the same, with a warning.

    Raises:
        NoKernelError: it is not built and ``SKIMATTN_JIT=0``.
        BuildError: compiling it failed, or its files are damaged.
    """
    located = find(spec)
    if located is not None:
        if is_stale(located.kernel):
            LOGGER.warning(
                "%s: %s holds it as other sources than those of now made it, and that is what runs; to renew it: %s",
                spec.name,
                located.folder,
                matrix.build_command(spec),
            )
        return located.kernel, metadata.read_cubin(located.kernel, located.folder)
    if not jit_enabled():
        raise not_built(spec, built(), f"and {JIT_VARIABLE}=0 forbids compiling it now")
    from skimattn.codegen.jit import compile_spec  # imports the compiler, which most processes never need

    return compile_spec(spec)
