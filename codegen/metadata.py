"""``metadata.json``: one typed row per kernel with everything the runtime needs to load and launch it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from . import parameter_block, places
from .errors import MetadataError
from .report import Report
from .spec import KernelSpec
from .tiles import order_of, tile_of
from .verified import trial_of

FORMAT = 4


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel. The first fields are those of its spec; bytes for sizes, rows and keys for tiles.

    ``source_sha256`` is of everything that was compiled. ``verified`` says by what kernels of its family are known
    to be right: today, also in a folder that was built when less was known.
    """

    arch: str
    phase: str
    dtype: str
    out_dtype: str
    head_dim: int
    head_dim_v: int
    mask: str
    paged: bool
    skip: str
    softcap: bool
    alibi: bool
    kv_dtype: str
    name: str
    key: int
    entry: str
    cubin: str
    tile_m: int
    tile_n: int
    group_rows: int
    order: str
    stages: int
    threads: int
    ctas_per_sm: int
    smem_bytes: int
    tmem_columns: int
    registers: int
    spill_bytes: int
    cubin_sha256: str
    source_sha256: str
    compiler: str
    params_size: int
    verified: str

    @property
    def spec(self) -> KernelSpec:
        """The spec this kernel was rendered from."""
        return KernelSpec(*(getattr(self, field.name) for field in fields(KernelSpec)))

    @property
    def keys_dtype(self) -> str:
        """What keys and values are stored in."""
        return self.dtype if self.kv_dtype == "same" else self.kv_dtype


_TYPES = {field.name: {"str": str, "int": int, "bool": bool}[str(field.type)] for field in fields(Kernel)}


def kernel_of(spec: KernelSpec, report: Report, cubin: str) -> Kernel:
    """The row of a compiled kernel; ``cubin`` is the path relative to the metadata file."""
    return Kernel(
        **_geometry(spec),
        cubin=cubin,
        registers=report.registers,
        spill_bytes=report.spill_bytes,
        cubin_sha256=report.cubin_sha256,
        source_sha256=report.source_sha256,
        compiler=report.compiler,
    )


def _geometry(spec: KernelSpec) -> dict[str, Any]:
    tile = tile_of(spec)
    return {
        **spec.values,
        "name": spec.name,
        "key": spec.key,
        "entry": spec.name,
        "tile_m": tile.tile_m,
        "tile_n": tile.tile_n,
        "group_rows": tile.group_rows,
        "order": order_of(spec),
        "stages": tile.stages,
        "threads": tile.threads,
        "ctas_per_sm": tile.ctas_per_sm,
        "smem_bytes": tile.smem_bytes(spec),
        "tmem_columns": tile.tmem_columns(spec),
        "params_size": parameter_block.SIZE,
        "verified": trial_of(spec).result,
    }


def listing(spec: KernelSpec, kernel: Kernel | None, stale: bool = False) -> dict[str, Any]:
    """The row of ``--list --json``: as the metadata, null for what only a built kernel has.

    ``stale`` = the kernel was built from other sources than those of now; such a kernel does not count as ``built``.
    """
    unbuilt = dict.fromkeys(("registers", "spill_bytes", "cubin_sha256"))
    row = {**unbuilt, **_geometry(spec), **(dict(vars(kernel)) if kernel else {})}
    row |= {"built": kernel is not None and not stale, "stale": stale}
    row["tile"] = [row["tile_m"], row["tile_n"]]
    return row


def _digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def dump(kernels: Iterable[Kernel]) -> str:
    """The text of ``metadata.json``: the same kernels give the same bytes."""
    rows = [dict(vars(kernel)) for kernel in sorted(kernels, key=lambda kernel: kernel.key)]
    document = {
        "format": FORMAT,
        "package": "skimattn",
        "params_layout_sha256": parameter_block.layout_sha256(parameter_block.FIELDS),
        "compilers": sorted({row["compiler"] for row in rows}),
        "kernels_sha256": _digest(rows),
        "kernels": rows,
    }
    return json.dumps(document, indent=1) + "\n"


def _again() -> str:
    return f"run {places.command()} again"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MetadataError(f"{path}: cannot be read: {error.strerror}") from error


def load(path: Path) -> tuple[Kernel, ...]:
    """Read and check ``metadata.json``.

    Raises:
        FileNotFoundError: nothing was built there.
        MetadataError: the file cannot be read, is truncated, damaged, foreign, or of another version of this package.
    """
    data = _content(path)
    try:
        document = json.loads(data)
    except ValueError as error:
        raise MetadataError(f"{path}: not JSON, truncated or damaged ({error}); {_again()}") from error
    if not isinstance(document, dict) or document.get("package") != "skimattn":
        raise MetadataError(f"{path}: not a skimattn metadata file")
    layout = parameter_block.layout_sha256(parameter_block.FIELDS)
    for name, wanted in (("format", FORMAT), ("params_layout_sha256", layout)):
        if document.get(name) != wanted:
            raise MetadataError(f"{path}: {name}: expected {wanted} (got {document.get(name)}); {_again()}")
    rows = document.get("kernels")
    if not isinstance(rows, list):
        raise MetadataError(f"{path}: kernels: expected a list (got {type(rows).__name__})")
    if document.get("kernels_sha256") != _digest(rows):
        raise MetadataError(f"{path}: kernels_sha256 does not match the rows, the file was changed; {_again()}")
    return tuple(parse_kernel(row, str(path)) for row in rows)


def parse_kernel(row: Mapping[str, Any], origin: str) -> Kernel:
    """Check one row against the tables of this package; ``MetadataError`` names ``origin``, kernel and field."""
    if not isinstance(row, Mapping):
        raise MetadataError(f"{origin}: kernel: expected an object (got {type(row).__name__})")
    label = f"{origin}: kernel {row.get('name', '?')}"
    if unlike := sorted(_TYPES.keys() ^ row.keys()):
        raise MetadataError(f"{label}: missing or unknown fields {', '.join(unlike)}")
    for name, kind in _TYPES.items():
        if type(row[name]) is not kind:
            raise MetadataError(f"{label}: {name}: expected {kind.__name__} (got {row[name]!r})")
    kernel = Kernel(**row)
    try:
        geometry = _geometry(kernel.spec)
    except (ValueError, KeyError) as error:
        raise MetadataError(f"{label}: {error}") from error
    known = geometry.pop("verified")
    for name, wanted in geometry.items():
        if row[name] != wanted:
            raise MetadataError(f"{label}: {name}: expected {wanted!r} (got {row[name]!r})")
    if Path(kernel.cubin).is_absolute() or ".." in Path(kernel.cubin).parts:
        raise MetadataError(f"{label}: cubin: expected a path below the metadata file (got {kernel.cubin!r})")
    return replace(kernel, verified=known)


def read_cubin(kernel: Kernel, folder: Path) -> bytes:
    """The bytes of a kernel's cubin, checked against the hash in its row.

    Raises:
        MetadataError: the file is missing, cannot be read, is truncated, damaged or another kernel's.
    """
    path = folder / kernel.cubin
    try:
        data = _content(path)
    except FileNotFoundError as error:
        raise MetadataError(
            f"{kernel.name}: cubin {path} is missing: a build is at work there, or has to be run again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != kernel.cubin_sha256:
        raise MetadataError(
            f"{kernel.name}: cubin {path} has sha256 {found[:16]}... (expected {kernel.cubin_sha256[:16]}...): "
            f"truncated, damaged or another kernel's; {_again()}"
        )
    return data
