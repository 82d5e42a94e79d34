"""The operators of torch: schemas, what they compute and refuse, and what they say without data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import skimattn
import torch
from skimattn import ArgumentError, Params, launch
from skimattn._op import ops, schema
from skimattn.integrations import torch_ops
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers import wrong_calls
from tests.helpers.planted import HEADS, ROWS, THRESHOLD, B, Call, counters, outputs, same, tensors

FUNCTIONAL, OUT = torch_ops.attention.default, torch_ops.attention_out.default
WRITTEN = {"attention": {"stats", "skip_map"}, "attention_out": {"out", "lse", "stats", "skip_map"}}


def test_every_argument_is_in_the_schemas_and_what_is_written_is_declared() -> None:
    names = {item.name for item in fields(Params) if item.init} | {"skip_softmax_threshold_tensor"}
    for op, without in ((FUNCTIONAL, {"out", "lse"}), (OUT, {"return_lse"})):
        arguments = {argument.name: argument for argument in op._schema.arguments}
        assert set(arguments) == names - without
        written = {name for name, argument in arguments.items() if argument.alias_info and argument.alias_info.is_write}
        assert written == WRITTEN[op._schema.name.split("::")[1]]
        assert [name for name, argument in arguments.items() if not argument.kwarg_only] == ["q", "k", "v"]
        assert torch.Tag.pt2_compliant_tag in op.tags and torch.Tag.needs_exact_strides in op.tags


def other_values() -> Call:
    """A value for every field of ``Params`` that is not its default, told apart by its number."""
    values: Call = {}
    for number, (name, hint) in enumerate(get_type_hints(Params).items(), start=2):
        allowed = str(hint)
        if name == "_prepared":
            continue
        if "Tensor" in allowed:
            values[name] = torch.full((1, 1, 1, 8), number)
        elif "tuple" in allowed:
            values[name] = (number, number + 100)
        else:
            values[name] = (
                True if hint is bool else str(number) if hint is str else number + 0.0 if "float" in allowed else number
            )
    return values


@pytest.mark.parametrize("threshold", ["tensor", 0.25])
def test_no_argument_is_lost_on_the_way(threshold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = other_values()
    if threshold != "tensor":
        values["skip_softmax_threshold"] = threshold
    for without in ((), ("out", "lse")):
        given = values | dict.fromkeys(without)
        calls: list[Params] = []
        monkeypatch.setattr(ops, "launch", lambda params, calls=calls: calls.append(params) or (values["q"] + 1,) * 2)
        ops.traced(Params(**given))
        (arrived,) = calls
        for name, value in given.items():
            if name != "return_lse" or without:  # attention_out is told by lse
                assert getattr(arrived, name) is value or getattr(arrived, name) == value, name


def test_a_field_that_no_schema_can_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schema._HINTS, "mask", dict[str, int])
    with pytest.raises(
        TypeError, match=r"^mask: expected an annotation that a schema can say \(got dict\[str, int\]\)"
    ):
        list(schema._arguments("mask", required=False))


# In eager mode


@pytest.mark.parametrize("kind", ["batched", "ragged", "paged", "eight_bit"])
def test_operators_compute_what_launch_computes(kind: str) -> None:
    call: Call = getattr(wrong_calls, kind)()
    generator = torch.Generator().manual_seed(1)
    for name in "qkv":
        call[name] = torch.randn(call[name].shape, generator=generator).to(call[name].dtype)
    written = {name: call.pop(name) for name in wrong_calls.OUTPUTS}
    here, there, allocated = ({name: value.clone() for name, value in written.items()} for _ in range(3))
    launch(Params(**call, **here))
    assert torch_ops.attention_out(**call, **there) is None
    assert same(here, there) and bool(here["stats"][..., 0].all())
    del allocated["out"], allocated["lse"]
    out, lse = torch_ops.attention(**call, **allocated, return_lse=True)
    assert same({**allocated, "out": out, "lse": lse}, here)
    out, lse = torch_ops.attention(**call, **allocated)
    assert torch.equal(out, here["out"]) and lse.numel() == 0 and lse.dtype == torch.float32


def test_writes_are_seen_by_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "launch", lambda params: params.q)  # as a GPU does, it writes without torch's knowledge
    for op, given in ((torch_ops.attention, {}), (torch_ops.attention_out, outputs())):
        call = {**tensors(), **given, **counters(), "skip_softmax_threshold": THRESHOLD}
        before = {name: value._version for name, value in call.items() if isinstance(value, torch.Tensor)}
        op(**call)
        assert {name for name, version in before.items() if call[name]._version != version} == WRITTEN[op.__name__]


def test_no_lse_is_made_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Params] = []
    monkeypatch.setattr(ops, "launch", lambda params: calls.append(params) or params.out)
    given = outputs()["out"]
    assert ops.traced(Params(**tensors(), out=given)) is given and calls[0].lse is None


def test_what_launch_refuses_the_operators_refuse() -> None:
    with pytest.raises(ArgumentError, match=r"^mask: expected one of .* \(got 'diagonal'\)"):
        torch_ops.attention(**tensors(), mask="diagonal")
    both = {"skip_softmax_threshold": 0.5, "skip_softmax_threshold_tensor": torch.ones(B)}
    text = r"^skip_softmax_threshold: expected None with skip_softmax_threshold_tensor \(got 0.5\)"
    with pytest.raises(ArgumentError, match=text):
        torch_ops.attention(**tensors(), **both)
    with pytest.raises(RuntimeError, match="Batching rule not implemented for skimattn::attention"):
        torch.vmap(torch_ops.attention)(*(tensor.unsqueeze(0) for tensor in tensors().values()))


@pytest.mark.parametrize("op", [torch_ops.attention, torch_ops.attention_out], ids=["attention", "attention_out"])
@pytest.mark.parametrize("name", ["q", "v", "sinks"])
def test_gradients_are_refused_before_anything_is_written(op: Any, name: str) -> None:
    call: Call = tensors() | {"sinks": torch.zeros(HEADS)} | (outputs() if op is torch_ops.attention_out else {})
    call[name].requires_grad_()
    text = rf"{name}: expected no requires_grad, since there is no backward pass"
    with pytest.raises(ArgumentError, match="^" + text):
        op(**call)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ArgumentError, match="^" + text):
        op(**call)
    with pytest.raises(Exception, match=text):
        torch.compile(lambda: op(**call), fullgraph=True, backend="aot_eager")()
    assert "out" not in call or same({key: call[key] for key in ("out", "lse")}, outputs())
    with torch.no_grad():
        op(**call)


@pytest.mark.parametrize(
    ("op", "extra"),
    [
        (FUNCTIONAL, lambda: {}),
        (FUNCTIONAL, lambda: {**counters(), "skip_softmax_threshold": THRESHOLD, "return_lse": True}),
        (OUT, lambda: {**counters(), **outputs(), "skip_softmax_threshold_tensor": torch.full((B,), THRESHOLD)}),
    ],
    ids=["functional", "functional-stat", "out"],
)
def test_opcheck(op: Any, extra: Callable[[], Call]) -> None:
    results = torch.library.opcheck(op, tuple(tensors().values()), extra())
    assert results and set(results.values()) == {"SUCCESS"}


# Without data


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize(("dtype", "written"), [(torch.float16, torch.float16), (torch.float8_e4m3fn, torch.bfloat16)])
def test_shapes_without_data(device: str, dtype: torch.dtype, written: torch.dtype) -> None:
    with FakeTensorMode():
        q, k, v = (
            torch.empty(3, *shape, dtype=dtype, device=device) for shape in ((5, 8, 192), (9, 2, 192), (9, 2, 128))
        )
        for return_lse, lse_shape in ((True, (3, 5, 8)), (False, (0,))):
            out, lse = torch_ops.attention(q, k, v, return_lse=return_lse)
            assert (out.shape, out.dtype, out.device.type) == ((3, 5, 8, 128), written, device)
            assert (lse.shape, lse.dtype, lse.device.type) == (lse_shape, torch.float32, device)
        assert torch_ops.attention_out(q, k, v, out=out) is None


def test_meta_tensors() -> None:
    q, k, v = (tensor.to("meta") for tensor in tensors().values())
    out, lse = torch_ops.attention(q[0], k[0], v[0], return_lse=True)  # a ragged batch
    assert out.is_meta and out.shape == (ROWS, HEADS, 64) and lse.shape == (ROWS, HEADS)


def test_importing_registers_and_costs_no_compiler() -> None:
    script = """
import sys, skimattn
assert "torch" not in sys.modules
import torch
assert not hasattr(torch.ops.skimattn, "attention")
q = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)
assert skimattn.launch(skimattn.Params(q, q, q)).shape == q.shape
assert "torch._dynamo" not in sys.modules
assert torch.ops.skimattn.attention(q, q, q)[0].shape == q.shape
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_public_module_has_the_operators() -> None:
    assert torch_ops.attention is torch.ops.skimattn.attention
    assert torch_ops.attention_out is torch.ops.skimattn.attention_out
    assert skimattn.launch is skimattn.api.launch
