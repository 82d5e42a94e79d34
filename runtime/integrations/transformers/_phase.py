"""Which stage the requests of a forward are in: what was said, or else a rule of the numbers that are known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.compiler import is_compiling

from ...errors import expected
from ...sparse.policy import PHASES, Phase

DECODE_ROWS = 64  # more new tokens than this to a request are a chunk of a prompt
_HOOKED = "_skimattn_stage"


@dataclass(frozen=True)
class _Said:
    """By ``phase`` and by ``generate``; the first counts."""

    by_caller: Phase | None = None
    by_generate: Phase | None = None


_NOTHING = _Said()


class _Traced:
    """What holds while code is traced: torch.compile cannot read a ContextVar, but guards on a plain attribute."""

    said = _NOTHING


_said: ContextVar[_Said] = ContextVar("skimattn_phase", default=_NOTHING)


@contextmanager
def _saying(said: _Said) -> Iterator[None]:
    token, before = _said.set(said), _Traced.said
    _Traced.said = said
    try:
        yield
    finally:
        _Traced.said = before
        _said.reset(token)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Forwards in this context, of this thread or task, are in that stage. Forwards that are traced: of any thread.

    Args:
        name: ``"prefill"`` or ``"decode"``.

    Raises:
        ArgumentError: it is neither.
    """
    if name not in PHASES:
        raise expected("name", " or ".join(map(repr, PHASES)), repr(name))
    with _saying(_Said(name, _said.get().by_generate)):
        yield


def phase_of(rows: int, cached: int | torch.Tensor) -> Phase:
    """The stage of requests with ``rows`` queries each behind ``cached`` keys; a tensor: not known on the host."""
    said = _Traced.said if is_compiling() else _said.get()
    if said.by_caller is not None:
        return said.by_caller
    if said.by_generate is not None:
        return said.by_generate
    behind = isinstance(cached, torch.Tensor) or cached > 0
    return "decode" if behind and rows <= DECODE_ROWS else "prefill"


def follow_generate(mixin: type) -> None:
    """Have the prefill of ``generate`` say so.

    Args:
        mixin: transformers' ``GenerationMixin``. Where it has neither of the two methods that prefill, or where a model
            has its own, the rule of :func:`phase_of` stays.
    """
    for name in ("_prefill", "_prefill_chunking"):
        method = getattr(mixin, name, None)
        if method is not None and not hasattr(method, _HOOKED):
            setattr(mixin, name, _as_prefill(method))


def _as_prefill(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def prefill(*args: Any, **arguments: Any) -> Any:
        # An assistant's rounds begin like a prompt, but continue what it has generated.
        if arguments.get("is_first_iteration") is False:
            return method(*args, **arguments)
        with _saying(_Said(_said.get().by_caller, "prefill")):
            return method(*args, **arguments)

    setattr(prefill, _HOOKED, True)
    return prefill
