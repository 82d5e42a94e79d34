"""Is what ``bench rows`` times right? Each contender's first output, before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .checks import ROUNDING, ROUNDING_8_BITS, SKIPPING, Check, attended, relative_error, sampled_rows
from .names import DENSE, IN_BF16, is_ours, skip_name
from .prefill_inputs import Data, request_keys
from .prefill_work import Work

_PEERS_8_BITS = 0.2  # peers round P and what they add up in other places, which is theirs to answer for

Rows = list[tuple[torch.Tensor, torch.Tensor]]


def sampled(work: Work, data: Data) -> Rows:
    """(row numbers in q, what they must be in float64) for the first, the last and the longest request."""
    found = []
    longest = max(range(work.batch), key=lambda request: work.rows[request])
    for request in sorted({0, work.batch - 1, longest}):
        count, keys = work.rows[request], work.lens[request]
        rows = torch.tensor(sampled_rows(count), device=data.q.device)
        at = int(data.offsets[request]) + rows
        ends = rows + keys - count if work.causal else None
        found.append((at, attended(data.q[at], *request_keys(work, data, request), ends, work.window)))
    return found


def check_output(name: str, out: torch.Tensor, wanted: Rows, work: Work, dense: torch.Tensor | None) -> Iterator[Check]:
    """Written everywhere and finite; near float64; near our dense kernel's output; at threshold 0 its bits.

    Args:
        name: of the contender.
        out: [total rows, Hq, Dv].
        wanted: of :func:`sampled`.
        work: the row.
        dense: our dense kernel's output, if ``out`` is another's.
    """
    rounding = ROUNDING
    if work.dtype == "e4m3":
        rounding = ROUNDING_8_BITS if is_ours(name) else _PEERS_8_BITS
    yield Check(name, "elements that are not finite", int((~torch.isfinite(out)).sum()), 0)
    worst = max(relative_error(out[at], reference) for at, reference in wanted)
    yield Check(name, "float64 on sampled rows", worst, rounding)
    if dense is not None:
        skips = is_ours(name) and name != IN_BF16
        yield Check(name, DENSE, relative_error(out, dense), SKIPPING if skips else rounding)
        if name == skip_name(0):
            different = int((out.view(torch.int16) != dense.view(torch.int16)).sum())
            yield Check(name, "elements unlike our dense bit for bit", different, 0)
