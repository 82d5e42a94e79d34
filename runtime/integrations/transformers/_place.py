"""Which keys and rows of each request are in use, from positions and padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import expected
from .._device import may_read
from ._compact import COLUMNS, Form
from ._recognise import Pattern


@dataclass(frozen=True)
class Place:
    """Where a forward stands.

    Args:
        batch: requests.
        rows: queries of each.
        keys: what attention will be given, used or not.
        position: of the first query; a tensor: known on the device only.
        key: position of the first key.
        device: of the mask.
    """

    batch: int
    rows: int
    keys: int
    position: int | torch.Tensor
    key: int
    device: torch.device


@dataclass(frozen=True)
class Used:
    """``numbers`` int32 ``[B, 4]`` as a mask has them, and bool ``[B]``: whether padding lies between tokens."""

    numbers: torch.Tensor
    broken: torch.Tensor


def on_host(pattern: Pattern, place: Place, position: int) -> tuple[Form, torch.Tensor]:
    """Form and numbers where all requests are alike: nothing is computed on the device if all keys are in use."""
    end = place.keys if pattern.kind == "full" else position - place.key + place.rows
    if pattern.kind == "around" and end != place.keys:
        _refuse_around(f"{place.keys} keys and queries that end at {end}")
    first = 0
    if pattern.kind == "chunked" and place.key > 0:  # the first key is not where a chunk begins
        first = max(0, position // pattern.size * pattern.size - place.key)
    form: Form = "ranges" if first else "whole" if end == place.keys else "ends"
    values = (first, end, 0, place.rows)
    columns = [torch.full((place.batch,), value, dtype=torch.int32, device=place.device) for value in values]
    return form, torch.stack(columns, dim=1) if form != "whole" else columns[0][:, None].expand(-1, COLUMNS)


def on_device(pattern: Pattern, place: Place, padding: torch.Tensor | None) -> Used:
    """First key, end of the keys, first row and rows in use of each request.

    ``padding`` is bool ``[B, keys]``, where there are tokens; None: everywhere.
    """
    if padding is None:
        last = torch.full((place.batch,), place.keys, device=place.device)
        first, broken = torch.zeros_like(last), torch.zeros_like(last, dtype=torch.bool)
    else:
        last = (padding * torch.arange(1, place.keys + 1, device=place.device)).amax(dim=1)
        first = torch.where(last > 0, padding.int().argmax(dim=1), last)
        broken = last - first != padding.sum(dim=1)
    end, from_row, rows = last, torch.zeros_like(last), torch.full_like(last, place.rows)
    if pattern.kind != "full":
        row = place.position - place.key  # the key that the first query stands at
        from_row = (first - row).clamp(0, place.rows)
        rows = (last - row).clamp(0, place.rows) - from_row
        end = last.clamp(max=row + place.rows)
    if pattern.kind == "chunked" and place.key > 0:
        first = torch.maximum(first, _start_of_chunk(pattern, place, last))
    return Used(torch.stack((torch.minimum(first, end), end, from_row, rows), dim=1).int(), broken)


def _start_of_chunk(pattern: Pattern, place: Place, like: torch.Tensor) -> torch.Tensor:
    """The key at which the chunk of the first query begins: chunks are counted from there on."""
    begin = torch.zeros_like(like) if pattern.padding is None else pattern.padding.to(like)
    into = (place.position - begin).clamp(min=0)
    return begin + into // pattern.size * pattern.size - place.key


def form_of(pattern: Pattern, place: Place, used: Used, *, padded: bool) -> tuple[Form, int | torch.Tensor]:
    """The simplest form that says it all, and the position of the first query if it can be known."""
    if not may_read(place.device):
        if pattern.kind == "around":
            _refuse_around("a mask that is made in code that is traced or captured, of padded rows or a static cache")
        torch._assert_async(~used.broken.any(), _BROKEN)
        if not padded:
            return "ranges" if pattern.kind == "chunked" and place.key > 0 else "ends", place.position
        return "ranges" if pattern.kind == "full" else "ranges_rows", place.position
    first, end, _, rows = used.numbers.unbind(1)
    looks = (used.broken.any(), (first > 0).any(), (end < place.keys).any(), (rows < place.rows).any())
    position = first.new_zeros((), dtype=torch.long) + place.position
    broken, starts, ends, fewer, at = torch.stack([*(look.long() for look in looks), position]).tolist()
    if broken:
        raise expected("attention_mask", _BROKEN, f"{int(used.broken.sum())} rows with padding between tokens")
    if pattern.kind == "around" and at - place.key + place.rows != place.keys:
        _refuse_around(f"{place.keys} keys and queries that end at {at - place.key + place.rows}")
    if fewer:
        return "ranges_rows" if starts else "ends_rows", at
    return "ranges" if starts else "ends" if ends else "whole", at


_BROKEN = "padding before all tokens of a row or behind them (pad on the left to generate)"


def _refuse_around(got: str) -> None:
    raise expected("mask_function", "a window to both sides over as many keys as queries", got)
