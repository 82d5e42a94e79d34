"""The support matrix of README.md, from the tables: ``python -m skimattn.codegen.support README.md`` rewrites it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from . import matrix
from .features import BY_NAME
from .spec import KernelSpec
from .tiles import tile_of

COMMAND = "python -m skimattn.codegen.support README.md"
BEGIN = f"<!-- support matrix: {COMMAND} -->"
END = "<!-- end of support matrix -->"


def table() -> str:
    """What kernels exist, as Markdown."""
    specs = matrix.all_specs()
    sizes = ", ".join(f"{len(matrix.specs(name))} in `{name}`" for name in matrix.SETS)
    archs = sorted({spec.arch for spec in specs})
    lines = [f"Kernels: {sizes}. " + " ".join(_arch_line(specs, arch) for arch in archs), ""]
    return "\n".join([*lines, *_mask_table(specs), "", *_head_dim_table(specs)])


def _arch_line(specs: Iterable[KernelSpec], arch: str) -> str:
    mine = [spec for spec in specs if spec.arch == arch]
    words = [f"{name} {', '.join(_values(mine, name))}" for name in ("phase", "dtype", "skip")]
    return f"`{arch}`: {'; '.join(words)}; every combination below for each."


def _values(specs: Iterable[KernelSpec], name: str) -> list[str]:
    found = {getattr(spec, name) for spec in specs}
    return [f"`{value}`" for value in BY_NAME[name].values if value in found]


_COLUMNS: Mapping[str, Callable[[KernelSpec], bool]] = {
    "batched or ragged": lambda spec: not (spec.paged or spec.softcap or spec.alibi),
    "paged": lambda spec: spec.paged and not (spec.softcap or spec.alibi),
    "with softcap or alibi": lambda spec: spec.softcap or spec.alibi,
}


def _mask_table(specs: Iterable[KernelSpec]) -> list[str]:
    """Masks against layouts and score options: the sets that hold the kernels."""
    lines = ["| mask | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for mask in BY_NAME["mask"].values:
        mine = [spec for spec in specs if spec.mask == mask]
        cells = [_cell(spec for spec in mine if belongs(spec)) for belongs in _COLUMNS.values()]
        lines.append(f"| `{mask}` | " + " | ".join(cells) + " |")
    return lines


def _cell(specs: Iterable[KernelSpec]) -> str:
    """The sets that the kernels are in; ``smoke`` is a sample of ``default``, and ``full`` holds everything."""
    found = {"default" if matrix.in_default(spec) else "full" for spec in specs}
    return " and ".join(sorted(found)) or "no"


def _head_dim_table(specs: Iterable[KernelSpec]) -> list[str]:
    tiles = {(spec.head_dim, spec.head_dim_v): tile_of(spec) for spec in specs}
    lines = ["| head_dim of q, k | of v | tile (queries x keys) |", "|---|---|---|"]
    for (dim, dim_v), tile in sorted(tiles.items()):
        lines.append(f"| {dim} | {dim_v} | {tile.tile_m} x {tile.tile_n} |")
    return lines


def between_markers(text: str) -> str:
    """What stands between the markers in a README; ``ValueError`` if they are not both there, in order."""
    _, begin, rest = text.partition(BEGIN + "\n")
    inside, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return inside


def update(path: Path) -> bool:
    """Rewrite the support matrix in a README; returns whether it changed."""
    text = path.read_text(encoding="utf-8")
    old, new = (f"{BEGIN}\n{inside}{END}" for inside in (between_markers(text), f"{table()}\n"))
    if old == new:
        return False
    path.write_text(text.replace(old, new), encoding="utf-8")
    return True


def main(arguments: list[str]) -> None:
    """Print the matrix, or rewrite it in the files named."""
    if not arguments:
        print(table())
    for name in arguments:
        print(f"{name}: {'rewritten' if update(Path(name)) else 'up to date'}")


if __name__ == "__main__":
    main(sys.argv[1:])
