"""The launch path of e4m3 prefill on an SM90 GPU that is not there: two kernels and their workspace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import Params, explain, launch, launcher
from skimattn.codegen.tiles import workspace

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, small_call

KERNELS = [
    b"skim_sm90_prefill_e4m3_out_bf16_d128_causal_dense",
    b"skim_sm90_transpose_e4m3_out_bf16_d128_full_dense",
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def eight_bit(rows: int = 300, **arguments: Any) -> Params:
    """As :func:`small_call`, in e4m3, with more rows than are decoded."""
    params = small_call(**arguments)
    shape = (params.q.shape[0], rows, *params.q.shape[2:])
    q = on_gpu(torch.zeros(shape).to(torch.float8_e4m3fn))
    k, v = (on_gpu(tensor.as_subclass(torch.Tensor).to(torch.float8_e4m3fn)) for tensor in (params.k, params.v))
    return replace(params, q=q, k=k, v=v)


def test_v_is_transposed_before_prefill(fake: FakeDriver) -> None:
    params = eight_bit(batch=2)
    out = launch(params)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.bfloat16
    assert sorted(fake.libraries) == KERNELS
    transpose, prefill = fake.launches
    assert (transpose.threads, transpose.smem) == (256, 33792) and (prefill.threads, prefill.smem) == (384, 181248)
    for sent in (transpose, prefill):
        assert sent.map_address("tma_v") == params.v.data_ptr()
        assert sent.map_address("tma_vt") == sent.block.partial != 0
        assert sent.map_type("tma_vt") == ("UINT8", (128, 128, 1, 1))
        assert (sent.block.first_request, sent.block.round_requests) == (0, 2)
    assert transpose.map_address("tma_vt") == prefill.map_address("tma_vt")
    assert prefill.map_address("tma_o") == out.data_ptr()


def test_every_launch_has_a_workspace_of_its_own(fake: FakeDriver) -> None:
    params = eight_bit()
    kept = [launch(params) for _ in range(3)]
    kept.append(launch(replace(params)))
    assert len(launcher._prepared) == 1 and len(kept) == 4
    assert [len(fake.launches), *map(len, (fake.libraries, set(fake.libraries)))] == [8, 2, 2]
    for sent in fake.launches:
        assert sent.map_address("tma_vt") == sent.block.partial
    outs = [sent.map_address("tma_o") for sent in fake.launches[1::2]]
    assert outs == [out.data_ptr() for out in kept if isinstance(out, torch.Tensor)]


def test_rounds_reach_the_driver(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "WORKSPACE_BYTES", 1)
    launch(eight_bit(batch=3))
    firsts = [(sent.block.first_request, sent.block.round_requests) for sent in fake.launches]
    assert firsts == [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (2, 1)]
    assert len({sent.map_address("tma_vt") for sent in fake.launches}) == 1


def test_few_rows_are_decoded_as_before(fake: FakeDriver) -> None:
    launch(eight_bit(rows=3))
    assert {name.split(b"_")[2] for name in fake.libraries} == {b"decode", b"combine"}
    launch(eight_bit(rows=300))
    launch(eight_bit(rows=3))
    assert sorted(fake.libraries)[2:] == KERNELS


def test_explain_says_what_runs_and_what_it_takes(fake: FakeDriver) -> None:
    chosen = explain(eight_bit(batch=2))
    assert chosen.accepted and chosen.kernel == KERNELS[0].decode() and chosen.tile == (128, 128)
    assert chosen.group_rows == 64
    # 300 keys in three tiles, 2 kv heads, 128 columns.
    words = f"workspace: {2 * 3 * 128 * 2 * 128} bytes for V transposed, of 2 requests at a time: at most 256 MiB, or "
    assert any(line.startswith(words) for line in chosen.trace), chosen.trace
    assert f"kernel: {KERNELS[1].decode()}, which transposes V for prefill" in chosen.trace
    few = replace(eight_bit(rows=3))
    assert not any("workspace" in line for line in explain(few).trace)
    on_cpu = Params(*(torch.zeros(1, 300, 2, 64).to(torch.float8_e4m3fn) for _ in range(3)))
    assert explain(on_cpu).path == "reference" and "transpose" not in str(explain(on_cpu))
