"""The table of arguments: nothing that a call is told can be forgotten on the way to the kernel."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, launch, launcher
from skimattn._call.arguments import ARGUMENTS, INPUTS, OPTIONS, OUTPUTS, POINTERS, SIZES, TENSOR_MAPS, TENSORS
from skimattn.codegen.parameter_block import FIELDS
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, scan_of, small_call

NAMES = [item.name for item in fields(Params) if item.init]
_OTHERS: dict[str, Any] = {  # a value that is not the default, for arguments that are no tensors
    "kv_layout": "HND",
    "max_seqlen_q": 7,
    "max_seqlen_k": 8,
    "mask": "chunked",
    "window_size": (3, 0),
    "chunk_size": 48,
    "custom_mask_keys": 9,
    "softmax_scale": 0.5,
    "softcap": 30.0,
    "return_lse": True,
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def tensor_for(name: str) -> torch.Tensor:
    dtypes = ARGUMENTS[name].dtypes
    return torch.zeros(2, 3, 4, 5, dtype=dtypes[0] if dtypes else torch.bfloat16)


def test_every_argument_has_one_role() -> None:
    assert sorted(NAMES) == sorted((*OPTIONS, *SIZES, *INPUTS, *OUTPUTS))
    assert TENSORS[:3] == ("q", "k", "v") and set(TENSORS) == {*INPUTS, *OUTPUTS}


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_part_of_the_signature(name: str) -> None:
    """A call that differs in one argument is another call: prepared launches are looked up by signature alone."""
    base = Params(tensor_for("q"), tensor_for("k"), tensor_for("v"))
    if name in TENSORS:
        variants = [tensor_for(name), tensor_for(name)[:1], tensor_for(name).transpose(0, 1), tensor_for(name)[0]]
        calls = [replace(base, **{name: value}) for value in variants]
    else:
        calls = [base, replace(base, **{name: _OTHERS[name]})]
    scans = [scan_of(params) for params in calls]
    signatures = [(scan.form, scan.sizes) for scan in scans]
    assert len({*signatures}) == len(signatures), name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TENSORS])
def test_values_that_compare_equal_are_not_one_signature(name: str) -> None:
    base = Params(tensor_for("q"), tensor_for("k"), tensor_for("v"))
    ones = [(1, True), (True, 1)] if name == "window_size" else [1, True]
    first, second = (scan_of(replace(base, **{name: value})) for value in ones)
    assert (first.form, first.sizes) != (second.form, second.sizes)


@pytest.mark.parametrize("name", [name for name in TENSORS if name not in "qkv"])
def test_the_address_of_every_argument_reaches_the_kernel(name: str) -> None:
    held = {*POINTERS.values(), *TENSOR_MAPS.values()}
    assert name in held
    assert {*POINTERS, *TENSOR_MAPS} <= {field.name for field in FIELDS}


def test_pointers_of_the_block_are_those_of_arguments() -> None:
    pointers = {field.name for field in FIELDS if field.kind == "pointer"}
    assert pointers - {"work_counter", "partial"} == set(POINTERS)  # those are the launch's own
    maps = {field.name for field in FIELDS if field.kind == "tensor_map"}
    assert maps - {"tma_vt"} == set(TENSOR_MAPS)


def test_the_documentation_names_every_argument() -> None:
    text = Params.__doc__ or ""
    for name in NAMES:
        assert f"\n        {name}: " in text, name


def test_a_chunk_size_of_one_call_is_not_that_of_another(fake: FakeDriver) -> None:
    for chunk in (48, 100, 48):
        launch(small_call(mask="chunked", chunk_size=chunk))
    assert [sent.block.chunk_size for sent in fake.launches] == [48, 100, 48]


@pytest.mark.parametrize("name", ["q", "k", "v", "sinks", "out"])
def test_a_tensor_without_memory_is_refused_by_name(fake: FakeDriver, name: str) -> None:
    """Nothing may reach the driver with the address 0, also where the same call ran before."""
    out = on_gpu(torch.zeros(1, 70, 4, 128, dtype=torch.bfloat16))
    params = small_call(sinks=on_gpu(torch.zeros(4)), out=out)
    launch(params)
    tensor = getattr(params, name)
    tensor.as_subclass(torch.Tensor).untyped_storage().resize_(0)
    with pytest.raises(ArgumentError, match=rf"^{name}: expected a tensor with memory of its own \(got OnGpu without"):
        launch(params)
    with pytest.raises(ArgumentError, match=rf"^{name}: expected a tensor with memory of its own"):
        launch(replace(params))
    launcher._prepared.__init__()  # type: ignore[misc]
    with pytest.raises(ArgumentError, match=rf"^{name}: expected a tensor with memory of its own"):
        launch(replace(params))
    assert len(fake.launches) == 1


def test_fake_tensors_are_refused_by_name(fake: FakeDriver) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 70, 4, 128, dtype=torch.bfloat16, device="cuda")
        k, v = (torch.empty(1, 90, 2, 128, dtype=torch.bfloat16, device="cuda") for _ in "kv")
        with pytest.raises(ArgumentError, match=r"^q: expected a tensor with memory of its own \(got FakeTensor"):
            launch(Params(q, k, v))
    assert not fake.launches
