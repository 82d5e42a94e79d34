"""What surrounds a call on CPU tensors has no part in its bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import Params, launch, pack_mask, sparsity, threshold_from_scale_factor
from skimattn._call import ambient, values
from skimattn.reference import _softmax, attention

BF16 = torch.bfloat16
MKLDNN: Any = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later


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
        if MKLDNN is not None:
            MKLDNN.fp32_precision = "none"  # else it follows torch.backends.fp32_precision no more


@contextmanager
def backends(backend: Any, name: str) -> Iterator[None]:
    """The precision of one backend alone (torch 2.9 and later); since then the one of all cannot be read."""
    backend.fp32_precision = name
    try:
        yield
    finally:
        backend.fp32_precision = "none"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    "one thread": lambda: threads(1),
    "three threads": lambda: threads(3),
}
if MKLDNN is not None:
    STATES |= {
        "bf16 products": lambda: backends(MKLDNN, "bf16"),
        "tf32 products": lambda: backends(torch.backends, "tf32"),
        "tf32 products on GPUs": lambda: backends(torch.backends.cuda.matmul, "tf32"),
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
    for module in (ambient, values, attention):
        monkeypatch.setattr(module, "shielded", nullcontext)
    try:
        got = written(STATES[name]())
    except (RuntimeError, NotImplementedError, AssertionError):  # no such device
        return
    assert any(not torch.equal(got[key], tensor) for key, tensor in wanted.items())


def drawn(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def ragged() -> dict[str, Any]:
    return {
        "q": drawn(3, 4, 64),
        "k": drawn(900, 2, 64, seed=1),
        "v": drawn(900, 2, 64, seed=2),
        "cu_seqlens_q": ints(0, 1, 3),
        "cu_seqlens_k": ints(0, 300, 900),
        "mask": "causal",
        "alibi_slopes": drawn(2, 4, dtype=torch.float32).abs(),
        "sinks": drawn(4),
        "skip_softmax_threshold": torch.tensor([[0.9, 0.8, 0.1, 1.0]] * 2, dtype=torch.float32),
    }


def paged() -> dict[str, Any]:
    return {
        "q": drawn(2, 2, 4, 64),
        "k": drawn(30, 64, 2, 64, seed=1),
        "v": drawn(30, 64, 2, 64, seed=2),
        "page_table": torch.arange(30, dtype=torch.int32).view(2, 15),
        "seqused_k": ints(900, 700),
        "mask": "chunked",
        "chunk_size": 600,
        "skip_softmax_threshold": torch.tensor([0.9, 1.0], dtype=torch.float32),
    }


def eight_bit() -> dict[str, Any]:
    e4m3 = torch.float8_e4m3fn
    return {
        "q": drawn(2, 2, 4, 64, dtype=e4m3),
        "k": drawn(2, 300, 2, 64, dtype=e4m3, seed=1),
        "v": drawn(2, 300, 2, 64, dtype=e4m3, seed=2),
        "q_descale": torch.tensor([[0.5, 1.5], [0.7, 1.1]], dtype=torch.float32),
        "k_descale": torch.tensor([0.9], dtype=torch.float32),
        "v_descale": torch.tensor(0.7, dtype=torch.float32),
        "softcap": 9.0,
        "skip_softmax_threshold": 0.9,
    }


@pytest.mark.parametrize("make", [ragged, paged, eight_bit])
@pytest.mark.parametrize("name", STATES)
def test_so_are_those_of_other_kinds_of_calls(name: str, make: Callable[[], dict[str, Any]]) -> None:
    results = []
    for state in (nullcontext(), STATES[name]()):
        params = Params(**make(), stats=torch.zeros(2, 4, 2, dtype=torch.int64), return_lse=True)
        with state:
            results.append((*launch(params), params.stats))
    assert results[0][2][..., 1].sum() > 0  # something was skipped
    for wanted, got in zip(*results, strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["default bf16", "default fp16", "default fp64"])
def test_where_no_dtype_is_named_they_are_others(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A default dtype is no mode that a shield could leave, so what guards from it are names of dtypes."""
    wanted = written(nullcontext(), softcap=0.0)
    monkeypatch.setattr(_softmax, "_float", torch.tensor)
    got = written(STATES[name](), softcap=0.0)
    assert any(got[key].dtype != tensor.dtype or not torch.equal(got[key], tensor) for key, tensor in wanted.items())


def test_a_compiler_around_the_call_has_no_part_in_its_bits() -> None:
    wanted = written(nullcontext())
    params = call()
    out, lse = torch.compile(lambda q: launch(replace(params, q=q)), fullgraph=True)(params.q)
    assert torch.equal(out, wanted["out"]) and torch.equal(lse, wanted["lse"])
    assert params.stats is not None and torch.equal(params.stats, wanted["stats"])


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


@pytest.mark.parametrize("torch_2_8", [False, True])
def test_the_precision_of_products_is_full_inside_and_put_back(
    monkeypatch: pytest.MonkeyPatch, torch_2_8: bool
) -> None:
    if torch_2_8:
        for name, value in {"_matmul": None, "_FULL": "highest", "_INHERITED": "", "_found": "highest"}.items():
            monkeypatch.setattr(ambient, name, value)
    with precision("high"):
        for _ in range(2):
            with ambient.shielded(), ambient.shielded():
                assert ambient._precision() == ambient._FULL
            assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(MKLDNN is None, reason="torch 2.8 has one precision for all backends")
def test_a_precision_that_was_inherited_goes_on_being_inherited() -> None:
    with backends(torch.backends, "tf32"):
        with ambient.shielded():
            assert MKLDNN.fp32_precision == "ieee"
        assert MKLDNN.fp32_precision == "tf32"
    assert MKLDNN.fp32_precision == "none"


def test_threads_that_overlap_all_compute_in_full_precision() -> None:
    """The first one in leaves first: it must not put the precision back under the other."""
    first, second = ambient.shielded(), ambient.shielded()
    with precision("medium"), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert ambient._precision() == ambient._FULL
        other.submit(second.__exit__, None, None, None).result()
        assert torch.get_float32_matmul_precision() == "medium"


def test_tensors_made_in_inference_mode_are_written_outside_of_it_as_kernels_do() -> None:
    wanted = written(nullcontext())
    with torch.inference_mode():
        own = call()
        given = {name: torch.empty_like(wanted[name]) for name in ("out", "lse")}
    out, lse = launch(replace(own, **given))
    assert out is given["out"] and torch.equal(out, wanted["out"]) and torch.equal(lse, wanted["lse"])
    assert own.stats is not None and torch.equal(own.stats, wanted["stats"])
