"""Calls in code that torch.compile and torch.export trace: the bits of eager calls, and all that they write."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, attention, launch
from skimattn._op import ops

from tests.helpers.planted import (
    HEADS,
    KEYS,
    ROWS,
    THRESHOLD,
    B,
    Call,
    counters,
    outputs,
    same,
    skipped_all_but_the_first,
    tensors,
)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(function, **{"fullgraph": True, "backend": "aot_eager"} | options)


@pytest.mark.parametrize("given", [(), ("lse",), ("out",), ("out", "lse")], ids="-".join)
@pytest.mark.parametrize("return_lse", [False, True])
def test_compiled_calls_give_the_bits_of_eager_ones(given: tuple[str, ...], return_lse: bool) -> None:
    def step(call: Call) -> Any:
        return attention(**call, skip_softmax_threshold=THRESHOLD, return_lse=return_lse)

    here, there = (counters() | {name: outputs()[name] for name in given} for _ in range(2))
    results = [step(tensors() | here), compiled(step)(tensors() | there)]
    assert same(*results) and same(here, there)
    assert isinstance(results[1], tuple) == return_lse
    assert skipped_all_but_the_first(there["stats"])
    assert there["skip_map"].tolist() == [[[[1, 2, 2]] * 2] * HEADS] * B
    if "out" in given:
        assert torch.equal(there["out"], attention(**tensors(), skip_softmax_threshold=THRESHOLD))


def test_inductor_adds_to_stats_call_after_call() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in (counters() | outputs()).items():
                self.register_buffer(name, value)

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
            params = Params(q, k, v, skip_softmax_threshold=threshold, stats=self.stats, skip_map=self.skip_map)
            launch(Params(q, k, v, skip_softmax_threshold=threshold, stats=self.stats, out=self.out, lse=self.lse))
            return launch(params)

    layer, eager = Layer(), Layer()
    step = compiled(layer, backend="inductor")
    for call in range(1, 4):
        q, k, v = tensors(seed=call).values()
        threshold = torch.full((B, HEADS), THRESHOLD)
        assert torch.equal(step(q, k, v, threshold), eager(q, k, v, threshold))
        assert same(dict(layer.named_buffers()), dict(eager.named_buffers()))
        assert skipped_all_but_the_first(layer.stats, calls=2 * call)
    step(q, k, v, torch.zeros(B, HEADS))  # read anew: nothing is skipped any more
    assert layer.stats[0, 0].tolist() == [5 + 8 * 6, 5 + 6 * 4]


def test_lengths_change_without_compiling_anew() -> None:
    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, longest: int) -> torch.Tensor:
        return attention(q, k, v, causal=True, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=longest)

    from torch._dynamo.testing import CompileCounterWithBackend  # a second's import, which collecting does without

    backend = CompileCounterWithBackend("aot_eager")
    compiled_step = compiled(step, backend=backend)
    for lengths in ((5, 9), (6, 20), (70, 3), (8, 8), (130, 2), (1, 40)):
        q, k, v = (tensor[0, : sum(lengths)] for tensor in tensors(200, 200).values())
        offsets = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
        assert torch.equal(compiled_step(q, k, v, offsets, max(lengths)), step(q, k, v, offsets, max(lengths)))
    assert backend.frame_count == 2  # with the first lengths, and with any


def test_a_call_made_outside_and_gradients_elsewhere_in_the_graph() -> None:
    params, weight = Params(**tensors(), mask="causal"), torch.ones(1, requires_grad=True)

    def step() -> torch.Tensor:
        return (launch(params) * weight).sum()

    compiled(step)().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.autograd.grad(step(), weight)[0].detach())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"skip_softmax_threshold": True}, r"expected no bool \(got True\)"),
        ({"return_lse": 1}, r"expected a bool \(got 1\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_no_value_becomes_one_of_another_type(wrong: Call, text: str) -> None:
    (name,), call = wrong, tensors() | wrong
    with pytest.raises(ArgumentError, match=f"^{name}: {text}"):
        ops.traced(Params(**call))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ArgumentError"):
        compiled(lambda: attention(**call))()


def test_streams_belong_to_eager_calls() -> None:
    text = r"stream: expected None in compiled code \(its kernels run on torch's current stream\) \(got 3\)"
    with pytest.raises(ArgumentError, match="^" + text):
        ops.traced(Params(**tensors()), 3)
    call = tensors()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ArgumentError"):
        compiled(lambda: attention(**call, stream=3))()
    with pytest.raises(ArgumentError, match="stream: expected None with CPU tensors"):
        compiled(lambda: attention(**call, stream=3), fullgraph=False)()  # not traced, so refused as in eager mode


# torch.export


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_run_with_other_lengths(strict: bool) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("stats", counters()["stats"])

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attention(q, k, v, skip_softmax_threshold=THRESHOLD, stats=self.stats)

    rows, keys = torch.export.Dim("rows"), torch.export.Dim("keys")
    sizes = ({1: rows}, {1: keys}, {1: keys})
    file = io.BytesIO()
    torch.export.save(
        torch.export.export(Layer(), tuple(tensors().values()), dynamic_shapes=sizes, strict=strict), file
    )
    file.seek(0)
    module, eager = torch.export.load(file).module(), Layer()
    for length in (KEYS, 20, 140):
        call = tensors(ROWS, length).values()
        assert torch.equal(module(*call), eager(*call))
    stats = dict(module.named_buffers())["stats"]
    assert torch.equal(stats, eager.stats) and int(stats[..., 1].min()) == 5 + 4 + 2
