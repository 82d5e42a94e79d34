"""Lengths that only a device knows, and that are wrong: the kernel stays inside what the host said is there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tests.emulator
from tests.helpers.build import build
from tests.helpers.cases import Case, contents
from tests.helpers.check import check
from tests.helpers.run import run_on_emulator

PAGED = Case("beyond-paged", mask="full", kv_layout="nhd", page_size=64, lens=((70, 256), (70, 256)))
BATCHED = replace(PAGED, name="beyond-batched", kv_layout="batched", seqused=True, mask="causal")


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
