"""Launches of several kernels against a driver that remembers: decode steps, batches of both phases, workspaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn import NoKernelError, Params, explain, launch, launcher
from skimattn._cuda import memory
from skimattn._launch import prepared
from skimattn._select import dispatch, kernels

from tests.helpers.fake_driver import FakeDriver, Launch, OnGpu, install, on_gpu

DECODE = "skim_sm90_decode_bf16_d128_causal_dense"
COMBINE = "skim_sm90_combine_bf16_d128_full_dense"
PREFILL = "skim_sm90_prefill_bf16_d128_causal_dense"
MAPS = ("tma_q", "tma_k", "tma_v", "tma_o")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


@pytest.fixture
def workspaces(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those that launches make; kept, so that each has an address of its own."""
    made: list[torch.Tensor] = []

    def new_empty(self: torch.Tensor, *sizes: Any, **options: Any) -> torch.Tensor:
        tensor = torch.Tensor.new_empty(self, *sizes, **options)
        if tensor.dtype == torch.float32 and tensor.dim() == 1:
            made.append(tensor)
        return tensor

    empty = memory.empty

    def record(sizes: tuple[int, ...], *rest: Any) -> torch.Tensor:
        tensor = empty(sizes, *rest)
        if tensor.dtype == torch.float32 and tensor.dim() == 1:
            made.append(tensor)
        return tensor

    monkeypatch.setattr(OnGpu, "new_empty", new_empty, raising=False)
    monkeypatch.setattr(memory, "empty", record)
    return made


def step(rows: int = 1, keys: int = 3000, batch: int = 2, **more: Any) -> Params:
    """A causal call of 4 heads on 2; 3000 keys are 6 leaves."""
    q = on_gpu(torch.zeros(batch, rows, 4, 128, dtype=torch.bfloat16))
    k, v = (on_gpu(torch.zeros(batch, keys, 2, 128, dtype=torch.bfloat16)) for _ in "kv")
    return Params(q, k, v, **{"mask": "causal", **more})


def mixed(**more: Any) -> Params:
    """A ragged call, whose requests may be anything."""
    offsets = on_gpu(torch.tensor([0, 1, 300], dtype=torch.int32))
    q = on_gpu(torch.zeros(300, 4, 128, dtype=torch.bfloat16))
    k, v = (on_gpu(torch.zeros(2, 3000, 2, 128, dtype=torch.bfloat16)) for _ in "kv")
    return Params(q, k, v, cu_seqlens_q=offsets, **{"mask": "causal", **more})


def names(fake: FakeDriver, sent: list[Launch]) -> list[str]:
    """The kernels by their functions, which the fake gives out in the order of loading."""
    return [fake.libraries[(one.function & 0xFFFF) - 0x101].decode() for one in sent]


def addresses(sent: Launch) -> list[int]:
    return [sent.map_address(name) for name in MAPS]


def test_what_reaches_the_kernels_of_a_step(fake: FakeDriver, workspaces: list[torch.Tensor]) -> None:
    params = step()
    out = launch(params)
    assert isinstance(out, torch.Tensor)
    first, second = fake.launches
    assert names(fake, fake.launches) == [DECODE, COMBINE]
    (workspace,) = workspaces
    assert workspace.numel() == 2 * 2 * 6 * 2 * 132  # requests, kv heads, leaves, rows, columns and scales
    rows = [kernels.unbuilt_row(spec) for spec in dispatch.specs_of(launcher.validate(params), "sm90").values()]
    assert [(one.threads, one.smem) for one in fake.launches] == [(row.threads, row.smem_bytes) for row in rows]
    assert (first.grid, second.grid) == (2 * 2 * 6, 1)  # 8 rows, one to a warp of a CTA
    for sent in (first, second):
        block = sent.block
        assert block.partial == workspace.data_ptr() and block.out == out.data_ptr() and block.lse == 0
        assert block.work_counter == first.block.work_counter != 0
        assert (block.batch, block.len_q, block.len_k, block.parts, block.round_requests) == (2, 1, 3000, 6, 2)
    assert addresses(first) == [params.q.data_ptr(), params.k.data_ptr(), params.v.data_ptr(), 0]
    assert bytes(second.block) == bytes(first.block)  # it is told the same
    assert first.starts_early and second.starts_early


def test_every_launch_has_a_workspace_of_its_own(fake: FakeDriver, workspaces: list[torch.Tensor]) -> None:
    """Launches on several streams would share it otherwise."""
    params = step()
    for _ in range(4):  # the first is new, the second binds the object
        launch(params)
    launch(step())
    assert len(workspaces) == 5 and names(fake, fake.launches) == [DECODE, COMBINE] * 5
    found = [sent.block.partial for sent in fake.launches]
    assert found == [workspace.data_ptr() for workspace in workspaces for _ in "dc"] and len(set(found)) == 5
    outs = [sent.block.out for sent in fake.launches]
    assert outs[::2] == outs[1::2] and not set(outs) & set(found)


def test_what_moves_is_moved_in_every_block(fake: FakeDriver, workspaces: list[torch.Tensor]) -> None:
    """Of maps, in those of the kernel that has them."""
    for _ in range(2):  # the first is new, the second of a known form
        launch(step(return_lse=True))
    fake.calls.clear()
    kept = []
    for _ in range(3):
        params = step(return_lse=True)
        out, lse = launch(params)
        kept.append((params, out, lse))
        decode, combine = fake.launches[-2:]
        assert addresses(decode) == [params.q.data_ptr(), params.k.data_ptr(), params.v.data_ptr(), 0]
        assert bytes(combine.block) == bytes(decode.block)
        for sent in (decode, combine):
            assert (sent.block.out, sent.block.lse) == (out.data_ptr(), lse.data_ptr())
            assert sent.block.partial == workspaces[-1].data_ptr()
    assert "cuTensorMapEncodeTiled" not in fake.calls and len(launcher._prepared) == 1


def test_numbers_of_the_host_reach_every_kernel(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    from skimattn._cuda import streams

    params = [step(skip_softmax_threshold=threshold) for threshold in (0.25, 0.5)]
    for one in params:
        launch(one)
    assert [sent.block.threshold_value for sent in fake.launches] == [0.25, 0.25, 0.5, 0.5]
    assert len(launcher._prepared) == 1
    monkeypatch.setattr(streams, "current", lambda _ordinal: 0x77)
    launch(params[0])
    assert [sent.stream for sent in fake.launches[-2:]] == [0x77, 0x77]
    first, second = (sent.block.work_counter for sent in fake.launches[-2:])
    assert first == second != fake.launches[0].block.work_counter


def test_a_ragged_batch_goes_to_both_phases(fake: FakeDriver, workspaces: list[torch.Tensor]) -> None:
    for _ in range(2):
        params = mixed()
        out = launch(params)
        assert isinstance(out, torch.Tensor)
        prefill, decode, combine = fake.launches[-3:]
        assert names(fake, fake.launches[-3:]) == [PREFILL, DECODE, COMBINE]
        inputs = [params.q.data_ptr(), params.k.data_ptr(), params.v.data_ptr()]
        assert addresses(prefill) == [*inputs, out.data_ptr()]
        assert addresses(decode) == addresses(combine) == [*inputs, 0]
        assert {sent.block.cu_seqlens_q for sent in (prefill, decode, combine)} == {params.cu_seqlens_q.data_ptr()}
        assert {sent.block.partial for sent in (prefill, decode, combine)} == {workspaces[-1].data_ptr()}
        assert {sent.block.decode_always_rows for sent in (prefill, decode, combine)} == {64}
        # Prefill kernels do not wait for the one before them, so they may not start early.
        assert [sent.starts_early for sent in (prefill, decode, combine)] == [False, True, True]


def test_phases_of_one_form_are_chosen_by_sizes(fake: FakeDriver) -> None:
    assert isinstance(launch(step(200)), torch.Tensor)
    assert fake.launches[-1].block.decode_always_rows == 0
    launch(step(1))
    launch(step(100, 3199))
    launch(step(100, 3200))  # 16 keys for each of 200 packed rows
    launch(step(1, 200))
    assert [sent.starts_early for sent in fake.launches] == [False, True, True, False, True, True, True]
    wanted = [PREFILL, DECODE, COMBINE, PREFILL, DECODE, COMBINE, DECODE]
    assert names(fake, fake.launches) == wanted
    assert len(launcher._forms) == 1 and len(fake.libraries) == 3


def test_a_launch_of_fewer_kernels_after_one_of_more(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same memory, of which nothing is left behind."""
    monkeypatch.setattr(prepared, "MAX_PREPARED", 1)
    for _ in range(2):
        launch(mixed())
        launch(step(200))
        assert fake.launches[-1].block.partial == fake.launches[-1].block.decode_always_rows == 0
        launch(step(1, 200))
        assert fake.launches[-1].map_address("tma_o") == 0 and fake.launches[-1].block.cu_seqlens_q == 0
    wanted = [PREFILL, DECODE, COMBINE, PREFILL, DECODE]
    assert [sent.starts_early for sent in fake.launches] == [name != PREFILL for name in wanted] * 2
    assert names(fake, fake.launches) == wanted * 2 and len(launcher._prepared) == 1


def test_rounds_share_a_workspace(
    fake: FakeDriver, workspaces: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from skimattn._launch import decode

    monkeypatch.setattr(decode, "WORKSPACE_BYTES", 80_000)  # of the 16 KB or so of a request
    launch(step(batch=20))
    (workspace,) = workspaces
    assert 4 * workspace.numel() <= 80_000
    count = len(fake.launches) // 2
    assert count > 2 and names(fake, fake.launches) == [DECODE, COMBINE] * count
    assert {sent.block.partial for sent in fake.launches} == {workspace.data_ptr()}
    spans = [(sent.block.first_request, sent.block.round_requests) for sent in fake.launches]
    assert spans[::2] == spans[1::2] and sum(length for _, length in spans[::2]) == 20
    assert [first for first, _ in spans[::2]] == [sum(n for _, n in spans[: 2 * i : 2]) for i in range(count)]


def test_explain_on_a_gpu_names_all_kernels(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    explanation = explain(mixed())
    lines = [line.split(", ")[0] for line in explanation.trace if line.startswith("kernel: ")]
    assert lines == [f"kernel: {name}" for name in (PREFILL, DECODE, COMBINE)]
    assert f"kernel: {COMBINE}, which merges the parts of decoded requests" in explanation.trace
    assert explanation.accepted and explanation.kernel == PREFILL and not explanation.built
    specs = dispatch.specs_of(launcher.validate(mixed()), "sm90").values()
    built = {spec: kernels.Located(kernels.unbuilt_row(spec), Path("here")) for spec in specs}
    monkeypatch.setattr(kernels, "is_stale", lambda _: False)
    monkeypatch.setenv(kernels.JIT_VARIABLE, "0")
    monkeypatch.setattr(kernels, "built", lambda: built)
    assert explain(mixed()).accepted and explain(mixed()).built
    for spec in list(built):  # without any one of them it cannot run
        missing = {other: located for other, located in built.items() if other != spec}
        monkeypatch.setattr(kernels, "built", lambda missing=missing: missing)
        explanation = explain(mixed())
        assert not explanation.accepted and explanation.reason.startswith(f"{spec.name} is not built")
        assert explanation.trace[-1] == f"rejected: {explanation.reason}"


def test_a_missing_kernel_that_combines_stops_the_launch(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is enqueued."""
    obtain = kernels.obtain

    def all_but_one(spec: Any) -> Any:
        if spec.phase == "combine":
            raise NoKernelError(f"{spec.name}: not built")
        return obtain(spec)

    monkeypatch.setattr(kernels, "obtain", all_but_one)
    with pytest.raises(NoKernelError, match=COMBINE):
        launch(step())
    assert not fake.launches
