"""``python -m bench host``: host microseconds of enqueueing one small call, ours and the peers', interleaved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import skimattn
import torch

from . import machine, peers, results, table
from .cases import rounded
from .contender import call_of
from .host_decode import decode_rows
from .host_shapes import new_shapes
from .inputs import Inputs, normal
from .names import REPEATED, THRESHOLD
from .peers import NotRun, reason_of
from .shape import Shape
from .timing import Call, HostTimer, Summary, Timer, interleave

_SHAPE = Shape(128, "causal", heads_q=4, heads_kv=1)


def our_calls(inputs: Inputs, shape: Shape) -> dict[str, Call]:
    """Our ways to launch, each as a caller would write it in a loop."""
    q, k, v = inputs.q, inputs.k, inputs.v
    given, skipping = call_of(inputs, shape), call_of(inputs, shape, THRESHOLD)
    fresh = skimattn.Params(q, k, v, mask=shape.mask)
    out = torch.empty_like(q)
    return {
        REPEATED: partial(skimattn.launch, given),
        "launch(params) with a threshold, out given": partial(skimattn.launch, skipping),
        "launch(params), new out": partial(skimattn.launch, fresh),
        "launch(Params(...)), out given": lambda: skimattn.launch(skimattn.Params(q, k, v, mask=shape.mask, out=out)),
        "attention(...), new out": lambda: skimattn.attention(q, k, v, causal=shape.causal),
    }


def peer_calls(makers: dict[str, peers.Maker], inputs: Inputs, shape: Shape, not_run: list[NotRun]) -> dict[str, Call]:
    """The dense call of each peer that accepts the shape; the others go to ``not_run``."""
    calls: dict[str, Call] = {}
    for name, make in makers.items():
        try:
            call = make(inputs, shape, None)[0].call
            call()
            calls[name] = call
        except Exception as error:  # a peer that refuses must not end the run
            not_run.append(NotRun(name, shape.label, reason_of(error)))
    return calls


def measure(calls: dict[str, Call], rounds: int, timer: Timer) -> list[dict[str, object]]:
    """Rows of the result file: microseconds per call over rounds."""
    times = interleave(calls, rounds, timer)
    return [{"name": name, "us": rounded(Summary.of(samples))} for name, samples in times.items()]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON. Exit status 1 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench host", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--launches", type=int, default=200, help="per round and kind of call; the queue holds 1024")
    parser.add_argument("--peers", nargs="*", choices=list(peers.LOADERS), default=list(peers.LOADERS), metavar="PEER")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench host: expected an NVIDIA GPU (torch sees none)", file=sys.stderr)
        return 1
    document = results.new_document("host", arguments)
    inputs = normal(_SHAPE, "cuda")
    makers, not_run = peers.load(options.peers)
    calls = our_calls(inputs, _SHAPE) | peer_calls(makers, inputs, _SHAPE, not_run)
    calls |= new_shapes("cuda") | decode_rows("cuda")
    small = torch.ones(64, device="cuda")
    calls["tensor.add_(1)"] = lambda: small.add_(1)
    name = torch.cuda.get_device_name()
    document |= {"gpu": name, "commit": machine.commit(), "versions": machine.versions(), "shape": _SHAPE.label}
    document["launches_per_sample"] = options.launches
    document["rows"] = measure(calls, options.rounds, HostTimer(torch.cuda.synchronize, options.launches))
    document["not_run"] = [asdict(item) for item in not_run]
    results.finish(document)
    path = results.place(options.out, document, name)
    results.save(document, path)
    print(host_table(document["rows"]) + "\n" + table.not_run_table(document["not_run"]) + f"\n\n{path}")
    return 0


def host_table(rows: Sequence[dict[str, dict[str, float]]]) -> str:
    """The rows as a table."""
    body = [("host time of one call", "us", "min", "p10-p90", "n")]
    for row in rows:
        us = row["us"]
        spread = f"{us['p10']:.2f}-{us['p90']:.2f}"
        body.append((str(row["name"]), f"{us['median']:.2f}", f"{us['min']:.2f}", spread, str(us["n"])))
    return table.columns(body)
