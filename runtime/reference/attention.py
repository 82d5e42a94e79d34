"""The block-exact reference: what named kernels compute, tile by tile, in plain torch on the CPU.

Same tiles, row groups, visiting order and skip decisions as the kernels, same counts and skip map. Scores are
computed in float32; probabilities are rounded to the type of the values before they meet them (8-bit ones as 256
times themselves, which uses that type's range). It differs from a kernel by the order in which float32 sums are taken,
by the kernel's approximate exp2 and tanh, and by what 16-bit probabilities are measured from when they are rounded:
always the running maximum here, on SM100 a base that may lag behind it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.split import decodes

from .._call.ambient import shielded
from .._call.problem import Problem
from .._launch.buffers import Buffers
from . import decode, prefill
from ._requests import requests

LOGGER = logging.getLogger("skimattn")
_announced: set[str] = set()


@dataclass(frozen=True)
class Kernels:
    """The kernels of each phase that some request of a call may be in. Without the other, one takes all requests."""

    prefill: Kernel | None = None
    decode: Kernel | None = None


def attention(problem: Problem, kernels: Kernels, buffers: Buffers) -> None:
    """Compute a validated call on CPU tensors into ``buffers``, each request as its kernel would on a GPU."""
    for kernel in (kernels.prefill, kernels.decode):
        if kernel is not None and kernel.name not in _announced:
            _announced.add(kernel.name)
            LOGGER.info("CPU tensors: the reference computes what %s would (slow, for trying things out)", kernel.name)
    per_kv, has_cache = problem.heads_q // problem.heads_kv, problem.has_cache
    with shielded():
        for request in requests(problem, buffers):
            if kernels.prefill and not (kernels.decode and decodes(request.len_q, request.len_k, per_kv, has_cache)):
                prefill.compute(problem, kernels.prefill, request)
            else:
                assert kernels.decode, "a call has a kernel"
                decode.compute(problem, kernels.decode, request)
