"""``python -m bench decode``: decode steps, ours and the peers interleaved, with what must be reached.

Calls are timed as replays of CUDA graphs, short ones many in a graph, in turn on as many caches as make 1 GB, which L2
does not hold; ours and the peers alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from . import decode_calls
from .command import Command
from .decode_measure import Bench, measure
from .decode_table import case_table, summary
from .decode_work import WORKS, Work
from .timing import CudaTimer, graphed

_READ_ELEMENTS = 1 << 30  # of float32: 4 GB
_REPEATS = 20


def _megabytes(work: Work) -> str:
    return f"{work.bytes / 1e6:.0f}"


def _bench(options: argparse.Namespace) -> Bench:
    makers, missing = decode_calls.load(options.peers)
    memory = torch.randn(_READ_ELEMENTS, device="cuda")
    read_bytes = memory.numel() * memory.element_size()
    return Bench("cuda", CudaTimer(), options.repeats, graphed, makers, memory.amax, read_bytes, not_run=missing)


COMMAND: Command[Work, Bench] = Command(
    "decode",
    __doc__,
    WORKS,
    tuple(decode_calls.LOADERS),
    _REPEATS,
    ("MB", _megabytes),
    _bench,
    measure,
    case_table,
    summary,
)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON and PNG. Exit status 1 if an output was wrong or there is no GPU."""
    return COMMAND.main(arguments)
