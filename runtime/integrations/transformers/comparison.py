"""A sparsified model beside itself, dense, on the same texts: losses, logits, greedy tokens, skipped tiles, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import transformers

from ...errors import expected
from ...sparse.calibration.progress import Progress, silent
from ...sparse.calibration.runner import Sample
from ...sparse.counts import TileCounts
from ...sparse.model import disable, enable
from ...sparse.policy import PHASES, Phase, policies_of
from .session import Session, nats

T = TypeVar("T")
_ROWS = 1024  # of logits that are compared at once
Tiles = Mapping[Phase, Mapping[str, tuple[int, int]]]


@dataclass(frozen=True)
class Side:
    """One way to run a text.

    Attributes:
        loss: mean nats a token, of the prompt and of the tokens behind it.
        seconds: of all forwards of a phase; steps of greedy tokens are left out.
        greedy: tokens that followed the text.
    """

    loss: Mapping[Phase, float]
    seconds: Mapping[Phase, float]
    greedy: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A text both ways.

    Attributes:
        length: its tokens.
        largest: difference of logits, by phase.
    """

    length: int
    dense: Side
    sparse: Side
    largest: Mapping[Phase, float]

    def added(self, phase: Phase) -> float:
        """Nats a token that skipping adds to the loss."""
        return self.sparse.loss[phase] - self.dense.loss[phase]

    @property
    def parted(self) -> int | None:
        """The first greedy token, from 0, that is not the same; None: all are."""
        pairs = enumerate(zip(self.dense.greedy, self.sparse.greedy, strict=True))
        return next((index for index, (dense, sparse) in pairs if dense != sparse), None)


@dataclass(frozen=True)
class Comparison:
    """All texts, and (visited, skipped) tiles by phase and layer, of all texts together."""

    pairs: tuple[Pair, ...]
    tiles: Tiles

    @property
    def phases(self) -> list[Phase]:
        """Those that were run."""
        return [phase for phase in PHASES if all(phase in pair.dense.loss for pair in self.pairs)]


def compare(
    model: transformers.PreTrainedModel,
    samples: Sequence[Sample],
    *,
    new_tokens: int = 32,
    chunk: int | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Run texts dense and sparse: a prompt, its last tokens step by step as they stand, and then greedy ones.

    Prompts skip as they will where both phases have rules, so that decode starts from the cache that they leave. On a
    GPU tiles are counted in a pass of their own, since the kernels that count are slower, and one text is run before.

    Args:
        model: a sparsified one, with ``attn_implementation="skimattn"``.
        samples: texts as token ids.
        new_tokens: how many last tokens are predicted step by step, and how many greedy ones follow; 0: neither.
        chunk: tokens of a prompt that are computed at once; None: all.
        progress: is told how far it is.

    Raises:
        ArgumentError: a text is too short, or the model was not sparsified, or does not run on our attention.
    """
    for sample in samples:
        if len(sample) < new_tokens + 2:
            raise expected("samples", f"texts of at least {new_tokens + 2} tokens", len(sample))
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        for way in (disable, enable):
            way(model)
            _pass(model, samples[0], new_tokens, chunk)
    collectors = {name: TileCounts() for name in policies_of(model)}
    pairs = []
    for index, sample in enumerate(samples):
        progress(2 * index, 2 * len(samples), f"{len(sample)} tokens, dense")
        disable(model)
        dense, wanted = _pass(model, sample, new_tokens, chunk)
        enable(model)
        progress(2 * index + 1, 2 * len(samples), f"{len(sample)} tokens, sparse")
        with _counting(model, collectors):
            sparse, got = _pass(model, sample, new_tokens, chunk)
        if on_gpu:
            sparse, got = _pass(model, sample, new_tokens, chunk)
        pairs.append(Pair(len(sample), dense, sparse, _differences(wanted, got)))
    found = Comparison(tuple(pairs), {phase: _counts(collectors, phase) for phase in PHASES})
    _check_counts(model, found)
    return found


def _check_counts(model: transformers.PreTrainedModel, found: Comparison) -> None:
    """Refuse a model that does not run on our attention: there would be no difference to find."""
    for phase in found.phases:
        if not found.tiles[phase] and any(policy.rule(phase) for policy in policies_of(model).values()):
            said = f"one that counts tiles in {phase}; does it run with attention of skimattn?"
            raise expected("model", said, str(model.config._attn_implementation))


_Logits = dict[Phase, list[torch.Tensor]]


def _pass(
    model: transformers.PreTrainedModel, sample: Sample, new_tokens: int, chunk: int | None
) -> tuple[Side, _Logits]:
    """One text one way, and its logits in pieces."""
    split = len(sample) - new_tokens - 1 if new_tokens else len(sample)
    session, watch = Session(model, cached=bool(new_tokens) or chunk is not None), _Watch(model.device)
    logits: _Logits = {"prefill": []}
    prompt = session.prompt(sample[:split], chunk)
    while (piece := watch.timed("prefill", partial(next, prompt, None))) is not None:
        logits["prefill"].append(piece)
    loss: dict[Phase, float] = {"prefill": _loss(logits["prefill"], sample[1 : split + 1])}
    greedy: list[int] = []
    if new_tokens:
        logits["decode"] = []
        for token in sample[split:-1]:
            logits["decode"].append(watch.timed("decode", partial(session.step, token))[None])
        loss["decode"] = _loss(logits["decode"], sample[split + 1 :])
        token = sample[-1]
        for _ in range(new_tokens):
            token = int(session.step(token).argmax())
            greedy.append(token)
    return Side(loss, watch.seconds, tuple(greedy)), logits


class _Watch:
    """Seconds by phase, of the device and not only of the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[Phase, float] = {}

    def timed(self, phase: Phase, call: Callable[[], T]) -> T:
        """What a call gives, when the device has done it."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _loss(pieces: Sequence[torch.Tensor], labels: Sequence[int]) -> float:
    """Mean nats; there may be a row more than labels."""
    total, at = 0.0, 0
    for piece in pieces:
        total += float(nats(piece, labels[at : at + len(piece)]))
        at += len(piece)
    return total / len(labels)


def _differences(wanted: _Logits, got: _Logits) -> dict[Phase, float]:
    largest = {}
    for phase, pieces in wanted.items():
        pairs = zip(pieces, got[phase], strict=True)
        rows = ((a[at : at + _ROWS], b[at : at + _ROWS]) for a, b in pairs for at in range(0, len(a), _ROWS))
        largest[phase] = max(float((a.float() - b.float()).abs().max()) for a, b in rows)
    return largest


@contextmanager
def _counting(model: torch.nn.Module, collectors: Mapping[str, TileCounts]) -> Iterator[None]:
    policies = policies_of(model)
    before = {name: policy.collector for name, policy in policies.items()}
    try:
        for name, policy in policies.items():
            policy.collector = collectors[name]
        yield
    finally:
        for name, policy in policies.items():
            policy.collector = before[name]


def _counts(collectors: Mapping[str, TileCounts], phase: Phase) -> dict[str, tuple[int, int]]:
    counted = {}
    for name, collector in collectors.items():
        visited, skipped = (int(one) for one in collector.total(phase))
        if visited:
            counted[name] = visited, skipped
    return counted
