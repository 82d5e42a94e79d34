"""The support matrix of README.md, from the tables: ``python -m skimattn.codegen.support README.md`` rewrites it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from . import matrix, sets
from .arch import ARCHS
from .features import BY_NAME
from .spec import KernelSpec
from .tiles import tile_of
from .verified import trials_of

COMMAND = "python -m skimattn.codegen.support README.md"
BEGIN = f"<!-- support matrix: {COMMAND} -->"
END = "<!-- end of support matrix -->"


def table() -> str:
    """What kernels exist, as Markdown."""
    specs = [spec for spec in matrix.all_specs() if spec.phase not in matrix.HELPERS]
    sizes = ", ".join(f"{len(sets.specs(name))} in `{name}`" for name in sets.SETS)
    kinds = ", ".join(_values(specs, "skip"))
    lines = [
        f"Kernels: {sizes}. Every architecture, phase and type has every combination below, each as {kinds}. `combine` "
        "merges what `decode` left of requests that several CTAs computed: one kernel for each type and head_dim of v. "
        + _caches(specs)
        + _prefill_of_bytes(specs)
        + _prefill_of_hopper(specs)
        + " `mla` is decode in latent form: masks `full` and `causal`, batched, ragged, paged, with softcap, no alibi.",
        "",
    ]
    lines += [*_arch_table(), "", *_mask_table(specs), "", *_head_dim_table(specs)]
    return "\n".join(lines)


def _arch_table() -> list[str]:
    """Architectures: what they read and write, how many kernels they have, and how these are known to be right."""
    lines = ["| | GPUs | input | output | `default`, `full` | how far its kernels were tried |", "|---" * 6 + "|"]
    for arch in ARCHS.values():
        mine = sets.specs("full", archs=[arch.name])
        read = ", ".join(_values(mine, "dtype"))
        tried = "; ".join(f"`{trial.kernels}` {trial.result}" for trial in trials_of(mine))
        counts = "; ".join(_count(arch.name, str(phase)) for phase in BY_NAME["phase"].values if _has(mine, phase))
        lines.append(f"| `{arch.name}` | {arch.gpus} | {read} | {_outputs(mine)} | {counts} | {tried} |")
    return lines


def _has(specs: Iterable[KernelSpec], phase: object) -> bool:
    return any(spec.phase == phase for spec in specs)


def _count(arch: str, phase: str) -> str:
    """How many kernels of a phase are in ``default`` and in ``full``."""
    default, full = (len(sets.specs(name, {"phase": [phase]}, [arch])) for name in ("default", "full"))
    return f"`{phase}` {default}, {full}"


def _caches(specs: Iterable[KernelSpec]) -> str:
    """Which types of queries go with caches of another type."""
    mixed = [spec for spec in specs if spec.kv_dtype != "same"]
    common = _values((spec for spec in mixed if sets.in_default(spec)), "dtype")
    rare = [f"{name} (in `full`)" for name in _values(mixed, "dtype") if name not in common]
    caches, phases = ", ".join(_values(mixed, "kv_dtype")), ", ".join(_values(mixed, "phase"))
    archs = ", ".join(_values(mixed, "arch"))
    return f"Caches of {caches} under queries of {', '.join([*common, *rare])}: {phases} on {archs}."


def _prefill_of_bytes(specs: Iterable[KernelSpec]) -> str:
    """What comes before e4m3 prefill of SM90, and what of it is in ``default``."""
    mine = [spec for spec in specs if sets.in_default(spec) and matrix.transpose_spec(spec) and spec.phase == "prefill"]
    return (
        " `transpose` makes V ready for `e4m3` prefill on `sm90`: one kernel for each head_dim of v, paged or not. Of "
        f"that prefill `default` has {_masks_and_kinds(mine)}."
    )


def _prefill_of_hopper(specs: Iterable[KernelSpec]) -> str:
    """What of the kernels whose dims only SM90's prefill of 16 bits has is in ``default``."""
    mine = [spec for spec in specs if (spec.head_dim, spec.head_dim_v) in matrix.HOPPER_DIMS and sets.in_default(spec)]
    dims = "; ".join(f"{dim}, {dim_v}" for dim, dim_v in matrix.HOPPER_DIMS)
    return (
        f" Of the head dims that only prefill of `sm90` in 16 bits has ({dims}), `default` holds "
        f"{', '.join(_values(mine, 'dtype'))} with {_masks_and_kinds(mine)}."
    )


def _masks_and_kinds(specs: list[KernelSpec]) -> str:
    """Which masks kernels have, without pages and with them, and what they do about skipping."""
    plain, paged = (
        ", ".join(_values((spec for spec in specs if spec.paged is those), "mask")) for those in (False, True)
    )
    return f"masks {plain} and, paged, {paged}, as {', '.join(_values(specs, 'skip'))}"


def _outputs(specs: Iterable[KernelSpec]) -> str:
    """What kernels write: the type they read, unless that has 8 bits."""
    words = ["as the input"]
    for dtype in matrix.FP8:
        mine = [spec for spec in specs if spec.dtype == dtype]
        common = _values((spec for spec in mine if sets.in_default(spec)), "out_dtype")
        rare = [f"{name} (in `full`)" for name in _values(mine, "out_dtype") if name not in common]
        if mine:
            words.append(f"of `{dtype}` " + ", ".join([*common, *rare]))
    return "; ".join(words)


def _values(specs: Iterable[KernelSpec], name: str) -> list[str]:
    """The values of a feature that occur, in the order of the feature table."""
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
    # In which set those of 8 bits, and of dims that not all have, are, other words say.
    in_words = (*matrix.HOPPER_DIMS, *matrix.HEAD_DIMS["mla"])
    common = [
        spec for spec in specs if spec.keys_dtype not in matrix.FP8 and (spec.head_dim, spec.head_dim_v) not in in_words
    ]
    for mask in BY_NAME["mask"].values:
        mine = [spec for spec in common if spec.mask == mask]
        cells = [_cell(spec for spec in mine if belongs(spec)) for belongs in _COLUMNS.values()]
        lines.append(f"| `{mask}` | " + " | ".join(cells) + " |")
    return lines


def _cell(specs: Iterable[KernelSpec]) -> str:
    """The sets that the kernels are in; ``smoke`` is a sample of ``default``, and ``full`` holds everything."""
    found = {"default" if sets.in_default(spec) else "full" for spec in specs}
    return " and ".join(sorted(found)) or "no"


_ROWS = {
    "prefill": "queries",
    "decode": "packed queries",
    "mla": "packed queries",
}  # packed: those of all query heads of a kv head


def _head_dim_table(specs: Iterable[KernelSpec]) -> list[str]:
    """Tiles by head dims, and by phase and architecture."""
    tiles: dict[tuple[int, int], dict[tuple[str, str], str]] = {}
    groups: dict[tuple[str, str], set[int]] = {}
    for spec in specs:
        tile, kind, dims = tile_of(spec), (spec.arch, spec.phase), (spec.head_dim, spec.head_dim_v)
        tiles.setdefault(dims, {})[kind] = f"{tile.tile_m} x {tile.tile_n}{_not_of(*kind, dims)}"
        groups.setdefault(kind, set()).add(tile.group_rows)
    heads = [
        f"{phase} on `{arch}`: {_ROWS[phase]} x keys, groups of {', '.join(map(str, rows))}"
        for (arch, phase), rows in groups.items()
    ]
    lines = ["| head_dim of q, k | of v | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for dims, by_kind in sorted(tiles.items()):
        cells = (by_kind.get(kind) or _larger(*kind, "bf16", dims) for kind in groups)
        lines.append(f"| {dims[0]} | {dims[1]} | " + " | ".join(cells) + " |")
    return lines


def _not_of(arch: str, phase: str, dims: tuple[int, int]) -> str:
    """What is said of types of 8 bits where only those of 16 bits have kernels of these head dims."""
    lacking = [dtype for dtype in matrix.FP8 if dims not in matrix.dims_of(arch, phase, dtype)]
    return "".join(f" (`{dtype}` {_larger(arch, phase, dtype, dims)})" for dtype in lacking)


def _larger(arch: str, phase: str, dtype: str, dims: tuple[int, int]) -> str:
    """What computes calls whose head dims have no kernel of their own."""
    found = matrix.head_dims(arch, phase, dtype, *dims)
    return "no" if found is None else "as " + ", ".join(map(str, found))


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
