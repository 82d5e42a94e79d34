"""What a call looks like: which form it has, and its sizes; and what a call object was bound to.

This runs in every launch, so fields are fetched in one go by ``attrgetter``, and looped over only where they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter, itemgetter
from typing import Any

import torch

from .._call.arguments import OPTIONS, SIZES, TENSORS
from ..params import UNLIMITED, Params
from .prepared import Prepared

MAX_OUTLINES = 1024  # kept; there are as many as a program has ways to write a call
_NAMES = (*OPTIONS, *SIZES, *TENSORS)
_FIELDS = attrgetter(*_NAMES)
_SIZES_AT, _TENSORS_AT, _WINDOW_AT = len(OPTIONS), len(OPTIONS) + len(SIZES), OPTIONS.index("window_size")


class _Outline:
    """What calls have in common whose options are the same and which have the same tensors, if not their types."""

    __slots__ = ("names", "pick")

    def __init__(self, values: tuple[object, ...]) -> None:
        places = [index for index, value in enumerate(values) if isinstance(value, torch.Tensor)]
        self.names = tuple(_NAMES[index] for index in places)
        if self.names[:3] != ("q", "k", "v"):
            raise TypeError("q, k or v is not a tensor")
        self.pick: Callable[[tuple[object, ...]], tuple[torch.Tensor, ...]] = itemgetter(*places)


_outlines: dict[Hashable, _Outline] = {}


class Scan:
    """One pass over a call: its form, its sizes, and its tensors with their addresses.

    ``form`` holds everything that :func:`check_form` looks at: options, which tensors there are, and of each its type,
    device and rank. ``sizes`` holds all else that validation, dispatch and the plan look at: shapes, strides and hints
    about lengths. Neither holds addresses, device values or the value of a threshold.

    Numbers are keys together with their types: ``True`` equals 1, and is no number of keys.

    Raises:
        AttributeError: q, k, v or an optional tensor is not a tensor; validation says which.
        RuntimeError: a tensor has no memory of its own (it is sparse, for one); validation says which.
        TypeError: likewise, or an option cannot be hashed.
    """

    __slots__ = ("addresses", "form", "names", "sizes", "tensors")

    def __init__(self, params: Params) -> None:
        """Looks at every field of ``params`` once."""
        values = _FIELDS(params)
        key: tuple[Any, ...] = (values[:_SIZES_AT], *map(type, values))
        if values[_WINDOW_AT] is not UNLIMITED:
            key += (*map(type, params.window_size),)
        outline = _outlines.get(key)
        if outline is None:
            outline = _new_outline(key, values)
        self.names, self.tensors = outline.names, outline.pick(values)
        form: list[object] = [outline]
        sizes: list[object] = [values[_SIZES_AT:_TENSORS_AT]]
        self.addresses: list[int] = []
        for tensor in self.tensors:
            shape = tensor.shape
            form += tensor.dtype, tensor.device, len(shape), tensor.is_neg()
            sizes += shape, tensor.stride()
            self.addresses.append(tensor.data_ptr())
        self.form, self.sizes = tuple(form), tuple(sizes)

    def needs_gradient(self) -> bool:
        """Whether a tensor of the call requires a gradient, and gradients are recorded."""
        return torch.is_grad_enabled() and any([x.requires_grad for x in self.tensors])


def _new_outline(key: Hashable, values: tuple[object, ...]) -> _Outline:
    if len(_outlines) >= MAX_OUTLINES:
        _outlines.clear()
    return _outlines.setdefault(key, _Outline(values))


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
