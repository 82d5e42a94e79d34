"""Decode steps of many texts at once: what one step costs on a GPU hardly depends on how many take it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from skimattn.integrations.transformers import phase
from skimattn.integrations.transformers._divergence import Divergence
from skimattn.integrations.transformers._dropped import Dropped, measuring
from skimattn.integrations.transformers.session import cache_argument
from skimattn.sparse import Outcome
from skimattn.sparse.policy import Phase, computed_dense

_KEPT = 2  # caches of batches
_TOKENS = 1 << 17  # of prompts that are computed at once, of all windows together


@dataclass(frozen=True)
class Steps:
    """What steps gave: nats of each token, and whether the likeliest token was the one, both ``[B, steps]``."""

    nats: torch.Tensor
    right: torch.Tensor


class Batches:
    """Predicts the last tokens of windows step by step behind a dense prompt, a batch of windows at a time.

    Args:
        model: of transformers, with attention of ours.
        length: tokens of a window; a sample of :meth:`__call__` is a batch of them, end to end.
        steps: last tokens that are predicted.
        dropped: tell dropped probability.
    """

    def __init__(self, model: Any, length: int, steps: int, *, dropped: bool = False) -> None:
        """Nothing is run yet."""
        self.model, self.length, self.steps, self._dropped = model, length, steps, dropped
        self._divergence = Divergence(model) if dropped else None
        self._caches: dict[tuple[int, ...], Any] = {}
        self._cache_name = cache_argument(model)

    def __call__(self, sample: Sequence[int], stage: Phase) -> Outcome:
        """As calibration wants it."""
        assert stage == "decode", "prompts are run by TextForward"
        if self._divergence is not None:
            with self._divergence.beginning(sample, stage) as is_first:
                if is_first:
                    self._outcome(sample)
        return self._outcome(sample)

    def _outcome(self, sample: Sequence[int]) -> Outcome:
        tokens = torch.tensor(list(sample), device=self.model.device).view(-1, self.length)
        with measuring(self.model) if self._dropped else nullcontext() as found:
            steps = self.run(tokens)
        masses, changed = Dropped.told(found, self.model)
        moved = None if self._divergence is None else self._divergence.mean()
        return Outcome(float(steps.nats.mean()), self.keys, masses, moved, changed)

    @property
    def keys(self) -> int:
        """In the middle of the steps, which thresholds are made of."""
        return self.length - self.steps - 1 + (self.steps + 1) // 2

    def run(self, tokens: torch.Tensor) -> Steps:
        """Step through the last tokens of windows ``[B, length]``."""
        cache, nats, right = self._prompt(tokens), [], []
        first = self.length - self.steps - 1
        for at in range(first, self.length - 1):
            logits = self._forward(tokens[:, at : at + 1], cache, "decode")[:, -1].float()
            if self._divergence is not None:
                rows = (at - first) * len(tokens)
                self._divergence.see(logits, rows, self.steps * len(tokens))
            nats.append(torch.nn.functional.cross_entropy(logits, tokens[:, at + 1], reduction="none"))
            right.append(logits.argmax(-1) == tokens[:, at + 1])
        return Steps(torch.stack(nats, 1).double().cpu(), torch.stack(right, 1).cpu())

    def _prompt(self, tokens: torch.Tensor) -> Any:
        """A cache with all but the last tokens of the windows in it, computed dense."""
        key = tuple(tokens.flatten().tolist())
        if key not in self._caches:
            while len(self._caches) >= _KEPT:
                del self._caches[next(iter(self._caches))]
            self._caches[key] = self._dense_cache(tokens[:, : self.length - self.steps - 1])
        return copy.deepcopy(self._caches[key])

    def _dense_cache(self, prompts: torch.Tensor) -> Any:
        import transformers

        cache = transformers.DynamicCache(config=self.model.config)
        size = max(_TOKENS // len(prompts), 1)
        with computed_dense(self.model):
            for start in range(0, prompts.shape[1], size):
                self._forward(prompts[:, start : start + size], cache, "prefill")
        return cache

    def _forward(self, ids: torch.Tensor, cache: Any, stage: Phase) -> torch.Tensor:
        with torch.no_grad(), phase(stage):
            out = self.model(ids, use_cache=True, logits_to_keep=1, **{self._cache_name: cache})
        logits: torch.Tensor = out.logits
        return logits
