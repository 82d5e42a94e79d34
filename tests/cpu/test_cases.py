"""The cases themselves: they cover what they claim to, and planted tiles are really there to be skipped."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from tests.helpers.build import BAD_PAGE, build
from tests.helpers.cases import Case, answers, contents
from tests.helpers.catalogue import (
    DIMS,
    DTYPES,
    MASKS,
    default_set_cases,
    kernel_pair_cases,
    kind_cases,
    pairwise_cases,
)
from tests.helpers.named_cases import device_cases, pattern_cases, shape_cases
from tests.helpers.oracle import KEPT, SKIPPED
from tests.helpers.pairwise import covering


def test_covering_arrays_cover() -> None:
    factors = {"a": (1, 2, 3), "b": ("x", "y"), "c": (True, False), "d": (0, 1, 2, 3)}
    rows = covering(factors, lambda row: not (row["a"] == 2 and row["b"] == "x"), seed=5)
    seen = {(p, row[p], q, row[q]) for row in rows for p, q in combinations(factors, 2)}
    wanted = {(p, a, q, b) for p, q in combinations(factors, 2) for a in factors[p] for b in factors[q]}
    assert wanted - seen == {("a", 2, "b", "x")}
    assert len(rows) < 24 and rows == covering(factors, lambda row: not (row["a"] == 2 and row["b"] == "x"), seed=5)


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_pairwise_cases_really_skip(arch: str) -> None:
    """Most of the skipping cases do both keep and skip, and so do all masks and nearly all patterns."""
    both, lone, masks, patterns = 0, 0, set(), set()
    for case in pairwise_cases(arch):
        if case.skip == "dense":
            continue
        given = answers(case, contents(case))
        kept = any((answer.skip_map == KEPT).any() for answer in given)
        skipped = any((answer.skip_map == SKIPPED).any() for answer in given)
        both, lone = both + (kept and skipped), lone + (not (kept and skipped))
        if kept and skipped:
            masks.add(case.mask)
            patterns.add(case.pattern)
    assert masks == set(MASKS)
    assert len(patterns) >= 10, patterns
    assert both > lone, (both, lone)


def test_architectures_have_the_same_cases() -> None:
    old, new = ({case.name: case for case in pairwise_cases(arch)} for arch in ("sm90", "sm100"))
    assert {name: replace(case, arch="sm90") for name, case in new.items()} == old
    eight_bit = [case for case in new.values() if case.dtype == "e4m3"]
    assert len(eight_bit) > 100 and len(new) - len(eight_bit) > 100
    assert {case.descales for case in eight_bit} == {"", "one", "head"}
    assert {case.dtype_out for case in eight_bit} == {"bf16", "fp16"}
    named = {case.name for case in shape_cases("sm100")}
    assert {case.name for case in shape_cases()} < named and len(pattern_cases("sm100")) == len(pattern_cases())


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_ordinary_cases_meet_every_pair_of_kernel_features(arch: str) -> None:
    def pairs(cases: tuple[Case, ...]) -> set[tuple[object, ...]]:
        return {pair for case in cases for pair in combinations(case.spec.values.items(), 2)}

    few, every = kernel_pair_cases(arch), pairwise_cases(arch)
    assert pairs(few) == pairs(every) and len(few) < len(every) / 4
    assert {(case.arch, case.dtype) for case in few} == {(arch, dtype) for dtype in DTYPES}


def test_8_bit_descales_multiply_true_values() -> None:
    """The oracle sees true values; the call has codes and descales, by request and head or one for all."""
    for kind, shape in (("one", (1,)), ("head", (2, 3))):
        case = Case("d", arch="sm100", dtype="e4m3", descales=kind, heads_q=6, heads_kv=3, lens=((4, 9), (4, 9)))
        held = contents(case)
        tensors = build(case, held).tensors
        assert {name: tuple(tensors[name].shape) for name in ("q_descale", "k_descale", "v_descale")} == dict.fromkeys(
            ("q_descale", "k_descale", "v_descale"), shape
        )
        assert tensors["q"].dtype == torch.float8_e4m3fn and tensors["out"].dtype == torch.bfloat16
        values = tensors["v_descale"].flatten()
        assert len(values.unique()) > (kind == "head")
        plain = answers(replace(case, descales=""), [replace(one, descales={}) for one in held])
        scaled = answers(case, held)
        factor = float(values[0] * tensors["q_descale"].flatten()[0] * tensors["k_descale"].flatten()[0])
        assert factor != 1 and not torch.equal(*(torch.from_numpy(x[0].out) for x in (plain, scaled)))


def test_pairwise_cases_meet_every_option() -> None:
    cases = pairwise_cases()
    dims = {(case.head_dim, case.head_dim_v) for case in cases}
    assert dims >= {(d, d) for d in (64, 72, 80, 96, 112, 128, 160, 256)} | {(192, 128)}, dims
    assert {case.spec.head_dim for case in cases} == {dim for dim, _ in DIMS}
    sixteen_bit = [case.spec.head_dim for case in cases if case.dtype != "e4m3"]
    assert min(map(sixteen_bit.count, (80, 96, 128))) > 12, "one of them takes nearly all that is dealt to 128"
    assert {case.page_size for case in cases if case.paged} >= {16, 48, 64, 128, 256}
    assert {case.kv_layout for case in cases} == {"batched", "ragged", "nhd", "hnd"}
    assert {case.custom for case in cases} >= {"bool2", "bool3", "packed2", "packed3"}
    assert any(case.softcap for case in cases)
    assert {case.alibi_kind for case in cases if case.alibi and len(case.lens) > 1} == {"head", "batch"}


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_calls_of_the_gpu_tests_are_of_the_phase_that_they_say(arch: str) -> None:
    """Or they would fail on a GPU alone, when the rule of what is decoded changes."""
    cases = [
        *pairwise_cases(arch),
        *shape_cases(arch),
        *device_cases(arch),
        *default_set_cases(arch),
        *kind_cases(arch),
    ]
    for case in cases:
        case.launched()


def test_unowned_memory_is_hostile() -> None:
    case = Case("hostile", lens=((70, 300), (70, 37)), kv_layout="nhd", page_size=48, memory="gaps")
    held = contents(case)
    built = build(case, held)
    owned = sum(one.k.numel() for one in held)
    storage = torch.empty(0, dtype=torch.bfloat16).set_(built.tensors["k"].untyped_storage())
    assert int(storage.isfinite().sum()) == owned
    assert int((built.tensors["page_table"] == BAD_PAGE).sum()) == built.tensors["page_table"].numel() - 7 - 1
    ragged = Case("r", q_layout="ragged", kv_layout="ragged", seqused=True, lens=((3, 9), (5, 2)), fill=math.inf)
    keys = build(ragged, contents(ragged)).tensors["k"]
    assert keys.isinf().all(dim=-1).all(dim=-1).tolist() == [False] * 9 + [True] * 40 + [False] * 2 + [True] * 40


def test_requests_do_not_depend_on_their_batch() -> None:
    case = Case(
        "batch", q_layout="ragged", kv_layout="ragged", lens=((10, 20), (70, 300)), mask="custom", custom="bool3"
    )
    alone = contents(case.alone(1))[0]
    inside = contents(case)[1]
    assert torch.equal(alone.q, inside.q) and torch.equal(alone.k, inside.k)
    assert alone.custom is not None and inside.custom is not None and (alone.custom == inside.custom).all()
