"""``python -m bench prefill``: our kernels beside the peers, interleaved, on the same inputs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import machine, peers, plot, results, table
from .cases import Case, Session, run_case
from .inputs import BLOCK
from .names import SKIP_NOTHING, THRESHOLD
from .shape import DTYPES, MASKS, Shape
from .timing import CudaTimer

_LEAST_REPEATS, _REPEATS_16K = 8, 20


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(prog="python -m bench prefill", description=__doc__)
    made.add_argument("--seqlens", nargs="+", type=int, default=[16384, 65536])
    made.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.5, 0.75, 0.9], help="planted")
    made.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    made.add_argument("--shapes", nargs="+", metavar="MASK:SEQLEN", help="instead of every mask at every length")
    made.add_argument("--dtype", choices=DTYPES, default="bf16")
    made.add_argument("--heads-q", type=int, default=64)
    made.add_argument("--heads-kv", type=int, default=4)
    made.add_argument("--head-dim", type=int, default=128)
    made.add_argument("--repeats", type=int, help="rounds; default: 20 up to 16k, less for longer ones, at least 8")
    made.add_argument("--peers", nargs="*", choices=list(peers.LOADERS), default=list(peers.LOADERS), metavar="PEER")
    made.add_argument("--no-dense", action="store_true", help="leave out the N(0,1) cases")
    made.add_argument("--no-skip", action="store_true", help="leave out the planted cases and the skip kernels")
    made.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON and PNG files")
    return made


def pairs_of(options: argparse.Namespace) -> list[tuple[str, int]]:
    """(mask, sequence length) of every shape, in the order of measuring."""
    if not options.shapes:
        return [(mask, seqlen) for seqlen in options.seqlens for mask in options.masks]
    pairs = []
    for text in options.shapes:
        mask, _, seqlen = text.partition(":")
        if mask not in MASKS or not seqlen.isdigit():
            raise ValueError(f"--shapes: expected MASK:SEQLEN with a mask of {', '.join(MASKS)} (got {text!r})")
        pairs.append((mask, int(seqlen)))
    return pairs


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for, N(0,1) before planted; ``ValueError`` if a shape is not possible."""
    chosen = []
    for mask, seqlen in pairs_of(options):
        shape = Shape(seqlen, mask, options.heads_q, options.heads_kv, options.head_dim, options.dtype)
        if not options.no_dense:
            chosen.append(Case(shape, None, () if options.no_skip else SKIP_NOTHING))
        if not options.no_skip:
            if seqlen % BLOCK:
                raise ValueError(f"--seqlens: expected multiples of {BLOCK} for planted inputs (got {seqlen})")
            chosen += [Case(shape, sparsity, (THRESHOLD,)) for sparsity in options.sparsities]
    if not chosen:
        raise ValueError("--no-dense and --no-skip together leave nothing to measure")
    return chosen


def repeats_at(options: argparse.Namespace, seqlen: int) -> int:
    """Rounds for a sequence length."""
    return int(options.repeats or min(_REPEATS_16K, max(_LEAST_REPEATS, _REPEATS_16K * 16384 // seqlen)))


def measure(cases: Sequence[Case], session: Session, document: dict[str, Any], path: Path) -> bool:
    """Run the cases into ``document``, saving it after each; whether every check passed."""
    document["cases"] = []
    passed = True
    for case in cases:
        try:
            measured = run_case(case, session)
        finally:
            document["not_run"] = [asdict(item) for item in session.not_run]
            results.save(document, path)
        document["cases"].append(measured)
        results.save(document, path)
        passed &= all(check["passed"] for check in measured["checks"])
        print(table.case_table(measured), flush=True)
    return passed


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON and PNG. Exit status 1 if an output was wrong or there is no GPU."""
    options = parser().parse_args(arguments)
    try:
        cases = cases_of(options)
    except ValueError as error:
        parser().error(str(error))
    import torch

    if not torch.cuda.is_available():
        print("bench prefill: expected an NVIDIA GPU (torch sees none)", file=sys.stderr)
        return 1
    document = results.new_document("prefill", arguments)
    before = machine.gpu_state()
    makers, missing = peers.load(options.peers)
    session = Session(
        "cuda", CudaTimer(), lambda seqlen: repeats_at(options, seqlen), makers, machine.state_under_load, missing
    )
    document |= {"commit": machine.commit(), "versions": machine.versions(), "before": before, "after": None}
    name = torch.cuda.get_device_name()
    document |= {"gpu": name, "sm_count": torch.cuda.get_device_properties(0).multi_processor_count}
    path = results.place(options.out, document, name)
    print(f"{name}; {table.state_line(before)}; commit {document['commit']}", flush=True)
    passed = measure(cases, session, document, path)
    document["after"] = machine.gpu_state()
    results.finish(document)
    results.save(document, path)
    print(table.not_run_table(document["not_run"]))
    print(f"\n{path}\n{plot.draw(document, path.with_suffix('.png'))}")
    return 0 if passed else 1
