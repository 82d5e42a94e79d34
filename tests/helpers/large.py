"""Large calls on a GPU against float64 on the same GPU, head by head, with the oracle's own decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from . import oracle
from .build import build
from .cases import Case, Content, contents, rules_of
from .check import Array, Result, out_bound, score_error
from .oracle import KEPT, Answer, Rules
from .run import run_built


@dataclass
class Tally:
    """What a large case was like: group-tiles visited, skipped, and too close to call (then the kernel is believed)."""

    visited: int = 0
    skipped: int = 0
    close: int = 0
    worst: float = 0.0  # error of the output over its bound


def run_large(case: Case, backend: str = "gpu") -> Tally:
    """Run a case and check all of it; the float64 work is done on a GPU for the GPU, else on the CPU."""
    held = contents(case)
    result = run_built(build(case, held), backend)
    tally = Tally()
    assert not any(rows and result.built.case.decodes(rows, keys) for rows, keys in case.lens), "this is about prefill"
    for index, one in enumerate(held):
        for head in range(case.heads_q if len(one.q) else 0):
            _check_head(case, one, result, index, head, tally, "cuda" if backend == "gpu" else "cpu")
    return tally


def _check_head(case: Case, one: Content, result: Result, index: int, head: int, tally: Tally, device: str) -> None:
    rules = rules_of(case)
    kv_head = head * case.heads_kv // case.heads_q
    q, k, v = (x.to(device).double() for x in (one.q[:, head], one.k[:, kv_head], one.v[:, kv_head]))
    seen = torch.from_numpy(oracle.visible_keys(rules, len(q), len(k))).to(device)
    s = (q @ k.T * rules.scale).masked_fill_(~seen, -math.inf)
    told = result.tensors["skip_map"][index, head].numpy() if case.skip == "stat" else None
    limit = -math.inf if one.threshold is None else oracle.log2_threshold(float(one.threshold[head]))
    chosen = _decide(rules, s, seen, limit, told, tally)
    if told is not None:
        got = np.where(told == 99, 0, told)[: chosen.shape[0], : chosen.shape[1]]
        wrong = np.argwhere(got != chosen)
        assert not len(wrong), f"{case.name}: head {head}: map differs at (group, tile) {wrong[:5].tolist()}"
    tiles = torch.from_numpy(chosen == KEPT).to(device)
    kept = tiles.repeat_interleave(rules.group_rows, 0)[: len(q)].repeat_interleave(rules.tile_n, 1)[:, : len(k)] & seen
    answer = _answer(s.masked_fill_(~kept, -math.inf), kept, q, k, v, rules, chosen)
    out = result.rows("out", index)[:, head].double().numpy()
    bound = out_bound(case, answer)[:, 0]
    error = np.abs(out - answer.out[:, 0])
    tally.worst = max(tally.worst, float((error / bound).max()))
    assert (error <= bound).all(), (
        f"{case.name}: head {head}: error {error.max():.2e} is {tally.worst:.2f} of its bound"
    )
    lse = result.rows("lse", index)[:, head].double().numpy()
    blind = np.isneginf(answer.lse[:, 0])
    off = np.abs(np.where(blind, 0.0, lse) - np.where(blind, 0.0, answer.lse[:, 0]))
    assert (off <= 2e-5 + score_error(case, answer)[:, 0]).all() and np.isneginf(lse[blind]).all()


def _decide(rules: Rules, s: torch.Tensor, seen: torch.Tensor, limit: float, told: Array | None, tally: Tally) -> Array:
    """The map of one head, [groups, tiles]."""
    maxima, sees = (_per_tile(x, rules.tile_n).cpu().numpy() for x in (s, seen))
    groups = -(-len(s) // rules.group_rows)
    chosen = np.zeros((groups, maxima.shape[1]), dtype=np.uint8)
    for group in range(groups):
        rows = slice(group * rules.group_rows, (group + 1) * rules.group_rows)
        visible = np.flatnonzero(sees[rows].any(axis=0))
        if rules.mask == "full":
            visible = np.arange(maxima.shape[1])
        tiles = range(int(visible[0]), int(visible[-1]) + 1) if len(visible) else range(0)
        believed = None if told is None else {tile: int(told[group, tile]) for tile in tiles}
        decisions, close = oracle.decide(rules, tiles, maxima[rows], sees[rows], limit, believed)
        for tile, decision in decisions.items():
            chosen[group, tile] = decision
        tally.close += len(close)
    tally.visited += int((chosen != 0).sum())
    tally.skipped += int((chosen == oracle.SKIPPED).sum())
    return chosen


def _per_tile(x: torch.Tensor, tile_n: int) -> torch.Tensor:
    """Largest value of each row and tile; for bools, any."""
    padding = -x.shape[1] % tile_n
    fill = -math.inf if x.is_floating_point() else False
    tiles = torch.nn.functional.pad(x, (0, padding), value=fill).view(len(x), -1, tile_n)
    return tiles.amax(dim=2) if x.is_floating_point() else tiles.any(dim=2)


def _answer(
    s: torch.Tensor,
    kept: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rules: Rules,
    chosen: Array,
) -> Answer:
    lse = torch.logsumexp(s, dim=1)
    p = torch.exp(s - lse[:, None]).masked_fill_(~kept, 0.0)
    total = torch.exp(lse - s.amax(dim=1)).nan_to_num(1.0)
    size = (q.abs() @ k.abs().T).amax(dim=1) * rules.scale
    parts = (p @ v, p @ v.abs(), kept.double() @ v.abs() / total[:, None])
    out, spread, reach = (part.cpu().numpy()[:, None] for part in parts)
    return Answer(
        out=out,
        lse=lse.cpu().numpy()[:, None],
        skip_map=chosen[None],
        kept_keys=np.zeros((1, 0, 0), dtype=bool),
        spread=spread,
        reach=reach,
        score_size=size.cpu().numpy()[:, None],
    )
