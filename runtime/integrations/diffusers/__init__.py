"""Self-attention of diffusers' Wan, HunyuanVideo and Flux transformers on skimattn's kernels.

    from skimattn.integrations.diffusers import denoising, sparsify

    sparsify(pipe, {"scale_factor": 200, "initial_disabled_steps": 5})
    with denoising(pipe, stat_log="stats.jsonl") as on_step_end:
        video = pipe(prompt, callback_on_step_end=on_step_end)

:func:`sparsify` takes a pipeline or a transformer, with what :func:`skimattn.sparse.sparsify` takes. It gives attention
modules a policy and, by diffusers' ``set_attn_processor``, a processor that calls our kernels. What else
:mod:`skimattn.sparse` has (``summary``, ``enable``, ``disable``, ``set_step``, ``export_config``, ``save_pretrained``)
works on the transformers themselves. :func:`restore` gives them back what they had.

**What skips.** Self-attention, and of HunyuanVideo and Flux the joint attention of video or image and text:
``WanTransformer3DModel``, ``WanVACETransformer3DModel``, ``HunyuanVideoTransformer3DModel`` and
``FluxTransformer2DModel``, with the processors that they are made with.
Cross attention, token refiners, and modules that the configuration leaves dense keep their processors, and with them
diffusers' attention back ends. Requests are in the stage ``prefill`` throughout; a rule's ``len_k`` is the number of
keys of the joint sequence, less padding.

**Padding.** The mask that HunyuanVideo makes for padded text becomes lengths. Rows of padding take no part in
decisions, so a request skips what it would skip alone; they get zeros, which no token sees. To know whether there is
padding one value is read back from the device in each forward, not in code that is compiled or captured.

**Steps.** A configuration with dense steps (``initial_disabled_steps``, or ``disabled_until_timestep`` in the
scheduler's units) has to be told which step comes: by :func:`denoising`, or in a loop of your own by
``skimattn.sparse.set_step(transformer, step, timestep)`` before each step. Where nobody says it a forward is refused.
Steps count through the whole run, also where a second transformer takes over.

**Calibration.** :func:`calibrate` runs requests at trial thresholds, and returns configurations by component.

All else is refused by name with an ``ArgumentError``: other transformers and processors (IP-Adapters, attention that
was changed), masks with holes, context parallelism, and what kernels do not take, float32 among it. Sparsify before
``torch.compile``; ``transformer.compile()`` and ``compile_repeated_blocks()`` work on what was sparsified.
"""

from __future__ import annotations

from ._calibrate import calibrate
from ._denoising import OnStepEnd, denoising
from ._models import restore, sparsify

__all__ = ["OnStepEnd", "calibrate", "denoising", "restore", "sparsify"]
