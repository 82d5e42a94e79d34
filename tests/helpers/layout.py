"""Where the requests of a case lie in tensors that are not paged, and how long the call says they are."""

from __future__ import annotations

import torch

from .cases import Case

SPARE = 40  # rows or keys of each request that seqused leaves out


def rows_of(case: Case, tensor: torch.Tensor, index: int) -> torch.Tensor:
    """The rows of request ``index`` in a tensor laid out like q."""
    len_q = case.lens[index][0]
    if case.q_layout == "batched":
        return tensor[index, :len_q]
    first = rows_before(case) + sum(rows for rows, _ in case.lens[:index]) + spare(case, 0) * index
    return tensor[first : first + len_q]


def spare(case: Case, side: int) -> int:
    """Rows of q (side 0) or keys (side 1) that each request has beyond those in use."""
    return SPARE * (case.seqused_q, case.seqused)[side]


def rows_before(case: Case) -> int:
    """Rows of a ragged q before the first request, which belong to nobody."""
    return SPARE if case.seqused_q and case.q_layout == "ragged" else 0


def sequence(case: Case, side: int) -> tuple[int, ...]:
    """Leading shape of an unpaged q (side 0) or k and v (side 1)."""
    lens = [pair[side] + spare(case, side) for pair in case.lens]
    if (case.q_layout, case.kv_layout)[side] == "ragged":
        return (sum(lens) + (rows_before(case) + case.extra_rows if side == 0 else 0),)
    return (len(lens), max(lens))


def longest_keys(case: Case) -> int:
    """What max_seqlen_k must say: it bounds cu_seqlens_k, whatever seqused_k says."""
    return max(len_k for _, len_k in case.lens) + spare(case, 1) * (case.kv_layout == "ragged")


def longest_rows(case: Case) -> int | None:
    """Likewise max_seqlen_q; None where all requests have the full length."""
    longest = max(len_q for len_q, _ in case.lens)
    if case.q_layout == "ragged":
        return longest + spare(case, 0) + case.extra_rows
    return longest if case.seqused_q else None
