"""The cases that are run: pairwise-covering sets, and calls of every default kernel; named_cases.py has the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

from skimattn.codegen import matrix, sets
from skimattn.codegen.features import BY_NAME
from skimattn.codegen.spec import KernelSpec

from .cases import DIMS_OF_SM90_16_BIT, Case, kernel_dims
from .pairwise import Row, covering
from .patterns import DEALT

MASKS = tuple(map(str, BY_NAME["mask"].values))
WINDOWS = ((150, 0), (-1, 0), (40, 70), (0, 0), (-1, 30), (200, -1), (0, 150))
CHUNKS = (48, 100, 128, 192)
# Smaller head dims that run on each kernel, by TMA zero fill. The sets deal what only SM90 has kernels for as some of
# those of 128 and 256: calls are the same on all architectures, and where kernels of their own exist, these take them.
DIMS: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (64, 64): ((64, 64), (40, 40), (8, 64), (64, 24)),
    (80, 80): ((80, 80), (72, 72), (80, 40), (72, 80)),
    (96, 96): ((96, 96), (88, 88), (96, 40), (72, 96)),
    (128, 128): ((128, 128), (72, 72), (80, 80), (96, 96), (112, 112), (64, 128)),
    (192, 128): ((192, 128), (136, 128), (192, 64), (160, 96)),
    (192, 192): ((192, 192), (160, 160), (136, 192)),
    (256, 256): ((256, 256), (160, 160), (200, 136), (256, 64), (136, 248)),
}
_DEALT_DIMS = tuple(dims for dims in DIMS if dims not in DIMS_OF_SM90_16_BIT)
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
KERNEL = ("dtype", "dims", "mask", "paged", "skip", "softcap", "alibi")
_TOO_CLOSE = {
    (102, "sm90"),
    (102, "sm100"),
    (262, "sm90"),
}  # seeds whose call has a tile that is too close to call, which nobody can check
_SIXTEEN_BIT, _EIGHT_BIT = ("bf16", "fp16"), ("e4m3",)
DTYPES = (*_SIXTEEN_BIT, *_EIGHT_BIT)


@cache
def kernels(dtypes: tuple[str, ...] = _SIXTEEN_BIT, dims: tuple[Any, ...] = _DEALT_DIMS) -> tuple[tuple[Any, ...], ...]:
    """The kernels of the pairwise set, as values of ``KERNEL``: pairs of default features, and some of the rest."""
    factors: dict[str, Any] = {
        "dtype": dtypes,
        "dims": dims,
        "mask": MASKS,
        "paged": (False, True),
        "skip": ("dense", "skip", "stat"),
    }
    plain = [{**row, "softcap": False, "alibi": False} for row in covering(factors, _default, seed=1)]
    extras = {**factors, "dims": ((128, 128),), "dtype": dtypes[:1], "softcap": (False, True), "alibi": (False, True)}
    rare = covering(extras, lambda row: row["softcap"] or row["alibi"], seed=2, limit=7)
    return tuple(dict.fromkeys(tuple(row[name] for name in KERNEL) for row in plain + rare))


def _default(row: Row) -> bool:
    return not row["paged"] or row["mask"] in ("causal", "window", "chunked")


def _allowed(row: Row) -> bool:
    """Whether a row of factors is a legal call of one of the kernels."""
    kept = kernels(_EIGHT_BIT if row["dtype"] in _EIGHT_BIT else _SIXTEEN_BIT)
    return tuple(row[name] for name in KERNEL) in kept and fits(row)


def fits(row: Row, lens: tuple[tuple[int, int], ...] = ()) -> bool:
    """Whether layout, memory, lengths (default: those it names) and mask form of a row go together."""
    lens, ragged = lens or LENS[row["lens"]], row["q_ragged"]
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
def pairwise_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """Every legal pair of features, layouts, lengths, patterns and options, on the kernels of :func:`kernels`.

    Architectures have the same ones: of 16-bit operands, and about as many of 8-bit ones.
    """
    return (*_pairwise_of(_SIXTEEN_BIT, "pair", arch), *_pairwise_of(_EIGHT_BIT, "byte", arch))


def _pairwise_of(dtypes: tuple[str, ...], name: str, arch: str) -> Iterator[Case]:
    for index, row in enumerate(_rows(dtypes)):
        yield replace(case_of(row, index, arch), name=f"{name}{index}")


@cache
def _rows(dtypes: tuple[str, ...]) -> list[Row]:
    """Of the pairwise cases of all architectures."""
    return covering(runtime_factors(dtypes), _allowed, seed=3)


def covering_cases(count: int, arch: str = "sm90") -> tuple[Case, ...]:
    """The ``count`` pairwise cases that together meet the most values of kernel features, layouts and lengths."""
    left, chosen = list(pairwise_cases(arch)), []
    seen: set[tuple[str, Any]] = set()
    for _ in range(count):
        best = max(left, key=lambda case: len(_traits(case) - seen))
        left.remove(best)
        chosen.append(best)
        seen |= _traits(best)
    return tuple(chosen)


def _traits(case: Case) -> set[tuple[str, Any]]:
    names = ("dtype", "mask", "kv_layout", "q_layout", "skip", "lens", "memory", "softcap", "alibi", "seqused", "sinks")
    more = ("out_dtype", "descales", "pattern", "threshold_kind", "seqused_q")
    single = {(name, getattr(case, name)) for name in (*names, *more)}
    return single | {("dims", (case.spec.head_dim, case.mask, case.skip))}


@cache
def kernel_pair_cases(arch: str) -> tuple[Case, ...]:
    """The fewest pairwise cases found that meet every pair of kernel features that the pairwise cases meet."""
    return feature_covering(pairwise_cases(arch))


def feature_covering(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The fewest of these cases found that meet every pair of kernel features that they all meet."""
    left = [(case, _feature_pairs(case), len(_traits(case))) for case in cases]
    missing, chosen = set().union(*(pairs for _, pairs, _ in left)), []
    while missing:
        best = max(left, key=lambda one: (len(one[1] & missing), one[2]))
        left.remove(best)
        chosen.append(best[0])
        missing -= best[1]
    return tuple(chosen)


def _feature_pairs(case: Case) -> set[tuple[Any, ...]]:
    """Pairs of (feature, value) of the case's kernel; features of one value only say nothing."""
    spec, apart = case.spec, ("arch", "phase", "head_dim", "head_dim_v")
    named: list[tuple[str, Any]] = [("dims", (spec.head_dim, spec.head_dim_v))]
    named += [(name, value) for name, value in spec.values.items() if name not in apart]
    return set(combinations(named, 2))


def fuzz_case(seed: int, arch: str = "sm90") -> Case:
    """A random legal call of a random kernel of the pairwise set, with random lengths."""
    seed += 1000 * ((seed, arch) in _TOO_CLOSE)
    rng = random.Random(seed)
    factors = runtime_factors(DTYPES)
    row = {name: rng.choice(values) for name, values in factors.items()}
    while not _allowed(row):
        row = {name: rng.choice(values) for name, values in factors.items()}
    case = case_of(row, seed, arch)
    lens = [(rng.choice((0, 1, 63, 64, 65, 128)) if rng.random() < 0.2 else rng.randrange(1, 210)) for _ in case.lens]
    keys = [(rng.choice((0, 1, 64, 128, 256)) if rng.random() < 0.3 else rng.randrange(1, 450)) for _ in case.lens]
    if case.q_layout == "batched":
        lens = [max(1, lens[0])] * len(lens)
    if case.kv_layout == "batched" and not case.seqused:
        keys = keys[:1] * len(keys)
    if case.memory == "packed_qkv":
        keys = lens
    return replace(case, name=f"fuzz{seed}", lens=tuple(zip(lens, keys, strict=True)))


def runtime_factors(dtypes: tuple[str, ...] = _SIXTEEN_BIT) -> dict[str, Any]:
    """All factors of a call. Finer choices (exact head dims, windows, page sizes, descales) go round by row."""
    return {
        "dtype": dtypes,
        "dims": _DEALT_DIMS,
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
        "pattern": DEALT,
        "threshold_kind": ("float", "batch", "head"),
        "sinks": (False, True),
        "give": (0, 1, 2),  # nothing, out, out and lse
    }


def _kv_layout(row: Row, lens: tuple[tuple[int, int], ...], index: int) -> str:
    """Pages, or as q, or now and then not as q."""
    if row["paged"]:
        return ("nhd", "hnd")[index % 2]
    uneven = len({len_k for _, len_k in lens}) > 1
    if index % 3 or row["memory"] == "packed_qkv" or (row["q_ragged"] and uneven and not row["seqused"]):
        return "ragged" if row["q_ragged"] else "batched"
    return "batched" if row["q_ragged"] else "ragged"


def case_of(
    row: Row,
    index: int,
    arch: str = "sm90",
    lens: tuple[tuple[int, int], ...] = (),
    dims_dealt: tuple[tuple[int, int], ...] = (),
) -> Case:
    """The case of a row of factors; ``index`` deals out what is not a factor.

    ``lens`` and ``dims_dealt``: not those it names.
    """
    lens = lens or LENS[row["lens"]]
    packed = row["memory"].startswith("packed")
    small = [pair for pair in dims_dealt or DIMS[row["dims"]] if not packed or pair[0] == pair[1]]
    dims = small[index % len(small)]
    kv_dtype = row.get("kv_dtype", "same")
    eight_bit = row["dtype"] in _EIGHT_BIT or kv_dtype in _EIGHT_BIT
    if eight_bit:  # columns come in 16 bytes
        dims = (-(-dims[0] // 16) * 16, -(-dims[1] // 16) * 16)
    forms = ("bool2", "packed2", "bool3", "packed3") + (() if row["q_ragged"] else ("bool4", "packed4"))
    thresholds = (1e-3, 0.0, 1e-2, 1.0, 1e-4) if row["threshold_kind"] != "float" else (1e-3,)
    return Case(
        name=f"pair{index}",
        arch=arch,
        dtype=row["dtype"],
        kv_dtype=kv_dtype,
        out_dtype="fp16" if row["dtype"] in _EIGHT_BIT and row["give"] and index % 3 == 1 else "",
        descales=("one", "head", "")[index % 3] if eight_bit else "",
        head_dim=dims[0],
        head_dim_v=dims[1],
        mask=row["mask"],
        window=_window(row["mask"], index),
        chunk=CHUNKS[index % len(CHUNKS)] if row["mask"] == "chunked" else 0,
        custom=forms[index % len(forms)] if row["mask"] == "custom" else "",
        q_layout="ragged" if row["q_ragged"] else "batched",
        kv_layout=_kv_layout(row, lens, index),
        seqused_q=index % 4 == 1 and row["memory"] != "packed_qkv",
        seqused=row["seqused"],
        page_size=(64, 16, 128, 48, 256, 80)[index % 6],
        memory=row["memory"],
        heads_q=row["heads"][0],
        heads_kv=row["heads"][1],
        lens=lens,
        skip=row["skip"],
        threshold_kind=row["threshold_kind"],
        thresholds=thresholds,
        pattern=row["pattern"],
        softcap=20.0 if row["softcap"] else 0.0,
        alibi=row["alibi"],
        alibi_kind=("head", "batch")[index % 2],
        sinks=row["sinks"],
        lse=row["give"] != 1,
        give_out=row["give"] != 0,
        stats_kind=("head", "batch", "all")[index % 3],
        fill=(math.nan, math.inf)[index % 2],
        seed=index,
    )


def _window(mask: str, index: int) -> tuple[int, int]:
    """Every second chunked call has one too."""
    used = mask == "window" or (mask == "chunked" and index // 2 % 2 == 0)
    return WINDOWS[index % len(WINDOWS)] if used else (-1, -1)


# Of batched and of ragged calls of one decode kernel, with up to three query heads to a kv head.
DECODED_LENS = (
    ((2, 300), (2, 0), (2, 37), (2, 1290)),
    ((0, 50), (3, 1600), (1, 200), (4, 0), (7, 1), (20, 513)),
)


def spec_cases(spec: KernelSpec, index: int) -> tuple[Case, ...]:
    """Two calls of one kernel, for the exhaustive run: a ragged one and a batched one, options dealt out by index."""
    found = []
    if spec.phase == "mla":
        return _mla_cases(spec, index)
    for ragged in (False, True):
        number = 2 * index + ragged
        row: Row = {
            "dtype": spec.dtype,
            "kv_dtype": spec.kv_dtype,
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
            "pattern": DEALT[number % len(DEALT)],
            "threshold_kind": ("float", "batch", "head")[number // 2 % 3],
            "sinks": number % 4 == 1,
            "give": 2,
        }
        lens = DECODED_LENS[ragged] if spec.phase == "decode" else LENS[row["lens"]]
        assert fits(row, lens)
        kernel = row["dims"]
        own = tuple(pair for pair in DIMS[kernel] if kernel_dims(spec.arch, spec.phase, spec.dtype, pair) == kernel)
        case = case_of(row, number, spec.arch, lens, own)
        case = replace(case, phase="decode" if spec.phase == "decode" else "")
        case = replace(case, out_dtype=spec.out_dtype if spec.dtype in _EIGHT_BIT else "", kv_dtype=spec.kv_dtype)
        assert case.spec == spec
        found.append(replace(case, name=f"{spec.name}-{'ragged' if ragged else 'batched'}"))
    return tuple(found)


def _mla_cases(spec: KernelSpec, index: int) -> tuple[Case, ...]:
    """Batched and ragged rows of a kernel of MLA."""
    lens = ((0, 50), (3, 600), (1, 200), (4, 0), (7, 1), (2, 513))
    case = Case(
        name=f"{spec.name}-batched",
        phase="mla",
        dtype=spec.dtype,
        head_dim=576,
        head_dim_v=512,
        mask=spec.mask,
        kv_layout=("nhd", "hnd")[index % 2] if spec.paged else "batched",
        page_size=(64, 16, 48)[index % 3],
        seqused=not spec.paged,
        heads_q=(16, 20, 72)[index % 3],
        heads_kv=1,
        lens=((2, 300), (2, 0), (2, 1100)),
        skip=spec.skip,
        pattern=DEALT[index % len(DEALT)],
        threshold_kind=("float", "batch", "head")[index % 3],
        softcap=20.0 if spec.softcap else 0.0,
        sinks=index % 2 == 0,
        scale=0.1,
        seed=index,
    )
    kv_layout = case.kv_layout if spec.paged else "ragged"
    ragged = replace(case, name=f"{spec.name}-ragged", q_layout="ragged", kv_layout=kv_layout, seqused=False, lens=lens)
    return case, ragged


def kind_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """A call for every group of three default kernels that differ only in what they do about skipping."""
    specs = [spec for spec in sets.specs("default", archs=[arch]) if spec.skip == "stat"]
    calls = [replace(spec_cases(spec, index)[1], pattern="random", seed=index) for index, spec in enumerate(specs)]
    return tuple(replace(call, name=f"{replace(call.spec, skip='dense').name}-kinds") for call in calls)


def default_set_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """Two calls of every kernel of the default set; those that combine or transpose run with the kernels they help."""
    specs = [spec for spec in sets.specs("default", archs=[arch]) if spec.phase not in matrix.HELPERS]
    return tuple(case for index, spec in enumerate(specs) for case in spec_cases(spec, index))
