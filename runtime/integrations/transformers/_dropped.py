"""Attention that also tells what was dropped: calls that skip are computed densely too, and their LSEs compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ...api import launch
from ...sparse.stats import dropped_from_lse
from ._attention import as_transformers_has_it, params_of
from ._register import computed_by

_NAME = "skimattn_dropped"


@dataclass
class Dropped:
    """Sums over rows of the share of probability that they lost, by attention module."""

    sums: dict[torch.nn.Module, torch.Tensor] = field(default_factory=dict)
    rows: dict[torch.nn.Module, int] = field(default_factory=dict)

    def add(self, module: torch.nn.Module, lost: torch.Tensor) -> None:
        """Add the rows of a call, ``[..., Hq]``."""
        by_head = lost.double().flatten(0, -2)
        self.sums[module] = self.sums.get(module, 0) + by_head.sum(0)
        self.rows[module] = self.rows.get(module, 0) + len(by_head)

    def means(self, model: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
        """By the name of the layer, of each query head, float64 ``[Hq]``; waits for the device."""
        return {
            name: (self.sums[module] / self.rows[module]).cpu().numpy()
            for name, module in model.named_modules()
            if module in self.sums
        }


_measured = Dropped()


@contextmanager
def measuring(model: transformers.PreTrainedModel) -> Iterator[Dropped]:
    """Calls of the model in this context are measured; one model at a time, since attention functions have no state."""
    global _measured
    _measured = Dropped()
    with computed_by(model, _NAME, _attention):
        yield _measured


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """As ``attention``, of requests whose rows are all in use."""
    params = params_of(module, query, key, value, attention_mask, **arguments)
    if params.skip_softmax_threshold is None:
        out = launch(params)
        assert isinstance(out, torch.Tensor)
        return as_transformers_has_it(out, query, value), None
    out, kept = launch(replace(params, return_lse=True))
    _, dense = launch(replace(params, return_lse=True, skip_softmax_threshold=None, stats=None, out=None))
    _measured.add(module, dropped_from_lse(kept, dense, params.sinks))
    return as_transformers_has_it(out, query, value), None
