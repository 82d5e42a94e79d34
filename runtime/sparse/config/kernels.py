"""What a threshold was found with: tile, row group, order and split decide which tiles skip, so fits name them."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from skimattn.codegen import matrix
from skimattn.codegen.tiles import order_of, split, tile_of

from ..._select.dispatch import BY_CAPABILITY, reference_arch
from ..policy import Phase

PREDICATE = "exp(max score of the tile - max score kept so far) < threshold, for every row of the group"
_START = "exact row maxima of tile 0, of the last visible tile with windows, slopes or sinks"


class Kernels(BaseModel):
    """What the kernels of one phase decide by.

    Attributes:
        arch: such as ``sm90``.
        tile: query rows (in decode: packed rows) and keys of a tile.
        group_rows: rows that decide together.
        order: in which a group visits its tiles.
        predicate: when a tile is skipped.
        split: how decode splits its keys; None of prefill.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    tile: tuple[int, int]
    group_rows: int
    order: str
    predicate: str
    split: dict[str, int | str] | None = None

    def __str__(self) -> str:
        """In a few words."""
        return f"{self.arch}, groups of {self.group_rows} rows, tiles of {self.tile[1]} keys, {self.order} order"


def kernels_here(phase: Phase, head_dim: int, mask: str = "causal", arch: str | None = None) -> Kernels | None:
    """What kernels on this machine decide by; None where none takes such heads.

    Args:
        phase: of the requests.
        head_dim: columns of q and k; those of v are as many, or as the next larger kernel has.
        mask: as :class:`skimattn.Params` takes it.
        arch: default: the GPU's here, or what the reference stands for.
    """
    kind = "mla" if phase == "decode" and head_dim == matrix.HEAD_DIMS["mla"][0][0] else phase
    arch = arch or arch_here()
    dims = matrix.head_dims(arch, kind, "bf16", head_dim, 512 if kind == "mla" else 0)
    if dims is None:
        return None
    wanted = {"phase": kind, "head_dim": dims[0], "head_dim_v": dims[1], "mask": mask, "skip": "skip"}
    verdict = matrix.judge_values({**wanted, "arch": arch})
    if isinstance(verdict, matrix.Rejected):
        return None
    spec = verdict.spec
    rule: dict[str, int | str] | None = None
    if phase == "decode":
        rule = {"min_leaf_keys": split.MIN_LEAF_KEYS[dims[0]], "max_leaves": split.MAX_LEAVES, "start": _START}
    tile = tile_of(spec)
    return Kernels(
        arch=spec.arch,
        tile=(tile.tile_m, tile.tile_n),
        group_rows=tile.group_rows,
        order=order_of(spec),
        predicate=PREDICATE,
        split=rule,
    )


def arch_here() -> str:
    """The first GPU's architecture if there are kernels for it, else the one that the reference stands for."""
    if torch.cuda.is_available():
        found = BY_CAPABILITY.get(torch.cuda.get_device_capability())
        if found is not None:
            return found
    return reference_arch()


def expected_range(target: float, group_rows: tuple[int, int], tile_keys: tuple[int, int]) -> tuple[float, float]:
    """Between which shares a threshold for ``target`` skips, if decisions are taken over other rows and keys.

    A group over a larger tile skips it where all that it is made of would be skipped. Let the larger be k of the
    smaller: if these agree always the share stays S, and if they are independent it becomes S ** k. Real ones lie
    between. From larger to smaller the share rises to at most S ** (1 / k). Visiting order and split are left out.

    Args:
        target: the share that the fit promises, in its own tiles.
        group_rows: of the fit and here.
        tile_keys: of the fit and here.
    """
    coarser = finer = 1.0
    for made, here in (group_rows, tile_keys):
        coarser *= max(1.0, here / made)
        finer *= max(1.0, made / here)
    return target**coarser, target ** (1.0 / finer)


def difference(made: Kernels | None, here: Kernels, target: float | None) -> str | None:
    """What to say of a fit that was made with other kernels than those here; None if they decide alike.

    Args:
        made: None if the fit does not say; 128 rows and 128 keys, as most have, are then taken for an example.
        here: of this machine.
        target: the share to be skipped; None: one half, for an example.
    """
    example = 0.5 if target is None else target
    rows, keys = (made.group_rows, made.tile[1]) if made else (128, 128)
    low, high = expected_range(example, (rows, here.group_rows), (keys, here.tile[1]))
    span = f"{low:.0%} to {high:.0%} of the tiles here where {example:.0%} were to be skipped"
    if made is None:
        return f"it does not say with which tiles it was made; with 128 x 128 ones it may skip {span} ({here})"
    if (rows, keys) != (here.group_rows, here.tile[1]):
        return f"it was made with {made}, and runs with {here}: it may skip {span}"
    if (made.order, made.split, made.predicate) != (here.order, here.split, here.predicate):
        return f"it was made with {made}, and runs with {here}: other tiles of the same size may be skipped"
    return None
