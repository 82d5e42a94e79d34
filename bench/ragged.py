"""``python -m bench ragged``: batches of many or uneven requests, beside uniform ones and FlashAttention-3."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import skimattn
import torch

from . import machine, results, table
from .cases import rounded
from .checks import ROUNDING, Check, attended, relative_error, sampled_rows
from .contender import Contender, contender, kernel_of
from .names import RAGGED, UNIFORM
from .peers import NotRun, Varlen, fa3_varlen, reason_of
from .shape import drawn_lengths
from .timing import CudaTimer, Summary, Timer, interleave, speed_over

_REPEATS = 20
_SAMPLED_REQUESTS = 5


@dataclass(frozen=True)
class Batch:
    """Self-attention of one request for each of ``lens``, in bf16."""

    label: str
    lens: tuple[int, ...]
    mask: str
    heads_q: int
    heads_kv: int
    head_dim: int

    @property
    def uniform(self) -> bool:
        """Whether a uniform batch does the same."""
        return len({*self.lens}) == 1

    @property
    def causal(self) -> bool:
        """Whether a row sees only the keys up to its own."""
        return self.mask == "causal"

    @property
    def flops(self) -> float:
        """By the convention of :class:`bench.shape.Shape`, summed over the requests."""
        full = 4.0 * self.heads_q * self.head_dim * sum(length**2 for length in self.lens)
        return full / 2 if self.causal else full


BATCHES = (
    Batch("80000 of 16 rows", (16,) * 80000, "full", 16, 16, 64),
    Batch("80000 of 16 rows, 2 heads", (16,) * 80000, "full", 2, 2, 64),  # the order has less to hide behind
    Batch("20000 windows of 64 rows", (64,) * 20000, "full", 16, 16, 80),  # vision encoders
    Batch("1000 of 1024 rows", (1024,) * 1000, "full", 12, 12, 64),
    Batch("4000 packed texts, 16 to 512 rows", drawn_lengths(16, 512, 4000), "full", 12, 12, 64),  # embedding models
    Batch("64 requests, 256 to 1024 rows", drawn_lengths(256, 1024, 64), "causal", 64, 4, 128),
    Batch("12 requests, 64 to 8192 rows", (*drawn_lengths(64, 8192, 10), 64, 8192), "causal", 64, 4, 128),
)


@dataclass(frozen=True)
class Data:
    """``q`` [total, Hq, D], ``k`` and ``v`` [total, Hkv, D], all N(0,1); ``offsets`` int32 [B + 1]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    offsets: torch.Tensor


def data_of(batch: Batch, device: str) -> Data:
    """The tensors of a batch."""
    generator = torch.Generator(device=device).manual_seed(0)
    total = sum(batch.lens)

    def draw(heads: int) -> torch.Tensor:
        size = (total, heads, batch.head_dim)
        return torch.randn(size, device=device, generator=generator, dtype=torch.bfloat16)

    offsets = torch.tensor([0, *accumulate(batch.lens)], dtype=torch.int32, device=device)
    return Data(draw(batch.heads_q), draw(batch.heads_kv), draw(batch.heads_kv), offsets)


def contenders(batch: Batch, data: Data, varlen: Varlen | None) -> dict[str, Contender]:
    """Our kernel on the ragged batch, on the uniform one where there is one, and FlashAttention-3 where it is there."""
    longest = max(batch.lens)
    made = [contender(RAGGED, _ragged(batch, data))]
    if batch.uniform:
        made.append(contender(UNIFORM, _uniform(batch, data)))
    if varlen is not None:
        arguments = (data.q, data.k, data.v, data.offsets, data.offsets, longest, longest, batch.causal)
        made.append(Contender("fa3", lambda: varlen(*arguments)))
    return {item.name: item for item in made}


def _ragged(batch: Batch, data: Data) -> skimattn.Params:
    longest = max(batch.lens)
    return skimattn.Params(
        data.q,
        data.k,
        data.v,
        cu_seqlens_q=data.offsets,
        cu_seqlens_k=data.offsets,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        mask=batch.mask,
        out=torch.full_like(data.q, float("nan")),
    )


def _uniform(batch: Batch, data: Data) -> skimattn.Params:
    shape = (len(batch.lens), batch.lens[0])
    q, k, v = (tensor.view(*shape, *tensor.shape[1:]) for tensor in (data.q, data.k, data.v))
    return skimattn.Params(q, k, v, mask=batch.mask, out=torch.full_like(q, float("nan")))


def check(batch: Batch, data: Data, outputs: dict[str, torch.Tensor]) -> Iterator[Check]:
    """Outputs written everywhere and finite, and near float64 on sampled rows of sampled requests."""
    spans = [span for span in pairwise(data.offsets.tolist()) if span[0] < span[1]]
    sampled = {spans[int(at)] for at in np.linspace(0, len(spans) - 1, _SAMPLED_REQUESTS)}
    sampled.add(max(spans, key=lambda span: span[1] - span[0]))
    for name, out in outputs.items():
        yield Check(name, "elements that are not finite", int((~torch.isfinite(out)).sum()), 0)
        worst = max(_error(batch, data, out, *span) for span in sampled)
        yield Check(name, "float64 on sampled rows", worst, ROUNDING)


def _error(batch: Batch, data: Data, out: torch.Tensor, start: int, end: int) -> float:
    rows = torch.tensor(sampled_rows(end - start), device=out.device)
    ends = rows if batch.causal else None
    wanted = attended(data.q[start + rows], data.k[start:end], data.v[start:end], ends)
    return relative_error(out[start + rows], wanted)


def measure(
    batch: Batch, device: str, timer: Timer, repeats: int, varlen: Varlen | None, not_run: list[NotRun]
) -> dict[str, Any]:
    """Check and time one batch; the result is plain data for the result file."""
    data = data_of(batch, device)
    items = contenders(batch, data, varlen)
    outputs = {}
    for name, item in list(items.items()):
        try:
            outputs[name] = item.call().view(data.q.shape)
        except Exception as error:  # a peer that refuses the batch must not end the run
            if item.params is not None:
                raise
            not_run.append(NotRun(name, batch.label, reason_of(error)))
            del items[name]
    checks = [*check(batch, data, outputs)]
    times = interleave({name: item.call for name, item in items.items()}, repeats, timer)
    found = {name: kernel_of(item.params) for name, item in items.items() if item.params is not None}
    return {
        "case": f"{batch.label}, {batch.mask} bf16 q{batch.heads_q}/kv{batch.heads_kv}/d{batch.head_dim}",
        "requests": len(batch.lens),
        "rows_in_all": sum(batch.lens),
        "kernels": found,
        "rows": [_row(batch, name, samples) for name, samples in times.items()],
        "comparisons": [
            {"of": RAGGED, "over": name, "speed": rounded(speed_over(times[RAGGED], times[name]))}
            for name in times
            if name != RAGGED
        ],
        "checks": [item.plain for item in checks],
    }


def _row(batch: Batch, name: str, samples: Sequence[float]) -> dict[str, Any]:
    milliseconds = Summary.of(samples)
    return {"name": name, "ms": rounded(milliseconds), "tflops": round(batch.flops / milliseconds.median / 1e9, 1)}


def batch_table(case: dict[str, Any]) -> str:
    """The table of one batch. Speeds in parentheses: 10th to 90th percentile over rounds."""
    speeds = {item["over"]: table.ratio(item["speed"]) for item in case["comparisons"]}
    body = [("", "ms", "p10-p90", "n", "TFLOP/s", "our ragged over it")]
    for row in case["rows"]:
        ms = row["ms"]
        spread = f"{ms['p10']:.3f}-{ms['p90']:.3f}"
        cells = (f"{ms['median']:.3f}", spread, str(ms["n"]), f"{row['tflops']:.1f}")
        body.append((row["name"], *cells, speeds.get(row["name"], "")))
    failed = [item for item in case["checks"] if not item["passed"]]
    lines = [f"\n== {case['case']}", table.columns(body), f"checks: {len(case['checks']) - len(failed)} passed"]
    lines += [f"FAILED: {item['of']}: {item['against']}: {item['value']:g} > {item['limit']:g}" for item in failed]
    return "\n".join(lines)


def _varlen(not_run: list[NotRun]) -> Varlen | None:
    try:
        return fa3_varlen()
    except Exception as error:  # a foreign library may fail in any way, and must not end the run
        not_run.append(NotRun("fa3", "anywhere", reason_of(error)))
        return None


def run(
    batches: Sequence[Batch],
    document: dict[str, Any],
    save: Callable[[], object],
    timer: Timer,
    repeats: int,
    device: str,
) -> bool:
    """Measure the batches into ``document``, saving it after each; whether every check passed."""
    not_run: list[NotRun] = []
    varlen = _varlen(not_run)
    document["cases"] = []
    for batch in batches:
        case = measure(batch, device, timer, repeats, varlen, not_run)
        document["cases"].append(case)
        document["not_run"] = [asdict(item) for item in not_run]
        save()
        print(batch_table(case), flush=True)
    return all(item["passed"] for case in document["cases"] for item in case["checks"])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON. Exit status 1 if an output was wrong or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench ragged", description=__doc__)
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="rounds")
    parser.add_argument("--only", default="", help="batches whose label holds this text")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    chosen = [batch for batch in BATCHES if options.only in batch.label]
    if not chosen:
        parser.error(f"--only: expected part of one of {', '.join(repr(batch.label) for batch in BATCHES)}")
    if not torch.cuda.is_available():
        print("bench ragged: expected an NVIDIA GPU (torch sees none)", file=sys.stderr)
        return 1
    document = results.new_document("ragged", arguments)
    name = torch.cuda.get_device_name()
    document |= {"gpu": name, "commit": machine.commit(), "versions": machine.versions(), "before": machine.gpu_state()}
    path = results.place(options.out, document, name)
    passed = run(chosen, document, lambda: results.save(document, path), CudaTimer(), options.repeats, "cuda")
    document["after"] = machine.gpu_state()
    results.finish(document)
    results.save(document, path)
    print(f"{table.not_run_table(document['not_run'])}\n\n{path}")
    return 0 if passed else 1
