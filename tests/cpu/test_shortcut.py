"""The short way of a launch sends the driver what the long one does, byte by byte, or leaves the call to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, Params, launch
from skimattn._launch.shortcut import Elsewhere, Shortcut
from skimattn.codegen.parameter_block import OFFSETS, SIZE

from tests.helpers.fake_driver import FakeDriver, install, on_gpu, scan_of

WAYS = ("batched", "ragged", "nhd", "hnd", "mixed")


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
    """A tensor of this shape, sometimes a view of a larger one."""
    if choose.random() < 0.5:
        return on_gpu(torch.zeros(shape, dtype=torch.bfloat16))
    *outer, heads, columns = shape
    wide = torch.zeros(*outer, heads + 2, columns + 8, dtype=torch.bfloat16)
    return on_gpu(wide[..., 1:-1, :columns])


def sizes(choose: random.Random, way: str, head_dim_v: int) -> dict[str, Any]:
    batch, rows, keys = choose.randrange(1, 5), choose.randrange(1, 300), choose.randrange(129, 700)
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
def test_both_ways_send_the_same(
    fake: FakeDriver, taken: list[bool], monkeypatch: pytest.MonkeyPatch, way: str, head_dim_v: int
) -> None:
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


def test_what_is_refused_is_refused_by_the_long_way(fake: FakeDriver, taken: list[bool]) -> None:
    good = sizes(random.Random(0), "batched", 128)
    launch(Params(**good))
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
    assert not any(taken) and len(fake.launches) == 1


def test_gradients_are_refused_on_the_short_way_too(fake: FakeDriver, taken: list[bool]) -> None:
    good = sizes(random.Random(1), "batched", 128)
    launch(Params(**good))
    good["k"].requires_grad_()
    with pytest.raises(ArgumentError, match=r"^k: expected no requires_grad"):
        launch(Params(**good))
    with torch.no_grad():
        launch(Params(**good))
    assert taken == [False, True]
