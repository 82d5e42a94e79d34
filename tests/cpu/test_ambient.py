"""What surrounds a call on CPU tensors has no part in its bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from skimattn import Params, launch, pack_mask, sparsity, threshold_from_scale_factor
from skimattn._call import ambient, values
from skimattn.reference import prefill

BF16 = torch.bfloat16


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def precision(name: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", BF16),
    "autocast fp16": lambda: torch.autocast("cpu", torch.float16),
    "default bf16": lambda: default_dtype(BF16),
    "default fp16": lambda: default_dtype(torch.float16),
    "default fp64": lambda: default_dtype(torch.float64),
    "default device meta": lambda: default_device("meta"),
    "default device cuda": lambda: default_device("cuda"),
    "medium precision": lambda: precision("medium"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
}
# What each state would change without the shield, or without a dtype named: these must be seen to fail.
SHIELDED = ("autocast", "autocast fp16", "default device meta", "default device cuda")


def call(**changes: Any) -> Params:
    random = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(2, rows, heads, 64, generator=random).to(BF16) for rows, heads in ((70, 4), (300, 2), (300, 2))
    )
    arguments: dict[str, Any] = {
        "mask": "window",
        "window_size": (200, 3),
        "softcap": 20.0,
        "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float32),
        "alibi_slopes": torch.tensor([0.1, 0.2, 0.0, 0.3], dtype=torch.float32),
        "seqused_k": torch.tensor([300, 170], dtype=torch.int32),
        "skip_softmax_threshold": 0.6,
        "stats": torch.zeros(2, 4, 2, dtype=torch.int64),
        "skip_map": torch.zeros(2, 4, 2, 3, dtype=torch.uint8),
        "return_lse": True,
    }
    return Params(q, k, v, **{**arguments, **changes})


def written(state: AbstractContextManager[object], **changes: Any) -> dict[str, torch.Tensor]:
    params = call(**changes)
    with state:
        out, lse = launch(params)
    assert params.stats is not None and params.skip_map is not None
    return {"out": out, "lse": lse, "stats": params.stats, "skip_map": params.skip_map}


@pytest.mark.parametrize("name", STATES)
def test_the_bits_are_those_of_a_fresh_process(name: str) -> None:
    wanted = written(nullcontext())
    assert wanted["stats"][..., 1].sum() > 0  # something was skipped
    got = written(STATES[name]())
    for key, tensor in wanted.items():
        assert got[key].dtype == tensor.dtype and torch.equal(got[key], tensor), key


@pytest.mark.parametrize("name", SHIELDED)
def test_without_the_shield_they_are_others(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wanted = written(nullcontext())
    for module in (ambient, values, prefill):
        monkeypatch.setattr(module, "shielded", nullcontext)
    try:
        got = written(STATES[name]())
    except (RuntimeError, NotImplementedError, AssertionError):  # no such device
        return
    assert any(not torch.equal(got[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", STATES)
def test_a_custom_mask_is_packed_the_same(name: str) -> None:
    mask = torch.rand(70, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float32) < 0.8
    wanted = written(nullcontext(), mask="custom", window_size=(-1, -1), custom_mask=mask)
    got = written(STATES[name](), mask="custom", window_size=(-1, -1), custom_mask=mask)
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())
    packed = pack_mask(mask)
    with STATES[name]():
        assert torch.equal(pack_mask(mask), packed)


@pytest.mark.parametrize("name", STATES)
def test_what_is_read_from_counts_and_lengths_is_the_same(name: str) -> None:
    counts, lengths = torch.tensor([[7, 3], [0, 0]]), torch.tensor([0, 1, 300, 5000], dtype=torch.int32)
    share, thresholds = sparsity(counts), threshold_from_scale_factor(40.0, lengths)
    assert share.dtype == thresholds.dtype == torch.float32
    with STATES[name]():
        again, thresholds_again = sparsity(counts), threshold_from_scale_factor(40.0, lengths)
    assert torch.equal(again, share) and again.dtype == share.dtype
    assert torch.equal(thresholds_again, thresholds) and thresholds_again.dtype == thresholds.dtype


def test_the_precision_of_products_is_put_back() -> None:
    with precision("high"):
        written(nullcontext())
        assert torch.get_float32_matmul_precision() == "high"
