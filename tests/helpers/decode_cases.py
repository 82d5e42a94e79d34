"""The cases of decode kernels: a pairwise-covering set, and the borders of tiles, leaves and branches by name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from . import catalogue
from .cases import PHASES, Case
from .pairwise import Row, covering
from .patterns import planted

LENS: dict[str, tuple[tuple[int, int], ...]] = {
    "step": ((1, 257), (1, 257)),
    "step_far": ((1, 2100),),
    "few": ((4, 700), (4, 700)),
    "varied_keys": ((2, 300), (2, 0), (2, 37), (2, 1290)),
    "ragged": ((0, 50), (3, 600), (1, 200), (4, 0), (7, 1), (2, 513), (1, 2900)),
    "rows": ((16, 300),),
    "groups": ((40, 1300),),
    "most": ((16, 4100),),
    "self": ((5, 5), (0, 0), (16, 16)),
    "uniform_self": ((9, 9), (9, 9)),
}
HEADS = ((2, 2), (4, 2), (3, 1), (8, 1), (16, 2), (16, 1), (20, 4))
DIMS = ((64, 64), (128, 128), (256, 256))
_KERNEL = ("dtype", "dims", "mask", "paged", "skip", "softcap", "alibi")
_TOO_CLOSE = (3, 44, 109)  # seeds that give a tile that is too close to call, which nobody can check
_BASE = Case(name="", phase="decode", heads_q=1, pattern="random")


@cache
def decode_kernels() -> tuple[tuple[Any, ...], ...]:
    """The kernels of the pairwise set, as values of ``_KERNEL``."""
    factors: dict[str, Any] = {
        "dtype": ("bf16", "fp16"),
        "dims": DIMS,
        "mask": catalogue.MASKS,
        "paged": (False, True),
        "skip": ("dense", "skip", "stat"),
    }
    plain = [{**row, "softcap": False, "alibi": False} for row in covering(factors, _default, seed=1)]
    extras = {**factors, "dims": ((128, 128),), "dtype": ("bf16",), "softcap": (False, True), "alibi": (False, True)}
    rare = covering(extras, lambda row: row["softcap"] or row["alibi"], seed=2, limit=7)
    return tuple(dict.fromkeys(tuple(row[name] for name in _KERNEL) for row in plain + rare))


def _default(row: Row) -> bool:
    return not row["paged"] or row["mask"] in ("causal", "window", "chunked")


def _allowed(row: Row) -> bool:
    per_kv = row["heads"][0] // row["heads"][1]
    decoded = all(PHASES.decodes(len_q, len_k, per_kv) for len_q, len_k in LENS[row["lens"]])
    kept = tuple(row[name] for name in _KERNEL) in decode_kernels()
    return decoded and kept and catalogue.fits(row, LENS[row["lens"]])


@cache
def decode_pairwise_cases() -> tuple[Case, ...]:
    """Every legal pair of features, layouts, lengths, patterns and options of calls that are all decode."""
    factors = {**catalogue.runtime_factors(), "dims": DIMS, "heads": HEADS, "lens": tuple(LENS)}
    rows = covering(factors, _allowed, seed=3)
    cases = (catalogue.case_of(row, index, lens=LENS[row["lens"]]) for index, row in enumerate(rows))
    named = (replace(case, name=f"decode{index}", phase="decode") for index, case in enumerate(cases))
    return tuple(replace(case, seed=case.seed + 1000) if case.seed in _TOO_CLOSE else case for case in named)


def decode_border_cases() -> tuple[Case, ...]:
    """One key more or less than a tile, a leaf, a branch, and than where leaves get twice as long."""
    found = []
    for head_dim, borders in ((64, (128, 256, 512, 4096)), (128, (64, 192, 256, 4096)), (256, (64, 256))):
        base = replace(_BASE, head_dim=head_dim, head_dim_v=head_dim, heads_q=2, heads_kv=1)
        for border in borders:
            for more in (-1, 0, 1):
                mask = ("causal", "full")[more == 0]
                lens = ((1, border + more),)
                found.append(replace(base, name=f"border-d{head_dim}-{border}{more:+}", mask=mask, lens=lens))
    for keys in (1, 2):
        found.append(replace(_BASE, name=f"border-{keys}", heads_q=4, lens=((1, keys), (1, keys)), mask="full"))
    long = replace(_BASE, mask="causal", pattern="random")
    for keys in (128 * 256, 128 * 256 + 1, 40000, 65537):  # 128 leaves; twice as long ones; four times
        found.append(replace(long, name=f"long-{keys}", lens=((2, keys),)))
    # 256 visible tiles from an odd one on: 129 leaves, in one branch more than 128 aligned ones fill.
    found.append(replace(long, name="long-129", mask="window", window=(32649, 0), lens=((1, 40000),)))
    found.append(replace(long, name="long-d128", head_dim=128, head_dim_v=128, heads_q=4, lens=((1, 33000),)))
    return tuple(found)


def decode_start_cases() -> tuple[Case, ...]:
    """Where leaves start: two start tiles, rows that see none, all leaves skipped, groups with a threshold of 0."""
    base = replace(_BASE, heads_q=2, lens=((4, 1026),))  # of 4 rows the first two end in the tile before the last
    window = replace(base, mask="window", window=(700, 0), seed=4)  # whose decisions show both tiles
    chunked = replace(base, mask="chunked", chunk=512, lens=((8, 1028),), seed=7)
    custom = replace(base, mask="custom", custom="bool3", lens=((16, 900),))
    heads = {"heads_q": 128, "heads_kv": 1, "lens": ((1, 2100), (2, 4200)), "q_layout": "ragged", "kv_layout": "ragged"}
    by_head = replace(_BASE, threshold_kind="head", mask="full", **heads)  # type: ignore[arg-type]
    found = [
        replace(window, name="start-two-tiles"),
        replace(window, name="start-two-tiles-one-key", window=(0, 0), lens=((6, 131),)),
        replace(window, name="start-two-tiles-ahead", window=(300, 1)),
        replace(window, name="start-blind-rows", lens=((30, 5),)),
        replace(window, name="start-far", window=(900, 0), lens=((3, 9000),), seed=10),
        replace(chunked, name="start-chunks"),
        replace(chunked, name="start-chunks-behind", chunk=1024, window=(600, 0)),
        replace(custom, name="start-custom"),
        replace(custom, name="start-custom-heads", custom="packed4", heads_q=4, heads_kv=2),
        replace(by_head, name="start-zero-in-second-group", thresholds=(1e-3,) * 64 + (0.0,) * 64),
        replace(by_head, name="start-zero-in-every-group", thresholds=(1e-3,) * 31 + (0.0,)),
        replace(by_head, name="start-many-thresholds", thresholds=(1e-3, 1e-2, 1e-4)),
        replace(base, name="start-at-one", thresholds=(1.0,), mask="causal", pattern="all_but_first"),
    ]
    return tuple(found)


def decode_pattern_cases() -> tuple[Case, ...]:
    """Every pattern that must drop tiles, over several leaves, for groups of many heads."""
    found = []
    for mask, order in (("full", "sink_first"), ("causal", "sink_first"), ("window", "reverse")):
        window = (1290, 40) if mask == "window" else (-1, -1)
        base = replace(_BASE, mask=mask, window=window, head_dim=128, head_dim_v=128, heads_q=8, heads_kv=2)
        for pattern in planted(order):
            case = replace(base, name=f"decode-plant-{pattern}-{mask}", pattern=pattern, lens=((7, 1000),))
            uneven = {"lens": ((5, 400), (1, 1520), (20, 1300)), "q_layout": "ragged", "kv_layout": "ragged"}
            ragged = replace(case, threshold_kind="head", thresholds=(1e-3, 1e-2), **uneven)  # type: ignore[arg-type]
            found += [case, replace(ragged, name=f"{case.name}-ragged")]
    return tuple(found)
