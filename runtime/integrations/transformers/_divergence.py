"""How far predictions of a model that skips are from those of the same model, dense: Kullback-Leibler, in nats.

It needs no labels, is never below 0, and says with few tokens what losses say with many: what skipping adds to a loss
is the divergence and, besides, what labels happen to make of every change, which cancels out over many texts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import transformers

from ...sparse.calibration.runner import Sample
from ...sparse.policy import Phase, computed_dense

MOST = 1024  # places of a text that are compared
_ROWS = 256  # of them that are in float32 at once


class Divergence:
    """Keeps what texts predict dense, and compares.

    Args:
        model: whose policies are switched off for the dense runs.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        """Nothing is kept yet."""
        self._model = model
        self._dense: dict[tuple[Phase, tuple[int, ...]], list[torch.Tensor]] = {}
        self._now: list[torch.Tensor] = []  # what this text predicted dense, in the order in which it comes
        self._keeping = False
        self._seen, self._sum, self._places = 0, torch.zeros((), dtype=torch.float64), 0

    @contextmanager
    def beginning(self, sample: Sample, phase: Phase) -> Iterator[bool]:
        """Runs that follow are of this text. Yields whether it has to be run dense first, inside this context."""
        key = phase, tuple(sample)
        self._keeping = key not in self._dense
        self._now = self._dense.setdefault(key, [])
        try:
            with computed_dense(self._model) if self._keeping else nullcontext():
                yield self._keeping
        except BaseException:
            if self._keeping:  # a part of a text is none
                del self._dense[key]
            raise
        finally:
            self._keeping = False
            self._reset()

    def see(self, logits: torch.Tensor, at: int, rows: int) -> None:
        """Logits ``[some, vocabulary]`` of rows from ``at`` on, of ``rows`` in all; in order."""
        every = -(-rows // MOST)
        picked = logits[-at % every :: every]
        if self._keeping:
            self._now.append(picked.clone())
            return
        wanted = self._now[self._seen]
        self._seen += 1
        for start in range(0, len(picked), _ROWS):
            dense, got = (one[start : start + _ROWS].float().log_softmax(-1) for one in (wanted, picked))
            self._sum = self._sum.to(got.device) + (dense.exp() * (dense - got)).sum().double()
        self._places += len(picked)

    def mean(self) -> float | None:
        """Over the places of the text that was seen; waits for the device. None: it was run dense, to be kept."""
        found = None if self._keeping else float(self._sum) / max(self._places, 1)
        self._reset()
        return found

    def _reset(self) -> None:
        self._seen, self._sum, self._places = 0, torch.zeros((), dtype=torch.float64), 0
