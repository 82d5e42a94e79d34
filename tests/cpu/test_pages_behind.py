"""Page tables of servers with sliding windows: what the window has left behind names no page, or a page of NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from skimattn import ArgumentError

from tests.helpers.build import Built, build
from tests.helpers.cases import Case, contents
from tests.helpers.check import bits
from tests.helpers.run import run_built

BASE = Case(name="behind", lens=((40, 700), (130, 500)), q_layout="ragged")
CASES = {
    "window": replace(BASE, mask="window", window=(90, 10), kv_layout="nhd", page_size=16),
    "chunked": replace(BASE, mask="chunked", chunk=96, kv_layout="hnd", page_size=32),
}
TARGETS = [("reference", "sm90"), ("reference", "sm100"), ("emulator", "sm90"), ("emulator", "sm100")]


def first_seen(case: Case, index: int) -> int:
    """The first key that the request's first row sees, worked out by hand."""
    len_q, len_k = case.lens[index]
    at = len_k - len_q
    return at - case.window[0] if case.mask == "window" else at // case.chunk * case.chunk


def built(case: Case) -> tuple[Built, torch.Tensor]:
    """A case, and its table."""
    made = build(case, contents(case))
    return made, made.tensors["page_table"]


@pytest.mark.parametrize("entry", [-1, 10**6, "NaN"])
@pytest.mark.parametrize("target", TARGETS, ids="-".join)
@pytest.mark.parametrize("mask", CASES)
def test_pages_behind_the_window_do_not_matter(mask: str, target: tuple[str, str], entry: int | str) -> None:
    backend, arch = target
    case = replace(CASES[mask], arch=arch)
    clean, _ = built(case)
    other, table = built(case)
    shared = int(table[0, 0])
    changed = 0
    for index in range(len(case.lens)):
        behind = first_seen(case, index) // case.page_size
        assert behind > 0
        table[index, :behind] = shared if entry == "NaN" else entry  # type: ignore[assignment]
        changed += behind
    if entry == "NaN":
        for name in ("k", "v"):
            other.tensors[name][shared] = float("nan")
    wanted, got = run_built(clean, backend), run_built(other, backend)
    for name in ("out", "lse", "stats", "skip_map"):
        assert torch.equal(bits(got.tensors[name]), bits(wanted.tensors[name])), name
    assert changed > 20


@pytest.mark.parametrize("mask", CASES)
def test_the_first_page_that_is_seen_has_to_be_there(mask: str) -> None:
    made, table = built(CASES[mask])
    table[1, first_seen(made.case, 1) // made.case.page_size] = -1
    with pytest.raises(ArgumentError, match=r"^page_table: expected page numbers .* for request 1, whose rows"):
        run_built(made, "reference")


def test_all_pages_are_seen_without_a_window() -> None:
    made, table = built(replace(CASES["window"], mask="causal", window=(-1, -1)))
    table[0, 0] = -1
    with pytest.raises(ArgumentError, match=r"^page_table: .* request 0, whose rows see keys .* from number 0"):
        run_built(made, "reference")
