"""One text in a language model: its prompt at once or in chunks, then token by token, as an engine serves it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from ...sparse.policy import Phase
from ._phase import phase

_ROWS = 1024  # of logits that are in float32 at once


class Session:
    """What was fed so far stands in the cache, unless ``cached`` is False: then a prompt is all there is.

    Every forward says its stage, so that short chunks of a prompt count as prefill.
    """

    def __init__(self, model: transformers.PreTrainedModel, cache: Any = None, *, cached: bool = True) -> None:
        """Begin, or go on from a cache that an earlier session made; it is changed then."""
        known = inspect.signature(model.forward).parameters
        self.cache = cache
        self._model, self._cached = model, cached
        self._name = cache_argument(model)
        self._can_leave_out = "logits_to_keep" in known

    def prompt(
        self, tokens: Sequence[int], chunk: int | None = None, *, last_only: bool = False
    ) -> Iterator[torch.Tensor]:
        """Feed a prompt; yields logits ``[rows, vocabulary]`` of each chunk.

        Args:
            tokens: of the prompt.
            chunk: how many at once; None: all.
            last_only: logits of the last row of a chunk do; models that cannot leave out the others give all.
        """
        size = chunk or len(tokens)
        for start in range(0, len(tokens), size):
            yield self._fed(tokens[start : start + size], "prefill", last_only)

    def step(self, token: int) -> torch.Tensor:
        """Feed a token that was generated; logits ``[vocabulary]`` of the next one."""
        return self._fed([token], "decode", False)[-1]

    def _fed(self, tokens: Sequence[int], stage: Phase, last_only: bool) -> torch.Tensor:
        arguments: dict[str, Any] = {"use_cache": self._cached}
        if self.cache is not None:
            arguments[self._name] = self.cache
        if last_only and self._can_leave_out:
            arguments["logits_to_keep"] = 1
        ids = torch.tensor([list(tokens)], device=self._model.device)
        with torch.no_grad(), phase(stage):
            out = self._model(ids, **arguments)
        if self._cached:
            self.cache = out[self._name]
        logits: torch.Tensor = out.logits[0]
        return logits


def cache_argument(model: transformers.PreTrainedModel) -> str:
    """What a model's forward calls its cache: releases have renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def nats(logits: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """The sum of the negative log-likelihoods of labels, float64, on the device; nothing is waited for.

    Args:
        logits: ``[rows, vocabulary]``.
        labels: token ids; one for each row, or fewer for the first rows.
    """
    wanted = torch.tensor(list(labels), dtype=torch.long, device=logits.device)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(labels), _ROWS):
        rows = logits[start : min(start + _ROWS, len(labels))].float()
        total += torch.nn.functional.cross_entropy(rows, wanted[start : start + _ROWS], reduction="sum").double()
    return total
