"""The mask function: from what transformers knows of a forward to the compact mask that attention reads."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from ...errors import expected
from .._device import may_read
from ._compact import Mask, encode
from ._phase import phase_of
from ._place import Place, form_of, on_device, on_host
from ._recognise import MaskFunction, Pattern, recognise

# What other masks are told, and what is no part of the meaning of one.
_NOT_NEEDED = frozenset(
    (
        "allow_is_bidirectional_skip",
        "allow_is_causal_skip",
        "allow_torch_fix",
        "config",
        "dtype",
        "use_vmap",
    )
)


def attention_mask(
    batch_size: int,
    kv_length: int,
    mask_function: MaskFunction,
    attention_mask: torch.Tensor | None = None,
    kv_offset: int = 0,
    q_length: int | None = None,
    q_offset: int | torch.Tensor = 0,
    cache_position: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    local_size: int | None = None,
    **others: object,
) -> torch.Tensor:
    """A compact mask (:mod:`._compact`); called by transformers, once for each kind of layer in a forward.

    Args:
        batch_size: requests.
        kv_length: keys that attention will be given, used or not.
        mask_function: which mask, as ``masking_utils`` makes it.
        attention_mask: bool ``[B, positions]``: where tokens are; beyond it are none.
        kv_offset: position of the first of the keys.
        q_length: queries of a request (release 5).
        q_offset: position of the first query (release 5).
        cache_position: positions of the queries ``[q_length]`` (release 4.57).
        device: of the mask (release 5).
        local_size: of a window or chunk, which ``mask_function`` has too.
        others: what other masks need.

    Raises:
        ArgumentError: the mask function, the padding or an argument is not known.
    """
    for name in sorted(others.keys() - _NOT_NEEDED):
        raise expected(name, "no argument that masks of transformers 4.57 and 5.24 do not have", repr(others[name]))
    if cache_position is not None:
        q_length, q_offset, device = len(cache_position), cache_position[0], cache_position.device
    assert q_length is not None, "either release says it"
    pattern = recognise(mask_function, local=local_size is not None)
    place = Place(batch_size, q_length, kv_length, q_offset, kv_offset, torch.device(device))
    packed = None if pattern.segments is None else _packed(pattern, pattern.segments, place)
    return encode(_of_rows(pattern, place, attention_mask) if packed is None else packed)


def _of_rows(pattern: Pattern, place: Place, attention_mask: torch.Tensor | None) -> Mask:
    """The mask of requests that have a row of the batch each."""
    if attention_mask is None and isinstance(place.position, torch.Tensor) and may_read(place.device):
        place = replace(place, position=int(place.position))
    if attention_mask is None and isinstance(place.position, int):
        form, numbers = on_host(pattern, place, place.position)
        return Mask(pattern.kind, pattern.size, form, phase_of(place.rows, place.position), numbers)
    used = on_device(pattern, place, _padding_of(place, attention_mask))
    form, position = form_of(pattern, place, used, padded=attention_mask is not None)
    return Mask(pattern.kind, pattern.size, form, phase_of(place.rows, position), used.numbers)


def _padding_of(place: Place, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Where tokens are among the keys, bool ``[B, keys]``."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != place.batch:
        wanted = f"[{place.batch}, positions], 1 where there is a token"
        raise expected("attention_mask", wanted, list(attention_mask.shape))
    there = attention_mask[:, place.key : place.key + place.keys].bool()
    return torch.nn.functional.pad(there, (0, place.keys - there.shape[1]))


def _packed(pattern: Pattern, segments: torch.Tensor, place: Place) -> Mask | None:
    """The mask of sequences that lie end to end; None: there is one in each row.

    ``segments`` ``[B, S]`` has another number where another sequence begins.
    """
    if not may_read(place.device):
        raise expected("position_ids", "one sequence in a row while a CUDA graph is captured", "packed sequences")
    begins = torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    offsets = [*begins.flatten().nonzero().flatten().tolist(), begins.numel()]
    if len(offsets) == place.batch + 1:
        return None
    if pattern.kind == "chunked":
        raise expected("position_ids", "one sequence in a row with a chunked mask", f"{len(offsets) - 1} sequences")
    longest = max(end - begin for begin, end in itertools.pairwise(offsets))
    numbers = torch.tensor(offsets, dtype=torch.int32, device=place.device)
    return Mask(pattern.kind, pattern.size, "packed", phase_of(place.rows, 0), numbers, longest)
