"""The parts of the vLLM plug-in that vLLM is not needed for: caches, calls, and what each request skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn import ArgumentError, launch
from skimattn.integrations.serving.call import Batch, LayerOptions, Pages, params_of
from skimattn.integrations.serving.skipping import Skipping, numbers_by_phase, which_decode
from skimattn.integrations.serving.thresholds import LayerRules, ThresholdTable
from skimattn.integrations.vllm._cache import pages_of, write
from skimattn.sparse import PhaseRule

BLOCK, HEADS, HEADS_KV, DIM = 32, 4, 2, 64
CPU = torch.device("cpu")


def cache_of(generation: str, blocks: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A layer's cache as vLLM makes it: before 0.30, and since, with heads or keys outside in memory."""
    if generation == "old":
        return torch.zeros(blocks, 2, BLOCK, HEADS_KV, DIM, dtype=dtype)
    if generation == "heads outside":
        return torch.zeros(blocks, HEADS_KV, BLOCK, 2 * DIM, dtype=dtype)
    return torch.zeros(blocks, BLOCK, HEADS_KV, 2 * DIM, dtype=dtype).transpose(1, 2)


GENERATIONS = ("old", "heads outside", "keys outside")


def keys_of(cache: torch.Tensor, generation: str, block: int, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[Hkv, D]`` of one slot, by plain indices."""
    if generation == "old":
        return cache[block, 0, place], cache[block, 1, place]
    return cache[block, :, place, :DIM], cache[block, :, place, DIM:]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_keys_and_values_are_views_of_either_cache(generation: str) -> None:
    cache = cache_of(generation, 3)
    pages = pages_of(cache, DIM)
    assert pages.block == BLOCK and pages.layout == ("NHD" if generation == "old" else "HND")
    keys, values = torch.randn(2, 4, HEADS_KV, DIM).bfloat16()
    write(pages, torch.tensor([2 * BLOCK + 5, -1, BLOCK]), keys, values, (1.0, 1.0))
    for row, block, place in ((0, 2, 5), (2, 1, 0)):
        k, v = keys_of(cache, generation, block, place)
        assert torch.equal(k, keys[row]) and torch.equal(v, values[row])
    assert int((cache != 0).any(-1).sum()) == 2 * HEADS_KV * (2 if generation == "old" else 1), (
        "nothing else is written"
    )


def test_a_new_cache_has_rows_of_keys_and_values() -> None:
    pages = pages_of(cache_of("heads outside", 3), DIM)
    assert pages.k.stride() == (HEADS_KV * BLOCK * 2 * DIM, BLOCK * 2 * DIM, 2 * DIM, 1)
    assert pages.v.storage_offset() == DIM


def test_eight_bits_are_scaled_and_cut() -> None:
    cache = cache_of("heads outside", 2, torch.uint8)
    keys = torch.tensor([3.0, -1e6, 1e6, 0.5]).repeat(DIM // 4).expand(1, HEADS_KV, DIM).bfloat16()
    write(pages_of(cache, DIM), torch.tensor([7]), keys, keys, (2.0, 0.25))
    k, v = keys_of(cache.view(torch.float8_e4m3fn), "heads outside", 0, 7)
    assert k[0, :4].tolist() == [1.5, -448.0, 448.0, 0.25] and v[0, :4].tolist() == [12.0, -448.0, 448.0, 2.0]


@pytest.mark.parametrize("shape", [(3, 2, BLOCK, HEADS_KV, 32), (3, HEADS_KV, BLOCK, DIM), (2, 3, BLOCK, 2, DIM)])
def test_other_caches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^kv_cache: expected \[blocks, 2, block, Hkv, 64\] or .*128\] \(got \["):
        pages_of(torch.zeros(shape, dtype=torch.bfloat16), DIM)


class Made:
    """Requests with new rows behind keys that are cached, in blocks that are not in order."""

    def __init__(self, rows: list[int], lengths: list[int], pages: Pages, padding: int = 0) -> None:
        torch.manual_seed(7)
        most = max(-(-length // BLOCK) for length in lengths)
        blocks = torch.randperm(len(lengths) * most).view(len(lengths), most)
        self.q = torch.randn(sum(rows) + padding, HEADS, DIM).bfloat16()
        self.k, self.v = ([torch.randn(length, HEADS_KV, DIM).bfloat16() for length in lengths] for _ in "kv")
        for table, k, v in zip(blocks, self.k, self.v, strict=True):
            places = torch.arange(len(k))
            write(pages, table[places // BLOCK] * BLOCK + places % BLOCK, k, v, (1.0, 1.0))
        self.rows, self.lengths = rows, lengths
        starts = torch.tensor([0, *rows]).cumsum(0)
        self.starts = starts
        self.batch: dict[str, Any] = {
            "tokens": sum(rows),
            "starts": starts.int(),
            "lengths": torch.tensor(lengths, dtype=torch.int32),
            "table": blocks.int(),
            "longest_q": max(rows),
            "longest_k": max(lengths),
        }

    def expected(self, options: LayerOptions) -> torch.Tensor:
        """Attention in float64, row by row."""
        out = torch.zeros(sum(self.rows), HEADS, DIM, dtype=torch.float64)
        for index, (rows, length) in enumerate(zip(self.rows, self.lengths, strict=True)):
            for row in range(rows):
                end = length - rows + row + 1
                first = 0 if options.window is None else max(0, end - options.window)
                at = int(self.starts[index]) + row
                for head in range(HEADS):
                    k, v = (x[index][first:end, head // 2].double() for x in (self.k, self.v))
                    scores = k @ self.q[at, head].double() * options.scale
                    if options.softcap:
                        scores = options.softcap * (scores / options.softcap).tanh()
                    if options.alibi_slopes is not None:
                        scores = scores - options.alibi_slopes[head].double() * torch.arange(len(k) - 1, -1, -1)
                    weights = scores.exp()
                    sink = 0.0 if options.sinks is None else options.sinks[head].double().exp()
                    out[at, head] = weights @ v / (weights.sum() + sink)
        return out


OPTIONS = {
    "plain": LayerOptions(scale=0.125),
    "window": LayerOptions(scale=0.1, window=40),
    "softcap": LayerOptions(scale=0.125, softcap=3.0),
    "sinks": LayerOptions(scale=0.125, sinks=torch.tensor([0.5, 2.0, -1.0, 3.0])),
    "alibi": LayerOptions(scale=0.125, alibi_slopes=torch.tensor([0.5, 0.25, 0.125, 0.0])),
}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("kind", OPTIONS)
def test_mixed_batches_are_what_attention_is(generation: str, kind: str) -> None:
    pages = pages_of(cache_of(generation, 24), DIM)
    made = Made([1, 70, 5, 33], [130, 70, 99, 180], pages, padding=3)
    out = torch.full_like(made.q, 9.0)
    launch(params_of(Batch(**made.batch), "layer", OPTIONS[kind], made.q, pages, out))
    torch.testing.assert_close(out[: sum(made.rows)].double(), made.expected(OPTIONS[kind]), atol=0.02, rtol=0.02)
    assert bool((out[sum(made.rows) :] == 9.0).all()), "rows of padding stay as they were"


RULES = {
    "both": LayerRules({"prefill": PhaseRule(20.0), "decode": PhaseRule(0.3, 0.0)}),
    "prefill alone": LayerRules({"prefill": PhaseRule(5.0, 0.5)}, most_keys=100),
    "one for all": LayerRules({"decode": PhaseRule(0.9, 0.0)}),
}
BY_HEAD = {**RULES, "by head": LayerRules({"prefill": PhaseRule((1.0, 2.0, 3.0, 500.0)), "decode": PhaseRule(1.0)})}


@pytest.mark.parametrize("rules", [RULES, BY_HEAD], ids=["by request", "by head"])
def test_thresholds_are_those_of_rules_one_by_one(rules: dict[str, LayerRules]) -> None:
    table = ThresholdTable(list(rules.values()), HEADS, CPU)
    decodes, lengths = torch.tensor([False, True, True, False, False]), [10, 3000, 1, 900, 0]
    out = table.empty(7)
    table.write(out, decodes, torch.tensor(lengths, dtype=torch.int32))
    assert out.shape == ((4, 7, HEADS) if rules is BY_HEAD else (3, 7)) and not out[:, 5:].any()
    for row, layer in zip(out, rules.values(), strict=True):
        for index, length in enumerate(lengths):
            rule = layer.rules.get("decode" if decodes[index] else "prefill")
            keys = length if layer.most_keys is None else min(length, layer.most_keys)
            wanted = 0.0 if rule is None else rule.threshold(keys)
            wanted = torch.as_tensor(wanted).expand(1, HEADS)[0] if row.dim() == 2 else torch.as_tensor(wanted)
            torch.testing.assert_close(row[index], wanted.to(torch.float32))


def test_each_request_of_a_batch_skips_by_its_own_phase() -> None:
    """A request that prefills and one that decodes, each alike alone, and counts that add up by phase."""
    pages = pages_of(cache_of("heads outside", 66), DIM)
    made = Made([200, 1, 1], [256, 700, 700], pages)
    for index, length in enumerate(made.lengths):  # one key that all rows look at, and others that fall off behind it
        made.k[index].mul_(torch.linspace(8, 0.1, length)[:, None, None])
        table = made.batch["table"][index].long()
        places = torch.arange(length)
        write(pages, table[places // BLOCK] * BLOCK + places % BLOCK, made.k[index], made.v[index], (1.0, 1.0))
    rules = {"layer": LayerRules({"prefill": PhaseRule(1e-3, 0.0), "decode": PhaseRule(0.9, 0.0)})}
    skipping = Skipping(rules, HEADS, 4, CPU, count=True)

    def counted(chosen: slice, prefilling: list[bool]) -> torch.Tensor:
        decodes = which_decode(torch.tensor(prefilling), made.batch["starts"][chosen.start : chosen.stop + 1], 1)
        batch = dict(made.batch)
        first, last = int(made.starts[chosen.start]), int(made.starts[chosen.stop])
        batch |= {key: batch[key][chosen] for key in ("lengths", "table")} | {"tokens": last - first}
        batch["starts"] = made.batch["starts"][chosen.start : chosen.stop + 1] - first
        skips = skipping.prepare(decodes, batch["lengths"], whole=False)
        q = made.q[first:last]
        launch(params_of(Batch(**batch, skips=skips), "layer", LayerOptions(0.125), q, pages, torch.empty_like(q)))
        return skipping.collect()[0]

    together = counted(slice(0, 3), [True, False, False])
    alone = [counted(slice(0, 1), [True]), counted(slice(1, 2), [False]), counted(slice(2, 3), [False])]
    assert torch.equal(together, sum(alone)), "phases of a batch are counted apart"
    assert together[:, 0].min() > 0 and together[:, 1].min() > 0, "both phases skip"
    prompts = counted(slice(1, 3), [True, True])
    assert prompts[0, 0] == together[1, 0] and not prompts[1].any() and prompts[0, 1] != together[1, 1]
    assert not skipping.collect().any(), "what was collected is not there any more"


def test_layers_that_no_request_skips_in_are_dense_unless_a_graph_is_captured() -> None:
    skipping = Skipping(RULES, HEADS, 2, CPU, count=False)
    lengths = torch.tensor([64, 64], dtype=torch.int32)
    decodes = torch.tensor([True, True])
    assert set(skipping.prepare(decodes, lengths, whole=False)) == {"both", "one for all"}
    assert set(skipping.prepare(~decodes, lengths, whole=False)) == {"both", "prefill alone"}
    found = skipping.prepare(decodes, lengths, whole=True)
    assert set(found) == set(RULES) and set(found["both"]) == {"skip_softmax_threshold"}
    before = {name: one["skip_softmax_threshold"].data_ptr() for name, one in found.items()}
    again = skipping.prepare(~decodes, lengths + 9, whole=True)
    assert {name: one["skip_softmax_threshold"].data_ptr() for name, one in again.items()} == before, (
        "graphs hold these"
    )
    torch.testing.assert_close(found["both"]["skip_softmax_threshold"], torch.full((2,), 20.0 / 73))
    many = skipping.prepare(torch.ones(5, dtype=torch.bool), torch.full((5,), 64), whole=True)
    assert many["both"]["skip_softmax_threshold"].tolist() == pytest.approx([0.3] * 5), "more than was said"


def test_phases_are_what_vllm_says_or_else_follow_from_rows() -> None:
    starts = torch.tensor([0, 1, 4, 104, 104])
    assert which_decode(torch.tensor([True, False, True]), starts, 4).tolist() == [False, True, False, True]
    assert which_decode(None, starts, 4).tolist() == [True, True, False, True]
    decodes = torch.tensor([False, True, False, True])
    assert numbers_by_phase(decodes, starts) == ({"prefill": 2, "decode": 1}, {"prefill": 101, "decode": 3})
