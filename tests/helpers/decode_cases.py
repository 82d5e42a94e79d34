"""The cases of decode kernels: a pairwise-covering set; borders of tiles, leaves, twigs and branches by name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations
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
# Cases whose seed gives a tile that is too close to call, which nobody can check.
_TOO_CLOSE = {
    *((f"decode{index}", "sm90") for index in (3, 44, 89, 109)),
    *((f"decode{index}", "sm100") for index in ("44", "89", "-byte1")),
}
# And one in which slopes put a stair where the threshold is, whatever the seed.
_STEP_AT_THRESHOLD = ("decode71", "sm90")
_SIXTEEN_BIT, _EIGHT_BIT = ("bf16", "fp16"), ("e4m3",)
_BASE = Case(name="", phase="decode", heads_q=1, pattern="random")


def _allowed(row: Row) -> bool:
    kernels = catalogue.kernels(_EIGHT_BIT if row["dtype"] in _EIGHT_BIT else _SIXTEEN_BIT, DIMS)
    if tuple(row[name] for name in catalogue.KERNEL) not in kernels:
        return False
    per_kv = row["heads"][0] // row["heads"][1]
    has_cache = row["paged"] or row["seqused"]
    decoded = all(PHASES.decodes(len_q, len_k, per_kv, has_cache=has_cache) for len_q, len_k in LENS[row["lens"]])
    return decoded and catalogue.fits(row, LENS[row["lens"]])


@cache
def decode_pairwise_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """Every legal pair of features, layouts, lengths, patterns and options of calls that are all decode.

    SM100 has those of SM90, and as many with 8-bit operands.
    """
    found = []
    for dtypes, name in ((_SIXTEEN_BIT, "decode"), (_EIGHT_BIT, "decode-byte")):
        if dtypes == _EIGHT_BIT and arch != "sm100":
            continue
        rows = enumerate(_rows(dtypes))
        cases = (catalogue.case_of(row, index, arch, lens=LENS[row["lens"]]) for index, row in rows)
        found += [replace(case, name=f"{name}{index}", phase="decode") for index, case in enumerate(cases)]
    return tuple(_clear(case) for case in found)


@cache
def _rows(dtypes: tuple[str, ...]) -> list[Row]:
    """Of the pairwise cases of all architectures."""
    factors = {**catalogue.runtime_factors(dtypes), "dims": DIMS, "heads": HEADS, "lens": tuple(LENS)}
    return covering(factors, _allowed, seed=3)


def _clear(case: Case) -> Case:
    """The case, or one like it of which everybody can tell what is skipped."""
    name = (case.name, case.arch)
    if name == _STEP_AT_THRESHOLD:
        return replace(case, thresholds=(2e-3, *case.thresholds[1:]))
    return replace(case, seed=case.seed + 1000) if name in _TOO_CLOSE else case


def decode_border_cases() -> tuple[Case, ...]:
    """One key more or less than a tile, a leaf, a twig and a branch, and hardly any keys."""
    found = []
    for head_dim, borders in ((64, (128, 1024, 4096, 8192)), (128, (64, 512, 2048, 4096)), (256, (64, 512, 2048))):
        base = replace(_BASE, head_dim=head_dim, head_dim_v=head_dim, heads_q=2, heads_kv=1)
        for border in borders:
            for more in (-1, 0, 1):
                mask = ("causal", "full")[more == 0]
                lens = ((1, border + more),)
                found.append(replace(base, name=f"border-d{head_dim}-{border}{more:+}", mask=mask, lens=lens))
    for keys in (0, 1, 2):
        few = replace(_BASE, name=f"border-{keys}", heads_q=4, lens=((1, keys), (1, keys)), mask="full", seqused=True)
        found.append(few)
    return tuple(found)


def decode_long_cases() -> tuple[Case, ...]:
    """Around 128 leaves, behind which they get twice as long."""
    long = replace(_BASE, mask="causal", head_dim=128, head_dim_v=128)
    window = replace(long, mask="window", window=(65519, 0), lens=((1, 70000),))
    return (
        replace(long, name="long-65536", lens=((2, 65536),)),
        replace(long, name="long-65537", lens=((1, 65537),)),
        replace(long, name="long-d64", head_dim=64, head_dim_v=64, lens=((1, 131073),)),
        # 1024 visible tiles from one inside a leaf on: 129 leaves, in one branch more than 128 aligned ones fill.
        replace(window, name="long-129"),
    )


def decode_start_cases() -> tuple[Case, ...]:
    """Where leaves start: two start tiles, rows that see none, all leaves skipped, groups with a threshold of 0."""
    base = replace(_BASE, heads_q=2, lens=((4, 1026),))  # of 4 rows the first two end in the tile before the last
    window = replace(base, mask="window", window=(700, 0), seed=4)  # whose decisions show both tiles
    chunked = replace(base, mask="chunked", chunk=512, lens=((8, 1028),), seed=7)
    ragged = replace(base, mask="causal", q_layout="ragged", kv_layout="ragged")
    custom = replace(base, mask="custom", custom="bool3", lens=((16, 900),))
    heads = {"heads_q": 128, "heads_kv": 1, "lens": ((1, 2100),), "q_layout": "ragged", "kv_layout": "ragged"}
    by_head = replace(_BASE, threshold_kind="head", mask="full", **heads)  # type: ignore[arg-type]
    found = [
        replace(window, name="start-two-tiles"),
        replace(window, name="start-two-tiles-one-key", window=(0, 0), lens=((6, 131),)),
        replace(window, name="start-two-tiles-ahead", window=(300, 1)),
        replace(window, name="start-blind-rows", lens=((30, 5),), seqused=True),
        replace(window, name="start-far", window=(900, 0), lens=((3, 9000),), seed=10),
        replace(chunked, name="start-chunks"),
        replace(chunked, name="start-chunks-behind", chunk=1024, window=(600, 0)),
        # Slopes and sinks: where the last tile is, whoever sees the first key.
        replace(ragged, name="start-alibi", alibi=True, lens=((3, 2600), (40, 1290))),
        replace(base, name="start-alibi-full", mask="full", alibi=True, heads_q=4, heads_kv=2),
        replace(base, name="start-sinks", mask="causal", sinks=True, head_dim=128, head_dim_v=128, seed=5),
        replace(custom, name="start-custom-sinks", sinks=True),
        replace(custom, name="start-custom"),
        replace(custom, name="start-custom-heads", custom="packed4", heads_q=4, heads_kv=2),
        replace(by_head, name="start-zero-in-second-group", thresholds=(1e-3,) * 64 + (0.0,) * 64),
        replace(by_head, name="start-zero-in-every-group", thresholds=(1e-3,) * 31 + (0.0,)),
        replace(by_head, name="start-many-thresholds", thresholds=(1e-3, 1e-2, 1e-4), lens=((1, 2100), (2, 4200))),
        replace(base, name="start-at-one", thresholds=(1.0,), mask="causal", pattern="all_but_first"),
    ]
    return tuple(found)


def decode_tree_cases() -> tuple[Case, ...]:
    """Custom masks over the last keys: a few behind long caches, more than a leaf, more than a request has."""
    base = replace(_BASE, mask="custom", custom="bool3", custom_keys=8, heads_q=4, heads_kv=2)
    base = replace(base, lens=((8, 1300), (8, 777), (8, 3)), seqused=True)
    paged: dict[str, Any] = {"kv_layout": "nhd", "page_size": 16, "q_layout": "ragged", "seqused": False}
    ragged: dict[str, Any] = {"q_layout": "ragged", "kv_layout": "ragged", "lens": ((8, 2100), (3, 500), (5, 9))}
    d128, d256 = ({"head_dim": dim, "head_dim_v": dim} for dim in (128, 256))
    return (
        replace(base, name="tree-batched"),
        replace(base, name="tree-dense", skip="dense", **d128),
        replace(base, name="tree-paged", custom="packed2", custom_keys=13, **d128, **(ragged | paged)),
        replace(
            base, name="tree-ragged", custom="packed3", custom_keys=40, **ragged, threshold_kind="head", sinks=True
        ),
        replace(base, name="tree-heads", custom="packed4", custom_keys=45, heads_q=16, lens=((4, 700), (4, 44))),
        replace(base, name="tree-of-leaves", custom_keys=1100, lens=((16, 2900), (16, 1090)), **d128),
        replace(base, name="tree-border", custom_keys=64, lens=((16, 1088), (16, 64)), skip="skip", **d128),
        replace(base, name="tree-d256", custom_keys=31, kv_layout="hnd", page_size=64, seqused=False, **d256),
        replace(base, name="tree-softcap", softcap=20.0, alibi=True, lens=((8, 700), (8, 130))),
    )


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


def decode_covering_cases() -> tuple[Case, ...]:
    """The fewest pairwise cases found that meet every pair of features of a kernel and every value of the others."""
    left, found = list(decode_pairwise_cases()), []
    missing = set().union(*map(_traits, left))
    while missing:
        best = max(left, key=lambda case: len(_traits(case) & missing))
        left.remove(best)
        found.append(best)
        missing -= _traits(best)
    return tuple(found)


def _traits(case: Case) -> set[tuple[Any, ...]]:
    names = ("kv_layout", "q_layout", "lens", "memory", "seqused", "seqused_q", "sinks", "pattern", "threshold_kind")
    named = [(name, value) for name, value in case.spec.values.items() if name not in ("arch", "phase", "head_dim_v")]
    heads = {("heads", case.heads_q, case.heads_kv), ("page", case.paged and case.page_size)}
    return {*combinations(named, 2), *((name, getattr(case, name)) for name in names), *heads}


def decode_mixed_cases() -> tuple[Case, ...]:
    """Calls of both phases: ragged, batched with lengths that only the device knows, paged, with one phase empty."""
    base = replace(_BASE, phase="mixed", head_dim=128, head_dim_v=128, heads_q=4, heads_kv=2, q_layout="ragged")
    base = replace(base, kv_layout="ragged", lens=((1, 700), (140, 300), (0, 60), (2, 1100), (70, 70)), mask="causal")
    rows = {"q_layout": "batched", "kv_layout": "batched", "seqused": True, "lens": ((40, 1300), (40, 1279), (40, 0))}
    named = {
        "ragged": base,
        "dense": replace(base, skip="dense", dtype="fp16"),
        "by-keys": replace(base, **rows, mask="full"),  # type: ignore[arg-type]
        "rows-in-use": replace(base, **(rows | {"seqused_q": True, "lens": ((40, 300), (3, 300), (33, 300))})),  # type: ignore[arg-type]
        "paged-window": replace(base, kv_layout="nhd", page_size=16, mask="window", window=(600, 0), skip="skip"),
        "chunked": replace(base, mask="chunked", chunk=512, head_dim=64, head_dim_v=64),
        "custom": replace(base, mask="custom", custom="packed3", threshold_kind="head", thresholds=(1e-3, 0.0, 1e-2)),
        "d256": replace(base, head_dim=256, head_dim_v=256, threshold_kind="batch", sinks=True),
        "no-decode": replace(base, lens=((70, 80), (200, 10))),
        "no-prefill": replace(base, seqused_q=True, lens=((1, 700), (3, 40))),
        "custom-last": replace(
            base, mask="custom", custom="packed3", custom_keys=100, lens=((8, 900), (90, 300), (9, 9))
        ),
        "crowd": replace(base, heads_q=2, lens=tuple((33 * (i % 3 == 1) + 1, 13 * i) for i in range(70)), skip="skip"),
    }
    return tuple(replace(case, name=f"mixed-{name}", seed=index) for index, (name, case) in enumerate(named.items()))


def cache_cases() -> tuple[Case, ...]:
    """8-bit keys and values under queries of every type; memory that no request owns holds NaN."""
    base = replace(_BASE, kv_dtype="e4m3", descales="head", heads_q=8, heads_kv=2, mask="causal", seqused=True)
    paged: dict[str, Any] = {"kv_layout": "nhd", "lens": ((1, 1290), (3, 77), (2, 0)), "q_layout": "ragged"}
    both: dict[str, Any] = {"dtype": "e4m3", "kv_dtype": "same"}
    d128, d256 = ({"head_dim": dim, "head_dim_v": dim} for dim in (128, 256))
    return (
        replace(base, name="cache-d128", **d128, lens=((4, 1171), (4, 600))),
        replace(base, name="cache-d128-dense-descale", **d128, skip="dense", descales="one", lens=((1, 2300),)),
        replace(base, name="cache-d128-window", **d128, mask="window", window=(300, 0), lens=((4, 1171), (4, 900))),
        replace(base, name="cache-d64-pages-of-1", **paged, page_size=1),
        replace(base, name="cache-d128-pages", **d128, **paged, page_size=48),
        replace(base, name="cache-fp16-d80", dtype="fp16", head_dim=80, head_dim_v=112, lens=((2, 700), (2, 513))),
        replace(base, name="cache-d256", **d256, mask="full", lens=((2, 700),)),
        replace(
            base, name="cache-tree", **d128, mask="custom", custom="bool3", custom_keys=9, lens=((4, 1171), (4, 7))
        ),
        replace(base, name="cache-softcap", **d128, softcap=20.0, alibi=True, sinks=True, lens=((2, 700),), seed=2),
        replace(
            base, name="cache-many-rows-few-keys", **d128, lens=((40, 200), (40, 130))
        ),  # no prefill kernel does it
        replace(base, name="bytes-d64", **both, lens=((3, 700), (3, 80))),
        replace(base, name="bytes-d128-fp16", **both, **d128, out_dtype="fp16", lens=((1, 1300),)),
        replace(base, name="bytes-d256", **both, **d256, mask="full", lens=((2, 500),)),
    )
