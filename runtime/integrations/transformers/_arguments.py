"""Keywords that transformers hands to attention: what leaves it alone, and what no kernel computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..._call.checks import describe
from ...errors import expected

# What models hand on to every attention function, and what changes nothing for one that has a mask.
_NOT_NEEDED = frozenset(
    (
        "cache_position",
        "deterministic",
        "labels",
        "logits_to_keep",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "seq_idx",
        "use_cache",
    )
)
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
_ABSENT = {
    "block_indices": "keys are not chosen by index",
    "cache": "transformers' continuous batching takes no attention function of others",
    "head_mask": "heads are not scaled",
    "indices": "keys are not chosen by index",
    "layer_head_mask": "heads are not scaled",
    "output_attentions": "the weights are never stored",
    "position_bias": "nothing is added to the scores",
}
_OTHERWISE = "attn_implementation='eager' takes it"


def refuse_unknown(dropout: float, arguments: Mapping[str, object]) -> None:
    """Refuse dropout, and each keyword that is set and not known to leave attention alone.

    Raises:
        ArgumentError: the first one, in order of their names.
    """
    if dropout:
        raise expected("dropout", "0.0, since there is no dropout (model.eval() turns it off)", dropout)
    for name in sorted(arguments):
        value = arguments[name]
        if name in _NOT_NEEDED or name in PACKING or value is None or value is False:
            continue
        why = _ABSENT.get(name, "it is not known to leave attention alone")
        got = describe(value) if isinstance(value, torch.Tensor) else repr(value)
        raise expected(name, f"None, since {why} ({_OTHERWISE})", got)
