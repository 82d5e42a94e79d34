"""How the tensors of a call look: all of them compared in one call with some that were checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .._call.checks import MAX_STRIDE, TMA_BYTES
from .._call.problem import Problem, shares_offsets

_LOOKS = 4  # kept of one form: as many ways to lay out its tensors
_Dims = tuple[int | None, ...]
_Guards: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)


class Elsewhere(Exception):
    """This call is for others to launch, or to refuse; nothing happened yet."""


def _never(*_tensors: torch.Tensor) -> bool:
    return False


def alike(tensors: Sequence[torch.Tensor], sizes: Sequence[_Dims], strides: Sequence[_Dims]) -> Callable[..., bool]:
    """What says of as many other tensors whether they look like ``tensors``.

    That is: class, dtype, device, rank, whether they are negated or require gradients, and the given ``sizes`` and
    ``strides`` (None = any). It may say no where they do: what torch would do with them, in inference mode for one,
    has to be the same, and none may come twice. So a no means that they have to be looked at one by one.

    This is what torch.compile asks before it runs what it compiled; asking tensors for all of it takes three times as
    long.
    """
    # Note: the guards do not care whether gradients are recorded, which decides whether such tensors may come.
    twice = len(set(map(id, tensors))) < len(tensors)
    if _Guards is None or twice or any([tensor.requires_grad for tensor in tensors]):
        return _never
    check: Callable[..., bool] = _Guards(
        *tensors, dynamic_dims_sizes=list(map(list, sizes)), dynamic_dims_strides=list(map(list, strides))
    ).check
    return check


class Side(NamedTuple):
    """What tensors that look alike have in common of q, k, v or out; strides in bytes."""

    columns: int
    heads: int
    row: int
    head: int
    legal: int  # a stride where there is one index only
    size: int  # of an element, in bytes
    rows_at: int  # which dimension the rows are


class Look(NamedTuple):
    """How the tensors of a call looked that was checked."""

    alike: Callable[..., bool]
    q: Side
    k: Side
    v: Side


class Looks:
    """The looks of one form's calls on one device, ``recent`` those that came last.

    In a ragged batch one tensor may be the offsets of queries and keys, in all calls of the form. Looks leave out the
    second one then, the tensor number ``twin_at`` (0 where there is none).
    """

    def __init__(self, names: tuple[str, ...], problem: Problem, ordinal: int) -> None:
        """``problem`` is a call of that form, whose tensors are called ``names``."""
        params = problem.params
        self.recent: tuple[Look, ...] = ()
        self.twin_at = names.index("cu_seqlens_k") if shares_offsets(params) else 0
        self._ordinal = ordinal
        self._dtypes = [getattr(params, name).dtype for name in names]
        heads_q, heads_kv, columns = problem.heads_q, problem.heads_kv, problem.head_dim
        hnd = problem.paged and params.kv_layout == "HND"
        outer = (None,) * (params.q.dim() - 2)
        pages: _Dims = (None, problem.page_size) if problem.paged else (None,) * (params.k.dim() - 2)
        keys: _Dims = (None, heads_kv, problem.page_size) if hnd else (*pages, heads_kv)
        self._sizes: list[_Dims] = [(*outer, heads_q, columns), (*keys, columns), (*keys, problem.head_dim_v)]
        self._places = [(len(outer) - 1, len(outer)), *[(2, 1) if hnd else (len(pages) - 1, len(pages))] * 2]
        self._strides: list[_Dims] = [()] * 3  # of those after q, k and v
        for name in names[3:]:
            if name == "out":
                self._sizes.append((*outer, heads_q, problem.head_dim_v))
                self._strides.append((None,) * params.q.dim())
            elif name == "lse":
                self._sizes.append((*outer, heads_q))
                self._strides.append((None,) * (params.q.dim() - 1))
            elif name == "page_table":
                self._sizes.append((None, None))
                self._strides.append((None, 1))
            else:
                rows = getattr(params, name).dim() == 1
                self._sizes.append((None,) if rows else (None, heads_q))
                self._strides.append((1,) if rows else (heads_q, 1))

    def examine(self, tensors: Sequence[torch.Tensor]) -> Look:
        """The look of tensors that look like none of the recent ones.

        Raises:
            Elsewhere: they are not acceptable, or not in the ordinary way.
        """
        for tensor, dtype, sizes in zip(tensors, self._dtypes, self._sizes, strict=True):
            if tensor.dtype is not dtype or tensor.is_neg() or tensor.get_device() != self._ordinal:
                raise Elsewhere
            _compare(sizes, tensor.shape)
        if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors]):
            raise Elsewhere
        for tensor, strides in zip(tensors[3:], self._strides[3:], strict=True):
            _compare(strides, tensor.stride())
        sides = [_side(tensor, *places) for tensor, places in zip(tensors[:3], self._places, strict=True)]
        all_strides = [_inner_strides(tensor) for tensor in tensors[:3]] + self._strides[3:]
        rows = list(zip(tensors, self._sizes, all_strides, strict=True))
        if self.twin_at:
            del rows[self.twin_at]
        look = Look(alike(*zip(*rows, strict=True)), *sides)
        if look.alike is not _never:
            self.recent = (look, *self.recent[: _LOOKS - 1])
        return look


def _compare(wanted: _Dims, found: tuple[int, ...]) -> None:
    if len(found) != len(wanted) or any([want not in (None, got) for want, got in zip(wanted, found, strict=True)]):
        raise Elsewhere


def _inner_strides(tensor: torch.Tensor) -> _Dims:
    """Of all dimensions but requests or pages."""
    strides = tensor.stride()
    return strides if len(strides) == 3 else (None, *strides[1:])


def _side(tensor: torch.Tensor, rows_at: int, heads_at: int) -> Side:
    """Strides have to be legal even where there is one index, since others that look alike may have more."""
    strides, size = tensor.stride(), tensor.element_size()
    columns, heads = tensor.shape[-1], tensor.shape[heads_at]
    row, head, legal = strides[rows_at] * size, strides[heads_at] * size, columns * size
    if strides[-1] != 1 or (row | head) % TMA_BYTES or (row | head) >= MAX_STRIDE:
        raise Elsewhere
    return Side(columns, heads, row, head if heads > 1 else legal, legal, size, rows_at)
