"""What a call looks like: its outline, its form, its sizes; and what a call object was bound to.

This runs in every launch. So an outline that is known is found by a function that was made for it, and does nothing but
compare each field with what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from numbers import Real
from operator import attrgetter
from types import NoneType

import torch

from .._call.arguments import OPTIONS, SIZES, TENSORS
from .._call.problem import shares_offsets
from ..params import Params
from .look import alike
from .prepared import Prepared
from .shortcut import Shortcut

MAX_OUTLINES = 1024  # kept; there are as many as a program has ways to write a call
_RECENT = 8  # that are tried before one is looked up; as many as a model has ways to write a call
_NAMES = (*OPTIONS, *SIZES, *TENSORS)
_FIELDS, _SIZES = attrgetter(*_NAMES), attrgetter(*SIZES)
# Note: no other types as keys. Decimal(1) == numpy.int64(1) raises, so a refused call would break a good one after it.
_OPTION_TYPES = (str, Real, tuple, NoneType)
_WINDOW_AT = OPTIONS.index("window_size")
_Tensors = tuple[torch.Tensor, ...]


class Outline:
    """What calls have in common whose options are the same and which have the same tensors, if not their types.

    ``match`` returns the tensors of such a call, those called ``names``, and None for others. It may miss one whose
    window is another tuple, since comparing it would have to look into it.
    """

    __slots__ = ("match", "names", "shortcut")

    def __init__(self, values: tuple[object, ...], shared: bool) -> None:
        self.shortcut: Shortcut | None = None  # of the form that calls like this had last
        self.names = tuple(name for name, value in zip(_NAMES, values, strict=True) if isinstance(value, torch.Tensor))
        if self.names[:2] != ("q", "k"):
            raise TypeError("q or k is not a tensor")
        self.match = _matcher(self.names, values, shared)


def _matcher(names: tuple[str, ...], values: tuple[object, ...], shared: bool) -> Callable[[Params], _Tensors | None]:
    """What :class:`Outline` calls ``match``, for calls whose fields are like ``values``.

    ``shared``: whether one tensor has to be the offsets of queries and keys, or none may be.

    It is one expression, made as dataclasses make theirs: a sixth of the time of fetching all values and their types.
    """
    known: dict[str, object] = {}
    conditions = []
    for name, value in zip(_NAMES, values, strict=True):
        same, of_type = f"p.{name} is {name}_value", f"type(p.{name}) is {name}_type"
        known[f"{name}_type"] = type(value)
        if name in OPTIONS:  # the others are no part of an outline, which keeps no tensors
            known[f"{name}_value"] = value
            equal = value is not None and name != "window_size"
            conditions.append(f"({same} or {of_type} and p.{name} == {name}_value)" if equal else same)
        else:
            conditions.append(f"p.{name} is None" if value is None else of_type)
    if "cu_seqlens_q" in names:
        conditions.append(f"p.cu_seqlens_k is {'' if shared else 'not '}p.cu_seqlens_q")
    tensors = ", ".join([f"p.{name}" for name in names])
    match: Callable[[Params], _Tensors | None] = eval(
        f"lambda p: ({tensors}) if {' and '.join(conditions)} else None", known
    )
    return match


_all_outlines: dict[Hashable, Outline] = {}
_recent: tuple[Outline, ...] = ()  # those that came last


class Scan:
    """What the tensors of a call add to its outline: its form, its sizes, and their addresses.

    ``form`` holds everything that :func:`check_form` looks at: options, which tensors there are, and of each its type,
    device and rank. ``sizes`` holds all else that validation, dispatch and the plan look at: shapes, strides and hints
    about lengths. Neither holds addresses, device values or the value of a threshold.

    Raises:
        RuntimeError: a tensor has no memory of its own (it is sparse, for one); validation says which.
    """

    __slots__ = ("addresses", "form", "outline", "sizes", "tensors")

    def __init__(self, params: Params, outline: Outline, tensors: _Tensors) -> None:
        """Looks at every tensor once; the arguments are a call and what :func:`outline_of` returned for it."""
        self.outline, self.tensors = outline, tensors
        form: list[object] = [outline]
        sizes: list[object] = [_SIZES(params)]
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


def outline_of(params: Params) -> tuple[Outline, _Tensors]:
    """What a call looks like but for its tensors, and these.

    Raises:
        TypeError: q, k or v is not a tensor, or an option is of no type that any has; validation says which.
    """
    for outline in _recent:
        tensors = outline.match(params)
        if tensors is not None:
            return outline, tensors
    return _other_outline(params)


def _other_outline(params: Params) -> tuple[Outline, _Tensors]:
    """The same for calls that are not like the last ones. The outline is made if need be.

    Numbers are keys together with their types: ``True`` equals 1, and is no number of keys.
    """
    global _recent
    values = _FIELDS(params)
    options, window = values[: len(OPTIONS)], values[_WINDOW_AT]
    shared = shares_offsets(params)
    key = (options, tuple(map(type, values)), *map(type, window), shared)
    outline = _all_outlines.get(key)
    if outline is None:
        if not all([isinstance(value, _OPTION_TYPES) for value in (*options, *window)]):
            raise TypeError("an option of a type that none has")
        outline = Outline(values, shared)
        if len(_all_outlines) >= MAX_OUTLINES:
            _all_outlines.clear()
            _recent = ()
        outline = _all_outlines.setdefault(key, outline)
    if outline not in _recent:
        _recent = (outline, *_recent[: _RECENT - 1])
    return outline, tuple([getattr(params, name) for name in outline.names])


class Bound:
    """A validated call and the prepared launch that runs it."""

    __slots__ = ("_alike", "_found", "_layouts", "_tensors", "addresses", "prepared", "threshold", "token")

    def __init__(self, scan: Scan, prepared: Prepared, token: object, threshold: float) -> None:
        """Holds the tensors of the call, not the call, which holds this."""
        each = {id(tensor): tensor for tensor in scan.tensors}.values()  # one may serve for two arguments
        self._tensors, self._found = tuple(each), [tensor.data_ptr() for tensor in each]
        self._layouts = [layout for tensor in each for layout in (tensor.shape, tensor.stride())]
        self._alike = alike(self._tensors, self._layouts[::2], self._layouts[1::2])
        self.addresses = scan.addresses
        self.prepared, self.token, self.threshold = prepared, token, threshold

    def holds(self) -> bool:
        """Whether no tensor was moved, resized or made to require a gradient since."""
        tensors = self._tensors
        if not self._alike(*tensors) and not self._hold_one_by_one():
            return False
        return [tensor.data_ptr() for tensor in tensors] == self._found

    def _hold_one_by_one(self) -> bool:
        layouts: list[tuple[int, ...]] = []
        for tensor in self._tensors:
            layouts += tensor.shape, tensor.stride()
        gradients = torch.is_grad_enabled() and any([tensor.requires_grad for tensor in self._tensors])
        return layouts == self._layouts and not gradients
