"""A ``forward`` for calibration: runs texts through a language model of transformers, in either phase."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import transformers

from ...errors import expected
from ...sparse.calibration.runner import Outcome, Sample
from ...sparse.policy import Phase, policies_of
from ._divergence import Divergence
from ._dropped import Dropped, measuring
from .session import Session, nats

_KEPT_BYTES = 4 << 30  # of caches of prompts


class TextForward:
    """What :func:`skimattn.sparse.calibrate` takes as ``forward``.

    *prefill*: the text is a prompt, computed at once or in chunks; the loss is that of all next tokens. *decode*: all
    but the last tokens are a prompt, and these are then predicted one by one from the cache; the loss is theirs. While
    prompts are dense, as when decode alone is tried, their caches are kept and used again, 4 GiB of them.

    Args:
        model: of transformers, with ``attn_implementation="skimattn"``.
        new_tokens: how many last tokens decode predicts.
        chunk: tokens of a prompt that are computed at once; None: all.
        dropped: tell dropped probability, and what it changes, which computes every call that skips densely as well.
        divergence: tell how far predictions move, too: of each text what it predicts dense, at up to 1024 places, is
            computed once and kept. Decode compares the steps alone, after the same prompt.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        *,
        new_tokens: int = 32,
        chunk: int | None = None,
        dropped: bool = False,
        divergence: bool = False,
    ) -> None:
        """Nothing is run yet; raises ``ArgumentError`` for a number below 1."""
        for name, value in (("new_tokens", new_tokens), ("chunk", chunk)):
            if value is not None and value < 1:
                raise expected(name, "1 or more", value)
        self._model, self._new_tokens, self._chunk, self._dropped = model, new_tokens, chunk, dropped
        self._divergence = Divergence(model) if divergence else None
        self._prompts: dict[tuple[int, ...], Any] = {}
        self._free = _KEPT_BYTES

    def __call__(self, sample: Sample, phase: Phase) -> Outcome:
        """Run a text; its loss in nats a token, its keys, and what was dropped where that was asked for.

        Raises:
            ArgumentError: the text is too short.
        """
        least = 2 if phase == "prefill" else self._new_tokens + 2
        if len(sample) < least:
            raise expected("sample", f"at least {least} tokens in {phase}", len(sample))
        run = self._prefill if phase == "prefill" else self._decode
        if self._divergence is not None:
            with self._divergence.beginning(sample, phase) as is_first:
                if is_first:
                    run(sample)
        return run(sample)

    def _prefill(self, sample: Sample) -> Outcome:
        session, at = Session(self._model, cached=self._chunk is not None), 0
        total: torch.Tensor | float = 0.0
        with self._measuring() as dropped:
            for logits in session.prompt(sample, self._chunk):
                self._see(logits, at, len(sample))
                total = total + nats(logits, sample[at + 1 : at + 1 + len(logits)])
                at += len(logits)
        return self._outcome(float(total) / (len(sample) - 1), prompt_length(len(sample), self._chunk), dropped)

    def _decode(self, sample: Sample) -> Outcome:
        prompt = sample[: -self._new_tokens - 1]
        session = Session(self._model, self._after(prompt))
        total: torch.Tensor | float = 0.0
        with self._measuring() as dropped:
            for at in range(len(prompt), len(sample) - 1):
                logits = session.step(sample[at])[None]
                self._see(logits, at - len(prompt), self._new_tokens)
                total = total + nats(logits, sample[at + 1 : at + 2])
        return self._outcome(float(total) / self._new_tokens, len(prompt) + (self._new_tokens + 1) // 2, dropped)

    def _after(self, prompt: Sample) -> Any:
        """A cache with the prompt in it, of which the caller may do what it likes."""
        key = tuple(prompt)
        if key not in self._prompts or self._skips_in_prompts():
            session = Session(self._model)
            for _ in session.prompt(prompt, self._chunk, last_only=True):
                pass
            size = _bytes_of(session.cache)
            if self._skips_in_prompts() or not 0 < size <= self._free:
                return session.cache
            self._prompts[key] = session.cache
            self._free -= size
        return copy.deepcopy(self._prompts[key])

    def _skips_in_prompts(self) -> bool:
        return any(policy.rule("prefill") for policy in policies_of(self._model).values())

    def _see(self, logits: torch.Tensor, at: int, rows: int) -> None:
        if self._divergence is not None:
            self._divergence.see(logits, at, rows)

    def _measuring(self) -> Any:
        return measuring(self._model) if self._dropped else nullcontext()

    def _outcome(self, loss: float, length: int, dropped: Dropped | None) -> Outcome:
        moved = None if self._divergence is None else self._divergence.mean()
        masses, changed = Dropped.told(dropped, self._model)
        return Outcome(loss, length, masses, moved, changed)


def prompt_length(tokens: int, chunk: int | None) -> int:
    """The keys that thresholds of a prompt are made of: of one in chunks their mean in the logarithm, by tiles."""
    if chunk is None or chunk >= tokens:
        return tokens
    ends = [min(start + chunk, tokens) for start in range(0, tokens, chunk)]
    weights = [end * end - before * before for before, end in zip([0, *ends], ends, strict=False)]
    mean = sum(weight * math.log(end) for weight, end in zip(weights, ends, strict=True)) / sum(weights)
    return round(math.exp(mean))


def _bytes_of(cache: Any) -> int:
    """Of the tensors of a cache; 0 where its layers are not known."""
    layers: Sequence[Any] = getattr(cache, "layers", ())
    held = (value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
    return sum(value.nbytes for value in held)
