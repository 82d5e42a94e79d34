"""Is what ``bench decode`` times right? Every output is that of the last call of a replayed graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import skimattn
import torch

from .checks import ROUNDING, Check, attended, check_counts, relative_error, sampled_rows
from .decode_calls import Rotation
from .decode_inputs import Cache, keys_of, planted_counts
from .decode_work import Work
from .names import DENSE, PAGES_OF_64, is_ours, skip_name

_ALL_ROWS = 8  # of a request, up to which all are compared with float64
# An e4m3 cache under bf16 q leaves a rounding of P to 8 bits; peers may round q to 8 bits, too.
_ROUNDING_8_BIT = {True: 0.06, False: 0.2}


def truth(work: Work, cache: Cache, copy: int, request: int, rows: torch.Tensor) -> torch.Tensor:
    """Rows of one request in float64, [rows, Hq, Dv], from the definition of attention."""
    k, v = keys_of(cache, work, copy, request)
    q = cache.q[int(cache.offsets[request]) + rows]
    return attended(q, k, v, rows + len(k) - work.rows[request], work.window)


def check_outputs(outputs: Mapping[str, torch.Tensor], work: Work, cache: Cache) -> Iterator[Check]:
    """Written everywhere and finite; near float64 on sampled rows; near our dense kernel; at threshold 0 its bits."""
    wanted = _sampled(work, cache)
    for name, out in outputs.items():
        limit = ROUNDING if work.cache == "bf16" else _ROUNDING_8_BIT[is_ours(name)]
        yield Check(name, "elements that are not finite", int((~torch.isfinite(out)).sum()), 0)
        worst = max(relative_error(out[at], reference) for at, reference in wanted)
        yield Check(name, "float64 on sampled rows", worst, limit)
        if name != DENSE and DENSE in outputs:
            yield Check(name, DENSE, relative_error(out, outputs[DENSE]), limit)
        if name in (skip_name(0), PAGES_OF_64) and DENSE in outputs:
            different = int((out.view(torch.int16) != outputs[DENSE].view(torch.int16)).sum())
            yield Check(name, "elements unlike our dense bit for bit", different, 0)


def _sampled(work: Work, cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(row numbers in q, what they must be) for the first, the last and the longest request."""
    found = []
    longest = max(range(work.batch), key=lambda request: work.lens[request])
    for request in sorted({0, work.batch - 1, longest}):
        count = work.rows[request]
        rows = torch.tensor(range(count) if count <= _ALL_ROWS else sampled_rows(count), device=cache.q.device)
        reference = truth(work, cache, len(cache.tables) - 1, request, rows)
        found.append((int(cache.offsets[request]) + rows, reference))
    return found


def counts_of(work: Work, cache: Cache, item: Rotation) -> tuple[dict[str, object], list[Check]]:
    """The raw counts after one call of the stat kernel on copy 0, and whether they are those that were planted."""
    assert item.params is not None and item.params.stats is not None
    visited, skipped = (int(count) for count in item.params.stats.tolist())
    found = skimattn.explain(item.params)
    assert found.spec is not None and found.tile is not None and found.group_rows is not None
    expected = planted_counts(work, cache, found.tile[1], found.spec.phase in ("decode", "mla"), found.group_rows)
    sparsity = round(skipped / max(visited, 1), 4)
    return {"visited": visited, "skipped": skipped, "sparsity": sparsity}, check_counts(
        item.name, (visited, skipped), expected
    )
