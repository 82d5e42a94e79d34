"""The operators of torch on a GPU: inductor, CUDA graph trees, streams, torch.export."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, attention, launch
from skimattn._op import ops
from skimattn.integrations import torch_ops

from tests.helpers.planted import HEADS, ROWS, THRESHOLD, B, Call, counters, outputs, same, tensors

CUDA: Any = torch.cuda
REPLAYS = 6
EXPECTED_LAUNCHES = 2  # of a graph: once to warm up, once to record it; replays are the driver's


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shape of q in every call that an operator's kernel launched, and no tensor: graphs own their memory."""
    calls: list[torch.Size] = []

    def recorded(params: Params) -> Any:
        calls.append(params.q.shape)
        return launch(params)

    monkeypatch.setattr(ops, "launch", recorded)
    return calls


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, **options)


def thresholds(call: int) -> torch.Tensor:
    """Skips in even calls, and nothing in odd ones."""
    return torch.full((B, HEADS), THRESHOLD if call % 2 == 0 else 0.0, device="cuda")


class Layer(torch.nn.Module):
    """Attention that counts into its buffers and, with ``given``, writes its outputs to them."""

    def __init__(self, given: bool = False) -> None:
        super().__init__()
        for name, value in (counters("cuda") | (outputs("cuda") if given else {})).items():
            self.register_buffer(name, value)
        self.given = given

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        written = dict(self.named_buffers())
        out = launch(Params(q, k, v, skip_softmax_threshold=threshold, **written))
        return out + 1  # what comes after it in the graph sees what it wrote


def step_through(step: Any, eager: Layer, layer: Layer) -> None:
    """Calls with ever new contents, each compared with the eager one, with all that was written."""
    for call in range(REPLAYS):
        torch.compiler.cudagraph_mark_step_begin()
        arguments = (*tensors(seed=call, device="cuda").values(), thresholds(call))
        assert torch.equal(step(*arguments), eager(*arguments)), call
        assert same(dict(layer.named_buffers()), dict(eager.named_buffers())), call


@pytest.mark.parametrize("given", [False, True], ids=["functional", "out"])
def test_graph_trees_replay_and_count_exactly(given: bool, launches: list[torch.Size]) -> None:
    layer, eager = Layer(given).cuda(), Layer(given).cuda()
    step_through(compiled(layer, mode="reduce-overhead"), eager, layer)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    assert len(launches) == EXPECTED_LAUNCHES
    visited, skipped = (layer.stats - counters("cuda")["stats"]).unbind(-1)
    each = visited // REPLAYS
    assert bool((visited == each * REPLAYS).all()) and int(each.min()) >= 3
    # Half of the calls skip all tiles of a group but the first: 2 of 3.
    assert torch.equal(skipped, each * 2 // 3 * (REPLAYS // 2))


def test_counts_that_move_are_counted_without_replays(launches: list[torch.Size]) -> None:
    def step(call: Call, stats: torch.Tensor) -> torch.Tensor:
        return attention(**call, skip_softmax_threshold=THRESHOLD, stats=stats)

    replayed = compiled(step, mode="reduce-overhead")
    for call in range(REPLAYS):
        torch.compiler.cudagraph_mark_step_begin()
        arguments = tensors(seed=call, device="cuda")
        here, there = counters("cuda")["stats"], counters("cuda")["stats"]
        assert torch.equal(replayed(arguments, here), step(arguments, there))
        assert torch.equal(here, there) and bool((here[..., 1] > 5).all())
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] > 0 and len(launches) == REPLAYS


def test_graph_trees_record_every_length_once(launches: list[torch.Size]) -> None:
    layer, eager = Layer().cuda(), Layer().cuda()
    step = compiled(layer, mode="reduce-overhead", dynamic=True)
    for call in range(4 * REPLAYS):
        torch.compiler.cudagraph_mark_step_begin()
        rows, keys = ((ROWS, 300), (33, 300), (5, 129))[call % 3]
        arguments = (*tensors(rows, keys, seed=call, device="cuda").values(), thresholds(call))
        assert torch.equal(step(*arguments), eager(*arguments)), call
    assert torch.equal(layer.stats, eager.stats)
    assert len(launches) < 4 * REPLAYS  # some were replayed


def test_ragged_lengths_change_without_compiling_anew() -> None:
    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, longest: int) -> torch.Tensor:
        lengths = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": longest, "max_seqlen_k": longest}
        return attention(q * 2, k, v, causal=True, skip_softmax_threshold=0.01, **lengths)

    from torch._dynamo.testing import CompileCounterWithBackend  # a second's import, which collecting does without

    backend = CompileCounterWithBackend("inductor")
    compiled_step = compiled(step, backend=backend)
    for lengths in ((5, 9), (6, 20), (70, 3), (8, 8), (130, 2), (1, 40)):
        q, k, v = (tensor[0, : sum(lengths)] for tensor in tensors(200, 200, device="cuda").values())
        offsets = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device="cuda")
        arguments = (q, k, v, offsets, max(lengths))
        assert torch.equal(compiled_step(*arguments), step(*arguments)), lengths
    assert backend.frame_count == 2  # with the first lengths, and with any


def test_inductor_keeps_strides_of_views() -> None:
    def step(packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (packed * 2).split([HEADS, HEADS // 2, HEADS // 2], dim=2)
        transposed = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (q, k, v))
        return attention(q, k, v, causal=True), attention(*transposed, causal=True)

    packed = torch.cat(tuple(tensors(ROWS, ROWS, device="cuda").values()), dim=2)
    first, second = step(packed)
    assert torch.equal(first, second) and same(compiled(step)(packed), (first, second))


def test_compiled_code_runs_on_the_current_stream() -> None:
    call = tensors(2000, 2000, device="cuda")
    expected = attention(**call, causal=True)
    step = compiled(lambda call: attention(**call, causal=True))
    step(call)
    stream = CUDA.Stream()
    later = {name: torch.zeros_like(tensor) for name, tensor in call.items()}
    CUDA.synchronize()
    with CUDA.stream(stream):
        CUDA._sleep(50_000_000)  # tens of ms, in which the default stream would compute with zeros
        for name, tensor in later.items():
            tensor.copy_(call[name])
        out = step(later)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_run_with_other_lengths(strict: bool) -> None:
    rows, keys = torch.export.Dim("rows"), torch.export.Dim("keys")
    sizes = ({1: rows}, {1: keys}, {1: keys}, None)
    example = (*tensors(device="cuda").values(), thresholds(0))
    file = io.BytesIO()
    torch.export.save(torch.export.export(Layer().cuda(), example, dynamic_shapes=sizes, strict=strict), file)
    file.seek(0)
    module, eager = torch.export.load(file).module(), Layer().cuda()
    for length in (300, 20, 140):
        arguments = (*tensors(ROWS, length, device="cuda").values(), thresholds(0))
        assert torch.equal(module(*arguments), eager(*arguments))
    assert same(dict(module.named_buffers()), dict(eager.named_buffers())) and bool((eager.stats[..., 1] > 5).all())


@pytest.mark.parametrize("out", [False, True])
def test_opcheck(out: bool) -> None:
    call = counters("cuda") | {"skip_softmax_threshold_tensor": thresholds(0)}
    call |= outputs("cuda") if out else {"return_lse": True}
    op = torch_ops.attention_out if out else torch_ops.attention
    results = torch.library.opcheck(op.default, tuple(tensors(device="cuda").values()), call)
    assert results and set(results.values()) == {"SUCCESS"}


def test_gradients_are_refused() -> None:
    call = tensors(device="cuda")
    call["k"].requires_grad_()
    text = "k: expected no requires_grad, since there is no backward pass"
    with pytest.raises(ArgumentError, match="^" + text):
        torch_ops.attention(**call)
    with pytest.raises(Exception, match=text):
        compiled(lambda: attention(**call))()
    with torch.no_grad():
        assert torch.equal(compiled(lambda: attention(**call))(), attention(**call))
