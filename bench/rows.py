"""``python -m bench rows``: prefill of many kinds, ours and the peers interleaved, with what must be reached.

Every contender is checked on the same tensors before it is timed. Rows of long calls get fewer rounds, so that the
whole table is done in minutes, in one run on one GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import prefill_calls
from .command import Command
from .peers import load_named
from .prefill_measure import ROW_MS, Bench, measure
from .prefill_table import case_table, summary
from .prefill_work import WORKS, Work
from .timing import CudaTimer

_REPEATS = 10


def _tflop(work: Work) -> str:
    return f"{work.flops / 1e12:.2f}"


def _bench(options: argparse.Namespace) -> Bench:
    makers, missing = load_named(prefill_calls.LOADERS, options.peers)
    row_ms = ROW_MS * options.repeats / _REPEATS  # who asks for more rounds gets more of all rows
    return Bench("cuda", CudaTimer(), options.repeats, makers, row_ms, missing)


COMMAND: Command[Work, Bench] = Command(
    "rows",
    __doc__,
    WORKS,
    tuple(prefill_calls.LOADERS),
    _REPEATS,
    ("TFLOP", _tflop),
    _bench,
    measure,
    case_table,
    summary,
)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON and PNG. Exit status 1 if an output was wrong or there is no GPU."""
    return COMMAND.main(arguments)
