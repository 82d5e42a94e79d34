"""Lengths that only a device knows, and that are wrong: the kernel stays inside what the host said is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn._call import validate

import tests.emulator
from tests.helpers.build import Built, build
from tests.helpers.cases import Case, Content, contents
from tests.helpers.check import check
from tests.helpers.run import run_on_emulator

PAGED = Case("beyond-paged", mask="full", kv_layout="nhd", page_size=64, lens=((70, 256), (70, 256)))
BATCHED = replace(PAGED, name="beyond-batched", kv_layout="batched", seqused=True, mask="causal")


# Requests of 110 rows and 296 keys, of which 70 and 256 are in use.
LONGER = replace(PAGED, name="longer", kv_layout="ragged", q_layout="ragged", seqused_q=True, seqused=True)
ARCHS = ("sm90", "sm100")


def run_with_lengths(case: Case, lengths: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run and check a case, with other values in seqused_k while the kernel runs."""
    held = contents(case)
    built = build(case, held)
    seqused, honest = built.tensors["seqused_k"], built.tensors["seqused_k"].clone()
    run_plan = tests.emulator.run_plan

    def lie(*arguments: Any, **options: Any) -> None:
        seqused.copy_(lengths)
        run_plan(*arguments, **options)
        seqused.copy_(honest)

    monkeypatch.setattr(tests.emulator, "run_plan", lie)
    check(run_on_emulator(built), held)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", [PAGED, BATCHED], ids=lambda case: case.name)
@pytest.mark.parametrize("beyond", [1, 64, 1 << 20, (1 << 31) - 1 - 256])
def test_lengths_beyond_the_end_are_cut(case: Case, beyond: int, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(case, arch=arch)
    run_with_lengths(case, torch.tensor([256, 256 + beyond], dtype=torch.int32), monkeypatch)


@pytest.mark.parametrize("arch", ARCHS)
def test_negative_lengths_are_empty(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(PAGED, arch=arch, lens=((70, 256), (70, 0)))
    run_with_lengths(case, torch.tensor([256, -300], dtype=torch.int32), monkeypatch)


def with_hints(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Built, list[Content]]:
    """The case with the lengths in use given as ``max_seqlen_*``, which is not true, and not as ``seqused_*``."""
    monkeypatch.setattr(validate, "check_values", lambda problem: None)  # of a GPU's tensors
    held = contents(case)
    built = build(case, held)
    for name in ("seqused_q", "seqused_k"):
        del built.tensors[name]
    built.values |= {"max_seqlen_q": 70, "max_seqlen_k": 256}
    skip_map = built.tensors["skip_map"]  # as small as these hints allow, and nothing behind it
    groups, tiles = -(-70 // case.group_rows), -(-256 // case.tile_n)
    built.tensors["skip_map"] = skip_map[:, :, :groups, :tiles].clone()
    return built, held


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_longer_requests_than_the_hints_say_are_cut(arch: str, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as that long; other rows stay unwritten, and nothing outside skip_map, out and lse is written."""
    built, held = with_hints(replace(LONGER, arch=arch, mask=mask), monkeypatch)
    check(run_on_emulator(built), held)
