"""The cases that are run: a pairwise-covering set, and named cases for what must not go wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache
from typing import Any

from skimattn.codegen import matrix
from skimattn.codegen.features import BY_NAME
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import order_of

from .cases import Case
from .pairwise import Row, covering
from .patterns import PATTERNS, planted

MASKS = tuple(map(str, BY_NAME["mask"].values))
WINDOWS = ((150, 0), (-1, 0), (40, 70), (0, 0), (-1, 30), (200, -1), (0, 150))
CHUNKS = (48, 100, 128, 192)
# Smaller head dims that run on each kernel, by TMA zero fill.
DIMS: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (64, 64): ((64, 64), (40, 40), (8, 64), (64, 24)),
    (128, 128): ((128, 128), (72, 72), (80, 80), (96, 96), (112, 112), (64, 128)),
    (192, 128): ((192, 128), (136, 128), (192, 64), (160, 96)),
    (256, 256): ((256, 256), (160, 160), (200, 136), (256, 64), (136, 248)),
}
LENS: dict[str, tuple[tuple[int, int], ...]] = {
    "uniform": ((100, 300), (100, 300)),
    "one_row": ((1, 257), (1, 257)),
    "square": ((130, 130),),
    "tall": ((200, 90), (200, 90)),
    "whole_tiles": ((128, 256),),
    "varied_keys": ((70, 300), (70, 0), (70, 37), (70, 129)),
    "ragged": ((0, 50), (130, 300), (1, 200), (40, 0), (90, 40), (65, 193)),
    "ragged_late": ((190, 260), (64, 64), (3, 400)),
    "ragged_self": ((70, 70), (0, 0), (130, 130), (17, 17)),
}
_KERNEL = ("dtype", "dims", "mask", "paged", "skip", "softcap", "alibi")


@cache
def kernels() -> tuple[tuple[Any, ...], ...]:
    """The kernels of the pairwise set, as values of ``_KERNEL``: pairs of default features, and some of the rest."""
    factors: dict[str, Any] = {
        "dtype": ("bf16", "fp16"),
        "dims": tuple(DIMS),
        "mask": MASKS,
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
    """Whether a row of factors is a legal call of one of the kernels."""
    return tuple(row[name] for name in _KERNEL) in kernels() and fits(row)


def fits(row: Row) -> bool:
    """Whether layout, memory, lengths and mask form of a row go together."""
    lens, ragged = LENS[row["lens"]], row["q_ragged"]
    if not ragged and len({pair[0] for pair in lens}) > 1:
        return False
    if not ragged and not row["paged"] and not row["seqused"] and len({pair[1] for pair in lens}) > 1:
        return False
    if row["memory"].startswith("packed") and (row["paged"] or row["dims"][0] != row["dims"][1]):
        return False
    if row["memory"] == "packed_qkv" and (row["seqused"] or any(a != b for a, b in lens)):
        return False
    return not (row["paged"] and row["seqused"]) and not (row["memory"] == "transposed" and row["paged"])


@cache
def pairwise_cases() -> tuple[Case, ...]:
    """Every legal pair of features, layouts, lengths, patterns and options, on the kernels of :func:`kernels`."""
    rows = covering(runtime_factors(), _allowed, seed=3)
    return tuple(case_of(row, index) for index, row in enumerate(rows))


def covering_cases(count: int) -> tuple[Case, ...]:
    """The ``count`` pairwise cases that together meet the most values of kernel features, layouts and lengths."""
    left, chosen = list(pairwise_cases()), []
    seen: set[tuple[str, Any]] = set()
    for _ in range(count):
        best = max(left, key=lambda case: len(_traits(case) - seen))
        left.remove(best)
        chosen.append(best)
        seen |= _traits(best)
    return tuple(chosen)


def _traits(case: Case) -> set[tuple[str, Any]]:
    names = ("dtype", "mask", "kv_layout", "q_layout", "skip", "lens", "memory", "softcap", "alibi", "seqused", "sinks")
    return {(name, getattr(case, name)) for name in names} | {("dims", (case.spec.head_dim, case.mask, case.skip))}


def fuzz_case(seed: int) -> Case:
    """A random legal call of a random kernel of the pairwise set, with random lengths."""
    rng = random.Random(seed)
    factors = runtime_factors()
    row = {name: rng.choice(values) for name, values in factors.items()}
    while not _allowed(row):
        row = {name: rng.choice(values) for name, values in factors.items()}
    case = case_of(row, seed)
    lens = [(rng.choice((0, 1, 63, 64, 65, 128)) if rng.random() < 0.2 else rng.randrange(1, 210)) for _ in case.lens]
    keys = [(rng.choice((0, 1, 64, 128, 256)) if rng.random() < 0.3 else rng.randrange(1, 450)) for _ in case.lens]
    if case.q_layout == "batched":
        lens = [max(1, lens[0])] * len(lens)
        keys = keys if case.paged or case.seqused else keys[:1] * len(keys)
    if case.memory == "packed_qkv":
        keys = lens
    return replace(case, name=f"fuzz{seed}", lens=tuple(zip(lens, keys, strict=True)))


def runtime_factors() -> dict[str, Any]:
    """All factors of a call. Finer choices (exact head dims, windows, page sizes) go round by row."""
    return {
        "dtype": ("bf16", "fp16"),
        "dims": tuple(DIMS),
        "mask": MASKS,
        "paged": (False, True),
        "skip": ("dense", "skip", "stat"),
        "softcap": (False, True),
        "alibi": (False, True),
        "q_ragged": (False, True),
        "seqused": (False, True),
        "memory": ("plain", "gaps", "transposed", "packed_kv", "packed_qkv"),
        "heads": ((2, 2), (4, 2), (3, 1), (1, 1)),
        "lens": tuple(LENS),
        "pattern": tuple(PATTERNS),
        "threshold_kind": ("float", "batch", "head"),
        "sinks": (False, True),
        "give": (0, 1, 2),  # nothing, out, out and lse
    }


def case_of(row: Row, index: int) -> Case:
    """The case of a row of factors; ``index`` deals out what is not a factor."""
    packed = row["memory"].startswith("packed")
    small = [pair for pair in DIMS[row["dims"]] if not packed or pair[0] == pair[1]]
    dims = small[index % len(small)]
    forms = ("bool2", "packed2", "bool3", "packed3") + (() if row["q_ragged"] else ("bool4", "packed4"))
    thresholds = (1e-3, 0.0, 1e-2, 1.0, 1e-4) if row["threshold_kind"] != "float" else (1e-3,)
    return Case(
        name=f"pair{index}",
        dtype=row["dtype"],
        head_dim=dims[0],
        head_dim_v=dims[1],
        mask=row["mask"],
        window=WINDOWS[index % len(WINDOWS)] if row["mask"] == "window" else (-1, -1),
        chunk=CHUNKS[index % len(CHUNKS)] if row["mask"] == "chunked" else 0,
        custom=forms[index % len(forms)] if row["mask"] == "custom" else "",
        q_layout="ragged" if row["q_ragged"] else "batched",
        kv_layout=("nhd", "hnd")[index % 2] if row["paged"] else "ragged" if row["q_ragged"] else "batched",
        seqused=row["seqused"],
        page_size=(64, 16, 128, 48, 256, 80)[index % 6],
        memory=row["memory"],
        heads_q=row["heads"][0],
        heads_kv=row["heads"][1],
        lens=LENS[row["lens"]],
        skip=row["skip"],
        threshold_kind=row["threshold_kind"],
        thresholds=thresholds,
        pattern=row["pattern"],
        softcap=20.0 if row["softcap"] else 0.0,
        alibi=row["alibi"],
        sinks=row["sinks"],
        lse=row["give"] != 1,
        give_out=row["give"] != 0,
        stats_kind=("head", "batch", "all")[index % 3],
        fill=(math.nan, math.inf)[index % 2],
        seed=index,
    )


_PLAIN = Case(name="", head_dim=128, head_dim_v=128)
_UNEVEN = ((150, 400), (30, 520), (65, 300))


def pattern_cases() -> tuple[Case, ...]:
    """Every pattern that must drop tiles, in both visiting orders, under a mask and without, batched and ragged."""
    found = []
    for mask in ("full", "causal", "window"):
        base = replace(_PLAIN, mask=mask, lens=((150, 500),), window=(600, 600) if mask == "window" else (-1, -1))
        for pattern in planted(order_of(base.spec)):
            case = replace(base, name=f"plant-{pattern}-{mask}", pattern=pattern)
            ragged = replace(case, lens=_UNEVEN, q_layout="ragged", kv_layout="ragged", threshold_kind="head")
            found += [case, replace(ragged, name=f"{case.name}-ragged", thresholds=(1e-3, 1e-2))]
    return tuple(found)


def shape_cases() -> tuple[Case, ...]:
    """Shapes that rings, schedulers and prefix sums trip over: long rows of tiles, many requests, many heads."""
    deep = replace(_PLAIN, lens=((140, 1500),), pattern="random_rows")
    many = tuple((7 * i % 90, 11 * i % 140) for i in range(130))
    few = tuple((index % 3 * 65, 40) for index in range(40))
    crowd = replace(_PLAIN, q_layout="ragged", kv_layout="ragged", head_dim=64, head_dim_v=64, heads_q=1, heads_kv=1)
    return (
        replace(deep, name="deep-causal"),
        replace(deep, name="deep-full-alternating", mask="full", pattern="alternating"),
        replace(deep, name="deep-skip", skip="skip", mask="full"),
        replace(deep, name="deep-dense", skip="dense"),
        replace(deep, name="deep-window-d256", mask="window", window=(500, 0), head_dim=256, head_dim_v=256, seed=1),
        replace(deep, name="deep-d64-fp16", head_dim=64, head_dim_v=64, dtype="fp16", mask="full", heads_q=3),
        replace(deep, name="deep-mla-paged", head_dim=192, kv_layout="nhd", page_size=16, lens=((200, 900),)),
        replace(_PLAIN, name="window-huge", mask="window", window=(2**31 - 1, 2**31 - 1), lens=((150, 40),)),
        replace(crowd, name="many-requests", lens=many),
        replace(crowd, name="many-requests-tall", lens=few, mask="full", heads_q=2),
        replace(_PLAIN, name="many-heads", lens=((70, 260), (70, 260)), heads_q=24, heads_kv=3),
        replace(_PLAIN, name="whole-pages", lens=((90, 384), (90, 256)), kv_layout="hnd", page_size=128),
    )


def device_cases() -> tuple[Case, ...]:
    """Values that only a device can meet: thresholds beyond [0, 1], rows that no request owns."""
    odd = (5.0, math.nan, 1e-3, -1.0, math.inf, 1.0, 1e-30, -math.inf)
    base = replace(_PLAIN, lens=((90, 500),) * 4, threshold_kind="head", thresholds=odd, mask="full")
    padded = replace(_PLAIN, lens=((70, 200), (0, 0), (65, 300)), q_layout="ragged", kv_layout="ragged", extra_rows=90)
    return (
        replace(base, name="odd-thresholds-random", pattern="random"),
        replace(base, name="odd-thresholds-planted", pattern="all_but_first"),
        replace(padded, name="rows-of-nobody"),
        replace(padded, name="rows-of-nobody-full", mask="full", pattern="tail"),
    )


def spec_cases(spec: KernelSpec, index: int) -> tuple[Case, ...]:
    """Two calls of one kernel, for the exhaustive run: a ragged one and a batched one, options dealt out by index."""
    found = []
    for ragged in (False, True):
        number = 2 * index + ragged
        row: Row = {
            "dtype": spec.dtype,
            "dims": (spec.head_dim, spec.head_dim_v),
            "mask": spec.mask,
            "paged": spec.paged,
            "skip": spec.skip,
            "softcap": spec.softcap,
            "alibi": spec.alibi,
            "q_ragged": ragged,
            "seqused": not spec.paged and not ragged,
            "memory": ("plain", "gaps")[index % 2],
            "heads": ((4, 2), (3, 1), (2, 2))[number % 3],
            "lens": "ragged" if ragged else "varied_keys",
            "pattern": tuple(PATTERNS)[number % len(PATTERNS)],
            "threshold_kind": ("float", "batch", "head")[number // 2 % 3],
            "sinks": number % 4 == 1,
            "give": 2,
        }
        assert fits(row)
        found.append(replace(case_of(row, number), name=f"{spec.name}-{'ragged' if ragged else 'batched'}"))
    return tuple(found)


def kind_cases() -> tuple[Case, ...]:
    """A call for every group of three default kernels that differ only in what they do about skipping."""
    specs = [spec for spec in matrix.specs("default", archs=["sm90"]) if spec.skip == "stat"]
    calls = [replace(spec_cases(spec, index)[1], pattern="random", seed=index) for index, spec in enumerate(specs)]
    return tuple(replace(call, name=f"{replace(call.spec, skip='dense').name}-kinds") for call in calls)


def default_set_cases() -> tuple[Case, ...]:
    """Two calls of every kernel of the default set."""
    specs = matrix.specs("default", archs=["sm90"])
    return tuple(case for index, spec in enumerate(specs) for case in spec_cases(spec, index))
