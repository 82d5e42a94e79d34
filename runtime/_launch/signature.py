"""What a call looks like: which form it has, and its sizes; and what a call object was bound to.

This runs in every launch, so fields are fetched in one go by ``attrgetter``, and looped over only where they are given.
"""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter, itemgetter
from typing import Any

import torch

from .._call.arguments import OPTIONS, SIZES, TENSORS
from ..params import UNLIMITED, Params
from .prepared import Prepared

MAX_OUTLINES = 1024  # kept; there are as many as a program has ways to write a call
_OPTIONS, _SIZES, _TENSORS = attrgetter(*OPTIONS), attrgetter(*SIZES), attrgetter(*TENSORS)
_outlines: dict[Hashable, tuple[tuple[str, ...], Any]] = {}


class Scan:
    """One pass over a call: its form, its sizes, and its tensors with their addresses.

    ``form`` holds everything that :func:`check_form` looks at: options, which tensors there are, and of each its type,
    device and rank. ``sizes`` holds all else that validation, dispatch and the plan look at: shapes, strides and hints
    about lengths. Neither holds addresses, device values or the value of a threshold.

    Numbers are keys together with their types: ``True`` equals 1, and is no number of keys.

    Raises:
        AttributeError: q, k, v or an optional tensor is not a tensor; validation says which.
        RuntimeError: a tensor has no memory of its own (it is sparse, for one); validation says which.
        TypeError: an option cannot be hashed.
    """

    __slots__ = ("addresses", "form", "names", "sizes", "tensors")

    def __init__(self, params: Params) -> None:
        """Looks at every field of ``params`` once."""
        options, lengths, values = _OPTIONS(params), _SIZES(params), _TENSORS(params)
        outline: tuple[Any, ...] = (options, *map(type, options), *map(type, values))
        if params.window_size is not UNLIMITED:
            outline += (*map(type, params.window_size),)
        names, pick = _outlines.get(outline) or _new_outline(outline, values)
        tensors = pick(values)
        self.names, self.tensors = names, tensors
        self.form = (outline, *[trait for x in tensors for trait in (x.dtype, x.device, x.ndim, x.is_neg())])
        self.sizes = (lengths, *map(type, lengths), *[size for x in tensors for size in (x.shape, x.stride())])
        self.addresses = [x.data_ptr() for x in tensors]

    def needs_gradient(self) -> bool:
        """Whether a tensor of the call requires a gradient, and gradients are recorded."""
        return torch.is_grad_enabled() and any([x.requires_grad for x in self.tensors])


def _new_outline(outline: Hashable, values: tuple[object, ...]) -> tuple[tuple[str, ...], Any]:
    """Which tensors a call has, and what picks them from all there could be."""
    if len(_outlines) >= MAX_OUTLINES:
        _outlines.clear()
    places = [index for index, value in enumerate(values) if isinstance(value, torch.Tensor)]
    if places[:3] != [0, 1, 2]:
        raise TypeError("q, k or v is not a tensor")
    found = _outlines[outline] = tuple(TENSORS[index] for index in places), itemgetter(*places)
    return found


class Bound:
    """A validated call and the prepared launch that runs it."""

    __slots__ = ("_looks", "addresses", "prepared", "threshold", "token")

    def __init__(self, scan: Scan, prepared: Prepared, token: object, threshold: float) -> None:
        """Holds the tensors of the call, not the call, which holds this."""
        sizes = scan.sizes[-2 * len(scan.tensors) :]
        self._looks = tuple(zip(scan.tensors, scan.addresses, sizes[::2], sizes[1::2], strict=True))
        self.addresses = scan.addresses
        self.prepared, self.token, self.threshold = prepared, token, threshold

    def holds(self) -> bool:
        """Whether no tensor was moved, resized or made to require a gradient since."""
        gradients = torch.is_grad_enabled()
        for tensor, address, shape, strides in self._looks:
            if tensor.data_ptr() != address or tensor.shape != shape or tensor.stride() != strides:
                return False
            if gradients and tensor.requires_grad:
                return False
        return True
