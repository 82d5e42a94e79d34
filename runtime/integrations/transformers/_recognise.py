"""Which mask a mask function of transformers is, exactly; what is none of the known ones is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch.compiler import is_compiling
from transformers import masking_utils

from ...errors import expected
from ._compact import Kind
from ._probe import probe

MaskFunction = Callable[..., Any]
_HINT = "attn_implementation='sdpa' or 'eager' computes it"


@dataclass(frozen=True)
class Pattern:
    """A mask without its lengths.

    Args:
        kind: of the mask.
        size: of its window or chunk, as :class:`Mask` has it.
        padding: of ``chunked``, ``[B]``: at which key a request's first chunk begins.
        segments: ``[B, S]``: tokens with equal numbers are one sequence; None: a row is one.
    """

    kind: Kind
    size: int = 0
    padding: torch.Tensor | None = None
    segments: torch.Tensor | None = None


def _code(maker: str, *arguments: object) -> object:
    """What functions that ``masking_utils`` makes have in common; None where this release has no such maker."""
    made = getattr(masking_utils, maker, None)
    return None if made is None else made(*arguments).__code__


_BOTH = _code("and_masks", masking_utils.causal_mask_function)
_WINDOW = _code("sliding_window_overlay", 1)
_AROUND = _code("sliding_window_bidirectional_overlay", 1)
_CHUNK = _code("chunked_overlay", 1, None)
_PACKED = _code("packed_sequence_mask_function", None)
_REMAPPED = _code("remap_positions_for_packed_sequence", masking_utils.causal_mask_function, None)


def recognise(function: MaskFunction, *, local: bool = False) -> Pattern:
    """The mask that a function says which transformers hands to a mask interface.

    Args:
        function: what it hands over.
        local: whether it says that this is a mask with a window or chunks.

    Raises:
        ArgumentError: it is none that kernels compute, or a custom one.
    """
    if function is masking_utils.causal_mask_function:
        return Pattern("causal")
    if function is getattr(masking_utils, "bidirectional_mask_function", None):
        return Pattern("full")
    if is_compiling():
        return _while_traced(function, local=local)
    if function.__code__ is not _BOTH:
        _refuse(function)
    parts = list(_cells(function)["mask_functions"])
    if len(parts) == 2 and _made_by(parts[1]) is _PACKED:
        return _packed(parts)
    return _pair(parts)


def _pair(parts: list[MaskFunction]) -> Pattern:
    """A window or a chunk, and the mask that it narrows."""
    if len(parts) == 2:
        overlay, inner = parts
        made, causal = _made_by(overlay), inner is masking_utils.causal_mask_function
        if causal and made is _WINDOW:
            return Pattern("window", _cells(overlay)["sliding_window"])
        if causal and made is _CHUNK:
            return Pattern("chunked", _cells(overlay)["chunk_size"], padding=_cells(overlay)["left_padding"])
        if made is _AROUND and made is not None and recognise(inner).kind == "full":
            return Pattern("around", _cells(overlay)["sliding_window"])
    return _refuse(*parts)


def _packed(parts: list[MaskFunction]) -> Pattern:
    """Sequences packed in a row; release 5 counts positions within each, which the mask of one does not show."""
    inner, packing = parts
    if _REMAPPED is not None and _made_by(inner) is _REMAPPED:
        inner = _cells(inner)["mask_function"]
    return replace(recognise(inner), segments=_cells(packing)["packed_sequence_mask"])


def _while_traced(function: MaskFunction, *, local: bool) -> Pattern:
    """Closures of functions that are made while code is traced cannot be read, but called."""
    if local and function.__code__ is _BOTH:
        window = probe(function)
        if window is not None:
            return Pattern("window", window)
    wanted = "a plain causal or sliding-window mask where it is made in code that torch.compile traces"
    hint = "without a cache pass attention_mask, which says that no sequences are packed; others are made outside"
    raise expected("mask_function", f"{wanted} ({hint})", function.__qualname__)


def _made_by(function: MaskFunction) -> object:
    return getattr(function, "__code__", None)


def _cells(function: MaskFunction) -> dict[str, Any]:
    closure = getattr(function, "__closure__", None) or ()
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in closure), strict=True))


def _refuse(*functions: MaskFunction) -> NoReturn:
    names = ", ".join(getattr(function, "__qualname__", repr(function)) for function in functions)
    known = "a causal, bidirectional, sliding-window or chunked mask, packed or not"
    raise expected("mask_function", f"{known}, without or_mask_function, and_mask_function or blocks ({_HINT})", names)
