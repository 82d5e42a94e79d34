"""What a mask function tells the attention function, in a small tensor that transformers hands on untouched.

transformers takes a mask of four dimensions as finished. Ours is int32, and its shape holds what the host knows
(compiled code can read nothing else): dimension 1 is a code for everything but the numbers, and is only as wide as
the largest code, since transformers copies some masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...sparse.policy import PHASES, Phase

Kind = Literal["full", "causal", "window", "around", "chunked"]
KINDS: tuple[Kind, ...] = ("full", "causal", "window", "around", "chunked")
Form = Literal["whole", "ends", "ends_rows", "ranges", "ranges_rows", "packed"]
FORMS: tuple[Form, ...] = ("whole", "ends", "ends_rows", "ranges", "ranges_rows", "packed")
COLUMNS = 4
_FIRST_CODE = 2  # a mask for all heads has 1 there
_sizes = [0]  # of windows and chunks; a model has one or two


@dataclass(frozen=True)
class Mask:
    """Which keys the rows of a forward see.

    Args:
        kind: of the mask: ``window`` is causal and ``around`` to both sides.
        size: of ``window`` the keys that a row sees, itself among them; of ``around`` those to each side; of
            ``chunked`` those of a chunk; else 0.
        form: ``whole``: all rows and keys are in use; ``ends``: the first keys; ``ranges``: from a first one on;
            ``_rows``: and so are the rows (of ``ends_rows`` the first ones); ``packed``: requests lie end to end.
        phase: the stage of the requests.
        numbers: int32 ``[B, 4]``: first key, end of the keys, first row, rows from there on; of ``packed`` the offsets
            ``[B + 1]``.
        longest: of ``packed``, rows of the longest request.
    """

    kind: Kind
    size: int
    form: Form
    phase: Phase
    numbers: torch.Tensor
    longest: int = 1


def encode(mask: Mask) -> torch.Tensor:
    """As a tensor ``[B, code, 1, 4]``, or ``[1, code, longest, B + 1]`` of ``packed``."""
    if mask.size not in _sizes:
        _sizes.append(mask.size)
    code = _sizes.index(mask.size)
    for value, values in ((mask.kind, KINDS), (mask.form, FORMS), (mask.phase, PHASES)):
        code = code * len(values) + values.index(value)
    if mask.form == "packed":
        return mask.numbers[None, None, None].expand(1, code + _FIRST_CODE, mask.longest, -1)
    return mask.numbers[:, None, None].expand(-1, code + _FIRST_CODE, 1, -1)


def decode(tensor: torch.Tensor) -> Mask | None:
    """What :func:`encode` was given; None: this is somebody else's mask."""
    if tensor.dim() != 4 or tensor.dtype != torch.int32:
        return None
    code = int(tensor.shape[1]) - _FIRST_CODE
    code, stage = divmod(code, len(PHASES))
    code, form = divmod(code, len(FORMS))
    size, kind = divmod(code, len(KINDS))
    if not 0 <= size < len(_sizes):
        return None
    if FORMS[form] == "packed":
        return Mask(KINDS[kind], _sizes[size], "packed", PHASES[stage], tensor[0, 0, 0], int(tensor.shape[2]))
    if tensor.shape[2] != 1 or tensor.shape[3] != COLUMNS:
        return None
    return Mask(KINDS[kind], _sizes[size], FORMS[form], PHASES[stage], tensor[:, 0, 0])
