"""A model beside itself dense: what is compared, counted and timed, and what ``verify`` makes of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from skimattn.errors import ArgumentError
from skimattn.integrations.transformers import Comparison, Loaded, compare, load
from skimattn.integrations.transformers.comparison import Pair, Side
from skimattn.sparse import attention_modules, policy_of, sparsify
from skimattn.tools.models import verifying

from .families import DEVICE, logits_of, tokens_of
from .folders import save_tiny

LENGTHS, NEW = (600, 400), 6
RULES = {"threshold": {"prefill": 0.5, "decode": 0.2}}
LAYERS = ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return load(folder, device=DEVICE)


@pytest.fixture(scope="module")
def samples() -> list[list[int]]:
    return [tokens_of(1, length, seed)[0].tolist() for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def found(loaded: Loaded, samples: list[list[int]]) -> Comparison:
    sparsify(loaded.model, RULES)
    return compare(loaded.model, samples, new_tokens=NEW)


def test_dense_losses_and_tokens_are_those_of_torch(
    loaded: Loaded, samples: list[list[int]], found: Comparison
) -> None:
    for pair, sample in zip(found.pairs, samples, strict=True):
        tokens = torch.tensor([sample], device=DEVICE)
        logits = logits_of(loaded.model, "sdpa", tokens)[0].double()
        loaded.model.set_attn_implementation("skimattn")
        losses = logits[:-1].logsumexp(-1) - logits[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        assert pair.length == len(sample)
        assert pair.dense.loss["prefill"] == pytest.approx(float(losses[:-NEW].mean()), abs=0.003)
        assert pair.dense.loss["decode"] == pytest.approx(float(losses[-NEW:].mean()), abs=0.02)
        top, second = logits[-1].topk(2).values
        if top - second > 0.1:
            assert pair.dense.greedy[0] == int(logits[-1].argmax())
        assert len(pair.dense.greedy) == len(pair.sparse.greedy) == NEW
        assert set(pair.dense.seconds) == {"prefill", "decode"} and min(pair.sparse.seconds.values()) > 0


def test_what_skips_differs_and_is_counted(loaded: Loaded, samples: list[list[int]], found: Comparison) -> None:
    assert found.phases == ["prefill", "decode"]
    for phase in found.phases:
        assert all(0 < pair.largest[phase] < 3 for pair in found.pairs)
        assert any(pair.added(phase) for pair in found.pairs)
        assert list(found.tiles[phase]) == LAYERS
    groups = [range(-(-(length - NEW - 1) // 64)) for length in LENGTHS]  # of 64 rows, beside tiles of 128 keys
    tiles = 4 * sum(group // 2 + 1 for rows in groups for group in rows)
    assert {visited for visited, _ in found.tiles["prefill"].values()} == {tiles}
    assert sum(skipped for _, skipped in found.tiles["prefill"].values()) > 0.05 * 2 * tiles
    assert all(0 < skipped < visited for visited, skipped in found.tiles["decode"].values())
    policies = [policy_of(module) for module in attention_modules(loaded.model).values()]
    assert all(policy and policy.collector is None and policy.enabled for policy in policies)


def test_nothing_differs_where_nothing_skips(loaded: Loaded, samples: list[list[int]]) -> None:
    sparsify(loaded.model, {"threshold": 0.0})
    found = compare(loaded.model, samples[1:], new_tokens=NEW, chunk=150)
    (pair,) = found.pairs
    assert pair.largest == {"prefill": 0, "decode": 0} and pair.parted is None and pair.added("decode") == 0
    only = compare(loaded.model, samples[1:], new_tokens=0)
    assert only.phases == ["prefill"] and only.pairs[0].dense.greedy == () and only.pairs[0].parted is None
    assert verifying.lines(only, verifying.summaries(only), verifying.rules_of(loaded.model))[-1].startswith("all")


def test_texts_that_are_too_short(loaded: Loaded) -> None:
    sparsify(loaded.model, RULES)
    with pytest.raises(ArgumentError, match=r"^samples: expected texts of at least 34 tokens .got 33"):
        compare(loaded.model, [[1] * 40, [1] * 33])


def test_attention_of_others_skips_nothing(loaded: Loaded, samples: list[list[int]]) -> None:
    sparsify(loaded.model, RULES)
    loaded.model.set_attn_implementation("sdpa")
    try:
        with pytest.raises(ArgumentError, match=r"^model: expected one that counts tiles in prefill; .* .got sdpa"):
            compare(loaded.model, samples[1:], new_tokens=0)
    finally:
        loaded.model.set_attn_implementation("skimattn")


def made_up(*added: float) -> Comparison:
    """Texts of 10, 20, 10, ... tokens whose losses are higher by these; the second one's tokens part at the third."""
    pairs = []
    for index, more in enumerate(added):
        dense = Side({"prefill": 2.0 + index}, {"prefill": 1.0}, (5, 6, 7))
        greedy = (5, 6, 8) if index == 1 else (5, 6, 7)
        sparse = Side({"prefill": 2.0 + index + more}, {"prefill": 0.5}, greedy)
        pairs.append(Pair(10 + 10 * (index % 2), dense, sparse, {"prefill": 0.1 * (index + 1)}))
    return Comparison(tuple(pairs), {"prefill": {"a": (100, 25), "b": (100, 75)}, "decode": {}})


def test_intervals_are_paired() -> None:
    every, short, long = verifying.summaries(made_up(0.01, 0.02, 0.03))
    assert (every.length, short.length, long.length) == (None, 10, 20)
    assert every.dense == pytest.approx(math.exp(3)) and every.sparse == pytest.approx(math.exp(3.02))
    width = 4.302653 * 0.01 / math.sqrt(3)
    assert every.interval == pytest.approx((math.expm1(0.02 - width), math.expm1(0.02 + width)), rel=1e-3)
    assert every.change == pytest.approx(math.expm1(0.02)) and every.largest == pytest.approx(0.3)
    assert every.seconds == (3.0, 1.5) and short.texts == 2 and long.texts == 1 and long.interval is None
    many = verifying.summaries(made_up(*[0.01, 0.03] * 11))[0].interval
    assert many == pytest.approx((math.expm1(0.02 - 2.0796 * 0.002182), math.expm1(0.02 + 2.0796 * 0.002182)), rel=1e-2)


def test_what_is_printed() -> None:
    rules = {"prefill": {"a": "0.1", "b": "0.2"}, "decode": {"a": "dense", "b": "dense"}}
    made = made_up(0.01, 0.02)
    text = "\n".join(verifying.lines(made, verifying.summaries(made), rules))  # type: ignore[arg-type]
    assert "prefill  all     2      12.18  12.37   +1.511 %" in text
    assert "a      0.1                25.0 %" in text and "all                       50.0 %" in text
    assert text.endswith("the same 3 in 1 of 2 texts; others part at token 3")
