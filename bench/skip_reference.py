"""Is what ``bench skip`` counts and computes what the reference does? At reduced size, which the CPU can compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import skimattn
import torch
from skimattn._select.dispatch import REFERENCE_VARIABLE

from . import decode_work
from .checks import ROUNDING, ROUNDING_8_BITS, Check, relative_error
from .decode_inputs import Cache
from .names import DENSE, skip_name, stat_name
from .prefill_inputs import Data
from .skip_calls import Bench, Decode, Params, Prefill, Subject, data_of_layer, subject_of
from .skip_work import Call, Work

REFERENCE = "reference at reduced size"
_KEYS, _BATCH = 1024, 2
_ODD_TILES = 0.005  # of inputs that are not planted: scores that lie next to a threshold
D = TypeVar("D", Data, Cache)


def reduced(call: Call) -> Call:
    """The same kind of call, small enough for the reference."""
    batch, keys = min(call.batch, _BATCH), min(max(call.lens), _KEYS)
    rows = 1 if isinstance(call, decode_work.Work) else keys
    sizes: dict[str, Any] = {"lens": (keys,) * batch, "rows": (rows,) * batch}
    return replace(call, **sizes, heads_q=call.heads_q // call.heads_kv, heads_kv=1)


def beside_reference(work: Work, bench: Bench) -> Iterator[Check]:
    """The production kernels' outputs, dense and at the largest threshold, and the stat kernel's counts there."""
    threshold = work.points[-1].threshold
    there = _reduced_subject(work, bench)
    here = _on_cpu(there)
    eight = "e4m3" in (getattr(work.call, "dtype", ""), getattr(work.call, "cache", ""))
    with _reference_of(there.calls(threshold)[0]):
        for name, value in ((DENSE, None), (skip_name(threshold), threshold)):
            [got], [wanted] = (subject.outputs(subject.calls(value)) for subject in (there, here))
            limit = ROUNDING_8_BITS if eight else ROUNDING
            yield Check(name, REFERENCE, relative_error(got.cpu(), wanted), limit)
        counts, wanted_counts = (_counted(subject, threshold) for subject in (there, here))
    odd = (0, 0 if work.inputs == "planted" else int(_ODD_TILES * wanted_counts[0]))
    for part, count, wanted_count, most in zip(("visited", "skipped"), counts, wanted_counts, odd, strict=True):
        yield Check(stat_name(threshold), f"{part} tiles of the {REFERENCE}", abs(count - wanted_count), most)


def _reduced_subject(work: Work, bench: Bench) -> Subject:
    small = reduced(work.call)
    if work.layers is None or isinstance(small, decode_work.Work):
        return subject_of(work, bench, small)
    q, k, v = work.layers.read(work.layers.numbers[0], bench.device)
    rows, heads = small.rows[0], small.heads_q
    return Prefill(
        small, [data_of_layer((q[:rows, :heads].contiguous(), k[:rows, :1].contiguous(), v[:rows, :1].contiguous()))]
    )


def _on_cpu(subject: Subject) -> Subject:
    if isinstance(subject, Decode):
        tables = tuple(table.cpu() for table in subject.cache.tables)
        return Decode(subject.call, replace(_moved(subject.cache), tables=tables), subject.bench)
    assert isinstance(subject, Prefill)
    return Prefill(subject.call, [_moved(data) for data in subject.datas])


def _moved(tensors: D) -> D:
    """With its fields that are tensors on the CPU."""
    held = {field.name: getattr(tensors, field.name) for field in fields(tensors)}
    moved: dict[str, Any] = {name: value.cpu() for name, value in held.items() if isinstance(value, torch.Tensor)}
    return replace(tensors, **moved)


def _counted(subject: Subject, threshold: float) -> list[int]:
    [params] = subject.calls(threshold, count=True)
    subject.outputs([params])
    assert params.stats is not None
    counts: list[int] = params.stats.tolist()
    return counts


@contextmanager
def _reference_of(params: Params) -> Iterator[None]:
    """CPU tensors are computed as the architecture would that these calls run on."""
    spec = skimattn.explain(params).spec
    assert spec is not None
    before = os.environ.get(REFERENCE_VARIABLE)
    os.environ[REFERENCE_VARIABLE] = spec.arch
    try:
        yield
    finally:
        if before is None:
            del os.environ[REFERENCE_VARIABLE]
        else:
            os.environ[REFERENCE_VARIABLE] = before
