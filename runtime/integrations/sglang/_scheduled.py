"""What SGLang's scheduler knows of the batch under way, and back ends do not: hooks on two of its functions.

A worker computes one batch at a time, so there is one of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Scheduled:
    """The batch that was made last.

    Args:
        requests: in it.
        decoding: of them, at its end, that decode in a batch of prompts.
    """

    requests: int
    decoding: int


class Ending(Protocol):
    """Who is told that a forward is over."""

    def end(self) -> None:
        """It is."""


_last: Scheduled | None = None
_told: list[Ending] = []


def note(result: Any, cls: type, batch: Any, *arguments: Any, **named: Any) -> None:
    """``ForwardBatch.init_new`` has made ``result`` of a batch of the scheduler."""
    del cls, arguments, named
    global _last
    _last = Scheduled(result.batch_size, len(batch.decoding_reqs or ()))


def over(result: Any, *arguments: Any, **named: Any) -> None:
    """``ModelRunner.forward`` has returned."""
    del result, arguments, named
    for one in _told:
        one.end()


def tell(one: Ending) -> None:
    """Have it told when forwards are over."""
    _told.append(one)


def last() -> Scheduled | None:
    """The batch that was made last; None: only those of warming up."""
    return _last
