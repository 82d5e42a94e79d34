"""Which phases a call may be in by what the host knows, its kernels, and the skip map that holds what either writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, explain, launch
from skimattn._call.validate import validate
from skimattn._select.dispatch import phases_of, specs_of
from skimattn.codegen.tiles.split import decodes, most_rows

PREFILL, DECODE, BOTH = ("prefill",), ("decode",), ("prefill", "decode")


def call(rows: int, keys: int, heads: tuple[int, int] = (4, 1), dims: int = 64, **arguments: Any) -> Params:
    """One request, or as many as the offsets say."""
    ragged_q, ragged_k = "cu_seqlens_q" in arguments, "cu_seqlens_k" in arguments
    q, k = torch.zeros(1, rows, heads[0], dims).bfloat16(), torch.zeros(1, keys, heads[1], dims).bfloat16()
    q, k = q[0] if ragged_q else q, k[0] if ragged_k else k
    return Params(q, k, k.clone(), **arguments)


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def both_offsets(*values: int) -> dict[str, torch.Tensor]:
    """One tensor for queries and keys."""
    return dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), lengths(*values))


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (call(1, 300), DECODE),
        (call(16, 17), DECODE),  # 64 packed rows
        (call(16, 16), PREFILL),  # that have no keys before their own
        (call(16, 10, seqused_k=lengths(10)), DECODE),  # from a cache, whatever it holds
        (call(17, 1087), PREFILL),
        (call(17, 1088), DECODE),
        (call(64, 4095), PREFILL),
        (call(64, 4096), DECODE),
        (call(65, 100000), PREFILL),
        # Lengths of keys that the device holds: both, if even the bound decides for decode.
        (call(17, 1088, seqused_k=lengths(1088)), BOTH),
        (call(17, 1087, seqused_k=lengths(1087)), PREFILL),
        (call(16, 1088, seqused_k=lengths(1088)), DECODE),
        (call(65, 5000, seqused_k=lengths(5000)), PREFILL),
        (call(17, 1088, seqused_k=lengths(1000), max_seqlen_k=1000), PREFILL),
        # Of rows: the bound decides for decode, nothing can decide for prefill.
        (call(40, 50, cu_seqlens_q=lengths(0, 40)), BOTH),
        (call(40, 50, cu_seqlens_q=lengths(0, 16, 40), cu_seqlens_k=lengths(0, 20, 50), max_seqlen_q=24), BOTH),
        (call(40, 50, cu_seqlens_q=lengths(0, 16, 32, 40), cu_seqlens_k=lengths(0, 9, 9, 50), max_seqlen_q=16), BOTH),
        # Self-attention, of which nothing is decode's, if the host knows it to be that.
        (call(40, 40, cu_seqlens_q=lengths(0, 16, 40), cu_seqlens_k=lengths(0, 16, 40), max_seqlen_q=24), BOTH),
        (call(40, 40, **both_offsets(0, 16, 40), max_seqlen_q=24), PREFILL),
        (call(9, 9, **both_offsets(0, 9)), PREFILL),
        (call(40, 40, **both_offsets(0, 16, 40), seqused_q=lengths(1, 2)), BOTH),
        (call(9, 9, **both_offsets(0, 9), seqused_k=lengths(5)), DECODE),
        (call(100, 50, seqused_q=lengths(7)), BOTH),
        (call(100, 50, seqused_q=lengths(7), max_seqlen_q=16), DECODE),
        (call(64, 4096, seqused_q=lengths(7)), DECODE),  # with fewer rows all the more
    ],
)
def test_phases(params: Params, wanted: tuple[str, ...]) -> None:
    problem = validate(params)
    assert phases_of(problem, "sm90") == wanted
    assert phases_of(problem, "sm100") == wanted
    for arch in ("sm90", "sm100"):
        specs = specs_of(problem, arch)
        assert tuple(specs) == (wanted if "decode" not in wanted else (*wanted, "combine"))
        assert all((spec.arch, spec.phase) == (arch, phase) for phase, spec in specs.items())


def test_more_keys_and_fewer_rows_speak_for_decode() -> None:
    """What the host relies on where it knows bounds only."""
    for keys in (0, 15, 16, 1000, 1039, 1040, 3000, 4096, 10**6):
        for has_cache in (False, True):
            by_rows = [decodes(rows, keys, 1, has_cache) for rows in range(300)]
            assert by_rows == sorted(by_rows, reverse=True)
            assert all(decodes(rows, keys + 1, 1, has_cache) for rows in range(300) if by_rows[rows])
        assert most_rows(keys) == sum(by_rows) - 1  # from a cache


def test_kernels_of_features() -> None:
    """Decode has no kernel of 192 columns, and takes a larger one; merging knows no mask and no option."""
    q, k, v = (torch.zeros(1, rows, 2, dim).half() for rows, dim in ((8, 192), (9, 192), (9, 128)))
    specs = specs_of(validate(Params(q, k, v, mask="causal", softcap=3.0, skip_softmax_threshold=0.1)), "sm90")
    names = ["skim_sm90_decode_fp16_d256_causal_skip_softcap", "skim_sm90_combine_fp16_d256_full_dense"]
    assert [spec.name for spec in specs.values()] == names


@pytest.mark.parametrize(
    ("params", "groups", "tiles"),
    [
        (call(1, 300), 1, 3),
        (call(1, 300, dims=128), 1, 5),
        (call(17, 1088), 2, 9),
        (call(64, 4096), 4, 32),
        (call(100, 50, (4, 1), cu_seqlens_q=lengths(0, 100)), 2, 1),
        (call(100, 5000, (4, 1), cu_seqlens_q=lengths(0, 100)), 4, 40),  # 40 rows of 4 heads may be decode's
        (call(300, 5000, (2, 2), 128, seqused_q=lengths(7)), 5, 79),
    ],
)
def test_the_map_holds_what_either_phase_writes(params: Params, groups: int, tiles: int) -> None:
    given = {name: getattr(params, name) for name in params.__dataclass_fields__ if getattr(params, name) is not None}
    for less in ((0, 0), (1, 0), (0, 1)):
        stats = torch.zeros(2, dtype=torch.int64)
        shape = (1, params.q.shape[-2], groups - less[0], tiles - less[1])
        options = {"stats": stats, "skip_map": torch.zeros(shape, dtype=torch.uint8), "skip_softmax_threshold": 0.5}
        mapped = Params(**{**given, **options})
        if less == (0, 0):
            launch(mapped)
        else:
            with pytest.raises(ArgumentError, match=f"skip_map: expected at least {(groups, tiles)[less[1]]} "):
                launch(mapped)
        assert explain(mapped).accepted == (less == (0, 0))


def test_explain_names_the_phases() -> None:
    assert "phase: decode, by" in str(explain(call(1, 300)))
    assert "phase: prefill, by" in str(explain(call(100, 300)))
    both = str(explain(call(100, 300, cu_seqlens_q=lengths(0, 100))))
    assert "phase: decode or prefill" in both
    assert "skim_sm90_prefill_bf16_d64_full_dense" in both and "skim_sm90_decode_bf16_d64_full_dense" in both
