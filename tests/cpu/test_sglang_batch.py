"""The parts of the SGLang plug-in that SGLang is not needed for: tables, phases, memory of graphs, refusals."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from skimattn import ArgumentError, launch
from skimattn.integrations.serving import channel
from skimattn.integrations.serving.call import LayerOptions, Pages, params_of
from skimattn.integrations.serving.skipping import Skipping, numbers_by_phase
from skimattn.integrations.serving.thresholds import LayerRules
from skimattn.integrations.sglang import _scheduled
from skimattn.integrations.sglang._batch import Requests, Static, Tables, of_requests, phases, starts_of
from skimattn.integrations.sglang._metrics import shown
from skimattn.integrations.sglang._refusals import PLAIN, refuse_deployment, refuse_extras, refuse_layer
from skimattn.integrations.sglang._settings import Settings, read_settings
from skimattn.sparse import PhaseRule

PAGE, HEADS, HEADS_KV, DIM = 16, 4, 2, 64
CPU = torch.device("cpu")


class Pool:
    """Tokens as SGLang keeps them: rows of places, whose pages are consecutive and in no order."""

    def __init__(self, lengths: list[int], most: int = 100) -> None:
        torch.manual_seed(3)
        pages = -(-most // PAGE)
        self.slots = torch.tensor([3, 0, 2][: len(lengths)])
        self.order = torch.randperm(4 * pages).view(4, pages) + 1  # page 0 is nobody's
        places = self.order[..., None] * PAGE + torch.arange(PAGE)
        self.tokens = places.view(4, -1)[:, :most].int()
        self.k, self.v = torch.randn(2, (4 * pages + 1) * PAGE, HEADS_KV, DIM).bfloat16()
        self.lengths = torch.tensor(lengths)

    def paged(self) -> Pages:
        shape = (-1, PAGE, HEADS_KV, DIM)
        return Pages(self.k.view(shape), self.v.view(shape), "NHD")

    def expected(self, q: torch.Tensor, rows: list[int], window: int | None = None) -> torch.Tensor:
        """Attention in float64, row by row, by the place of every single token."""
        out, at = torch.zeros(len(q), HEADS, DIM, dtype=torch.float64), 0
        for slot, length, count in zip(self.slots, self.lengths.tolist(), rows, strict=True):
            for row in range(count):
                end = length - count + row + 1
                seen = self.tokens[slot, max(0, end - (window or end)) : end].long()
                for head in range(HEADS):
                    k, v = self.k[seen, head // 2].double(), self.v[seen, head // 2].double()
                    out[at, head] = (k @ q[at, head].double() * 0.125).softmax(0) @ v
                at += 1
        return out


@pytest.mark.parametrize("window", [None, 20])
def test_mixed_batches_are_what_attention_is(window: int | None) -> None:
    pool, rows = Pool([33, 17, 80]), [5, 17, 1]
    batch = of_requests(Requests(pool.slots, pool.lengths, rows, 80), Tables(pool.tokens, PAGE), {}).full
    assert batch.table.tolist()[1][:2] == pool.order[0, :2].tolist() and batch.table.shape == (3, 5)
    assert (batch.tokens, batch.longest_q, batch.longest_k) == (23, 17, 80) and batch.lengths.dtype == torch.int32
    q = torch.randn(23, HEADS, DIM).bfloat16()
    out = torch.empty_like(q)
    launch(params_of(batch, "layer", LayerOptions(0.125, window=window), q, pool.paged(), out))
    torch.testing.assert_close(out.double(), pool.expected(q, rows, window), atol=0.02, rtol=0.02)


def test_windowed_layers_have_tables_of_their_own_pool() -> None:
    pool = Pool([33, 17])
    mapping = torch.arange(1000) + 5 * PAGE
    mapping[pool.tokens[3, :PAGE].long()] = -1  # a page that has left the window
    pair = of_requests(
        Requests(pool.slots, pool.lengths, [1, 1], 33), Tables(pool.tokens, PAGE, lambda at: mapping[at]), {}
    )
    assert pair.window is not None
    assert pair.full.table[0].tolist() == pool.order[3, :3].tolist()
    assert pair.window.table[0].tolist() == [0, *(pool.order[3, 1:3] + 5).tolist()]
    assert pair.window.table[1, :2].tolist() == (pool.order[0, :2] + 5).tolist()


def test_requests_that_decode_are_the_last_ones() -> None:
    assert phases(4, 1).tolist() == [False, False, False, True]
    assert not phases(2, 0).any() and phases(2, 2).all()
    assert starts_of([5, 17, 1]).tolist() == [0, 5, 22, 23]
    with pytest.raises(ArgumentError, match=r"^decoding requests: expected 2 at most \(got 3\)"):
        phases(2, 3)
    found = numbers_by_phase(phases(3, 1), starts_of([1, 6, 1]))
    assert found == ({"prefill": 2, "decode": 1}, {"prefill": 7, "decode": 1}), "a prompt's last row is prefill"


def test_what_the_scheduler_knows() -> None:
    ended: list[str] = []
    _scheduled.tell(SimpleNamespace(end=lambda: ended.append("step")))
    try:
        _scheduled.note(SimpleNamespace(batch_size=3), object, SimpleNamespace(decoding_reqs=["a", "b"]), "runner")
        assert _scheduled.last() == _scheduled.Scheduled(3, 2)
        _scheduled.note(SimpleNamespace(batch_size=1), object, SimpleNamespace(decoding_reqs=None))
        assert _scheduled.last() == _scheduled.Scheduled(1, 0) and not ended
        _scheduled.over("result", "runner", split_forward_count=1)
        assert ended == ["step"]
    finally:
        _scheduled._told.clear()
        _scheduled._last = None


def addresses(value: Any) -> list[int]:
    return [one.data_ptr() for one in (value.full.starts, value.full.lengths, value.full.table, value.window.table)]


def test_graphs_find_new_contents_in_the_same_memory() -> None:
    """Capture with three requests, replay with two and one that pads: what was captured computes them."""
    pool = Pool([40, 90, 7])
    shift = Tables(pool.tokens, PAGE, lambda at: at + PAGE)
    static = Static(4, shift, 100, CPU)
    skipping = Skipping({"layer": LayerRules({"decode": PhaseRule(4.0)})}, HEADS, 4, CPU, count=True)
    ones = torch.ones(3, dtype=torch.int64)
    kept = static.fill(torch.zeros(3, dtype=torch.int64), ones, 3)
    captured = static.pair(3, skipping.prepare(phases(3, 3), kept, whole=True))
    assert captured.window is not None and captured.full.longest_k == 100 and captured.full.longest_q == 1
    before, q, out = addresses(captured), torch.randn(3, HEADS, DIM).bfloat16(), torch.zeros(3, HEADS, DIM).bfloat16()
    call = params_of(captured.full, "layer", LayerOptions(0.125), q, pool.paged(), out)

    lengths = static.fill(pool.slots, torch.tensor([40, 90, 1]), 2)
    skips = skipping.prepare(phases(3, 3), lengths, whole=True)
    assert lengths.tolist() == [40, 90, 0], "what pads sees nothing"
    assert addresses(static.pair(3, skips)) == before
    held = captured.full.skips["layer"]["skip_softmax_threshold"]
    assert held.data_ptr() == skips["layer"]["skip_softmax_threshold"].data_ptr()
    assert held.tolist()[:2] == pytest.approx([4 / 40, 4 / 90])
    assert captured.full.table[:2, :6].tolist() == pool.order[[3, 0], :6].tolist()
    assert captured.window.table[1, :6].tolist() == (pool.order[0, :6] + 1).tolist()
    held.zero_()
    skipping.forget()
    launch(call)
    pool.slots, pool.lengths = pool.slots[:2], torch.tensor([40, 90])
    torch.testing.assert_close(out[:2].double(), pool.expected(q[:2], [1, 1]), atol=0.02, rtol=0.02)
    assert not out[2].any() and skipping.collect()[0, 1, 0] == HEADS * 2, "one tile of keys for each head and request"


def test_more_requests_need_room_before_graphs_hold_it() -> None:
    skipping = Skipping({"layer": LayerRules({"decode": PhaseRule(0.5, 0.0)})}, HEADS, 2, CPU, count=False)
    skipping.reserve(6)
    first = skipping.prepare(phases(2, 2), torch.ones(2), whole=True)["layer"]["skip_softmax_threshold"].data_ptr()
    skipping.reserve(4)
    assert (
        skipping.prepare(phases(6, 6), torch.ones(6), whole=True)["layer"]["skip_softmax_threshold"].data_ptr() == first
    )


def told(argument: str, environ: dict[str, str], section: object = None) -> Settings:
    with patch.dict(os.environ, environ):
        return read_settings(argument, section)


def test_settings_have_names_of_sglang() -> None:
    found = told('{"skimattn": {"config": {"threshold": 0.5}}}', {"SKIMATTN_SGLANG_METRICS": "0"})
    assert found.config is not None and found.config.threshold["decode"] == 0.5 and not found.metrics
    assert told("", {"SKIMATTN_VLLM_CONFIG": "{x"}).config is None, "another engine's"
    for override, environ, text in (
        ("{x", {}, "^json_model_override_args: expected JSON"),
        ('{"skimattn": {"treshold": 1}}', {}, "^json_model_override_args.skimattn.treshold: expected one of config"),
        ("{}", {"SKIMATTN_SGLANG_CONFIG": "{x"}, "^SKIMATTN_SGLANG_CONFIG: expected JSON, a file or a folder"),
    ):
        with pytest.raises(ArgumentError, match=text):
            told(override, environ)


DEPLOYMENT: dict[str, Any] = {
    "arguments": PLAIN,
    "page_size": 128,
    "backends": ("skimattn", "skimattn"),
    "name": "skimattn",
    "pool": "MHATokenToKVPool",
    "layout": "nhd",
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arguments": PLAIN | {"speculative_algorithm": "EAGLE"}}, r"^speculative_algorithm: .*None .*'EAGLE'"),
        ({"arguments": PLAIN | {"dcp_size": 2}}, r"^dcp_size: expected 1 .*\(got 2\)"),
        ({"arguments": PLAIN | {"enable_two_batch_overlap": True}}, r"^enable_two_batch_overlap: expected False"),
        ({"backends": ("skimattn", "fa3")}, r"^attention_backend: .* and for decode \(got skimattn and fa3\)"),
        ({"page_size": 24}, r"^page_size: expected a multiple of 16 up to 1024, or 1, 2, 4, 8 \(got 24\)"),
        ({"pool": "MLATokenToKVPool"}, r"^model: .*MHATokenToKVPool \(another .*\) \(got MLATokenToKVPool\)"),
        ({"layout": "hnd"}, r"^kv_cache_layout: expected nhd .*\(got 'hnd'\)"),
    ],
)
def test_deployments_that_are_not_served(change: dict[str, Any], text: str) -> None:
    refuse_deployment(**DEPLOYMENT)
    refuse_deployment(**(DEPLOYMENT | {"page_size": 1, "arguments": dict.fromkeys(PLAIN)}))
    with pytest.raises(ArgumentError, match=text):
        refuse_deployment(**(DEPLOYMENT | change))


LAYER = {
    "is_cross_attention": False,
    "attn_type": SimpleNamespace(value="decoder"),
    "qk_head_dim": 64,
    "v_head_dim": 64,
    "use_irope": False,
    "pos_encoding_mode": "NONE",
    "logit_capping_method": "tanh",
    "xai_temperature_len": -1,
}


@pytest.mark.parametrize(
    ("change", "cache", "text"),
    [
        ({}, torch.float8_e4m3fn, r"^kv_cache_dtype: expected auto, which is torch.bfloat16 .*float8"),
        ({"is_cross_attention": True}, torch.bfloat16, r"^attn_type: expected decoder .*'cross attention'"),
        ({"v_head_dim": 32}, torch.bfloat16, r"^v_head_dim: expected 64, like head_dim"),
        ({"qk_head_dim": 320, "v_head_dim": 320}, torch.bfloat16, r"^head_size: expected a multiple of 8"),
        ({"use_irope": True}, torch.bfloat16, r"^use_irope: expected False"),
        ({"xai_temperature_len": 9}, torch.bfloat16, r"^xai_temperature_len: expected none .*\(got 9\)"),
    ],
)
def test_layers_that_are_not_computed(change: dict[str, Any], cache: torch.dtype, text: str) -> None:
    refuse_layer(SimpleNamespace(**LAYER), torch.bfloat16, torch.bfloat16)
    with pytest.raises(ArgumentError, match=text):
        refuse_layer(SimpleNamespace(**(LAYER | change)), torch.bfloat16, cache)


def test_what_models_hand_over_beyond_that() -> None:
    refuse_extras({"score_mod": None, "return_lse": False})
    with pytest.raises(ArgumentError, match=r"^q_rope: expected None, since it is not known here .*\(got int\)"):
        refuse_extras({"q_rope": 3})


def test_counts_reach_whoever_asks(tmp_path: Any) -> None:
    shown(tmp_path, 1, 0, None)([4, 1, 20, 3])
    assert channel.read_tiles(tmp_path, 1) == {"prefill": (4, 1), "decode": (20, 3)}
