"""The launch path against a driver that remembers: what reaches the kernel, what is cached, streams and counters."""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cuda.bindings import driver as real
from skimattn import ArgumentError, BuildError, CudaError, NoKernelError, Params, explain, launch, launcher
from skimattn._launch import prepared
from skimattn._select import kernels

from tests.helpers.fake_driver import CONTEXT, FakeDriver, install, on_gpu
from tests.helpers.fake_driver import small_call as call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def test_what_reaches_the_kernel(fake: FakeDriver) -> None:
    params = call(batch=2)
    out = launch(params)
    assert isinstance(out, torch.Tensor)
    (sent,) = fake.launches
    spec = explain(params).spec
    assert spec is not None
    kernel = kernels.unbuilt_row(spec)
    assert (sent.threads, sent.smem, sent.stream) == (kernel.threads, kernel.smem_bytes, 0)
    assert sent.grid == 2 * 4 * -(-70 // kernel.tile_m)
    addresses = [sent.map_address(name) for name in ("tma_q", "tma_k", "tma_v", "tma_o")]
    assert addresses == [tensor.data_ptr() for tensor in (params.q, params.k, params.v, out)]
    block = sent.block
    assert (block.out, block.lse, block.threshold, block.len_q, block.len_k) == (out.data_ptr(), 0, 0, 70, 300)
    assert (block.batch, block.heads_q, block.heads_kv, block.head_dim_v) == (2, 4, 2, 128)


def test_maps_hold_what_the_driver_encoded(fake: FakeDriver) -> None:
    """The driver's objects die young, and what was read from them afterwards crashed kernels on a GPU."""
    for keys in range(300, 340):
        q, k, v = (on_gpu(torch.zeros(1, rows, 2, 128, dtype=torch.bfloat16)) for rows in (keys // 2, keys, keys))
        out = launch(Params(q, k, v))
        assert isinstance(out, torch.Tensor)
        sent = fake.launches[-1]
        for name, tensor in (("tma_q", q), ("tma_k", k), ("tma_v", v), ("tma_o", out)):
            rows, box_rows = tensor.shape[1], 128 if tensor is k or tensor is v else 64
            bytes_of = (512, 256, rows * 512)  # from one row, head, request to the next
            assert sent.map_address(name) == tensor.data_ptr()
            stride = bytes_of[:2] + ((256,) if tensor.shape[0] == 1 else bytes_of[2:])
            assert sent.map_sizes(name) == (128, rows, 2, 1, *stride, 64, box_rows, 1, 1), name


@pytest.mark.parametrize(
    ("dtype", "dim", "heads", "bytes_"),
    [("bfloat16", 128, 2, 256), ("bfloat16", 64, 2, 128), ("bfloat16", 64, 1, 256), ("float8_e4m3fn", 128, 2, 128)],
)
def test_l2_fetches_what_is_of_the_same_head(fake: FakeDriver, dtype: str, dim: int, heads: int, bytes_: int) -> None:
    """256 bytes where a row of a head has as many, or its next row follows; else half would be a neighbour's."""
    k = on_gpu(torch.zeros(1, 700, heads, dim).to(getattr(torch, dtype)))
    for keys in (500, 600):  # the second one goes the short way
        launch(Params(k[:, :400], k[:, :keys], k[:, :keys]))
        assert fake.launches[-1].map_promotion("tma_k") == bytes_


def test_a_repeated_launch_only_replaces_what_moved(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    params = call(out=on_gpu(torch.zeros(1, 70, 4, 128, dtype=torch.bfloat16)))
    launch(params)
    fake.calls.clear()
    monkeypatch.setattr(launcher, "validate", lambda _: pytest.fail("validated again"))
    launch(params)
    assert fake.calls == ["cuCtxGetCurrent", "cuLaunchKernelEx"]
    assert fake.launches[1].map_address("tma_o") == params.out.data_ptr()  # type: ignore[union-attr]


def test_every_launch_gets_its_own_output(fake: FakeDriver) -> None:
    params = call(return_lse=True)
    kept = [launch(params) for _ in range(3)]
    assert len({sent.map_address("tma_o") for sent in fake.launches}) == 3
    for (out, lse), sent in zip(kept, fake.launches, strict=True):
        assert (sent.map_address("tma_o"), sent.block.out, sent.block.lse) == (
            out.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
        )
        assert lse.shape == (1, 70, 4) and lse.dtype == torch.float32


def test_a_new_call_of_the_same_kind_is_not_chosen_again(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = call(), call(), call()
    launch(first)
    for name in ("validate", "check_form", "specs_of"):
        monkeypatch.setattr(launcher, name, lambda *_: pytest.fail("looked at again"))
    launch(second)
    assert fake.launches[1].map_address("tma_k") == second.k.data_ptr() != first.k.data_ptr()
    launch(first)
    assert fake.launches[2].map_address("tma_k") == first.k.data_ptr()
    for _ in range(2):  # the second launch of an object binds it; from then on only what moved is rewritten
        launch(third)
    fake.calls.clear()
    launch(third)
    assert fake.launches[-1].map_address("tma_k") == third.k.data_ptr()
    assert "cuTensorMapEncodeTiled" not in fake.calls


@pytest.mark.parametrize(
    "change",
    [
        {"mask": "full"},
        {"softmax_scale": 0.5},
        {"skip_softmax_threshold": 0.25},
        {"softcap": 30.0},
        {"max_seqlen_k": 200, "seqused_k": on_gpu(torch.full((1,), 200, dtype=torch.int32))},
        {"window_size": (5, 0), "mask": "window"},
        {"sinks": on_gpu(torch.zeros(4))},
        {"seqused_k": on_gpu(torch.zeros(1, dtype=torch.int32))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_kind_is_prepared_by_itself(fake: FakeDriver, change: dict[str, Any]) -> None:
    launch(call())
    launch(call(**change))
    first, second = fake.launches
    assert len(launcher._prepared) == 2
    assert (first.function, bytes(first.block)[512:]) != (second.function, bytes(second.block)[512:])


def test_a_tensor_that_moved_or_changed_its_shape_is_looked_at_again(fake: FakeDriver) -> None:
    params = call()
    launch(params)
    params.k.data = torch.zeros(1, 300, 2, 128, dtype=torch.bfloat16)
    launch(params)
    assert fake.launches[1].map_address("tma_k") == params.k.data_ptr()
    params.q.resize_(1, 35, 4, 128)
    launch(params)
    assert fake.launches[2].block.len_q == 35
    params.q.unsqueeze_(0)
    with pytest.raises(ArgumentError, match=r"^q: expected rank 4"):
        launch(params)
    assert len(fake.launches) == 3


def test_known_kinds_still_check_addresses_and_gradients(fake: FakeDriver) -> None:
    good = call(out=on_gpu(torch.zeros(1, 70, 4, 128, dtype=torch.bfloat16)))
    launch(good)
    launch(call())
    storage = on_gpu(torch.zeros(70 * 4 * 128 + 8, dtype=torch.bfloat16))
    shifted = storage[4:-4].view(1, 70, 4, 128)
    with pytest.raises(ArgumentError, match=r"^q: expected an address"):
        launch(Params(shifted, good.k, good.v, mask="causal"))
    with pytest.raises(ArgumentError, match=r"^out: expected memory of its own .* overlap q"):
        launch(Params(good.q, good.k, good.v, mask="causal", out=good.q))
    good.q.requires_grad_()
    with pytest.raises(ArgumentError, match=r"^q: expected no requires_grad"):
        launch(good)
    assert len(fake.launches) == 2


def test_a_launched_call_cannot_change(fake: FakeDriver) -> None:
    params = call()
    params.softmax_scale = 0.5
    launch(params)
    with pytest.raises(AttributeError, match=r"^mask: this call was launched and cannot change"):
        params.mask = "full"
    other = replace(params, mask="full")
    other.softmax_scale = 0.25
    launch(other)
    assert [params.mask, other.mask] == ["causal", "full"] and isinstance(params, Params)
    assert fake.launches[0].block.scale_log2 == 2 * fake.launches[1].block.scale_log2


def test_a_copy_of_a_launched_call_can_change(fake: FakeDriver) -> None:
    params = call()
    launch(params)
    other = copy.copy(params)
    assert other.k is params.k
    other.mask = "full"
    launch(other)
    assert [params.mask, other.mask] == ["causal", "full"] and len(fake.launches) == 2


def test_prepared_launches_are_bounded_and_the_oldest_goes_first(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "MAX_PREPARED", 3)
    calls = [call(softmax_scale=scale) for scale in range(1, 9)]
    for params in calls:
        launch(params)
    launch(calls[5])  # of 6, 7 and 8, which are left, this is now the newest
    launch(call(softmax_scale=9))
    assert len(launcher._prepared) == 3 and len(fake.launches) == 10
    unit = fake.launches[0].block.scale_log2
    for params in (calls[0], calls[6], calls[5], calls[0]):  # found again, or prepared again, always itself
        launch(params)
        assert fake.launches[-1].block.scale_log2 == pytest.approx(unit * params.softmax_scale)
        assert fake.launches[-1].map_address("tma_q") == params.q.data_ptr()


def test_forms_are_bounded(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "MAX_FORMS", 3)
    for scale in range(1, 9):
        launch(call(softmax_scale=scale))
    assert len(launcher._forms) <= 3 and len(fake.launches) == 8


@pytest.mark.parametrize("rows", range(65, 71))
def test_a_known_form_with_new_sizes_is_not_chosen_again(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    launch(call())
    for name in ("check_form", "specs_of", "validate"):
        monkeypatch.setattr(launcher, name, lambda *_: pytest.fail("looked at again"))
    q = on_gpu(torch.zeros(2, rows, 8, 128, dtype=torch.bfloat16))
    k, v = (on_gpu(torch.zeros(2, 10 * rows, 2, 128, dtype=torch.bfloat16)) for _ in "kv")
    launch(Params(q, k, v, mask="causal"))
    block = fake.launches[1].block
    assert (block.batch, block.len_q, block.len_k, block.heads_q) == (2, rows, 10 * rows, 8)
    with pytest.raises(ArgumentError, match=r"^k: expected 2 requests, like q \(got 1\)"):
        launch(Params(q, k[:1], v[:1], mask="causal"))


def test_a_threshold_of_the_host_is_no_part_of_the_signature(fake: FakeDriver) -> None:
    for threshold in (0.25, 0.5, 0.0, 1.0):
        launch(call(skip_softmax_threshold=threshold))
    assert [sent.block.threshold_value for sent in fake.launches] == [0.25, 0.5, 0, 1]
    assert len(launcher._prepared) == 1
    with pytest.raises(ArgumentError, match=r"^skip_softmax_threshold: .*got 1.5\)"):
        launch(call(skip_softmax_threshold=1.5))


def test_prepared_launches_hold_no_tensors(fake: FakeDriver) -> None:
    import gc
    import weakref

    params = call()
    watched = [weakref.ref(tensor) for tensor in (params.q, params.k, params.v)]
    launch(params)
    gc.disable()
    try:
        del params
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()


def test_a_bool_mask_is_packed_for_every_launch(fake: FakeDriver) -> None:
    mask = on_gpu(torch.ones(70, 300, dtype=torch.bool))
    params = call(mask="custom", custom_mask=mask)
    launch(params)
    launch(params)
    for sent in fake.launches:
        assert sent.block.custom_mask not in (0, mask.data_ptr()) and sent.block.custom_stride_row == 40
    packed = on_gpu(torch.zeros(70, 40, dtype=torch.uint8))
    launch(call(mask="custom", custom_mask=packed))
    assert fake.launches[2].block.custom_mask == packed.data_ptr()


def test_the_device_of_q_becomes_current_for_the_launch_only(fake: FakeDriver) -> None:
    launch(call(ordinal=1))
    launch(call(ordinal=0))
    assert [sent.context for sent in fake.launches] == [CONTEXT + 1, CONTEXT]
    assert fake.contexts == [CONTEXT]
    assert fake.launches[0].function != fake.launches[1].function  # a function per context
    assert len(fake.libraries) == 1  # of one library


def test_tensors_on_two_devices_are_refused(fake: FakeDriver) -> None:
    params = call()
    other = on_gpu(torch.zeros(1, 300, 2, 128, dtype=torch.bfloat16), 1)
    with pytest.raises(ArgumentError, match=r"^k: expected a tensor on cuda:0, like q \(got cuda:1\)"):
        launch(Params(params.q, other, params.v))


def test_device_values_are_never_read(fake: FakeDriver) -> None:
    wild = {"seqused_k": on_gpu(torch.tensor([10**6], dtype=torch.int32))}
    launch(call(**wild))
    launch(call(skip_softmax_threshold=on_gpu(torch.tensor([float("nan")]))))
    assert fake.launches[1].block.threshold != 0 and fake.launches[1].block.threshold_stride_batch == 1


def test_nothing_is_launched_without_rows(fake: FakeDriver) -> None:
    empty = on_gpu(torch.zeros(1, 0, 4, 128, dtype=torch.bfloat16))
    params = call()
    out = launch(Params(empty, params.k, params.v))
    assert isinstance(out, torch.Tensor) and out.shape == empty.shape
    assert fake.launches == []


def test_threads_do_not_mix_their_tensors(fake: FakeDriver) -> None:
    calls = [call(batch=1 + index % 2) for index in range(8)]
    failures: list[BaseException] = []

    def work(params: Params) -> None:
        try:
            for _ in range(50):
                launch(params)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(params,)) for params in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(fake.launches) == 400
    keys = {params.q.data_ptr(): params.k.data_ptr() for params in calls}
    assert all(keys[sent.map_address("tma_q")] == sent.map_address("tma_k") for sent in fake.launches)


def test_an_unsupported_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeDriver(capability=(8, 0)))
    with pytest.raises(
        NoKernelError, match=r"^device: expected compute capability 9.0 \(sm90\) or 10.0 \(sm100\) \(got 8.0\)"
    ):
        launch(call())
    assert not fake.launches and not fake.libraries
    explanation = explain(call())
    assert not explanation.accepted and "got 8.0" in explanation.reason


def test_errors_of_the_driver_carry_its_name(fake: FakeDriver) -> None:
    fake.failing["cuLaunchKernelEx"] = real.CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
    with pytest.raises(CudaError, match=r"^cuLaunchKernelEx of skim_\w+: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES \(as the"):
        launch(call())
    fake.failing = {"cuTensorMapEncodeTiled": real.CUresult.CUDA_ERROR_INVALID_VALUE}
    with pytest.raises(CudaError, match=r"cuTensorMapEncodeTiled: CUDA_ERROR_INVALID_VALUE .*dims=\(128, 70, 4, 2\)"):
        launch(call(mask="full", batch=2))


@pytest.mark.parametrize("threshold", [1, np.float32(0.5), Fraction(1, 3)], ids=lambda value: type(value).__name__)
def test_any_real_number_is_a_threshold(fake: FakeDriver, threshold: Any) -> None:
    launch(call(skip_softmax_threshold=threshold))
    assert fake.launches[0].block.threshold_value == pytest.approx(float(threshold))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask": "window", "window_size": [3, 0]}, r"^window_size: expected a pair \(left, right\), a tuple"),
        ({"skip_softmax_threshold": "0.5"}, r"^skip_softmax_threshold: .*got str"),
        ({"sinks": torch.zeros(4).to_sparse()}, r"^sinks: expected a dense \(strided\) tensor"),
        ({"mask": ["full"]}, r"^mask: expected one of"),
    ],
    ids=["list", "text", "sparse", "unhashable"],
)
def test_what_cannot_be_a_key_is_refused_by_validation(fake: FakeDriver, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        launch(call(**wrong))
    assert not fake.launches


def test_a_damaged_cubin_is_not_loaded(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_spec: object) -> object:
        raise BuildError("skim_x: cubin x.cubin has sha256 ...")

    monkeypatch.setattr(kernels, "obtain", damaged)
    with pytest.raises(BuildError, match="sha256"):
        launch(call())
    assert not fake.libraries and not fake.launches


def test_loading_is_logged(fake: FakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "skimattn"):
        launch(call())
        launch(call())
    texts = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in texts] == [explain(call()).kernel, "loaded"]
    assert "skim_sm90_prefill_bf16_d128_causal_dense" in texts[0]
