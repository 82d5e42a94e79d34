"""The launch path on a compute capability 10.0 GPU that is not there: SM100 kernels, 8-bit input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, NoKernelError, Params, explain, launch, launcher
from skimattn._select import kernels

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, small_call

MAPS = ("tma_q", "tma_k", "tma_v", "tma_o")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch, FakeDriver(capability=(10, 0), sm_count=148))


def eight_bit(**arguments: Any) -> Params:
    """As :func:`small_call`, in e4m3."""
    params = small_call(**arguments)
    q, k, v = (
        on_gpu(tensor.as_subclass(torch.Tensor).to(torch.float8_e4m3fn)) for tensor in (params.q, params.k, params.v)
    )
    return replace(params, q=q, k=k, v=v)


def test_what_reaches_an_sm100_kernel(fake: FakeDriver) -> None:
    params = small_call(batch=2)
    out = launch(params)
    (sent,) = fake.launches
    assert fake.libraries == [b"skim_sm100_prefill_bf16_d128_causal_dense"]
    assert (sent.grid, sent.threads, sent.smem) == (2 * 4, 512, 232448)
    assert isinstance(out, torch.Tensor) and sent.map_address("tma_o") == out.data_ptr()
    assert [sent.map_type(name) for name in MAPS] == [("BFLOAT16", (64, 128, 1, 1))] * 4
    explanation = explain(params)
    assert explanation.path == "cuda" and explanation.group_rows == 128 and explanation.tile == (256, 128)
    assert explanation.verified == "compiles; verified on the emulator; not run on Blackwell"


@pytest.mark.parametrize("given", [None, torch.bfloat16, torch.float16])
def test_8_bit_input_has_16_bit_output(fake: FakeDriver, given: torch.dtype | None) -> None:
    wanted = given or torch.bfloat16
    out = None if given is None else on_gpu(torch.zeros(1, 70, 4, 128, dtype=given))
    params = eight_bit(out=out)
    for _ in range(2):  # the second one takes the short way
        result = launch(params)
        assert isinstance(result, torch.Tensor) and (result.dtype, result.shape) == (wanted, (1, 70, 4, 128))
        assert fake.launches[-1].map_address("tma_o") == result.data_ptr()
    name = "bf16" if wanted == torch.bfloat16 else "fp16"
    assert fake.libraries == [f"skim_sm100_prefill_e4m3_out_{name}_d128_causal_dense".encode()]
    type_of_out = {"bf16": "BFLOAT16", "fp16": "FLOAT16"}[name]
    types = [fake.launches[-1].map_type(name) for name in MAPS]
    assert types == [("UINT8", (128, 128, 1, 1))] * 3 + [(type_of_out, (64, 128, 1, 1))]


def test_descales_reach_the_kernel_and_may_move(fake: FakeDriver) -> None:
    scalar, first, second = (on_gpu(torch.ones(shape)) for shape in ((), (1, 2), (1, 2)))
    launch(eight_bit(q_descale=scalar, v_descale=first))
    launch(eight_bit(q_descale=scalar, v_descale=second))
    assert len(launcher._prepared) == 1
    blocks = [sent.block for sent in fake.launches]
    assert [block.v_descale for block in blocks] == [first.data_ptr(), second.data_ptr()]
    assert {(block.q_descale, block.k_descale) for block in blocks} == {(scalar.data_ptr(), 0)}
    assert {(block.v_descale_stride_batch, block.v_descale_stride_head) for block in blocks} == {(2, 1)}
    with pytest.raises(ArgumentError, match=r"^k_descale: expected shape \[\] or \[1\] or \[1, 2\] \(got \[2\]\)"):
        launch(eight_bit(k_descale=on_gpu(torch.ones(2))))


@pytest.mark.parametrize("capability", [(10, 3), (11, 0), (12, 0)])
def test_other_blackwell_gpus_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    fake = install(monkeypatch, FakeDriver(capability=capability))
    with pytest.raises(NoKernelError, match=rf"10.0 \(sm100\) \(got {capability[0]}.{capability[1]}\)"):
        launch(small_call())
    assert not fake.launches


def test_the_skip_map_has_a_row_for_128_queries(fake: FakeDriver) -> None:
    stats = on_gpu(torch.zeros(2, dtype=torch.int64))
    options: dict[str, Any] = {"skip_softmax_threshold": 0.5, "stats": stats}
    launch(small_call(**options, skip_map=on_gpu(torch.zeros(1, 4, 1, 3, dtype=torch.uint8))))
    with pytest.raises(ArgumentError, match=r"^skip_map: expected at least 3 tiles of 128 for 300 keys"):
        launch(small_call(**options, skip_map=on_gpu(torch.zeros(1, 4, 1, 2, dtype=torch.uint8))))
    assert kernels.unbuilt_row(explain(small_call(**options)).spec).group_rows == 128  # type: ignore[arg-type]
