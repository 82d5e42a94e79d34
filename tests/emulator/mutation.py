"""What a deliberate mistake in a kernel is, which headers hold them, and the cases that show them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.helpers.cases import Case

RESULT = "result"
CONSUMER, PRODUCER = "skimattn/sm90/prefill/consumer.cuh", "skimattn/core/producer.cuh"
KEY_TILES = "skimattn/core/key_tiles.cuh"
EPILOGUE, STORAGE = "skimattn/sm90/prefill/epilogue.cuh", "skimattn/sm90/prefill/storage.cuh"
DESCRIPTOR, SKIP = "skimattn/sm90/descriptor.cuh", "skimattn/core/skip.cuh"
MASK, SOFTMAX, SCHEDULER = "skimattn/core/mask.cuh", "skimattn/sm90/softmax.cuh", "skimattn/core/scheduler.cuh"
TILES = "skimattn/core/tile_range.cuh"
SKIP_STATS = "skimattn/core/skip_stats.cuh"

DENSE = Case(
    "mutation-dense", head_dim=128, head_dim_v=128, skip="dense", lens=((200, 500),), pattern="none", mask="causal"
)
STAT = Case("mutation-stat", skip="stat", lens=((300, 700),), pattern="alternating", mask="full")
CAUSAL = replace(STAT, name="mutation-causal", mask="causal")
RANDOM = replace(STAT, name="mutation-random", lens=((300, 1500),), pattern="random")
RANDOM_128 = replace(RANDOM, name="mutation-random-128", head_dim=128, head_dim_v=128)
RAGGED = replace(
    STAT, name="mutation-ragged", q_layout="ragged", kv_layout="ragged", lens=((100, 400), (70, 300)), pattern="tail"
)
PAGED = replace(DENSE, name="mutation-paged", kv_layout="nhd", page_size=48, lens=((70, 300), (70, 200)))
PAGED_STAT = replace(STAT, name="mutation-paged-stat", kv_layout="nhd", page_size=16, lens=((300, 700),))
SHARED_O = replace(DENSE, name="mutation-shared-o", head_dim=192, lens=((256, 300),), heads_q=4)
HEADS = replace(DENSE, name="mutation-heads", heads_q=4)
WINDOW = replace(DENSE, name="mutation-window", mask="window", window=(150, 20))
CHUNKED = replace(DENSE, name="mutation-chunked", mask="chunked", chunk=100, window=(40, 70))


@dataclass(frozen=True)
class Mutation:
    """Replaces ``old``, which must occur exactly once in ``header``, by ``new``; ``case`` shows it.

    ``moved``, if given, is also taken out: ``new`` holds it in its wrong place. ``kinds`` says by what it is caught: an
    ``EmulatorError.kind`` or, as ``result``, an answer unlike the oracle's.
    """

    name: str
    header: str
    old: str
    new: str
    case: Case
    kinds: tuple[str, ...]
    moved: str = ""

    def apply(self, header: str, text: str) -> str:
        """A ``source_override``; ``LookupError`` if the header no longer holds what is replaced."""
        if header != self.header:
            return text
        for piece in filter(None, (self.old, self.moved)):
            if (count := text.count(piece)) != 1:
                raise LookupError(f"{self.name}: expected {piece!r} once in {header} (got {count} times)")
        return (text.replace(self.moved, "") if self.moved else text).replace(self.old, self.new)
