"""What a call looks like: its outline, its form, its sizes; and what a call object was bound to.

This runs in every launch, so fields are fetched in one go by ``attrgetter``, and looped over only where they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from numbers import Real
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any

import torch

from .._call.arguments import OPTIONS, SIZES, TENSORS
from ..params import Params
from .prepared import Prepared
from .shortcut import Shortcut

MAX_OUTLINES = 1024  # kept; there are as many as a program has ways to write a call
_NAMES = (*OPTIONS, *SIZES, *TENSORS)
_FIELDS = attrgetter(*_NAMES)
# Note: no other types as keys. Decimal(1) == numpy.int64(1) raises, so a refused call would break a good one after it.
_OPTION_TYPES = (str, Real, tuple, NoneType)
_SIZES_AT, _TENSORS_AT, _WINDOW_AT = len(OPTIONS), len(OPTIONS) + len(SIZES), OPTIONS.index("window_size")


class Outline:
    """What calls have in common whose options are the same and which have the same tensors, if not their types."""

    __slots__ = ("names", "pick", "shortcut", "types", "window")

    def __init__(self, types: tuple[type, ...], window: object, values: tuple[object, ...]) -> None:
        self.types, self.window = types, window
        self.shortcut: Shortcut | None = None  # of the form that calls like this had last
        places = [index for index, value in enumerate(values) if isinstance(value, torch.Tensor)]
        self.names = tuple(_NAMES[index] for index in places)
        if self.names[:3] != ("q", "k", "v"):
            raise TypeError("q, k or v is not a tensor")
        self.pick: Callable[[tuple[object, ...]], tuple[torch.Tensor, ...]] = itemgetter(*places)


_all_outlines: dict[Hashable, Outline] = {}
_outlines: dict[Hashable, Outline] = {}  # by options alone, the one that came last


class Scan:
    """What the tensors of a call add to its outline: its form, its sizes, and their addresses.

    ``form`` holds everything that :func:`check_form` looks at: options, which tensors there are, and of each its type,
    device and rank. ``sizes`` holds all else that validation, dispatch and the plan look at: shapes, strides and hints
    about lengths. Neither holds addresses, device values or the value of a threshold.

    Raises:
        RuntimeError: a tensor has no memory of its own (it is sparse, for one); validation says which.
    """

    __slots__ = ("addresses", "form", "outline", "sizes", "tensors")

    def __init__(self, outline: Outline, values: tuple[Any, ...], tensors: tuple[torch.Tensor, ...]) -> None:
        """Looks at every tensor once; the arguments are what :func:`outline_of` and ``outline.pick`` returned."""
        self.outline, self.tensors = outline, tensors
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


def outline_of(params: Params) -> tuple[Outline, tuple[Any, ...]]:
    """What a call looks like but for its tensors, and the values of its fields.

    Numbers are keys together with their types: ``True`` equals 1, and is no number of keys.

    Raises:
        TypeError: q, k or v is not a tensor, or an option is of no type that any has; validation says which.
    """
    values = _FIELDS(params)
    options, types = values[:_SIZES_AT], tuple(map(type, values))
    outline = _outlines.get(options)
    if outline is None or outline.types != types or options[_WINDOW_AT] is not outline.window:
        outline = _other_outline(options, types, values)
    return outline, values


def _other_outline(options: tuple[object, ...], types: tuple[type, ...], values: tuple[object, ...]) -> Outline:
    """The outline of calls with these options, if it was not the one that came last, made if need be."""
    window = options[_WINDOW_AT]
    key = (options, types, *map(type, window))  # type: ignore[call-overload]
    outline = _all_outlines.get(key)
    if outline is None:
        if not all([isinstance(value, _OPTION_TYPES) for value in (*options, *window)]):  # type: ignore[misc]
            raise TypeError("an option of a type that none has")
        outline = Outline(types, window, values)
        if len(_all_outlines) >= MAX_OUTLINES:
            _all_outlines.clear()
            _outlines.clear()
        outline = _all_outlines.setdefault(key, outline)
    if type(window) is tuple and window is not outline.window:
        return outline  # equal to that of the outline, and of the same types, but another object: looked up every time
    _outlines[options] = outline
    return outline


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
