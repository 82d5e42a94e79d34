"""The operators ``torch.ops.skimattn.attention``, ``attention_out`` and ``merge_states``.

:func:`skimattn.launch` and :func:`skimattn.attention` become the first two where torch.compile or torch.export traces
them, and nothing more is needed. Importing this module registers the operators, as the first use of these functions
does: a process that only loads an exported program imports it. Called by hand they take the fields of
:class:`skimattn.Params`, all but q, k and v by name; a threshold in a tensor is ``skip_softmax_threshold_tensor``.

``attention(q, k, v, *, ...)`` returns ``(out, lse)``, where ``lse`` has no elements without ``return_lse=True``.
``attention_out(q, k, v, *, ..., out, lse=None)`` writes to them and returns nothing. Both write ``stats`` and
``skip_map`` if given, as their schemas declare; :func:`skimattn.launch` becomes the second one where the call holds
``out`` or ``lse``. ``merge_states(outs, lses)`` takes lists of tensors; :func:`skimattn.merge_states` is always it.

With ``mode="reduce-overhead"`` torch replays CUDA graphs, which write where they were recorded: keep ``stats``,
``skip_map``, ``out`` and ``lse`` in buffers of the module (``register_buffer``), or tell torch that they stay in place
(``torch._dynamo.mark_static_address``); a graph that writes to others is not replayed but run. What changes from call
to call comes in tensors (lengths, page tables, thresholds): every float that changes compiles anew, and so does the
second value of an int, such as ``max_seqlen_k``.

There is no backward pass, so tensors that require a gradient are refused when the call is traced; vmap is refused too.
A ``stream`` cannot be traced: compiled code runs on torch's current stream.
"""

from __future__ import annotations

import torch

from .._op import merge as merge  # registers, as ops does
from .._op import ops as ops

attention = torch.ops.skimattn.attention
attention_out = torch.ops.skimattn.attention_out
merge_states = torch.ops.skimattn.merge_states
