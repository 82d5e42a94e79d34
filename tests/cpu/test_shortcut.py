"""The short way of a launch sends the driver what the long one does, byte by byte, or leaves the call to it."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, launch
from skimattn._cuda import memory
from skimattn._launch import look, tensormap
from skimattn._launch.look import Elsewhere
from skimattn._launch.plan import kv_box_lengths, kv_box_rows
from skimattn._launch.shortcut import Shortcut
from skimattn.codegen.parameter_block import OFFSETS, SIZE

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, scan_of

WAYS = ("batched", "ragged", "nhd", "hnd", "mixed")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


@pytest.fixture
def blackwell(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """For ragged rows: a Hopper might decode some of those, which takes several kernels and so the long way."""
    return install(monkeypatch, FakeDriver(capability=(10, 0)))


def install_for(way: str, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch, FakeDriver(capability=(10, 0)) if way in ("ragged", "mixed") else None)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every new call of a known form, whether it went the short way."""
    ways: list[bool] = []
    original = Shortcut.launch

    def record(self: Shortcut, params: Params, tensors: Any) -> torch.Tensor:
        try:
            out = original(self, params, tensors)
        except Elsewhere:
            ways.append(False)
            raise
        ways.append(True)
        return out

    monkeypatch.setattr(Shortcut, "launch", record)
    return ways


def ints(*values: int) -> torch.Tensor:
    return on_gpu(torch.tensor(values, dtype=torch.int32))


def rows_of(choose: random.Random, *shape: int) -> torch.Tensor:
    """A tensor of this shape, sometimes a view of a larger one."""
    if choose.random() < 0.5:
        return on_gpu(torch.zeros(shape, dtype=torch.bfloat16))
    *outer, heads, columns = shape
    wide = torch.zeros(*outer, heads + 2, columns + 8, dtype=torch.bfloat16)
    return on_gpu(wide[..., 1:-1, :columns])


def sizes(choose: random.Random, way: str, head_dim_v: int) -> dict[str, Any]:
    """Of more rows than are decoded."""
    batch, rows, keys = choose.randrange(1, 5), choose.randrange(129, 400), choose.randrange(129, 700)
    found: dict[str, Any] = {}
    if way in ("ragged", "mixed"):
        found["q"], found["cu_seqlens_q"] = rows_of(choose, rows, 4, 128), ints(*sorted(range(batch)), rows)
        if choose.random() < 0.5:
            found["max_seqlen_q"] = choose.randrange(1, 400)
    else:
        found["q"] = rows_of(choose, batch, rows, 4, 128)
    for name, columns in (("k", 128), ("v", head_dim_v)):
        if way == "ragged":
            found[name] = rows_of(choose, keys, 2, columns)
        elif way in ("nhd", "hnd"):
            pool = rows_of(choose, choose.randrange(9, 12), 16, 2, columns)
            found[name] = pool if way == "nhd" else on_gpu(pool.transpose(1, 2).contiguous())
        else:
            found[name] = rows_of(choose, batch, keys, 2, columns)
    if way == "ragged":
        found["cu_seqlens_k"] = ints(*range(batch), keys)
        found["max_seqlen_k"] = choose.randrange(129, 800)
    elif way in ("nhd", "hnd"):
        found["v"] = (
            found["v"]
            if found["v"].shape[0] == found["k"].shape[0]
            else on_gpu(torch.zeros(*found["k"].shape[:-1], head_dim_v, dtype=torch.bfloat16))
        )
        found["page_table"] = on_gpu(torch.zeros(batch, choose.randrange(1, 40), dtype=torch.int32))
        found["seqused_k"], found["kv_layout"] = ints(*[16] * batch), way.upper()
    return found


def concrete(choose: random.Random, kind: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of that kind in these sizes."""
    batch = found["cu_seqlens_q"].shape[0] - 1 if "cu_seqlens_q" in found else found["q"].shape[0]
    made: dict[str, Any] = {**found, **kind}
    if made.get("out"):
        made["out"] = on_gpu(torch.zeros(*found["q"].shape[:-1], found["v"].shape[-1], dtype=torch.bfloat16))
    shapes = {"batch": (batch,), "head": (batch, 4)}
    if "skip_softmax_threshold" in kind:
        shape = shapes.get(kind["skip_softmax_threshold"])
        made["skip_softmax_threshold"] = choose.random() if shape is None else on_gpu(torch.zeros(shape))
    return made


def blocks(fake: FakeDriver, params: Params, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[bytes, int]]:
    """What both ways send, without the addresses of the output, which each allocates."""
    for short in (True, False):
        call = replace(params)
        outline = scan_of(call).outline
        kept = outline.shortcut
        outline.shortcut = kept if short else None
        out = launch(call)
        outline.shortcut = kept or outline.shortcut
        assert isinstance(out, torch.Tensor)
        sent = fake.launches[-1]
        assert sent.map_address("tma_o") == sent.block.out == out.data_ptr()
        assert out.shape == (*params.q.shape[:-1], params.v.shape[-1]) and out.dtype == params.q.dtype
        data = bytearray(bytes(sent.block))
        assert len(data) == SIZE
        for name in ("tma_o", "out") if params.out is None else ():
            data[OFFSETS[name] : OFFSETS[name] + 8] = bytes(8)
        yield bytes(data), sent.grid


@pytest.mark.parametrize("head_dim_v", [128, 64])
@pytest.mark.parametrize("way", WAYS)
def test_both_ways_send_the_same(taken: list[bool], monkeypatch: pytest.MonkeyPatch, way: str, head_dim_v: int) -> None:
    fake = install_for(way, monkeypatch)
    choose = random.Random(f"{way}{head_dim_v}")
    kinds: tuple[dict[str, Any], ...] = (
        {"mask": "causal"},
        {"mask": "window", "window_size": (300, 0)},
        {"skip_softmax_threshold": "number"},
        {"skip_softmax_threshold": "batch"},
        {"skip_softmax_threshold": "head", "mask": "causal"},
        {"out": "given"},
        {"mask": "chunked", "chunk_size": 100},
        {"mask": "chunked", "chunk_size": 200, "window_size": (150, 30)},
        {"mask": "window", "window_size": (-1, 5)},
    )
    for kind in kinds:
        launch(Params(**concrete(choose, kind, sizes(choose, way, head_dim_v))))
        for _ in range(8):
            arguments = concrete(choose, kind, sizes(choose, way, head_dim_v))
            for _ in range(2):  # the second time in the sizes that stand there
                short, long = blocks(fake, Params(**arguments), monkeypatch)
                assert short == long, arguments
    assert len(taken) > 24 and sum(taken) > 0.9 * len(taken), taken  # the others were the first of their outline


@pytest.mark.parametrize("known", [False, True], ids=["", "looks known"])
def test_what_is_refused_is_refused_by_the_long_way(fake: FakeDriver, taken: list[bool], known: bool) -> None:
    good = sizes(random.Random(0), "batched", 128)
    for _ in range(1 + known):
        launch(Params(**good))
    taken.clear()
    q, k, v = good["q"], good["k"], good["v"]
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"k": on_gpu(k[:, :-1])}, r"^v: expected .* like k"),
        ({"k": on_gpu(k[..., :64]), "v": on_gpu(v[..., :64])}, r"^k: expected head_dim 128"),
        ({"q": on_gpu(q.transpose(2, 3))}, r"^q: expected"),
        ({"q": on_gpu(torch.zeros(*q.shape[:-1], 129, dtype=q.dtype)[..., 1:])}, r"^q: expected strides"),
        ({"q": on_gpu(torch._neg_view(q.as_subclass(torch.Tensor)))}, r"^q: expected a tensor whose negation"),
        ({"v": on_gpu(v.half())}, r"^v: expected dtype"),
        ({"out": q}, r"^out: expected memory of its own .* overlap q"),
        ({"v": v.as_subclass(torch.Tensor)}, r"^v: expected a tensor on cuda:0"),
        ({"q": on_gpu(torch.zeros(9, *q.shape[1:], dtype=q.dtype))}, r"^k: expected 9 requests"),
    )
    for change, message in wrong:
        with pytest.raises(ArgumentError, match=message):
            launch(Params(**{**good, **change}))
    assert not any(taken) and len(fake.launches) == 1 + known


def test_gradients_are_refused_on_the_short_way_too(fake: FakeDriver, taken: list[bool]) -> None:
    good = sizes(random.Random(1), "batched", 128)
    for _ in range(2):
        launch(Params(**good))
    good["k"].requires_grad_()
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"^k: expected no requires_grad"):
            launch(Params(**good))
        with torch.no_grad():
            launch(Params(**good))
    assert taken == [True, False, True, False, True]


def both_ways_agree(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> None:
    short, long = blocks(fake, Params(**arguments), monkeypatch)
    assert short == long, arguments


@pytest.mark.parametrize("way", ["ragged", "hnd"])
def test_torch_without_guards_and_a_driver_with_other_maps(
    taken: list[bool], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Then tensors are looked at one by one, and the driver moves maps."""
    fake = install_for(way, monkeypatch)
    monkeypatch.setattr(look, "_Guards", None)
    for name in ("_library", "_brief_library"):
        library = getattr(tensormap.driver, name)
        moved = library._cuTensorMapReplaceAddress

        def other(place: Any, address: Any, moved: Any = moved) -> None:
            moved(place, address)
            last = int(repr(place).rpartition("(")[2].removesuffix(")>"), 16) + 127
            ctypes.memset(last, address.value >> 4 & 0xFF, 1)

        monkeypatch.setattr(library, "_cuTensorMapReplaceAddress", other, raising=False)
    tensormap.address_comes_first.cache_clear()
    choose = random.Random(way)
    launch(Params(**sizes(choose, way, 128)))
    assert not tensormap.address_comes_first()
    for _ in range(4):
        arguments = sizes(choose, way, 128)
        launch(Params(**arguments))
        assert "cuTensorMapReplaceAddress" in fake.calls
        for name in ("q", "k", "v"):
            assert fake.launches[-1].map_address(f"tma_{name}") == arguments[name].data_ptr()
    assert all(taken)


def test_one_tensor_of_offsets(blackwell: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    choose = random.Random(2)
    for index in range(6):
        arguments = sizes(choose, "ragged", 128)
        arguments["q"] = rows_of(choose, arguments["k"].shape[0], 4, 128)
        arguments["max_seqlen_q"] = arguments["max_seqlen_k"]
        offsets = arguments["cu_seqlens_k"]
        arguments["cu_seqlens_q"] = offsets if index % 3 else on_gpu(offsets.clone())
        both_ways_agree(blackwell, monkeypatch, **arguments)
    assert sum(taken) == 5
    arguments["cu_seqlens_q"] = arguments["cu_seqlens_k"] = on_gpu(offsets.long())
    with pytest.raises(ArgumentError, match=r"^cu_seqlens_q: expected dtype"):
        launch(Params(**arguments))


def test_tensors_of_one_row_do_not_speak_for_longer_ones(blackwell: FakeDriver, taken: list[bool]) -> None:
    """With one row any stride will do, but the next call has the same strides and more rows."""
    memory_of_q = torch.zeros(2 * 4 * 128 * 3, dtype=torch.bfloat16)
    good = sizes(random.Random(3), "ragged", 128)
    del good["max_seqlen_k"]
    for rows, message in ((1, ""), (1, ""), (2, r"^q: expected strides")):
        good["q"] = on_gpu(memory_of_q.as_strided((rows, 4, 128), (515, 128, 1)))
        good["cu_seqlens_q"] = ints(*[0] * good["cu_seqlens_k"].shape[0])
        if message:
            with pytest.raises(ArgumentError, match=message):
                launch(Params(**good))
        else:
            launch(Params(**good))
    assert taken == [False, False]


def test_a_first_call_leaves_no_strides_behind(
    fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(4)
    arguments = sizes(choose, "batched", 128)
    batch, rows = arguments["q"].shape[:2]
    wide = on_gpu(torch.zeros(batch, rows, 4, 256, dtype=torch.bfloat16)[..., :128])
    threshold = on_gpu(torch.zeros(batch, 1).expand(batch, 4))
    launch(Params(**arguments, skip_softmax_threshold=threshold, out=wide))
    for _ in range(4):
        arguments = sizes(choose, "batched", 128)
        batch, rows = arguments["q"].shape[:2]
        out = on_gpu(torch.zeros(batch, rows, 4, 128, dtype=torch.bfloat16))
        threshold = on_gpu(torch.zeros(batch, 4))
        both_ways_agree(fake, monkeypatch, **arguments, skip_softmax_threshold=threshold, out=out)
    assert all(taken) and len(taken) == 4


def test_equal_windows_and_the_same_tensor_twice(
    fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is what is compared fastest; both are launched."""
    q = on_gpu(torch.zeros(1, 300, 4, 128, dtype=torch.bfloat16))
    for left in (100, 100, 50, 100):
        both_ways_agree(fake, monkeypatch, q=q, k=q, v=q, mask="window", window_size=tuple([left, 0]))
    assert taken == [True, True]


def test_calls_that_may_be_decoded_take_the_long_way(fake: FakeDriver, taken: list[bool]) -> None:
    """Two rows of two heads each are decoded; 128 may be, if there are keys enough; 129 rows of them never."""

    def send(rows: int, keys: int, **more: Any) -> list[str]:
        q, kv = (on_gpu(torch.zeros(1, size, heads, 128).bfloat16()) for size, heads in ((rows, 4), (keys, 2)))
        before = len(fake.launches)
        out = launch(Params(q, kv, kv, **more))
        assert isinstance(out, torch.Tensor) and out.shape == q.shape
        sent = fake.launches[before:]
        assert all(one.block.out == out.data_ptr() and one.block.len_q == rows for one in sent)
        return ["decode" if not one.map_address("tma_o") and one.map_address("tma_q") else "other" for one in sent]

    for _ in range(2):
        assert send(129, 5000) == ["other"]
    assert taken == [True]
    for _ in range(2):
        assert send(2, 5000) == ["decode", "other"]
        assert send(2, 200) == ["decode"]
        assert send(128, 16 * 256) == ["decode", "other"]
        assert send(128, 16 * 256 - 1) == ["other"]
        assert send(129, 16 * 258) == ["other"]
    assert taken == [True, *[False, False, False, False, True] * 2]


def test_lengths_of_a_box() -> None:
    for tile_n in (64, 96, 128, 176):
        for keys in range(300):
            box = kv_box_rows(keys, tile_n)
            same = [other for other in range(300) if kv_box_rows(other, tile_n) == box]
            assert same == [other for other in range(300) if other in kv_box_lengths(box, tile_n)]


def test_outputs_on_another_device_than_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(memory, "_empty_here", lambda *given: made.append(given))
    monkeypatch.setattr(memory, "_here", lambda: 1)
    plain = SimpleNamespace(empty_strided=lambda *given, **named: made.append((given, named)), device=torch.device)
    monkeypatch.setattr(memory, "torch", plain)
    for ordinal in (1, 0):
        memory.empty((3, 4), (4, 1), torch.float16, ordinal)
    elsewhere = {"dtype": torch.float16, "device": torch.device("cuda:0")}
    assert made == [((3, 4), (4, 1), torch.float16), (((3, 4), (4, 1)), elsewhere)]
