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
from skimattn._launch import decode, look, tensormap
from skimattn._launch.look import Elsewhere
from skimattn._launch.plan import kv_box_lengths, kv_box_rows
from skimattn._launch.shortcut import Shortcut
from skimattn.codegen.parameter_block import OFFSETS, SIZE

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, scan_of

WAYS = ("batched", "ragged", "nhd", "hnd", "mixed", "used", "engine")
PAGED = {"nhd": 16, "hnd": 16, "engine": 128}  # keys of a page


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


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
    """A tensor of this shape, sometimes a view of a larger one. Nobody reads what it holds."""
    if choose.random() < 0.5:
        return on_gpu(torch.empty(shape, dtype=torch.bfloat16))
    *outer, heads, columns = shape
    wide = torch.empty(*outer, heads + 2, columns + 8, dtype=torch.bfloat16)
    return on_gpu(wide[..., 1:-1, :columns])


def sizes(choose: random.Random, way: str, head_dim_v: int, most_rows: int = 300, most_keys: int = 700) -> Any:
    batch, rows, keys = choose.randrange(1, 5), choose.randrange(1, most_rows), choose.randrange(129, most_keys)
    found: dict[str, Any] = {}
    if way in ("ragged", "mixed", "engine"):
        found["q"], found["cu_seqlens_q"] = rows_of(choose, rows, 4, 128), ints(*sorted(range(batch)), rows)
        if choose.random() < 0.5:
            found["max_seqlen_q"] = choose.randrange(0, most_rows + 100)
    else:
        found["q"] = rows_of(choose, batch, rows, 4, 128)
    for name, columns in (("k", 128), ("v", head_dim_v)):
        if way == "ragged":
            found[name] = rows_of(choose, keys, 2, columns)
        elif way in PAGED:
            pool = rows_of(choose, 9 + keys % 3, PAGED[way], 2, columns)
            found[name] = on_gpu(pool.transpose(1, 2).contiguous()) if way == "hnd" else pool
        else:
            found[name] = rows_of(choose, batch, keys, 2, columns)
    if way == "ragged":
        found["cu_seqlens_k"] = ints(*range(batch), keys)
        found["max_seqlen_k"] = choose.randrange(129, most_keys + 100)
    elif way in PAGED:
        width = choose.randrange(1, 2 + most_keys // PAGED[way])
        found["page_table"] = on_gpu(torch.zeros(batch, width, dtype=torch.int32))
        found["seqused_k"], found["kv_layout"] = ints(*[16] * batch), "HND" if way == "hnd" else "NHD"
    elif way == "used":
        found["seqused_k"] = ints(*[16] * batch)
    if way in (*PAGED, "used") and choose.random() < 0.5:
        found["max_seqlen_k"] = choose.randrange(129, most_keys + 100)
    return found


def concrete(choose: random.Random, kind: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of that kind in these sizes."""
    batch = found["cu_seqlens_q"].shape[0] - 1 if "cu_seqlens_q" in found else found["q"].shape[0]
    made: dict[str, Any] = {**found, **kind}
    if made.get("lse"):
        made["lse"] = on_gpu(torch.zeros(found["q"].shape[:-1]))
    if made.get("out"):
        made["out"] = on_gpu(torch.zeros(*found["q"].shape[:-1], found["v"].shape[-1], dtype=torch.bfloat16))
    shapes = {"batch": (batch,), "head": (batch, 4)}
    if "skip_softmax_threshold" in kind:
        shape = shapes.get(kind["skip_softmax_threshold"])
        made["skip_softmax_threshold"] = choose.random() if shape is None else on_gpu(torch.zeros(shape))
    return made


def blocks(fake: FakeDriver, params: Params) -> Iterator[list[tuple[object, ...]]]:
    """What both ways send, with a mark in place of the address of each tensor that they allocate."""
    holders = {"out": ("out", "tma_o"), "lse": ("lse",)}
    new = ["partial", *[field for name in holders if getattr(params, name) is None for field in holders[name]]]
    for short in (True, False):
        call, before = replace(params), len(fake.launches)
        outline = scan_of(call).outline
        kept = outline.shortcut
        outline.shortcut = kept if short else None
        result = launch(call)
        outline.shortcut = kept or outline.shortcut
        assert isinstance(result, tuple) == params.return_lse
        out, lse = result if isinstance(result, tuple) else (result, params.lse)
        assert out.shape == (*params.q.shape[:-1], params.v.shape[-1]) and out.dtype == params.q.dtype
        if lse is not None:
            assert lse.shape == params.q.shape[:-1] and lse.dtype == torch.float32
        sent: list[tuple[object, ...]] = []
        for each in fake.launches[before:]:
            data = bytearray(bytes(each.block))
            assert (each.block.out, each.block.lse) == (out.data_ptr(), 0 if lse is None else lse.data_ptr())
            assert each.map_address("tma_o") in (0, each.block.out) and len(data) == SIZE
            for at in [OFFSETS[name] for name in new]:
                data[at : at + 8] = b"%8d" % any(data[at : at + 8])
            sent.append(
                (bytes(data), each.grid, each.threads, each.smem, each.function, each.stream, each.starts_early)
            )
        yield sent


KINDS: tuple[dict[str, Any], ...] = (
    {"mask": "causal"},
    {"mask": "window", "window_size": (300, 0)},
    {"skip_softmax_threshold": "number"},
    {"skip_softmax_threshold": "batch"},
    {"skip_softmax_threshold": "head", "mask": "causal"},
    {"out": "given"},
    {"return_lse": True},
    {"out": "given", "lse": "given"},
    {"lse": "given", "return_lse": True, "mask": "causal"},
    {"mask": "chunked", "chunk_size": 100},
    {"mask": "chunked", "chunk_size": 200, "window_size": (150, 30)},
    {"mask": "window", "window_size": (-1, 5)},
)


@pytest.mark.parametrize("head_dim_v", [128, 64])
@pytest.mark.parametrize("way", WAYS)
def test_both_ways_send_the_same(fake: FakeDriver, taken: list[bool], way: str, head_dim_v: int) -> None:
    """Most of these are long enough for prefill, where some requests may be decoded and where none is."""
    choose = random.Random(f"{way}{head_dim_v}")
    for kind in KINDS:
        launch(Params(**concrete(choose, kind, sizes(choose, way, head_dim_v))))
        for _ in range(6):
            arguments = concrete(choose, kind, sizes(choose, way, head_dim_v))
            for _ in range(2):  # the second time in the sizes that stand there
                short, long = blocks(fake, Params(**arguments))
                assert short == long, arguments
    assert len(taken) > 24 and sum(taken) > 0.8 * len(taken), taken  # the others were the first of their kernels


@pytest.mark.parametrize(("most_rows", "most_keys"), [(6, 4000), (6, 40_000), (140, 4000)])
@pytest.mark.parametrize("way", WAYS)
def test_both_ways_send_the_same_to_decode(
    fake: FakeDriver, taken: list[bool], way: str, most_rows: int, most_keys: int
) -> None:
    """Calls of few rows, that become those of many from one to the next: with other kernels."""
    choose, launched = random.Random(f"{way}{most_rows}{most_keys}"), set()
    for kind in KINDS:
        for _ in range(5):
            arguments = concrete(choose, kind, sizes(choose, way, 128, most_rows, most_keys))
            for _ in range(2):
                short, long = blocks(fake, Params(**arguments))
                assert short == long, arguments
                launched.add(len(short))
    assert sum(taken) > (0.85 if most_rows == 6 else 0.6) * len(taken), (sum(taken), len(taken))
    assert 2 in launched and (most_rows == 6 or len(launched) > 1), launched


@pytest.mark.parametrize("first", [1, 60], ids=["one round first", "several first"])
def test_batches_of_several_rounds_go_the_long_way(
    fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(decode, "WORKSPACE_BYTES", 30 << 20)
    launches = []
    for batch in (first, 2, 60, 3, 61, 60):
        q = on_gpu(torch.zeros(batch, 32, 4, 128, dtype=torch.bfloat16))
        pool = on_gpu(torch.zeros(3, 1024, 2, 128, dtype=torch.bfloat16))
        table, used = on_gpu(torch.zeros(batch, 128, dtype=torch.int32)), ints(*[5] * batch)
        short, long = blocks(fake, Params(q, pool, pool, page_table=table, seqused_k=used))
        assert short == long
        launches.append(len(short))
    assert [count > 2 for count in launches] == [first > 1, False, True, False, True, True], launches
    assert taken == [True, False, True, False, False]  # the first call of all found no shortcut


def test_kernels_stand_ready_side_by_side(fake: FakeDriver, taken: list[bool]) -> None:
    """Steps of an engine that decode, prefill, and do both."""
    pool = on_gpu(torch.zeros(50, 16, 2, 128, dtype=torch.bfloat16))
    for index in range(12):
        rows = (3, 100, 200 + index, 4, 2000)[index % 5]
        q, offsets = on_gpu(torch.zeros(rows, 4, 128, dtype=torch.bfloat16)), ints(0, 1, 2, rows)
        table, used = on_gpu(torch.zeros(3, 500 + index, dtype=torch.int32)), ints(9, 9, 9)
        named = {"page_table": table, "seqused_k": used, "cu_seqlens_q": offsets, "max_seqlen_q": rows - 2}
        short, long = blocks(fake, Params(q, pool, pool, mask="causal", **named))
        assert short == long and len(short) == (2 if rows < 5 else 3)
    assert taken == [False] + [True] * 10  # one more set of kernels; the first found no shortcut


def test_which_kernels_compute_a_call_follows_from_its_sizes(fake: FakeDriver, taken: list[bool]) -> None:
    """Two rows of two heads each are decoded; 128 are if there are keys enough; 129 rows of them never."""

    def send(rows: int, keys: int) -> int:
        q, kv = (on_gpu(torch.zeros(1, size, heads, 128).bfloat16()) for size, heads in ((rows, 4), (keys, 2)))
        short, long = blocks(fake, Params(q, kv, kv))
        assert short == long
        return len(short)

    calls = {(129, 5000): 1, (2, 5000): 2, (2, 500): 1, (128, 4096): 2, (128, 4095): 1, (129, 4128): 1, (3, 4000): 2}
    for _ in range(2):
        assert {sizes: send(*sizes) for sizes in calls} == calls
    assert taken == [False, *[True] * 12]  # decode's kernels were not there; the very first call found no shortcut


def test_what_decode_refuses(fake: FakeDriver, taken: list[bool]) -> None:
    """The long way does, that is."""
    pool = on_gpu(torch.zeros(50, 16, 2, 128, dtype=torch.bfloat16))
    both = on_gpu(torch.zeros(6, 1, 4, 128, dtype=torch.bfloat16))
    lse = on_gpu(torch.zeros(3, 1, 4))
    table = on_gpu(torch.zeros(3, 40, dtype=torch.int32))
    good = {"q": both[:3], "k": pool, "v": pool, "page_table": table, "seqused_k": ints(9, 9, 9), "out": both[3:]}
    for index in range(3):
        launch(Params(**good, lse=lse, max_seqlen_k=600 + index))
    assert taken == [True, True] and len(fake.launches) == 6
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"seqused_k": ints(9, 9)}, r"^seqused_k: expected shape"),
        ({"page_table": table[:2]}, r"^page_table: expected shape"),
        ({"page_table": on_gpu(torch.zeros(3, 80, dtype=torch.int32))[:, ::2]}, r"^page_table: expected a contiguous"),
        ({"max_seqlen_k": -1}, r"^max_seqlen_k: expected an int"),
        ({"max_seqlen_q": 0}, r"^max_seqlen_q: expected at least 1"),
        ({"k": pool[:, :15]}, r"^v: expected"),
        ({"out": both[2:5]}, r"^out: expected memory of its own"),
        ({"out": both[:2]}, r"^out: expected shape"),
        ({"lse": on_gpu(torch.zeros(3, 1, 5))}, r"^lse: expected shape"),
        ({"lse": on_gpu(torch.zeros(3, 1, 4).double())}, r"^lse: expected"),
        ({"lse": on_gpu(both.as_subclass(torch.Tensor).view(torch.float32)[3:, :, 0, :4])}, "memory of its own"),
    )
    for change, message in wrong:
        for _ in range(2):
            with pytest.raises(ArgumentError, match=message):
                launch(Params(**{**good, "lse": lse, "max_seqlen_k": 300, **change}))
    assert sum(taken) == 2 and len(fake.launches) == 6


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


def both_ways_agree(fake: FakeDriver, **arguments: Any) -> None:
    short, long = blocks(fake, Params(**arguments))
    assert short == long, arguments


@pytest.mark.parametrize("way", ["ragged", "hnd"])
def test_torch_without_guards_and_a_driver_with_other_maps(
    fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Then tensors are looked at one by one, and the driver moves maps."""
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


def test_one_tensor_of_offsets(fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    choose = random.Random(2)
    for index in range(6):
        arguments = sizes(choose, "ragged", 128)
        arguments["q"] = rows_of(choose, arguments["k"].shape[0], 4, 128)
        arguments["max_seqlen_q"] = arguments["max_seqlen_k"]
        offsets = arguments["cu_seqlens_k"]
        arguments["cu_seqlens_q"] = offsets if index % 3 else on_gpu(offsets.clone())
        both_ways_agree(fake, **arguments)
    assert sum(taken) == 4  # the first of either kind, of which one has nothing for decode, is not
    arguments["cu_seqlens_q"] = arguments["cu_seqlens_k"] = on_gpu(offsets.long())
    with pytest.raises(ArgumentError, match=r"^cu_seqlens_q: expected dtype"):
        launch(Params(**arguments))


def test_self_attention_of_texts_end_to_end(fake: FakeDriver, taken: list[bool]) -> None:
    """One tensor of offsets and hints of any size, or none: which of the requests are long does not matter."""
    choose = random.Random(5)

    def hint(rows: int) -> int | None:
        return choose.choice((None, 0, 1, rows, rows + 1, choose.randrange(rows)))

    for _ in range(40):
        rows, batch = choose.randrange(129, 700), choose.randrange(1, 5)
        q, k, v = rows_of(choose, rows, 4, 128), rows_of(choose, rows, 2, 128), rows_of(choose, rows, 2, 128)
        offsets = ints(*sorted(choose.randrange(rows) for _ in range(batch)), rows)
        named = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
        both_ways_agree(fake, q=q, k=k, v=v, **named, max_seqlen_q=hint(rows), max_seqlen_k=hint(rows))
        assert fake.launches[-1].block.decode_always_rows == 0
    assert sum(taken) > 20  # boxes for few keys are smaller, and such calls go the long way
    for wrong in (-1, True, 2.0):
        with pytest.raises(ArgumentError, match=r"^max_seqlen_q: expected"):
            launch(Params(q, k, v, **named, max_seqlen_q=wrong))  # type: ignore[arg-type]


def test_tensors_of_one_row_do_not_speak_for_longer_ones(fake: FakeDriver, taken: list[bool]) -> None:
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
    assert not any(taken)


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
        both_ways_agree(fake, **arguments, skip_softmax_threshold=threshold, out=out)
    assert all(taken) and len(taken) == 4


def test_equal_windows_and_the_same_tensor_twice(
    fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is what is compared fastest; both are launched."""
    q = on_gpu(torch.zeros(1, 150, 4, 128, dtype=torch.bfloat16))
    for left in (100, 100, 50, 100):
        both_ways_agree(fake, q=q, k=q, v=q, mask="window", window_size=tuple([left, 0]))
    assert taken == [True, True]


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
