"""The attention function: a compact mask, and what a layer hands over, as one call of skimattn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..._call.checks import describe
from ..._call.pieces import ragged_offsets
from ...api import launch
from ...errors import expected
from ...params import Params
from ...sparse.call import skip_arguments
from ...sparse.policy import policy_of
from ._arguments import refuse_unknown
from ._compact import COLUMNS, Kind, Mask, decode
from ._keys import ragged_keys
from ._phase import phase_of


@dataclass(frozen=True)
class _Call:
    """A call, without what its layer skips.

    Args:
        arguments: of :class:`~skimattn.Params`.
        batch: requests.
        lengths: keys of a request, of all if it is one number, or int32 ``[B]``.
    """

    arguments: dict[str, Any]
    batch: int
    lengths: int | torch.Tensor


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *arguments: Any,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, ``[B, Sq, Hq, Dv]``, and no weights; called by transformers, with what ``params_of`` has.

    Raises:
        ArgumentError: something is not known or not computed.
    """
    out = launch(params_of(module, query, key, value, attention_mask, *arguments, **others))
    assert isinstance(out, torch.Tensor)  # no log-sum-exp was asked for
    return as_transformers_has_it(out, query, value), None


def as_transformers_has_it(out: torch.Tensor, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The output of a call as ``[B, Sq, Hq, Dv]``."""
    batch, heads, rows, _ = query.shape
    return out.view(batch, rows, heads, value.shape[-1])


def params_of(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> Params:
    """The call that attention of one layer is.

    Args:
        module: the layer, whose policy says what it skips.
        query: ``[B, Hq, Sq, D]``, bf16 or fp16.
        key: ``[B, Hkv, Sk, D]``.
        value: ``[B, Hkv, Sk, Dv]``.
        attention_mask: what our mask function made; None: the model makes no masks.
        scaling: of the scores; default ``D ** -0.5``.
        dropout: refused unless 0.
        sliding_window: of the layer; the mask has it too.
        softcap: of the scores.
        s_aux: sinks ``[Hq]``.
        is_causal: without a mask; default what the layer says.
        others: ``cu_seq_lens_q`` and ``cu_seq_lens_k`` with packed sequences, and what leaves attention alone.

    Raises:
        ArgumentError: something is not known or not computed.
    """
    refuse_unknown(dropout, others)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if attention_mask is None:
        mask = _without_mask(module, q, k, sliding_window, is_causal)
    else:
        mask = _checked(attention_mask, q, sliding_window, is_causal)
    mask = _with_offsets(mask, q, others)
    call = _packed(q, k, v, mask, others) if mask.form == "packed" else _in_rows(q, k, v, mask)
    arguments = call.arguments | _mask_arguments(mask) | {"softmax_scale": scaling, "softcap": softcap or 0.0}
    if s_aux is not None:
        arguments["sinks"] = s_aux
    policy = policy_of(module)
    if policy is not None:
        most = _most_keys(mask, call.lengths)
        heads, device = query.shape[1], query.device
        arguments |= skip_arguments(policy, mask.phase, most, batch=call.batch, heads_q=heads, device=device)
    return Params(**arguments)


def _without_mask(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, window: int | None, is_causal: bool | None
) -> Mask:
    """What None means: all keys, or the causal mask of queries that have no keys before them."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if causal and q.shape[1] != k.shape[1]:
        wanted = "a mask, since queries and keys are not equally many and None does not say which keys are used"
        raise expected("attention_mask", wanted, f"None with {q.shape[1]} queries and {k.shape[1]} keys")
    if window is not None and not causal:
        raise expected("sliding_window", "None without a mask and without is_causal", window)
    kind: Kind = "full" if not causal else "causal" if window is None else "window"
    return Mask(kind, window or 0, "whole", phase_of(q.shape[1], 0), q.new_empty(0))


def _checked(tensor: torch.Tensor, q: torch.Tensor, window: int | None, is_causal: bool | None) -> Mask:
    """The mask that our mask function made, which must not contradict the layer."""
    mask = decode(tensor)
    if mask is None:
        wanted = "a mask that transformers had made for attn_implementation='skimattn': [B, positions] or none"
        raise expected("attention_mask", f"{wanted} (sdpa and eager take masks of four dimensions)", describe(tensor))
    if mask.form != "packed" and len(mask.numbers) != len(q):
        raise expected("attention_mask", f"a mask of {len(q)} requests, like query", len(mask.numbers))
    if window is not None and mask.kind != "around" and (mask.kind, mask.size) != ("window", window):
        was = f"{window} with a mask that is {mask.kind}" + (f" of {mask.size} keys" if mask.size else "")
        raise expected("sliding_window", "the window that the layer's mask has", was)
    if is_causal is False and mask.kind not in ("full", "around"):
        wanted = f"None or True with a mask that is {mask.kind} (config.is_causal = False makes bidirectional masks)"
        raise expected("is_causal", wanted, is_causal)
    return mask


def _with_offsets(mask: Mask, q: torch.Tensor, others: dict[str, Any]) -> Mask:
    """The mask with the packed sequences that ``cu_seq_lens_q`` says, which a mask function is not told."""
    offsets = others.get("cu_seq_lens_q")
    if offsets is None:
        return mask
    if mask.form not in ("whole", "packed") or len(q) != 1 or mask.kind == "chunked":
        wanted = "None with padding, a static cache, chunks, or more than one row"
        raise expected("cu_seq_lens_q", wanted, f"{describe(offsets)} with {len(q)} rows, mask {mask.kind}")
    if others.get("cu_seq_lens_k") is None:
        raise expected("cu_seq_lens_k", "the offsets of the keys, beside cu_seq_lens_q", None)
    return replace(mask, form="packed", numbers=offsets.int(), longest=0)


def _packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask, others: dict[str, Any]) -> _Call:
    """Requests that lie end to end."""
    offsets_k = others.get("cu_seq_lens_k")
    offsets_k = mask.numbers if offsets_k is None else offsets_k.int()
    arguments = {name: x.flatten(0, 1) for name, x in (("q", q), ("k", k), ("v", v))}
    hints = {f"max_seqlen_{name}": mask.longest or _hint(others.get(f"max_length_{name}")) for name in "qk"}
    lengths = offsets_k[1:] - offsets_k[:-1]
    return _Call({**arguments, **hints, "cu_seqlens_q": mask.numbers, "cu_seqlens_k": offsets_k}, len(lengths), lengths)


def _hint(longest: object) -> int | None:
    """A length that the host knows; one in a tensor is not worth waiting for."""
    return longest if isinstance(longest, int) else None


def _in_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask) -> _Call:
    """Requests that have a row each."""
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v}
    batch, rows, heads, _ = q.shape
    if mask.form == "whole":
        return _Call(arguments, batch, k.shape[1])
    first, end, from_row, used = (mask.numbers[:, column].contiguous() for column in range(COLUMNS))
    lengths = end - first if mask.form.startswith("ranges") else end
    arguments["seqused_k"] = lengths
    if mask.form.startswith("ranges"):
        arguments["k"], arguments["v"], arguments["cu_seqlens_k"] = ragged_keys(k, v, first)
        arguments["max_seqlen_k"] = k.shape[1]
    if mask.form.endswith("_rows"):
        arguments["seqused_q"] = used
        out = q.new_zeros((batch, rows, heads, v.shape[-1]))  # later layers read rows of padding: they must be finite
        if (
            mask.form == "ranges_rows"
        ):  # rows decide in groups from the first one in use on, as those of a request alone
            arguments["q"], out = q.flatten(0, 1), out.flatten(0, 1)
            arguments["cu_seqlens_q"] = ragged_offsets(from_row, rows, batch * rows)
            arguments["max_seqlen_q"] = rows
        arguments["out"] = out
    return _Call(arguments, batch, lengths)


def _mask_arguments(mask: Mask) -> dict[str, Any]:
    if mask.kind == "window":
        return {"mask": "window", "window_size": (mask.size - 1, 0)}
    if mask.kind == "around":
        return {"mask": "window", "window_size": (mask.size, mask.size)}
    if mask.kind == "chunked":
        return {"mask": "chunked", "chunk_size": mask.size}
    return {"mask": mask.kind}


def _most_keys(mask: Mask, lengths: int | torch.Tensor) -> int | torch.Tensor:
    """How many keys a row can see at most."""
    most = {"window": mask.size, "around": 2 * mask.size + 1, "chunked": mask.size}.get(mask.kind)
    if most is None:
        return lengths
    return lengths.clamp(max=most) if isinstance(lengths, torch.Tensor) else min(lengths, most)
