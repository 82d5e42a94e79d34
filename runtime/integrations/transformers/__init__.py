"""``attn_implementation="skimattn"`` for Hugging Face transformers, 4.57 and 5.

    from skimattn.integrations.transformers import register

    register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", attn_implementation="skimattn")

Layers are dense until they get a policy (:mod:`skimattn.sparse`). Understood are causal, sliding-window, chunked and
bidirectional masks, with left or right padding, dynamic, static and sliding caches, several sequences packed in a row
(by ``position_ids`` or by ``cu_seq_lens_q`` and ``cu_seq_lens_k``), chunked prefill, speculative steps, sinks and
softcap; heads of q and k that are wider than those of v (MLA as transformers computes it, 192 and 128). Caches are read
where they lie, also behind left padding. Keys that come straight from a projection are copied if padding makes them
ragged and k and v are laid out differently.

All else is refused by name with an ``ArgumentError``: 4-D masks that transformers did not have made here, changed mask
functions (image tokens that see each other, ``or_mask_function``, ``and_mask_function``), padding between tokens,
dropout, attention weights, position biases, and every keyword that is not known to leave attention alone. float32 is
refused too: kernels take bf16 and fp16.

**Stage.** Which rule of a layer's policy holds depends on the stage of the requests: *decode* if they generate from a
cache, else *prefill*. transformers says neither. What counts, in this order:

1. ``with phase("decode"):`` (or ``"prefill"``) around the forward;
2. inside ``generate``, what its own prefill computes is prefill, whatever the size of its chunks (transformers 5; of
   4.57 the chunks of ``prefill_chunk_size``);
3. queries that stand behind cached keys are decoded if they are at most 64 to a request, speculative steps among them,
   and else a chunk of a prompt. A prompt that begins is prefill, even of one token.

So in a loop of your own, put ``phase("prefill")`` around chunks of less than 65 tokens and around short turns that
continue a conversation. A forward that is compiled together with its masks, over a static cache, cannot see whether
keys are cached: there 1 and then the number of queries alone decide.

**Lengths.** A rule's ``len_k`` is the number of keys that a row can see at most: those of its request, or of its window
or chunk if that is less, so it does not depend on the kind of cache.

**torch.compile.** ``generate`` with a static cache compiles, with ``fullgraph`` too: masks are made outside then.
A forward that is compiled with its masks works for causal and sliding-window ones; for the others, and for packed
sequences, make the mask outside (``transformers.masking_utils.create_causal_mask``) and pass it.

**Running texts.** ``load`` loads a model with its tokenizer, ``TextForward`` runs texts for
:func:`skimattn.sparse.calibrate`, ``compare`` runs a sparsified model beside itself, dense, and ``Session`` is one text
in a model, prompt and steps. The commands ``skimattn calibrate``, ``verify``, ``sparsify`` and ``generate`` are made of
these.

One value is read back from the device in each forward whose mask depends on values there (padding, packing; with 4.57
and static caches the position), never inside a graph capture.
"""

from __future__ import annotations

from ._phase import DECODE_ROWS, phase
from ._register import NAME, register
from .comparison import Comparison, compare
from .loading import Loaded, load
from .running import TextForward
from .session import Session

__all__ = [
    "DECODE_ROWS",
    "NAME",
    "Comparison",
    "Loaded",
    "Session",
    "TextForward",
    "compare",
    "load",
    "phase",
    "register",
]
