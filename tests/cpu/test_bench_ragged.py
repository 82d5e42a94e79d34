"""``bench ragged`` with a fake timer and CPU tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import peers, ragged, results
from bench.names import RAGGED, UNIFORM
from bench.peers import MissingError, NotRun
from bench.timing import Call

SHORT = ragged.Batch("short", (16,) * 9, "full", 2, 2, 64)
MIXED = ragged.Batch("mixed", (3, 150, 0, 70), "causal", 4, 2, 64)


@pytest.fixture(autouse=True)
def no_built_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an earlier build left in the checkout is not looked at."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


class FakeTimer:
    """Runs the calls and says that the n-th of a round took n ms."""

    def round(self, calls: Sequence[Call]) -> list[float]:
        return [float(place) for place, call in enumerate(calls, start=1) if call() is not None]


def by_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets_q: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Stands in for FlashAttention-3: PyTorch request by request."""
    *_, causal = rest
    spans = [slice(*span) for span in zip(offsets_q[:-1].tolist(), offsets_q[1:].tolist(), strict=True)]
    parts = [[x[span].transpose(0, 1) for x in (q, k, v)] for span in spans]
    attend = torch.nn.functional.scaled_dot_product_attention
    return torch.cat([attend(*part, is_causal=causal, enable_gqa=True).transpose(0, 1) for part in parts])


@pytest.mark.parametrize(("batch", "names"), [(SHORT, [RAGGED, UNIFORM, "fa3"]), (MIXED, [RAGGED, "fa3"])])
def test_a_batch_is_checked_and_timed_beside_what_there_is(batch: ragged.Batch, names: list[str]) -> None:
    case = ragged.measure(batch, "cpu", FakeTimer(), 4, by_sdpa, [])
    assert [row["name"] for row in case["rows"]] == names
    assert [item["over"] for item in case["comparisons"]] == names[1:]
    assert len(case["checks"]) == 2 * len(names) and all(item["passed"] for item in case["checks"])
    assert case["requests"] == len(batch.lens) and case["rows_in_all"] == sum(batch.lens)
    text = ragged.batch_table(case)
    assert f"checks: {2 * len(names)} passed" in text and "our ragged over it" in text


def test_flops_add_up() -> None:
    assert SHORT.flops == 9 * 4 * 2 * 64 * 16**2
    assert MIXED.flops == 2 * 4 * 64 * (3**2 + 150**2 + 70**2)
    assert SHORT.uniform and not MIXED.uniform


@pytest.mark.parametrize("damage", ["unwritten", "wrong"])
def test_what_is_wrong_does_not_pass(damage: str) -> None:
    data = ragged.data_of(MIXED, "cpu")
    out = by_sdpa(data.q, data.k, data.v, data.offsets, True)
    assert all(item.passed for item in ragged.check(MIXED, data, {"x": out}))
    if damage == "unwritten":
        out[1, 0, 0] = float("nan")
    else:
        out[3:153] *= 1.05
    assert not all(item.passed for item in ragged.check(MIXED, data, {"x": out}))


def test_a_peer_that_refuses_does_not_end_the_run() -> None:
    def refuses(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("no such head dim")

    not_run: list[NotRun] = []
    case = ragged.measure(MIXED, "cpu", FakeTimer(), 2, refuses, not_run)
    assert [row["name"] for row in case["rows"]] == [RAGGED]
    assert not_run == [NotRun("fa3", "mixed", "RuntimeError('no such head dim')")]


def test_a_run_is_saved_after_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise MissingError("it is not here")

    monkeypatch.setattr(ragged, "fa3_varlen", missing)
    document, path = results.new_document("ragged", []), tmp_path / "run.json"
    saved: list[int] = []

    def save() -> None:
        results.save(document, path)
        saved.append(len(json.loads(path.read_text())["cases"]))

    assert ragged.run([SHORT, MIXED], document, save, FakeTimer(), 2, "cpu")
    assert saved == [1, 2] and results.load(path)["not_run"] == [
        {"peer": "fa3", "case": "anywhere", "reason": "it is not here"}
    ]


def test_batches_of_the_command() -> None:
    assert len({batch.label for batch in ragged.BATCHES}) == len(ragged.BATCHES)
    for batch in ragged.BATCHES:
        assert min(batch.lens) >= 16 and batch.heads_q % batch.heads_kv == 0
        everything = sum(batch.lens) * (3 * batch.heads_q + 2 * batch.heads_kv) * batch.head_dim * 2
        assert everything < 40e9, f"{batch.label}: inputs and three outputs, where two GPUs of 80 GB share a host"
    assert any(replace(batch, label="") for batch in ragged.BATCHES if len(batch.lens) == 80000 and batch.uniform)


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ragged.main(["--only", "nothing like it"])
    assert "--only: expected part of one of '80000 of 16 rows'" in capsys.readouterr().err
    assert peers.LOADERS
    if not torch.cuda.is_available():
        assert ragged.main([]) == 1 and "expected an NVIDIA GPU" in capsys.readouterr().err
