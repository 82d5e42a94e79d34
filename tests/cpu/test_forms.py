"""Arguments in the forms that callers hold them in, and what is refused because it would be misread."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimattn import ArgumentError, Params, launch
from skimattn._call.arguments import TENSORS
from skimattn._call.checks import interleaved

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, small_call
from tests.helpers.wrong_calls import batched, eight_bit, paged, ragged

BF16 = torch.bfloat16


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, rows, heads, 64, generator=random).to(BF16) for rows, heads in ((70, 4), (90, 2), (90, 2))
    )
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinks_of_16_bits_count_as_what_they_are(dtype: torch.dtype) -> None:
    q, k, v = tensors()
    sinks = torch.tensor([0.3, -2.0, 5.0, 1e-3]).to(dtype)
    wanted = launch(Params(q, k, v, sinks=sinks.float()))
    assert torch.equal(launch(Params(q, k, v, sinks=sinks)), wanted)
    assert not torch.equal(launch(Params(q, k, v)), wanted)


def test_sinks_of_16_bits_are_converted_in_every_launch(fake: FakeDriver) -> None:
    for sinks in (on_gpu(torch.ones(4, dtype=BF16)), on_gpu(torch.zeros(4, dtype=BF16))):
        params = small_call(sinks=sinks)
        for _ in range(3):
            launch(params)
            assert fake.launches[-1].block.sinks not in (0, sinks.data_ptr())
    given = on_gpu(torch.zeros(4))
    launch(small_call(sinks=given))
    assert fake.launches[-1].block.sinks == given.data_ptr()


def test_what_a_launch_makes_is_pointed_to_even_where_it_lies_as_before(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls of one signature with other masks, whose packed forms come to lie at one address."""
    packed = on_gpu(torch.zeros(70, 40, dtype=torch.uint8))
    monkeypatch.setattr("skimattn._launch.buffers.pack_mask", lambda _mask: packed)
    for _ in range(3):
        params = small_call(mask="custom", custom_mask=on_gpu(torch.ones(70, 300, dtype=torch.bool)))
        for _ in range(2):
            launch(params)
            assert fake.launches[-1].block.custom_mask == packed.data_ptr()


@pytest.mark.parametrize("shape", [(5,), (2, 4), (1, 5), (1, 4, 1)])
def test_slopes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^alibi_slopes: expected shape \[4\] or \[1, 4\] \(got"):
        launch(Params(*tensors(), alibi_slopes=torch.zeros(shape)))


def test_slopes_by_request_reach_the_kernel(fake: FakeDriver) -> None:
    launch(small_call(batch=2, alibi_slopes=on_gpu(torch.zeros(2, 4))))
    launch(small_call(batch=2, alibi_slopes=on_gpu(torch.zeros(4))))
    assert [sent.block.alibi_stride_batch for sent in fake.launches] == [4, 0]


@pytest.mark.parametrize("name", ["q", "k", "v", "sinks", "alibi_slopes", "skip_softmax_threshold", "out"])
@pytest.mark.parametrize("known", [False, True])
def test_negative_views_are_refused(fake: FakeDriver, name: str, known: bool) -> None:
    """Kernels would read, or write, what is not negated; also where the same call without the view ran before."""
    given = {
        "out": on_gpu(torch.zeros(1, 70, 4, 128, dtype=BF16)),
        "sinks": on_gpu(torch.zeros(4)),
        "alibi_slopes": on_gpu(torch.zeros(4)),
        "skip_softmax_threshold": on_gpu(torch.zeros(1)),
    }
    params = small_call(**given)
    if known:
        launch(params)
    arguments = {"q": params.q, "k": params.k, "v": params.v, "mask": "causal", **given}
    arguments[name] = on_gpu(torch._neg_view(arguments[name].as_subclass(torch.Tensor)))
    with pytest.raises(ArgumentError, match=rf"^{name}: expected a tensor whose negation was carried out"):
        launch(Params(**arguments))
    assert len(fake.launches) == known


def right_call(name: str) -> dict[str, Any]:
    """A call on CPU tensors that has the argument ``name``."""
    more = {
        "alibi_slopes": torch.zeros(2, 4),
        "sinks": torch.zeros(4),
        "seqused_q": torch.tensor([70, 3], dtype=torch.int32),
        "skip_softmax_threshold": torch.zeros(2),
        "custom_mask": torch.ones(70, 200, dtype=torch.bool),
    }
    calls = (batched(), ragged(), paged(), eight_bit(), batched() | more)
    call = next(call for call in calls if isinstance(call.get(name), torch.Tensor))
    return call | ({"mask": "custom"} if name == "custom_mask" else {"custom_mask": None})


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    ("disguise", "message"),
    [
        (
            torch._neg_view,
            r"a tensor whose negation was carried out \(tensor.resolve_neg\(\)\) \(got a negative view\)",
        ),
        (lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), "a tensor with memory of its own"),
        (lambda x: torch.nested.nested_tensor([x]), r"a dense \(strided\) tensor \(got a nested tensor\)"),
    ],
    ids=["negative", "zero", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_holds_other_values_than_its_memory_is_refused(
    name: str, disguise: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    call = right_call(name)
    call[name] = disguise(call[name])
    with pytest.raises(ArgumentError, match=rf"^{name}: expected {message}"):
        launch(Params(**call))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_on_a_gpu_are_refused(fake: FakeDriver) -> None:
    params = small_call()
    launch(params)  # the form is known
    with pytest.raises(ArgumentError, match=r"^k: expected a dense \(strided\) tensor \(got a nested tensor\)"):
        launch(Params(params.q, torch.nested.nested_tensor([params.k.as_subclass(torch.Tensor)[0]]), params.v))
    assert len(fake.launches) == 1


def test_slopes_lie_where_the_kernel_can_reach_them(fake: FakeDriver) -> None:
    """It counts their elements in 32 bits."""
    batch, heads = (1 << 15) + 1, 1 << 16
    q, k, v = (on_gpu(torch.empty(batch, 1, heads, 64, dtype=BF16, device="meta")) for _ in "qkv")
    slopes = on_gpu(torch.empty(batch, heads, dtype=torch.float32, device="meta"))
    with pytest.raises(ArgumentError, match=r"^alibi_slopes: expected elements within 2\*\*31 of the first"):
        launch(Params(q, k, v, alibi_slopes=slopes))


# An option, a value that it accepts, and one that equals it and that it refuses.
EQUAL: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "skip_softmax_threshold": ({}, 1.0, True),
    "softmax_scale": ({}, 1.0, True),
    "softcap": ({}, 1.0, True),
    "softcap off": ({}, 0.0, False),
    "window_size": ({"mask": "window"}, (1, 0), (True, False)),
    "chunk_size": ({"mask": "chunked"}, 1, True),
    "chunk_size float": ({"mask": "chunked"}, 1, 1.0),
    "max_seqlen_q": ({}, 70, 70.0),
    "max_seqlen_k": ({}, 300, 300.0),
    "return_lse": ({}, True, 1),
}


@pytest.mark.parametrize("case", EQUAL)
def test_what_was_accepted_before_does_not_let_its_equals_in(fake: FakeDriver, case: str) -> None:
    name, (more, good, bad) = case.split()[0], EQUAL[case]
    for _ in range(2):
        launch(small_call(**{name: good}, **more))
    with pytest.raises(ArgumentError, match=rf"^{name}: expected"):
        launch(small_call(**{name: bad}, **more))
    assert len(fake.launches) == 2


EQUAL_NUMBERS: tuple[Any, ...] = (1, 1.0, True, 1 + 0j, Decimal(1), Fraction(1))
EQUAL_NUMBERS += np.int64(1), np.float64(1), np.float32(1), np.bool_(True), np.array(1)
OPTIONS_OF_EQUALS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "skip_softmax_threshold": ({}, EQUAL_NUMBERS),
    "softmax_scale": ({}, EQUAL_NUMBERS),
    "softcap": ({}, EQUAL_NUMBERS),
    "chunk_size": ({"mask": "chunked"}, EQUAL_NUMBERS),
    "return_lse": ({}, EQUAL_NUMBERS),
    "max_seqlen_q": ({}, tuple(type(one)(70) for one in EQUAL_NUMBERS if not isinstance(one, bool | np.ndarray))),
    "window_size": ({"mask": "window"}, ((1, 1), [1, 1], *((one, 1) for one in EQUAL_NUMBERS))),
    "mask": ({}, ("causal", np.str_("causal"), ["causal"])),
}


def verdict(name: str, value: object, more: dict[str, Any]) -> str:
    """What comes of a launch: empty, or what the refusal says."""
    try:
        launch(small_call(**{**more, name: value}))
    except ArgumentError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", OPTIONS_OF_EQUALS)
def test_what_is_said_of_a_value_does_not_hang_on_an_equal_one_before_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    more, equals = OPTIONS_OF_EQUALS[name]
    alone = []
    for value in equals:
        install(monkeypatch)
        alone.append(verdict(name, value, more))
    assert "" in alone and any(alone)
    for first, second in permutations(range(len(equals)), 2):
        install(monkeypatch)
        for _ in range(2):  # the second launch finds what the first one left
            assert verdict(name, equals[first], more) == alone[first]
        assert verdict(name, equals[second], more) == alone[second], (equals[first], equals[second])


def test_out_may_lie_between_the_rows_of_q(fake: FakeDriver) -> None:
    buffer = on_gpu(torch.zeros(1, 70, 2, 4, 128, dtype=BF16))
    params = small_call()
    good = Params(buffer[:, :, 0], params.k, params.v, mask="causal", out=buffer[:, :, 1])
    for _ in range(3):
        assert launch(good) is good.out
    with pytest.raises(ArgumentError, match=r"^out: expected memory of its own .* overlap q"):
        launch(Params(buffer[:, :, 0], params.k, params.v, mask="causal", out=buffer[:, :, 0]))
    assert len(fake.launches) == 3


def test_out_beside_expanded_keys_is_accepted_where_it_is_apart() -> None:
    """Keys that all requests share have a stride of 0, which divides nothing."""
    memory = torch.zeros(2 * 90, 4, 2, 64, dtype=BF16)
    keys = memory[:90, :2, 0].expand(2, 90, 2, 64)
    q, out = torch.zeros(2, 70, 2, 64, dtype=BF16), memory[:140, :2, 1].unflatten(0, (2, 70))
    assert launch(Params(q, keys, keys, out=out)) is out
    with pytest.raises(ArgumentError, match=r"^out: expected memory of its own .* overlap k"):
        launch(Params(q, keys, keys, out=memory[:140, :2, 0].unflatten(0, (2, 70))))


def test_an_interleaved_out_gets_the_same_bits_and_leaves_q_alone() -> None:
    q, k, v = tensors()
    buffer = torch.zeros(1, 70, 2, 4, 64, dtype=BF16)
    buffer[:, :, 0] = q
    launch(Params(buffer[:, :, 0], k, v, out=buffer[:, :, 1]))
    assert torch.equal(buffer[:, :, 0], q) and torch.equal(buffer[:, :, 1], launch(Params(q, k, v)))


def elements(tensor: torch.Tensor) -> set[int]:
    """The address of every byte."""
    start = {tensor.data_ptr()}
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        start = {at + index * stride * tensor.element_size() for at in start for index in range(size)}
    return {at + byte for at in start for byte in range(tensor.element_size())}


SLICE = st.tuples(
    st.integers(0, 40), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(SLICE, SLICE)
def test_interleaved_is_never_said_of_tensors_that_share_an_element(first: Any, second: Any) -> None:
    memory = torch.zeros(4096, dtype=torch.int16)
    one, other = (
        memory.as_strided([size for size, _ in dims], [stride for _, stride in dims], offset)
        for offset, dims in (first, second)
    )
    if interleaved(one, other):
        assert not elements(one) & elements(other)


@st.composite
def two_parts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two parts of one tensor, apart in one dimension and cut anyhow in the others; rows may have padding."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    split = draw(st.integers(0, len(sizes) - 1))
    sizes[split] += 1
    strides, stride = [], draw(st.integers(1, 2))
    for size in reversed(sizes):
        strides.insert(0, stride)
        stride = size * stride + draw(st.integers(0, 3))
    whole = torch.zeros(stride, dtype=torch.int16).as_strided(sizes, strides)
    at = draw(st.integers(1, sizes[split] - 1))
    parts = [whole.narrow(split, 0, at), whole.narrow(split, at, sizes[split] - at)]
    for index, part in enumerate(parts):
        for dim in range(part.dim()):
            first = draw(st.integers(0, part.shape[dim] - 1))
            step = draw(st.integers(1, 2))
            parts[index] = parts[index][(slice(None),) * dim + (slice(first, None, step),)]
    return parts[0], parts[1]


@settings(max_examples=300, deadline=None)
@given(two_parts())
def test_interleaved_is_said_of_parts_of_one_tensor(parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = parts
    assert not elements(one) & elements(other)
    assert interleaved(one, other) and interleaved(other, one)


def test_interleaved_knows_the_slices_of_packed_tensors() -> None:
    for shape, dim in (((3, 5, 2, 4, 8), 2), ((3, 5, 4, 2, 8), 3), ((3, 2, 5, 4, 8), 1)):
        one, other = torch.zeros(shape, dtype=BF16).unbind(dim)
        assert interleaved(one, other) and interleaved(other, one), shape
        assert not interleaved(one, one)
    halves = torch.zeros(3, 5, 16, dtype=BF16)
    assert interleaved(halves[..., :8], halves[..., 8:]) and not interleaved(halves[..., :9], halves[..., 8:])


def test_a_call_is_frozen_by_its_first_launch_wherever_it_runs(fake: FakeDriver) -> None:
    q, k, v = tensors()
    for params in (Params(q, k, v), small_call()):
        params.softmax_scale = 0.5
        launch(params)
        with pytest.raises(AttributeError, match=r"^softmax_scale: this call was launched and cannot change"):
            params.softmax_scale = 0.25


@pytest.mark.parametrize("known", [False, True])
def test_a_refused_call_can_be_changed(fake: FakeDriver, known: bool) -> None:
    """On the CPU and on a GPU, where the form of the call is new, and where it is known."""
    for make in (lambda: Params(*tensors()), small_call):
        if known:
            launch(make())
        params = make()
        with pytest.raises(ArgumentError, match=r"^stream: expected"):
            launch(params, stream="a stream")
        params.softmax_scale = 0.25
        launch(params)
